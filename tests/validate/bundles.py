"""Bundles that tests of validation share: one of each way of storing weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from checkpoints import make_oracle, save
from hybrids import make_hybrid, save_hybrid
from quantize_checkpoint import quantize_checkpoint
from safetensors.torch import load_file, save_file

from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint

# Each with its weights inside, so that a copy of it can be changed.
BUNDLES = ("plain", "hybrid", "fp8", "nvfp4", "mtp")
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
    elif name == "mtp":
        save_with_prediction(seed, checkpoint)
    else:  # NVFP4 groups 16 inputs
        save(make_oracle(seed, q_lora_rank=32, moe_intermediate_size=32), place / "wide")
        quantize_checkpoint(place / "wide", checkpoint, name)
    return checkpoint


def save_with_prediction(seed: int, directory: Path) -> None:
    """Two decoder layers and an MTP layer, which transformers neither has nor writes: the third
    layer of a model of three, with norms and a projection of its own.
    """
    save(make_oracle(seed), directory)
    path = directory / "config.json"
    config = json.loads(path.read_text())
    decoder = config["num_hidden_layers"] - 1
    config |= {"num_hidden_layers": decoder, "num_nextn_predict_layers": 1}
    config |= {k: x[:decoder] for k, x in config.items() if k.endswith("_types")}
    path.write_text(json.dumps(config))
    tensors = load_file(directory / "model.safetensors")
    random, width = torch.Generator().manual_seed(seed), config["hidden_size"]
    of_layer = f"model.layers.{decoder}."
    for name in ("enorm", "hnorm", "shared_head.norm"):
        weight = 1 + 0.1 * torch.randn(width, generator=random)
        tensors[f"{of_layer}{name}.weight"] = weight
    projection = torch.randn(width, 2 * width, generator=random)
    tensors[f"{of_layer}eh_proj.weight"] = projection / (2 * width) ** 0.5
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
