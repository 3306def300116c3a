"""Random schemas, answers drawn at random under a constraint, and what calls are in an answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer

from glm_trt.engines.python.constraint import Constraint
from glm_trt.engines.serve.grammar import AnswerForm, GrammarConstraint, Grammars

SPECIAL = ("[gMASK]", "<sop>", "<|system|>")
MARKS = (
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
    "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>",
)  # fmt: skip
_WORDS = ("a", "city", "días", "x y", 'say "no"', "back\\slash", "b/c~d%e", "$ref", "const", "<k>")


def with_glm_tokens(path: Path) -> Tokenizer:
    """The tokenizer in a file with GLM's tokens as published, in which the marks are not special,
    in place of its last tokens: there are as many as before.
    """
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    room = len(vocabulary) - len(SPECIAL) - len(MARKS)
    gone = {token for token, number in vocabulary.items() if number >= room}
    content["model"]["vocab"] = {k: v for k, v in vocabulary.items() if k not in gone}
    content["model"]["merges"] = [x for x in content["model"]["merges"] if "".join(x) not in gone]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.add_special_tokens([*SPECIAL])
    tokenizer.add_tokens([AddedToken(mark, special=False) for mark in MARKS])
    assert tokenizer.get_vocab_size() == len(vocabulary)
    return tokenizer


def random_schema(random: Random, depth: int = 3, references: Sequence[str] = ()) -> Any:
    """A JSON schema that something finite satisfies, of what grammars express whole."""
    if depth and random.random() < 0.12:
        return {"anyOf": [random_schema(random, depth - 1, references) for _ in range(2)]}
    if references and random.random() < 0.15:
        return {"$ref": random.choice(references)}
    kind = random.choice("nbifsssec" + "aaoooo" * (depth > 0) + "*" * (random.random() < 0.1))
    if kind == "o":
        return random_object(random, depth - 1, references)
    if kind == "a":
        schema: dict[str, Any] = {"type": "array"}
        if random.random() < 0.8:
            schema["items"] = random_schema(random, depth - 1, references)
        if random.random() < 0.5:
            schema["minItems"] = random.randint(0, 3)
        if random.random() < 0.5:
            schema["maxItems"] = random.randint(schema.get("minItems", 0), 5)
        if random.random() < 0.2:
            schema["prefixItems"] = [random_schema(random, 0, references)]
        return schema
    if kind == "s":
        schema = {"type": random.choice(["string", "string", ["string", "null"]])}
        if random.random() < 0.3:
            schema["minLength"] = random.randint(0, 4)
        if random.random() < 0.3:
            schema["maxLength"] = random.randint(schema.get("minLength", 0), 9)
        if len(schema) == 1 and random.random() < 0.4:
            schema["pattern"] = random.choice(
                ["^[a-z]+$", "[0-9]{2,4}", "^x", "(é|ü)$", r"^\d+/\w*$", "a|b", "^(ab|cd)?$"]
            )
        return schema
    if kind in "if":
        schema = {"type": "integer" if kind == "i" else "number"}
        if random.random() < 0.4:
            schema["minimum"] = random.randint(-50, 50)
        if random.random() < 0.4:
            schema["maximum"] = random.randint(50, 5000)
        if kind == "i" and random.random() < 0.1:
            schema["multipleOf"] = random.choice([2, 5, 7])
        return schema
    if kind == "e":
        values = [random.choice([*_WORDS, "", 3, -1.5, None, True, [1, "x"], {"k": "v"}])
                  for _ in range(3)]  # fmt: skip
        return {"enum": values}
    return {
        "n": {"type": "null"}, "b": {"type": "boolean"}, "*": {},
        "c": {"const": random.choice(_WORDS)},
    }[kind]  # fmt: skip


def random_object(random: Random, depth: int = 2, references: Sequence[str] = ()) -> dict[str, Any]:
    """A schema of an object, with properties."""
    names = random.sample(_WORDS, random.randint(1, 5))
    properties = {name: random_schema(random, depth, references) for name in names}
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    # What refers to the whole may be left out, so that something finite satisfies it.
    can = [name for name in names if '"$ref"' not in json.dumps(properties[name])]
    if can and random.random() < 0.7:
        schema["required"] = random.sample(can, random.randint(1, len(can)))
    if random.random() < 0.6:
        schema["additionalProperties"] = False
    return schema


def with_definitions(random: Random) -> dict[str, Any]:
    """An object's schema with `$defs` that refer to each other and to themselves."""
    places = ["#/$defs/one", "#/$defs/the%20other", "#"]
    schema = random_object(random, 2, places)
    schema["$defs"] = {"one": random_object(random, 1, places),
                       "the other": random_object(random, 1, places)}  # fmt: skip
    return schema


