"""Real configs with a few fields changed at random: what transformers loads is loaded here with the
same logits and end tokens, or is refused by a row of docs/checkpoints.md.
"""

from __future__ import annotations

import copy
import json
import os
import random
import re
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoints import SMALL, make_oracle, save
from peaks import peak_of_block
from test_published import IDS, TOLERANCE, ours, relative

from glm_trt.model.checkpoint.presets import preset_config
from glm_trt.model.checkpoint.read import Checkpoint
from glm_trt.model.config import ModelConfig
from glm_trt.model.errors import GlmTrtError

DOCUMENT = Path(__file__).parents[2] / "docs" / "checkpoints.md"
Config = dict[str, Any]
SECONDS, BYTES = 2.0, 500e6
FILLED = "a tensor that is missing"
# What a refusal says → the beginning of its row.
ROWS = {
    r"missing \d+ tensor": FILLED,
    r"not expected by config.json: .*indexer": "layer types `full_attention`",
    r"not expected by config.json": "any other tensor that the config does not expect",
    r"layer_types\[\d+\]": "other layer types",
    r"missing linear_num_key_heads": "layer types `full_attention`",
    r"rope_type: expected 'default'": "any other rotation",
    r"indexer_types\[0\]: .*nothing to share": "a first layer that shares",
    r"indexer_types|index_topk_pattern": "an entry of `indexer_types`",
    r"(rope_interleave|scoring_func|topk_method): expected": "`rope_interleave`, `indexer_rope",
    r"hidden_act: expected": "another `hidden_act`",
    r"per_layer_config": "`per_layer_config`",
    r"routed_scaling_factor|rms_norm_eps|rope_theta: expected a pos": "a scaling fac",
    r"expected an integer of at least 1, found -?\d+": "a number of layers or experts",
    r"num_experts_per_tok: expected at most": "more experts a token than",
    r"num_nextn_predict_layers": "`num_nextn_predict_layers` that is no",
    r"dtype: expected": "a `dtype` of codes",
    r"model_type: expected": "no `model_type`",
    r"index_head_dim: expected at least": "an indexer narrower than",
}
# Values that mean something, by field; ABSENT takes it away.
ABSENT = object()
KINDS = ("full", "shared")
MEANINGFUL: Config = {
    "head_dim": [192, 64, 8, 7], "qk_head_dim": [256, 1], "num_key_value_heads": [4],
    "layer_types": [None, ABSENT, ["deepseek_sparse_attention"] * 3, ["full_attention"] * 3,
                    ["qwen_sparse_attention"] * 3, ["sliding_attention"] * 3],
    "mlp_layer_types": [None, ABSENT, ["dense", "sparse", "sparse"], ["sparse"] * 3],
    "first_k_dense_replace": [0, 1, 2, 3, 9],
    "indexer_types": [None, ABSENT, ["full", "shared", "full"], ["full", "shared", "full", "x"],
                      ["full"] * 3, ["shared"] * 3],
    "index_topk_pattern": ["FSF", "FSFS", "FFF", "SFF", list("FSF"), ["full", "shared", "full"]],
    "index_topk_freq": [-1, 0, 1, 2, 4], "index_skip_topk_offset": [-1, 0, 1, 2, 3],
    "rope_parameters": [None, ABSENT, {}, {"rope_type": "default"}, {"rope_theta": 5e5},
                        {"type": "default", "rope_theta": 100},
                        {"rope_type": "linear", "factor": 2.0},
                        {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}],
    "rope_scaling": [None, {}, {"type": "default"}, {"rope_type": "default", "rope_theta": 50.0},
                     {"type": "linear", "factor": 4.0},
                     {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}],
    "rope_theta": [1e4, 8_000_000, 123.5, None], "partial_rotary_factor": [0.5, 1.0, None],
    "n_group": [1, 2, 4, ABSENT], "topk_group": [1, 2, ABSENT], "n_shared_experts": [1, 2, ABSENT],
    "norm_topk_prob": [True, False, ABSENT], "num_experts_per_tok": [1, 2, 3, 4],
    "routed_scaling_factor": [1.0, 2.5, 0.1, 2, 0.0, -1.0, ABSENT],
    "num_experts": [None, 4, 8], "num_local_experts": [None, 4, 8],
    "n_routed_experts": [4, 8, ABSENT],
    "rms_norm_eps": [1e-5, 1e-6, 0.01, 1, 0.0, ABSENT], "index_topk": [1, 2, 8, 400, ABSENT, 0],
    "max_position_embeddings": [1, 8, 1 << 20, ABSENT], "attention_bias": [False, ABSENT],
    "tie_word_embeddings": [True, False, ABSENT], "mlp_bias": [True, False, ABSENT],
    "hidden_act": ["silu", "swish", "gelu", ABSENT], "scoring_func": ["sigmoid", "softmax", None],
    "topk_method": ["noaux_tc", "greedy", None], "rope_interleave": [True, False, None],
    "indexer_rope_interleave": [True, False, None],
    "num_nextn_predict_layers": [None, 0, 1, "1", -1], "per_layer_config": [None, {}],
    "eos_token_id": [0, 5, [1, 2], [3, 99999], -1, None, ABSENT, "0", []],
    "pad_token_id": [None, 3, 0], "bos_token_id": [None, 3, 99999],
    "dtype": ["bfloat16", "float16", "float32", "float64", "half", "int8", None, ABSENT],
    "torch_dtype": ["bfloat16", "float32", None],
    "model_type": ["glm_moe_dsa", "glm4_moe", ABSENT], "architectures": [None, ["X"], ABSENT],
    "use_cache": [False, True], "attention_dropout": [0.0, 0.5], "output_router_logits": [True],
    "initializer_range": [0.5], "pretraining_tp": [1, 8], "ep_size": [1], "sliding_window": [4],
    "moe_router_dtype": ["float32", "bfloat16"], "index_share_for_mtp_iteration": [True, False],
    "transformers_version": ["4.57.0", "6.0.0"], "auto_map": [{"AutoConfig": "x.Y"}],
    "transformers_weights": [None, "model.safetensors", "x.safetensors", "x.bin"],
    "torchscript": [True], "quantization_config": [None], "swiglu_limit": [0.1],
    "index_n_heads": [32, 16], "hidden_size": [48, 32], "num_hidden_layers": [2, 4],
    "qk_rope_head_dim": [6, 8], "index_head_dim": [16, 4, 8], "num_attention_heads": [4, 2],
}  # fmt: skip
ANYTHING: list[Any] = [None, True, False, 0, 1, -1, 3, 1.5, float("nan"), "", "x", [], {}, [1],
                       {"a": 1}, 1e300, ABSENT]  # fmt: skip
