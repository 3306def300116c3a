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
DECODER, EXTRA, OLD_EXTRA = (
    "added_tokens_decoder", "extra_special_tokens", "additional_special_tokens"
)  # fmt: skip
# In the order in which transformers adds them: it gives a token that is new its ID.
STANDARD = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip
AROUND = ("add_bos_token", "add_eos_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
Token = str | AddedToken


@dataclass(frozen=True)
class SpecialTokens:
    """What the files beside tokenizer.json say of special tokens, as transformers reads them.

    Attributes
    ----------
    named : what a template may call a token ("eos_token"), and the token.
    stated : tokens that belong to the vocabulary, by ID; `source` is the file that says so.
    more : tokens that are special, though nothing states their ID and no template names them.
    whole : whether `stated` is all that is stated, whatever tokenizer.json says.
    fields : those of tokenizer_config.json, and those of special_tokens_map.json where it counts.
    """

    named: dict[str, Token] = field(default_factory=dict)
    stated: dict[int, AddedToken] = field(default_factory=dict)
    more: tuple[Token, ...] = ()
    source: Path | None = None
    whole: bool = False
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> dict[str, str]:
        """What a template may call a token, and its text."""
        return {name: str(token) for name, token in self.named.items()}

    @classmethod
    def read(cls, files: Mapping[str, Path]) -> SpecialTokens:
        """Of `files`, by their names. `added_tokens_decoder` in tokenizer_config.json makes
        special_tokens_map.json and added_tokens.json count for nothing; without it the former goes
        before tokenizer_config.json.

        Raises
        ------
        BundleError
            If a file is not what it should be.
        """
        config_path = files.get(TOKENIZER_CONFIG)
        fields = {} if config_path is None else read_object(config_path)
        for name in AROUND:  # tokenizer.json has its own word on these
            fields.pop(name, None)
        if not fields.get(EXTRA) and OLD_EXTRA in fields:
            fields[EXTRA] = fields.pop(OLD_EXTRA)
        own = {name: fields.pop(name) for name in _own_names(fields)}
        if isinstance(fields.get(EXTRA), dict):
            own |= fields.pop(EXTRA)
        own = own or fields.get("model_specific_special_tokens") or {}
        decoder = fields.get(DECODER)
        map_path = files.get(SPECIAL_TOKENS_MAP) if decoder is None else None
        if map_path is not None:
            own = _merge(fields, read_object(map_path), own, map_path)
        if not isinstance(own, dict):
            raise BundleError(f"{config_path}: expected special tokens by their names: {own!r}")
        values = {name: fields.get(name) for name in STANDARD}
        values |= {name: fields[name] for name in fields if name.endswith("_token")} | own
        named = {
            name: token
            for name, value in values.items()
            if (name in STANDARD or not _is_unmarked(value))
            and (token := _token(value, f"{map_path or config_path}: {name}")) is not None
        }
        listed = fields.get(EXTRA, fields.get(OLD_EXTRA)) or []
        given = listed if isinstance(listed, list) else []
        place = f"{map_path or config_path}: {EXTRA}"
        more = tuple(token for value in given if (token := _token(value, place)) is not None)
        if decoder is not None and config_path is not None:
            return cls(named, _stated(decoder, config_path), more, config_path, True, fields)
        if (path := files.get(ADDED_TOKENS)) is not None:
            # By the newer key alone, and before the older one stands in for it: so it is there.
            newer = given if EXTRA in fields else []
            special = {str(_token(value, place)) for value in newer}
            special |= {str(token) for name, token in named.items() if name in STANDARD}
            return cls(named, _added(read_object(path), path, special), more, path, False, fields)
        return cls(named, {}, more, config_path, False, fields)

    def complete(self, tokenizer: Tokenizer) -> None:
        """Add to `tokenizer` what its own file lacks, so that none is split into pieces.

        Raises
        ------
        BundleError
            If a token cannot have the ID that is stated.
        """
        have = tokenizer.get_added_tokens_decoder()
        stated = self.stated if self.whole else self.stated | have
        adding = [token for _, token in sorted(stated.items())]
        known = {token.content for token in (*have.values(), *adding)}
        for token in (*self.named.values(), *self.more):
            if str(token) not in known:
                known.add(str(token))
                adding.append(AddedToken(token, special=True) if isinstance(token, str) else token)
        names = set(self.names.values())
        for token in adding:
            token.special = token.special or token.content in names
        tokenizer.add_tokens(adding)
        for number, token in sorted(self.stated.items()):
            found = tokenizer.token_to_id(token.content)
            if token.content and found != number:
                raise BundleError(
                    f"{self.source}: {token.content}: expected token {number}, but by "
                    f"tokenizer.json it is {found}"
                )


def _own_names(fields: Mapping[str, Any]) -> list[str]:
    """A model's own names for tokens, as "image_token"."""
    return [
        name
        for name, value in fields.items()
        if name.endswith("_token") and name not in STANDARD and isinstance(value, str)
    ]


def _merge(
    fields: dict[str, Any], more: dict[str, Any], own: dict[str, Any], path: Path
) -> dict[str, Any]:
    """Put the fields of special_tokens_map.json over those of `fields`; the model's own tokens."""
    for name, value in more.items():
        if name == EXTRA and isinstance(value, list):
            before = fields.get(EXTRA) or []
            value = [*before, *(token for token in value if token not in before)]
        elif name != EXTRA and isinstance(value, dict):
            value = _described(value | {"special": True}, f"{path}: {name}")
        fields[name] = value
    extra = fields.get(EXTRA)
    return own | fields.pop(EXTRA) if isinstance(extra, dict) else own


def _is_unmarked(value: Any) -> bool:
    """An object that does not say that it is a token: under a model's own name it is none."""
    return isinstance(value, dict) and value.get("__type") != "AddedToken"


def _token(value: Any, place: str) -> Token | None:
    """A token as it is written: plainly, or as an object that describes it; None for no token."""
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        return _described(value, place)
    return value if isinstance(value, str | AddedToken) else None


def _described(entry: Mapping[str, Any], place: str) -> AddedToken:
    """The token that an object describes; raises `BundleError` if it describes none."""
    flags = {name: entry[name] for name in _FLAGS if name in entry}
    try:
        return AddedToken(entry.get("content", ""), **flags)
    except (AttributeError, TypeError) as error:
        raise BundleError(f"{place}: no description of a token: {error}") from None


def _stated(entries: Any, path: Path) -> dict[int, AddedToken]:
    """`added_tokens_decoder`: an ID as a string, and what describes the token."""
    try:
        return {int(number): _described(entry, str(number)) for number, entry in entries.items()}
    except (AttributeError, BundleError, TypeError, ValueError) as error:
        raise BundleError(f"{path}: {DECODER}: no tokens by ID: {error}") from None


def _added(entries: dict[str, Any], path: Path, special: set[str]) -> dict[int, AddedToken]:
    """`added_tokens.json`: a token and its ID."""
    for text, number in entries.items():
        if type(number) is not int or number < 0:
            raise BundleError(f"{path}: {text}: expected a token's ID, found {number!r}")
    return {
        number: AddedToken(text, normalized=text not in special, special=text in special)
        for text, number in entries.items()
    }
