"""Exporting a checkpoint to a bundle: resumable, and never visible before it is whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from glm_trt.export import manifest as m
from glm_trt.export.materialize import bound_bytes, materialize_block
from glm_trt.model import bindings as b
from glm_trt.model.checkpoint import Checkpoint
from glm_trt.model.config import ModelConfig, block_kind
from glm_trt.model.errors import BundleError, CheckpointError
from glm_trt.model.files import explain, locked, sha256_of, sync_directory, write_atomically
from glm_trt.model.requirements import require, require_installed
from glm_trt.model.safetensors_file import SafetensorsFile
from glm_trt.model.states import layer_states
from glm_trt.model.tensors import mtp_layers

# Reading every weight once finds NaN and gives each shard a hash; for more weights than this it is
# left out, as a checkpoint of a terabyte must export without being read.
SCAN_LIMIT_BYTES = 32 << 30
_NON_FINITE = {"float32": (np.uint32, 0x7F800000), "float16": (np.uint16, 0x7C00),
               "bfloat16": (np.uint16, 0x7F80), "float64": (np.uint64, 0x7FF << 52),
               "float8_e4m3fn": (np.uint8, 0x7F)}  # fmt: skip

# What is done now, with its count; and how much of the work is behind it, from 0 to 1.
Progress = Callable[..., None]


@dataclass(frozen=True)
class ExportOptions:
    """What to export. `dtypes` None means float32 and the checkpoint's own."""

    dtypes: tuple[str, ...] | None = None
    max_seq_len: int | None = None
    materialize: bool = False


@dataclass(frozen=True)
class Block:
    """One block of the model: its name, its kind, its bindings."""

    name: str
    kind: str
    layer: int | None
    bindings: list[b.Binding]


def model_blocks(checkpoint: Checkpoint) -> list[Block]:
    """The blocks in the order of a pass: embedding, layers, head. Behind them the prediction
    layers, if the checkpoint has them, each with its head: no plain pass runs those.
    """
    config = checkpoint.config
    blocks = [Block("embedding", "embedding", None, b.embedding_bindings(config, checkpoint))]
    for i in range(config.num_hidden_layers):
        bindings = b.layer_bindings(config, checkpoint, i)
        blocks.append(Block(f"layer.{i}", block_kind(config, i), i, bindings))
    blocks.append(Block("head", "head", None, b.head_bindings(config, checkpoint)))
    for number, i in enumerate(mtp_layers(config) if checkpoint.has_mtp else ()):
        bindings = b.layer_bindings(config, checkpoint, i)
        blocks.append(Block(f"mtp.{number}", block_kind(config, i), i, bindings))
        norm = f"model.layers.{i}.shared_head.norm.weight"
        bindings = b.head_bindings(config, checkpoint, norm)
        blocks.append(Block(f"mtp.{number}.head", "head", None, bindings))
    return blocks


def export_checkpoint(
    directory: Path, output: Path, options: ExportOptions, progress: Progress = lambda *_: None
) -> bool:
    """Write the bundle `output`; False where it was already up to date.

    A run that was cut off leaves `.NAME.partial` beside `output`; the next run goes on from there.

    Raises
    ------
    ConfigError, CheckpointError
        If the checkpoint is not sound (a value that is not finite included).
    BundleError
        If `output` is something else than a bundle, is being written, or the disk is full.
    MissingCapabilityError
        If PyTorch or its exporter is not installed.
    """
    checkpoint = Checkpoint.open(directory)
    output = Path(os.path.abspath(output))
    _check_output(output, checkpoint)
    config = checkpoint.config
    dtypes = tuple(dict.fromkeys(("float32", *(options.dtypes or (checkpoint.dtype,)))))
    max_seq_len = options.max_seq_len or config.max_position_embeddings
    if not 1 <= max_seq_len <= config.max_position_embeddings:
        raise BundleError(
            f"--max-seq-len: expected 1 … {config.max_position_embeddings} "
            f"(max_position_embeddings), found {max_seq_len}"
        )
    require_installed("export", "export", "torch", "onnxscript")
    progress("checking weights")
    if _is_small(checkpoint.files):
        for file in checkpoint.files:
            _check_finite(file)
    shards = shard_entries(checkpoint.files, checkpoint.directory)
    settings = {"dtypes": dtypes, "max_seq_len": max_seq_len, "materialize": options.materialize}
    key = _export_key(checkpoint, shards, settings)
    previous = _previous(output)
    if previous is not None and previous["key"] == key:
        location = os.path.normpath(output / previous["checkpoint"]["directory"])
        if options.materialize or location == os.path.abspath(checkpoint.directory):
            return False

    partial = output.parent / f".{output.name}.partial"
    with locked(output.parent / f".{output.name}.lock", "export to this place"):
        _prepare(partial, key)
        try:
            manifest = _write_contents(
                partial, output, checkpoint, dtypes, max_seq_len, options, shards, key, progress
            )
            _carry_engines(previous, output, partial, manifest)
            m.write_manifest(partial, manifest)
            (partial / "export.key").unlink()
            _publish(partial, output)
        except OSError as error:
            raise BundleError(explain(Path(error.filename or partial), error)) from error
    return True