def drawn(
    constraint: Constraint, tokenizer: Tokenizer, ends: Sequence[int], random: Random, most: int
) -> list[int]:
    """At most so many tokens, drawn evenly from those allowed, or from those that lead to an end,
    in the end only from them. Whether the answer is whole then, the constraint says.
    """
    tokens: list[int] = []
    while len(tokens) < most and not constraint.ended:
        allowed = constraint.allowed(())
        assert allowed is not None
        known = np.flatnonzero(allowed)
        if len(tokens) > most // 4 or random.random() < 0.3:
            leads = [
                i for i in known[: most * 8] if i in ends or _closes(tokenizer.id_to_token(int(i)))
            ]
            known = np.array(leads or known)
        token = int(random.choice(known))
        constraint.take(token)
        tokens.append(token)
    return tokens


def _closes(token: str) -> bool:
    return token in MARKS or token in (
        '"',
        "}",
        "]",
        '"}',
        '"]',
        "}}",
        "]}",
        "0",
        "1",
        ".",
        "e",
        "l",
    )


def calls_in(
    tokens: Sequence[int], tokenizer: Tokenizer
) -> tuple[str, list[tuple[str, dict[str, str]]]]:
    """The text before the calls, and each call's name with its arguments' texts by their keys."""
    parts: list[tuple[str | None, list[int]]] = [(None, [])]
    for token in tokens:
        name = tokenizer.id_to_token(token)
        if name in MARKS:
            parts.append((name, []))
        else:
            parts[-1][1].append(token)
    text = [(mark, tokenizer.decode(ids, skip_special_tokens=True)) for mark, ids in parts]
    calls: list[tuple[str, dict[str, str]]] = []
    for mark, said in text:
        if mark == "<tool_call>":
            calls.append((said, {}))
        elif mark == "<arg_key>":
            key = said
        elif mark == "<arg_value>":
            assert key not in calls[-1][1]
            calls[-1][1][key] = said
        elif mark in ("</think>", None):
            continue
        else:
            assert mark in ("</arg_key>", "</arg_value>", "</tool_call>") and not said
    return text[0][1], calls


# The tiny checkpoint's tokenizer, and with GLM's tokens.
TINY = Path(__file__).parents[1] / "data" / "glm-5.1-tiny" / "tokenizer.json"
TEXT = with_glm_tokens(TINY)
END_NAMES = ("<|endoftext|>", "<|user|>", "<|observation|>")
ENDS = tuple(TEXT.token_to_id(name) for name in END_NAMES)


def ids(text: str) -> list[int]:
    found: list[int] = TEXT.encode(text, add_special_tokens=False).ids
    return found


def begun(grammars: Grammars, form: AnswerForm) -> GrammarConstraint:
    constraint = grammars.constraint(form)
    assert constraint is not None
    return constraint


def refused(constraint: GrammarConstraint, text: str) -> str | None:
    """What follows of `text` where it may not come; None if all may, and was taken."""
    tokens = ids(text)
    for place, token in enumerate(tokens):
        if not constraint.allowed(())[token]:
            return str(TEXT.decode(tokens[place:], skip_special_tokens=False))
        constraint.take(token)
    return None


def schema_form(schema: Any, strict: bool = True, **options: Any) -> AnswerForm:
    return AnswerForm(response="json_schema", schema=schema, strict=strict, **options)
