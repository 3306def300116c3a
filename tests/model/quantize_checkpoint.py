"""Quantising a checkpoint as the published FP8 and NVFP4 ones are: for tests, and to try with.

    python tests/model/quantize_checkpoint.py IN OUT --precision fp8|nvfp4 [--dequantized]

Nothing of glm_trt is used: what is written here is what glm_trt must understand. FP8 as in the
release of GLM-5.1 (e4m3, blocks of 128 x 128, `weight_scale_inv`; the list of exclusions with its
`indexers_proj`, which is no tensor's name); NVFP4 as ModelOpt writes it (e2m1 pairs, the first in
the low bits, an e4m3 scale for 16 inputs, `weight_scale_2` and `input_scale`). `--dequantized`
writes what that checkpoint means instead, in float32 and whole, for readers that know neither.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]
# What both publishers leave alone: the names end so.
WHOLE = (
    "embed_tokens", "lm_head", "norm", "mlp.gate", "weights_proj", "eh_proj",
    "in_proj_ba", "conv1d",
)  # fmt: skip
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def quantize_fp8(weight: Tensor) -> Tensors:
    """[out, in] → e4m3 codes, and a scale a block: its largest value becomes 448."""
    rows, columns = weight.shape
    codes = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
    scales = torch.empty(-(-rows // 128), -(-columns // 128))
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            part = slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128)
            scales[i, j] = weight[part].abs().max().clamp(min=1e-12) / 448
            codes[part] = (weight[part] / scales[i, j]).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale_inv": scales}


def dequantize_fp8(parts: Tensors) -> Tensor:
    """What `quantize_fp8` made, in float32."""
    weight = parts["weight"].float()
    for i in range(parts["weight_scale_inv"].shape[0]):
        for j in range(parts["weight_scale_inv"].shape[1]):
            part = slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128)
            weight[part] *= parts["weight_scale_inv"][i, j]
    return weight


def quantize_nvfp4(weight: Tensor) -> Tensors:
    """[out, in] → e2m1 pairs in bytes, an e4m3 scale a row and 16 inputs, a scale of all."""
    rows, columns = weight.shape
    groups = weight.view(rows, columns // 16, 16)
    global_scale = weight.abs().max().clamp(min=1e-12) / (6 * 448)
    scale = (groups.abs().amax(-1) / 6 / global_scale).clamp(2.0**-9, 448).to(torch.float8_e4m3fn)
    scaled = (groups / (scale.float() * global_scale).unsqueeze(-1)).reshape(rows, columns)
    codes = (scaled.abs().unsqueeze(-1) - E2M1).abs().argmin(-1) + 8 * (scaled < 0)
    packed = (codes[:, 0::2] + 16 * codes[:, 1::2]).to(torch.uint8)
    return {
        "weight": packed,
        "weight_scale": scale,
        "weight_scale_2": global_scale,
        "input_scale": torch.tensor(0.01),
    }


def dequantize_nvfp4(parts: Tensors) -> Tensor:
    """What `quantize_nvfp4` made, in float32."""
    packed = parts["weight"].long()
    codes = torch.stack([packed % 16, packed // 16], dim=-1).flatten(1)
    values = E2M1[codes % 8] * (1 - 2 * (codes // 8))
    scale = parts["weight_scale"].float() * parts["weight_scale_2"]
    return values * scale.repeat_interleave(16, 1)


def quantization_config(precision: str, layers: int, excluded: list[str]) -> dict[str, Any]:
    """As the publishers write it into `config.json`."""
    if precision == "fp8":
        ignored = [f"model.layers.{i}.self_attn.indexers_proj" for i in range(layers)]
        return {
            "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
            "weight_block_size": [128, 128],
            "modules_to_not_convert": ["lm_head", "model.embed_tokens", *ignored, *excluded],
        }  # fmt: skip
    ignored = [f"model.layers.{i}.mlp.gate" for i in range(layers)]
    return {
        "quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16,
        "ignore": ["lm_head", *ignored, *excluded],
    }  # fmt: skip


def quantize_checkpoint(
    source: Path, output: Path, precision: str, *, dequantized: bool = False,
    excluded: tuple[str, ...] = (),
) -> Path:  # fmt: skip
    """Write `output`; `excluded` are names of modules, or patterns, that stay whole besides."""
    output.mkdir(parents=True, exist_ok=True)
    config = json.loads((source / "config.json").read_text())
    layers = config["num_hidden_layers"] + config.get("num_nextn_predict_layers", 0)
    tensors: Tensors = {}
    for path in sorted(source.glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            tensors |= dict(_converted(name, tensor, precision, dequantized, excluded))
    save_file(tensors, output / "model.safetensors", metadata={"format": "pt"})
    if dequantized:
        config["dtype"] = "float32"
    else:
        of = quantization_config(precision, layers, list(excluded))
        config["quantization_config"] = of
    (output / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for path in source.glob("*.json"):
        if path.name != "config.json" and "index" not in path.name:
            shutil.copy(path, output)
    return output


def _converted(
    name: str, tensor: Tensor, precision: str, dequantized: bool, excluded: tuple[str, ...]
) -> Iterator[tuple[str, Tensor]]:
    module = name.removesuffix(".weight")
    patterns = (*excluded, *(f"*{whole}" for whole in WHOLE))
    whole = tensor.ndim != 2 or any(fnmatch.fnmatchcase(module, entry) for entry in patterns)
    if whole:
        yield name, tensor.float() if dequantized else tensor
        return
    quantize, back = {
        "fp8": (quantize_fp8, dequantize_fp8),
        "nvfp4": (quantize_nvfp4, dequantize_nvfp4),
    }[precision]
    parts = quantize(tensor.float())
    if dequantized:
        yield name, back(parts)
        return
    for part, value in parts.items():
        yield f"{module}.{part}", value


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--precision", choices=("fp8", "nvfp4"), required=True)
    parser.add_argument("--exclude", nargs="*", default=[], metavar="MODULE")
    parser.add_argument("--dequantized", action="store_true")
    options = parser.parse_args()
    quantize_checkpoint(
        options.checkpoint, options.output, options.precision,
        dequantized=options.dequantized, excluded=tuple(options.exclude),
    )  # fmt: skip
