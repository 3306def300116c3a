"""Each rewrite: when it applies, and that it computes what the function body computes."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from checkpoints import SHAPES, make_oracle, save
from hybrids import HYBRIDS, make_hybrid, save_hybrid
from numpy.typing import NDArray

from glm_trt.engines.python import rewrites as r
from glm_trt.engines.python.cut_graph import CutGraph, MappedExperts
from glm_trt.engines.python.onnxruntime_backend import OnnxruntimeBackend
from glm_trt.engines.python.runtime import Runtime
from glm_trt.engines.python.values import ort_value
from glm_trt.export.bundle.read import Bundle
from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint
from glm_trt.model.checkpoint.bindings import Binding
from glm_trt.model.operators import EagerOperators
from glm_trt.plugins.bodies import function_bodies
from glm_trt.plugins.causal_conv_with_state.rewrite import FEW_TOKENS
from glm_trt.plugins.common.onnx_text import OPSET
from glm_trt.plugins.moe_experts.rewrite import PARTED_DOWN, PARTED_GATE_UP

TOLERANCE = 1e-6
EXPERTS, HIDDEN, WIDTH, TOP_K = 8, 20, 12, 3
ROUTING: dict[str, Any] = dict(
    top_k=TOP_K, n_group=1, topk_group=1, norm_topk_prob=1, routed_scaling_factor=2.5
)
GATE_UP, DOWN = (EXPERTS, 2 * WIDTH, HIDDEN), (EXPERTS, HIDDEN, WIDTH)


def relative(found: Any, expected: Any) -> float:
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-30))


def make_model(
    nodes: list[onnx.NodeProto], inputs: dict[str, Any], outputs: dict[str, int]
) -> onnx.ModelProto:
    """`inputs`: name → shape, or (element type, shape)."""
    values = []
    for name, shape in inputs.items():
        kind, shape = shape if isinstance(shape[0], int) and len(shape) == 2 and isinstance(
            shape[1], (tuple, list)
        ) else (onnx.TensorProto.FLOAT, shape)  # fmt: skip
        values.append(onnx.helper.make_tensor_value_info(name, kind, shape))
    results = [onnx.helper.make_tensor_value_info(n, kind, None) for n, kind in outputs.items()]
    graph = onnx.helper.make_graph(nodes, "test", values, results)
    domains = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid("glm_trt", 1)]
    functions = list(function_bodies().values())
    return onnx.helper.make_model(graph, opset_imports=domains, functions=functions, ir_version=10)


def moe_model(weight_type: int = onnx.TensorProto.FLOAT, **routing: Any) -> onnx.ModelProto:
    route = onnx.helper.make_node(
        "MoeRouting", ["logits", "bias"], ["indices", "weights"], domain="glm_trt",
        **(ROUTING | routing),
    )  # fmt: skip
    experts = onnx.helper.make_node(
        "MoeExperts", ["x", "indices", "weights", "gate_up", "down"], ["y"], domain="glm_trt"
    )
    inputs = {
        "logits": ("T", EXPERTS), "bias": (EXPERTS,), "x": ("T", HIDDEN),
        "gate_up": (weight_type, GATE_UP), "down": (weight_type, DOWN),
    }  # fmt: skip
    outputs = {"y": 1, "indices": onnx.TensorProto.INT32, "weights": 1}
    return make_model([route, experts], inputs, outputs)


def run(model: onnx.ModelProto, feeds: dict[str, Any]) -> list[NDArray[Any]]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    wanted = {value.name for value in session.get_inputs()}
    return session.run(None, {k: v for k, v in feeds.items() if k in wanted})


class Stacked:
    """A source whose tensors are stacked experts or those of one expert."""

    def __init__(self, **tensors: NDArray[Any]) -> None:
        self.tensors = tensors

    def tensor(self, name: str) -> NDArray[Any]:
        return self.tensors[name]


def parted(feeds: dict[str, Any], parts: int) -> dict[str, Any]:
    source = Stacked(**{name: feeds[name] for name in ("gate_up", "down")})
    arranged = {
        name + suffix: r.PREPARED[suffix](Binding(name, (name,), feeds[name].shape), source, parts)
        for name, suffix in (("gate_up", PARTED_GATE_UP), ("down", PARTED_DOWN))
    }
    return feeds | arranged


def moe_feeds(tokens: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(seed)
    feeds = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in {
            "logits": (tokens, EXPERTS), "bias": (EXPERTS,), "x": (tokens, HIDDEN),
            "gate_up": GATE_UP, "down": DOWN,
        }.items()
    }  # fmt: skip
    feeds["bias"] *= 0.1
    return feeds


def op_types(model: onnx.ModelProto) -> list[str]:
    return [f"{node.domain}:{node.op_type}".rstrip("_0123456789") for node in model.graph.node]


@pytest.mark.parametrize("parts", [1, 2, 3, 12])
@pytest.mark.parametrize("tokens", [1, 2, 7, 70])
@pytest.mark.parametrize("case", ["random", "ties", "one_choice", "large", "not_normalised"])
def test_fused_experts_equal_the_body(case: str, tokens: int, parts: int) -> None:
    model = moe_model(norm_topk_prob=int(case != "not_normalised"))
    feeds = moe_feeds(tokens)
    if case == "ties":
        feeds["logits"][:], feeds["bias"][:] = 0.5, 0
    if case == "one_choice":
        feeds["bias"][-TOP_K:] += 10
    if case == "large":  # gates far into both ends of the sigmoid, weights far apart
        feeds["x"] *= 1e3
        feeds["logits"] *= 8
    fused = r.rewrite(model, parts, ["moe_experts"])
    assert op_types(fused) == ["glm_trt:MoeRouting", "glm_trt.cpu:MoeExperts"]
    assert op_types(model) == ["glm_trt:MoeRouting", "glm_trt:MoeExperts"]
    assert {value.name for value in fused.graph.input} >= {
        "gate_up" + PARTED_GATE_UP,
        "down" + PARTED_DOWN,
    }
    expected, indices, _ = run(model, feeds)
    found, same, _ = run(fused, parted(feeds, parts))
    assert (indices == same).all()
    assert relative(found, expected) < TOLERANCE
    if case == "random" and tokens == 70:
        assert set(indices.ravel()) == set(range(EXPERTS))


@pytest.mark.parametrize("weights", [[0, 0, 0], [0, 1, 0], [1e-38, 2, 1e-30], [1e-20] * 3])
def test_fused_experts_of_vanishing_weights(weights: list[float]) -> None:
    model = moe_model()
    fused = r.rewrite(model, 2, ["moe_experts"])
    for each in (model, fused):  # the routing's outputs become inputs
        del each.graph.node[0]
        del each.graph.output[1:]
        each.graph.input.extend(
            [
                onnx.helper.make_tensor_value_info("indices", 6, ("T", TOP_K)),
                onnx.helper.make_tensor_value_info("weights", 1, ("T", TOP_K)),
            ]
        )
    feeds = moe_feeds(2) | {
        "indices": np.array([[7, 0, 3], [1, 2, 6]], np.int32),
        "weights": np.array([weights, [0.3, 0.5, 0.2]], np.float32),
    }
    (expected,), (found,) = run(model, feeds), run(fused, parted(feeds, 2))
    assert np.isfinite(found).all()
    for row in range(2):
        assert relative(found[row], expected[row]) < TOLERANCE or not any(weights)
    assert any(weights) or not found[0].any()


def test_a_cut_graph_is_the_definition() -> None:
    """Also where a token has an expert twice; and it gives what was made before the experts."""
    node = onnx.helper.make_node
    given = {"x": ("T", HIDDEN), "indices": (onnx.TensorProto.INT32, ("T", 2)), "weights": ("T", 2)}
    model = make_model(
        [
            *(node("Identity", [f"{name}_given"], [name]) for name in given),
            node("Neg", ["x"], ["early"]),
            node("MoeExperts", [*given, "gate_up", "down"], ["y"], domain="glm_trt"),
            node("Neg", ["y"], ["late"]),
        ],
        {f"{name}_given": shape for name, shape in given.items()}
        | {"gate_up": GATE_UP, "down": DOWN},
        {"x": 1, "indices": onnx.TensorProto.INT32, "weights": 1, "y": 1, "early": 1, "late": 1},
    )
    feeds = moe_feeds(3)
    feeds |= {
        "x_given": feeds["x"], "weights_given": np.array([[1, 2], [3, 4], [5, 6]], np.float32),
        "indices_given": np.array([[4, 4], [0, 4], [7, 7]], np.int32),
    }  # fmt: skip
    session = CutGraph(
        model, onnx.TensorProto.FLOAT, lambda m: ort.InferenceSession(m.SerializeToString())
    )
    binding = session.io_binding()
    for name in ("gate_up", "down"):
        stored = Stacked(**{name: feeds[name]})
        experts = MappedExperts(Binding(name, (name,), feeds[name].shape), stored)
        binding.bind_ortvalue_input(name, experts)
    for value in session.get_inputs():
        binding.bind_ortvalue_input(value.name, ort_value(feeds[value.name]))
    for value in session.get_outputs():
        binding.bind_output(value.name)
    session.run_with_iobinding(binding)
    names = [value.name for value in session.get_outputs()]
    assert {"early", "late"} <= set(names)
    found = {n: v.numpy() for n, v in zip(names, binding.get_outputs(), strict=True)}
    assert np.array_equal(found["early"], -feeds["x"])
    of = ("x", "indices_given", "weights_given", "gate_up", "down")
    expected = EagerOperators().moe_experts(*(torch.from_numpy(feeds[name]) for name in of))
    assert relative(found["late"], -expected.numpy()) < TOLERANCE


def test_experts_stay_where_no_case_applies() -> None:
    for model, parts in (
        (moe_model(routed_scaling_factor=0.0), 2),
        (moe_model(routed_scaling_factor=-1.0), 2),
        (moe_model(onnx.TensorProto.FLOAT16), 2),
        (moe_model(), 5),
    ):
        assert r.rewrite(model, parts, ["moe_experts"]) is model
    elsewhere = moe_model()
    elsewhere.graph.node[1].input[1] = "other"
    twice = moe_model()
    twice.graph.node.add(op_type="Identity", input=["down"], output=["kept"])
    dynamic = moe_model()
    dynamic.graph.input[4].type.tensor_type.shape.dim[0].dim_param = "E"
    for model in (elsewhere, twice, dynamic):
        assert r.rewrite(model, 2, ["moe_experts"]) is model


@pytest.mark.parametrize("norm", [0, 1])
def test_ungrouped_routing_is_the_same_bit_for_bit(norm: int) -> None:
    for groups in (1, 4):
        model = moe_model(n_group=groups, topk_group=groups, norm_topk_prob=norm)
        routed = r.rewrite(model, 2, ["moe_routing"])
        assert op_types(routed) == ["glm_trt.cpu:MoeRouting", "glm_trt:MoeExperts"]
        for tokens in (1, 9):
            feeds = moe_feeds(tokens)
            feeds["logits"][0, 2:5] = feeds["logits"][0].max()  # ties go to the smaller expert
            feeds["bias"][2:5] = feeds["bias"].max()
            for found, expected in zip(run(routed, feeds), run(model, feeds), strict=True):
                assert found.dtype == expected.dtype and (found == expected).all()


def test_grouped_routing_stays() -> None:
    model = moe_model(n_group=4, topk_group=2)
    assert r.rewrite(model, 2, ["moe_routing"]) is model
    feeds = parted(moe_feeds(5), 2)
    both = r.rewrite(model, 2)
    assert op_types(both) == ["glm_trt:MoeRouting", "glm_trt.cpu:MoeExperts"]
    assert relative(run(both, feeds)[0], run(model, feeds)[0]) < TOLERANCE


@pytest.mark.parametrize(("batch", "length", "capacity"), [(1, 1, 5), (2, 3, 40), (1, 9, 128)])
def test_attention_sliced_after(batch: int, length: int, capacity: int) -> None:
    node = onnx.helper.make_node(
        "SparseMla", ["query", "cache", "indices"], ["latent"], domain="glm_trt",
        scale=0.3, value_width=6,
    )  # fmt: skip
    inputs: dict[str, Any] = {
        "query": ("B", "S", 4, 9), "cache": ("B", 1, "C", 9), "indices": (6, ("B", "S", "K")),
    }  # fmt: skip
    model = make_model([node], inputs, {"latent": 1})
    sliced = r.rewrite(model, 2)
    assert op_types(sliced) == ["glm_trt.cpu:SparseMla"]
    rng = np.random.default_rng(0)
    indices = np.full((batch, length, 5), -1, np.int32)
    for place in np.ndindex(batch, length):
        count = int(rng.integers(1, 6))
        indices[place][:count] = np.sort(rng.permutation(capacity)[:count])
    feeds = {
        "query": rng.normal(size=(batch, length, 4, 9)).astype(np.float32),
        "cache": rng.normal(size=(batch, 1, capacity, 9)).astype(np.float32),
        "indices": indices,
    }
    (found,), (expected,) = run(sliced, feeds), run(model, feeds)
    assert found.shape == expected.shape and relative(found, expected) < TOLERANCE


@pytest.mark.parametrize("rule", ["gated_delta", "delta", "gated", "linear"])
@pytest.mark.parametrize("scale", [0.25, 1.0])
def test_linear_attention_in_one_kernel(rule: str, scale: float) -> None:
    """Against the eager operator in float64: outputs and states, decay per head and per channel."""
    batch, q_heads, heads, d_k, d_v = 2, 6, 3, 8, 5
    node = onnx.helper.make_node(
        "LinearAttention", ["query", "key", "value", "past", "decay", "beta"], ["y", "state"],
        q_num_heads=q_heads, kv_num_heads=heads, update_rule=rule, scale=scale,
    )  # fmt: skip
    widths = {"query": q_heads * d_k, "key": heads * d_k, "value": heads * d_v, "beta": heads}
    rng = np.random.default_rng(0)
    for per_channel in (False, True):
        inputs: dict[str, Any] = {name: ("B", "S", width) for name, width in widths.items()}
        inputs |= {"past": ("B", heads, d_k, d_v), "decay": ("B", "S", "G")}
        model = make_model([node], inputs, {"y": 1, "state": 1})
        rewritten = r.rewrite(model, 2)
        assert op_types(rewritten) == ["glm_trt.cpu:LinearAttention"]
        for length in (1, 2, 63, 64, 65, 200):
            feeds = {
                name: rng.normal(size=(batch, length, width)).astype(np.float32)
                for name, width in widths.items()
            }
            by_head = feeds["key"].reshape(batch, length, heads, d_k)
            by_head /= np.linalg.norm(by_head, axis=-1, keepdims=True)
            feeds["beta"] = 1 / (1 + np.exp(-feeds["beta"]))
            decays = (batch, length, heads * (d_k if per_channel else 1))
            feeds["decay"] = -0.3 * np.abs(rng.normal(size=decays)).astype(np.float32)
            feeds["past"] = rng.normal(size=(batch, heads, d_k, d_v)).astype(np.float32)
            feeds["decay"][0, -1:] = feeds["beta"][0, -1:] = 0  # padding
            order = ["query", "key", "value", "past", "decay", "beta"]
            expected = EagerOperators().linear_attention(
                *(torch.from_numpy(feeds[name]).double() for name in order),
                q_num_heads=q_heads, kv_num_heads=heads, update_rule=rule, scale=scale,
            )  # fmt: skip
            for found, exact in zip(run(rewritten, feeds), expected, strict=True):
                assert relative(found, exact.numpy()) < TOLERANCE, (length, per_channel)


@pytest.mark.parametrize("activation", ["silu", "swish", "none"])
@pytest.mark.parametrize("width", [1, 2, 4])
def test_few_tokens_are_convolved_directly(activation: str, width: int) -> None:
    node = onnx.helper.make_node(
        "CausalConvWithState", ["x", "weight", "bias", "past"], ["y", "state"],
        activation=activation,
    )  # fmt: skip
    inputs: dict[str, Any] = {
        "x": ("B", 10, "S"), "weight": (10, 1, width), "bias": (10,), "past": ("B", 10, width - 1),
    }  # fmt: skip
    model = make_model([node], inputs, {"y": 1, "state": 1})
    rewritten = r.rewrite(model, 2)
    assert op_types(rewritten) == ["glm_trt.cpu:CausalConvWithState"]
    rng = np.random.default_rng(0)
    for length in (1, 2, FEW_TOKENS, FEW_TOKENS + 1, 60):
        shapes = {"x": (2, 10, length), "weight": (10, 1, width), "past": (2, 10, width - 1)}
        feeds = {name: rng.normal(size=of).astype(np.float32) for name, of in shapes.items()}
        feeds["bias"] = np.zeros(10, np.float32)
        y, state = run(rewritten, feeds)
        expected, columns = EagerOperators().causal_conv_with_state(
            *(torch.from_numpy(feeds[name]).double() for name in ("x", "weight", "bias", "past")),
            activation=activation,
        )
        assert relative(y, expected.numpy()) < TOLERANCE
        assert (state == columns.numpy()).all()


def test_parted_experts_need_no_second_copy() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(16, 256, 128)).astype(np.float32) for _ in range(2)]
    source = Stacked(
        **{f"{name}{e}": part[e] for name, part in zip("gu", parts, strict=True) for e in range(16)}
    )
    binding = Binding("w", ("g{expert}", "u{expert}"), (16, 512, 128), "stack_experts")
    tracemalloc.start()
    found = r.PREPARED[PARTED_GATE_UP](binding, source, 4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.3 * found.nbytes
    expected = np.stack(parts, axis=2).reshape(16, 4, 128, 128).swapaxes(0, 1)
    assert (found == expected.reshape(64, 128, 128)).all()


@pytest.mark.parametrize(
    "shape", ["plain", "fewer_groups", "shared_indexer", "odd_sizes", "linear_first"]
)
def test_runtimes_with_and_without_agree(tmp_path: Path, shape: str) -> None:
    if shape in HYBRIDS:
        save_hybrid(make_hybrid(shape), tmp_path / "c")
    else:
        save(make_oracle(**SHAPES[shape]), tmp_path / "c", save_original_format=shape != "plain")
    export_checkpoint(tmp_path / "c", tmp_path / "b", ExportOptions(dtypes=("float32",)))
    ids = np.random.default_rng(0).integers(0, 97, (2, 30))
    logits, tokens = [], []
    for rewrites in (True, False):
        with Runtime(OnnxruntimeBackend(Bundle.open(tmp_path / "b"), 2, rewrites)) as runtime:
            logits.append(runtime.forward(ids))
            tokens.append(runtime.generate(ids[:, :3], 20, eos_token_ids=()))
    assert relative(*logits) < 2e-6
    assert tokens[0] == tokens[1]


def test_constants_are_typed_tensors() -> None:
    """onnxruntime 1.24 infers no shape of `value_ints` in a function, and refuses the graph."""
    of = r.REWRITES
    texts = [
        of["moe_experts"]._function(4, 2, 2),
        of["moe_routing"]._function(2, True, 2.5),
        of["moe_routing"]._function(2, False, 1.0),
        of["sparse_mla"]._function(0.5, 8),
        of["causal_conv_with_state"]._function("silu"),
    ]
    for text in texts:
        function = onnx.parser.parse_function(
            f'<domain: "x", opset_import: ["": 24, "com.microsoft": 1]> f {text}'
        )
        constants = [node for node in function.node if node.op_type == "Constant"]
        assert constants and all(node.attribute[0].name == "value" for node in constants)
