"""FP8 and NVFP4 checkpoints: what the config's lists say, what is stored, and the eager model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import SHAPES, make_oracle, reload_oracle, save
from quantize_checkpoint import quantize_checkpoint
from safetensors.torch import load_file, save_file

from glm_trt.model.checkpoint import bindings as b
from glm_trt.model.checkpoint.read import Checkpoint
from glm_trt.model.checkpoint.weights import load_model
from glm_trt.model.config import ModelConfig, block_kind
from glm_trt.model.errors import CheckpointError, ConfigError
from glm_trt.model.operators import EagerOperators
from glm_trt.model.quantization import Quantization
from glm_trt.model.quantization_config import check_supported
from glm_trt.plugins.operators import RegisteredOperators

TINY = Path(__file__).parent.parent / "data" / "glm-5.1-tiny"
PRECISIONS = ("fp8", "nvfp4")


def logits(directory: Path, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    model = load_model(Checkpoint.open(directory), **options)
    states = model.empty_states(*ids.shape)
    return model(ids, states, torch.zeros(len(ids), dtype=torch.int64))[0]


def oracle_logits(directory: Path, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return reload_oracle(directory)(ids, use_cache=False).logits


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_logits_equal_those_of_the_dequantised_model(
    tmp_path: Path, precision: str, record_property: Any
) -> None:
    quantize_checkpoint(TINY, tmp_path / "q", precision)
    quantize_checkpoint(TINY, tmp_path / "d", precision, dequantized=True)
    ids = torch.randint(0, 2048, (2, 90), generator=torch.Generator().manual_seed(0))
    expected = logits(tmp_path / "d", ids)
    for options in ({}, {"absorbed": True}, {"operators": RegisteredOperators()}):
        assert relative(logits(tmp_path / "q", ids, **options), expected) < 1e-5, options
    # Up to `index_topk` tokens every position is selected, so transformers' choice among equal
    # scores, which is not ours, does not matter.
    ids = ids[:, :64]
    expected = oracle_logits(tmp_path / "d", ids)
    assert relative(logits(tmp_path / "q", ids), expected) < 1e-5
    # What quantising itself costs; reported, and sane.
    cost = relative(expected, oracle_logits(TINY, ids))
    record_property(f"{precision} against the original", cost)
    print(f"{precision}: logits differ from the original's by {cost:.3f}")
    assert 1e-3 < cost < 0.2


@pytest.mark.parametrize("shape", ["odd_sizes", "attention_bias", "shared_experts"])
def test_partial_blocks_at_the_edges(tmp_path: Path, shape: str) -> None:
    """Rows and columns that are no multiples of 128, some above it."""
    sizes = {"odd_sizes": dict(intermediate_size=275, hidden_size=131)}.get(shape, {})
    oracle = make_oracle(**SHAPES[shape] | sizes)
    save(oracle, tmp_path / "c")
    for name, dequantized in (("q", False), ("d", True)):
        quantize_checkpoint(tmp_path / "c", tmp_path / name, "fp8", dequantized=dequantized)
    ids = torch.randint(0, 97, (2, 20))
    expected = oracle_logits(tmp_path / "d", ids)
    assert relative(logits(tmp_path / "q", ids), expected) < 1e-5


@pytest.mark.parametrize("precision", PRECISIONS)
def test_large_weights_are_read_where_they_are(
    tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The eager model keeps no copy of experts, embedding and head, and computes the same."""
    quantize_checkpoint(TINY, tmp_path / "q", precision)
    ids = torch.randint(0, 2048, (1, 12))
    expected = {path: logits(path, ids) for path in (tmp_path / "q", TINY)}
    monkeypatch.setattr(b, "LARGE", 1 << 12)
    for path, held in expected.items():
        model = load_model(Checkpoint.open(path))
        names = [name for name, _ in model.named_parameters()]
        assert not any(name.endswith(("gate_up_proj", "experts.down_proj")) for name in names)
        assert not any("lm_head" in name or "embed_tokens" in name for name in names)
        assert sum("input_layernorm" in name for name in names) == 6
        torch.testing.assert_close(logits(path, ids), held, rtol=1e-5, atol=1e-5)


def test_float64_is_exact(tmp_path: Path) -> None:
    """The yardstick dequantises in its own precision: no float32 product in it."""
    quantize_checkpoint(TINY, tmp_path / "q", "fp8")
    ids = torch.randint(0, 2048, (1, 9))
    exact = logits(tmp_path / "q", ids, dtype="float64")
    assert exact.dtype == torch.float64
    assert 1e-9 < relative(logits(tmp_path / "q", ids).double(), exact) < 2e-6


