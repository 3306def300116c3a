"""Checkpoints that ModelOpt and llm-compressor quantised, and every spelling in which they say so.

`tests/data/quantised` has files of those tools, each with the logits that transformers computes of
the weights as the tool itself dequantises them (`tests/data/make_quantised_checkpoints.py`).
"""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import subprocess
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from glm_trt.model.checkpoint import bindings as b
from glm_trt.model.checkpoint.read import SINGLE_FILE, Checkpoint
from glm_trt.model.checkpoint.weights import load_model
from glm_trt.model.config import ModelConfig, block_kind
from glm_trt.model.errors import CheckpointError, ConfigError, GlmTrtError
from glm_trt.model.quantization import Quantization

DATA = Path(__file__).parents[2] / "data"
QUANTISED = DATA / "quantised"
KINDS = {
    "nvfp4-experts-only": ["dense_indexed", "sparse_indexed_nvfp4"],
    "nvfp4-mlp-only": ["dense_indexed_nvfp4", "sparse_indexed_nvfp4"],
    "nvfp4-default": ["dense_indexed_nvfp4", "sparse_indexed_nvfp4"],
    "mixed-precision": ["dense_indexed_fp8", "sparse_indexed_fp8_nvfp4"],
    "fp8-by-tensor": ["dense_indexed_fp8", "sparse_indexed_fp8"],
    "compressed-tensors-fp8-block": ["dense_indexed_fp8", "sparse_indexed_fp8"],
    "compressed-tensors-fp8-by-tensor": ["dense_indexed_fp8", "sparse_indexed_fp8"],
}
REFUSED = json.loads((QUANTISED / "refused.json").read_text())
LAYER = "model.layers.1."
OUTPUT = f"{LAYER}self_attn.o_proj.output_scale"


def logits(directory: Path, expected: Path) -> tuple[Any, Any]:
    """Ours of the eager model, and what is expected."""
    of = np.load(expected / "expected.npz")
    ids = torch.from_numpy(of["input_ids"])
    model = load_model(Checkpoint.open(directory))
    states = model.empty_states(*ids.shape)
    return model(ids, states, torch.zeros(len(ids), dtype=torch.int64))[0].numpy(), of["logits"]


def relative(found: Any, expected: Any) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def copy_of(name: str, directory: Path) -> Path:
    """A checkpoint of `QUANTISED` that may be changed."""
    return Path(shutil.copytree(QUANTISED / name, directory))


def change(directory: Path, **fields: Any) -> None:
    """Fields of `config.json`; None takes one away."""
    path = directory / "config.json"
    data = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: of for name, of in data.items() if of is not None}))


def tensors(directory: Path, new: dict[str, torch.Tensor], *without: str) -> None:
    """Replace, add or remove some."""
    stored = load_file(directory / SINGLE_FILE) | new
    stored = {name: of for name, of in stored.items() if name not in without}
    save_file(stored, directory / SINGLE_FILE)


def quantization_of(directory: Path) -> dict[str, Any]:
    of: dict[str, Any] = json.loads((directory / "config.json").read_text())["quantization_config"]
    return of