def _write_contents(
    partial: Path,
    output: Path,
    checkpoint: Checkpoint,
    dtypes: tuple[str, ...],
    max_seq_len: int,
    options: ExportOptions,
    shards: list[dict[str, Any]],
    key: str,
    progress: Progress,
) -> m.Manifest:
    blocks = model_blocks(checkpoint)
    if options.materialize:
        _check_space(partial, blocks, checkpoint)
    graphs = _write_graphs(partial, checkpoint, blocks, dtypes, progress)
    source = {
        "directory": os.path.relpath(checkpoint.directory, output),
        "dtype": checkpoint.dtype,
        "files": shards,
    }
    if options.materialize:
        sizes = [sum(bound_bytes(x, checkpoint) for x in block.bindings) for block in blocks]
        for i, block in enumerate(blocks):
            done, total = sum(sizes[:i]) / 1e6, sum(sizes) / 1e6
            progress(f"weights of {block.name}, {done:,.1f} of {total:,.1f} MB", done / total)
            blocks[i] = Block(
                block.name, block.kind, block.layer,
                materialize_block(block.bindings, checkpoint, partial / "weights", block.name),
            )  # fmt: skip
        paths = [partial / "weights" / f"{block.name}.safetensors" for block in blocks]
        source["directory"] = "weights"
        source["files"] = shard_entries([SafetensorsFile(p) for p in paths], partial / "weights")
    bindings = {block.name: [x.to_dict() for x in block.bindings] for block in blocks}
    write_atomically(partial / "bindings.json", json.dumps(bindings, indent=1).encode())
    tokenizer = []
    for path in checkpoint.tokenizer_files:
        name = f"tokenizer/{path.relative_to(checkpoint.directory).as_posix()}"
        write_atomically(partial / name, path.read_bytes())
        tokenizer.append(name)
    names = [graph["file"] for graph in graphs] + ["bindings.json", *tokenizer]
    return {
        "format": m.FORMAT,
        "format_version": m.FORMAT_VERSION,
        "key": key,
        "versions": _versions(),
        "config": checkpoint.config_data(),
        "model": _model_entry(checkpoint),
        "states": _states_entry(checkpoint.config, blocks),
        "dtypes": list(dtypes),
        "max_seq_len": max_seq_len,
        "materialized": options.materialize,
        "blocks": [
            {"name": block.name, "kind": block.kind}
            | ({} if block.layer is None else {"layer": block.layer})
            for block in blocks
        ],
        "graphs": graphs,
        "bindings": "bindings.json",
        "checkpoint": source,
        "tokenizer": tokenizer,
        "files": {name: m.file_entry(partial / name) for name in names},
        "engines": [],
    }


