"""onnxruntime's execution providers: what is refused, and the path by way of a device's memory.

No machine of ours has a GPU. Memory of the host that is reached by addresses alone stands for that
of a device; it shows that passes touch nothing else, not what CUDA's kernels give.
"""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hybrids import make_hybrid, save_hybrid
from onnx import inliner, shape_inference

import glm_trt
from glm_trt.cli import main
from glm_trt.commands.command import PROVIDERS
from glm_trt.engines.python import contrib_linear, memory, onnxruntime_backend, providers, scatter
from glm_trt.engines.python.memory import HostMemory, ProviderMemory
from glm_trt.engines.python.onnxruntime_backend import OnnxruntimeBackend
from glm_trt.engines.python.providers import Provider
from glm_trt.engines.python.runtime import Runtime
from glm_trt.export.bundle.read import Bundle
from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint
from glm_trt.model.errors import GlmTrtError, MissingCapabilityError
from glm_trt.validate.running.environment import describe_backend
from glm_trt.validate.running.subjects import open_subject
from glm_trt.validate.saving.polygraphy_run import block_feeds, polygraphy_line

Session = ort.InferenceSession  # before any test puts another in its place
CPU, CUDA, TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))

# Operators that the CUDA provider of onnxruntime 1.31.1 took in bfloat16, of the bundles' graphs.
CUDA_BFLOAT16 = {
    "Add", "Cast", "CastLike", "Concat", "Expand", "Gather", "GatherElements", "Gemm",
    "LayerNormalization", "MatMul", "Mul", "RMSNormalization", "Reshape", "RotaryEmbedding",
    "Shape", "Sigmoid", "Slice", "Split", "TensorScatter", "Transpose", "Unsqueeze", "Where",
    "com.microsoft.CausalConvWithState",
}  # fmt: skip


@pytest.fixture(scope="module")
def hybrid_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("hybrid")
    save_hybrid(make_hybrid("three_to_one"), place / "c")
    options = ExportOptions(("float32", "bfloat16"), materialize=True)
    export_checkpoint(place / "c", place / "b", options)
    return place / "b"


@pytest.fixture(scope="module", autouse=True)
def probed() -> None:
    """What the backend asks the real onnxruntime once."""
    scatter.has_tensor_scatter()