def whole(directory: Path, module: str) -> torch.Tensor:
    """A weight of NVFP4, dequantised as ModelOpt's documentation has it."""
    stored = load_file(directory / SINGLE_FILE)
    table = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    packed = stored[f"{module}.weight"].long()
    codes = torch.stack([packed % 16, packed // 16], dim=-1).flatten(1)
    scale = stored[f"{module}.weight_scale"].float() * stored[f"{module}.weight_scale_2"]
    return table[codes % 8] * (1 - 2 * (codes // 8)) * scale.repeat_interleave(16, 1)


@pytest.mark.parametrize("name", KINDS)
def test_logits_are_those_of_the_dequantised_model(name: str) -> None:
    found, expected = logits(QUANTISED / name, QUANTISED / name)
    assert relative(found, expected) < 1e-5
    config = Checkpoint.open(QUANTISED / name).config
    assert [block_kind(config, i) for i in range(2)] == KINDS[name]


def test_head_weights_of_the_indexer_are_narrow(caplog: pytest.LogCaptureFixture) -> None:
    """ModelOpt's NVFP4_DEFAULT: no list names `indexer.weights_proj`, and none needs to."""
    checkpoint = Checkpoint.open(QUANTISED / "nvfp4-default")
    module = f"{LAYER}self_attn.indexer.weights_proj"
    assert checkpoint.stored(module).precision == "nvfp4"
    names = [x.name for x in b.layer_bindings(checkpoint.config, checkpoint, 1)]
    assert "self_attn.indexer.weights_proj.weight_scale_2" in names
    assert "though the config" not in caplog.text
    whole_there = Checkpoint.open(QUANTISED / "nvfp4-experts-only")
    assert whole_there.stored(module).precision == "bf16"


def test_scales_that_nobody_needs_are_named_once_a_kind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of caches and results, and those beside a head that is whole."""
    Checkpoint.open(QUANTISED / "mixed-precision")
    (notice,) = caplog.messages  # none of inputs' scales, which are in every such file
    assert "scales of caches and outputs" in notice and "6 tensor(s): " in notice
    caplog.clear()
    place = copy_of("nvfp4-default", tmp_path / "c")
    tensors(place, {
        "lm_head.weight_scale": torch.ones(128, 4).to(torch.float8_e4m3fn),
        "lm_head.weight_scale_2": torch.tensor(2.0),
        "lm_head.input_scale": torch.tensor(2.0),
        OUTPUT: torch.tensor(2.0),
    })  # fmt: skip
    found, expected = logits(place, QUANTISED / "nvfp4-default")
    assert relative(found, expected) < 1e-5
    first, second = sorted(caplog.messages)
    assert "scales of a head that is stored whole: 3 tensor(s): lm_head.input_scale" in first
    assert first.endswith("lm_head.weight_scale, lm_head.weight_scale_2")
    assert second.endswith(f"caches and outputs, which are not quantised: 1 tensor(s): {OUTPUT}")
    tensors(place, {f"{LAYER}self_attn.o_proj.pre_quant_scale": torch.ones(128)})
    with pytest.raises(CheckpointError, match=r"not expected.*o_proj.pre_quant_scale"):
        Checkpoint.open(place)  # AWQ: one that changes numbers


def respelled(of: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """NVFP4_MLP_ONLY's config in other words that mean the same."""
    groups, ignore = of["config_groups"], of["ignore"]
    some, others = ignore[:3], ignore[3:]  # each with attentions that stay whole
    one = {"quant_algo": "NVFP4", "group_size": 16}
    modules = {f"model.layers.{i}.mlp": one for i in range(3)}

    def targets(names: list[str]) -> dict[str, Any]:
        return {"group_0": groups["group_0"] | {"targets": names}}

    return {
        "as_written": of,
        "groups_alone": {"quant_method": "modelopt", "config_groups": groups, "ignore": ignore},
        "algorithm_alone": {"quant_algo": "NVFP4", "producer": {"name": "modelopt"},
                            "exclude_modules": ignore},
        "weights_only": of | {"quant_algo": "W4A16_NVFP4"},
        "two_lists": {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": some,
                      "exclude_modules": others},
        "four_lists": {"quant_method": "modelopt_fp4", "quant_algo": "NVFP4",
                       "modules_to_not_convert": some, "ignored_layers": others, "ignore": None,
                       "exclude_modules": []},
        "names_of_parts": {"quant_method": "modelopt", "quant_algo": "NVFP4",
                           "ignore": ["self_attn", "lm_head"]},
        "expressions": {"quant_method": "modelopt", "quant_algo": "NVFP4",
                        "ignore": [r"re:.*\.self_attn\..*", "*gate"]},
        "targets": {"quant_method": "modelopt", "config_groups": targets([
            r"re:.*mlp\.(shared_)?experts\.", r"re:.*mlp\.\w+_proj$"])},
        "targets_by_name": {"quant_method": "modelopt", "config_groups": targets(list(modules)),
                            "ignore": ignore},
        "layer_by_layer": {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION",
                           "quantized_layers": modules, "ignore": ignore},
        "modules_with_stars": {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION",
                               "quantized_layers": {"model.layers.*.mlp.*": one}},
    }  # fmt: skip


@pytest.mark.parametrize("spelling", respelled(quantization_of(QUANTISED / "nvfp4-mlp-only")))
def test_every_spelling_of_the_config(
    tmp_path: Path, spelling: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The same bindings and kinds, no notice; ModelOpt's own file says the same in its words."""
    original = Checkpoint.open(QUANTISED / "nvfp4-mlp-only")
    caplog.clear()
    place = copy_of("nvfp4-mlp-only", tmp_path / "c")
    of = respelled(quantization_of(place))[spelling]
    for in_its_own_file in (False, True):
        if in_its_own_file:
            change(place, quantization_config=None)
            own = {"producer": of.pop("producer", {"name": "modelopt"}), "quantization": of}
            (place / "hf_quant_config.json").write_text(json.dumps(own))
        else:
            change(place, quantization_config=of)
        checkpoint = Checkpoint.open(place)
        for layer in range(3):
            assert block_kind(checkpoint.config, layer) == block_kind(original.config, layer)
            assert b.layer_bindings(checkpoint.config, checkpoint, layer) == b.layer_bindings(
                original.config, original, layer
            )
        assert "though the config" not in caplog.text


VALUES: list[Any] = [
    None, 0, -1, 16, 32, 1.5, True, "", "fp8", "nvfp4", "NVFP4", "FP8", "MIXED_PRECISION", "*", "[",
    "re:(", "re:(?i).*ATTN", "re:.*(?P<a>mlp)", [], {}, [1], {"a": 1}, ["Linear"], [128, 128],
    "block", "int", ["model.layers.1"],
]  # fmt: skip


def mutated(config: dict[str, Any], others: list[dict[str, Any]], random: Random) -> dict[str, Any]:
    """Up to three fields changed, removed, or taken from another config."""
    config = copy.deepcopy(config)
    for _ in range(random.randint(1, 3)):
        place: Any = config
        while isinstance(place, dict | list) and place:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key, inner = random.choice(keys), random.random() < 0.6
            if not inner or not isinstance(place[key], dict | list) or not place[key]:
                break
            place = place[key]
        else:
            continue
        kind = random.random()
        if kind < 0.6:
            place[key] = copy.deepcopy(random.choice(VALUES))
        elif kind < 0.8:
            del place[key]
        else:
            name, of = random.choice(list(random.choice(others).items()))
            config[name] = copy.deepcopy(of)
    return config


@pytest.mark.parametrize("count", [300, pytest.param(3000, marks=pytest.mark.slow)])
def test_configs_changed_at_random_change_no_number(
    tmp_path: Path, count: int, record_property: Any
) -> None:
    """A checkpoint is refused, or read as its files have it: never otherwise, and no traceback."""
    place = copy_of("nvfp4-mlp-only", tmp_path / "c")
    (place / "hf_quant_config.json").unlink()
    original = Checkpoint.open(place)
    expected = [b.layer_bindings(original.config, original, layer) for layer in range(3)]
    spellings = list(respelled(quantization_of(place)).values())
    others = [*spellings, *REFUSED.values()]
    loaded = 0
    for seed in range(count):
        random = Random(seed)
        of = mutated(random.choice(spellings), others, random)
        change(place, quantization_config=of)
        try:
            found = Checkpoint.open(place)
        except GlmTrtError as error:
            assert str(place) in str(error), of
            continue
        loaded += 1
        for layer in range(3):
            assert b.layer_bindings(found.config, found, layer) == expected[layer], of
            assert block_kind(found.config, layer) == block_kind(original.config, layer), of
    record_property("loaded", loaded)
    assert 0.3 < loaded / count < 0.9


def test_scales_of_fp8_under_either_name(tmp_path: Path) -> None:
    """`weight_scale` in place of `weight_scale_inv`, in bfloat16 and in float32; in transformers'
    words, with the scales of its static activations.
    """
    name = "compressed-tensors-fp8-block"
    place = copy_of(name, tmp_path / "c")
    change(place, quantization_config={
        "quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128],
        "ignored_layers": quantization_of(place)["ignore"]})  # fmt: skip
    assert relative(*logits(place, QUANTISED / name)) < 1e-5
    stored = load_file(place / SINGLE_FILE)
    renamed = {
        x.replace("weight_scale", "weight_scale_inv"): of.float() if "scale" in x else of
        for x, of in stored.items()
    }
    renamed[f"{LAYER}self_attn.q_a_proj.activation_scale"] = torch.tensor(0.1)
    save_file(renamed, place / SINGLE_FILE)
    assert relative(*logits(place, QUANTISED / name)) < 1e-5


@pytest.mark.parametrize("where", ["decoder", "prediction"])
def test_layers_that_no_list_names_may_be_whole(
    tmp_path: Path, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    """BF16 in an NVFP4 file: an attention and a layer's experts; or the whole MTP layer."""
    name = "nvfp4-default"
    place = copy_of(name, tmp_path / "c")
    if where == "decoder":
        stored = load_file(place / SINGLE_FILE)
        modules = [x.removesuffix(".weight") for x in stored
                   if x.startswith((f"{LAYER}mlp.experts", f"{LAYER}self_attn.q_")) and
                   f"{x}_scale" in stored]  # fmt: skip
        new = {f"{module}.weight": whole(place, module) for module in modules}
        ends = ("weight_scale", "weight_scale_2", "input_scale")
        tensors(place, new, *(f"{module}.{end}" for module in modules for end in ends))
    else:
        modules = add_prediction_layer(place, "bf16")
    found, expected = logits(place, QUANTISED / name)
    assert relative(found, expected) < 1e-5
    (notice,) = [x for x in caplog.messages if "though the config says nvfp4" in x]
    assert any(f"{x} and {len(modules) - 1} more: stored whole" in notice for x in modules)
    config = Checkpoint.open(place).config
    kinds = [block_kind(config, i) for i in ((1, 2) if where == "decoder" else (2, 3))]
    assert (
        kinds
        == {
            "decoder": ["sparse_indexed_nvfp4", "sparse_indexed_nvfp4_2"],
            "prediction": ["sparse_indexed_nvfp4", "mtp_sparse_indexed"],
        }[where]
    )


def add_prediction_layer(place: Path, precision: str) -> list[str]:
    """Layer 3, the decoder's last one with what an MTP layer has besides; its modules that ModelOpt
    would have quantised.
    """
    change(place, num_nextn_predict_layers=1)
    stored = load_file(place / SINGLE_FILE)
    last, own = "model.layers.2.", "model.layers.3."
    new = {f"{own}{x}.weight": torch.ones(64) for x in ("enorm", "hnorm", "shared_head.norm")}
    new[f"{own}eh_proj.weight"] = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    modules = []
    for name, tensor in stored.items():
        if not name.startswith(last) or name.endswith(("_scale", "_scale_2")):
            continue
        copied, module = own + name.removeprefix(last), name.removesuffix(".weight")
        new[copied] = tensor.clone()
        if f"{module}.weight_scale" in stored:
            modules.append(copied.removesuffix(".weight"))
            value = whole(place, module)
            new[copied] = value.bfloat16()
            if precision == "fp8":
                new[f"{copied}_scale_inv"] = value.abs().amax().reshape(1, 1).repeat(
                    *(-(-size // 128) for size in value.shape)) / 448  # fmt: skip
                new[copied] = (value / new[f"{copied}_scale_inv"][0, 0]).to(torch.float8_e4m3fn)
    tensors(place, new)
    return sorted(x for x in modules if not x.endswith("weights_proj"))


def test_prediction_layer_in_fp8(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In an NVFP4 file, as it was published: it is told by its scales, and a notice says so."""
    place = copy_of("nvfp4-default", tmp_path / "c")
    add_prediction_layer(place, "fp8")
    checkpoint = Checkpoint.open(place)
    assert any("stored as fp8, though the config says nvfp4" in x for x in caplog.messages)
    assert block_kind(checkpoint.config, 3) == "mtp_sparse_indexed_fp8"
    assert block_kind(checkpoint.config, 2) == "sparse_indexed_nvfp4"
    names = {x.name: x for x in b.layer_bindings(checkpoint.config, checkpoint, 3)}
    assert names["self_attn.o_proj.weight_scale_inv"].tensors == (
        "model.layers.3.self_attn.o_proj.weight_scale_inv",
    )


def test_the_bundle_knows_what_the_files_say(tmp_path: Path) -> None:
    """Its config has the modules one by one where files and lists differ; else it is as it was."""
    for name, differs in (("nvfp4-default", True), ("nvfp4-mlp-only", False)):
        checkpoint = Checkpoint.open(QUANTISED / name)
        data = checkpoint.config_data()
        assert ModelConfig.from_dict(data) == checkpoint.config
        said = quantization_of(QUANTISED / name)
        assert (data["quantization_config"] == said) is not differs
    place = copy_of("nvfp4-default", tmp_path / "c")
    stored = load_file(place / SINGLE_FILE)
    modules = [x.removesuffix(".weight") for x in stored if f"{x}_scale" in stored]
    new = {f"{module}.weight": whole(place, module) for module in modules}
    tensors(place, new, *(x for x in stored if x.endswith(("_scale", "_scale_2"))))
    checkpoint = Checkpoint.open(place)  # nothing is narrow
    assert "quantization_config" not in checkpoint.config_data()
    assert checkpoint.config.quantization.precision == "bf16"
    assert relative(*logits(place, QUANTISED / "nvfp4-default")) < 1e-5


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (None, r"layers.0.*.weight: expected dtype float32 .*no quantization_config.*uint8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": [f"{LAYER}mlp"]},
         r"layers.1.mlp.*: expected dtype .*: a list in quantization_config names.*found uint8"),
        ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION",
          "quantized_layers": {"model.layers.0": {"quant_algo": "NVFP4"}}},
         r"layers.1.*: expected dtype .*neither quantized_layers nor config_groups"),
        ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION",
          "quantized_layers": {"model.layers.*": {"quant_algo": "FP8"}}},
         r"layers.0.*: expected fp8, as config.json: quantized_layers .*found uint8 \(nvfp4\)"),
    ],
)  # fmt: skip
def test_narrow_weights_that_the_config_denies(tmp_path: Path, config: Any, words: str) -> None:
    """Other readers take their codes for numbers."""
    place = copy_of("nvfp4-default", tmp_path / "c")
    (place / "hf_quant_config.json").unlink()
    change(place, quantization_config=config)
    with pytest.raises(CheckpointError, match=words):
        Checkpoint.open(place)


def test_groups_of_another_size_and_microscaling(tmp_path: Path) -> None:
    place = copy_of("nvfp4-default", tmp_path / "c")
    module = f"{LAYER}self_attn.o_proj"
    scale = torch.ones(64, 4).to(torch.float8_e4m3fn)
    tensors(place, {f"{module}.weight_scale": scale})
    words = r"o_proj.weight_scale: .*\(64, 8\) \(groups of 16\), found \(64, 4\) \(groups of 32\)"
    with pytest.raises(CheckpointError, match=words):
        Checkpoint.open(place)
    tensors(place, {f"{module}.weight_scale": torch.ones(64, 8).to(torch.uint8)})
    with pytest.raises(CheckpointError, match=r"weight_scale: .*found uint8 \(MXFP4\)"):
        Checkpoint.open(place)
    tensors(place, {}, f"{module}.weight_scale")
    with pytest.raises(CheckpointError, match=r"pairs of 4 bits: missing .*o_proj.weight_scale"):
        Checkpoint.open(place)


@pytest.mark.parametrize("recipe", REFUSED)
def test_recipes_whose_files_are_not_read(tmp_path: Path, recipe: str) -> None:
    """Each by the name of its form and with what can be done, before any file is opened."""
    place = copy_of("nvfp4-default", tmp_path / "c")
    (place / "hf_quant_config.json").unlink()
    (place / SINGLE_FILE).write_bytes(b"not read")
    change(place, quantization_config=REFUSED[recipe])
    with pytest.raises(ConfigError) as refusal:
        Checkpoint.open(place)
    text, tool = str(refusal.value), recipe.split()[0]
    assert text.startswith(f"{place / 'config.json'}: quantization_config")
    assert ("compressed-tensors" if tool == "llm-compressor" else tool) in text
    hints = ("export the BF16, FP8 or NVFP4", "quantise the original with NVFP4_DEFAULT_CFG")
    assert hints[tool == "ModelOpt"] in text
    is_float = "NVFP4" in recipe or "FP8" in recipe or "MXFP4" in recipe
    assert ("transformers write it whole" in text) == (tool != "ModelOpt" and is_float)
    assert recipe.endswith(("NVFP4", "NVFP4A16")) or "is not read" in text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "GPTQ is not read.*4 bits"),
        ({"quant_method": "awq", "bits": 4, "zero_point": True}, "AWQ is not read"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes is not read"),
        ({"quant_method": "hqq", "quant_config": {}}, "HQQ is not read"),
        ({"quant_method": "quark", "quant_mode": "eager_mode"}, "Quark is not read"),
        ({"quant_method": "mxfp4"}, "MXFP4 is not read"),
        ({"quant_method": "fbgemm_fp8"}, "FBGEMM.* is not read"),
        ({"quant_method": "auto-round", "bits": 4}, "AutoRound is not read"),
        ({"quant_method": "modelopt", "quant_algo": "W4A16_AWQ", "group_size": 128,
          "pre_quant_scale": True}, "ModelOpt's W4A16_AWQ is not read"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4_SVD", "pre_quant_scale": True},
         "ModelOpt's NVFP4_SVD is not read"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 32},
         "group_size: expected 16, found 32"),
        ({"bits": 4, "group_size": 64}, "MLX's format is not read"),
        ({"quant_method": "new"}, "expected fp8 or NVFP4, found quant_method 'new'"),
        (["fp8"], "expected an object"),
    ],
)  # fmt: skip
def test_formats_that_are_not_read(fields: Any, words: str) -> None:
    config = json.loads((QUANTISED / "nvfp4-default" / "config.json").read_text())
    with pytest.raises(ConfigError, match=words) as refusal:
        ModelConfig.from_dict(config | {"quantization_config": fields})
    if "is not read" in words:
        assert "export the BF16" in str(refusal.value) or "ModelOpt" in str(refusal.value)


def test_mlx_and_older_fields(tmp_path: Path) -> None:
    config = json.loads((QUANTISED / "nvfp4-default" / "config.json").read_text())
    of = config.pop("quantization_config")
    with pytest.raises(ConfigError, match=r"MLX.*4 bits"):
        ModelConfig.from_dict(config | {"quantization": {"group_size": 64, "bits": 4}})
    with pytest.raises(ConfigError, match="compressed-tensors is not read"):
        ModelConfig.from_dict(config | {"compression_config": REFUSED["llm-compressor W4A16"]})
    assert (
        ModelConfig.from_dict(config | {"quantization_config": {}}).quantization.precision == "bf16"
    )
    assert ModelConfig.from_dict(config | {"quantization_config": of}).quantization.narrows(
        f"{LAYER}mlp.experts.7.up_proj"
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model-Q4_K_M.gguf", "GGUF is not read"),
        ("pytorch_model.bin", "pickled weights are never loaded"),
        ("model.pth", "pickled weights are never loaded"),
    ],
)
def test_other_files_are_named(tmp_path: Path, name: str, words: str) -> None:
    place = copy_of("nvfp4-default", tmp_path / "c")
    (place / SINGLE_FILE).rename(place / name)
    with pytest.raises(CheckpointError, match=rf"no .safetensors file found.*{name}: {words}"):
        Checkpoint.open(place)
    with pytest.raises(CheckpointError, match=words):
        Checkpoint.open(place / name)


def test_packed_weights_are_named_by_their_tensors(tmp_path: Path) -> None:
    """Where the config says nothing."""
    place = copy_of("nvfp4-default", tmp_path / "c")
    name = f"{LAYER}self_attn.o_proj"
    stored = load_file(place / SINGLE_FILE)
    tensors(place, {f"{name}.weight_packed": stored[f"{name}.weight"]}, f"{name}.weight")
    with pytest.raises(CheckpointError, match=r"missing .*weight_packed .*compressed-tensors"):
        Checkpoint.open(place)


def test_modules_one_by_one() -> None:
    of = Quantization("nvfp4", modules=(
        ("model.layers.1.mlp.experts.*.up_proj", "fp8"), ("model.layers.2", "nvfp4"),
        ("re:.*indexer", "fp8"), ("*o_proj", "nvfp4"),
    ))  # fmt: skip
    for module, precision in {
        "model.layers.1.mlp.experts.7.up_proj": "fp8",
        "model.layers.1.mlp.experts.7.down_proj": "bf16",
        "model.layers.2.mlp.experts.0.down_proj": "nvfp4",
        "model.layers.20.mlp.down_proj": "bf16",
        "model.layers.5.self_attn.indexer.wk": "fp8",
        "model.layers.5.self_attn.o_proj": "nvfp4",
        "lm_head": "bf16",
    }.items():
        assert of.precision_of(module) == precision, module


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["modelopt", "llm-compressor"])
def test_the_tools_still_write_such_files(tmp_path: Path, tool: str) -> None:
    """With a Python that has the tool, named in GLM_TRT_TEST_MODELOPT or _LLM_COMPRESSOR."""
    variable = f"GLM_TRT_TEST_{tool.upper().replace('-', '_')}"
    python = os.environ.get(variable)
    if not python:
        pytest.skip(f"{variable} names no Python that has {tool}")
    script = DATA / "make_quantised_checkpoints.py"
    subprocess.run([python, str(script), tool, str(tmp_path)], check=True)
    made = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(made) == {"modelopt": 5, "llm-compressor": 2}[tool]
    for directory in made:
        assert relative(*logits(directory, directory)) < 1e-5, directory.name
        stored, kept = (load_file(x / SINGLE_FILE) for x in (directory, QUANTISED / directory.name))
        assert stored.keys() == kept.keys()
        assert {n: (t.dtype, t.shape) for n, t in stored.items()} == {
            n: (t.dtype, t.shape) for n, t in kept.items()
        }
    logging.getLogger(__name__).info("made by %s: %s", python, made)
