"""Chat templates and special tokens from every file: against transformers' own loader. GLM-5.1's
format: against the package `renderers`.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from glm_text import TINY, files_of, glm_text, oracle_tokenizer, renderers
from transformers import AutoTokenizer
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from glm_trt.engines.python.chat_template import GLM_TOKENS
from glm_trt.engines.python.text import Text
from glm_trt.engines.python.tokenizer_support import is_own_class
from glm_trt.export.bundle.read import Bundle
from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint
from glm_trt.model.errors import BundleError, GlmTrtError

HELLO = [{"role": "user", "content": "hello"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]


def tokenizer_directory(directory: Path, config: dict[str, Any], **files: Any) -> Path:
    """The tiny tokenizer with these fields in its config and these files beside it."""
    shutil.copy(TINY / "tokenizer.json", directory)
    whole = {"tokenizer_class": "TokenizersBackend", "eos_token": "<|endoftext|>"} | config
    for name, content in {"tokenizer_config.json": whole, **files}.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return directory


def text_of(directory: Path) -> Text:
    return Text.of_files(files_of(directory), str(directory))


LIST = [{"name": "default", "template": "list"}, {"name": "tool_use", "template": "list tools"}]
PLACES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "config": ({"chat_template": "config {{ messages[0].content }}"}, {}),
    "list": ({"chat_template": LIST}, {}),
    "dict": ({"chat_template": {"default": "of a dict", "rag": "x"}}, {}),
    "file": ({}, {"chat_template.jinja": "file"}),
    "file before config": ({"chat_template": "config"}, {"chat_template.jinja": "file"}),
    "file before list": ({"chat_template": LIST}, {"chat_template.jinja": "file"}),
    "named": (
        {"chat_template": "config"},
        {"chat_template.jinja": "file", "additional_chat_templates/tool_use.jinja": "with tools"},
    ),
    "named default": (
        {},
        {"chat_template.jinja": "file", "additional_chat_templates/default.jinja": "named"},
    ),
    "config before json": (
        {"chat_template": "config"},
        {"chat_template.json": {"chat_template": "json"}},
    ),
    "special_tokens_map before all": (
        {"chat_template": "config"},
        {"chat_template.jinja": "file", "special_tokens_map.json": {"chat_template": "map"}},
    ),
    "special_tokens_map that does not count": (
        {"added_tokens_decoder": {}},
        {"chat_template.jinja": "file", "special_tokens_map.json": {"chat_template": "map"}},
    ),
    "generation": (
        {},
        {"chat_template.jinja": "{% set x = 1 %}{% for m in messages %}\n{% generation %}\n"
         "{% set x = 2 %} {{ m.content }}\n{%- endgeneration -%}\n{{ x }}"
         "{%- generation -%} a {%- endgeneration %}{% endfor %}"},
    ),
    "functions": (
        {},
        {"chat_template.jinja": "{{ messages | tojson(false, 2) }}{{ strftime_now('%Y') }}"
         "{{ messages | tojson(sort_keys=true, separators=(',', ':')) }}{{ dict(a=1) }}"
         "{{ dict.fromkeys('ab') }}{{ tools is none }}{{ documents is none }}{{ x is defined }}"},
    ),
    "line ends": ({}, {"chat_template.jinja": "a\r\n{% if true %}\r\nb\r\n{% endif %}\r\nc\n"}),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_the_template_is_that_of_transformers(tmp_path: Path, place: str) -> None:
    config, files = PLACES[place]
    text = text_of(tokenizer_directory(tmp_path, config, **files))
    oracle = AutoTokenizer.from_pretrained(tmp_path)
    for tools in (None, [], TOOLS):
        expected = oracle.apply_chat_template(HELLO, tools=tools, tokenize=False)
        assert text.templates.render(HELLO, tools=tools) == expected != ""
    if isinstance(oracle.chat_template, dict):
        for name in oracle.chat_template:
            expected = oracle.apply_chat_template(HELLO, chat_template=name, tokenize=False)
            assert text.templates.render(HELLO, name) == expected
        with pytest.raises(GlmTrtError, match="no chat template 'none'; there are: default, "):
            text.chat(HELLO, "none")


def test_a_template_in_chat_template_json(tmp_path: Path) -> None:
    """Only transformers' processors read it."""
    directory = tokenizer_directory(tmp_path, {}, **{"chat_template.json": {"chat_template": "j"}})
    assert text_of(directory).templates.render(HELLO) == "j"


