"""Chat templates: finding them in a checkpoint's files, and rendering them in a sandbox."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from importlib.resources import files as resources
from pathlib import Path, PurePosixPath
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from glm_trt.engines.python.messages import Message, normalized_messages, plain
from glm_trt.engines.python.special_tokens import (
    SPECIAL_TOKENS_MAP,
    TOKENIZER_CONFIG,
    SpecialTokens,
)
from glm_trt.engines.python.tokenizer_files import read_object, read_text
from glm_trt.model.checkpoint.read import NAMED_TEMPLATES
from glm_trt.model.errors import BundleError, GlmTrtError

TEMPLATE_FILE, LEGACY_FILE = "chat_template.jinja", "chat_template.json"
DEFAULT, TOOL_USE = "default", "tool_use"
# What the format of GLM-5.1 is written in: a tokenizer that has these was made for it.
GLM_TOKENS = (
    "[gMASK]", "<sop>", "<|endoftext|>",
    "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
    "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>",
)  # fmt: skip


class ChatTemplates:
    """The chat templates of a tokenizer.

    As in transformers, chat_template.jinja ("default") and additional_chat_templates/NAME.jinja go
    before tokenizer_config.json, where there may be one or several by name; a
    special_tokens_map.json that counts goes before them all. chat_template.json counts where there
    is none of them.

    Parameters
    ----------
    files : the tokenizer's files by their names.
    special : the special tokens that a template may name, such as "eos_token".
    place : whose they are, for errors.
    has_glm_tokens : whether the tokenizer has `GLM_TOKENS`; then GLM-5.1's format stands in where
        no file has a template.

    Raises
    ------
    BundleError
        If a file is not what it should be.
    """

    def __init__(
        self, files: Mapping[str, Path], special: SpecialTokens, place: str, has_glm_tokens: bool
    ) -> None:
        self._names, self._place = special.names, place
        self._compiled: dict[str, jinja2.Template] = {}
        self.by_name = _of_files(files, special)
        if not self.by_name and has_glm_tokens:
            self.by_name = {DEFAULT: _glm_template()}

    def render(
        self,
        messages: Sequence[Message],
        template_name: str | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The text of a conversation; see `Text.chat`."""
        name = self.chosen(template_name, variables.get("tools"))
        # Templates are written for transformers, which defines these two in any case.
        given = {"tools": None, "documents": None} | plain(variables, "chat template's variables")
        given |= {"add_generation_prompt": add_generation_prompt}
        given = self._names | given
        objects = normalized_messages(messages)
        try:
            return self._rendered(name, objects, given)
        except Exception as error:  # a template is a program: it can raise anything
            texts = normalized_messages(messages, arguments_as_text=True)
            if texts != objects:  # some templates, DeepSeek's, are for arguments as they came
                with suppress(Exception):
                    return self._rendered(name, texts, given)
            raise GlmTrtError(f"{self._place}: chat template: {_said(error)}") from error

    def _rendered(
        self, name: str, messages: list[dict[str, Any]], variables: dict[str, Any]
    ) -> str:
        if "developer" not in self.by_name[name]:  # such a template would leave the message out
            for message in messages:
                if message["role"] == "developer":
                    message["role"] = "system"
        return self._template(name).render(messages=messages, **variables)

    def chosen(self, name: str | None, tools: Any = None) -> str:
        """The name of the template that a conversation gets; errors as in `Text.chat`."""
        have = ", ".join(sorted(self.by_name))
        if not self.by_name:
            raise BundleError(
                f"{self._place}: no chat template (neither {TEMPLATE_FILE}, {NAMED_TEMPLATES} nor "
                f"{LEGACY_FILE}, nor chat_template in {TOKENIZER_CONFIG})"
            )
        if name is None:
            name = TOOL_USE if tools is not None and TOOL_USE in self.by_name else DEFAULT
            if name not in self.by_name:
                raise GlmTrtError(
                    f"{self._place}: no chat template is the default one; name one of: {have}"
                )
        elif name not in self.by_name:
            raise GlmTrtError(f"{self._place}: no chat template {name!r}; there are: {have}")
        return name

    def _template(self, name: str) -> jinja2.Template:
        if name not in self._compiled:
            self._compiled[name] = self._environment.from_string(self.by_name[name])
        return self._compiled[name]

    @cached_property
    def _environment(self) -> jinja2.Environment:
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {
            "raise_exception": _refuse, "strftime_now": _now, "namespace": _Namespace,
            "dict": _Dict(),
        }  # fmt: skip
        return environment


def _of_files(files: Mapping[str, Path], special: SpecialTokens) -> dict[str, str]:
    """The templates by name, from the first place that has any."""
    mapped = files.get(SPECIAL_TOKENS_MAP)
    if mapped is not None and not special.whole and "chat_template" in read_object(mapped):
        return _named(special.fields["chat_template"], mapped)
    found = {}
    if (path := files.get(TEMPLATE_FILE)) is not None:
        found[DEFAULT] = read_text(path)
    for name, path in sorted(files.items()):
        if PurePosixPath(name).parent == PurePosixPath(NAMED_TEMPLATES):
            found[PurePosixPath(name).stem] = read_text(path)
    for place in (TOKENIZER_CONFIG, LEGACY_FILE):
        path = files.get(place)
        if not found and path is not None:
            found = _named(read_object(path).get("chat_template"), path)
    return found


def _named(entry: Any, path: Path) -> dict[str, str]:
    """`chat_template` of a JSON file: one template, or several by name."""
    if entry is None:
        return {}
    named = entry
    if isinstance(entry, str):
        named = {DEFAULT: entry}
    elif isinstance(entry, list) and all(isinstance(one, dict) for one in entry):
        named = {one.get("name"): one.get("template") for one in entry}
    whole = isinstance(named, dict) and all(
        isinstance(part, str) for pair in named.items() for part in pair
    )
    if not whole:
        raise BundleError(
            f"{path}: chat_template: expected a template, or a list of objects with name and "
            "template"
        )
    return named


def _glm_template() -> str:
    path = resources("glm_trt.engines.python").joinpath("glm-5.1.jinja")
    return path.read_text(encoding="utf-8")


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`: marks what the assistant says, for training; its text is as without it.
    The block is called, as in transformers: a variable that is set in it stays in it.
    """

    tags = {"generation"}  # noqa: RUF012  (jinja2's own way to declare it)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """The block, of which the text is kept."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_text")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    @staticmethod
    def _text(caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """`dict` without its methods, which change what they are given."""

    def __call__(self, *pairs: Any, **fields: Any) -> dict[str, Any]:
        return dict(*pairs, **fields)

    @staticmethod
    def fromkeys(*given: Any) -> dict[Any, Any]:
        """As that of `dict`."""
        return dict.fromkeys(*given)


class _Namespace(jinja2.utils.Namespace):
    """As in transformers, no template can reach through it for what Python keeps to itself."""

    def __init__(*args: Any, **fields: Any) -> None:  # `self` is a name that a template may use
        self, *given = args
        made = dict(*given, **fields)
        for name in made:
            _check_public(name)
        jinja2.utils.Namespace.__init__(self, made)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_public(name)
        super().__setitem__(name, value)


def _check_public(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace has no field {name!r}")


def _said(error: Exception) -> str:
    """What an error says, as Unicode text: it may repeat a message that is none."""
    return _reason(error).encode(errors="backslashreplace").decode()


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"line {error.lineno}: {error.message}"
    known = isinstance(error, jinja2.TemplateError)
    return str(error) if known else f"{type(error).__name__}: {error}"


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes for HTML, which a model was not trained on.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(style: str) -> str:
    return datetime.now().strftime(style)
