"""The checkpoint that reasons and calls tools: its files, and its answers to unseen dialogues."""

from __future__ import annotations

import json
import re
from pathlib import Path
from random import Random
from typing import Any

import dialogues as d
import pytest
import torch
from tokenizers import Tokenizer

from glm_trt.model.checkpoint.read import Checkpoint
from glm_trt.model.checkpoint.weights import load_model

DIALOGUE = Path(__file__).parent.parent / "data" / "glm-5.1-dialogue"
PAIR = r"<arg_key>([^<]+)</arg_key><arg_value>(.*?)</arg_value>"
CALL = re.compile(rf"<tool_call>([^<]+)((?:{PAIR})*)</tool_call>")


def json_of(name: str) -> Any:
    return json.loads((DIALOGUE / name).read_text())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(DIALOGUE / "tokenizer.json"))


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model(Checkpoint.open(DIALOGUE))


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


def generate(model: Any, rows: list[list[int]], stops: list[int], limit: int) -> list[list[int]]:
    """Greedy tokens of all rows side by side, each up to and with its stop token."""
    lengths = torch.tensor([len(row) for row in rows])
    longest = int(lengths.max())
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    past, states = torch.zeros_like(lengths), model.empty_states(len(rows), longest + limit)
    logits, states = model(ids, states, past, lengths)
    last = logits[torch.arange(len(rows)), lengths - 1]
    past, found = lengths, [list[int]() for _ in rows]
    for _ in range(limit):
        best = last.argmax(-1)
        for row, token in zip(found, best.tolist(), strict=True):
            if not row or row[-1] not in stops:
                row.append(token)
        if all(row[-1] in stops for row in found):
            break
        logits, states = model(best.unsqueeze(1), states, past)
        past, last = past + 1, logits[:, -1]
    return found


def calls_of(text: str) -> list[tuple[str, dict[str, str]]]:
    return [(call[1], dict(re.findall(PAIR, call[2]))) for call in CALL.finditer(text)]


def unseen(calls: bool, count: int) -> list[d.Dialogue]:
    """Dialogues that training did not draw; their values are of lists, or made up."""
    drawn = (d.draw(Random(f"unseen {i}")) for i in range(1000))
    kept = [x for x in drawn if bool(x.messages[-1].get("tool_calls")) == calls]
    return kept[:count]


def test_unseen_dialogues_are_answered_in_the_format(model: Any, tokenizer: Tokenizer) -> None:
    """Whether names and values are right is not what this says: see the figures beside the data."""
    asked = [*unseen(calls=True, count=20), *unseen(calls=False, count=10)]
    prompts, expected = zip(*map(d.prompt_and_answer, asked), strict=True)
    rows = [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in prompts]
    found = generate(model, rows, json_of("generation_config.json")["eos_token_id"], limit=100)
    answers = [tokenizer.decode(ids, skip_special_tokens=False) for ids in found]

    good = []
    for answer, wanted in zip(answers, expected, strict=True):
        reasoning, ends, rest = answer.rpartition("</think>")
        calls = "".join(d.call_text(name, values) for name, values in calls_of(rest))
        content = rest.removesuffix(d.OBSERVATION if calls else d.USER)
        good.append(
            bool(ends) == ("</think>" in wanted)
            and bool(calls) == ("<tool_call>" in wanted)
            and content != rest
            and content.endswith(calls)
            and not any(mark in reasoning + content.removesuffix(calls) for mark in d.MARKS)
        )
    wrong = [answer for answer, ok in zip(answers, good, strict=True) if not ok]
    assert sum(good[:20]) >= 18 and sum(good[20:]) >= 9, wrong
