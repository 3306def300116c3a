"""The checkpoint that reasons and calls tools: its files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dialogues as d
import pytest
from tokenizers import Tokenizer

DIALOGUE = Path(__file__).parent.parent / "data" / "glm-5.1-dialogue"


def json_of(name: str) -> Any:
    return json.loads((DIALOGUE / name).read_text())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(DIALOGUE / "tokenizer.json"))


def test_files_are_small_and_stop_where_glm_does(tokenizer: Tokenizer) -> None:
    assert sum(path.stat().st_size for path in DIALOGUE.iterdir()) < 8e6
    stops = [tokenizer.token_to_id(name) for name in (d.END, d.USER, d.OBSERVATION)]
    assert None not in stops
    assert json_of("generation_config.json")["eos_token_id"] == stops
    assert json_of("config.json")["eos_token_id"] == stops
    added = {
        token["content"]: token["special"] for token in json_of("tokenizer.json")["added_tokens"]
    }
    assert added == dict.fromkeys(d.SPECIAL, True) | dict.fromkeys(d.MARKS, False)
    # GLM-5.1's own format is what a checkpoint without a template gets.
    assert "chat_template" not in json_of("tokenizer_config.json")
    assert not list(DIALOGUE.glob("*template*"))
