"""Exporting a checkpoint to a bundle: resumable, and never visible before it is whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from glm_trt.export.bundle.format import (
    FILE_NAME,
    FORMAT,
    FORMAT_VERSION,
    Bindings,
    Block,
    CheckpointReference,
    Graph,
    Manifest,
    ModelFacts,
    Shard,
)
from glm_trt.export.bundle.pools import make_pools
from glm_trt.export.bundle.read import NO_DIGEST, read_manifest, verify_files
from glm_trt.export.bundle.records import to_json
from glm_trt.export.bundle.write import file_entry, publish, write_manifest
from glm_trt.export.materialize import bound_bytes, materialize_block
from glm_trt.model.checkpoint import bindings as b
from glm_trt.model.checkpoint.read import Checkpoint
from glm_trt.model.checkpoint.safetensors_file import SafetensorsFile
from glm_trt.model.checkpoint.tensors import mtp_layers
from glm_trt.model.config import block_kind
from glm_trt.model.errors import BundleError, CheckpointError
from glm_trt.model.files import explain, locked, sha256_of, write_atomically
from glm_trt.model.requirements import require, require_installed

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


def model_blocks(checkpoint: Checkpoint) -> list[Block]:
    """The blocks in the order of a pass: embedding, layers, head. Behind them the prediction
    layers, if the checkpoint has them, each with its head: no plain pass runs those.
    """
    config = checkpoint.config
    blocks = []

    def add(name: str, kind: str, layer: int | None, bindings: list[b.Binding]) -> None:
        blocks.append(Block(name, kind, layer, tuple(bindings)))

    add("embedding", "embedding", None, b.embedding_bindings(config, checkpoint))
    for i in range(config.num_hidden_layers):
        bindings = b.layer_bindings(config, checkpoint, i)
        add(f"layer.{i}", block_kind(config, i), i, bindings)
    add("head", "head", None, b.head_bindings(config, checkpoint))
    for number, i in enumerate(mtp_layers(config) if checkpoint.has_mtp else ()):
        bindings = b.layer_bindings(config, checkpoint, i)
        add(f"mtp.{number}", block_kind(config, i), i, bindings)
        norm = f"model.layers.{i}.shared_head.norm.weight"
        add(f"mtp.{number}.head", "head", None, b.head_bindings(config, checkpoint, norm))
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
    if previous is not None and previous.key == key:
        location = os.path.normpath(output / previous.checkpoint.directory)
        if options.materialize or location == os.path.abspath(checkpoint.directory):
            return False

    partial = output.parent / f".{output.name}.partial"
    with locked(output.parent / f".{output.name}.lock", "export to this place"):
        _prepare(partial, key)
        try:
            manifest = _write_contents(
                partial, output, checkpoint, dtypes, max_seq_len, options, shards, key, progress
            )
            if previous is not None:
                manifest = _with_engines_of(previous, output, partial, manifest)
            write_manifest(partial, manifest)
            (partial / "export.key").unlink()
            publish(partial, output)
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
    shards: tuple[Shard, ...],
    key: str,
    progress: Progress,
) -> Manifest:
    blocks = model_blocks(checkpoint)
    if options.materialize:
        _check_space(partial, blocks, checkpoint)
    graphs = _write_graphs(partial, checkpoint, blocks, dtypes, progress)
    source = CheckpointReference(
        os.path.relpath(checkpoint.directory, output), checkpoint.dtype, shards
    )
    if options.materialize:
        sizes = [sum(bound_bytes(x, checkpoint) for x in block.bindings) for block in blocks]
        for i, block in enumerate(blocks):
            done, total = sum(sizes[:i]) / 1e6, sum(sizes) / 1e6
            progress(f"weights of {block.name}, {done:,.1f} of {total:,.1f} MB", done / total)
            stored = materialize_block(block.bindings, checkpoint, partial / "weights", block.name)
            blocks[i] = replace(block, bindings=stored)
        paths = [partial / "weights" / f"{block.name}.safetensors" for block in blocks]
        own = shard_entries([SafetensorsFile(p) for p in paths], partial / "weights")
        source = replace(source, directory="weights", files=own)
    bindings: Bindings = {block.name: block.bindings for block in blocks}
    write_atomically(partial / "bindings.json", json.dumps(to_json(bindings), indent=1).encode())
    tokenizer = []
    for path in checkpoint.tokenizer_files:
        name = f"tokenizer/{path.relative_to(checkpoint.directory).as_posix()}"
        write_atomically(partial / name, path.read_bytes())
        tokenizer.append(name)
    names = [graph.file for graph in graphs] + ["bindings.json", *tokenizer]
    return Manifest(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        sha256=NO_DIGEST,
        key=key,
        versions=_versions(),
        config=checkpoint.config_data(),
        model=_model_facts(checkpoint),
        states=make_pools(checkpoint.config, blocks, max_seq_len),
        dtypes=dtypes,
        max_seq_len=max_seq_len,
        materialized=options.materialize,
        blocks=tuple(blocks),
        graphs=graphs,
        bindings="bindings.json",
        checkpoint=source,
        tokenizer=tuple(tokenizer),
        library=None,
        files={name: file_entry(partial / name) for name in names},
        engines=(),
    )


def _model_facts(checkpoint: Checkpoint) -> ModelFacts:
    config = checkpoint.config
    return ModelFacts(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        rotary_width=config.qk_rope_head_dim // 2,
        index_topk=config.index_topk,
        eos_token_ids=tuple(checkpoint.eos_token_ids()),
    )


def _write_graphs(
    partial: Path,
    checkpoint: Checkpoint,
    blocks: list[Block],
    dtypes: tuple[str, ...],
    progress: Progress,
) -> tuple[Graph, ...]:
    require("export", "export", "torch", "onnxscript")
    import torch  # slow to load, and an up-to-date bundle needs none of it

    from glm_trt.export.trace import trace_block

    graphs: list[Graph] = []
    kinds = list(dict.fromkeys(block.kind for block in blocks))
    count = len(dtypes) * len(kinds)
    for dtype in dtypes:
        for kind in kinds:
            name = f"graphs/{dtype}/{kind}.onnx"
            graphs.append(Graph(kind, dtype, name))
            # Written atomically under this very key: what is there is whole.
            if (partial / name).is_file():
                continue
            i = len(graphs)
            progress(f"tracing {kind} in {dtype} ({i} of {count})", (i - 1) / count)
            model = trace_block(checkpoint.config, kind, getattr(torch, dtype))
            write_atomically(partial / name, model.SerializeToString(deterministic=True))
    return tuple(graphs)


def _is_small(files: Sequence[SafetensorsFile]) -> bool:
    return sum(file.size_bytes for file in files) <= SCAN_LIMIT_BYTES


def shard_entries(files: Sequence[SafetensorsFile], directory: Path) -> tuple[Shard, ...]:
    """Weights' files as a manifest lists them; hashes of whole files only where these are small."""
    small = _is_small(files)
    return tuple(
        Shard(
            file=file.path.relative_to(directory).as_posix(),
            bytes=file.size_bytes,
            header_sha256=file.header_sha256,
            sample_sha256=file.sample_sha256(),
            sha256=sha256_of(file.path) if small else None,
        )
        for file in files
    )


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