def _model_entry(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a runtime needs to know of the model, so that it need not derive it from the config."""
    config = checkpoint.config
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "rotary_width": config.qk_rope_head_dim // 2,
        "index_topk": config.index_topk,
        "eos_token_ids": list(checkpoint.eos_token_ids()),
    }


def _states_entry(config: ModelConfig, blocks: list[Block]) -> dict[str, Any]:
    """Of each kind that has states: name, axes and dtype, in the order of its graph's inputs."""
    layers = {block.kind: block.layer for block in blocks if block.layer is not None}
    return {
        kind: [
            {"name": spec.name, "axes": list(spec.axes), "dtype": spec.dtype}
            for spec in layer_states(config, layer)
        ]
        for kind, layer in layers.items()
    }


def _write_graphs(
    partial: Path,
    checkpoint: Checkpoint,
    blocks: list[Block],
    dtypes: tuple[str, ...],
    progress: Progress,
) -> list[dict[str, str]]:
    require("export", "export", "torch", "onnxscript")
    import torch  # slow to load, and an up-to-date bundle needs none of it

    from glm_trt.export.trace import trace_block

    graphs: list[dict[str, str]] = []
    kinds = list(dict.fromkeys(block.kind for block in blocks))
    count = len(dtypes) * len(kinds)
    for dtype in dtypes:
        for kind in kinds:
            name = f"graphs/{dtype}/{kind}.onnx"
            graphs.append({"kind": kind, "dtype": dtype, "file": name})
            # Written atomically under this very key: what is there is whole.
            if (partial / name).is_file():
                continue
            i = len(graphs)
            progress(f"tracing {kind} in {dtype} ({i} of {count})", (i - 1) / count)
            model = trace_block(checkpoint.config, kind, getattr(torch, dtype))
            write_atomically(partial / name, model.SerializeToString(deterministic=True))
    return graphs


def _is_small(files: Sequence[SafetensorsFile]) -> bool:
    return sum(file.size_bytes for file in files) <= SCAN_LIMIT_BYTES


def shard_entries(files: Sequence[SafetensorsFile], directory: Path) -> list[dict[str, Any]]:
    """Weights' files as a manifest lists them; hashes of whole files only where these are small."""
    small = _is_small(files)
    return [
        {
            "file": file.path.relative_to(directory).as_posix(),
            "bytes": file.size_bytes,
            "header_sha256": file.header_sha256,
            "sample_sha256": file.sample_sha256(),
            "sha256": sha256_of(file.path) if small else None,
        }
        for file in files
    ]


def _check_finite(file: SafetensorsFile) -> None:
    for name, info in file.tensors.items():
        if info.dtype not in _NON_FINITE:  # codes without an infinity
            continue
        kind, mask = _NON_FINITE[info.dtype]
        bits = file.tensor(name).reshape(-1).view(kind)
        for start in range(0, bits.size, 1 << 22):
            bad = np.flatnonzero((bits[start : start + (1 << 22)] & kind(mask)) == mask)
            if bad.size:
                place = tuple(int(i) for i in np.unravel_index(start + int(bad[0]), info.shape))
                raise CheckpointError(
                    f"{file.path}: {name}: element {place} is "
                    f"{float(file.tensor(name)[place])}; expected finite weights"
                )


def _export_key(
    checkpoint: Checkpoint, shards: list[dict[str, Any]], settings: dict[str, Any]
) -> str:
    digest = hashlib.sha256()
    digest.update(json.dumps(checkpoint.config_data()).encode())
    for path in checkpoint.tokenizer_files:
        name = path.relative_to(checkpoint.directory).as_posix()
        digest.update(name.encode() + path.read_bytes())
    digest.update(json.dumps([shards, settings, _versions()]).encode())
    for package in ("model", "plugins", "export"):
        root = Path(str(files("glm_trt"))) / package
        for path in sorted(root.rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("glm-trt", "torch", "onnx", "onnxscript")}


def _check_output(output: Path, checkpoint: Checkpoint) -> None:
    source = checkpoint.directory.resolve()
    if output.resolve() == source or source in output.resolve().parents:
        raise BundleError(f"{output}: lies in the checkpoint itself; name another directory")
    if output.exists() and not output.is_dir():
        raise BundleError(f"{output}: exists and is not a directory")
    if output.is_dir() and any(output.iterdir()) and not (output / m.FILE_NAME).is_file():
        raise BundleError(f"{output}: exists and is not a bundle; it is left as it is")


def _previous(output: Path) -> m.Manifest | None:
    try:
        manifest = m.read_manifest(output)
        m.verify_files(output, manifest)
    except BundleError:
        return None  # absent, or damaged: export it anew
    return manifest


def _prepare(partial: Path, key: str) -> None:
    key_file = partial / "export.key"
    if partial.exists() and (not key_file.is_file() or key_file.read_text() != key):
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    write_atomically(key_file, key.encode())


def _carry_engines(
    previous: m.Manifest | None, output: Path, partial: Path, manifest: m.Manifest
) -> None:
    """Keep the engines of the replaced bundle whose graph is the same, byte for byte."""
    graphs = {
        (g["kind"], g["dtype"]): manifest["files"][g["file"]]["sha256"] for g in manifest["graphs"]
    }
    for engine in previous["engines"] if previous else []:
        if graphs.get((engine["kind"], engine["dtype"])) == engine["graph_sha256"]:
            names = [engine["file"]]
            if previous and engine["plugin_library"]:
                names += [name for name in previous["files"] if name.startswith("plugins/")]
            for name in names:
                target = partial / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(output / name, target)
                manifest["files"][name] = m.file_entry(target)
            manifest["engines"].append(engine)


def _check_space(partial: Path, blocks: list[Block], checkpoint: Checkpoint) -> None:
    needed = sum(bound_bytes(x, checkpoint) for block in blocks for x in block.bindings)
    needed -= sum(path.stat().st_size for path in (partial / "weights").glob("*.safetensors"))
    free = shutil.disk_usage(partial).free
    if needed > free:
        raise BundleError(
            f"{partial}: --materialize needs {needed / 1e6:,.1f} MB, only {free / 1e6:,.1f} MB "
            "are free"
        )


def _publish(partial: Path, output: Path) -> None:
    sync_directory(partial)
    if output.exists():
        # A directory cannot be replaced in one step; a crash between the two leaves no bundle,
        # and the next export makes it again.
        old = output.parent / f".{output.name}.old"
        shutil.rmtree(old, ignore_errors=True)
        output.rename(old)
        partial.rename(output)
        shutil.rmtree(old, ignore_errors=True)
    else:
        partial.rename(output)
    sync_directory(output.parent)
