"""What this product cannot do yet of what a plan asks for: a plan is of the hardware."""

from __future__ import annotations

from glm_trt.engines.build.flavours import RTX_TARGETS
from glm_trt.engines.planning.gpus import GpuModel

# Architectures whose engines, or kernels for engines of the data-centre flavour, are built.
# Blackwell Ultra (sm103) does not take sm100's kernels, which use what sm100 alone has.
BUILT_TARGETS = ("sm80", "sm86", "sm89", "sm90", "sm100", "sm120")


def missing(gpu: GpuModel, gpus: int, batch: int) -> list[str]:
    """What stands between this choice and running it today, each a phrase; none where it runs."""
    found = []
    if gpus > 1:
        found.append(f"a model split over {gpus} devices")
    if batch > 1:
        found.append(f"{batch} sequences in one pass of an engine")
    if gpu.target not in BUILT_TARGETS:
        found.append(f"kernels for {gpu.target}")
    return found


def untried(gpu: GpuModel) -> list[str]:
    """What has not been done on such a GPU yet, each a phrase."""
    if gpu.target in RTX_TARGETS:
        return [f"engines for {gpu.target} are built by tensorrt-rtx, and have not run on a GPU"]
    return [
        f"engines for {gpu.target} are built by tensorrt 11 on such a GPU itself, where none has "
        "been built"
    ]
