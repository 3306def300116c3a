"""Text to token IDs and back, by the checkpoint's own tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from glm_trt.engines.python.chat_template import GLM_TOKENS, ChatTemplates
from glm_trt.engines.python.messages import Message
from glm_trt.engines.python.special_tokens import SpecialTokens
from glm_trt.engines.python.token_bytes import TokenBytes
from glm_trt.engines.python.tokenizer_support import apply_fields
from glm_trt.export.bundle.read import Bundle
from glm_trt.model.errors import BundleError, GlmTrtError
from glm_trt.model.files import what_it_is

TOKENIZER = "tokenizer.json"


class Text:
    """The tokenizer of a bundle.

    Raises
    ------
    BundleError
        If the bundle has none (its checkpoint had no tokenizer.json), or it cannot be read.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._open(bundle.tokenizer_files, str(bundle.directory))

    @classmethod
    def of_files(cls, files: Mapping[str, Path], place: str) -> Text:
        """The tokenizer in `files`, by the names that they have in a checkpoint; `place` is whose
        it is, for errors.
        """
        text = cls.__new__(cls)
        text._open(files, place)
        return text

    def _open(self, files: Mapping[str, Path], place: str) -> None:
        path = files.get(TOKENIZER)
        if path is None:
            raise BundleError(
                f"{place}: has no tokenizer.json (its checkpoint had none); "
                "only token IDs can be given"
            )
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # nothing narrower, and a panic of Rust is no Exception
            found = what_it_is(path.read_bytes()) or f"not a tokenizer: {_line(error)}"
            raise BundleError(f"{path}: {found}") from None
        # Some tokenizers are stored with what their training cut and filled up.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        special = SpecialTokens.read(files)
        special.complete(self._tokenizer)
        apply_fields(self._tokenizer, special, files)
        has_glm_tokens = all(self.token_id(token) is not None for token in GLM_TOKENS)
        self.templates = ChatTemplates(files, special, place, has_glm_tokens)

    def encode(self, text: str, with_prefix: bool = True) -> list[int]:
        """The token IDs of `text`, which may hold special tokens by their names; with those that
        the tokenizer itself puts around a text, unless told otherwise.

        Raises
        ------
        GlmTrtError
            If `text` holds what is no character: half of a surrogate pair, as Python has it for a
            byte that was not UTF-8 too.
        """
        check_unicode(text, "text")
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=with_prefix).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without special tokens."""
        text: str = self._tokenizer.decode(list(ids))
        return text

    def stream(self) -> TextStream:
        """Text piece by piece, as tokens come."""
        return TextStream(self._tokenizer)

    def token_id(self, token: str) -> int | None:
        """The ID of a token by its name, such as "<think>"; None where there is no such token."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found

    def token_bytes(self, token_id: int) -> bytes:
        """What one token stands for by itself: often no whole character. Of a special token its
        name; b"" of an ID that is no token.
        """
        return self._bytes.of(token_id)

    def token_text(self, token_id: int) -> str:
        r"""One token by itself, as log-probabilities name it: its bytes as text. Those that are no
        UTF-8 by themselves as "bytes:\xe2\x80", so that no two of them look the same.
        """
        raw = self.token_bytes(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def tokenizer_json(self) -> str:
        """The tokenizer as tokenizer.json has it, with the special tokens of every file."""
        text: str = self._tokenizer.to_str()
        return text

    @cached_property
    def _bytes(self) -> TokenBytes:
        return TokenBytes(self._tokenizer)

    def chat(
        self,
        messages: Sequence[Message],
        template_name: str | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> list[int]:
        """The token IDs of a conversation, up to where the assistant's next message begins.

        A name of a special token in a message, as "<|user|>", becomes that token, as in other
        servers: what its author says is read as the conversation's own marks.

        Parameters
        ----------
        messages : each with "role" and "content"; see `messages.normalized_messages`.
        template_name : one of several templates. Otherwise it is "tool_use", with `tools` and where
            there is one, or "default".
        add_generation_prompt : end with what begins the assistant's message.
        variables : of the template: `tools`, and of GLM-5.1's `enable_thinking`, `clear_thinking`.

        Raises
        ------
        GlmTrtError
            If there is no template, it refuses the messages, or they are none.
        """
        text = self.templates.render(messages, template_name, add_generation_prompt, **variables)
        return self.encode(text, with_prefix=False)


def check_unicode(text: str, place: str) -> None:
    """Raise `GlmTrtError` if `text` cannot be written as UTF-8; `place` says what it is."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        found = ord(text[error.start])
        byte = f", the byte 0x{found - 0xDC00:02X}" if 0xDC80 <= found <= 0xDCFF else ""
        raise GlmTrtError(
            f"{place}: expected Unicode text, found U+{found:04X} at character {error.start}: half "
            f"of a surrogate pair{byte}"
        ) from None


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class TextStream:
    """Decodes tokens as they come; a character whose bytes are spread over tokens comes whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._stream = tokenizer, DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._given: list[str] = []

    def feed(self, token: int) -> str:
        """The text that `token` completes, often all of its own."""
        self._ids.append(token)
        piece: str = self._stream.step(self._tokenizer, token) or ""
        self._given.append(piece)
        return piece

    def rest(self) -> str:
        """The text of tokens that stayed incomplete, when no more come."""
        text: str = self._tokenizer.decode(self._ids)
        given = "".join(self._given)
        return text[len(given) :] if text.startswith(given) else ""