def test_templates_without_a_default(tmp_path: Path) -> None:
    files = {"additional_chat_templates/rag.jinja": "rag", "chat_template.json": {"x": 1}}
    text = text_of(tokenizer_directory(tmp_path, {"chat_template": "config"}, **files))
    with pytest.raises(ValueError, match="no default"):
        AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(HELLO)
    with pytest.raises(GlmTrtError, match="no chat template is the default one; name one of: rag"):
        text.chat(HELLO)
    assert text.templates.render(HELLO, "rag") == "rag"


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("tokenizer_config.json", "[]", "expected a JSON object, found list"),
        ("tokenizer_config.json", "{", "not readable as JSON"),
        ("tokenizer_config.json", "\ufeff{}", "begins with the byte-order mark of UTF-8"),
        ("tokenizer.json", "version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        ("tokenizer.json", "{}", "not a tokenizer: Model missing"),
        ("tokenizer_config.json", '{"chat_template": [{"name": "x"}]}', "expected a template, or"),
        ("chat_template.json", '{"chat_template": 5}', "expected a template, or"),
        ("added_tokens.json", '{"<x>": "1"}', "<x>: expected a token's ID, found '1'"),
        ("added_tokens.json", '{"<x>": 5000}', "<x>: expected token 5000, but by tokenizer.json"),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"a": {"content": "<x>"}}}',
            "added_tokens_decoder: no tokens by ID",
        ),
    ],
)
def test_files_that_are_broken(tmp_path: Path, name: str, content: str, message: str) -> None:
    tokenizer_directory(tmp_path, {}, **{name: content})
    with pytest.raises(BundleError, match=f"{name}: .*{message}"):
        text_of(tmp_path)


NEXT = 2048  # the ID behind the tiny tokenizer's last
TOKEN = {"content": "<first>", "lstrip": False, "rstrip": False, "normalized": False,
         "single_word": False, "special": True}  # fmt: skip
SPECIAL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "config": ({"bos_token": "<first>", "own_token": "<own>", "add_bos_token": False}, {}),
    "objects": ({"bos_token": TOKEN | {"__type": "AddedToken"}}, {}),
    "named extra tokens": ({"extra_special_tokens": {"own": "<own>"}}, {}),
    "extra tokens": ({"additional_special_tokens": ["<own>", "<|user|>"]}, {}),
    "map": ({}, {"special_tokens_map.json": {"bos_token": TOKEN, "own_token": "<own>"}}),
    "map before config": (
        {"bos_token": "<other>"},
        {"special_tokens_map.json": {"bos_token": "<first>", "extra_special_tokens": ["<more>"]}},
    ),
    "decoder": (
        {"bos_token": "<first>", "added_tokens_decoder": {str(NEXT): TOKEN}},
        {"special_tokens_map.json": {"bos_token": "<|user|>"}, "added_tokens.json": {"<x>": NEXT}},
    ),
    "added": (
        {"bos_token": "<first>"},
        {"added_tokens.json": {"<own>": NEXT + 1, "<first>": NEXT}},
    ),
    "special in one file alone": (
        {"added_tokens_decoder": {"0": TOKEN | {"content": "<|endoftext|>", "special": False}}},
        {},
    ),
}


def described(text: str, **flags: bool) -> dict[str, Any]:
    return TOKEN | {"content": text} | flags


def marked(text: str, **flags: bool) -> dict[str, Any]:
    return described(text, **flags) | {"__type": "AddedToken"}


