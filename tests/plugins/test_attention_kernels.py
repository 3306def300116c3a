"""IndexerTopK and SparseMla beyond their shared cases: near ties, zeros, every target, resources.

`test_kernels.py` runs every case of both against the references. Resources are CausalMla's too.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch
from plugin_harness import SHARED_KB, SPILLS_THAT_PAY, by_turns, compiled_kernels, mostly_slow
from torch import Tensor

from glm_trt.plugins.causal_mla import launch as causal_launch
from glm_trt.plugins.common.expressions import evaluate
from glm_trt.plugins.common.run import run
from glm_trt.plugins.common.selection import TARGETS
from glm_trt.plugins.indexer_topk import kernel as indexer_kernel
from glm_trt.plugins.indexer_topk import launch as indexer_launch
from glm_trt.plugins.indexer_topk.reference import reference as indexer_reference
from glm_trt.plugins.sparse_mla import cases as mla_cases
from glm_trt.plugins.sparse_mla import kernel as mla_kernel
from glm_trt.plugins.sparse_mla import launch as mla_launch
from glm_trt.plugins.sparse_mla.reference import reference as mla_reference

ROOT = Path(__file__).parent.parent.parent
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
GUARD, ROOM = 64, 8192  # elements before a buffer and behind it
POISON = {torch.int32: 1 << 30, torch.int64: 1 << 60}


def guarded(tensor: Tensor) -> Tensor:
    """The same between numbers that show in a result if they are read."""
    fill = POISON.get(tensor.dtype, float("nan"))
    whole = torch.full((tensor.numel() + 2 * GUARD,), fill, dtype=tensor.dtype)
    inner = whole[GUARD : GUARD + tensor.numel()].view(tensor.shape)
    inner.copy_(tensor)
    return inner


class Fresh:
    """Allocates buffers of NaN (of −7 for integers), with room behind them that must stay so."""

    def __init__(self) -> None:
        self.made: list[tuple[Tensor, Tensor]] = []

    def __call__(self, shape: list[int], *, dtype: torch.dtype, device: Any) -> Tensor:
        count = int(torch.Size(shape).numel())
        fill = float("nan") if dtype.is_floating_point else -7
        whole = torch.full((GUARD + count + ROOM,), fill, dtype=dtype)
        buffer = whole[GUARD : GUARD + count].view(shape)
        self.made.append((whole, buffer))
        return buffer

    def check(self) -> None:
        for whole, buffer in self.made:
            fill = torch.full_like(whole, float("nan") if whole.is_floating_point() else -7)
            for part in (slice(GUARD), slice(GUARD + buffer.numel(), None)):
                assert torch.equal(whole[part].view(torch.uint8), fill[part].view(torch.uint8))


def index(inputs: list[Tensor], index_topk: int, target: str, kernels: Any = None) -> Tensor:
    attributes = {"index_topk": index_topk, "scale": 0.25}
    inputs = [guarded(tensor) for tensor in inputs]
    kernels, allocate = kernels or vars(indexer_kernel), Fresh()
    (found,) = run(indexer_launch.LAUNCHES, kernels, inputs, attributes, target, allocate=allocate)
    allocate.check()
    return found


# (batch, length, capacity, past lengths, index_topk): one program a query, several; decode, prefill
SHAPES = [
    (2, 1, 300, [250, 120], 40),
    (2, 6, 90, [70, 11], 24),
    (1, 1, 4500, [4400], 256),
    (1, 5, 2500, [2400], 64),
]


@pytest.mark.parametrize(("shape", "dtype"), by_turns(SHAPES, DTYPES))
def test_random_scores_differ_from_exact_ones_in_near_ties_alone(
    shape: Any, dtype: torch.dtype
) -> None:
    batch, length, capacity, past, count = shape
    generator = torch.Generator().manual_seed(3)

    def random(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator)

    inputs = [
        random(batch, length, 6, 24).to(dtype), random(batch, 1, capacity, 24).to(dtype),
        random(batch, length, 6), torch.tensor(past),
    ]  # fmt: skip
    found = index(inputs, count, "sm90")
    query, keys, weights = (t.double() for t in inputs[:3])
    for b in range(batch):
        for s in range(length):
            seen = past[b] + s + 1
            parts = torch.relu(query[b, s] @ keys[b, 0, :seen].T * 0.25) * weights[b, s][:, None]
            exact = parts.sum(0)
            # Float32 sums of 24 products, times a scale and a weight, then of 6 heads.
            sizes = (query[b, s].abs() @ keys[b, 0, :seen].abs().T * 0.25).T @ weights[b, s].abs()
            noise = 64 * 2.0**-24 * float(sizes.max())
            row = found[b, s].long()
            row = row[row >= 0]
            assert len(row) == min(count, seen)
            assert bool((row.diff() > 0).all()) and int(row.max()) < seen
            chosen = torch.zeros(seen, dtype=torch.bool)
            chosen[row] = True
            if count < seen:
                assert exact[chosen].min() >= exact[~chosen].max() - noise
                clear = exact > exact.topk(count).values[-1] + noise
                assert bool(chosen[clear].all())


def selected(scores: Tensor, index_topk: int) -> Tensor:
    """The kernels' selection from given scores [C] of a query that sees them all."""

    class Given:
        def __getitem__(self, grid: Any) -> Any:
            return lambda *arguments, **_: arguments[4].view(-1).copy_(scores)

    inputs = [
        torch.zeros(1, 1, 1, 8), torch.zeros(1, 1, len(scores), 8), torch.zeros(1, 1, 1),
        torch.tensor([len(scores) - 1]),
    ]  # fmt: skip
    kernels = vars(indexer_kernel) | {"score_positions": Given()}
    return index(inputs, index_topk, "sm90", kernels)[0, 0]


