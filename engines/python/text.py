"""Text to token IDs and back, by the checkpoint's own tokenizer and chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from glm_trt.engines.bundle import Bundle
from glm_trt.model.errors import BundleError, GlmTrtError

TEMPLATE_FILE, TOKENIZER_CONFIG = "chat_template.jinja", "tokenizer_config.json"
Message = Mapping[str, Any]


class Text:
    """The tokenizer of a bundle.

    Raises
    ------
    BundleError
        If the bundle has none (its checkpoint had no tokenizer.json), or it cannot be read.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        path = bundle.tokenizer_file("tokenizer.json")
        if path is None:
            raise BundleError(
                f"{bundle.directory}: has no tokenizer.json (its checkpoint had none); "
                "only token IDs can be given"
            )
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise BundleError(f"{path}: not a tokenizer: {error}") from None

    def encode(self, text: str, with_prefix: bool = True) -> list[int]:
        """The token IDs of `text`, which may hold special tokens by their names; with those that
        the tokenizer itself puts around a text, unless told otherwise.
        """
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=with_prefix).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without special tokens."""
        text: str = self._tokenizer.decode(list(ids))
        return text

    def stream(self) -> TextStream:
        """Text piece by piece, as tokens come."""
        return TextStream(self._tokenizer)

    def chat(self, messages: Sequence[Message], **variables: Any) -> list[int]:
        """The token IDs of a conversation, up to where the assistant's next message begins.

        Parameters
        ----------
        messages : each with "role" and "content", as the checkpoint's template wants them.
        variables : of the template, such as `tools` or `enable_thinking`.

        Raises
        ------
        GlmTrtError
            If there is no template, or it refuses the messages.
        """
        template, names = self._template("tool_use" if variables.get("tools") else "default")
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        try:
            text = environment.from_string(template).render(
                messages=messages, add_generation_prompt=True, **names, **variables
            )
        except jinja2.TemplateError as error:
            raise GlmTrtError(f"{self._bundle.directory}: chat template: {error}") from error
        return self.encode(text, with_prefix=False)

    def _template(self, preferred: str) -> tuple[str, dict[str, str]]:
        """The template, and the special tokens that it may name. Of several the one called
        `preferred`, else "default".
        """
        config: dict[str, Any] = {}
        path = self._bundle.tokenizer_file(TOKENIZER_CONFIG)
        if path is not None:
            config = _json(path)
        names = {
            name: value["content"] if isinstance(value, dict) else value
            for name, value in config.items()
            if name.endswith("_token") and isinstance(value, str | dict)
        }
        path = self._bundle.tokenizer_file(TEMPLATE_FILE)
        template = path.read_text() if path is not None else config.get("chat_template")
        if isinstance(template, list):  # several, by name
            by_name = {entry["name"]: entry["template"] for entry in template}
            template = by_name.get(preferred, by_name.get("default"))
        if not isinstance(template, str):
            raise BundleError(
                f"{self._bundle.directory}: no chat template (neither {TEMPLATE_FILE} nor "
                f"chat_template in {TOKENIZER_CONFIG})"
            )
        return template, names


class TextStream:
    """Decodes tokens as they come; a character whose bytes are spread over tokens comes whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._stream = tokenizer, DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._given = ""

    def feed(self, token: int) -> str:
        """The text that `token` completes, often all of its own."""
        self._ids.append(token)
        piece: str = self._stream.step(self._tokenizer, token) or ""
        self._given += piece
        return piece

    def rest(self) -> str:
        """The text of tokens that stayed incomplete, when no more come."""
        text: str = self._tokenizer.decode(self._ids)
        return text[len(self._given) :] if text.startswith(self._given) else ""


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise BundleError(f"{path}: not readable as JSON: {error}") from error
    return content


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    # jinja2's own filter escapes for HTML, which a model was not trained on.
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(style: str) -> str:
    return datetime.now().strftime(style)
