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
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import onnx

from glm_trt.engines.build import flavours, graph, worker
from glm_trt.engines.build.flavours import Flavour, load_flavour
from glm_trt.engines.build.needed_kernels import needed_kernels
from glm_trt.engines.build.worker import Request, Result
from glm_trt.export.bundle.format import LIBRARY_PLACE, EngineEntry, Manifest
from glm_trt.export.bundle.read import read_manifest, verify_file, verify_files
from glm_trt.export.bundle.records import to_json
from glm_trt.export.bundle.write import BundleEdit
from glm_trt.model.child_python import python_module
from glm_trt.model.errors import BundleError, GlmTrtError, MissingCapabilityError
from glm_trt.model.files import explain, locked, sha256_of
from glm_trt.plugins.common.selection import Selection
from glm_trt.plugins.library import WHOLE_ONE, selection_of

WORKER = python_module("glm_trt.engines.build.worker")
# Float32 is to mean float32: TF32 keeps 10 bits of the mantissa, and the router's logits, float32
# in every dtype, would choose other experts.
BUILDER_OPTIONS = {"tf32": False, "optimization_level": 3}
LOG_LINES = 12
# Said by every ahead-of-time build on a machine without a driver; never the reason of a failure.
NOISE = "cudaError 35"

# What is done now, with its count; and how much of the work is behind it, from 0 to 1.
Progress = Callable[..., None]


Profiles = dict[str, dict[str, tuple[int, ...]]]


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

    entry: EngineEntry
    cached: bool


@dataclass(frozen=True)
class _Wanted:
    """An engine to be: its entry, of which only what building tells is not there yet."""

    graph: str
    entry: EngineEntry
    embed: bool


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
            edit = BundleEdit(bundle)
            wanted = _wanted(bundle, edit.manifest, options, flavour, targets)
            _verify_all_but(bundle, edit.manifest, {one.entry.identity for one in wanted})
            if options.plugins:
                _check_library(options.plugins, _needed(bundle, wanted))
                edit.set_library(options.plugins)
            engines: list[BuiltEngine] = []
            for one in wanted:
                done = len(engines), len(wanted)
                engines.append(_cached_or_built(edit, one, flavour, progress, done))
            return engines
    except OSError as error:
        raise BundleError(explain(Path(error.filename or bundle), error)) from error


def needed_by(bundle: Path, options: BuildOptions) -> Selection:
    """The kernels that the engines of `bundle` need which `options` would build."""
    flavour = load_flavour(options.backend)
    targets = flavour.chosen_targets(options.targets)
    return _needed(bundle, _wanted(bundle, read_manifest(bundle), options, flavour, targets))


def _needed(bundle: Path, wanted: list[_Wanted]) -> Selection:
    graphs = {bundle / one.graph for one in wanted}
    targets = {one.entry.target for one in wanted}
    return needed_kernels(sorted(graphs), wanted[0].entry.profiles, targets)


def _check_library(library: Path, needed: Selection) -> None:
    if (lack := selection_of(library).lacks(needed)) is not None:
        raise MissingCapabilityError(
            f"{library}: lacks {lack}; build one for this bundle (python -m "
            f"glm_trt.engines.build.plugins BUNDLE), or {WHOLE_ONE}"
        )


def _verify_all_but(bundle: Path, manifest: Manifest, ours: set[tuple[str, ...]]) -> None:
    """Check every hash but those of engines to be built: a damaged one is built again."""
    skipped = {engine.file for engine in manifest.engines if engine.identity in ours}
    verify_files(bundle, {k: v for k, v in manifest.files.items() if k not in skipped})


def make_profiles(max_seq_len: int, max_prefill: int, selected: int) -> Profiles:
    """Axis → (min, opt, max) in the two optimisation profiles: one token, and several.

    The batch and the capacity of the caches are static. Without any indexer (0 `selected`), no
    graph has that axis.
    """
    fixed: dict[str, tuple[int, ...]] = {"batch": (1, 1, 1), "capacity": (max_seq_len,) * 3}
    if selected:
        fixed["selected"] = (min(selected, max_seq_len),) * 3
    longest = min(max_prefill, max_seq_len)
    profiles: Profiles = {"decode": fixed | {"sequence": (1, 1, 1)}}
    if longest > 1:
        profiles["prefill"] = fixed | {"sequence": (2, longest, longest)}
    return profiles