@pytest.mark.parametrize("index_topk", [1, 3, 64, 999])
@pytest.mark.parametrize("capacity", [1000, 5000])
@pytest.mark.parametrize(
    "kind", ["normal", "few values", "all bits", "zeros", "rising", "low byte"]
)
def test_selection_is_exact(capacity: int, index_topk: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(capacity + index_topk)
    if kind == "normal":
        scores = torch.randn(capacity, generator=generator)
    elif kind == "few values":
        scores = torch.randint(-2, 3, (capacity,), generator=generator).float() / 3
    elif kind == "all bits":  # denormals, infinities, every exponent; no NaN
        bits = torch.randint(-(2**31), 2**31, (capacity,), generator=generator).int()
        scores = bits.view(torch.float32)
        scores = torch.where(scores.isnan(), float("inf"), scores)
    elif kind == "zeros":  # −0 equals +0; above and below them the smallest numbers
        bits = torch.tensor([0, -(2**31)] * 20 + [1, -(2**31) + 1], dtype=torch.int32)
        scores = bits[torch.randint(42, (capacity,), generator=generator)].view(torch.float32)
    elif kind == "rising":
        scores = torch.arange(capacity).float() - 70
    else:  # equal in all but the last eight bits
        bits = 0x3F800000 + torch.randint(0, 200, (capacity,), generator=generator).int()
        scores = bits.int().view(torch.float32)
    listed = scores.tolist()
    best = sorted(range(capacity), key=lambda p: (-listed[p], p))[:index_topk]
    assert selected(scores, index_topk).tolist() == sorted(best)


@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_visible_is_scored_and_nothing_else(length: int, dtype: torch.dtype) -> None:
    allocate = Fresh()
    query, keys = torch.ones(1, length, 3, 8), torch.ones(1, 1, 20, 8)
    inputs = [query.to(dtype), keys.to(dtype), torch.ones(1, length, 3), torch.tensor([10])]
    attributes = {"index_topk": 4, "scale": 0.25}
    run(
        indexer_launch.LAUNCHES, vars(indexer_kernel), inputs, attributes, "sm80", allocate=allocate
    )
    scores = allocate.made[1][1].view(length, 20)
    for s in range(length):
        assert scores[s, : 11 + s].tolist() == [6.0] * (11 + s)
        assert bool(scores[s, 11 + s :].isnan().all())


def attend(inputs: list[Tensor], attributes: dict[str, Any], target: str) -> Tensor:
    inputs = [guarded(tensor) for tensor in inputs]
    kernels, allocate = vars(mla_kernel), Fresh()
    (found,) = run(mla_launch.LAUNCHES, kernels, inputs, attributes, target, allocate=allocate)
    allocate.check()
    return found


# Of the targets sm80, sm89 and sm90 have all the forms that there are.
@pytest.mark.parametrize("target", mostly_slow(TARGETS, "sm80", "sm89", "sm90"))
@pytest.mark.parametrize("dtype", mostly_slow(DTYPES, torch.bfloat16))
@pytest.mark.parametrize("name", ["64 heads a program, split", "split, -1 anywhere"])
def test_attention_on_every_target(name: str, dtype: torch.dtype, target: str) -> None:
    (case,) = (case for case in mla_cases.CASES if case.name == name)
    inputs = case.make(torch.Generator().manual_seed(5), dtype)
    wanted = mla_reference(*inputs, **case.attributes).double()
    difference = (attend(inputs, case.attributes, target).double() - wanted).norm()
    tolerance = mla_launch.CONTRACT.tolerance[str(dtype).removeprefix("torch.")]
    assert difference <= tolerance * wanted.norm()


@pytest.mark.parametrize("target", mostly_slow(TARGETS, "sm90"))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_positions_on_every_target(dtype: torch.dtype, target: str) -> None:
    generator = torch.Generator().manual_seed(6)
    integers = [torch.randint(-3, 4, s, generator=generator).float()
                for s in ((2, 5, 3, 9), (2, 1, 150, 9), (2, 5, 3))]  # fmt: skip
    inputs = [integers[0].to(dtype), integers[1].to(dtype), integers[2], torch.tensor([140, 60])]
    wanted = indexer_reference(*inputs, index_topk=20, scale=0.25)
    assert torch.equal(index(inputs, 20, target), wanted)


@pytest.mark.parametrize("selected", [20, 200])
@pytest.mark.parametrize("kind", ["none", "last alone"])
def test_rows_of_no_entry_or_one(kind: str, selected: int) -> None:
    """Nothing selected gives zeros, in the reference too; one entry gives its own value."""
    generator = torch.Generator().manual_seed(7)
    query = torch.randn(1, 2, 3, 24, generator=generator)
    cache = torch.full((1, 1, 256, 24), float("nan"))
    cache[0, 0, 255] = torch.randn(24, generator=generator)
    indices = torch.full((1, 2, selected), -1, dtype=torch.int32)
    if kind == "last alone":
        indices[:, 1, selected - 1] = 255
    inputs, attributes = [query, cache, indices], {"scale": 0.2, "value_width": 16}
    found = attend(inputs, attributes, "sm90")
    assert torch.equal(found, mla_reference(*inputs, **attributes))
    assert torch.equal(found[0, 0], torch.zeros(3, 16))
    if kind == "last alone":
        assert torch.equal(found[0, 1], cache[0, 0, 255, :16].expand(3, 16))


def test_large_scores_do_not_overflow() -> None:
    generator = torch.Generator().manual_seed(8)
    query, cache = (torch.randn(s, generator=generator) for s in ((1, 1, 3, 24), (1, 1, 200, 24)))
    indices = torch.arange(200, dtype=torch.int32).view(1, 1, 200)
    inputs, attributes = [query * 100, cache, indices], {"scale": 10.0, "value_width": 16}
    wanted = mla_reference(*inputs, **attributes)
    found = attend(inputs, attributes, "sm90")
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-6)