HUGE = [10**6, 10**9, 1 << 40, (1 << 62), 10**18, 10**30]
FIELDS = sorted(MEANINGFUL)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    oracle = make_oracle(
        n_routed_experts=4, index_n_heads=32, indexer_types=["full", "shared", "full"]
    )
    place = save(oracle, tmp_path_factory.mktemp("base") / "c")
    (place / "generation_config.json").unlink()
    return place


def real_configs(base: Path) -> list[Config]:
    """As transformers writes it; GLM-5.1's and 5.2's as published, GLM-5's with older names, all at
    the sizes of `base`.
    """
    written = json.loads((base / "config.json").read_text())
    sizes = {k: v for k, v in SMALL.items() if isinstance(v, int) and k != "index_topk"}
    sizes |= dict(n_routed_experts=4, index_n_heads=32, index_topk=16, eos_token_id=[0, 5])
    types = {"indexer_types": ["full", "shared", "full"]}
    published = [
        {k: v for k, v in preset_config(name, "full").items() if k != "indexer_types"} | sizes
        for name in ("glm-5.1", "glm-5.2")
    ]
    published[0] |= {"num_nextn_predict_layers": 0} | types
    published[1] |= {"head_dim": 192, "index_topk_pattern": "FSF", "index_topk_freq": 4}
    older = {k: v for k, v in published[0].items() if k not in ("dtype", "rope_parameters")}
    older |= {"torch_dtype": "bfloat16", "rope_theta": 1e6, "rope_scaling": None, "ep_size": 1}
    return [written, *published, older]


def mutated(config: Config, draw: random.Random) -> Config:
    config = copy.deepcopy(config)
    for _ in range(draw.choice((1, 1, 2, 2, 3))):
        field = draw.choice(FIELDS) if draw.random() < 0.8 else draw.choice(sorted(config))
        kinds = MEANINGFUL.get(field, ANYTHING)
        value = draw.choice(kinds if draw.random() < 0.85 else ANYTHING)
        if value is ABSENT:
            config.pop(field, None)
        else:
            config[field] = value
    return config


