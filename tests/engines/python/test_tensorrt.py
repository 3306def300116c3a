"""The TensorRT backend on a device and engines of the test's own: host memory, and plain
onnxruntime that runs the bundle's graphs on what lies at the addresses that were set. What is not
TensorRT's own is the backend's real code; that TensorRT has what the backend calls is checked
against its module.
"""

from __future__ import annotations

import ast
import ctypes
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from checkpoints import make_oracle, save
from hybrids import make_hybrid, save_hybrid
from tensorrt_double import MAX_TOKENS, GraphEngine, HostDevice, open_double

import glm_trt
from glm_trt.cli import main
from glm_trt.engines.build.flavours import Flavour
from glm_trt.engines.python import (
    cuda_driver,
    gpu,
    specialised_kernels,
    staging,
    tensorrt_engine,
)
from glm_trt.engines.python.onnxruntime_backend import OnnxruntimeBackend
from glm_trt.engines.python.request import GenerateOptions
from glm_trt.engines.python.runtime import Runtime
from glm_trt.engines.python.sampling import Sampling
from glm_trt.engines.python.session import Session
from glm_trt.engines.python.tensorrt_engine import Engine, TensorrtEngines
from glm_trt.export.bundle import read as bundle_files
from glm_trt.export.bundle.format import EngineEntry, FileEntry
from glm_trt.export.bundle.read import Bundle
from glm_trt.export.bundle.write import write_manifest
from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint
from glm_trt.model.checkpoint.generate import CheckpointOptions, make_checkpoint
from glm_trt.model.errors import BundleError, GlmTrtError, MissingCapabilityError
from glm_trt.validate.running import cases, subjects
from glm_trt.validate.validation import ValidationOptions, validate_bundle

TINY = Path(__file__).parents[2] / "data" / "glm-5.1-tiny"
LENGTH = 150


@pytest.fixture(scope="module", params=["tiny", "linear_first", "shared_across", "hybrid_mtp"])
def bundle(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    place: Path = tmp_path_factory.mktemp(request.param)
    if request.param == "tiny":
        shutil.copytree(TINY, place / "c")
    elif request.param == "hybrid_mtp":
        make_checkpoint(CheckpointOptions("glm-5.1-hybrid", "tiny"), place / "c")
    else:
        save_hybrid(make_hybrid(request.param), place / "c")
    options = ExportOptions(dtypes=("float32",), max_seq_len=LENGTH)
    export_checkpoint(place / "c", place / "b", options)
    return place / "b"


@pytest.fixture(params=[True, False], ids=["recorded", "queued"])
def runtimes(bundle: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Runtime, Runtime]]:
    """onnxruntime's, and that of the backend."""
    device = HostDevice(request.param)
    with glm_trt.load(bundle) as expected, Runtime(open_double(expected.bundle, device)) as found:
        yield expected, found
        assert (device.replayed > 0) == request.param
    assert device.closed and not device.memory


def relative(found: Any, expected: Any) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def run(session: Session, prompts: list[list[int]], options: GenerateOptions) -> list[list[int]]:
    requests = [session.submit(ids, options) for ids in prompts]
    session.run()
    return [request.tokens for request in requests]


def test_as_on_onnxruntime(runtimes: tuple[Runtime, Runtime]) -> None:
    """Logits; batches that change; prompts in chunks with every remainder; drafts; snapshots."""
    expected, found = runtimes
    rng = np.random.default_rng(0)
    vocabulary = min(found.bundle.config.vocab_size, 97)
    ids = rng.integers(1, vocabulary, (2, 60))
    assert relative(found.forward(ids), expected.forward(ids)) < 2e-5
    prompts = [rng.integers(1, vocabulary, n).tolist() for n in (1, 24, 25, 26, 49, 7, 140)]
    drafts = (0, 2) if found.bundle.prediction_blocks else (0,)
    for sampling in (Sampling(), Sampling(0.8, top_k=20, seed=2)):
        options = GenerateOptions(12, sampling, eos_token_ids=())
        tokens = run(expected.session(max_batch=3), prompts, options)
        for count in drafts:
            session = found.session(max_batch=3, drafts=count)
            assert run(session, prompts, options) == tokens, (sampling, count)
    session = found.session(drafts=drafts[-1])
    first = session.submit(prompts[4], GenerateOptions(5, eos_token_ids=(), keep=True))
    session.run()
    longer = [*first.sequence, 3, 4]
    second = session.submit(longer, GenerateOptions(5, eos_token_ids=()), prefix=first.snapshot)
    session.run()
    assert second.tokens == expected.generate([longer], 5, eos_token_ids=())[0]
    cuttable = first.snapshot is not None and first.snapshot.state.cuttable
    assert (second.reused > 40) == (cuttable or not drafts[-1])
    with pytest.raises(GlmTrtError, match=f"sequence of {LENGTH + 1} tokens"):
        found.forward([[1] * (LENGTH + 1)])