def glm(batch: int, context: int = 131072) -> dict[str, int]:
    return {"B": batch, "S": 1, "H": 64, "D": 576, "C": context, "K": 2048, "value_width": 512}


@pytest.mark.parametrize(
    ("batch", "wide", "splits"), [(1, 0, 32), (8, 0, 8), (16, 1, 8), (64, 1, 2), (200, 1, 1)]
)
def test_decode_fills_a_gpu(batch: int, wide: int, splits: int) -> None:
    """Splits at GLM-5.1's dimensions; and both ways of selecting positions."""
    assert evaluate(mla_launch.WIDE, glm(batch)) == wide
    assert evaluate(mla_launch.SPLITS, glm(batch)) == splits
    chunks = max(1, min(32, 256 // batch))
    assert evaluate(indexer_launch.CHUNKS, glm(batch)) == chunks
    assert evaluate(indexer_launch.CHUNKS, glm(batch, context=2000)) == 1


COMPILE = """
import sys
from pathlib import Path
from glm_trt.plugins.build import load_launches
from glm_trt.plugins.common.aot import compile_variant, variant
from glm_trt.plugins.common.contract import Types

sizes = {"BLOCK_R": 512, "BLOCK_P": 64, "BLOCK_H": 32, "BLOCK_D": 128}
for launches, kernels in load_launches():
    if launches.contract.name not in ("IndexerTopK", "SparseMla", "CausalMla"):
        continue
    for i, launch in enumerate(launches.steps):
        if launch.configs["*"].get("MIXED"):
            continue  # not with 64 heads
        for target, dtype in (pair.split("/") for pair in sys.argv[2:]):
            chosen = tuple((name, sizes[name]) for name in launch.constants)
            types = Types(dtype, dtype)
            of = variant(launches, launch, kernels, target, types, chosen, bool(launch.aligned))
            cubin = compile_variant(of, kernels, Path(sys.argv[1]) / "cache")
            path = Path(sys.argv[1]) / f"{launches.contract.name}-{i}-{target}-{dtype}.cubin"
            path.write_bytes(cubin.image)
            print(path, target, launch.kernel, cubin.shared_bytes)
"""
COMPILED = ("sm80/bfloat16", "sm89/float16", "sm90/bfloat16", "sm120/bfloat16", "sm90/float32",
            "sm100/float16")  # fmt: skip


def compiled(directory: Path) -> Iterator[tuple[Path, str, str, int]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    printed = subprocess.run(
        [sys.executable, "-c", COMPILE, str(directory), *COMPILED],
        env=environment, cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for line in printed.splitlines():
        path, target, kernel, shared = line.split()
        yield Path(path), target, kernel, int(shared)


def test_compiled_kernels_fit_at_the_models_dimensions(each_library: Path) -> None:
    """Of the library; nothing spills but where that pays."""
    attentions = (indexer_launch.LAUNCHES, mla_launch.LAUNCHES, causal_launch.LAUNCHES)
    launches = [launch for of in attentions for launch in of.steps]
    functions = {launch.kernel for launch in launches}
    aligned = {launch.kernel for launch in launches if launch.aligned}
    seen = set()
    for kernel in compiled_kernels(each_library, functions):
        constants = dict(kernel.entry["constants"])
        sizes = {"BLOCK_R": 512, "BLOCK_D": 128, "MIXED": 0}
        if any(constants.get(name, of) != of for name, of in sizes.items()):
            continue
        if kernel.entry["function"] in aligned and not kernel.is_aligned:
            continue
        assert kernel.fits and not kernel.spills, kernel
        seen.add(kernel.entry["function"])
    assert seen == functions


@pytest.mark.slow
def test_kernels_fit_on_every_target(tmp_path: Path) -> None:
    """Ahead of time, with no GPU: shared memory is what the target has, and nothing spills."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    seen = 0
    for path, target, kernel, shared in compiled(tmp_path):
        command = [str(tool), "--dump-resource-usage", str(path)]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        (usage,) = re.findall(r"REG:\d+ STACK:(\d+) .*?LOCAL:(\d+)", printed)
        spilled, most = sum(map(int, usage)), SPILLS_THAT_PAY.get((kernel, target), 0)
        assert spilled <= most, f"{kernel} on {path.stem} spills: {printed}"
        assert shared <= SHARED_KB[target] * 1024, f"{kernel} on {path.stem}: {shared} bytes"
        seen += 1
    attentions = (indexer_launch.LAUNCHES, mla_launch.LAUNCHES, causal_launch.LAUNCHES)
    assert seen == len(COMPILED) * (sum(len(launches.steps) for launches in attentions) - 1)
