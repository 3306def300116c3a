"""Tokenizer files and chat templates mutated at random, read by transformers and by this package.

What transformers loads must load here with the same IDs and text, or be refused for a reason that
`docs/checkpoints.md` has a row of. By hand, with templates that other models have, too:

    python tests/support/text_mutations.py 2000 [FOLDER_OF_TEMPLATES]
"""

from __future__ import annotations

import json
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import psutil
from glm_text import TINY, files_of
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, logging
from transformers.models.llama4 import processing_llama4
from transformers.models.smolvlm import processing_smolvlm

from glm_trt.engines.python.chat_template import GLM_TOKENS
from glm_trt.engines.python.text import Text
from glm_trt.model.errors import GlmTrtError

SECONDS, BYTES = 2.0, 500_000_000  # of this process's CPU, whatever else the machine does
# Why this package refuses what transformers loads: the rows of the table, by what the error says.
ROWS = {
    "token stated with another ID": r"expected token \d+, but by tokenizer.json it is",
    "class built by its own code": r"tokenizer_class: \w+: transformers builds this class",
    "files for newer versions": "fast_tokenizer_files: ",
    "spaces cleaned up": "clean_up_tokenization_spaces: takes spaces out",
    "named template that is no text": "chat_template: expected a template, or",
    "ID in added_tokens.json that is none": "expected a token's ID, found",
    "no role": r"messages\[\d+\]: role: expected a string",
}
TOOLS = [{"type": "function", "function": {
    "name": "get", "description": "Of <é>", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}},
]  # fmt: skip
ASK = {"role": "user", "content": "Weather <b>é</b>?"}
CONVERSATIONS: tuple[list[dict[str, Any]], ...] = (
    [ASK],
    [{"role": "system", "content": " Be brief. "}, ASK,
     {"role": "assistant", "content": "Yes.", "reasoning_content": "hm"}, ASK],
    [ASK, {"role": "assistant", "content": "", "tool_calls": [
        {"id": "call00001", "type": "function",
         "function": {"name": "get", "arguments": {"city": "Bonn", "n": [1.5, None, "ü"]}}}]},
     {"role": "tool", "tool_call_id": "call00001", "name": "get", "content": "rain"}],
)  # fmt: skip
SAMPLES = ("def f():\n  x = 'é🙂' ", "a <first> b<own>c <|user|><more> <x>, n't<|endoftext|>", "")
# What people write into these files.
POOL: tuple[Any, ...] = (
    None, True, False, 0, -1, 2048, 2049, 5000, 1.5, "", "<x>", "<own>", "<|user|>", "def", [], {},
    ["<own>"], ["<more>", "<x>"], {"own": "<own>"}, "{{ messages[0].content }}",
    {"content": "<more>", "lstrip": True, "rstrip": False, "single_word": False,
     "normalized": False, "special": True, "__type": "AddedToken"},
    {"content": "<x>", "lstrip": False, "rstrip": True, "single_word": True,
     "normalized": True, "special": False},
    {"2048": {"content": "<first>", "special": True}}, "Qwen2Tokenizer", "PreTrainedTokenizerFast",
)  # fmt: skip
NAMES = (
    "bos_token", "eos_token", "unk_token", "pad_token", "cls_token", "image_token", "own_token",
    "extra_special_tokens", "additional_special_tokens", "added_tokens_decoder", "chat_template",
    "split_special_tokens", "clean_up_tokenization_spaces", "tokenizer_class", "padding_side",
    "model_max_length", "add_prefix_space", "legacy", "add_bos_token", "add_eos_token",
    "model_specific_special_tokens",
)  # fmt: skip
SNIPPETS = (
    "{% generation %}", "{% endgeneration %}", "{% if tools %}", "{% endif %}", "{{ bos_token }}",
    "{{ messages | tojson }}", " | tojson(indent=2)", " | trim", " | upper", " | length", "[0]",
    "[-1]", ".items()", ".role", ".content", " is none", " is string", " is defined", "loop.last",
    "namespace(x=1)", "{% break %}", "{% continue %}", "-%}", "{%-", "range(3)", " ~ ", "'", "}}",
    "{{ eos_token }}", "{{ strftime_now('%Y') }}", "raise_exception('no')", " or {}", "dict(a=1)",
)  # fmt: skip
TOKENS = re.compile(r"\{%-?|-?%\}|\{\{-?|-?\}\}|'[^'\n]*'|\"[^\"\n]*\"|\w+|\s+|.", re.DOTALL)