def have(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Let onnxruntime say that it was built with these providers."""
    monkeypatch.setattr(ort, "get_available_providers", lambda: list(names))


class Fallen:
    """A session as onnxruntime makes it where a provider does not start: with the CPU's alone."""

    def __init__(self, graph: bytes, options: Any, providers: list[str], **_: Any) -> None:
        self._providers = providers

    def get_providers(self) -> list[str]:
        return self._providers[-1:]


def refused(capsys: pytest.CaptureFixture[str], bundle: Path, *arguments: str) -> str:
    """The one line that `glm-trt run` ends with, after exit code 3."""
    capsys.readouterr()
    assert main(["run", str(bundle), "--input-ids", "1,2", *arguments]) == 3
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


def test_a_provider_that_is_not_built_in(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    have(monkeypatch, "AzureExecutionProvider", CPU)
    line = refused(capsys, tiny_bundle, "--provider", "cuda")
    assert f"provider cuda: onnxruntime {ort.__version__} has AzureExecutionProvider, {CPU}" in line
    assert "pip install 'glm-trt[gpu]'" in line
    line = refused(capsys, tiny_bundle, "--provider", "tensorrt")
    assert f"not {TENSORRT}" in line and "pip install 'glm-trt[gpu,tensorrt]'" in line


@pytest.mark.parametrize("name", ["cuda", "tensorrt"])
def test_a_provider_that_does_not_start(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:  # fmt: skip
    """onnxruntime goes on without it, or raises."""
    have(monkeypatch, TENSORRT, CUDA, CPU)
    monkeypatch.setattr(ort, "InferenceSession", Fallen)
    line = refused(capsys, tiny_bundle, "--provider", name)
    assert (
        f"provider {name}: " in line
        and f"(it goes on with {CPU} alone)" in line
        and "glm-trt[gpu" in line
    )

    def raises(*_: Any, **__: Any) -> None:
        raise RuntimeError("no TensorRT here\nsee the requirements page")

    monkeypatch.setattr(ort, "InferenceSession", raises)
    line = refused(capsys, tiny_bundle, "--provider", name)
    assert "(no TensorRT here); it needs" in line and "requirements page" not in line


def test_a_session_that_falls_back_later(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    have(monkeypatch, CUDA, CPU)
    made = []

    class Later(Fallen):
        def get_providers(self) -> list[str]:
            made.append(self)
            return self._providers if len(made) == 1 else super().get_providers()

    monkeypatch.setattr(ort, "InferenceSession", Later)
    with pytest.raises(MissingCapabilityError, match=r"provider cuda: .* goes on with CPUExec"):
        glm_trt.load(tiny_bundle, provider="cuda")
    assert len(made) == 2


def test_the_log_is_silent_only_while_a_session_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, CUDA, CPU)
    severities: list[int] = []
    monkeypatch.setattr(ort, "set_default_logger_severity", severities.append)
    monkeypatch.setattr(ort, "InferenceSession", Fallen)
    with pytest.raises(MissingCapabilityError):
        Provider("cuda")
    assert severities == [4, 2]


def test_wrong_usage(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert PROVIDERS == providers.PROVIDERS
    run = ["run", str(tiny_bundle), "--input-ids", "1,2"]
    with pytest.raises(SystemExit) as ended:
        main([*run, "--provider", "gpu"])
    assert ended.value.code == 2
    for backend in ("tensorrt", "tensorrt-rtx"):
        assert main([*run, "--backend", backend, "--provider", "cpu"]) == 2
        assert "--provider: for --backend onnxruntime" in capsys.readouterr().err
        with pytest.raises(GlmTrtError, match="for the backend onnxruntime, not for tensorrt"):
            glm_trt.load(tiny_bundle, backend, provider="cuda")
    with pytest.raises(GlmTrtError, match="provider 'gpu': expected one of cpu, cuda, tensorrt"):
        glm_trt.load(tiny_bundle, provider="gpu")


def test_the_cpu_is_the_default(tiny_bundle: Path) -> None:
    tokens = []
    for provider in (None, "cpu"):
        with glm_trt.load(tiny_bundle, provider=provider) as runtime:
            assert isinstance(runtime.backend, OnnxruntimeBackend)
            assert isinstance(runtime.backend.memory, HostMemory)
            tokens.append(runtime.generate([[5, 6, 7]], 8))
    assert tokens[0] == tokens[1]


class StandIn(ProviderMemory):
    """Host memory behind addresses, with a count of what crosses to it and back."""

    def __init__(self) -> None:
        super().__init__(Provider("cpu"))
        self.crossed: Counter[str] = Counter()

    def send(self, mirror: Any, array: Any) -> None:
        self.crossed["sent"] += array.nbytes
        super().send(mirror, array)

    def put(self, target: Any, array: Any) -> None:
        self.crossed["put"] += array.nbytes
        super().put(target, array)

    def get(self, source: Any) -> Any:
        self.crossed["got"] += source.size
        return super().get(source)


def both(bundle: Path) -> tuple[OnnxruntimeBackend, OnnxruntimeBackend]:
    """The backend on the host and on the stand-in, with the same graphs."""
    opened = Bundle.open(bundle)
    return (
        OnnxruntimeBackend(opened, 1, rewrites=False),
        OnnxruntimeBackend(opened, 1, memory=StandIn()),
    )


@pytest.mark.parametrize("name", ["tiny", "hybrid"])
def test_passes_on_a_device_are_those_on_the_host(
    tiny_bundle: Path, hybrid_bundle: Path, name: str
) -> None:
    """Prefill, rows of several lengths, what is kept of a pass, growth, rows that move, are saved,
    restored and cleared: the same bits.
    """
    host, device = (x.batch(3) for x in both(tiny_bundle if name == "tiny" else hybrid_bundle))
    ids = np.random.default_rng(0).integers(1, 97, (3, 40))

    def step(*arguments: Any, **options: Any) -> None:
        expected = host.step(*arguments, **options)
        found = device.step(*arguments, **options)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)

    step(ids)
    step(ids[:, :5], np.array([5, 2, 3]), logits="all")
    for batch in (host, device):
        batch.keep(np.array([3, 2, 1]))
    step(ids[:, :1])
    step(np.tile(ids, (1, 4)))  # beyond the first capacity
    for batch in (host, device):
        batch.move(2, 1)
    step(ids[:2, :1])
    saved = [batch.save(1) for batch in (host, device)]
    for block, arrays in saved[0].arrays.items():
        for state, array in arrays.items():
            np.testing.assert_array_equal(saved[1].arrays[block][state], array)
    for batch, state in zip((host, device), saved, strict=True):
        batch.restore(2, state, state.length, state.prediction_length)
    step(ids[2:, :2], first=2, logits="none")
    step(ids[2:, :1], first=2)
    for batch in (host, device):
        batch.clear(0)
    step(ids[:1, :3])
    step(ids[:1, :1])


def test_drafts_on_a_device(tiny_bundle: Path) -> None:
    prompts = [[3, 4, 5, 6], [7, 8]]
    tokens = []
    for backend in both(tiny_bundle):
        with Runtime(backend) as runtime:
            tokens.append(runtime.generate(prompts, 12, drafts=2))
    assert tokens[0] == tokens[1]


def test_a_decode_step_sends_ids_and_lengths_alone(tiny_bundle: Path) -> None:
    _, backend = both(tiny_bundle)
    batch = backend.batch(2)
    batch.step(np.array([[1, 2, 3], [4, 5, 6]]))
    assert isinstance(backend.memory, StandIn)
    backend.memory.crossed.clear()
    batch.step(np.array([[7], [8]]))
    assert backend.memory.crossed == {"sent": 3 * 2 * 8}  # ids, past lengths, lengths


def test_inputs_are_bound_anew_for_each_run(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As onnxruntime copies an input that only nodes on the CPU read when it is bound."""
    host, device = both(tiny_bundle)
    copies = []

    def copied(self: ProviderMemory, binding: Any, name: str, array: memory.Placed) -> None:
        if name in ("hidden", "cos", "past_lengths", "input_ids"):
            copies.append(self.zeros(array.shape, array.dtype.name))
            self.copy(copies[-1], array)
            array = copies[-1]
        bind(self, binding, name, array)

    bind = ProviderMemory.bind_input
    monkeypatch.setattr(ProviderMemory, "bind_input", copied)
    batches = host.batch(2), device.batch(2)
    for ids in ([[1, 2], [3, 4]], [[5], [6]], [[7], [8]]):
        expected, found = (batch.step(np.array(ids)) for batch in batches)
        np.testing.assert_array_equal(found, expected)


def test_memory_of_a_device() -> None:
    device = ProviderMemory(Provider("cpu"))
    random = np.random.default_rng(0)
    content = random.standard_normal((3, 1, 6, 4)).astype(ml_dtypes.bfloat16)
    cache = device.zeros((3, 1, 6, 4), "bfloat16")
    assert not device.get(cache).any()
    device.put(cache, content)
    np.testing.assert_array_equal(device.get(cache), content)
    row = device.view(cache, slice(1, 2), 3)
    np.testing.assert_array_equal(device.get(row), content[1:2, :, :3])
    device.copy(device.view(cache, slice(2, 3), 3), row)
    content[2, :, :3] = content[1, :, :3]
    np.testing.assert_array_equal(device.get(cache), content)
    device.clear(device.view(cache, slice(0, 2)))
    content[:2] = 0
    np.testing.assert_array_equal(device.get(cache), content)
    with pytest.raises(AssertionError, match="do not lie together"):
        device.view(cache, slice(0, 2), 3)
    hidden, last = device.zeros((2, 3, 5), "float32"), device.zeros((2, 1, 5), "float32")
    values = random.standard_normal((2, 3, 5), dtype=np.float32)
    device.put(hidden, values)
    device.pick(last, hidden, np.array([2, 0]))
    np.testing.assert_array_equal(device.get(last)[:, 0], values[[0, 1], [2, 0]])


def test_a_device_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError("Failed to allocate memory\nfor requested buffer")

    device = ProviderMemory(Provider("cpu"))
    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_shape_and_type", full)
    with pytest.raises(MissingCapabilityError, match=r"no 2,400 bytes left .*allocate memory\);"):
        device.zeros((3, 1, 100, 4), "bfloat16")


def test_what_a_device_clears_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "ZEROS", 24)  # several parts, and a rest
    device = ProviderMemory(Provider("cpu"))
    array = device.zeros((5, 7), "float32")
    device.put(array, np.ones((5, 7)))
    device.clear(device.view(array, slice(1, 4)))
    expected = np.ones((5, 7))
    expected[1:4] = 0
    np.testing.assert_array_equal(device.get(array), expected)


@pytest.mark.parametrize("name", ["tiny", "hybrid"])
def test_cuda_runs_the_graphs_of_the_checkpoints_dtype(
    tiny_bundle: Path, hybrid_bundle: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """With its weights in the dtypes that they ask for, and operators that the provider has."""
    have(monkeypatch, CUDA, CPU)
    models: list[onnx.ModelProto] = []

    class Made:
        def __init__(
            self, graph: bytes, options: Any, providers: list[str],
            provider_options: list[dict[str, str]], **_: Any,
        ) -> None:  # fmt: skip
            assert providers == [CUDA, CPU] and provider_options == [{"use_tf32": "0"}, {}]
            self.model = onnx.load_model_from_string(graph)
            models.append(self.model)

        def get_providers(self) -> list[str]:
            return [CUDA, CPU]

        def get_inputs(self) -> Any:
            kinds = {1: "tensor(float)", 16: "tensor(bfloat16)", 7: "tensor(int64)",
                     6: "tensor(int32)"}  # fmt: skip

            class Value:
                def __init__(self, value: Any) -> None:
                    self.name = value.name
                    self.type = kinds[value.type.tensor_type.elem_type]

            return [Value(value) for value in self.model.graph.input]

    is_hybrid = name == "hybrid"
    bundle = Bundle.open(hybrid_bundle if is_hybrid else tiny_bundle)
    checkpoint = replace(bundle.manifest.checkpoint, dtype="bfloat16")
    bundle.manifest = replace(bundle.manifest, checkpoint=checkpoint)
    device = StandIn()
    monkeypatch.setattr(ort, "InferenceSession", Made)
    backend = OnnxruntimeBackend(bundle, 1, provider="cuda", memory=device)
    assert backend.dtype == "bfloat16" and len(models) > 3
    for block in bundle.blocks:
        session, weights = backend.session(block)
        types = {value.name: value.type for value in session.get_inputs()}
        assert weights and all(types[name] == x.data_type() for name, x in weights.items())
    used, linear = set(), 0
    for model in models[1:]:  # the first one is the probe
        dtypes, nodes = flattened(model)
        for node in nodes:
            operator = ".".join(filter(None, (node.domain, node.op_type)))
            mixed = {dtypes.get(value) for value in (*node.input, *node.output)}
            used |= {operator} if onnx.TensorProto.BFLOAT16 in mixed else set()
            if operator == "com.microsoft.LinearAttention":  # of one dtype, as its kernel asks
                linear += 1
                assert {dtypes[value] for value in node.input} == {onnx.TensorProto.FLOAT}
    assert used <= CUDA_BFLOAT16, used - CUDA_BFLOAT16
    assert "RMSNormalization" in used and (linear > 0) == is_hybrid
    assert all(x.version <= 24 for model in models for x in model.opset_import if not x.domain)


def flattened(model: onnx.ModelProto) -> tuple[dict[str, int], list[onnx.NodeProto]]:
    """Dtypes by name and nodes of the graph with its function bodies inlined."""
    flat = shape_inference.infer_shapes(inliner.inline_local_functions(model)).graph
    values = (*flat.input, *flat.output, *flat.value_info)
    return {x.name: x.type.tensor_type.elem_type for x in values}, list(flat.node)


def test_linear_layers_where_opset_27_is_unknown(
    hybrid_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an older onnxruntime: graphs of opset 24, the same logits but for rounding."""
    ids = np.random.default_rng(1).integers(1, 97, (2, 30))
    bundle = Bundle.open(hybrid_bundle)
    expected = Runtime(OnnxruntimeBackend(bundle, 1, rewrites=False)).forward(ids)
    opsets = []

    class Noted(Session):
        def __init__(self, graph: bytes, *arguments: Any, **options: Any) -> None:
            model = onnx.load_model_from_string(graph)
            opsets.extend(x.version for x in model.opset_import if not x.domain)
            super().__init__(graph, *arguments, **options)

    monkeypatch.setattr(onnxruntime_backend, "reads_opset", lambda version: version < 27)
    monkeypatch.setattr(ort, "InferenceSession", Noted)
    for rewrites in (False, True):
        opsets.clear()
        found = Runtime(OnnxruntimeBackend(bundle, 1, rewrites=rewrites)).forward(ids)
        assert opsets and max(opsets) == 24
        assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 2e-5


def test_linear_layers_on_an_onnxruntime_that_has_none(
    hybrid_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnxruntime_backend, "reads_opset", lambda version: version < 27)
    monkeypatch.setattr(ort, "__version__", "1.24.4")
    line = refused(capsys, hybrid_bundle)
    assert "need onnxruntime 1.25 or newer, found 1.24.4: pip install 'onnxruntime>=1.25'" in line


def test_the_line_for_polygraphy_where_opset_27_is_unknown(
    hybrid_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(hybrid_bundle)
    given = bundle.graph_path("sparse_linear", "float32")
    line = polygraphy_line(bundle, "sparse_linear", "float32", None, tmp_path)
    assert str(given.resolve()) in shlex.split(line)
    monkeypatch.setattr(contrib_linear, "reads_opset", lambda version: version < 27)
    line = polygraphy_line(bundle, "sparse_linear", "float32", None, tmp_path)
    made = tmp_path.resolve() / "sparse_linear_float32.onnx"
    assert str(made) in shlex.split(line)
    assert [x.version for x in onnx.load(made).opset_import if not x.domain] == [24]
    (feeds,) = block_feeds(str(hybrid_bundle), "sparse_linear", "float32", None)
    expected, found = (Session(x, providers=[CPU]).run(None, feeds) for x in (given, made))
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)


def test_validation_of_a_provider(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    have(monkeypatch, CPU)
    for command in ("validate", "bisect"):
        assert main([command, str(tiny_bundle), "--provider", "cuda"]) == 3
        assert "provider cuda: " in capsys.readouterr().err
        assert main([command, str(tiny_bundle), "--provider", "cuda", "--backend", "graph"]) == 2
        assert "for the backend onnxruntime, not for graph" in capsys.readouterr().err
    bundle = Bundle.open(tiny_bundle)
    with pytest.raises(GlmTrtError, match="runs this bundle in bfloat16, not in float32"):
        open_subject(bundle, "onnxruntime", "float32", "cuda")
    assert open_subject(bundle, "onnxruntime", "float32", "cpu").dtype == "float32"
    described = describe_backend(bundle, "onnxruntime", "bfloat16", "cuda")
    assert described["description"].startswith("onnxruntime's provider cuda")


def test_which_opsets_are_read() -> None:
    assert contrib_linear.reads_opset(21) and not contrib_linear.reads_opset(1000)