def _wanted(
    bundle: Path,
    manifest: Manifest,
    options: BuildOptions,
    flavour: Flavour,
    targets: tuple[str, ...],
) -> list[_Wanted]:
    dtype = options.dtype or manifest.checkpoint.dtype
    if dtype not in manifest.dtypes:
        have = ", ".join(manifest.dtypes)
        raise BundleError(f"{bundle}: no graphs in {dtype}; it has {have}; export with it")
    if options.max_prefill < 1:
        raise GlmTrtError(f"max_prefill: expected at least 1, found {options.max_prefill}")
    profiles = make_profiles(manifest.max_seq_len, options.max_prefill, manifest.model.index_topk)
    library = sha256_of(options.plugins) if options.plugins else None
    wanted = []
    for target in targets:
        for of_kind in (x for x in manifest.graphs if x.dtype == dtype):
            entry = EngineEntry(
                backend=flavour.backend,
                backend_version=flavour.version,
                target=target,
                kind=of_kind.kind,
                dtype=dtype,
                file=f"engines/{flavour.backend}/{target}/{dtype}/{of_kind.kind}.plan",
                key="",
                graph_sha256=manifest.files[of_kind.file].sha256,
                bytes=0,
                seconds=0.0,
                peak_memory_bytes=0,
                layers=0,
                profiles=profiles,
                plugins=(),
                plugin_library=library,
            )
            entry = replace(entry, key=_key(entry, options.embed_plugins))
            wanted.append(_Wanted(of_kind.file, entry, options.embed_plugins))
    return wanted


def _key(entry: EngineEntry, embed: bool) -> str:
    """Of an engine of which nothing is known yet that building tells."""
    made_of = [to_json(entry), embed, BUILDER_OPTIONS, version("onnx")]
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode())
    for module in (worker, graph, flavours):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()


def _cached_or_built(
    edit: BundleEdit, wanted: _Wanted, flavour: Flavour, progress: Progress, done: tuple[int, int]
) -> BuiltEngine:
    bundle, entry = edit.directory, wanted.entry
    previous = [x for x in edit.manifest.engines if x.identity == entry.identity]
    if len(previous) == 1 and previous[0].key == entry.key:
        try:
            verify_file(bundle / entry.file, edit.manifest.files[entry.file])
            return BuiltEngine(previous[0], cached=True)
        except BundleError:
            pass  # damaged: build it anew
    before, count = done
    of = f"{entry.kind} in {entry.dtype} for {entry.target}"
    progress(f"{of} ({before + 1} of {count})", before / count)
    engines = bundle / "engines"
    engines.mkdir(exist_ok=True)
    for left_over in engines.glob(".build-*"):  # of a build that was killed: we hold the lock
        shutil.rmtree(left_over)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=engines) as directory:
        built = Path(directory) / "engine.plan"
        request = _request(bundle, entry, bundle / wanted.graph, built, wanted.embed)
        result = _run_worker(entry, request, flavour.environment(Path(directory)))
        entry = replace(
            entry,
            seconds=result["seconds"],
            peak_memory_bytes=result["peak_memory_bytes"],
            layers=result["layers"],
            plugins=tuple(result["plugins"]),
        )
        return BuiltEngine(edit.add(entry, built), cached=False)


def build_marked(bundle: Path, entry: EngineEntry, names: Collection[str], directory: Path) -> Path:
    """The engine of `entry` once more, in `directory`, with inner values of its graph as outputs.

    Of the named values those are marked that the graph has and that are tensors of activations: a
    value with fewer than two axes may be a shape, which TensorRT keeps elsewhere.

    Raises
    ------
    BuildError
        If TensorRT refuses the graph or crashes.
    """
    graphs = {(x.kind, x.dtype): x.file for x in read_manifest(bundle).graphs}
    model = onnx.load(bundle / graphs[entry.kind, entry.dtype])
    model.graph.output.extend(
        value
        for value in model.graph.value_info
        if value.name in names and len(value.type.tensor_type.shape.dim) > 1
    )
    marked, built = directory / "marked.onnx", directory / "marked.plan"
    onnx.save(model, marked)
    environment = load_flavour(entry.backend).environment(directory)
    _run_worker(entry, _request(bundle, entry, marked, built, embed=False), environment)
    return built


def _request(bundle: Path, entry: EngineEntry, graph: Path, built: Path, embed: bool) -> Request:
    return {
        "backend": entry.backend,
        "target": entry.target,
        "graph": str(graph),
        "plan": str(built),
        "profiles": entry.profiles,
        "options": BUILDER_OPTIONS,
        "plugins": str(bundle / LIBRARY_PLACE) if entry.plugin_library else None,
        "embed": embed,
    }


def _run_worker(entry: EngineEntry, request: Request, environment: dict[str, str]) -> Result:
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
        f"{entry.kind} in {entry.dtype} for {entry.target} ({entry.backend} "
        f"{entry.backend_version}): the builder's process {_ending(done.returncode)}; "
        f"its last log lines:\n  {log}"
    )


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}" + ("" if status else " but no result")
    name = signal.Signals(-status).name
    hint = " (out of memory?)" if -status == signal.SIGKILL else ""
    return f"was killed by {name}{hint}"
