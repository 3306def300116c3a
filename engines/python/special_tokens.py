"""Special tokens, by each of the files that may hold them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from glm_trt.engines.python.tokenizer_files import read_object
from glm_trt.model.errors import BundleError

TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP, ADDED_TOKENS = "special_tokens_map.json", "added_tokens.json"


@dataclass(frozen=True)
class SpecialTokens:
    """What the files beside tokenizer.json say of special tokens.

    Attributes
    ----------
    names : what a template may call a token ("eos_token"), and the token.
    stated : tokens that belong to the vocabulary, by ID; `source` is the file that says so.
    more : tokens that are special, though nothing states their ID.
    """

    names: dict[str, str] = field(default_factory=dict)
    stated: dict[int, AddedToken] = field(default_factory=dict)
    more: tuple[str, ...] = ()
    source: Path | None = None

    @classmethod
    def read(cls, files: Mapping[str, Path]) -> SpecialTokens:
        """Of `files`, by their names. As in transformers, `added_tokens_decoder` in
        tokenizer_config.json makes special_tokens_map.json and added_tokens.json count for nothing;
        without it the former goes before tokenizer_config.json.

        Raises
        ------
        BundleError
            If a file is not what it should be.
        """
        config_path = files.get(TOKENIZER_CONFIG)
        values = {} if config_path is None else read_object(config_path)
        source, stated = config_path, values.get("added_tokens_decoder")
        tokens: dict[int, AddedToken] = {}
        if stated is not None and config_path is not None:
            tokens = _stated(stated, config_path)
        elif (path := files.get(SPECIAL_TOKENS_MAP)) is not None:
            values = values | read_object(path)
        extra = values.get("extra_special_tokens") or values.get("additional_special_tokens")
        named = {name: value for name, value in values.items() if name.endswith("_token")}
        if isinstance(extra, dict):
            named |= extra
        names = {name: text for name, value in named.items() if (text := _text(value)) is not None}
        listed = extra if isinstance(extra, list) else []
        more = tuple(text for entry in listed if (text := _text(entry)) is not None)
        if stated is None and (path := files.get(ADDED_TOKENS)) is not None:
            source, special = path, {*names.values(), *more}
            tokens = _added(read_object(path), path, special)
        return cls(names, tokens, more, source)

    def complete(self, tokenizer: Tokenizer) -> None:
        """Add to `tokenizer` what its own file lacks, so that none is split into pieces.

        Raises
        ------
        BundleError
            If a token cannot have the ID that is stated.
        """
        have = tokenizer.get_added_tokens_decoder()
        for number, token in sorted(self.stated.items()):
            if have.get(number) is not None and repr(have[number]) == repr(token):
                continue
            tokenizer.add_tokens([token])
            found = tokenizer.token_to_id(token.content)
            if found != number:
                raise BundleError(
                    f"{self.source}: {token.content}: expected token {number}, but by "
                    f"tokenizer.json it is {found}"
                )
        known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
        for text in dict.fromkeys((*self.names.values(), *self.more)):
            if text not in known:
                tokenizer.add_tokens([AddedToken(text, special=True)])


def _text(value: Any) -> str | None:
    """A token as it is written: plainly, or as an object that describes it."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _stated(entries: Any, path: Path) -> dict[int, AddedToken]:
    """`added_tokens_decoder`: an ID as a string, and what describes the token."""
    try:
        return {
            int(number): AddedToken(**{k: v for k, v in entry.items() if k != "__type"})
            for number, entry in entries.items()
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise BundleError(f"{path}: added_tokens_decoder: no tokens by ID: {error}") from None


def _added(entries: dict[str, Any], path: Path, special: set[str]) -> dict[int, AddedToken]:
    """`added_tokens.json`: a token and its ID."""
    for text, number in entries.items():
        if type(number) is not int or number < 0:
            raise BundleError(f"{path}: {text}: expected a token's ID, found {number!r}")
    return {
        number: AddedToken(text, normalized=text not in special, special=text in special)
        for text, number in entries.items()
    }
