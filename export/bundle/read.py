"""Reading a bundle: every hash checked, blocks with their bindings, the checkpoint's weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema

from glm_trt.export.bundle.format import (
    FILE_NAME,
    FORMAT,
    FORMAT_VERSION,
    Bindings,
    Block,
    FileEntry,
    Manifest,
    Shard,
)
from glm_trt.export.bundle.pools import check_pools, spec_of
from glm_trt.export.bundle.records import from_json
from glm_trt.export.bundle.references import check_bindings, check_listed
from glm_trt.model.checkpoint.safetensors_file import SafetensorsFile, TensorFiles
from glm_trt.model.config import ModelConfig
from glm_trt.model.errors import BundleError
from glm_trt.model.files import sha256_of
from glm_trt.model.states import StateSpec
from glm_trt.model.strict_json import RepeatedName, parse_json

# `manifest.json` carries its own SHA-256: the digest of its bytes with the digest itself written as
# zeros. So one changed byte anywhere, white space included, is noticed.
NO_DIGEST = "0" * 64
_WHOSE = {"manifest": "manifest's", "bindings": "bindings'"}


def manifest_schema() -> dict[str, Any]:
    """The published JSON Schema of the manifest."""
    return _schema("manifest")


def bindings_schema() -> dict[str, Any]:
    """The published JSON Schema of the bindings."""
    return _schema("bindings")


@cache
def _schema(name: str) -> dict[str, Any]:
    path = files("glm_trt.export.bundle").joinpath(f"{name}.schema.json")
    schema: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return schema


@cache
def _validator(name: str) -> jsonschema.protocols.Validator:
    return jsonschema.Draft202012Validator(_schema(name))


def _check_schema(path: Path, content: Any, name: str) -> None:
    failures = sorted(
        (error.json_path, str(error.validator)) for error in _validator(name).iter_errors(content)
    )
    if failures:
        place, rule = failures[0]
        raise BundleError(f"{path}: {place}: breaks the {_WHOSE[name]} schema ({rule})")


def _parse(path: Path, data: bytes) -> Any:
    try:
        return parse_json(data)
    except RepeatedName as error:
        raise BundleError(f"{path}: {error.name}: listed twice") from None
    except ValueError as error:
        raise BundleError(f"{path}: not JSON") from error


def read_manifest(bundle: Path) -> Manifest:
    """`bundle/manifest.json`, checked: format, version, digest, schema. Raises `BundleError`."""
    path = bundle / FILE_NAME
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise BundleError(f"{path}: not found; {bundle} is not a finished bundle") from None
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from error
    content = _parse(path, data)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise BundleError(f"{path}: not the manifest of a glm-trt bundle")
    if content.get("format_version") != FORMAT_VERSION:
        version = content.get("format_version")
        number = version if type(version) is int else "no number"
        raise BundleError(
            f"{path}: format version: expected {FORMAT_VERSION}, found {number}; export again"
        )
    found = content.get("sha256")
    blank = data.replace(str(found).encode(), NO_DIGEST.encode(), 1)
    if found != hashlib.sha256(blank).hexdigest():
        raise BundleError(f"{path}: altered: its SHA-256 is not the one that it says")
    _check_schema(path, content, "manifest")
    return from_json(Manifest, content)


def read_bindings(path: Path) -> Bindings:
    """The bindings of `bindings.json` by block, checked by their schema. Raises `BundleError`."""
    content = _parse(path, path.read_bytes())
    _check_schema(path, content, "bindings")
    bindings: Bindings = from_json(Bindings, content)
    return bindings


def verify_files(bundle: Path, listed: Mapping[str, FileEntry]) -> None:
    """Compare every listed file of the bundle with its size and hash."""
    for name, entry in listed.items():
        verify_file(bundle / name, entry)


def verify_file(path: Path, entry: FileEntry | Shard) -> None:
    """Raise `BundleError` unless `path` has the listed size and SHA-256 (where one is listed)."""
    if not path.is_file():
        raise BundleError(f"{path}: missing, though the manifest lists it")
    size = path.stat().st_size
    if size != entry.bytes:
        raise BundleError(f"{path}: expected {entry.bytes} bytes, found {size}")
    if entry.sha256 is not None and (found := sha256_of(path)) != entry.sha256:
        raise BundleError(f"{path}: altered: expected SHA-256 {entry.sha256}, found {found}")


class Bundle:
    """A verified bundle. `Bundle.open` raises `BundleError` for anything that is not whole.

    `blocks` are those of a pass, in its order; `prediction_blocks` the MTP layers and their heads.
    """

    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        bindings: Bindings,
        weights: TensorFiles,
        weights_directory: Path,
    ) -> None:
        self.directory, self.manifest, self.weights = directory, manifest, weights
        self.weights_directory = weights_directory
        self.config = ModelConfig.from_dict(manifest.config, f"{directory}: config")
        check_pools(directory / FILE_NAME, manifest, self.config)
        self._states = {
            kind: tuple(spec_of(pool) for pool in pools) for kind, pools in manifest.states.items()
        }
        blocks = [replace(block, bindings=bindings[block.name]) for block in manifest.blocks]
        self.blocks = [block for block in blocks if block.prediction is None]
        self.prediction_blocks = [block for block in blocks if block.prediction is not None]
        self.max_seq_len = manifest.max_seq_len

    @classmethod
    def open(cls, directory: str | Path, checkpoint: str | Path | None = None) -> Bundle:
        """Verify and open `directory`; `checkpoint` says where the weights lie if they moved."""
        directory = Path(directory)
        manifest = read_manifest(directory)
        check_listed(directory / FILE_NAME, manifest)
        verify_files(directory, manifest.files)
        source = manifest.checkpoint
        root = Path(checkpoint) if checkpoint else directory / source.directory
        if not root.is_dir():
            raise BundleError(
                f"{directory}: its checkpoint is not at {root.resolve()}; name the directory "
                f"where it lies (--checkpoint), or export again"
            )
        weights = TensorFiles([_open_shard(root / entry.file, entry) for entry in source.files])
        path = directory / manifest.bindings
        bindings = read_bindings(path)
        check_bindings(path, manifest, bindings, weights)
        return cls(directory, manifest, bindings, weights, root)

    @property
    def dtype(self) -> str:
        """The checkpoint's, which engines are built in."""
        return self.manifest.checkpoint.dtype

    @property
    def kinds(self) -> list[str]:
        """Block kinds in the order of a pass, and that of the prediction layers."""
        blocks = [*self.blocks, *self.prediction_blocks]
        return list(dict.fromkeys(block.kind for block in blocks))

    def states(self, block: Block) -> tuple[StateSpec, ...]:
        """The states of a block; none but a layer has any."""
        return self._states.get(block.kind, ())

    def graph_path(self, kind: str, dtype: str) -> Path:
        """The ONNX file of `kind` in `dtype`."""
        for graph in self.manifest.graphs:
            if (graph.kind, graph.dtype) == (kind, dtype):
                return self.directory / graph.file
        have = ", ".join(self.manifest.dtypes)
        raise BundleError(f"{self.directory}: no graph of {kind} in {dtype}; it has {have}")

    @property
    def tokenizer_files(self) -> dict[str, Path]:
        """The tokenizer's files that the checkpoint had, by their names in it."""
        names = [file.removeprefix("tokenizer/") for file in self.manifest.tokenizer]
        return {name: self.directory / "tokenizer" / name for name in names}

    def tokenizer_file(self, name: str) -> Path | None:
        """A tokenizer file by its name, None where the checkpoint had none."""
        path = f"tokenizer/{name}"
        return self.directory / path if path in self.manifest.tokenizer else None

    def eos_token_ids(self) -> tuple[int, ...]:
        """Where generation stops: generation_config.json's ids, else the config's."""
        return self.manifest.model.eos_token_ids


def _open_shard(path: Path, entry: Shard) -> SafetensorsFile:
    verify_file(path, entry)
    file = SafetensorsFile(path)
    if file.header_sha256 != entry.header_sha256:
        raise BundleError(f"{path}: another header than when the bundle was exported")
    if file.sample_sha256() != entry.sample_sha256:
        raise BundleError(f"{path}: other weights than when the bundle was exported")
    return file
