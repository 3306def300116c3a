"""Of gains and biases a report shows the worst of each kind; of far positions how far they went."""

from __future__ import annotations

from typing import Any

import pytest

from glm_trt.validate.reporting.report_slopes import slopes_line, worst_of_kinds, worst_slopes
from glm_trt.validate.reporting.report_text import far_line


def slope(found: float, lowest: float, highest: float) -> dict[str, Any]:
    return {"found": found, "dtype": 0.0, "lowest": lowest, "highest": highest, "ok": True}


def block(name: str, kind: str, **outputs: Any) -> dict[str, Any]:
    return {"name": name, "kind": kind, "systematic": outputs}


REPORT = {
    "blocks": [
        block("embedding", "embedding", hidden_out={"prefill": {"output": slope(0.0, -1.0, 1.0)}}),
        block("layer.0", "dense", hidden_out={
            "prefill": {"update": slope(0.5, -1.0, 2.0),
                        "bias of channel 3": slope(0.1, -1.0, 1.0)},
            "decode": {"update": slope(0.5, -1.0, 1.0), "shared_experts": slope(0.0, -1.0, 1.0)},
        }),
        block("layer.1", "dense", hidden_out={
            "prefill": {"update": slope(-0.8, -1.0, 4.0),
                        "bias of channel 9": slope(2.5, -1.0, 2.0)},
        }),
        block("head", "head", logits={}),
    ]
}  # fmt: skip


def test_the_worst_of_each_name_and_kind() -> None:
    found = {(x.kind, x.of): (x.share, x.counted, x.place) for x in worst_slopes(REPORT)}
    assert found == {
        ("embedding", "gain of the output itself"): (0.0, 1, "embedding hidden_out, prefill"),
        ("dense", "gain of all that is added"): (0.8, 3, "layer.1 hidden_out, prefill"),
        ("dense", "bias of one channel"): (1.25, 2, "layer.1 hidden_out, prefill, channel 9"),
        ("dense", "gain of shared experts"): (0.0, 1, "layer.0 hidden_out, decode"),
    }
    assert [x.ok for x in worst_slopes(REPORT)] == [True, True, False, True]


def test_the_worst_of_each_kind() -> None:
    found = [(x.kind, x.of, x.counted) for x in worst_of_kinds(REPORT)]
    assert found == [
        ("embedding", "gain of the output itself", 1), ("dense", "bias of one channel", 6)
    ]  # fmt: skip
    assert slopes_line(REPORT) == (
        "7 judged; the worst takes 125 % of its limit: bias of one channel, layer.1 hidden_out, "
        "prefill, channel 9"
    )
    assert slopes_line({"blocks": REPORT["blocks"][-1:]}) == "not judged: too few tokens"


@pytest.mark.parametrize(
    ("reached", "line"),
    [
        ({"embedding": 9999, "dense": 9999}, "every kind up to 9,999, the last"),
        ({"embedding": 9999, "a": 4095, "b": 4095, "c": 511},
         "embedding up to 9,999, the last; a, b up to 4,095; c up to 511"),
        ({"a": 4095}, "a up to 4,095; the last, 9,999, by none"),
    ],
)  # fmt: skip
def test_how_far_positions_went(reached: dict[str, int], line: str) -> None:
    far = [{"kind": kind, "position": at} for kind, at in reached.items()]
    assert far_line({"bundle": {"max_seq_len": 10_000}, "far": far}) == line
