"""A tokenizer with GLM's special tokens, and the second implementation of GLM's format."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from glm_trt.engines.python.chat_template import GLM_TOKENS
from glm_trt.engines.python.text import Text

TINY = Path(__file__).parent.parent / "data" / "glm-5.1-tiny"


def files_of(directory: Path) -> dict[str, Path]:
    """A tokenizer's files by their names, as a bundle has them."""
    paths = [path for path in directory.rglob("*") if path.is_file()]
    return {path.relative_to(directory).as_posix(): path for path in paths}


def glm_text(directory: Path) -> Text:
    """The tiny tokenizer with GLM's special tokens, written to `directory`.

    As in GLM's own, the marks within a message are tokens that text may show, so not special.
    """
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    roles = ("[", "<|", "<sop>")
    tokenizer.add_tokens(
        [AddedToken(name, special=name.startswith(roles), normalized=False) for name in GLM_TOKENS]
    )
    tokenizer.save(str(directory / "tokenizer.json"))
    return Text.of_files(files_of(directory), str(directory))


def oracle_tokenizer(directory: Path) -> Any:
    """The tokenizer of `glm_text` in transformers."""
    return PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"))


def renderers() -> ModuleType:
    """The package `renderers`, without its HTTP client, which needs what it does not declare."""
    if "renderers" not in sys.modules:
        found = importlib.util.find_spec("renderers")
        assert found is not None and found.submodule_search_locations is not None
        package = ModuleType("renderers")
        package.__path__ = list(found.submodule_search_locations)
        sys.modules["renderers"] = package
    return sys.modules["renderers"]
