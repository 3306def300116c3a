"""What the tests of the server share."""

from __future__ import annotations

import pytest
from answers import ENDS, TEXT

from glm_trt.engines.serve.grammar import Grammars


@pytest.fixture(scope="session")
def grammars() -> Grammars:
    """Over a tokenizer with GLM's tokens."""
    return Grammars(TEXT.to_str(), TEXT.get_vocab_size(), ENDS)
