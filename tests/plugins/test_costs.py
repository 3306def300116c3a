"""The figures in the operators' READMEs are what `cost.py` says, at GLM-5.1's dimensions."""

from __future__ import annotations

from pathlib import Path

import pytest

from glm_trt.model.checkpoint.presets import preset_config
from glm_trt.model.config import ModelConfig
from glm_trt.plugins.common.cost import Cost, sizes_of_call
from glm_trt.plugins.common.expressions import evaluate
from glm_trt.plugins.folders import CONTRACTS, part_of

PLUGINS = Path(__file__).parent.parent.parent / "plugins"
CONFIGS = [
    ModelConfig.from_dict(preset_config(name, "full")) for name in ("glm-5.1", "glm-5.1-hybrid")
]
BANDWIDTH, RATE = 4.3e12, 790e12  # bytes and operations a second, as the READMEs say
UNITS = {"MB": 1e6, "GB": 1e9, "MFLOP": 1e6, "GFLOP": 1e9, "TFLOP": 1e12}
TIMES = {"µs": 1e-6, "ms": 1e-3}
CONTEXT = 128 * 1024


def costs(name: str, batch: int, tokens: int, context: int) -> tuple[int, int]:
    """Bytes and operations of a call."""
    cost: Cost = part_of(name, "cost").COST
    sizes = next(found for config in CONFIGS if (found := cost.sizes(config)) is not None)
    names = sizes_of_call(CONTRACTS[name], sizes, batch, tokens, context)
    return evaluate(cost.bytes, names), evaluate(cost.operations, names)


@pytest.mark.parametrize(
    ("name", "batch", "tokens", "context", "of_bytes", "of_operations"),
    [
        ("moe_routing", 1, 8192, 0, ["2.1 µs"], []),
        ("moe_experts", 1, 1, 0, ["604 MB", "140 µs"], ["604 MFLOP"]),
        ("moe_experts", 1, 8192, 0, [], ["4.9 TFLOP", "6.3 ms"]),
        ("fp8_moe_experts", 1, 1, 0, ["302 MB", "70 µs"], ["604 MFLOP"]),
        ("nvfp4_moe_experts", 1, 1, 0, ["170 MB", "40 µs"], ["604 MFLOP"]),
        ("fp8_linear", 1, 1, 0, ["100.7 MB", "23.4 µs"], []),
        ("nvfp4_linear", 1, 1, 0, ["56.7 MB"], []),
        ("indexer_topk", 1, 1, CONTEXT, ["33.6 MB", "7.8 µs"], ["1.07 GFLOP", "1.4 µs"]),
        ("sparse_mla", 1, 1, CONTEXT, ["2.51 MB"], ["285 MFLOP"]),
        ("sparse_mla", 8, 1, CONTEXT, ["20.1 MB", "4.7 µs"], ["2.3 GFLOP", "2.9 µs"]),
        ("sparse_mla", 64, 1, CONTEXT, ["37 µs"], ["23 µs"]),
        ("causal_mla", 1, 1, CONTEXT, ["151 MB", "35 µs"], ["18.3 GFLOP", "23 µs"]),
        ("causal_mla", 8, 1, CONTEXT, ["1.21 GB", "281 µs"], ["146 GFLOP", "185 µs"]),
        ("causal_mla", 1, 8192, 8192, ["1.15 GB", "0.27 ms"], ["4.67 TFLOP", "5.9 ms"]),
        ("linear_attention", 64, 1, 0, ["541 MB", "126 µs"], ["0.5 GFLOP"]),
        ("linear_attention", 1, 8192, 0, ["547 MB"], ["69 GFLOP"]),
        ("causal_conv_with_state", 1, 1, 0, ["0.3 MB"], []),
        ("causal_conv_with_state", 1, 8192, 0, ["0.4 GB", "94 µs"], []),
    ],
)
def test_figures_of_the_readmes(
    name: str, batch: int, tokens: int, context: int, of_bytes: list[str], of_operations: list[str]
) -> None:
    """Each in the digits that it has in the text."""
    text = " ".join((PLUGINS / name / "README.md").read_text().split())
    found = costs(name, batch, tokens, context)
    for value, rate, figures in zip(
        found, (BANDWIDTH, RATE), (of_bytes, of_operations), strict=True
    ):
        for figure in figures:
            number, unit = figure.split()
            exact = value / rate / TIMES[unit] if unit in TIMES else value / UNITS[unit]
            digits = len(number.partition(".")[2])
            assert f"{exact:.{digits}f} {unit}" == figure
            assert figure in text


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_cost_knows_every_name_of_the_launches(name: str) -> None:
    """At the model's sizes what limits say holds, and the workspace can be told."""
    cost, launches = part_of(name, "cost").COST, part_of(name, "launch").LAUNCHES
    known = [sizes for config in CONFIGS if (sizes := cost.sizes(config)) is not None]
    assert known
    for sizes in known:
        names = sizes_of_call(CONTRACTS[name], sizes, 2, 3, 4096)
        assert all(evaluate(expression, names) for expression, _ in launches.limits)
        assert launches.offsets(names)[1] >= 0
        assert evaluate(cost.bytes, names) > 0


def test_what_a_model_has_not_costs_nothing() -> None:
    indexed, hybrid = CONFIGS
    has = {
        name: [part_of(name, "cost").COST.sizes(config) is not None for config in CONFIGS]
        for name in CONTRACTS
    }
    assert has["indexer_topk"] == has["sparse_mla"] == [True, False]
    linear = ("causal_mla", "linear_attention", "causal_conv_with_state")
    assert all(has[name] == [False, True] for name in linear)
    assert indexed.attention_kinds != hybrid.attention_kinds
