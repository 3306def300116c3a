"""Small checkpoints as the tools of others quantise them, with the logits that those mean.

    python tests/data/make_quantised_checkpoints.py modelopt|llm-compressor OUT [--only NAME ...]

Run it where the tool is installed with transformers, in a virtual environment of its own: ModelOpt
0.47, or llm-compressor 0.14, with transformers 5.23. For each recipe OUT gets a checkpoint as the
tool writes it, and in it `expected.npz`: `input_ids`, and the `logits` that transformers computes
in float32 of the weights as the tool itself dequantises them. Nothing of glm_trt is used.

`refused.json` gets what the tool writes into `config.json` of recipes whose files are not read.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import GlmMoeDsaConfig, GlmMoeDsaForCausalLM

# Widths are multiples of NVFP4's groups. Index heads are 32: with few, scores of exactly 0 tie.
SIZES: dict[str, Any] = dict(
    vocab_size=128, hidden_size=64, intermediate_size=160, moe_intermediate_size=32,
    num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4, n_shared_experts=1,
    n_routed_experts=8, num_experts_per_tok=2, n_group=1, topk_group=1, first_k_dense_replace=1,
    kv_lora_rank=32, q_lora_rank=32, qk_rope_head_dim=16, qk_nope_head_dim=16, v_head_dim=32,
    index_topk=16, index_head_dim=16, index_n_heads=32, max_position_embeddings=512,
    rope_parameters={"rope_type": "default", "rope_theta": 1e6}, pad_token_id=0,
    bos_token_id=None, eos_token_id=0, dtype="bfloat16", architectures=["GlmMoeDsaForCausalLM"],
)  # fmt: skip
# Of those whose config alone is kept: integers come in groups of 128.
WIDE = dict(hidden_size=128, intermediate_size=256, moe_intermediate_size=128, num_hidden_layers=2,
            q_lora_rank=128, kv_lora_rank=128, v_head_dim=128, n_routed_experts=2)  # fmt: skip
E4M3 = {"num_bits": (4, 3), "axis": None}


def make_model(**changes: Any) -> GlmMoeDsaForCausalLM:
    """Random weights that keep activations near 1; the same each time."""
    config = GlmMoeDsaConfig(**{**SIZES, **changes})
    config._attn_implementation = config._experts_implementation = "eager"
    model = GlmMoeDsaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "inv_freq" in name:
                continue
            values = torch.randn(tensor.shape, generator=generator)
            if "norm" in name:
                values = values * 0.1 + name.endswith("norm.weight")
            elif tensor.ndim > 1 and "embed" not in name:
                values *= tensor.shape[-1] ** -0.5
            tensor.copy_(values.to(torch.bfloat16))
    return model.to(torch.bfloat16)


def input_ids() -> Tensor:
    """[2, 28]: longer than `index_topk`."""
    return torch.from_numpy(np.random.default_rng(0).integers(1, SIZES["vocab_size"], (2, 28)))


def write_expected(directory: Path, tensors: dict[str, Tensor]) -> None:
    """Logits of transformers on whole tensors, by their published names."""
    model = make_model().float()
    stacked = {name: tensor.float() for name, tensor in tensors.items()}
    for layer in range(1, SIZES["num_hidden_layers"]):
        prefix, rows = f"model.layers.{layer}.mlp.experts.", range(SIZES["n_routed_experts"])
        gate, up, down = (
            torch.stack([stacked.pop(f"{prefix}{i}.{of}_proj.weight") for i in rows])
            for of in ("gate", "up", "down")
        )
        stacked |= {f"{prefix}gate_up_proj": torch.cat([gate, up], 1), f"{prefix}down_proj": down}
    # Not `float()` of the model alone: its rotary frequencies would stay rounded.
    exact = GlmMoeDsaForCausalLM(model.config)
    exact.load_state_dict(stacked, strict=True)
    with torch.no_grad():
        logits = exact.eval().float()(input_ids(), use_cache=False).logits
    np.savez(directory / "expected.npz", input_ids=input_ids().numpy(), logits=logits.numpy())


def quantization_config(directory: Path) -> dict[str, Any]:
    """Its part of `config.json`."""
    return json.loads((directory / "config.json").read_text())["quantization_config"]


def modelopt_recipes() -> dict[str, dict[str, Any]]:
    """Those whose files are kept, by their folders."""
    import modelopt.torch.quantization as mtq

    nvfp4 = {"num_bits": (2, 1), "block_sizes": {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}}
    mixed: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for part, cfg in (("*self_attn.q_*", E4M3), ("*self_attn.o_proj*", E4M3),
                      ("*mlp.experts*", nvfp4), ("*shared_experts*", E4M3)):  # fmt: skip
        for of in ("weight_quantizer", "input_quantizer"):
            mixed.append({"quantizer_name": f"{part}{of}", "cfg": cfg})
    mixed.append({"quantizer_name": "*[kv]_bmm_quantizer", "cfg": E4M3})
    return {
        "nvfp4-experts-only": mtq.NVFP4_EXPERTS_ONLY_CFG,
        "nvfp4-mlp-only": mtq.NVFP4_MLP_ONLY_CFG,
        "nvfp4-default": mtq.NVFP4_DEFAULT_CFG,
        "fp8-by-tensor": mtq.FP8_DEFAULT_CFG,
        "mixed-precision": {"quant_cfg": mixed, "algorithm": "max"},
    }  # fmt: skip


MODELOPT_REFUSED = (
    "W4A8_NVFP4_FP8_CFG", "FP8_PER_CHANNEL_PER_TOKEN_CFG", "MXFP4_DEFAULT_CFG",
    "MXFP8_DEFAULT_CFG", "INT8_DEFAULT_CFG", "INT8_WEIGHT_ONLY_CFG",
)  # fmt: skip


def quantise_with_modelopt(recipe: dict[str, Any], directory: Path, **changes: Any) -> None:
    """Post-training quantisation, and ModelOpt's export of a Hugging Face checkpoint."""
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint

    def calibrate(model: torch.nn.Module) -> None:
        with torch.no_grad():
            model(input_ids())

    model = mtq.quantize(make_model(**changes), copy.deepcopy(recipe), calibrate)
    export_hf_checkpoint(model, export_dir=directory, dtype=torch.bfloat16)