SPECIAL |= {
    "flags of a name": ({"bos_token": marked("<first>", lstrip=True, rstrip=True)}, {}),
    "flags of a model's own name": ({"own_token": marked("<own>", lstrip=True)}, {}),
    "an own name without a mark": ({"own_token": described("<own>")}, {}),
    "flags of extra tokens": ({"extra_special_tokens": [marked("<own>", lstrip=True)]}, {}),
    "flags in the map": (
        {},
        {"special_tokens_map.json": {"bos_token": described("<first>", lstrip=True),
                                     "own_token": described("<own>", rstrip=True)}},
    ),
    "extra tokens of both files": (
        {"extra_special_tokens": ["<own>"]},
        {"special_tokens_map.json": {"extra_special_tokens": ["<more>", "<own>"]}},
    ),
    "older extra tokens of both files": (
        {"additional_special_tokens": ["<own>"]},
        {"special_tokens_map.json": {"additional_special_tokens": ["<more>"]}},
    ),
    "older extra tokens of the map": (
        {}, {"special_tokens_map.json": {"additional_special_tokens": ["<more>"]}},
    ),
    "names of both files": (
        {"extra_special_tokens": {"own": "<own>"}},
        {"special_tokens_map.json": {"extra_special_tokens": {"own_token": "<more>"}}},
    ),
    "names by their old key": ({"model_specific_special_tokens": {"own": "<own>"}}, {}),
    "not special, but named": (
        {"bos_token": "<first>",
         "added_tokens_decoder": {str(NEXT): described("<first>", special=False)}},
        {},
    ),
    "flags of a known token": (
        {"added_tokens_decoder": {"0": described("<|endoftext|>", lstrip=True, rstrip=True)}}, {},
    ),
    "an empty token": ({"added_tokens_decoder": {str(NEXT): described("")}}, {}),
    "null": ({"bos_token": None}, {"special_tokens_map.json": {"unk_token": None}}),
    "a word": ({"pad_token": "def"}, {}),
    "split": ({"split_special_tokens": True}, {}),
    "a token before each text, by the map": (
        {"bos_token": "<first>", "add_eos_token": True},
        {"special_tokens_map.json": {"add_bos_token": True}},
    ),
    "a token before each text, by the config": (
        {"bos_token": "<first>", "add_bos_token": True}, {},
    ),
    "another class": ({"tokenizer_class": "ChatGLM4Tokenizer"}, {}),
    "Llama's class over bytes": ({"tokenizer_class": "LlamaTokenizerFast"}, {}),
    "clean up": ({"clean_up_tokenization_spaces": True}, {}),
}  # fmt: skip


