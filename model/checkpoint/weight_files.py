"""Which files of a checkpoint's directory hold its weights; what lies beside them is named."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from glm_trt.model.checkpoint.place import other_format
from glm_trt.model.checkpoint.safetensors_file import SafetensorsFile
from glm_trt.model.errors import CheckpointError
from glm_trt.model.files import what_it_is

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_LAYER = re.compile(r"model\.layers\.(\d{1,9})\.")
_LOG = logging.getLogger(__name__)


def open_files(directory: Path, decoder_layers: int, named: object = None) -> list[SafetensorsFile]:
    """The files that transformers reads: the file or index that the config names, else
    `model.safetensors`, else those of the index; without any, all there are. Another file is read
    where it holds prediction layers and nothing else; else it is left alone. Notices name such
    files, and tensors that the index leaves out.

    Parameters
    ----------
    decoder_layers : how many there are; the layers after them are prediction layers.
    named : the config's `transformers_weights`.

    Raises
    ------
    CheckpointError
        If a file is missing or malformed, or the index contradicts its files.
    """
    single, index = directory / SINGLE_FILE, directory / INDEX_FILE
    if named is not None:
        path, reader = _inside(directory, named), str(named)
        is_index = reader.endswith(".index.json")
        files = _open_indexed(directory, path) if is_index else [SafetensorsFile(path)]
    elif single.is_file():
        files, reader = [SafetensorsFile(single)], SINGLE_FILE
        if index.exists():
            _LOG.warning(
                "%s: left alone, as transformers reads %s where both are there", index, SINGLE_FILE
            )
    elif index.exists():
        files, reader = _open_indexed(directory, index), INDEX_FILE
    else:
        paths = sorted(directory.glob("*.safetensors"))
        if not paths:
            others = (other_format(path) for path in sorted(directory.iterdir()))
            hint = next((f"; {other}" for other in others if other), "")
            raise CheckpointError(f"{directory}: no .safetensors file found{hint}")
        return [SafetensorsFile(path) for path in paths]
    beside = sorted(set(directory.glob("*.safetensors")) - {file.path for file in files})
    return files + _prediction_files(beside, files, decoder_layers, reader)


def _inside(directory: Path, named: object) -> Path:
    """Where the file lies that the config names."""
    endings = (".safetensors", ".safetensors.index.json")
    path = PurePosixPath(named) if isinstance(named, str) else PurePosixPath("/")
    if path.is_absolute() or ".." in path.parts or not str(path).endswith(endings):
        raise CheckpointError(
            f"{directory / 'config.json'}: transformers_weights: expected a .safetensors file or "
            f"an index of some in the directory, found {named!r}"
        )
    return directory / path


def some(names: Iterable[str]) -> str:
    """How many names there are, and the first five."""
    names = list(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{len(names)} tensor(s): " + ", ".join(names[:5]) + more


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor belongs to; None outside the layers."""
    found = _LAYER.match(name)
    return int(found[1]) if found else None


def _prediction_files(
    paths: Iterable[Path], files: Iterable[SafetensorsFile], decoder_layers: int, reader: str
) -> list[SafetensorsFile]:
    stored = {name for file in files for name in file.tensors}
    read, alone = [], []
    for path in paths:
        try:
            file = SafetensorsFile(path)
        except CheckpointError as error:
            alone.append(str(error).removeprefix(f"{path.parent}/"))
            continue
        layers = [layer_of(name) for name in file.tensors]
        predicts = bool(layers) and all(x is not None and x >= decoder_layers for x in layers)
        if predicts and stored.isdisjoint(file.tensors):
            stored.update(file.tensors)
            read.append(file)
            text = "%s: not named by %s; read, as it holds a prediction layer: %s"
            _LOG.warning(text, path, reader, some(file.tensors))
        else:
            alone.append(f"{path.name}: {some(file.tensors)}")
    if alone:
        more = f"; and {len(alone) - 5} more files" if len(alone) > 5 else ""
        place = path.parent / reader
        _LOG.warning("%s: beside it and left alone: %s%s", place, "; ".join(alone[:5]), more)
    return read


def _open_indexed(directory: Path, index: Path) -> list[SafetensorsFile]:
    content = b""
    try:
        content = index.read_bytes()
        weight_map = json.loads(content.decode("utf-8"))["weight_map"]
        items = sorted(weight_map.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        known = what_it_is(content) if not isinstance(error, OSError) else None
        reason = known or f"no readable weight_map: {error!r}"
        raise CheckpointError(f"{index}: {reason}") from error
    files: dict[str, SafetensorsFile] = {}
    for name, shard in items:
        # Lexical, not resolved: the Hugging Face cache links its files to elsewhere.
        parts = PurePosixPath(shard).parts if isinstance(shard, str) else ()
        if not parts or ".." in parts or PurePosixPath(shard).is_absolute():
            raise CheckpointError(
                f"{index}: {name}: expected a file inside the directory, found {shard!r}"
            )
        if shard not in files:
            if not (directory / shard).is_file():
                raise CheckpointError(f"{index}: {name}: shard {shard} does not exist")
            files[shard] = SafetensorsFile(directory / shard)
        if name not in files[shard].tensors:
            raise CheckpointError(f"{index}: {name}: not in {shard}, where the index puts it")
    left_out = []
    for shard, file in files.items():
        for name in file.tensors:
            if name not in weight_map:
                left_out.append(name)
            elif weight_map[name] != shard:
                raise CheckpointError(
                    f"{file.path}: {name}: stored here, but the index puts it in {weight_map[name]}"
                )
    if left_out:
        text = "%s: leaves out what its files hold; read all the same, as in transformers: %s"
        _LOG.warning(text, index, some(left_out))
    return list(files.values())
