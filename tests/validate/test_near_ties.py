"""Who parted from the exact model is told apart, and a backend that does so more often fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from bundles import LENGTH as MAX_SEQ_LEN
from faults import Faulty, insert, node_of
from onnx import helper
from test_faults import problems

from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint
from glm_trt.validate.judging.compare import Choices
from glm_trt.validate.judging.measure import BlockResult
from glm_trt.validate.judging.near_ties import NearTies
from glm_trt.validate.judging.partings import Parted, Partings, SetAside
from glm_trt.validate.running.cases import CaseOptions
from glm_trt.validate.running.walk import Observation
from glm_trt.validate.validation import ValidationOptions, validate_bundle

Made = Callable[[str], tuple[Path, Path]]
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


def test_what_follows_a_fault_is_its_doing() -> None:
    """Scores of later blocks' own are judged all the same."""
    ties = NearTies("bfloat16")
    list(ties.add(block(20, 20)))
    ties.faulty()
    later = [x.text for x in ties.add(block(80, 20, (300, 20)))]
    assert later == ["80 near ties, allowed 67: the dtype has 20"]


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


ROUTED = ("layer.1", "layer.2")


def offset_router(bundle: Faulty, finer: float) -> None:
    """Router logits of about −4 that differ little between experts, as a channel in which all
    tokens are alike gives them, and experts that matter little.

    In half precision they lose what they differ in; the routing weights, which depend on it, are
    lost among other roundings. Scores differ `finer` times less.
    """

    def alike(embedding: Any) -> Any:
        embedding[:, 0] = 9
        return embedding

    def offset(scale: float) -> Callable[[Any], Any]:
        def edit(gate: Any) -> Any:
            gate *= scale / finer
            gate[:, 0] = -1
            return gate

        return edit

    bundle.weight("embedding", "embed_tokens.weight", alike)
    for block, scale in zip(ROUTED, (0.14, 0.4), strict=True):
        bundle.weight(block, "mlp.gate.weight", offset(scale))
        bundle.weight(block, "mlp.gate.e_score_correction_bias", lambda bias: bias * 0)
        bundle.weight(block, "mlp.experts.down_proj", lambda down: down * 0.1)


def half_router(bundle: Faulty, narrow: int) -> None:
    """Router logits go through a half precision."""

    def edit(model: onnx.ModelProto) -> None:
        node = node_of(model, "MoeRouting")
        insert(
            model, node,
            helper.make_node("Cast", [node.input[0]], ["half_logits"], to=narrow),
            helper.make_node("Cast", ["half_logits"], ["logits_again"], to=onnx.TensorProto.FLOAT),
        )  # fmt: skip
        node.input[0] = "logits_again"

    bundle.graphs(ROUTED[0], edit)


BFLOAT16, FLOAT16 = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT16


@pytest.mark.parametrize(
    ("dtype", "narrow", "finer", "faulty"),
    [
        ("bfloat16", BFLOAT16, 1, True),
        pytest.param("bfloat16", BFLOAT16, 1, False, marks=pytest.mark.slow),
        pytest.param("float16", FLOAT16, 8, True, marks=pytest.mark.slow),
        pytest.param("float16", FLOAT16, 8, False, marks=pytest.mark.slow),
    ],
)
def test_a_router_in_half_precision_is_found(
    made: Made, tmp_path: Path, dtype: str, narrow: int, finer: float, faulty: bool
) -> None:
    """Nothing but choices says so; without the fault nothing does."""
    checkpoint, bundle = made("plain")
    if dtype == "float16":
        bundle = tmp_path / "float16"
        options = ExportOptions(("float32", dtype), MAX_SEQ_LEN, materialize=True)
        export_checkpoint(checkpoint, bundle, options)
    copy = Faulty(bundle, tmp_path / "copy")
    offset_router(copy, finer)
    if faulty:
        half_router(copy, narrow)
    copy.seal()
    report = validate_bundle(
        copy.directory, ValidationOptions("graph", dtype, cases=CaseOptions(seed=1))
    )
    assert report["ok"] is not faulty, problems(report)
    kinds = {problem["problem"] for of in report["blocks"] for problem in of["problems"]}
    assert ("near ties" in kinds) is faulty and kinds <= {"near ties", "choices"}
    chosen = [of["choices"]["expert_indices"] for of in report["blocks"] if of["name"] in ROUTED]
    more = [of["near_ties"] - of["dtype_near_ties"] for of in chosen]
    assert all(count > 6 for count in more) if faulty else max(map(abs, more)) < 6
    aside = report["end_to_end"]["tokens_set_aside_by"]
    assert (aside["found"] > 1.1 * aside["dtype"]) is faulty
