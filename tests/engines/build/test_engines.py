"""Building engines with the real library: what is built, kept, built anew, and how it fails."""

from __future__ import annotations

import ctypes
import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import pytest
from checkpoints import make_oracle, save
from manifests import list_again

from glm_trt.engines.build import engines as build
from glm_trt.engines.build import flavours
from glm_trt.engines.build.engines import BuildError, BuildOptions, build_engines, make_profiles
from glm_trt.engines.build.graph import prepare_graph
from glm_trt.export.bundle.format import EngineEntry
from glm_trt.export.bundle.read import Bundle, read_manifest
from glm_trt.export.bundle.write import file_entry
from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint
from glm_trt.model.errors import BundleError, GlmTrtError, MissingCapabilityError
from glm_trt.model.files import locked

KINDS = ["embedding", "dense_indexed", "sparse_indexed", "head", "mtp_sparse_indexed"]
DTYPES = ("float32", "bfloat16", "float16")
SM89 = BuildOptions(targets=("sm89",))
needs_rtx = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


@pytest.fixture(scope="module")
def built(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with the engines of one target. Copy it before changing it."""
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("built") / "bundle"))
    build_engines(bundle, SM89)
    return bundle


@pytest.fixture
def built_copy(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "bundle"))


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds for which a worker was started."""
    kinds: list[str] = []
    run = build._run_worker

    def counted(entry: EngineEntry, *rest: Any) -> Any:
        kinds.append(entry.kind)
        return run(entry, *rest)

    monkeypatch.setattr(build, "_run_worker", counted)
    return kinds


def replace_worker(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(build, "WORKER", (sys.executable, "-c", code))


@needs_rtx
def test_one_engine_per_kind(built: Path) -> None:
    manifest = read_manifest(built)
    # Six layers of two kinds; their number plays no part.
    assert [block.name for block in manifest.blocks].count("layer.5") == 1
    assert [engine.kind for engine in manifest.engines] == KINDS
    for engine in manifest.engines:
        path = built / engine.file
        graph = built / "graphs" / "bfloat16" / f"{engine.kind}.onnx"
        assert manifest.files[engine.file] == file_entry(path)
        assert engine.bytes == path.stat().st_size < 30e6
        assert engine.graph_sha256 == file_entry(graph).sha256
        assert (engine.target, engine.dtype) == ("sm89", "bfloat16")
        assert engine.profiles["decode"]["sequence"] == (1, 1, 1)
        assert engine.profiles["prefill"]["sequence"] == (2, 512, 512)
        assert engine.layers > 10 and 0 < engine.seconds < 60
        assert 50e6 < engine.peak_memory_bytes < 4e9
    left_over = [path for path in built.parent.rglob(".*") if path.is_file()]
    assert not left_over and not list((built / "engines").glob(".build-*"))
    Bundle.open(built)


@needs_rtx
def test_second_build_is_cached(built_copy: Path, spawned: list[str]) -> None:
    before = (built_copy / "manifest.json").read_bytes()
    engines = build_engines(built_copy, SM89)
    assert [engine.entry.kind for engine in engines if engine.cached] == KINDS
    assert spawned == []
    assert (built_copy / "manifest.json").read_bytes() == before


@needs_rtx
@pytest.mark.parametrize("damage", ["byte", "missing"])
def test_damaged_engine_is_built_anew(built_copy: Path, spawned: list[str], damage: str) -> None:
    (plan,) = built_copy.glob("engines/**/dense_indexed.plan")
    if damage == "byte":
        data = bytearray(plan.read_bytes())
        data[len(data) // 2] ^= 1
        plan.write_bytes(data)
    else:
        plan.unlink()
    with pytest.raises(BundleError, match=r"dense_indexed\.plan"):
        Bundle.open(built_copy)
    build_engines(built_copy, SM89)
    assert spawned == ["dense_indexed"]
    Bundle.open(built_copy)


@needs_rtx
def test_engines_of_another_make_are_replaced(
    built_copy: Path, spawned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "BUILDER_OPTIONS", build.BUILDER_OPTIONS | {"tf32": True})
    old = [engine.key for engine in read_manifest(built_copy).engines]
    build_engines(built_copy, SM89)
    new = [engine.key for engine in read_manifest(built_copy).engines]
    assert spawned == KINDS and len(new) == len(KINDS) and not set(old) & set(new)


@needs_rtx
def test_targets_and_dtypes_live_side_by_side(built_copy: Path, spawned: list[str]) -> None:
    build_engines(built_copy, BuildOptions(targets=("sm120",), dtype="float32"))
    assert len(read_manifest(built_copy).engines) == 2 * len(KINDS)
    build_engines(built_copy, SM89)
    assert spawned == KINDS
    # What this build does not make must be whole.
    (plan,) = built_copy.glob("engines/*/sm120/float32/head.plan")
    plan.write_bytes(b"x" * plan.stat().st_size)
    with pytest.raises(BundleError, match=r"sm120/float32/head\.plan"):
        build_engines(built_copy, SM89)


@needs_rtx
@pytest.mark.parametrize(
    ("dtypes", "chosen", "expected"),
    [
        (("float32", "float16"), None, "float16"),
        pytest.param(DTYPES, "bfloat16", "bfloat16", marks=pytest.mark.slow),
        pytest.param(DTYPES, "float32", "float32", marks=pytest.mark.slow),
    ],
)
def test_shared_selection(
    tmp_path: Path, dtypes: tuple[str, ...], chosen: str | None, expected: str
) -> None:
    """Unless one is chosen, engines are in the checkpoint's own dtype."""
    oracle = make_oracle(num_hidden_layers=2, indexer_types=["full", "shared"])
    save(oracle.half(), tmp_path / "checkpoint")
    bundle = tmp_path / "bundle"
    export_checkpoint(tmp_path / "checkpoint", bundle, ExportOptions(dtypes=dtypes))
    engines = build_engines(bundle, BuildOptions(targets=("sm80",), dtype=chosen))
    assert {engine.entry.dtype for engine in engines} == {expected}
    kinds = {engine.entry.kind for engine in engines}
    assert kinds == {"embedding", "dense_indexed", "sparse_shared", "head"}


@needs_rtx
def test_refused_graph(bundle: Path) -> None:
    """The engines before the one that failed are kept, and the next build goes on from there."""
    name = "graphs/bfloat16/sparse_indexed.onnx"
    good = (bundle / name).read_bytes()
    model = onnx.load_from_string(good)
    model.graph.node[3].op_type = "NonZero"
    (bundle / name).write_bytes(model.SerializeToString())
    list_again(bundle, name)
    with pytest.raises(
        BuildError, match=r"sparse_indexed in bfloat16 for sm89 .*status 1"
    ) as error:
        build_engines(bundle, SM89)
    assert "NonZero" in str(error.value) and error.value.exit_code == 2
    assert "cudaError" not in str(error.value)

    manifest = read_manifest(bundle)
    assert [engine.kind for engine in manifest.engines] == ["embedding", "dense_indexed"]
    (bundle / name).write_bytes(good)
    list_again(bundle, name)
    engines = build_engines(bundle, SM89)
    assert [engine.cached for engine in engines] == [True, True, False, False, False]


@needs_rtx
@pytest.mark.parametrize(
    ("code", "ending"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "was killed by SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGKILL)", r"was killed by SIGKILL \(out of memory\?\)"),
        ("sys.exit(7)", "ended with status 7"),
        ("pass", "ended with status 0 but no result"),
    ],
)
def test_crash_becomes_an_error(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, code: str, ending: str
) -> None:
    talk = "import os, signal, sys; print('line of the log', file=sys.stderr, flush=True); "
    replace_worker(monkeypatch, talk + code)
    with pytest.raises(BuildError, match=f"embedding in bfloat16 for sm89 .*{ending}") as error:
        build_engines(bundle, SM89)
    assert str(error.value).endswith("line of the log")
    assert read_manifest(bundle).engines == ()
    assert not list((bundle / "engines").iterdir())


@needs_rtx
def test_interrupted_build_resumes(
    bundle: Path, spawned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_at_the_third(*_: object) -> None:
        if len(spawned) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engines(bundle, SM89, stop_at_the_third)
    assert len(read_manifest(bundle).engines) == 2
    # What a build that was killed leaves behind.
    (bundle / "engines" / ".build-old").mkdir()
    build_engines(bundle, SM89)
    assert spawned == KINDS
    assert not list((bundle / "engines").glob(".build-*"))


@needs_rtx
def test_wrong_requests(bundle: Path) -> None:
    with pytest.raises(GlmTrtError, match=r"'sm90': tensorrt-rtx .* sm75, sm80, sm86, sm89, sm120"):
        build_engines(bundle, BuildOptions(targets=("sm89", "sm90")))
    with pytest.raises(BundleError, match="no graphs in float16; it has float32, bfloat16"):
        build_engines(bundle, BuildOptions(dtype="float16"))
    with pytest.raises(GlmTrtError, match="max_prefill: expected at least 1, found 0"):
        build_engines(bundle, BuildOptions(max_prefill=0))
    with (
        locked(bundle.parent / f".{bundle.name}.lock", "build"),
        pytest.raises(BundleError, match="another export or build of this bundle is running"),
    ):
        build_engines(bundle, SM89)
    assert not (bundle / "engines").exists()


def test_missing_library(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingCapabilityError, match=r"pip install 'glm-trt\[tensorrt-rtx\]'"):
        build_engines(bundle, SM89)
    with pytest.raises(GlmTrtError, match="backend 'onnxruntime': engines are built with"):
        build_engines(bundle, BuildOptions(backend="onnxruntime"))


def test_missing_gpu(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_driver(_: str) -> None:
        raise OSError

    monkeypatch.setattr(ctypes, "CDLL", no_driver)
    with pytest.raises(MissingCapabilityError, match=r"needs a GPU: no NVIDIA driver") as error:
        build_engines(bundle, BuildOptions(backend="tensorrt"))
    assert error.value.exit_code == 3


def test_target_of_the_present_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Driver:
        def cuInit(self, _: int) -> int:
            return 0

        def cuDeviceGet(self, device: Any, _: int) -> int:
            return 0

        def cuDeviceGetAttribute(self, value: Any, attribute: int, _: Any) -> int:
            value._obj.value = {75: 9, 76: 0}[attribute]
            return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda _: Driver())
    assert flavours.present_target() == "sm90"
    monkeypatch.setattr(Driver, "cuInit", lambda *_: 100)
    with pytest.raises(MissingCapabilityError, match=r"finds none \(CUDA error 100\)"):
        flavours.present_target()


def test_profiles() -> None:
    assert make_profiles(4096, 512, 2048) == {
        "decode": {"batch": (1,) * 3, "capacity": (4096,) * 3, "selected": (2048,) * 3,
                   "sequence": (1,) * 3},
        "prefill": {"batch": (1,) * 3, "capacity": (4096,) * 3, "selected": (2048,) * 3,
                    "sequence": (2, 512, 512)},
    }  # fmt: skip
    short = make_profiles(100, 512, 2048)
    assert short["prefill"]["sequence"] == (2, 100, 100)
    assert short["prefill"]["selected"] == (100,) * 3
    assert list(make_profiles(1, 512, 2048)) == ["decode"]


def test_prepared_graph(tiny_bundle: Path) -> None:
    """Axes are fixed where a size is given; no function is left; the file is as it was."""
    path = tiny_bundle / "graphs" / "float32" / "dense_indexed.onnx"
    before = path.read_bytes()
    prepared = prepare_graph(path, {"batch": 1, "capacity": 128}, with_plugins=False)
    model = onnx.load_from_string(prepared.model)
    assert prepared.plugins == ()
    assert not model.functions
    assert {node.domain for node in model.graph.node} == {""}
    assert prepared.open_inputs == {
        "hidden": [1, "sequence", 256],
        "cos": [1, "sequence", 8],
        "sin": [1, "sequence", 8],
    }
    cache = next(i for i in model.graph.input if i.name == "kv_cache")
    assert [dim.dim_value for dim in cache.type.tensor_type.shape.dim] == [1, 1, 128, 80]
    assert path.read_bytes() == before
    assert json.dumps(prepared.open_inputs)