@pytest.mark.parametrize("place", SPECIAL)
def test_special_tokens_are_those_of_transformers(tmp_path: Path, place: str) -> None:
    config, files = SPECIAL[place]
    template = "{{ bos_token }} {{ eos_token }} {{ own_token }} {{ own }} {{ unk_token }}"
    text = text_of(tokenizer_directory(tmp_path, {"chat_template": template} | config, **files))
    oracle = AutoTokenizer.from_pretrained(tmp_path)
    expected = oracle.apply_chat_template(HELLO, tokenize=False)
    assert text.templates.render(HELLO) == expected
    sample = "a <first> b <own> <|user|><more><other><x> <|endoftext|> , def n't"
    ids = oracle(sample).input_ids
    assert text.encode(sample) == ids
    assert text.decode(ids) == oracle.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"tokenizer_class": "Qwen2Tokenizer"}, "tokenizer_class: Qwen2Tokenizer: transformers"),
        (
            {"fast_tokenizer_files": ["tokenizer.4.0.0.json"]},
            "fast_tokenizer_files: tokenizer.4.0.0.json: another tokenizer",
        ),
        (
            {"clean_up_tokenization_spaces": True,
             "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True},
            "clean_up_tokenization_spaces: takes spaces out of text",
        ),
        ({"added_tokens_decoder": {"5000": described("<x>")}}, "<x>: expected token 5000, but"),
        ({"bos_token": {"content": "<x>", "lstrip": 5}}, "bos_token: no description of a token"),
    ],
)  # fmt: skip
def test_what_is_refused_though_transformers_loads_it(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    tokenizer_directory(tmp_path, fields)
    with pytest.raises(BundleError, match=f"tokenizer_config.json: {message}"):
        text_of(tmp_path)


def test_the_classes_that_transformers_builds_by_its_own_code(tmp_path: Path) -> None:
    (path := tmp_path / "tokenizer.json").write_text("{}")
    plain = {"TokenizersBackend", "PythonBackend", "PreTrainedTokenizerFast"}
    plain |= {"MistralCommonBackend", "PreTrainedTokenizer"}
    for name in {name for name in TOKENIZER_MAPPING_NAMES.values() if name}:
        assert is_own_class(name, path) == (name not in plain), name


def test_a_bundle_has_every_file_of_the_tokenizer(tmp_path: Path) -> None:
    checkpoint, bundle = tmp_path / "c", tmp_path / "b"
    shutil.copytree(TINY, checkpoint)
    files = {
        "chat_template.jinja": "file", "additional_chat_templates/rag.jinja": "rag {{ own_token }}",
        "chat_template.json": {"chat_template": "json"}, "added_tokens.json": {"<own>": NEXT},
        "special_tokens_map.json": {"own_token": "<own>"},
    }  # fmt: skip
    tokenizer_directory(checkpoint, {}, **files)
    options = ExportOptions(dtypes=("float32",))
    assert export_checkpoint(checkpoint, bundle, options)
    text = Text(Bundle.open(bundle))
    assert text.templates.render(HELLO, "rag") == "rag <own>"
    assert text.chat(HELLO, "rag")[-1] == text.token_id("<own>") == NEXT
    assert set(files) < set(Bundle.open(bundle).tokenizer_files)
    assert not export_checkpoint(checkpoint, bundle, options)
    # A template that changed, or has come, makes the bundle another.
    (checkpoint / "additional_chat_templates" / "rag.jinja").write_text("other")
    assert export_checkpoint(checkpoint, bundle, options)
    assert Text(Bundle.open(bundle)).templates.render(HELLO, "rag") == "other"
    (checkpoint / "additional_chat_templates" / "more.jinja").write_text("more")
    assert export_checkpoint(checkpoint, bundle, options)
    (bundle / "tokenizer" / "additional_chat_templates" / "more.jinja").write_text("evil")
    with pytest.raises(BundleError, match=r"more.jinja: altered"):
        Bundle.open(bundle)


# ---- what a template is given


def template_of(directory: Path, template: str) -> Text:
    return text_of(tokenizer_directory(directory, {}, **{"chat_template.jinja": template}))


def test_messages_are_normalized(tmp_path: Path) -> None:
    text = template_of(tmp_path, "{{ messages | tojson }}{{ tools is none }}{{ x }}")
    messages: list[Any] = [
        {"role": "system", "content": [{"type": "text", "text": "a"}, "b"], "name": None},
        {"role": "developer", "content": "c"},
        {"role": "assistant", "content": None, "reasoning": "r", "tool_calls": [
            {"id": "1", "function": {"name": "f", "arguments": '{"x": "é", "y": [1.5]}'}},
            {"name": "g", "arguments": ""}, {"function": {"name": "h"}},
            {"function": {"name": "i", "arguments": {"n": None}}},
        ]},
        {"role": "tool", "tool_call_id": "1"},
    ]  # fmt: skip
    before = json.dumps(messages)
    rendered = text.templates.render(messages, x=5)
    assert rendered.endswith("True5")
    assert json.loads(rendered[: -len("True5")]) == [
        {"role": "system", "content": "ab"},
        {"role": "system", "content": "c"},  # no template that does not say developer knows it
        {"role": "assistant", "content": "", "thinking": "r", "reasoning": "r",
         "reasoning_content": "r", "tool_calls": [
             {"id": "1", "function": {"name": "f", "arguments": {"x": "é", "y": [1.5]}}},
             {"name": "g", "arguments": {}}, {"function": {"name": "h", "arguments": {}}},
             {"function": {"name": "i", "arguments": {"n": None}}},
         ]},
        {"role": "tool", "tool_call_id": "1", "content": ""},
    ]  # fmt: skip
    assert json.dumps(messages) == before
    kept = template_of(tmp_path, "{% if messages[0].role == 'developer' %}d{% endif %}")
    assert kept.templates.render(messages[1:]) == "d"


def call(arguments: Any) -> list[dict[str, Any]]:
    made = {"function": {"name": "get", "arguments": arguments}}
    return [{"role": "assistant", "tool_calls": [{"function": {"name": "f"}}, made]}]


DEEP = '{"a":' * 100_000
CALL = r"messages\[0\].tool_calls\[1\] \(get\): arguments: "


@pytest.mark.parametrize(
    "messages, message",
    [
        ([], "messages: expected at least one"),
        ("hello", "messages: expected a list, found a string"),
        ([*HELLO, "hello"], r"messages\[1\]: expected an object, found a string"),
        ([{"content": "x"}], r"messages\[0\]: role: expected a string, found nothing"),
        ([{"role": "user", "content": 5}], r"messages\[0\]: content: expected a string or"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}],
            r"messages\[0\]: content\[1\]: expected a part of type 'text', found 'image_url'",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], r"content\[0\]: text: expected a str"),
        (
            [{"role": "assistant", "reasoning": 1}],
            "reasoning_content: expected a string, found a",
        ),
        ([{"role": "assistant", "tool_calls": {}}], "tool_calls: expected a list, found an object"),
        ([{"role": "assistant", "tool_calls": [{"function": 1}]}], "expected a function with a na"),
        (call("{broken"), CALL + "expected a JSON object: Expecting property name"),
        (call("[1]"), CALL + "expected a JSON object, found a list"),
        (call('{"x": NaN}'), CALL + "expected a JSON object: NaN is no JSON"),
        (call(DEEP), CALL + "expected a JSON object: "),
        (call(5), CALL + "expected a JSON object, found a number"),
        ([{"role": "user", "content": "x", "at": Path()}], r"messages\[0\].at: expected a JSON"),
        ([{"role": "user", "x": {1: 2}}], "expected names that are strings, found a number"),
    ],
)
def test_messages_that_are_none(tmp_path: Path, messages: Any, message: str) -> None:
    text = template_of(tmp_path, "{{ messages }}")
    with pytest.raises(GlmTrtError, match=message):
        text.chat(messages)


