"""Who parted from the exact model is told apart, and a backend that does so more often fails."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from glm_trt.validate.compare import Choices
from glm_trt.validate.measure import BlockResult
from glm_trt.validate.near_ties import NearTies
from glm_trt.validate.partings import Parted, Partings, SetAside
from glm_trt.validate.walk import Observation

LENGTH = 8


def observation(block: str, rows: Any = None, **unlike: dict[str, list[int]]) -> Observation:
    """One sequence, in which the chains choose otherwise for the tokens given of each output."""
    exact = {name: np.tile([0, 1], (1, LENGTH, 1)) for name in unlike}
    tensors: dict[str, Any] = {"exact": exact}
    for chain in ("found", "rounded"):
        tensors[chain] = {name: chosen.copy() for name, chosen in exact.items()}
        for name, tokens in unlike.items():
            tensors[chain][name][0, tokens[chain], 1] = 2
            tensors[chain][name] = tensors[chain][name][..., ::-1]  # the same sets
    return Observation(block, "text", "propagated", 0, LENGTH, tensors, rows=rows)


def partings() -> Partings:
    case: Any = SimpleNamespace(name="text", ids=np.zeros((1, LENGTH), np.int64))
    return Partings([case])


def test_who_parted_is_told_apart() -> None:
    walk, pooled, aside = partings(), dict[str, Parted](), SetAside()
    seen = observation("layer.0", topk_indices={"found": [5, 6], "rounded": [6]},
                       expert_indices={"found": [3, 5], "rounded": [1]})  # fmt: skip
    set_aside = walk.add(seen, pooled, aside)
    # Tokens 5 and 6 attend elsewhere, so that they may be routed elsewhere.
    assert pooled == {"topk_indices": Parted(8, 2, 1), "expert_indices": Parted(6, 1, 1)}
    assert aside == SetAside(4, 3, 2)
    assert np.nonzero(set_aside[0])[0].tolist() == [1, 3, 5, 6]
    # Behind that block all tokens after one that parted have another text before them.
    later, behind = dict[str, Parted](), SetAside()
    walk.add(observation("layer.1", topk_indices={"found": [0, 2], "rounded": []}), later, behind)
    assert later == {"topk_indices": Parted(1, 1, 0)}
    assert behind == SetAside(8, 7, 7)


def test_padding_does_not_part() -> None:
    walk, pooled, aside = partings(), dict[str, Parted](), SetAside()
    rows = np.array([[True] * 5 + [False] * 3])
    seen = observation("layer.0", rows, topk_indices={"found": [6, 7], "rounded": [4]})
    set_aside = walk.add(seen, pooled, aside)
    assert pooled == {"topk_indices": Parted(5, 0, 1)} and aside == SetAside(1, 0, 1)
    assert set_aside.sum() == 1


def block(found: int, dtype: int, parted: tuple[int, int] = (0, 0)) -> BlockResult:
    return BlockResult(
        "layer", "kind", choices={"topk_indices": Choices(999, found, dtype)},
        parted={"topk_indices": Parted(999, *parted)},
    )  # fmt: skip


def judged(*blocks: BlockResult, dtype: str = "bfloat16") -> list[list[str]]:
    ties = NearTies(dtype)
    return [[f"{x.output}: {x.text}" for x in ties.add(each)] for each in blocks]


def test_too_many_in_one_block() -> None:
    assert judged(block(20, 20, (25, 21))) == [[]]
    found = judged(block(80, 20), block(20, 20))
    assert found == [["topk_indices: 80 near ties, allowed 67: the dtype has 20"], []]
    found = judged(block(20, 20, (80, 20)))
    assert found == [["topk_indices: 80 near ties of its own run, allowed 67: the dtype has 20"]]


@pytest.mark.parametrize("own", [False, True])
def test_a_few_more_in_every_block_are_many_in_all(own: bool) -> None:
    """Said of the block in which they become too many, once; not of what is said by itself."""
    few = block(0, 0, (40, 20)) if own else block(40, 20)
    found = judged(*[few] * 6)
    what = "near ties of its own run" if own else "near ties"
    assert found == [
        [], [], [], [],
        [f"topk_indices: 200 {what} in this block and those before it, allowed 196: the dtype has "
         "100"],
        [],
    ]  # fmt: skip
    assert judged(block(300, 20), *[block(30, 20)] * 4)[1:] == [[]] * 4


def test_by_chance_never_too_many() -> None:
    random = np.random.default_rng(5)
    for dtype, mean in (("float32", 0.3), ("bfloat16", 2.0), ("bfloat16", 25.0)):
        for _ in range(300):
            counts = random.poisson(mean, (78, 4))
            found = judged(*(block(a, b, (c, d)) for a, b, c, d in counts), dtype=dtype)
            assert not any(found)
