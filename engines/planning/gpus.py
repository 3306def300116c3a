"""GPUs that a plan chooses from: vendor's figures, as data."""

from __future__ import annotations

from dataclasses import dataclass

from glm_trt.model.errors import GlmTrtError

# What the tensor cores of a target multiply. Anything else is dequantised inside the kernel.
_NATIVE = {
    "sm80": ("bf16",),
    "sm86": ("bf16",),
    "sm89": ("bf16", "fp8"),
    "sm90": ("bf16", "fp8"),
    "sm100": ("bf16", "fp8", "nvfp4"),
    "sm103": ("bf16", "fp8", "nvfp4"),
    "sm120": ("bf16", "fp8", "nvfp4"),
}


@dataclass(frozen=True)
class GpuModel:
    """One kind of GPU.

    Attributes
    ----------
    memory_gb : the vendor's number, read as 10⁹ bytes. Drivers show up to 7 % more for some cards
        (where the vendor means 2³⁰); a plan does not count on it.
    bandwidth_gb_s : of its memory, the vendor's peak, 10⁹ bytes a second.
    target : the architecture that engines and kernels are built for.
    """

    name: str
    title: str
    memory_gb: int
    bandwidth_gb_s: int
    target: str

    @property
    def memory_bytes(self) -> int:
        """All of its memory."""
        return self.memory_gb * 10**9

    @property
    def native(self) -> tuple[str, ...]:
        """Precisions that its tensor cores multiply."""
        return _NATIVE[self.target]


# From NVIDIA's data sheets of each product; bandwidths are those of the form named.
_ALL = (
    GpuModel("a100-40", "A100 40GB", 40, 1555, "sm80"),  # SXM4 and PCIe, HBM2
    GpuModel("a100-80", "A100 80GB", 80, 2039, "sm80"),  # SXM4, HBM2e; PCIe has 1,935
    GpuModel("h100", "H100 80GB", 80, 3350, "sm90"),  # SXM5, HBM3
    GpuModel("h100-pcie", "H100 PCIe", 80, 2000, "sm90"),  # HBM2e
    GpuModel("h100-nvl", "H100 NVL", 94, 3900, "sm90"),  # PCIe, HBM3; two may be bridged
    GpuModel("h200", "H200", 141, 4800, "sm90"),  # SXM5, HBM3e
    GpuModel("gh200-96", "GH200 96GB", 96, 4000, "sm90"),  # HBM3; the CPU's memory does not count
    GpuModel("gh200-144", "GH200 144GB", 144, 4900, "sm90"),  # HBM3e
    GpuModel("b200", "B200 180GB", 180, 8000, "sm100"),  # DGX B200: 1,440 GB and 64 TB/s of eight
    GpuModel("gb200", "GB200", 186, 8000, "sm100"),  # each of a superchip's two
    GpuModel("b200-192", "B200 192GB", 192, 8000, "sm100"),  # as announced
    GpuModel(
        "b300", "B300 270GB", 270, 8000, "sm103"
    ),  # SXM6, HBM3e: what a node's GPUs can address
    GpuModel("gb300", "GB300", 279, 8000, "sm103"),  # each of a superchip's; a rack of 72 has 20 TB
    GpuModel("b300-288", "B300 288GB", 288, 8000, "sm103"),  # as announced, all eight stacks
    GpuModel("l40s", "L40S", 48, 864, "sm89"),  # GDDR6
    GpuModel("rtx-6000-ada", "RTX 6000 Ada", 48, 960, "sm89"),  # GDDR6
    GpuModel("rtx-pro-6000", "RTX PRO 6000", 96, 1792, "sm120"),  # Blackwell Workstation, GDDR7
    GpuModel("rtx-5090", "RTX 5090", 32, 1792, "sm120"),  # GDDR7
    GpuModel("rtx-4090", "RTX 4090", 24, 1008, "sm89"),  # GDDR6X
)
GPUS = {gpu.name: gpu for gpu in _ALL}


def find_gpu(name: str) -> GpuModel:
    """The GPU of this name; GlmTrtError listing those there are."""
    if name not in GPUS:
        raise GlmTrtError(f"--gpu: expected one of {', '.join(GPUS)}; found {name}")
    return GPUS[name]