@pytest.mark.parametrize(
    "template, message",
    [
        ("{{ messages[0].content + 5 }}", "chat template: TypeError: can only concatenate"),
        ("{{ 1 // 0 }}", "chat template: ZeroDivisionError"),
        ("{{ raise_exception('not so') }}", "chat template: not so"),
        ("{% set n = namespace(x=1) %}{% set n._x = 1 %}", "a namespace has no field '_x'"),
        ("{{ namespace(_x=1) }}", "a namespace has no field '_x'"),
        ("{{ messages.append(1) }}", "chat template: access to attribute 'append'"),
        ("{{ messages.__class__.__mro__ }}", "chat template: access to attribute '__class__'"),
        ("{{ range(10 ** 9) }}", "chat template: OverflowError"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "nested too deeply"),
        ("x\n{% for %}", "chat template: line 2: Expected an expression"),
    ],
)
def test_templates_that_fail(tmp_path: Path, template: str, message: str) -> None:
    with pytest.raises(GlmTrtError, match=message):
        template_of(tmp_path, template).chat(HELLO)


def test_arguments_as_they_came_for_a_template_that_wants_text(tmp_path: Path) -> None:
    """As DeepSeek's: it joins the text of the arguments to its marks."""
    template = "{% for c in messages[0].tool_calls %}{{ '<' + c.function.arguments }}{% endfor %}"
    directory = tokenizer_directory(tmp_path, {}, **{"chat_template.jinja": template})
    said = [{"role": "assistant", "tool_calls": [
        {"function": {"name": "f", "arguments": '{"x":  1}'}},
        {"function": {"name": "g", "arguments": "{}"}},
    ]}]  # fmt: skip
    oracle = AutoTokenizer.from_pretrained(directory)
    expected = oracle.apply_chat_template(said, tokenize=False)
    assert text_of(directory).templates.render(said) == expected == '<{"x":  1}<{}'
    said[0]["tool_calls"][1]["function"]["arguments"] = {}  # type: ignore[index]
    with pytest.raises(GlmTrtError, match="chat template: TypeError: can only concatenate str"):
        text_of(directory).chat(said)


def test_variables_are_plain(tmp_path: Path) -> None:
    text = template_of(tmp_path, "{{ x }}")
    with pytest.raises(GlmTrtError, match=r"variables\.x: expected a JSON value, found PosixPath"):
        text.chat(HELLO, x=Path())
    nested: list[Any] = []
    nested.append(nested)
    with pytest.raises(GlmTrtError, match="variables: nested too deeply"):
        text.chat(HELLO, x=nested)