@dataclass
class TextCase:
    """A tokenizer's files by their names: text, or what is written as JSON."""

    files: dict[str, Any]
    templates: Sequence[str] = ()

    def write(self, directory: Path) -> None:
        """Put them there."""
        for name, content in self.files.items():
            path = directory / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(content if isinstance(content, str) else json.dumps(content))


@dataclass
class Outcome:
    """How many cases there were of each kind, and what should not be."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    rows: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0


def seeds(templates: Sequence[str]) -> list[Callable[[random.Random], TextCase]]:
    """Files as models are published with: GLM's, older ones of GLM, DeepSeek's and Qwen's."""
    tiny = json.loads((TINY / "tokenizer.json").read_text())
    glm = Tokenizer.from_str(json.dumps(tiny))
    glm.add_tokens([AddedToken(name, special=True, normalized=False) for name in GLM_TOKENS])
    with_glm = json.loads(glm.to_str())
    decoder = {str(one["id"]): {k: v for k, v in one.items() if k != "id"}
               for one in with_glm["added_tokens"]}  # fmt: skip
    common = {"clean_up_tokenization_spaces": False, "model_max_length": 202752}
    one = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}

    def made(config: dict[str, Any], tokenizer: Any = tiny, **more: Any) -> Callable[..., TextCase]:
        def draw(random_: random.Random) -> TextCase:
            files = {"tokenizer.json": tokenizer, "tokenizer_config.json": common | config} | more
            template = random_.choice(templates)
            if random_.random() < 0.5:
                files["chat_template.jinja"] = template
            elif random_.random() < 0.5:
                files["tokenizer_config.json"] = common | config | {"chat_template": template}
            else:
                files["chat_template.jinja"] = template
                files["additional_chat_templates/tool_use.jinja"] = random_.choice(templates)
            return TextCase(deepcopy(files), templates)

        return draw

    return [
        made({
            "backend": "tokenizers", "do_lower_case": False, "eos_token": "<|endoftext|>",
            "extra_special_tokens": list(GLM_TOKENS[:7]), "pad_token": "<|endoftext|>",
            "padding_side": "left", "remove_space": False, "tokenizer_class": "TokenizersBackend",
        }, with_glm),
        made({
            "added_tokens_decoder": decoder, "additional_special_tokens": list(GLM_TOKENS[:7]),
            "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "extra_special_tokens": {},
            "tokenizer_class": "PreTrainedTokenizerFast",
        }, with_glm),
        made({
            "add_bos_token": True, "add_eos_token": False, "unk_token": None, "legacy": True,
            "bos_token": {"__type": "AddedToken", "content": "<first>"} | one,
            "eos_token": {"__type": "AddedToken", "content": "<|endoftext|>"} | one,
            "sp_model_kwargs": {}, "tokenizer_class": "LlamaTokenizerFast",
        }),
        made(
            {"add_prefix_space": False, "bos_token": None, "errors": "replace",
             "eos_token": "<|endoftext|>", "tokenizer_class": "ChatGLM4Tokenizer"},
            **{"special_tokens_map.json": {
                "additional_special_tokens": ["<own>", "<more>"],
                "eos_token": {"content": "<|endoftext|>"} | one, "bos_token": "<first>"},
               "added_tokens.json": {"<first>": 2048, "<own>": 2049, "<more>": 2050}},
        ),
    ]  # fmt: skip