def test_activations_rounded_to_e4m3() -> None:
    """Against DeepSeek's definition, group by group; the last group is partial."""
    x = torch.randn(3, 300, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [[1e-4], [1.0], [300.0]]
    )
    weight = torch.eye(300).to(torch.float8_e4m3fn).view(torch.int8)
    scale = torch.ones(3, 3)
    operators = EagerOperators()
    y = operators.fp8_linear(x, weight, scale, quantize_activations=1)
    for first in (0, 128, 256):
        group = x[:, first : first + 128]
        step = group.abs().amax(1, keepdim=True) / 448
        expected = (group / step).to(torch.float8_e4m3fn).float() * step
        torch.testing.assert_close(y[:, first : first + 128], expected)
    assert torch.equal(operators.fp8_linear(x, weight, scale, quantize_activations=0), x)
    assert relative(y, x) > 0.01


def test_modules_that_stay_whole() -> None:
    fp8 = Quantization("fp8", excluded=("model.layers.3.self_attn.indexers_proj",))
    layer = "model.layers.3."
    for name in ("self_attn.q_a_proj", "self_attn.indexer.wk", "mlp.experts.7.down_proj",
                 "linear_attn.in_proj_qkvz"):  # fmt: skip
        assert fp8.narrows(layer + name)
    for name in ("self_attn.indexer.weights_proj", "mlp.gate", "eh_proj", "input_layernorm",
                 "linear_attn.in_proj_ba"):  # fmt: skip
        assert not fp8.narrows(layer + name)
    assert not fp8.narrows("lm_head") and not fp8.narrows("model.embed_tokens")
    assert not Quantization().narrows(layer + "self_attn.q_a_proj")
    for entry in ("model.layers.3", "self_attn", "*self_attn*", "q_a_proj", "re:.*attn", "*.3.*"):
        of = Quantization("nvfp4", excluded=(entry,))
        assert not of.narrows(layer + "self_attn.q_a_proj"), entry
        assert of.narrows("model.layers.30.mlp.down_proj"), entry


def test_layers_that_are_quantised_otherwise_are_another_kind(tmp_path: Path) -> None:
    excluded = ("model.layers.2.self_attn.*", "model.layers.3", "model.layers.3.*")
    quantize_checkpoint(TINY, tmp_path / "q", "nvfp4", excluded=excluded)
    quantize_checkpoint(TINY, tmp_path / "d", "nvfp4", excluded=excluded, dequantized=True)
    config = Checkpoint.open(tmp_path / "q").config
    kinds = [block_kind(config, i) for i in range(6)]
    assert kinds == ["dense_indexed_nvfp4", "sparse_indexed_nvfp4", "sparse_indexed_nvfp4_2",
                     "sparse_indexed", "sparse_indexed_nvfp4", "sparse_indexed_nvfp4"]  # fmt: skip
    ids = torch.randint(0, 2048, (1, 30))
    assert relative(logits(tmp_path / "q", ids), oracle_logits(tmp_path / "d", ids)) < 1e-5


def test_modelopt_file_beside_the_config(tmp_path: Path) -> None:
    quantize_checkpoint(TINY, tmp_path / "q", "nvfp4")
    path = tmp_path / "q" / "config.json"
    data = json.loads(path.read_text())
    of = data.pop("quantization_config")
    path.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=r"uint8|expected"):
        Checkpoint.open(tmp_path / "q")
    modelopt = {"producer": {"name": "modelopt"}, "quantization": {
        "quant_algo": "NVFP4", "group_size": 16, "exclude_modules": of["ignore"]}}  # fmt: skip
    (tmp_path / "q" / "hf_quant_config.json").write_text(json.dumps(modelopt))
    checkpoint = Checkpoint.open(tmp_path / "q")
    assert checkpoint.config.quantization.precision == "nvfp4"
    assert checkpoint.config.quantization.excluded == tuple(of["ignore"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight_block_size": [64, 128]}, r"weight_block_size: expected \[128, 128\]"),
        ({"weight_block_size": "128"}, "weight_block_size: expected two sizes"),
        ({"fmt": "e5m2"}, "fmt 'e5m2'"),
        ({"modules_to_not_convert": "lm_head"}, "modules_to_not_convert: .*list of module names"),
        ({"ignore": ["re:(.*"]}, r"regular expression after re: .*found 're:\(\.\*'"),
    ],
)
def test_configs_that_cannot_be(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    quantize_checkpoint(TINY, tmp_path / "q", "fp8")
    path = tmp_path / "q" / "config.json"
    data = json.loads(path.read_text())
    data["quantization_config"] |= change
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=words):
        Checkpoint.open(tmp_path / "q")