# ---- GLM-5.1's own format


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("glm")


@pytest.fixture(scope="module")
def glm(place: Path) -> Text:
    return glm_text(place)


WORDS = (
    "Berlin", "ünïcödé 🙂", "", "  two  spaces ", "line\nbreak\n", "<b>&amp;</b>", '"a" \\ {x}',
    "{{ jinja }} {% raw %}", "<|user|>typed", "def f():\n    return 1\n", "日本語", "None", "\t",
)  # fmt: skip


def value(draw: random.Random, depth: int = 0) -> Any:
    kinds: list[Any] = [
        None, True, False, 0, -7, 2.5, 1e30, draw.choice(WORDS), draw.choice(WORDS),
        {}, [], 10**20,
    ]  # fmt: skip
    if depth < 3:
        some = range(draw.randrange(4))
        kinds += [[value(draw, depth + 1) for _ in some]] * 3
        kinds += [{draw.choice(WORDS) + str(i): value(draw, depth + 1) for i in some}] * 3
    return draw.choice(kinds)


def assistant(draw: random.Random) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant"}
    content = draw.choice([*WORDS, None, "<think>old\n</think>\n\nanswer", "kept</think>shown"])
    if content is not None or draw.random() < 0.5:
        message["content"] = content
    if draw.random() < 0.6:
        message["reasoning_content"] = draw.choice([*WORDS, None])
    calls = []
    for i in range(draw.choice([0, 0, 1, 2, 3])):
        arguments: Any = {f"{draw.choice(WORDS)}{j}": value(draw) for j in range(draw.randrange(4))}
        if draw.random() < 0.5:
            arguments = json.dumps(arguments, ensure_ascii=draw.random() < 0.5)
        function = {"name": draw.choice(["f", "get_weather", "a.b-c"]), "arguments": arguments}
        calls.append({"id": f"call_{i}", "type": "function", "function": function})
    if calls or draw.random() < 0.3:
        message["tool_calls"] = calls or None
    return message


def conversation(draw: random.Random) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if draw.random() < 0.4:
        messages.append({"role": "system", "content": draw.choice(WORDS)})
    for _ in range(draw.randrange(1, 7)):
        said: Any = draw.choice([*WORDS, None])
        if said and draw.random() < 0.3:
            said = [{"type": "text", "text": said}, {"type": "text", "text": draw.choice(WORDS)}]
        role = draw.choice(["user", "user", "assistant", "assistant", "tool", "tool", "system"])
        if role == "assistant":
            messages.append(assistant(draw))
        else:
            messages.append({"role": role, "content": said})
    return messages


def tools(draw: random.Random) -> list[dict[str, Any]] | None:
    made = []
    for i in range(draw.choice([0, 1, 3])):
        function = {"name": f"tool{i}", "description": draw.choice(WORDS), "parameters": {
            "type": "object", "properties": {"x": {"type": "string", "enum": list(WORDS)}},
        }}  # fmt: skip
        if draw.random() < 0.5:
            function |= {"strict": True, "defer_loading": False}
        made.append({"type": "function", "function": function} if draw.random() < 0.7 else function)
    return made or None


def test_the_format_of_glm(glm: Text, place: Path) -> None:
    """Of conversations of any shape, ID by ID."""
    renderers()
    from renderers.configs import GLM51RendererConfig
    from renderers.glm5 import GLM51Renderer

    tokenizer = oracle_tokenizer(place)
    seen = set()
    for seed in range(600):
        draw = random.Random(seed)
        messages, given = conversation(draw), tools(draw)
        variables = {
            name: choice
            for name in ("enable_thinking", "clear_thinking")
            if (choice := draw.choice([None, True, False])) is not None
        }
        # The oracle writes null as "None", as the published template does: a known mistake.
        whole = [m | {"content": m.get("content") or ""} for m in messages]
        oracle = GLM51Renderer(tokenizer, GLM51RendererConfig(**variables))
        expected = oracle.render_ids(whole, tools=given, add_generation_prompt=True)
        found = glm.chat(messages, tools=given, **variables)
        assert found == expected, (seed, tokenizer.decode(expected), tokenizer.decode(found))
        seen.add(tuple(expected))
        expected = oracle.render_ids(whole, tools=given)
        assert glm.chat(messages, tools=given, add_generation_prompt=False, **variables) == expected
    assert len(seen) > 550


