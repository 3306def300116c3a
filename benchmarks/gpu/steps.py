"""The steps of the bring-up, in their order, each with its limit: 24 minutes together.

A step is a function in a file of its own, called in a process of its own. What comes first is what
the later steps rest on.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """`module` has a function `run(Settings) -> Outcome`; `limit_s` is what it may take."""

    name: str
    title: str
    module: str
    limit_s: int


STEPS = (
    Step("device", "the GPU and its driver", "step_device", 30),
    Step("driver", "the driver does as the code expects of it", "step_driver", 60),
    Step("kernels", "the shipped kernels against the references", "step_kernels", 150),
    Step("sanitizer", "compute-sanitizer over the same", "step_sanitizer", 240),
    Step("times", "times against eager, torch.compile and the roofline", "step_times", 420),
    Step("plans", "TensorRT loads the plugin library and plans", "step_plans", 60),
    Step("engines", "engines of the tiny model", "step_engines", 180),
    Step("validate", "the engines against the eager model", "step_validate", 120),
    Step("decode", "decoding, recorded and queued", "step_decode", 60),
    Step("cpp", "the C++ runtime makes the same tokens", "step_cpp", 120),
)