def test_compressed_tensors_can_only_be_planned_for(tmp_path: Path) -> None:
    config = json.loads((TINY / "config.json").read_text())
    of = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}
    read = ModelConfig.from_dict(config | {"quantization_config": of})
    with pytest.raises(ConfigError, match="planned for only"):
        check_supported(read.quantization, "config.json")


def _without(tensors: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in tensors.items() if key != name}


def _whole(tensors: dict[str, Any], module: str) -> dict[str, Any]:
    """FP8 → BF16."""
    rest = _without(tensors, f"{module}.weight_scale_inv")
    return rest | {f"{module}.weight": tensors[f"{module}.weight"].bfloat16()}


Q_A = "model.layers.0.self_attn.q_a_proj"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: _without(t, f"{Q_A}.weight_scale_inv"), "missing.*q_a_proj.weight_scale_inv"),
        (lambda t: t | {f"{Q_A}.weight": t[f"{Q_A}.weight"].float()},
         "q_a_proj.weight: expected dtype float8_e4m3fn.*_scale_inv is stored.*found float32"),
        (lambda t: t | {f"{Q_A}.weight_scale_inv": torch.ones(2, 2)},
         r"weight_scale_inv: expected shape \(1, 2\).*found \(2, 2\)"),
        (lambda t: t | {f"{Q_A}.weight_scale_inv": torch.ones(96)},
         r"weight_scale_inv: expected shape \(1, 2\).*found \(96,\) \(one for each row\)"),
        (lambda t: t | {f"{Q_A}.weight_scale_inv": torch.ones(1, 2).to(torch.uint8)},
         r"weight_scale_inv: expected dtype float32 .*found uint8 \(MXFP8\)"),
        (lambda t: t | {f"{Q_A}.weight_scale": torch.ones(1, 2)},
         "missing its scale: .*found .*weight_scale_inv and .*weight_scale"),
        (lambda t: t | {"lm_head.weight": t["lm_head.weight"].to(torch.float8_e4m3fn)},
         "lm_head.weight: expected dtype float32 .*read whole only.*found float8_e4m3fn"),
        (lambda t: _whole(t, "model.layers.2.mlp.experts.3.up_proj"),
         "experts.3.up_proj: expected all experts of a layer stored alike; .*this is whole"),
    ],
)  # fmt: skip
def test_files_that_contradict_the_config(tmp_path: Path, change: Any, words: str) -> None:
    quantize_checkpoint(TINY, tmp_path / "q", "fp8")
    path = tmp_path / "q" / "model.safetensors"
    save_file(change(load_file(path)), path)
    with pytest.raises(CheckpointError, match=words):
        Checkpoint.open(tmp_path / "q")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_bytes_are_bound_as_they_are(tmp_path: Path, precision: str) -> None:
    quantize_checkpoint(TINY, tmp_path / "q", precision)
    checkpoint = Checkpoint.open(tmp_path / "q")
    stored = load_file(tmp_path / "q" / "model.safetensors")
    bound = {x.name: b.bound_tensor(x, checkpoint, "float32")
             for x in b.layer_bindings(checkpoint.config, checkpoint, 1)}  # fmt: skip
    prefix = "model.layers.1."
    for part in checkpoint.config.quantization.parts((32, 32)):  # what graphs take is what is bound
        name = f"self_attn.o_proj{part.suffix}"
        assert (b.parameter_dtype(name) == "float32") == (bound[name].dtype == np.float32)

    def same(array: Any, tensor: torch.Tensor) -> bool:
        kind = torch.float32 if tensor.dtype == torch.float32 else torch.int8
        return np.array_equal(array.reshape(-1), tensor.view(kind).numpy().reshape(-1))

    for name in stored:
        part = name.removeprefix(prefix)
        narrow = name.startswith(prefix + "self_attn.o_proj") and not name.endswith("input_scale")
        if narrow:
            assert same(bound[part], stored[name]), name
            assert np.shares_memory(bound[part], checkpoint.tensor(name))  # mapped, not copied
    for expert in (0, 15):
        of = f"{prefix}mlp.experts.{expert}."
        for suffix in {"fp8": ("", "_scale_inv"), "nvfp4": ("", "_scale", "_scale_2")}[precision]:
            both = torch.cat([stored[f"{of}{m}_proj.weight{suffix}"].reshape(-1).view(torch.uint8)
                              for m in ("gate", "up")])  # fmt: skip
            array = bound[f"mlp.experts.gate_up_proj{suffix}"][expert]
            assert array.tobytes() == both.numpy().tobytes()
            down = stored[f"{of}down_proj.weight{suffix}"]
            assert same(bound[f"mlp.experts.down_proj{suffix}"][expert], down)