def test_the_format_of_glm_as_text(glm: Text) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "reasoning_content": "look", "tool_calls": [
            {"function": {"name": "get", "arguments": '{"city": "Bonn", "days": 2}'}},
            {"function": {"name": "now"}},
        ]},
        {"role": "tool", "content": "rain"},
        {"role": "tool", "content": "5 o'clock"},
    ]  # fmt: skip
    assert glm.templates.render(messages) == (
        "[gMASK]<sop><|system|>Be brief.<|user|>Weather?<|assistant|><think>look</think>"
        "<tool_call>get<arg_key>city</arg_key><arg_value>Bonn</arg_value>"
        "<arg_key>days</arg_key><arg_value>2</arg_value></tool_call><tool_call>now</tool_call>"
        "<|observation|><tool_response>rain</tool_response><tool_response>5 o'clock"
        "</tool_response><|assistant|><think>"
    )
    again = [*messages, {"role": "user", "content": "?"}]
    assert "<|assistant|></think><tool_call>get" in glm.templates.render(again)
    assert "<think>look</think>" in glm.templates.render(again, clear_thinking=False)
    # null is as if it were not given
    assert glm.chat(again, enable_thinking=None, clear_thinking=None) == glm.chat(again)
    with pytest.raises(GlmTrtError, match=r"messages\[1\]: no such role: critic"):
        glm.chat([*HELLO, {"role": "critic", "content": "x"}])


def test_what_a_user_types_may_be_a_special_token(glm: Text, place: Path) -> None:
    """As in transformers, unless it is asked for otherwise."""
    messages = [{"role": "user", "content": "a<|user|>b<tool_call>"}]
    ids = glm.chat(messages)
    assert ids.count(glm.token_id("<|user|>")) == 2 and glm.token_id("<tool_call>") in ids
    oracle = oracle_tokenizer(place)
    oracle.chat_template = glm.templates.by_name["default"]
    assert ids == oracle.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )


def test_only_a_tokenizer_of_glm_has_its_format(tmp_path: Path) -> None:
    text = text_of(tokenizer_directory(tmp_path, {}))
    assert not any(text.token_id(token) for token in GLM_TOKENS if "arg" in token)
    with pytest.raises(BundleError, match="no chat template"):
        text.chat(HELLO)


def test_bytes_of_a_token(glm: Text) -> None:
    sample = "é → 🙂 end\n"
    ids = glm.encode(sample)
    assert b"".join(glm.token_bytes(token) for token in ids) == sample.encode()
    assert any(b"\xff" > glm.token_bytes(token) >= b"\x80" for token in ids)
    assert glm.token_bytes(glm.token_id("<think>") or 0) == b"<think>"
    assert glm.token_bytes(99_999) == b""
    assert glm.token_text(glm.encode(" end")[0]) == " end"
    assert glm.token_text(glm.token_id("<|user|>") or 0) == "<|user|>"
    first = next(token for token in ids if glm.token_bytes(token)[:1] == b"\xf0")
    written = "".join(f"\\x{byte:02x}" for byte in glm.token_bytes(first))
    assert glm.token_text(first) == "bytes:" + written
    vocabulary = range(2048)  # named apart, as answers have them by their names
    assert len({glm.token_text(token) for token in vocabulary}) == len(vocabulary)


def test_bytes_of_tokens_of_another_kind(tmp_path: Path) -> None:
    vocabulary = [("<unk>", 0.0), ("▁a", -1.0), ("b", -1.0), ("<0xE2>", -9.0)]
    stored = {
        "version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None,
        "post_processor": None, "truncation": None, "padding": None,
        "model": {"type": "Unigram", "unk_id": 0, "vocab": vocabulary, "byte_fallback": True},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
        ]},
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(stored))
    text = text_of(tmp_path)
    assert [text.token_bytes(i) for i in (1, 2, 3)] == [b" a", b"b", b"\xe2"]
