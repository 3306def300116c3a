"""Bundles of FP8 and NVFP4 checkpoints: onnxruntime against transformers on what the bytes mean."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from checkpoints import make_oracle, reload_oracle, save
from onnx import helper
from quantize_checkpoint import quantize_checkpoint

import glm_trt
from glm_trt.engines.python import large_weights, onnxruntime_backend
from glm_trt.engines.python.cut_graph import CutGraph
from glm_trt.engines.python.large_weights import keep_stored
from glm_trt.engines.python.onnxruntime_backend import OnnxruntimeBackend
from glm_trt.engines.python.runtime import Runtime
from glm_trt.export import trace
from glm_trt.export.bundle.format import Block
from glm_trt.export.bundle.read import Bundle
from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint
from glm_trt.model.checkpoint import bindings as b
from glm_trt.model.checkpoint.generate import CheckpointOptions, make_checkpoint
from glm_trt.model.checkpoint.read import Checkpoint
from glm_trt.model.checkpoint.safetensors_file import TensorFiles
from glm_trt.plugins.common.contract import StackedExperts
from glm_trt.plugins.folders import CONTRACTS
from glm_trt.validate.running.cases import CaseOptions
from glm_trt.validate.validation import ValidationOptions, validate_bundle

pytestmark = pytest.mark.usefixtures("shared_walks")
TINY = Path(__file__).parents[2] / "data" / "glm-5.1-tiny"
QUANTISED = TINY.parent / "quantised"
PRECISIONS = ("fp8", "nvfp4")
FLOAT32 = ExportOptions(dtypes=("float32",))  # what onnxruntime runs
SHORT = ValidationOptions(cases=CaseOptions(longest=4))
# The graphs in plain onnxruntime decode every weight anew in each step.
LONG = pytest.mark.slow


def relative(found: Any, expected: Any) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="module", params=PRECISIONS)
def place(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """`c` the quantised tiny checkpoint, `d` what it means, `b` its bundle."""
    place = tmp_path_factory.mktemp(request.param)
    quantize_checkpoint(TINY, place / "c", request.param)
    quantize_checkpoint(TINY, place / "d", request.param, dequantized=True)
    export_checkpoint(place / "c", place / "b", FLOAT32)
    return place


@pytest.mark.parametrize(("length", "tokens"), [(4, 2), pytest.param(60, 20, marks=LONG)])
def test_logits_and_tokens_equal_the_dequantised_model(
    place: Path, length: int, tokens: int
) -> None:
    oracle = reload_oracle(place / "d")
    ids = torch.randint(0, 2048, (2, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = oracle(ids, use_cache=False).logits.numpy()
    continued = oracle.generate(ids[:1, :3], max_new_tokens=tokens, do_sample=False)[0, 3:].tolist()
    for rewrites in (True, False):  # experts one by one, and the graphs in plain onnxruntime
        backend = OnnxruntimeBackend(Bundle.open(place / "b"), rewrites=rewrites)
        with Runtime(backend) as runtime:
            assert relative(runtime.forward(ids.numpy()), expected) < 1e-5, rewrites
            sequence = backend.batch(2)
            steps = [sequence.step(piece) for piece in np.split(ids.numpy(), length, axis=1)]
            assert relative(np.concatenate(steps, axis=1), expected) < 1e-5, rewrites
            assert runtime.generate(ids[:1, :3].numpy(), tokens, eos_token_ids=()) == [continued]


def test_products_in_slices(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows of the narrow weights at a time, partial blocks at the end included."""
    ids = np.random.default_rng(0).integers(0, 2048, (1, 30))
    with glm_trt.load(place / "b") as runtime:
        expected = runtime.forward(ids)
    monkeypatch.setattr(large_weights, "SLICE_NUMBERS", 1 << 12)
    made: list[int] = []
    slices = large_weights._sliced_narrow_product

    def counted(*arguments: Any) -> Any:
        made.append(len(slices(*arguments)))
        return slices(*arguments)

    monkeypatch.setattr(large_weights, "_sliced_narrow_product", counted)
    with glm_trt.load(place / "b") as runtime:
        assert relative(runtime.forward(ids), expected) < 1e-6
    assert max(made) > 10


