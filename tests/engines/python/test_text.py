"""Tokenizer, chat template and stop strings: against transformers, and piece by piece."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from glm_trt.engines.python.stopping import StopStrings
from glm_trt.engines.python.text import Text
from glm_trt.export.bundle.read import Bundle
from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint
from glm_trt.model.errors import BundleError, GlmTrtError

TINY = Path(__file__).parents[2] / "data" / "glm-5.1-tiny"
# What templates of published models do: loop controls, macros, white space cut, JSON, refusals.
TEMPLATE = """
{%- macro said(m) -%}
<|{{ m.role }}|>{{ m.content | trim }}
{%- endmacro -%}
{% if tools %}
<|system|>{{ tools | tojson }}
{% endif %}
{% for m in messages %}
    {% if m.role == 'nobody' %}{{ raise_exception('no such role: ' ~ m.role) }}{% endif %}
    {% if not m.content %}{% continue %}{% endif %}
{{ said(m) }}{{ eos_token if m.role == 'assistant' }}
{% endfor %}
{%- if add_generation_prompt %}<|assistant|>
{%- set think = enable_thinking is not defined or enable_thinking -%}
{{ '<think>' if think }}{% endif %}
"""
MESSAGES = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "Ünïcode & <b>tags</b>\n  twice"},
    {"role": "assistant", "content": ""},
    {"role": "assistant", "content": "yes"},
    {"role": "user", "content": "why?"},
]


def bundle_of(directory: Path, template: str | None, place: str = "file") -> Bundle:
    shutil.copytree(TINY, directory / "c")
    path = directory / "c" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    if template is None or place == "file":
        config.pop("chat_template")
    else:
        named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": template}]
        config["chat_template"] = named if place == "list" else template
    path.write_text(json.dumps(config))
    # A tokenizer that puts a token before every text, of which a template has its own.
    tokenizer = Tokenizer.from_file(str(directory / "c" / "tokenizer.json"))
    first = tokenizer.id_to_token(0)
    tokenizer.post_processor = TemplateProcessing(single=f"{first} $A", special_tokens=[(first, 0)])
    tokenizer.save(str(directory / "c" / "tokenizer.json"))
    if template is not None and place == "file":
        (directory / "c" / "chat_template.jinja").write_text(template)
    export_checkpoint(directory / "c", directory / "b", ExportOptions(dtypes=("float32",)))
    return Bundle.open(directory / "b")


@pytest.mark.parametrize("place", ["file", "config", "list"])
def test_conversations_are_transformers(tmp_path: Path, place: str) -> None:
    text = Text(bundle_of(tmp_path, TEMPLATE, place))
    oracle = AutoTokenizer.from_pretrained(tmp_path / "c")
    tools = [{"name": "f", "parameters": {"x": "<é>"}}]
    for variables in ({}, {"enable_thinking": False}, {"tools": tools}):
        for messages in (MESSAGES, MESSAGES[:2], MESSAGES[1:2]):
            expected = oracle.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False, **variables
            )
            assert text.chat(messages, **variables) == expected
    assert text.encode("why?") == oracle("why?").input_ids == [0, *text.encode("why?", False)]
    with pytest.raises(GlmTrtError, match="no such role: nobody"):
        text.chat([{"role": "nobody", "content": "?"}])


def test_templates_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no chat template"):
        Text(bundle_of(tmp_path / "none", None)).chat(MESSAGES)
    with pytest.raises(GlmTrtError, match="chat template"):
        Text(bundle_of(tmp_path / "broken", "{% if %}")).chat(MESSAGES)
    with pytest.raises(GlmTrtError, match="chat template"):  # sandboxed
        Text(bundle_of(tmp_path / "escape", "{{ ''.__class__.__mro__ }}")).chat(MESSAGES)


def test_encoding_is_transformers(tiny_bundle: Path) -> None:
    text, oracle = Text(Bundle.open(tiny_bundle)), AutoTokenizer.from_pretrained(TINY)
    for sample in ("def main():", "<|user|>hi", "naïve → 🙂 𝔘", ""):
        assert text.encode(sample) == oracle(sample).input_ids
        ids = text.encode(sample)
        assert text.decode(ids) == oracle.decode(ids, skip_special_tokens=True)


def test_characters_come_whole(tiny_bundle: Path) -> None:
    text = Text(Bundle.open(tiny_bundle))
    sample = "é → 🙂🙂 end 𝔘"
    ids = text.encode(sample)
    assert len(ids) > len(sample)  # characters of several tokens
    stream = text.stream()
    pieces = [stream.feed(token) for token in ids]
    assert "".join(pieces) + stream.rest() == sample
    assert not any("\ufffd" in piece for piece in pieces)
    stream = text.stream()
    cut = "".join(stream.feed(token) for token in ids[:-1])
    assert cut + stream.rest() == text.decode(ids[:-1])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_stop_strings_in_pieces_of_any_size(size: int) -> None:
    def fed(sample: str, stops: tuple[str, ...]) -> tuple[str, str | None]:
        watch = StopStrings(stops)
        found = "".join(watch.feed(sample[i : i + size]) for i in range(0, len(sample), size))
        return found + watch.rest(), watch.stop

    assert fed("one two three", ("two", "three")) == ("one ", "two")
    assert fed("aaab", ("aab",)) == ("a", "aab")
    assert fed("abcab", ("abcd",)) == ("abcab", None)
    assert fed("xababac", ("abac", "never")) == ("xab", "abac")
    assert fed("late", ("te", "la")) == ("", "la")
    assert fed("plain", ()) == ("plain", None)


def test_text_that_may_begin_a_stop_string_is_held_back() -> None:
    watch = StopStrings(("<|end|>",))
    given: list[Any] = [watch.feed(piece) for piece in ("a<", "|e", "nd", "x<|", "end|>b")]
    assert given == ["a", "", "", "<|endx", ""] and watch.found
    with pytest.raises(GlmTrtError, match="not empty"):
        StopStrings(("",))
