"""What plugins ask for at a profile's largest sizes covers every smaller problem.

TensorRT asks `getWorkspaceSize` once for a profile, at its largest sizes. The library's answers and
the buffers' layouts are tried on sizes drawn at random, by none of the expressions that make them.
"""

from __future__ import annotations

import random
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from plugin_harness import Harness, up_to

from glm_trt.plugins.common.cases import Sampled, Sizes
from glm_trt.plugins.common.contract import Contract
from glm_trt.plugins.common.expressions import evaluate
from glm_trt.plugins.common.launch import Launches
from glm_trt.plugins.folders import CONTRACTS, part_of

VARIATIONS = 50


def sampled_of(name: str) -> Sampled:
    found: Sampled = part_of(name, "cases").SAMPLED
    return found


def launches_of(name: str) -> Launches:
    found: Launches = import_module(f"glm_trt.plugins.{name}.launch").LAUNCHES
    return found


def all_axes(name: str, free: Sizes, attributes: dict[str, Any]) -> Sizes:
    contract = launches_of(name).contract
    sizes = {"1": 1} | free | sampled_of(name).follow(free, attributes)
    names = sizes | contract.integers(attributes)
    return sizes | {axis: evaluate(of, names) for axis, of in contract.derived.items()}


def seen_by_expressions(contract: Contract, axes: Sizes, attributes: dict[str, Any]) -> Sizes:
    present = {f"has_{port.name}": 1 for port in contract.inputs if port.optional}
    return axes | contract.integers(attributes) | present


def is_possible(name: str, axes: Sizes, attributes: dict[str, Any]) -> bool:
    """Whether the operator takes these sizes; ITEMSIZE matters to no limit."""
    launches = launches_of(name)
    names = seen_by_expressions(launches.contract, axes, attributes)
    return all(evaluate(expression, names) for expression, _ in launches.limits)


def drawn(r: random.Random, name: str, varied: str) -> tuple[Sizes, Sizes, dict[str, Any]]:
    """A profile's largest axes, those of a smaller problem, and attributes.

    `varied` is the axis that is smaller, or "all": every one may be.
    """
    sampled = sampled_of(name)

    def size(axis: str, most: int) -> int:
        """Small sizes as often as large ones, and now and then the most, or the least."""
        step = sampled.steps.get(axis, 1)
        drawn = round(max(most, 1) ** r.random()) // step * step
        return r.choice((most, min(most, step), *[min(max(drawn, step), most)] * 6))

    while True:
        attributes = sampled.attributes(r)
        # What varies is large more often than not: between its sizes the launches change.
        largest = {
            axis: size(axis, most) if axis != varied or r.random() < 0.3 else most
            for axis, most in sampled.free.items()
        }
        smaller = {
            axis: size(axis, most) if varied in ("all", axis) else most
            for axis, most in largest.items()
        }
        both = [all_axes(name, free, attributes) for free in (largest, smaller)]
        # A size that follows may be larger where another is smaller: that is no smaller problem.
        falls = all(both[1][axis] <= most for axis, most in both[0].items())
        if falls and all(is_possible(name, axes, attributes) for axes in both):
            return both[0], both[1], attributes


def answer(
    harness: Harness, name: str, axes: Sizes, smallest: Sizes, attributes: dict[str, Any],
    dtype: torch.dtype,
) -> int:  # fmt: skip
    """What the library's `getWorkspaceSize` says for a profile up to these axes."""
    contract = launches_of(name).contract
    dtypes = {"T": dtype, "S": dtype}
    tensors = [
        (
            dtypes.get(port.dtype) or getattr(torch, port.dtype),
            [smallest[axis] for axis in port.axes],
            [axes[axis] for axis in port.axes],
        )
        for port in contract.ports
    ]
    return harness.build(contract, tensors, attributes).workspace_bytes


@pytest.mark.parametrize(
    ("name", "varied"),
    [(name, axis) for name in CONTRACTS for axis in ("all", *sampled_of(name).free)],
)
def test_largest_sizes_cover_smaller_problems(harness: Harness, name: str, varied: str) -> None:
    launches = launches_of(name)
    r = random.Random(f"{name} {varied}")
    for _ in range(VARIATIONS):
        largest, smaller, attributes = drawn(r, name, varied)
        assert set(largest) >= {axis for port in launches.contract.ports for axis in port.axes}
        dtype = r.choice([torch.float32, torch.float16])
        item = {"ITEMSIZE": dtype.itemsize}
        answered = answer(harness, name, largest, smaller, attributes, dtype)
        needed = answer(harness, name, smaller, smaller, attributes, dtype)
        assert answered >= needed, (largest, smaller, attributes)
        for axes, bytes_ in ((largest, answered), (smaller, needed)):
            names = seen_by_expressions(launches.contract, axes, attributes) | item
            assert launches.offsets(names)[1] == bytes_, (axes, attributes)