def test_only_experts_that_are_reached_are_read(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with glm_trt.load(place / "b") as runtime:
        assert isinstance(runtime.backend, OnnxruntimeBackend)
        block = next(x for x in runtime.bundle.blocks if x.kind.startswith("sparse"))
        read: set[str] = set()
        tensor = TensorFiles.tensor

        def recorded(files: TensorFiles, name: str) -> Any:
            read.add(name)
            return tensor(files, name)

        monkeypatch.setattr(TensorFiles, "tensor", recorded)
        inputs = block_inputs(runtime.bundle, block, 3)
        outputs = runtime.backend.run_block(block, inputs)
        reached = {str(expert) for expert in np.unique(outputs["expert_indices"])}
        assert {name.split(".")[5] for name in read} == reached and len(reached) < 16
        # Mapped: what the session is given is the file's own memory.
        stacked = runtime.backend._weights[block.name]["mlp.experts.gate_up_proj"]
        (gate, _), name = stacked.modules(3, 2), stacked.binding.tensors[0].format(expert=3)
        assert np.shares_memory(gate, tensor(runtime.bundle.weights, name))


def block_inputs(bundle: Bundle, block: Block, length: int) -> dict[str, Any]:
    config, generator = bundle.config, np.random.default_rng(0)
    angles = generator.uniform(0, 6, (1, length, config.qk_rope_head_dim // 2))
    states = {x.name: np.zeros(x.shape(1, length), np.float32)
              for x in bundle.states(block)}  # fmt: skip
    return states | {
        "hidden": generator.standard_normal((1, length, config.hidden_size)).astype(np.float32),
        "cos": np.cos(angles).astype(np.float32), "sin": np.sin(angles).astype(np.float32),
        "past_lengths": np.zeros(1, np.int64),
    }  # fmt: skip


def test_modelopt_file_comes_into_the_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bundle knows how its weights are stored where `config.json` does not say so."""
    quantize_checkpoint(TINY, tmp_path / "c", "nvfp4")
    path = tmp_path / "c" / "config.json"
    config = json.loads(path.read_text())
    ignored = config.pop("quantization_config")["ignore"]
    modelopt = {"quant_algo": "NVFP4", "exclude_modules": ignored}
    path.write_text(json.dumps(config))
    (tmp_path / "c" / "hf_quant_config.json").write_text(json.dumps({"quantization": modelopt}))
    assert export_checkpoint(tmp_path / "c", tmp_path / "b", FLOAT32)
    assert Bundle.open(tmp_path / "b").config == Checkpoint.open(tmp_path / "c").config
    assert not export_checkpoint(tmp_path / "c", tmp_path / "b", FLOAT32)
    modelopt["exclude_modules"] += ["model.embed_tokens"]
    (tmp_path / "c" / "hf_quant_config.json").write_text(json.dumps({"quantization": modelopt}))
    # Any graph will do: that it is exported anew is what matters.
    monkeypatch.setattr(trace, "trace_block", lambda *_: onnx.ModelProto())
    assert export_checkpoint(tmp_path / "c", tmp_path / "b", FLOAT32)


@pytest.mark.parametrize(
    "name",
    [
        "mixed-precision",
        *(pytest.param(name, marks=LONG) for name in (
            "nvfp4-default", "nvfp4-experts-only", "nvfp4-mlp-only", "fp8-by-tensor",
            "compressed-tensors-fp8-block", "compressed-tensors-fp8-by-tensor")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("materialize", [False, pytest.param(True, marks=LONG)])
def test_bundles_of_what_others_quantised(
    tmp_path: Path, name: str, materialize: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The logits that the tool's own dequantisation gives, experts mapped or not; and validated."""
    options = replace(FLOAT32, materialize=materialize)
    export_checkpoint(QUANTISED / name, tmp_path / "b", options)
    expected = np.load(QUANTISED / name / "expected.npz")
    for large in (1 << 26, 1 << 4):
        monkeypatch.setattr(b, "LARGE", large)
        with glm_trt.load(tmp_path / "b") as runtime:
            assert relative(runtime.forward(expected["input_ids"]), expected["logits"]) < 1e-5
    monkeypatch.undo()
    report = validate_bundle(tmp_path / "b", SHORT)
    assert report["ok"], report


def test_materialised_bundle_is_the_same(place: Path, tmp_path: Path) -> None:
    """Stacked experts in one tensor: the same views of the same bytes."""
    export_checkpoint(place / "c", tmp_path / "m", replace(FLOAT32, materialize=True))
    ids = np.random.default_rng(0).integers(0, 2048, (1, 20))
    with glm_trt.load(place / "b") as runtime, glm_trt.load(tmp_path / "m") as materialised:
        np.testing.assert_array_equal(runtime.forward(ids), materialised.forward(ids))


@pytest.mark.parametrize("longest", [4, pytest.param(160, marks=LONG)])
def test_validation_passes_and_finds_a_wrong_scale(
    place: Path, monkeypatch: pytest.MonkeyPatch, longest: int
) -> None:
    options = ValidationOptions(cases=CaseOptions(longest=longest))
    report = validate_bundle(place / "b", options)
    assert report["ok"], report
    bound = b.bound_tensor

    def wrong(binding: b.Binding, *rest: Any) -> Any:
        array = bound(binding, *rest)
        if binding.tensors[0].startswith("model.layers.2.self_attn.o_proj.weight_scale"):
            array = array.copy()
            array.reshape(-1)[0] += 8 if array.dtype == np.int8 else array.reshape(-1)[0]  # doubled
        return array

    monkeypatch.setattr(onnxruntime_backend, "bound_tensor", wrong)
    report = validate_bundle(place / "b", options)
    assert [block["name"] for block in report["blocks"] if not block["ok"]] == ["layer.2"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_large_weights_stay_as_they_are_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """Embedding, head and experts, stored as one tensor an expert or stacked."""
    oracle = make_oracle(num_hidden_layers=2).to(dtype)
    for name, original in (("c", True), ("s", False)):
        save(oracle, tmp_path / name, save_original_format=original)
        export_checkpoint(tmp_path / name, tmp_path / f"b{name}", FLOAT32)
    ids = np.random.default_rng(0).integers(0, 97, (2, 9))
    with glm_trt.load(tmp_path / "bc") as runtime:
        expected = runtime.forward(ids)
    monkeypatch.setattr(onnxruntime_backend, "LARGE", 1000)
    monkeypatch.setattr(b, "LARGE", 1000)
    monkeypatch.setattr(large_weights, "SLICE_NUMBERS", 500)
    for name in ("c", "s"):
        with glm_trt.load(tmp_path / f"b{name}") as runtime:
            assert isinstance(runtime.backend, OnnxruntimeBackend)
            assert isinstance(runtime.backend._sessions["sparse_indexed"], CutGraph)
            kind = {torch.float32: "float", torch.bfloat16: "bfloat16", torch.float16: "float16"}
            assert runtime.backend._inputs["head"]["lm_head.weight"] == f"tensor({kind[dtype]})"
            assert (
                runtime.backend._inputs["embedding"]["embed_tokens.weight"]
                == f"tensor({kind[dtype]})"
            )
            assert relative(runtime.forward(ids), expected) < 1e-6
            assert runtime.generate(ids, 5) == runtime.generate(ids, 5)


def test_weights_of_other_uses_stay_float32() -> None:
    """A case each that `keep_stored` leaves alone."""
    shape = [6, 4]
    w = helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, shape)
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 6])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    for nodes in (
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [helper.make_node("Gemm", ["x", "w"], ["y"])],
        [helper.make_node("Add", ["w", "w"], ["y"])],
    ):
        model = helper.make_model(helper.make_graph(nodes, "g", [x, w], [y]))
        assert keep_stored(model, {"w": "bfloat16"}) is model


def test_hybrid_in_fp8(tmp_path: Path) -> None:
    """Gated DeltaNet's projections are quantised too; validated block by block."""
    make_checkpoint(CheckpointOptions("glm-5.1-hybrid", precision="fp8"), tmp_path / "c")
    export_checkpoint(tmp_path / "c", tmp_path / "b", FLOAT32)
    report = validate_bundle(tmp_path / "b", SHORT)
    assert report["ok"], report
    assert {"dense_linear_fp8", "sparse_full_fp8", "sparse_linear_fp8"} < {
        block["kind"] for block in report["blocks"]
    }


def test_expert_session_takes_what_is_stored() -> None:
    """The three forms of an expert's graph are valid models."""
    from glm_trt.engines.python.cut_graph import expert_model

    experts = [c for c in CONTRACTS.values() if isinstance(c.form, StackedExperts)]
    assert len(experts) == 3
    for contract in experts:
        model = expert_model(contract, onnx.TensorProto.BFLOAT16)
        onnx.checker.check_model(model, full_check=True)
        ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