class Verdict:
    """What transformers makes of a checkpoint: logits and end tokens, or neither."""

    logits: torch.Tensor | None = None
    filled = False
    ends: Any = None


@torch.no_grad()
def judged(directory: Path) -> Verdict:
    verdict = Verdict()
    try:
        model, report = transformers.GlmMoeDsaForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager",
            experts_implementation="eager", output_loading_info=True,
        )  # fmt: skip
        verdict.logits = model.eval()(IDS, use_cache=False).logits
    except Exception:  # whatever it raises is its own affair
        return verdict
    verdict.filled = bool(report["missing_keys"])
    ends = model.generation_config.eos_token_id
    verdict.ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    return verdict


def row_of(message: str) -> str | None:
    return next((row for said, row in ROWS.items() if re.search(said, message)), None)


def ours_within_bounds(directory: Path) -> torch.Tensor | str:
    """Logits, or what the refusal says; any other exception is an error of the test."""
    begin = time.process_time()
    with peak_of_block() as peak:
        try:
            found: torch.Tensor | str = ours(directory)
        except GlmTrtError as error:
            found = str(error)
    assert time.process_time() - begin < SECONDS
    assert peak.bytes < BYTES
    return found


def prepared(base: Path, place: Path) -> Path:
    """A checkpoint of links to the weights, whose config is written anew each time."""
    place.mkdir()
    for path in base.iterdir():
        if path.name != "config.json":
            os.link(path, place / path.name)
    return place


# 20 times 100 configs in the full run.
@pytest.mark.parametrize(
    ("seed", "count"),
    [(0, 48), *(pytest.param(seed, 100, marks=pytest.mark.slow) for seed in range(1, 21))],
)
def test_mutated_configs(base: Path, tmp_path: Path, seed: int, count: int) -> None:
    draw, seen = random.Random(seed), Counter[str]()
    configs, document = real_configs(base), DOCUMENT.read_text()
    transformers.logging.set_verbosity_error()
    directory = prepared(base, tmp_path / "c")
    for _ in range(count):
        config = mutated(draw.choice(configs), draw)
        text = json.dumps(config)
        (directory / "config.json").write_text(text)
        found, expected = ours_within_bounds(directory), judged(directory)
        if isinstance(found, torch.Tensor):
            if expected.logits is None:
                seen["here alone"] += 1
                continue
            assert not expected.filled, text
            assert relative(found, expected.logits) < TOLERANCE, text
            ends = Checkpoint.open(directory).eos_token_ids()
            assert list(ends) == [token for token in expected.ends if 0 <= token < 97], text
            seen["both"] += 1
        elif expected.logits is None:
            seen["neither"] += 1
        else:
            row = row_of(found)
            assert row is not None, f"{found}\n{text}"
            assert f"\n| {row}" in document, row
            seen["a row"] += 1
    assert seen["both"] >= 0.3 * count, seen
    assert seen["a row"] and seen["neither"], seen


def test_the_configs_that_are_mutated_are_read(base: Path, tmp_path: Path) -> None:
    directory = prepared(base, tmp_path / "c")
    for config in real_configs(base):
        (directory / "config.json").write_text(json.dumps(config))
        found, expected = ours_within_bounds(directory), judged(directory)
        assert isinstance(found, torch.Tensor) and expected.logits is not None
        assert relative(found, expected.logits) < TOLERANCE and not expected.filled


@pytest.mark.parametrize("value", HUGE)
def test_huge_numbers(base: Path, tmp_path: Path, value: int) -> None:
    """In any field: refused within the bounds, or without any effect. transformers is not asked."""
    directory = prepared(base, tmp_path / "c")
    config = real_configs(base)[1]
    plain = ours_within_bounds((shutil.copy(base / "config.json", directory), directory)[1])
    for field in sorted({*config, *FIELDS} - {"rope_theta", "max_position_embeddings"}):
        (directory / "config.json").write_text(json.dumps(config | {field: value}))
        found = ours_within_bounds(directory)
        assert isinstance(found, str) or field in (
            "index_topk", "routed_scaling_factor", "rms_norm_eps",
        ) or relative(found, plain) < TOLERANCE, field  # fmt: skip
    assert ModelConfig.from_dict(config | {"max_position_embeddings": value})