def own_templates() -> list[str]:
    """Templates that are here or installed: GLM-5.1's format, and those of two others."""
    chatml = (
        "{%- for m in messages %}\n{{- '<|im_start|>' + m.role + '\\n' + m.content | trim }}\n"
        "{%- if m.tool_calls %}{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}"
        "{% endif %}{{ '<|im_end|>' }}\n{% endfor %}\n{% if add_generation_prompt %}"
        "{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    glm = files("glm_trt.engines.python").joinpath("glm-5.1.jinja").read_text(encoding="utf-8")
    found = [glm, chatml]
    for module in (processing_smolvlm, processing_llama4):
        found += [text for text in vars(module).values()
                  if isinstance(text, str) and "{%" in text and "messages" in text]  # fmt: skip
    return found


def mutated(case: TextCase, draw: random.Random) -> TextCase:
    """`case` with one to four changes of any kind."""
    for _ in range(draw.choice([1, 1, 1, 2, 2, 3, 4])):
        name = draw.choice(sorted(case.files))
        content = case.files[name]
        if name.endswith(".jinja"):
            case.files[name] = _template(content, case.templates, draw)
        elif name == "tokenizer.json":
            if draw.random() < 0.3 and isinstance(content, dict):
                parts = [
                    k
                    for k in (
                        "added_tokens",
                        "normalizer",
                        "pre_tokenizer",
                        "decoder",
                        "post_processor",
                        "truncation",
                        "padding",
                    )
                    if k in content
                ]
                part = draw.choice(parts)
                case.files[name] = content | {part: _value(content[part], draw)}
        elif isinstance(content, dict):
            case.files[name] = _fields(content, case, draw)
        elif draw.random() < 0.5:
            case.files[name] = content[: draw.randrange(len(content) + 1)]
        if draw.random() < 0.04 and not name.startswith("tokenizer.json"):
            text = case.files[name]
            text = text if isinstance(text, str) else json.dumps(text)
            case.files[name] = _characters(text, draw)
    return case


def _fields(content: dict[str, Any], case: TextCase, draw: random.Random) -> dict[str, Any]:
    kind, content = draw.random(), dict(content)
    if "chat_template" in content and isinstance(content["chat_template"], str) and kind < 0.3:
        text = _template(content["chat_template"], case.templates, draw)
        named = [{"name": "default", "template": text}, {"name": "tool_use", "template": "{{ 1 }}"}]
        return content | {"chat_template": draw.choice([text, text, named, {"default": text}])}
    if kind < 0.65:
        return content | {draw.choice(NAMES): draw.choice(POOL)}
    if not content:
        return content
    name = draw.choice(sorted(content))
    value = content.pop(name)
    if kind < 0.75:
        return content
    if kind < 0.85:  # in the other file
        other = draw.choice(["special_tokens_map.json", "tokenizer_config.json"])
        if isinstance(case.files.get(other, {}), dict):
            case.files[other] = case.files.get(other, {}) | {name: value}
        return content
    return content | {name: _value(value, draw)}


def _value(value: Any, draw: random.Random, depth: int = 0) -> Any:
    """`value` with one thing in it changed."""
    if isinstance(value, dict) and value and draw.random() < 0.8 and depth < 4:
        name = draw.choice(sorted(value))
        return value | {name: _value(value[name], draw, depth + 1)}
    if isinstance(value, list) and value and draw.random() < 0.8 and depth < 4:
        at = draw.randrange(len(value))
        if draw.random() < 0.3:
            return value[:at] + value[at + 1 :]
        return [*value[:at], _value(value[at], draw, depth + 1), *value[at + 1 :]]
    if isinstance(value, bool):
        return not value
    return draw.choice(POOL)


def _template(text: str, others: Sequence[str], draw: random.Random) -> str:
    tokens = TOKENS.findall(text)
    if not tokens:
        return draw.choice(SNIPPETS)
    at, kind = draw.randrange(len(tokens)), draw.randrange(5)
    if kind == 0:
        del tokens[at]
    elif kind == 1:
        tokens.insert(at, draw.choice(SNIPPETS))
    elif kind == 2:
        tokens[at] = draw.choice(TOKENS.findall(draw.choice(others)))
    elif kind == 3:
        other = draw.randrange(len(tokens))
        tokens[at], tokens[other] = tokens[other], tokens[at]
    else:
        tokens[at] = tokens[draw.randrange(len(tokens))]
    return "".join(tokens)


def _characters(text: str, draw: random.Random) -> str:
    at = draw.randrange(len(text) + 1)
    return draw.choice([text[:at], text[:at] + draw.choice('"{}[],:\x00é\\') + text[at:],
                        text[:at] + text[at + 1 :], "\ufeff" + text])  # fmt: skip


def _tried(does: Callable[[], Any]) -> Any:
    """What it gives, or the error."""
    try:
        return does()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of Rust is no Exception
        return error


def _failed(result: Any) -> bool:
    return isinstance(result, BaseException)


def compare(case: TextCase, place: str, outcome: Outcome) -> None:
    """Read `case` by both, and add what comes of it to `outcome`."""
    directory = Path(tempfile.mkdtemp())
    try:
        case.write(directory)
        oracle = _tried(lambda: AutoTokenizer.from_pretrained(directory))
        before, began = psutil.Process().memory_info().rss, time.process_time()
        text = _tried(lambda: Text.of_files(files_of(directory), str(directory)))
        asked = _asked(text)
        seconds = time.process_time() - began
        grown = psutil.Process().memory_info().rss - before
        expected = _expected(oracle)
    finally:
        shutil.rmtree(directory)
    outcome.slowest = max(outcome.slowest, seconds)
    if seconds > SECONDS or grown > BYTES:
        outcome.faults.append(f"{place}: {seconds:.1f} s, {grown} bytes")
    for result in (text, *asked):
        if _failed(result) and not isinstance(result, GlmTrtError):
            outcome.faults.append(f"{place}: {type(result).__name__}: {result}")
    outcome.counts["cases"] += 1
    if _failed(oracle):
        outcome.counts["neither loads" if _failed(text) else "loads here alone"] += 1
        return
    if _failed(text):
        _refused(place, text, oracle, outcome)
        outcome.counts["refused here"] += 1
        return
    outcome.counts["load in both"] += 1
    for i, (wanted, found) in enumerate(zip(expected, asked, strict=True)):
        if _failed(wanted):
            outcome.counts["asked: transformers fails"] += 1
        elif _failed(found):
            _refused(f"{place}: {i}", found, wanted, outcome)
        elif found != wanted:
            outcome.faults.append(f"{place}: {i}: expected {wanted!r}, found {found!r}")
        else:
            outcome.counts["asked: equal"] += 1


def _refused(place: str, error: BaseException, wanted: Any, outcome: Outcome) -> None:
    for row, said in ROWS.items():
        if re.search(said, str(error)):
            outcome.rows[row] += 1
            return
    outcome.faults.append(f"{place}: expected {wanted!r:.300}, found {error!r}")


def _asked(text: Any) -> list[Any]:
    if _failed(text):
        return []
    found: list[Any] = []
    for sample in SAMPLES:
        ids = _tried(lambda sample=sample: text.encode(sample))
        found += [ids, ids if _failed(ids) else _tried(lambda ids=ids: text.decode(ids))]
    for messages in CONVERSATIONS:
        for tools in (None, TOOLS):

            def chat(messages: Any = messages, tools: Any = tools) -> tuple[str, list[int]]:
                return text.templates.render(messages, tools=tools), text.chat(
                    messages, tools=tools)  # fmt: skip

            found.append(_tried(chat))
    return found


def _expected(oracle: Any) -> list[Any]:
    if _failed(oracle):
        return []
    found: list[Any] = []
    for sample in SAMPLES:
        ids = _tried(lambda sample=sample: oracle(sample).input_ids)
        found += [ids, ids if _failed(ids) else _tried(
            lambda ids=ids: oracle.decode(ids, skip_special_tokens=True))]  # fmt: skip
    for messages in CONVERSATIONS:
        for tools in (None, TOOLS):

            def chat(messages: Any = messages, tools: Any = tools) -> tuple[str, list[int]]:
                options = {"tools": tools, "add_generation_prompt": True}
                return (
                    oracle.apply_chat_template(messages, tokenize=False, **options),
                    oracle.apply_chat_template(messages, return_dict=False, **options),
                )

            found.append(_tried(chat))
    return found


def run(numbers: Sequence[int], templates: Sequence[str]) -> Outcome:
    """The cases of these numbers."""
    logging.set_verbosity_error()
    made, outcome = seeds(templates), Outcome()
    for number in numbers:
        draw = random.Random(number)
        case = mutated(draw.choice(made)(draw), draw)
        compare(case, str(number), outcome)
    return outcome


if __name__ == "__main__":
    texts = own_templates()
    if len(sys.argv) > 2:
        texts += [path.read_text() for path in sorted(Path(sys.argv[2]).glob("*.jinja"))]
    seen = run(range(int(sys.argv[1])), texts)
    print(f"{len(texts)} templates", end=" ")
    print(dict(seen.counts), dict(seen.rows), f"slowest {seen.slowest:.2f} s")
    print(*seen.faults, sep="\n")
    sys.exit(bool(seen.faults))