def _export_key(checkpoint: Checkpoint, shards: tuple[Shard, ...], settings: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    digest.update(json.dumps(checkpoint.config_data()).encode())
    for path in checkpoint.tokenizer_files:
        name = path.relative_to(checkpoint.directory).as_posix()
        digest.update(name.encode() + path.read_bytes())
    digest.update(json.dumps([to_json(shards), settings, _versions()]).encode())
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
    if output.is_dir() and any(output.iterdir()) and not (output / FILE_NAME).is_file():
        raise BundleError(f"{output}: exists and is not a bundle; it is left as it is")


def _previous(output: Path) -> Manifest | None:
    try:
        manifest = read_manifest(output)
        verify_files(output, manifest.files)
    except BundleError:
        return None  # absent, or damaged: export it anew
    return manifest


def _prepare(partial: Path, key: str) -> None:
    key_file = partial / "export.key"
    if partial.exists() and (not key_file.is_file() or key_file.read_text() != key):
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=True)
    write_atomically(key_file, key.encode())


def _with_engines_of(
    previous: Manifest, output: Path, partial: Path, manifest: Manifest
) -> Manifest:
    """Keep the engines of the replaced bundle whose graph is the same, byte for byte."""
    graphs = {(x.kind, x.dtype): manifest.files[x.file].sha256 for x in manifest.graphs}
    engines = tuple(x for x in previous.engines if graphs.get((x.kind, x.dtype)) == x.graph_sha256)
    names = {x.file for x in engines}
    library = previous.library if any(x.plugin_library for x in engines) else None
    if library is not None:
        names.add(library)
    for name in sorted(names):
        target = partial / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(output / name, target)
    carried = {name: file_entry(partial / name) for name in sorted(names)}
    return replace(manifest, engines=engines, library=library, files=manifest.files | carried)


def _check_space(partial: Path, blocks: list[Block], checkpoint: Checkpoint) -> None:
    needed = sum(bound_bytes(x, checkpoint) for block in blocks for x in block.bindings)
    needed -= sum(path.stat().st_size for path in (partial / "weights").glob("*.safetensors"))
    free = shutil.disk_usage(partial).free
    if needed > free:
        raise BundleError(
            f"{partial}: --materialize needs {needed / 1e6:,.1f} MB, only {free / 1e6:,.1f} MB "
            "are free"
        )