def test_validation(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The validator judges it as any other backend."""
    monkeypatch.setattr(cases, "MOST_TOKENS", MAX_TOKENS)
    monkeypatch.setattr(
        subjects, "open_backend", lambda opened, _: open_double(opened, HostDevice())
    )
    monkeypatch.setattr(subjects, "require_tensorrt", lambda _: None)
    shorter = cases.CaseOptions(longest=80)  # more than index_topk and than an engine takes
    report = validate_bundle(bundle, ValidationOptions(backend="tensorrt-rtx", cases=shorter))
    assert report["ok"], report["end_to_end"]["problems"]
    assert report["runtime"]["ok"]


def test_inner_values(bundle: Path) -> None:
    """Marked values come out of an engine of their own, and the others stay as they were."""
    opened = Bundle.open(bundle)
    device = HostDevice()
    backend, plain = open_double(opened, device), OnnxruntimeBackend(opened, rewrites=False)
    block = opened.blocks[-2]
    generator = np.random.default_rng(0)
    inputs: dict[str, Any] = {
        "hidden": generator.standard_normal((1, 5, opened.config.hidden_size)),
        "cos": np.ones((1, 5, opened.config.qk_rope_head_dim // 2)),
        "sin": np.zeros((1, 5, opened.config.qk_rope_head_dim // 2)),
        "past_lengths": np.zeros(1, np.int64), "lengths": np.full(1, 5, np.int64),
        "shared_indices": np.tile(np.arange(5, dtype=np.int32), (1, 5, 1)),
    } | {x.name: np.zeros(x.shape(1, LENGTH)) for x in opened.states(block)}  # fmt: skip
    model = onnx.load(opened.graph_path(block.kind, "float32"))
    inputs = {
        name: array.astype(np.float32) if array.dtype == np.float64 else array
        for name, array in inputs.items() if name in {x.name for x in model.graph.input}
    }  # fmt: skip
    makers = {x.op_type: x.output[0] for x in model.graph.node}
    names = (makers["RMSNormalization"], makers["MoeExperts"])
    before = backend.run_block(block, inputs)
    for subject in (backend, plain):
        subject.mark(block.kind, names)
    found, expected = backend.run_block(block, inputs), plain.run_block(block, inputs)
    assert found.keys() == before.keys() | {*names}
    for name in names:
        assert relative(found[name], expected[name]) < 1e-6
    marked = backend._marked[block.kind]
    assert isinstance(marked, GraphEngine) and not marked.closed
    backend.mark(block.kind, ())
    assert marked.closed, "bisect marks kind after kind: each engine ends with its marks"
    after = backend.run_block(block, inputs)
    assert after.keys() == before.keys()
    assert all(np.array_equal(after[name], before[name]) for name in before)
    backend.close()
    assert not device.memory


def small(tmp_path: Path) -> Bundle:
    save(make_oracle(num_hidden_layers=2), tmp_path / "c")
    options = ExportOptions(dtypes=("float32",), max_seq_len=40)
    export_checkpoint(tmp_path / "c", tmp_path / "b", options)
    return Bundle.open(tmp_path / "b")


def test_memory_is_accounted_before_it_is_taken(tmp_path: Path) -> None:
    opened = small(tmp_path)
    enough = HostDevice()
    backend = open_double(opened, enough)
    rows = backend.batch(3)
    used = (1 << 34) - enough.left
    weights = sum(backend.weight_sizes().values())
    assert weights < used < 1.5 * weights + 1_000_000
    assert rows.lengths.tolist() == [0, 0, 0]
    for memory, what in ((weights // 2, "the weights"), (weights + 20_000, "activations")):
        device = HostDevice(memory=memory)
        with pytest.raises(MissingCapabilityError, match=f"too little memory for {what}"):
            open_double(opened, device)
    device = HostDevice(memory=used)
    backend = open_double(opened, device)
    held = backend.batch(3)
    with pytest.raises(MissingCapabilityError, match=r"the states of a sequence: .* kv_cache"):
        backend.batch(1)
    del held  # whose memory comes back
    backend.batch(3)
    backend.close()
    assert not device.memory


def with_engines(tmp_path: Path, version: str) -> Bundle:
    opened = small(tmp_path)
    files, engines = dict(opened.manifest.files), []
    for kind in opened.kinds:
        name = f"engines/tensorrt-rtx/sm89/float32/{kind}.plan"
        path = opened.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not a plan")
        files[name] = FileEntry(10, "0" * 64)
        engines.append(
            EngineEntry(
                "tensorrt-rtx", version, "sm89", kind, "float32", name, key="0" * 64,
                graph_sha256="0" * 64, bytes=10, seconds=1, peak_memory_bytes=1, layers=1,
                profiles={"decode": {"sequence": (1, 1, 1)}}, plugins=(),
                plugin_library=None,
            )
        )  # fmt: skip
    opened.manifest = replace(opened.manifest, engines=tuple(engines), files=files)
    write_manifest(opened.directory, opened.manifest)
    return opened


def test_engines_that_cannot_be_used(tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="the texts name its version")
    flavour, device = Flavour("tensorrt-rtx", trt), HostDevice()
    device.target = "sm89"
    missing = "no engine of embedding in float32 for sm89.*glm-trt build"
    with pytest.raises(BundleError, match=missing):
        TensorrtEngines(small(tmp_path / "none"), flavour, "float32", device)
    old = with_engines(tmp_path / "old", "0.9")
    both = rf"built with tensorrt-rtx 0.9, this is {trt.__version__}"
    with pytest.raises(BundleError, match=both):
        TensorrtEngines(old, flavour, "float32", device)


def test_a_gpu_that_rtx_does_not_run_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an H100 is: the builder makes engines for it, the runtime refuses them."""
    pytest.importorskip("tensorrt_rtx", reason="it says which it knows")
    monkeypatch.setattr(tensorrt_engine, "present_target", lambda *_, **__: "sm90")
    with pytest.raises(
        MissingCapabilityError, match="not run on a GPU of sm90, only on sm75, sm80"
    ):
        tensorrt_engine.require_tensorrt("tensorrt-rtx")


@pytest.mark.parametrize("command", ["run", "validate", "bisect"])
def test_the_gpu_is_looked_for_before_files_are_read(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], tiny_bundle: Path,
) -> None:  # fmt: skip
    """A bundle of hundreds of gigabytes takes minutes to hash."""
    shutil.copytree(tiny_bundle, tmp_path / "b")
    read: list[Path] = []

    def sha256_of(path: Path) -> str:
        read.append(path)
        return ""

    def no_gpu(what: str = "", instead: str = "") -> str:
        raise MissingCapabilityError(f"{what} needs a GPU: none here")

    monkeypatch.setattr(bundle_files, "sha256_of", sha256_of)
    monkeypatch.setattr(tensorrt_engine, "present_target", no_gpu)
    options = ["--input-ids", "1"] if command == "run" else []
    code = main([command, str(tmp_path / "b"), "--backend", "tensorrt", *options])
    assert code == 3 and "needs a GPU: none here" in capsys.readouterr().err
    assert not read


