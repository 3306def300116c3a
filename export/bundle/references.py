"""What manifest and bindings refer to: all of it is listed, and so its hash is known.

The C++ runtime has the same checks and texts (engines/cpp/src/references.cpp).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from glm_trt.export.bundle.format import Bindings, Manifest
from glm_trt.model.checkpoint.bindings import Binding
from glm_trt.model.checkpoint.safetensors_file import TensorFiles
from glm_trt.model.errors import BundleError

_EXPERT = "{expert}"


def check_listed(path: Path, manifest: Manifest) -> None:
    """Raise `BundleError` unless every file that the manifest names is among its files, and the
    plugin library is the one that its engines were built with.
    """
    for what, file in _references(manifest):
        if file not in manifest.files:
            raise BundleError(f"{path}: {what}: {file} is not among the listed files")
    found = manifest.files[manifest.library].sha256 if manifest.library else None
    for engine in manifest.engines:
        if engine.plugin_library not in (None, found):
            raise BundleError(
                f"{path}: engine {engine.file}: built with the plugin library "
                f"{engine.plugin_library}, the bundle has {found or 'none'}"
            )


def _references(manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield "bindings", manifest.bindings
    for graph in manifest.graphs:
        yield f"graph of {graph.kind} in {graph.dtype}", graph.file
    for file in manifest.tokenizer:
        yield "tokenizer", file
    for engine in manifest.engines:
        yield f"engine of {engine.kind} in {engine.dtype} for {engine.target}", engine.file
    if manifest.library is not None:
        yield "plugin library", manifest.library


def check_bindings(
    path: Path, manifest: Manifest, bindings: Bindings, weights: TensorFiles
) -> None:
    """Raise `BundleError` unless there are bindings of the manifest's blocks, of each and of no
    other, and every tensor that they read is in a listed file of weights.
    """
    names = [block.name for block in manifest.blocks]
    for name in names:
        if name not in bindings:
            raise BundleError(f"{path}: no bindings of block {name}")
    for name, rows in bindings.items():
        if name not in names:
            raise BundleError(f"{path}: {name}: the manifest has no such block")
        for binding in rows:
            for tensor in _tensors(binding, f"{path}: {name}: {binding.name}"):
                if tensor not in weights:
                    raise BundleError(
                        f"{path}: {name}: {binding.name}: {tensor} is in no listed file of weights"
                    )


def _tensors(binding: Binding, place: str) -> Iterator[str]:
    for template in binding.tensors:
        if _EXPERT not in template:
            yield template
            continue
        if "experts" not in binding.arguments:
            raise BundleError(f"{place}: {template} without the argument experts")
        for expert in range(binding.arguments["experts"]):
            yield template.replace(_EXPERT, str(expert), 1)
