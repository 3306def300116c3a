"""Grammars of answers: what compiling one costs, and a mask, with a vocabulary of GLM's size.

The tokenizer is the given one, or a made-up one: a byte-level BPE whose tokens are joined at random
from shorter ones of it. Answers are given token by token, each of which the mask must allow. CPU
time; microseconds belong to the machine.

Exit codes: 0 reported, 1 a mask forbade a token of an answer.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from glm_trt.engines.serve.call_grammar import Function
from glm_trt.engines.serve.grammar import MARKS, AnswerForm, Grammars

VOCABULARY = 154_880  # GLM-5.1's
ENDS = ("<|endoftext|>", "<|user|>", "<|observation|>")
PARAMETERS: dict[str, Any] = {
    "type": "object", "required": ["city"], "properties": {
        "city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "F"]},
        "when": {"type": ["string", "null"]},
        "at": {"type": "object", "required": ["lat"], "properties": {"lat": {"type": "number"}}},
    },
}  # fmt: skip
PROSE = "The weather in Bern will be mild, with some rain; let me look before I answer. " * 4
CALL = (
    "<tool_call>tool_0<arg_key>days</arg_key><arg_value>3</arg_value><arg_key>city</arg_key>"
    '<arg_value>Bern, in the west</arg_value><arg_key>at</arg_key><arg_value>{"lat": 46.9}'
    "</arg_value></tool_call>"
)
RECORD = {
    "type": "object", "additionalProperties": False, "required": ["name", "n"], "properties": {
        "name": {"type": "string"}, "n": {"type": "integer"}, "kind": {"enum": ["a", "b"]},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
}  # fmt: skip
RECORDS = {"type": "object", "properties": {f"p{i}": RECORD for i in range(40)}}
CODE = {
    "type": "object",
    "properties": {"id": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"}},
}
SAID = {f"p{i}": {"name": "some name", "n": i, "kind": "b", "tags": ["x"]} for i in range(40)}


def tools(count: int) -> tuple[Function, ...]:
    """So many, alike."""
    return tuple(Function(f"tool_{i}", PARAMETERS) for i in range(count))


CASES: tuple[tuple[str, AnswerForm, str], ...] = (
    ("text, 1 tool", AnswerForm(True, tools(1)), f"{PROSE}</think>{PROSE}{CALL}"),
    ("text, 64 tools", AnswerForm(True, tools(64)), f"{PROSE}</think>{PROSE}{CALL}"),
    ("a call, 64 tools", AnswerForm(False, tools(64), "required"), CALL),
    ("no call", AnswerForm(True, tools(1), "none"), f"{PROSE}</think>{PROSE}"),
    (
        "JSON",
        AnswerForm(response="json_object"),
        json.dumps({"a": PROSE, "b": [1, SAID]}, indent=1),
    ),
    ("40 records", AnswerForm(response="json_schema", schema=RECORDS), json.dumps(SAID)),
    ("a pattern", AnswerForm(response="json_schema", schema=CODE), '{"id": "ABC-1234"}'),
)


def made_up(size: int) -> Tokenizer:
    """A byte-level BPE of so many tokens."""
    random = Random(0)
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    known, merges = dict.fromkeys(tokens), []
    letters = [*"etaoinshrdlucmfwypvbgkjqxzETAOINSHRDLUCM0123456789_Ġ"]
    while len(tokens) < size:
        pair = random.choice(letters), random.choice(tokens)
        joined = "".join(pair)
        if len(joined) <= 12 and joined not in known:
            known[joined] = None
            tokens.append(joined)
            merges.append(pair)
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def microseconds(samples: Sequence[float]) -> str:
    """Median and the slowest in a hundred."""
    return f"{median(samples) * 1e6:8.0f} {np.percentile(samples, 99) * 1e6:8.0f}"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json, instead of a made-up one")
    options = parser.parse_args()
    if options.tokenizer is None:
        tokenizer = made_up(151_000)
    else:
        tokenizer = Tokenizer.from_file(str(options.tokenizer))
    tokenizer.add_special_tokens([*ENDS])
    tokenizer.add_tokens([AddedToken(mark, special=False) for mark in MARKS])
    began = time.process_time()
    ends = [tokenizer.token_to_id(name) or 0 for name in ENDS]
    grammars = Grammars(tokenizer.to_str(), VOCABULARY, ends)
    print(f"{tokenizer.get_vocab_size()} tokens, prepared in {time.process_time() - began:.1f} s")
    print(f"{'':18} compile ms  again ms   mask µs  (99 %)   take µs  (99 %)")
    for name, form, answer in CASES:
        times = []
        for _ in range(2):
            began = time.perf_counter()
            grammars.constraint(form)
            times.append((time.perf_counter() - began) * 1e3)
        masks, takes = [], []
        for _ in range(5):
            constraint = grammars.constraint(form)
            assert constraint is not None
            for token in tokenizer.encode(answer, add_special_tokens=False).ids:
                began = time.process_time()
                mask = constraint.allowed(())
                between = time.process_time()
                if not mask[token]:
                    print(f"{name}: {tokenizer.id_to_token(token)!r} is forbidden", file=sys.stderr)
                    return 1
                constraint.take(token)
                _ = constraint.ended
                takes.append(time.process_time() - between)
                masks.append(between - began)
        print(f"{name:18} {times[0]:10.1f} {times[1]:9.2f}  {microseconds(masks)}"
              f"  {microseconds(takes)}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