def test_without_a_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_bundle: Path
) -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pass
    else:
        pytest.skip("this machine has a driver")
    for backend in ("tensorrt", "tensorrt-rtx"):
        code = main(["run", str(tiny_bundle), "--input-ids", "1", "--backend", backend, "--json"])
        output = capsys.readouterr()
        assert code == 3 and output.out == ""
        assert "no NVIDIA driver (libcuda.so.1)" in output.err and output.err.count("\n") == 1
    with pytest.raises(GlmTrtError, match="expected onnxruntime or tensorrt or tensorrt-rtx"):
        glm_trt.load(tiny_bundle, "cuda")


def attributes_of(*modules: Any) -> Iterator[tuple[str, str]]:
    """Each `of.attribute` in the source: the last name of `of`, and the attribute."""
    for module in modules:
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text())):
            if isinstance(node, ast.Attribute):
                of = node.value
                yield (of.id if isinstance(of, ast.Name) else getattr(of, "attr", "")), node.attr


def test_tensorrt_has_what_is_called() -> None:
    """Every attribute that the engine modules ask of TensorRT's objects is there."""
    trt = pytest.importorskip("tensorrt_rtx", reason="its module is asked")
    objects = {"engine": trt.ICudaEngine, "_engine": trt.ICudaEngine, "_runtime": trt.Runtime,
               "runtime": trt.Runtime, "_context": trt.IExecutionContext, "trt": trt, "_trt": trt,
               "context": trt.IExecutionContext, "config": trt.IRuntimeConfig,
               "_cache": trt.IRuntimeCache}  # fmt: skip
    ours = Engine.__annotations__.keys() | {"execution", "close"}
    asked = {
        (name, attribute)
        for name, attribute in attributes_of(tensorrt_engine, specialised_kernels)
        if name in objects and attribute not in ours
    }
    for name, attribute in asked:
        assert hasattr(objects[name], attribute), f"{name}.{attribute}"
    assert len(asked) > 20
    assert hasattr(trt.IPluginRegistry, "load_library")


def test_the_driver_has_what_is_called() -> None:
    driver = pytest.importorskip("cuda.bindings.driver", reason="its module is asked")
    calls = {
        node.value
        for module in (cuda_driver, gpu, staging)
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text()))
        if isinstance(node, ast.Constant) and re.fullmatch("cu[A-Z][A-Za-z0-9]+", str(node.value))
    }
    assert len(calls) > 25
    for call in calls:
        assert hasattr(driver, call), call
