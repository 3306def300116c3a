"""The bytes that a single token stands for."""

from __future__ import annotations

import json
import re
from typing import Any

from tokenizers import Tokenizer


class TokenBytes:
    """The bytes of each token of `tokenizer`.

    A byte-level tokenizer (GLM's) writes each byte as a character, and its tokens often begin or
    end within a character of the text. Others have whole characters, and single bytes as <0xE2>.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._added = tokenizer.get_added_tokens_decoder()
        kinds = _kinds(json.loads(tokenizer.to_str())["decoder"])
        self._is_byte_level = "ByteLevel" in kinds
        self._has_bytes = "ByteFallback" in kinds

    def of(self, token_id: int) -> bytes:
        """Of one token; b"" where there is none of this ID."""
        token = self._tokenizer.id_to_token(token_id)
        if token is None:
            return b""
        if token_id in self._added:
            return self._added[token_id].content.encode()
        if self._is_byte_level and all(character in _BYTES for character in token):
            return bytes(_BYTES[character] for character in token)
        if self._has_bytes and (byte := re.fullmatch("<0x([0-9A-F]{2})>", token)):
            return bytes.fromhex(byte[1])
        text: str = self._tokenizer.decode([token_id], skip_special_tokens=False)
        return text.encode()


def _kinds(decoder: Any) -> set[str]:
    """The kinds of decoder that a tokenizer is made of."""
    if not isinstance(decoder, dict):
        return set()
    inner = [_kinds(part) for part in decoder.get("decoders", ())]
    return {decoder["type"]}.union(*inner)


def _byte_characters() -> dict[str, int]:
    """How byte-level tokenizers write bytes: those that print as themselves in Latin-1, the others
    from U+0100 on, in their order.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {
        chr(0x100 + i): byte for i, byte in enumerate(others)
    }


_BYTES = _byte_characters()
