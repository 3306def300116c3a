"""Bundles that say what is not so, each sealed with every hash right: what both runtimes refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from manifests import edit_manifest, list_again

ZEROS = "0" * 64
LIBRARY = "plugins/library.so"


def _manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    return lambda bundle: edit_manifest(bundle, change)


def _bindings(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(bundle: Path) -> None:
        path = bundle / "bindings.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        list_again(bundle, path.name)

    return edit


def _unlisted(name: str) -> Callable[[Path], None]:
    return _manifest(lambda manifest: manifest["files"].pop(name))


def _engine(manifest: dict[str, Any], **changes: Any) -> None:
    entry = {"backend": "tensorrt", "backend_version": "10", "target": "sm90", "kind": "head",
             "dtype": "float32", "file": "graphs/float32/head.onnx", "key": ZEROS,
             "graph_sha256": ZEROS, "bytes": 1, "seconds": 1, "peak_memory_bytes": 1, "layers": 1,
             "profiles": {}, "plugins": [], "plugin_library": None}  # fmt: skip
    manifest["engines"].append(entry | changes)


def _pool(**changes: Any) -> Callable[[Path], None]:
    return _manifest(lambda manifest: manifest["states"]["sparse_indexed"][0].update(changes))


# Of a materialized bundle of glm-5.1-tiny: the edit, and what the error says.
SPOILED: dict[str, tuple[Callable[[Path], None], str]] = {
    "unlisted bindings": (_unlisted("bindings.json"), "bindings: bindings.json is not among"),
    "unlisted graph": (
        _unlisted("graphs/float32/head.onnx"),
        "graph of head in float32: graphs/float32/head.onnx is not among the listed files",
    ),
    "unlisted tokenizer": (
        _unlisted("tokenizer/tokenizer.json"),
        "tokenizer: tokenizer/tokenizer.json is not among the listed files",
    ),
    "unlisted engine": (
        _manifest(lambda manifest: _engine(manifest, file="engines/head.plan")),
        "engine of head in float32 for sm90: engines/head.plan is not among the listed files",
    ),
    "unlisted library": (
        _manifest(lambda manifest: manifest.update(library=LIBRARY)),
        f"plugin library: {LIBRARY} is not among the listed files",
    ),
    "no library": (
        _manifest(lambda manifest: _engine(manifest, plugin_library=ZEROS)),
        f"built with the plugin library {ZEROS}, the bundle has none",
    ),
    "another library": (
        _manifest(
            lambda manifest: (
                _engine(manifest, plugin_library=ZEROS),
                manifest.update(library="bindings.json"),
            )
        ),
        f"built with the plugin library {ZEROS}, the bundle has ",
    ),
    "no bindings": (
        _bindings(lambda rows: rows.pop("layer.1")),
        "bindings.json: no bindings of block layer.1",
    ),
    "bindings of no block": (
        _bindings(lambda rows: rows.update(more=rows["head"])),
        "bindings.json: more: the manifest has no such block",
    ),
    "tensor of no file": (
        _bindings(lambda rows: rows["head"][0].update(tensors=["x"])),
        "head: norm.weight: x is in no listed file of weights",
    ),
    "expert of no file": (
        _bindings(
            lambda rows: rows["head"][0].update(tensors=["x{expert}y"], arguments={"experts": 2})
        ),
        "head: norm.weight: x0y is in no listed file of weights",
    ),
    "experts unnumbered": (
        _bindings(lambda rows: rows["head"][0].update(tensors=["x{expert}"])),
        "head: norm.weight: x{expert} without the argument experts",
    ),
    "no tensors": (
        _bindings(lambda rows: rows["head"][0].update(tensors=[])),
        "bindings.json: $.head[0].tensors: breaks the bindings' schema (minItems)",
    ),
    "field gone": (
        _bindings(lambda rows: rows["head"][0].pop("dtype")),
        "bindings.json: $.head[0]: breaks the bindings' schema (required)",
    ),
    "short page": (
        _manifest(
            lambda manifest: manifest["states"]["sparse_indexed"][0]["shape"].__setitem__(1, 64)
        ),
        "states of sparse_indexed: kv_cache: expected pages of 4096 positions (max_seq_len), "
        "found 64",
    ),
    "slot of positions": (_pool(unit="slot"), "kv_cache: a page has an axis of positions, a slot"),
    "page without positions": (_pool(position_axis=None), "a page has an axis of positions"),
    "axis beyond": (_pool(position_axis=3), "kv_cache: a page has an axis of positions"),
}  # fmt: skip