ATTENTION = {"B": 1, "S": 512, "H": 64, "D": 576, "C": 202752}
# What once asked for too little: operator, attributes, largest free sizes, what is smaller.
KNOWN = [
    ("sparse_mla", {"value_width": 512}, ATTENTION | {"K": 2048}, {"S": 64}),
    ("sparse_mla", {"value_width": 512}, ATTENTION | {"K": 2048}, {"S": 2}),
    ("causal_mla", {"value_width": 512}, ATTENTION, {"S": 64}),
    ("causal_mla", {"value_width": 512}, ATTENTION, {"S": 1}),
    ("indexer_topk", {"index_topk": 64},
     {"B": 1, "S": 256, "H": 32, "D": 128, "C": 2049}, {"S": 128}),
    ("linear_attention", {"kv_num_heads": 2, "q_num_heads": 2, "update_rule": "gated"},
     {"B": 1, "S": 64, "dk": 129, "dv": 16}, {"dk": 128}),
    ("fp8_moe_experts", {}, {"T": 20, "k": 2, "E": 4, "hidden": 32, "I": 3008}, {"I": 3007}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "attributes", "largest", "smaller"), KNOWN)
def test_calls_that_had_too_little_are_covered(
    harness: Harness, name: str, attributes: dict[str, Any], largest: Sizes, smaller: Sizes
) -> None:
    if launches_of(name).contract.attributes.get("scale"):
        attributes = attributes | {"scale": 1.0}
    most, least = (all_axes(name, largest | of, attributes) for of in ({}, smaller))
    answered, needed = (
        answer(harness, name, axes, least, attributes, torch.bfloat16) for axes in (most, least)
    )
    assert answered >= needed > 0


