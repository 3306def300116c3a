"""Bundles that tests of validation share: one of each way of storing weights."""

from __future__ import annotations

from pathlib import Path

from checkpoints import make_oracle, save
from hybrids import make_hybrid, save_hybrid
from quantize_checkpoint import quantize_checkpoint

from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint

# Each with its weights inside, so that a copy of it can be changed.
BUNDLES = ("plain", "hybrid", "fp8", "nvfp4")
LENGTH = 160  # keeps the longest case short, and the indexer choosing


def make_bundle(name: str, place: Path) -> tuple[Path, Path]:
    """Checkpoint and bundle of that name, in `place`; graphs in float32 and bfloat16."""
    checkpoint, bundle = make_checkpoint(name, place), place / name
    options = ExportOptions(("float32", "bfloat16"), LENGTH, materialize=True)
    export_checkpoint(checkpoint, bundle, options)
    return checkpoint, bundle


def make_checkpoint(name: str, place: Path, seed: int = 0, hybrid: str = "three_to_one") -> Path:
    """The checkpoint alone, with weights drawn by `seed`."""
    checkpoint = place / f"{name}-checkpoint"
    if name == "plain":
        save(make_oracle(seed), checkpoint)
    elif name == "hybrid":
        save_hybrid(make_hybrid(hybrid, seed), checkpoint)
    else:  # NVFP4 groups 16 inputs
        save(make_oracle(seed, q_lora_rank=32, moe_intermediate_size=32), place / "wide")
        quantize_checkpoint(place / "wide", checkpoint, name)
    return checkpoint
