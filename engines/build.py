"""Building a bundle's engines: one per block kind and target, each in a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx

from glm_trt.engines import build_graph, build_worker, tensorrt_flavours
from glm_trt.engines.build_worker import Request, Result
from glm_trt.engines.needed_kernels import needed_kernels
from glm_trt.engines.tensorrt_flavours import Flavour, load_flavour
from glm_trt.export import manifest as m
from glm_trt.model.child_python import python_module
from glm_trt.model.config import ModelConfig
from glm_trt.model.errors import BundleError, GlmTrtError, MissingCapabilityError
from glm_trt.model.files import explain, locked, sha256_of, sync_directory, write_atomically
from glm_trt.plugins.common.selection import Selection
from glm_trt.plugins.library import LIBRARY, WHOLE_ONE, selection_of

WORKER = python_module("glm_trt.engines.build_worker")
# Float32 is to mean float32: TF32 keeps 10 bits of the mantissa, and the router's logits, float32
# in every dtype, would choose other experts.
BUILDER_OPTIONS = {"tf32": False, "optimization_level": 3}
LOG_LINES = 12
PLUGINS = f"plugins/{LIBRARY}"
# Said by every ahead-of-time build on a machine without a driver; never the reason of a failure.
NOISE = "cudaError 35"

# What is done now, with its count; and how much of the work is behind it, from 0 to 1.
Progress = Callable[..., None]


class BuildError(GlmTrtError):
    """An engine that could not be built: which one, how its process ended, its last log lines."""


@dataclass(frozen=True)
class BuildOptions:
    """What to build.

    Parameters
    ----------
    backend : "tensorrt-rtx" or "tensorrt".
    targets : such as "sm89"; None means `RTX_TARGETS`, or the GPU present for "tensorrt".
    dtype : of the graphs; None means the checkpoint's.
    max_prefill : most tokens of one pass; cut to the bundle's max_seq_len.
    plugins : the plugin library; None expands the operators into standard ones.
    embed_plugins : put the library into each plan, for runtimes that shall not look for it.
    """

    backend: str = "tensorrt-rtx"
    targets: tuple[str, ...] | None = None
    dtype: str | None = None
    max_prefill: int = 512
    plugins: Path | None = None
    embed_plugins: bool = False


@dataclass(frozen=True)
class BuiltEngine:
    """One engine of the bundle: its entry in the manifest, and whether it was there already."""

    entry: dict[str, Any]
    cached: bool


@dataclass(frozen=True)
class _Plan:
    """An engine to be: its entry before building, and the hash of all that makes it."""

    kind: str
    target: str
    graph: str
    entry: dict[str, Any]
    embed: bool

    @property
    def identity(self) -> tuple[str, ...]:
        return _identity(self.entry)


def build_engines(
    bundle: Path, options: BuildOptions, progress: Progress = lambda *_: None
) -> list[BuiltEngine]:
    """Build the engines that `bundle` lacks; one per block kind and target, whatever the layers.

    The manifest is written after each engine, so that a build that was cut off goes on from
    there. An engine whose key is the same and whose file is whole is not built again.

    Raises
    ------
    BuildError
        If TensorRT refuses a graph or crashes; the engines before it are kept.
    BundleError
        If the bundle is not whole, lacks the dtype, or is being written.
    MissingCapabilityError
        If the backend's library or GPU is absent, or the plugin library lacks kernels.
    """
    bundle = Path(os.path.abspath(bundle))
    flavour = load_flavour(options.backend)
    targets = flavour.chosen_targets(options.targets)
    try:
        # The lock of the export too, which replaces the directory as a whole.
        with locked(bundle.parent / f".{bundle.name}.lock", "export or build of this bundle"):
            manifest = m.read_manifest(bundle)
            plans = _plans(bundle, manifest, options, flavour, targets)
            _verify_all_but(bundle, manifest, {plan.identity for plan in plans})
            if options.plugins:
                _check_library(options.plugins, _needed(bundle, plans))
                _copy_library(bundle, manifest, options.plugins)
            engines: list[BuiltEngine] = []
            for plan in plans:
                done = len(engines), len(plans)
                engines.append(_cached_or_built(bundle, manifest, plan, flavour, progress, done))
            return engines
    except OSError as error:
        raise BundleError(explain(Path(error.filename or bundle), error)) from error


def needed_by(bundle: Path, options: BuildOptions) -> Selection:
    """The kernels that the engines of `bundle` need which `options` would build."""
    flavour = load_flavour(options.backend)
    targets = flavour.chosen_targets(options.targets)
    manifest = m.read_manifest(bundle)
    return _needed(bundle, _plans(bundle, manifest, options, flavour, targets))


def _needed(bundle: Path, plans: list[_Plan]) -> Selection:
    graphs = {bundle / plan.graph for plan in plans}
    targets = {plan.target for plan in plans}
    return needed_kernels(sorted(graphs), plans[0].entry["profiles"], targets)


def _check_library(library: Path, needed: Selection) -> None:
    if (lack := selection_of(library).lacks(needed)) is not None:
        raise MissingCapabilityError(
            f"{library}: lacks {lack}; build one for this bundle (python -m "
            f"glm_trt.engines.build_plugins BUNDLE), or {WHOLE_ONE}"
        )


def _verify_all_but(bundle: Path, manifest: m.Manifest, ours: set[tuple[str, ...]]) -> None:
    """Check every hash but those of engines to be built: a damaged one is built again."""
    skipped = {e["file"] for e in manifest["engines"] if _identity(e) in ours}
    rest = {name: entry for name, entry in manifest["files"].items() if name not in skipped}
    m.verify_files(bundle, {"files": rest})


def make_profiles(max_seq_len: int, max_prefill: int, selected: int) -> dict[str, Any]:
    """Axis → [min, opt, max] in the two optimisation profiles: one token, and several.

    The batch and the capacity of the caches are static. Without any indexer (0 `selected`), no
    graph has that axis.
    """
    fixed = {"batch": [1, 1, 1], "capacity": [max_seq_len] * 3}
    fixed["selected"] = [min(selected, max_seq_len)] * 3
    longest = min(max_prefill, max_seq_len)
    profiles = {"decode": fixed | {"sequence": [1, 1, 1]}}
    if longest > 1:
        profiles["prefill"] = fixed | {"sequence": [2, longest, longest]}
    return profiles


def _plans(
    bundle: Path,
    manifest: m.Manifest,
    options: BuildOptions,
    flavour: Flavour,
    targets: tuple[str, ...],
) -> list[_Plan]:
    dtype = options.dtype or manifest["checkpoint"]["dtype"]
    if dtype not in manifest["dtypes"]:
        have = ", ".join(manifest["dtypes"])
        raise BundleError(f"{bundle}: no graphs in {dtype}; it has {have}; export with it")
    if options.max_prefill < 1:
        raise GlmTrtError(f"max_prefill: expected at least 1, found {options.max_prefill}")
    profiles = make_profiles(
        manifest["max_seq_len"],
        options.max_prefill,
        ModelConfig.from_dict(manifest["config"]).index_topk,
    )
    graphs = {g["kind"]: g["file"] for g in manifest["graphs"] if g["dtype"] == dtype}
    plans = []
    for target in targets:
        for kind, graph in graphs.items():
            entry = {
                "backend": flavour.backend,
                "backend_version": flavour.version,
                "target": target,
                "kind": kind,
                "dtype": dtype,
                "graph_sha256": manifest["files"][graph]["sha256"],
                "profiles": profiles,
                "plugin_library": sha256_of(options.plugins) if options.plugins else None,
            }
            entry["key"] = _key(entry, options.embed_plugins)
            entry["file"] = f"engines/{flavour.backend}/{target}/{dtype}/{kind}.plan"
            plans.append(_Plan(kind, target, graph, entry, options.embed_plugins))
    return plans


def _identity(entry: dict[str, Any]) -> tuple[str, ...]:
    return tuple(entry[name] for name in ("backend", "target", "kind", "dtype"))


def _key(entry: dict[str, Any], embed: bool) -> str:
    made_of = [entry, embed, BUILDER_OPTIONS, version("onnx")]
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode())
    for module in (build_worker, build_graph, tensorrt_flavours):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()


def _copy_library(bundle: Path, manifest: m.Manifest, library: Path) -> None:
    """Put the plugin library into the bundle, where runtimes load it from.

    Engines built with another one are taken out: they could not be loaded beside it.
    """
    entry = m.file_entry(library)
    if manifest["files"].get(PLUGINS) == entry:
        return
    digest = entry["sha256"]
    _forget(bundle, manifest, [
        e for e in manifest["engines"] if e["plugin_library"] not in (None, digest)
    ])  # fmt: skip
    with library.open("rb") as source:
        write_atomically(bundle / PLUGINS, lambda file: shutil.copyfileobj(source, file))
    manifest["files"][PLUGINS] = entry
    m.write_manifest(bundle, manifest)


def _cached_or_built(
    bundle: Path, manifest: m.Manifest, plan: _Plan, flavour: Flavour, progress: Progress,
    done: tuple[int, int],
) -> BuiltEngine:  # fmt: skip
    previous = [e for e in manifest["engines"] if _identity(e) == plan.identity]
    if len(previous) == 1 and previous[0]["key"] == plan.entry["key"]:
        try:
            m.verify_file(bundle / previous[0]["file"], manifest["files"][previous[0]["file"]])
            return BuiltEngine(previous[0], cached=True)
        except BundleError:
            pass  # damaged: build it anew
    dtype = plan.entry["dtype"]
    before, count = done
    progress(f"{plan.kind} in {dtype} for {plan.target} ({before + 1} of {count})", before / count)
    engines = bundle / "engines"
    engines.mkdir(exist_ok=True)
    for left_over in engines.glob(".build-*"):  # of a build that was killed: we hold the lock
        shutil.rmtree(left_over)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=engines) as directory:
        built = Path(directory) / "engine.plan"
        request = _request(bundle, plan.entry, bundle / plan.graph, built, plan.embed)
        result = _run_worker(plan.entry, request, flavour.environment(Path(directory)))
        _forget(bundle, manifest, previous)
        place = bundle / plan.entry["file"]
        place.parent.mkdir(parents=True, exist_ok=True)
        built.replace(place)
        sync_directory(place.parent)
    entry = plan.entry | {"bytes": place.stat().st_size} | result
    manifest["files"][entry["file"]] = m.file_entry(place)
    manifest["engines"].append(entry)
    m.write_manifest(bundle, manifest)
    return BuiltEngine(entry, cached=False)


def _forget(bundle: Path, manifest: m.Manifest, entries: list[dict[str, Any]]) -> None:
    """Take engines out of the manifest, then off the disk: never listed without being whole."""
    if not entries:
        return
    for entry in entries:
        manifest["engines"].remove(entry)
        del manifest["files"][entry["file"]]
    m.write_manifest(bundle, manifest)
    for entry in entries:
        (bundle / entry["file"]).unlink(missing_ok=True)


def build_marked(
    bundle: Path, entry: dict[str, Any], names: Collection[str], directory: Path
) -> Path:
    """The engine of `entry` once more, in `directory`, with inner values of its graph as outputs.

    Of the named values those are marked that the graph has and that are tensors of activations: a
    value with fewer than two axes may be a shape, which TensorRT keeps elsewhere.

    Raises
    ------
    BuildError
        If TensorRT refuses the graph or crashes.
    """
    graphs = {(g["kind"], g["dtype"]): g["file"] for g in m.read_manifest(bundle)["graphs"]}
    model = onnx.load(bundle / graphs[entry["kind"], entry["dtype"]])
    model.graph.output.extend(
        value
        for value in model.graph.value_info
        if value.name in names and len(value.type.tensor_type.shape.dim) > 1
    )
    marked, built = directory / "marked.onnx", directory / "marked.plan"
    onnx.save(model, marked)
    environment = load_flavour(entry["backend"]).environment(directory)
    _run_worker(entry, _request(bundle, entry, marked, built, embed=False), environment)
    return built


def _request(bundle: Path, entry: dict[str, Any], graph: Path, built: Path, embed: bool) -> Request:
    return {
        "backend": entry["backend"],
        "target": entry["target"],
        "graph": str(graph),
        "plan": str(built),
        "profiles": entry["profiles"],
        "options": BUILDER_OPTIONS,
        "plugins": str(bundle / PLUGINS) if entry["plugin_library"] else None,
        "embed": embed,
    }


def _run_worker(entry: dict[str, Any], request: Request, environment: dict[str, str]) -> Result:
    built = Path(request["plan"])
    done = subprocess.run(
        WORKER, input=json.dumps(request), capture_output=True, text=True, errors="replace",
        env=os.environ | environment,
    )  # fmt: skip
    if done.returncode == 0 and done.stdout and built.is_file():
        result: Result = json.loads(done.stdout)
        return result
    lines = [line for line in done.stderr.splitlines() if line.strip() and NOISE not in line]
    log = "\n  ".join(lines[-LOG_LINES:]) or "(nothing)"
    raise BuildError(
        f"{entry['kind']} in {entry['dtype']} for {entry['target']} ({entry['backend']} "
        f"{entry['backend_version']}): the builder's process {_ending(done.returncode)}; "
        f"its last log lines:\n  {log}"
    )


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}" + ("" if status else " but no result")
    name = signal.Signals(-status).name
    hint = " (out of memory?)" if -status == signal.SIGKILL else ""
    return f"was killed by {name}{hint}"