def splits(most: int, entries: int, least: int, programs: int, room: int) -> int:
    """Into how many parts `entries` are split: no more than leave each `least`, or `room` holds."""
    return max(1, min(most, -(-entries // least), room // max(1, programs)))


def written(name: str, sizes: Sizes, attributes: dict[str, Any]) -> dict[str, int]:
    """Elements that the attention kernels write of each buffer, from the forms in their docstrings:
    parts [rows, splits, R], stats [rows, splits, 2], counts [queries, 4, chunks, 256], found
    [queries, 4, chunks, 3], scores [queries, C].
    """
    b, s, h, c = (sizes[axis] for axis in "BSHC")
    if name == "indexer_topk":
        chunks = splits(32, c, 2048, b * s, 256)
        shared = b * s * 4 * chunks * (chunks > 1)
        return {"scores": b * s * c, "counts": shared * 256, "found": shared * 3}
    if name == "causal_mla":
        parts = splits(128, c, 64, b * -(-s * h // 64), 128)
    else:
        wide = h > 32 and b * s * -(-h // 64) >= 16
        parts = splits(32, sizes["K"], 64, b * s * -(-h // (64 if wide else 32)), 128)
    rows = b * s * h * parts * (parts > 1)
    return {"parts": rows * attributes["value_width"], "stats": rows * 2}


@pytest.mark.parametrize("name", ["indexer_topk", "sparse_mla", "causal_mla"])
def test_buffers_hold_what_kernels_write(name: str) -> None:
    """Whose sizes the launches give by a bound, and not by what one call writes."""
    launches, r = launches_of(name), random.Random(name)
    shared = 0
    for _ in range(20 * VARIATIONS):
        _, axes, attributes = drawn(r, name, "all")
        names = seen_by_expressions(launches.contract, axes, attributes) | {"ITEMSIZE": 2}
        need = written(name, axes, attributes)
        for buffer in launches.workspace:
            assert evaluate(buffer.elements, names) >= need[buffer.name], (axes, attributes)
        shared += need["found" if name == "indexer_topk" else "stats"] > 0
    assert shared > VARIATIONS  # the others have one part alone


@pytest.mark.parametrize("tokens", [1, 16, 17, 100])
def test_experts_of_odd_sizes_have_room_for_pairs_of_all_tokens(tokens: int) -> None:
    """They go by pairs however many there are; room for sorted pairs often hides it."""
    axes = all_axes("fp8_moe_experts", {"T": tokens, "k": 2, "E": 4, "hidden": 32, "I": 3007}, {})
    launches = launches_of("fp8_moe_experts")
    names = seen_by_expressions(launches.contract, axes, {}) | {"ITEMSIZE": 2}
    elements = {of.name: evaluate(of.elements, names) for of in launches.workspace}
    assert elements["inner_few"] == tokens * 2 * 3007


# (operator, sizes, tokens, the most tokens): calls that split, in a profile whose largest does not.
SPLITTING = [
    ("sparse_mla", {"B": 1, "H": 3, "D": 24, "C": 300, "K": 200}, 1, 512),
    ("causal_mla", {"B": 1, "H": 3, "D": 24, "C": 200}, 2, 4096),
    ("indexer_topk", {"B": 1, "H": 2, "D": 8, "C": 2049}, 1, 512),
]


@pytest.mark.parametrize(("name", "sizes", "tokens", "most"), SPLITTING)
def test_decode_stays_in_what_prefill_asked_for(
    harness: Harness, name: str, sizes: Sizes, tokens: int, most: int
) -> None:
    """`enqueue` in exactly the workspace that the library asked for; in none, and in too little."""
    contract = launches_of(name).contract
    attributes: dict[str, Any] = {"scale": 0.2} | (
        {"index_topk": 64} if name == "indexer_topk" else {"value_width": 16}
    )
    axes = all_axes(name, sizes | {"S": tokens}, attributes)
    generator = torch.Generator().manual_seed(0)
    made = {
        "indices": torch.randint(sizes["C"], (1, tokens, axes["K"]), generator=generator).int()
        if name == "sparse_mla" else None,
        "past_lengths": torch.tensor([sizes["C"] - tokens]),
    }  # fmt: skip
    inputs = []
    for port in contract.inputs:
        tensor = made.get(port.name)
        shape = [axes[axis] for axis in port.axes]
        inputs.append(torch.randn(shape, generator=generator) if tensor is None else tensor)
    wanted = part_of(name, "reference").reference(*inputs, **attributes)
    found = [torch.full_like(wanted, -7)]
    capability = int(harness.targets[0].removeprefix("sm"))
    harness.run(contract, inputs, attributes, found, capability, larger={"S": most})
    assert len(harness.launches) > 1  # the call was split
    assert torch.allclose(found[0], wanted, atol=1e-5)

    def built(largest: int) -> Any:
        profile = up_to(contract, (*inputs, *found), {"S": largest})
        return harness.build(contract, profile, attributes)

    with pytest.raises(RuntimeError, match=r"workspace: expected \d+ bytes, found a null address"):
        harness.enqueue(built(most), inputs, found, capability, None)
    assert harness.launches == []
    room = torch.zeros(1 << 20, dtype=torch.uint8)
    small = built(0)  # as if its profile ended before this call
    with pytest.raises(RuntimeError, match=rf"found {small.workspace_bytes}, for which the engine"):
        harness.enqueue(small, inputs, found, capability, -(-room.data_ptr() // 256) * 256)
    with pytest.raises(RuntimeError, match="workspace: expected an address at a multiple of 16"):
        harness.enqueue(built(most), inputs, found, capability, room.data_ptr() // 16 * 16 + 8)
    assert harness.launches == []


def test_an_engine_that_says_no_workspace_is_refused(harness: Harness, library: Path) -> None:
    """Libraries that did not say it asked for too little."""
    contract = launches_of("moe_routing").contract
    inputs = [torch.zeros(1, 8), torch.zeros(8)]
    outputs = [torch.zeros(1, 2, dtype=torch.int32), torch.zeros(1, 2)]
    attributes = {"top_k": 2, "n_group": 1, "topk_group": 1, "norm_topk_prob": 1,
                  "routed_scaling_factor": 1.0}  # fmt: skip
    built = harness.build(contract, up_to(contract, (*inputs, *outputs)), attributes)
    built.change("workspace_bytes", None)
    with pytest.raises(RuntimeError, match="does not say what workspace it has; build the engine"):
        harness.enqueue(built, inputs, outputs, 90, None)


# What the plugins ask for at GLM-5.1's sizes, a sequence of up to 512 tokens, in bfloat16.
GLM = {
    "indexer_topk": ({"H": 32, "D": 128, "C": 202752}, {"index_topk": 2048}, 416_296_960),
    "sparse_mla": ({"H": 64, "D": 576, "C": 202752, "K": 2048}, {"value_width": 512}, 16_842_752),
    "causal_mla": ({"H": 64, "D": 576, "C": 202752}, {"value_width": 512}, 16_842_752),
}  # fmt: skip


@pytest.mark.parametrize("name", GLM)
def test_glm_asks_for_no_more_than_its_largest_call_needs(harness: Harness, name: str) -> None:
    sizes, attributes, expected = GLM[name]
    attributes = {"scale": 1.0, **attributes}
    axes = all_axes(name, {"B": 1, "S": 512, **sizes}, attributes)
    small = all_axes(name, {"B": 1, "S": 1, **sizes}, attributes)
    assert answer(harness, name, axes, small, attributes, torch.bfloat16) == expected
