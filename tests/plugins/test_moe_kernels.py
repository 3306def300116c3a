"""What the kernels of MoE routing and MoE experts promise beside agreeing with their references.

test_kernels.py runs every case against the reference, between guards and twice.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch
from plugin_harness import coarse, compiled_kernels, mostly_slow

from glm_trt.plugins.common.contract import ACTIVATION_DTYPES
from glm_trt.plugins.common.expressions import evaluate
from glm_trt.plugins.common.run import run
from glm_trt.plugins.common.selection import TARGETS
from glm_trt.plugins.library import selection_of
from glm_trt.plugins.moe_experts import kernel as experts_kernel
from glm_trt.plugins.moe_experts.cases import CASES as EXPERTS_CASES
from glm_trt.plugins.moe_experts.launch import LAUNCHES as EXPERTS
from glm_trt.plugins.moe_experts.launch import ROWS, TILES
from glm_trt.plugins.moe_experts.reference import reference as experts_reference
from glm_trt.plugins.moe_routing import kernel as routing_kernel
from glm_trt.plugins.moe_routing.cases import CASES as ROUTING_CASES
from glm_trt.plugins.moe_routing.launch import LAUNCHES as ROUTING
from glm_trt.plugins.moe_routing.reference import reference as routing_reference

GLM = {"k": 8, "E": 256, "hidden": 6144, "I": 2048, "ITEMSIZE": 2}
# Their last expert is hit, so the end of every input is read.
READ_AT_THE_EDGES = ("few, odd sizes", "16 tokens", "many, odd sizes", "tiles of 64",
                     "tiles of 128", "the last two of 20 experts")  # fmt: skip


def route(logits: torch.Tensor, bias: torch.Tensor, **attributes: Any) -> Any:
    attributes = {"norm_topk_prob": 1, "routed_scaling_factor": 2.5, **attributes}
    return run(ROUTING, vars(routing_kernel), [logits, bias], attributes, "sm90")


def active(names: dict[str, int], target: str, dtype: str) -> list[tuple[str, dict[str, int]]]:
    """The launches that these sizes make, with their constants."""
    return [
        (launch.kernel, names | config | launch.picked(names))
        for launch, config in EXPERTS.active(names, target, dtype)
    ]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ACTIVATION_DTYPES)
def test_one_form_of_each_kernel_with_the_rows_that_pairs_were_sorted_for(
    target: str, dtype: str
) -> None:
    few = ["gate_up_pairs", "down_tokens"]
    many = ["count_pairs", "sort_pairs", "gate_up_tiles", "down_tiles", "sum_slots"]
    for tokens, k, experts in itertools.product((1, 16, 17, 64, 257, 1025, 9000), (1, 8), (4, 256)):
        for hidden, inner in ((6144, 2048), (6144, 2040), (6152, 2048), (37, 19), (8, 8)):
            names = GLM | {"T": tokens, "k": k, "E": experts, "hidden": hidden, "I": inner}
            launches = active(names, target, dtype)
            assert [name for name, _ in launches] == (few if tokens <= 16 else many)
            for name, constants in launches:
                if name.endswith("_tiles"):
                    assert constants["BLOCK_M"] == evaluate(ROWS, names)
                    assert hidden % constants["UNIT"] == inner % constants["UNIT"] == 0
    assert [evaluate(ROWS, GLM | {"T": t}) for t in (64, 256, 257, 1024, 1025)] == [
        16, 16, 64, 64, 128
    ]  # fmt: skip


def test_no_routing_has_more_tiles_than_the_plan_has_room_for() -> None:
    generator = torch.Generator().manual_seed(0)
    for tokens, k, experts in itertools.product((17, 40, 300), (1, 3, 8), (8, 60, 256)):
        names = GLM | {"T": tokens, "k": k, "E": experts}
        rows, room = evaluate(ROWS, names), evaluate(TILES, names)
        (tiles,) = [b for b in EXPERTS.workspace if b.name == "tiles"]
        assert 3 * room <= evaluate(tiles.elements, names)
        # The worst there is: as many experts as can be that hold one pair beyond full tiles.
        alone = min(experts, tokens * k)
        counts = torch.ones(alone, dtype=torch.int64)
        counts[: (tokens * k - alone) // rows] += rows
        assert int(((counts + rows - 1) // rows).sum()) <= room
        counts = torch.randint(experts, (tokens * k,), generator=generator).bincount()
        assert int(((counts + rows - 1) // rows).sum()) <= room


@pytest.mark.parametrize("target", mostly_slow(TARGETS, "sm80", "sm90"))
@pytest.mark.parametrize("name", ["tiles of 64", "tiles of 128", "17 tokens"])
def test_tiles_of_every_target(name: str, target: str) -> None:
    """Against the reference in float64: tile sizes differ from target to target."""
    (case,) = [case for case in EXPERTS_CASES if case.name == name]
    inputs = case.make(torch.Generator().manual_seed(2), torch.bfloat16)
    x, indices, weights, gate_up, down = inputs
    both = torch.einsum("tkih,th->tki", gate_up.double()[indices.long()], x.double())
    inner = torch.nn.functional.silu(both[..., : down.shape[2]]) * both[..., down.shape[2] :]
    wanted = torch.einsum("tk,tkhi,tki->th", weights.double(), down.double()[indices.long()], inner)
    (found,) = run(EXPERTS, vars(experts_kernel), inputs, {}, target)
    error = (found.double() - wanted).norm() / wanted.norm()
    assert error <= EXPERTS.contract.tolerance["bfloat16"]


def between_guards(tensor: torch.Tensor) -> torch.Tensor:
    """The same between NaNs; between zeros, which name an expert, for integers."""
    fill = float("nan") if tensor.dtype.is_floating_point else 0
    whole = torch.full((tensor.numel() + 4096,), fill, dtype=tensor.dtype)
    whole[2048 : 2048 + tensor.numel()] = tensor.flatten()
    return whole[2048 : 2048 + tensor.numel()].view(tensor.shape)


@pytest.mark.parametrize(
    ("launches", "functions", "case"),
    [
        pytest.param(launches, vars(module), case, id=case.name)
        for launches, module, cases in (
            (EXPERTS, experts_kernel, EXPERTS_CASES),
            (ROUTING, routing_kernel, ROUTING_CASES),
        )
        for case in cases
        if launches is ROUTING or case.name in READ_AT_THE_EDGES
    ],
)
def test_nothing_is_read_beyond_an_input(launches: Any, functions: Any, case: Any) -> None:
    inputs = case.make(torch.Generator().manual_seed(3), torch.float16)
    guarded = [between_guards(tensor) for tensor in inputs]
    # The large tiles of sm90 are wider than those of sm80.
    for target in ("sm80", "sm90") if case.name == "tiles of 128" else ("sm90",):
        found = run(launches, functions, guarded, case.attributes, target)
        wanted = getattr(torch.ops.glm_trt, launches.contract.torch_name)(
            *inputs, **case.attributes
        )
        for one, other in zip(found, wanted if len(found) > 1 else (wanted,), strict=True):
            difference = (one.double() - other.double()).norm()  # NaN where one was read
            assert (
                difference
                <= launches.contract.tolerance.get("float16", 1e-6) * other.double().norm()
            )


@pytest.mark.parametrize("tokens", [1, 17])
def test_addresses_beyond_32_bits(tokens: int, tmp_path: Path) -> None:
    """The last expert lies beyond 2³² elements; its file is sparse, so only that one has pages."""
    experts, hidden, inner = 512, 4112, 1024

    def weights(name: str, *shape: int) -> torch.Tensor:
        count = int(torch.Size(shape).numel())
        assert count > 2**31
        path = str(tmp_path / name)
        return torch.from_file(path, shared=True, size=count, dtype=torch.float16).view(shape)

    gate_up = weights("gate_up", experts, 2 * inner, hidden)
    down = weights("down", experts, hidden, inner)
    generator = torch.Generator().manual_seed(0)
    gate_up[-1] = torch.randn(2 * inner, hidden, generator=generator) / 64
    down[-1] = torch.randn(hidden, inner, generator=generator) / 32
    x = torch.randn(tokens, hidden, generator=generator).half()
    indices = torch.full((tokens, 1), experts - 1, dtype=torch.int32)
    inputs = [x, indices, torch.ones(tokens, 1), gate_up, down]
    (found,) = run(coarse(EXPERTS), vars(experts_kernel), inputs, {}, "sm90")
    wanted = experts_reference(*inputs).double()
    error = (found.double() - wanted).norm() / wanted.norm()
    assert error <= EXPERTS.contract.tolerance["float16"]


def test_nan_shows_in_the_weights_and_never_as_an_expert_that_is_not_there() -> None:
    """An index of E would have MoeExperts read beyond its weights."""
    logits = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    logits[0], logits[1, 2], logits[2, 7] = float("nan"), float("nan"), float("inf")
    for groups, kept in ((1, 1), (4, 2), (8, 3)):
        indices, weights = route(logits, torch.zeros(8), top_k=2, n_group=groups, topk_group=kept)
        assert bool(((indices >= 0) & (indices < 8)).all())
        assert bool(weights[:2].isnan().all())
        assert indices[1, 0] == 2
        assert not bool(weights[2:].isnan().any())
    # Infinities of both signs in one group, whose score is no number.
    bias = torch.tensor([float("inf"), float("-inf"), 0, 0])
    indices, _ = route(torch.zeros(1, 4), bias, top_k=2, n_group=2, topk_group=1)
    assert indices.tolist() == [[0, 1]]


@pytest.mark.parametrize("groups", [(1, 1), (2, 1), (4, 3)])
def test_no_expert_is_chosen_twice_where_biases_exclude_most(groups: tuple[int, int]) -> None:
    bias = torch.full((8,), float("-inf"))
    bias[5] = 0.0
    logits = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    attributes = {"top_k": 4, "n_group": groups[0], "topk_group": groups[1]}
    indices, _ = route(logits, bias, **attributes)
    wanted, _ = routing_reference(
        logits, bias, **attributes, norm_topk_prob=1, routed_scaling_factor=2.5
    )
    assert torch.equal(indices, wanted)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_group": 0}, "at least one group"),
        ({"n_group": 3}, "equal size"),
        ({"top_k": 12, "topk_group": 5}, "no more experts a token"),
        ({"top_k": 3, "n_group": 4, "topk_group": 1}, "no more experts a token"),
    ],
)
def test_limits_of_routing(wrong: dict[str, int], message: str) -> None:
    attributes = {"top_k": 2, "n_group": 1, "topk_group": 1, **wrong}
    with pytest.raises(ValueError, match=message):
        route(torch.zeros(3, 8), torch.zeros(8), **attributes)


def test_routing_of_a_tie_is_by_hand() -> None:
    logits = torch.tensor([[-200.0, 200, 0, 200, -200, 200, 200, 0]])
    indices, weights = route(logits, torch.zeros(8), top_k=3, n_group=4, topk_group=2)
    # Groups score 0+1, ½+1, 0+1, 1+½: the second and the fourth are kept.
    assert indices.tolist() == [[3, 6, 2]]
    assert weights.tolist() == [[1.0, 1.0, 0.5]]
    logits[0, 0] = 0.0  # now the first too scores 1.5: the smaller of equals
    indices, _ = route(logits, torch.zeros(8), top_k=3, n_group=4, topk_group=2)
    assert indices.tolist() == [[1, 3, 0]]
    reference, _ = routing_reference(
        logits, torch.zeros(8), top_k=3, n_group=4, topk_group=2, norm_topk_prob=1,
        routed_scaling_factor=2.5,
    )  # fmt: skip
    assert torch.equal(indices, reference)


def test_compiled_kernels_spill_nothing_and_fit(each_library: Path) -> None:
    """Every image of the two operators in the library, in all its targets and dtypes."""
    names = {launch.kernel for launches in (EXPERTS, ROUTING) for launch in launches.steps}
    found = compiled_kernels(each_library, names)
    assert {(k.entry["function"], k.entry["target"]) for k in found} == set(
        itertools.product(names, selection_of(each_library).targets)
    )
    for kernel in found:
        assert kernel.stack == 0, kernel
        assert kernel.fits, kernel
