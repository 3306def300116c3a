"""What is noticed is the distance to the farther bound, in the phase that sees more."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benchmarks"))

from validation_sensitivity import smallest


def slope(found: float, lowest: float, highest: float) -> dict[str, Any]:
    return {"found": found, "dtype": 0.0, "lowest": lowest, "highest": highest, "ok": True}


def test_the_smallest_that_is_noticed() -> None:
    phases = {
        "prefill": {"update": slope(0.5, -1.0, 2.0), "bias of channel 3": slope(0.0, -1.0, 1.0)},
        "decode": {"update": slope(-1.0, -4.0, 3.0), "bias of channel 9": slope(0.0, -3.0, 3.0)},
    }
    blocks = [
        {"layer": 0, "systematic": {"hidden_out": phases}},
        {"layer": None, "systematic": {"hidden_out": phases}},
    ]
    assert smallest({"blocks": blocks}) == {"update": [1.5], "bias of channel": [1.0]}