def dequantise_with_modelopt(directory: Path) -> dict[str, Tensor]:
    """The checkpoint's weights, whole and in float32, by ModelOpt's own tensors."""
    from modelopt.torch.quantization.qtensor import FP8QTensor, NVFP4QTensor

    stored = load_file(directory / "model.safetensors")
    whole: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if name.endswith("_scale") or name.endswith("_scale_2"):
            continue
        if tensor.dtype == torch.uint8:
            shape = torch.Size((tensor.shape[0], 2 * tensor.shape[1]))
            whole[name] = NVFP4QTensor(shape, torch.float32, tensor).dequantize(
                dtype=torch.float32, scale=stored[f"{name}_scale"],
                double_scale=stored[f"{name}_scale_2"], block_sizes={-1: 16},
            )  # fmt: skip
        elif tensor.dtype == torch.float8_e4m3fn:
            whole[name] = FP8QTensor(tensor.shape, torch.float32, tensor).dequantize(
                dtype=torch.float32, scale=stored[f"{name}_scale"]
            )
        else:
            whole[name] = tensor
    return whole


def configs_of(recipes: dict[str, Any], quantise: Callable[..., None]) -> dict[str, Any]:
    """What a tool's config says of each recipe whose files are not read."""
    configs = {}
    for name, recipe in recipes.items():
        with tempfile.TemporaryDirectory() as place:
            quantise(recipe, Path(place), **WIDE)
            configs[name] = quantization_config(Path(place))
    return configs


def make_with_modelopt(output: Path, only: list[str]) -> None:
    """All of ModelOpt's."""
    import modelopt.torch.quantization as mtq

    for name, recipe in modelopt_recipes().items():
        if not only or name in only:
            quantise_with_modelopt(recipe, output / name)
            write_expected(output / name, dequantise_with_modelopt(output / name))
    if only:
        return
    recipes = {f"ModelOpt {name}": getattr(mtq, name) for name in MODELOPT_REFUSED}
    add_refused(output, configs_of(recipes, quantise_with_modelopt))


LLM_COMPRESSOR_REFUSED = (
    "FP8_DYNAMIC", "W8A8", "W4A16", "W4A16_ASYM", "W8A16", "NVFP4", "NVFP4A16", "MXFP4", "MXFP8",
)  # fmt: skip


def quantise_with_llm_compressor(scheme: str, directory: Path, **changes: Any) -> None:
    """Without data, all linear layers but the router, the indexer's head weights and the head."""
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier

    with tempfile.TemporaryDirectory() as place:
        make_model(**changes).save_pretrained(place)
        model = GlmMoeDsaForCausalLM.from_pretrained(place, dtype=torch.bfloat16)
        ignore = ["lm_head", "re:.*mlp.gate$", "re:.*indexer.weights_proj$"]
        modifier = QuantizationModifier(targets="Linear", scheme=scheme, ignore=ignore)
        oneshot(model=model, recipe=modifier, pipeline="datafree")
        model.save_pretrained(directory, save_compressed=True)
        (directory / "recipe.yaml").unlink()


def dequantise_with_compressed_tensors(directory: Path) -> dict[str, Tensor]:
    """The checkpoint's weights by compressed-tensors' own arithmetic, in float32."""
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    stored = load_file(directory / "model.safetensors")
    block = quantization_config(directory)["config_groups"]["group_0"]["weights"]
    from compressed_tensors.quantization import QuantizationArgs

    args = QuantizationArgs(**block)
    return {
        name: dequantize(tensor.float(), stored[f"{name}_scale"].float(), args=args)
        if f"{name}_scale" in stored else tensor
        for name, tensor in stored.items() if not name.endswith("_scale")
    }  # fmt: skip


def make_with_llm_compressor(output: Path, only: list[str]) -> None:
    """All of llm-compressor's."""
    for name, scheme in (("compressed-tensors-fp8-block", "FP8_BLOCK"),
                         ("compressed-tensors-fp8-by-tensor", "FP8")):  # fmt: skip
        if not only or name in only:
            quantise_with_llm_compressor(scheme, output / name)
            write_expected(output / name, dequantise_with_compressed_tensors(output / name))
    if only:
        return
    schemes = {f"llm-compressor {scheme}": scheme for scheme in LLM_COMPRESSOR_REFUSED}
    add_refused(output, configs_of(schemes, quantise_with_llm_compressor))


def add_refused(output: Path, configs: dict[str, Any]) -> None:
    """To what `refused.json` has."""
    path = output / "refused.json"
    before = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(before | configs, indent=1) + "\n")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tool", choices=("modelopt", "llm-compressor"))
    parser.add_argument("output", type=Path)
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    of = {"modelopt": make_with_modelopt, "llm-compressor": make_with_llm_compressor}
    of[options.tool](options.output, options.only)
