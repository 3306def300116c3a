"""The plan: GLM-5.1's published figures from its config alone, and each rule by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from glm_trt.engines.build.flavours import RTX_TARGETS
from glm_trt.engines.planning import host
from glm_trt.engines.planning import memory as m
from glm_trt.engines.planning.decode import decode_bound, step_state_bytes
from glm_trt.engines.planning.gpus import GPUS, find_gpu
from glm_trt.engines.planning.limits import BUILT_TARGETS, missing, untried
from glm_trt.engines.planning.plan import CONTEXTS, PlanOptions, make_plan
from glm_trt.engines.planning.source import Source, find_source
from glm_trt.engines.planning.weights import Weights, gpu_counts
from glm_trt.model.checkpoint.presets import preset_config
from glm_trt.model.config import ModelConfig
from glm_trt.model.errors import ConfigError, GlmTrtError
from glm_trt.model.quantization import Quantization
from glm_trt.plugins.common.selection import TARGETS

TINY = Path(__file__).parents[2] / "data" / "glm-5.1-tiny"
GLM_5_1 = preset_config("glm-5.1", "full")
HYBRID = preset_config("glm-5.1-hybrid", "full")  # 59 linear layers, 19 full ones
CONFIG = ModelConfig.from_dict(GLM_5_1)
HYBRID_CONFIG = ModelConfig.from_dict(HYBRID)


def source_of(data: dict[str, Any], directory: Path) -> Source:
    path = directory / "config.json"
    path.write_text(json.dumps(data))
    return find_source(path)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_plan(source_of(GLM_5_1, tmp_path_factory.mktemp("config")), PlanOptions())


@pytest.fixture(scope="module")
def fp8() -> Weights:
    return Weights(CONFIG, Quantization("fp8"), with_mtp=False)


def test_parameters(plan: dict[str, Any]) -> None:
    counts = plan["parameters"]
    assert (counts["without_mtp"], counts["with_mtp"]) == (743_911_218_432, 753_864_139_008)
    assert (counts["mtp"], counts["tensors"]) == (9_952_920_576, 59_870)
    assert counts["components"]["mla"] == 78 * 165_022_208
    assert sum(counts["components"].values()) == counts["without_mtp"]
    # One row of the embedding, 8 of 256 experts, everything else.
    experts = counts["components"]["routed_experts"]
    idle = experts * 248 // 256 + 951_582_720 - 6144
    assert counts["active_per_token"] == counts["without_mtp"] - idle == 40_833_152_256


def test_bytes_by_precision(plan: dict[str, Any]) -> None:
    sizes = {name: entry["bytes"] for name, entry in plan["weights"].items()}
    assert sizes["bf16"] == 1_487_822_475_264
    assert sizes["fp8"] == 746_130_054_912
    # 4.5 bits for what fp8 has in 8, two scalars a matrix, and the rest as it was.
    whole = sizes["bf16"] - plan["weights"]["bf16"]["quantised_bytes"]
    assert sizes["nvfp4"] == whole + plan["weights"]["nvfp4"]["quantised_bytes"]
    for name, needs in plan["export"].items():
        copied = needs["disk_bytes_materialized"] - needs["disk_bytes"]
        assert needs["disk_bytes"] > 0 and copied == plan["weights"][name]["bytes"]


@pytest.mark.parametrize(
    ("precision", "shape", "size"),
    [
        ("bf16", (576, 6144), 576 * 6144 * 2),
        ("fp8", (576, 6144), 576 * 6144 + 5 * 48 * 4),  # the last block has 64 rows
        ("fp8", (4, 130, 100), 4 * (130 * 100 + 2 * 4)),
        ("nvfp4", (2048, 6144), 2048 * 3072 + 2048 * 384 + 8),
        ("nvfp4", (3, 10, 17), 3 * (10 * 9 + 10 * 2 + 8)),
    ],
)
def test_bytes_of_a_tensor(precision: str, shape: tuple[int, ...], size: int) -> None:
    assert Quantization(precision).stored_bytes(shape, "bfloat16", precision) == size


def test_what_stays_whole() -> None:
    def quantised(name: str, **options: Any) -> bool:
        return Quantization("fp8", **options).narrows(name.removesuffix(".weight"))

    assert quantised("model.layers.3.self_attn.o_proj.weight")
    assert not quantised("model.layers.3.self_attn.indexer.weights_proj.weight")
    assert not quantised("model.layers.78.eh_proj.weight")
    assert not quantised("lm_head.weight")
    assert not quantised("model.layers.3.mlp.gate.weight")
    for entry in ("model.layers.3.self_attn", "*.o_proj", "re:.*self_attn.*", "model.layers.3"):
        assert not quantised("model.layers.3.self_attn.o_proj.weight", excluded=(entry,))
    assert quantised("model.layers.30.self_attn.o_proj.weight", excluded=("model.layers.3",))


def test_quantisation_configs(tmp_path: Path) -> None:
    excluded = ["lm_head", "model.layers.0.self_attn.indexers_proj"]
    fp8 = {
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": excluded,
    }
    source = source_of(GLM_5_1 | {"quantization_config": fp8}, tmp_path)
    plan = make_plan(source, PlanOptions(gpus=("h200",)))
    assert {name: entry["bytes"] for name, entry in plan["weights"].items()} == {
        "fp8": 746_130_054_912
    }
    nvfp4 = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["*self_attn*"]}
    kept = make_plan(source_of(GLM_5_1 | {"quantization_config": nvfp4}, tmp_path),
                     PlanOptions(gpus=("b200",)))["weights"]["nvfp4"]  # fmt: skip
    assert 440e9 < kept["bytes"] < 445e9  # attention in bf16: 25.6 GB instead of 7.2
    for wrong in ({"quant_method": "awq"}, "fp8", fp8 | {"weight_block_size": [0, 1]}):
        with pytest.raises(ConfigError, match="quantization_config"):
            source_of(GLM_5_1 | {"quantization_config": wrong}, tmp_path)


def test_state(plan: dict[str, Any]) -> None:
    assert plan["state"]["bytes_per_token"] == 109_824
    gib = {row["context"]: row["bytes"] / 2**30 for row in plan["state"]["contexts"]}
    assert gib == pytest.approx({1024: 0.105, 98_000: 10.02, 195_000: 19.95}, abs=0.01)
    linear = m.state_bytes(HYBRID_CONFIG, with_mtp=False)
    assert linear.per_token == {"kv_cache": 19 * 576 * 2}
    assert linear.per_sequence == {
        "conv_state": 59 * 12288 * 3 * 2, "recurrent_state": 59 * 64 * 128 * 128 * 4
    }  # fmt: skip
    assert m.state_bytes(CONFIG, with_mtp=True).per_token["index_keys"] == 79 * 256


def test_recommends_for_fp8_at_195k(plan: dict[str, Any]) -> None:
    choice = {entry["precision"]: entry for entry in plan["recommended"]}["fp8"]
    assert (choice["gpus"], choice["gpu"]) == (4, "b300")
    assert choice["missing"] == ["a model split over 4 devices", "kernels for sm103"]
    smaller = tuple(name for name, gpu in GPUS.items() if gpu.memory_gb < 200)
    plan = make_plan(find_source("glm-5.1"), PlanOptions(gpus=smaller, precisions=("fp8",)))
    choice = {entry["precision"]: entry for entry in plan["recommended"]}["fp8"]
    assert (choice["gpus"], choice["gpu"], choice["context"]) == (8, "h200", 195_000)
    assert choice["untried"] == untried(GPUS["h200"])
    assert choice["used_bytes"] + choice["free_bytes"] == choice["usable_bytes"] == 126_900_000_000
    parts = ("weights_bytes", "state_bytes", "workspace_bytes")
    assert choice["used_bytes"] == sum(choice[part] for part in parts)
    assert choice["max_batch"] >= 1


def test_recommendation_follows_from_the_table(plan: dict[str, Any]) -> None:
    """Fewest, then least memory, native first: whatever GPUs there are."""
    for choice in plan["recommended"]:
        last = [(entry, entry["contexts"][-1]["gpus"]) for entry in plan["fit"]
                if entry["precision"] == choice["precision"]]  # fmt: skip
        native = [count for entry, count in last if count and entry["native"]]
        assert choice["native"] and choice["gpus"] == min(native)
        memory = GPUS[choice["gpu"]].memory_gb
        rivals = [e["gpu"] for e, count in last if e["native"] and count == choice["gpus"]]
        assert memory == min(GPUS[name].memory_gb for name in rivals)


def test_weights_on_a_gpu(fp8: Weights) -> None:
    """What 8 GPUs hold together: the checkpoint, and seven more copies of what is not split."""
    assert fp8.rank_bytes(1) == 746_130_054_912
    alone = 78 * (2048 * 6144 + 16 * 48 * 4 + 576 * 6144 + 5 * 48 * 4 + 2560 * 2)  # MLA
    alone += 78 * (4096 * 2048 + 32 * 16 * 4 + 128 * 6144 + 48 * 4 + 256 * 2 + 32 * 6144 * 2)
    alone += 75 * (256 * 6144 * 2 + 256 * 4) + (78 * 2 + 1) * 6144 * 2
    assert fp8.rank_bytes(8) == alone + (746_130_054_912 - alone) // 8


def test_what_cannot_be_done_yet() -> None:
    assert missing(GPUS["h200"], 1, 1) == []
    assert missing(GPUS["h200"], 2, 3) == [
        "a model split over 2 devices", "3 sequences in one pass of an engine"
    ]  # fmt: skip
    assert missing(GPUS["h200"], 1, 2) == ["2 sequences in one pass of an engine"]
    assert missing(GPUS["gb300"], 1, 1) == ["kernels for sm103"]
    built = {*TARGETS, *RTX_TARGETS}
    assert built == set(BUILT_TARGETS)
    assert all(missing(gpu, 1, 1) == [] for gpu in GPUS.values() if gpu.target in built)


def test_what_was_not_tried() -> None:
    """Engines for data centres come from a library that builds on the GPU itself."""
    for name in ("h100", "h200", "b200", "b300"):
        (said,) = untried(GPUS[name])
        assert said.startswith(f"engines for {GPUS[name].target} are built by tensorrt 11 on such")
    ahead = {gpu.target for gpu in GPUS.values() if "tensorrt-rtx" in untried(gpu)[0]}
    assert ahead == {gpu.target for gpu in GPUS.values()} & {*RTX_TARGETS}


def test_counts_of_gpus() -> None:
    assert gpu_counts(CONFIG) == (1, 2, 4, 8, 16, 32, 64)
    assert gpu_counts(HYBRID_CONFIG) == (1, 2, 4, 8, 16)
    assert gpu_counts(ModelConfig.from_directory(TINY)) == (1, 2, 4)


def test_largest_batch_and_context(fp8: Weights) -> None:
    gpu = find_gpu("b200")
    usable = m.usable_bytes(gpu)
    batch = m.largest_batch(fp8, gpu, 8, 98_000)
    assert m.rank_load(fp8, 8, 98_000, batch).total <= usable
    assert m.rank_load(fp8, 8, 98_000, batch + 1).total > usable
    context = m.largest_context(fp8, gpu, 8, 4)
    assert m.rank_load(fp8, 8, context, 4).total <= usable
    assert m.rank_load(fp8, 8, context + 1, 4).total > usable
    assert m.largest_batch(fp8, gpu, 1, 1024) == m.largest_context(fp8, gpu, 1, 1) == 0
    assert m.usable_bytes(find_gpu("rtx-4090")) == 21_600_000_000


def test_workspace_is_what_the_plugins_ask_for() -> None:
    """As the launches have it, of which tests hold that the library asks for the same: one token,
    and 512 of a prompt.
    """
    scores = 512 * 195_000 * 4
    indexed = m.plugin_bytes(CONFIG, 195_000, 1)
    assert set(indexed) == {"moe_routing", "moe_experts", "indexer_topk", "sparse_mla"}
    # A score for each token and position: many queries are not shared out.
    assert scores <= indexed["indexer_topk"] <= 1.01 * scores
    pairs = 512 * 8 * (2048 + 6144) * 2
    assert pairs <= indexed["moe_experts"] <= 1.01 * pairs
    # 128 programs of 64 rows of 512 numbers, with a maximum and a sum.
    assert indexed["sparse_mla"] == 128 * 64 * (512 + 2) * 4
    assert m.workspace_bytes(CONFIG, 195_000, 1)["plugins"] == indexed["indexer_topk"]
    hybrid = m.plugin_bytes(HYBRID_CONFIG, 195_000, 1)
    assert set(hybrid) == {
        "moe_routing", "moe_experts", "causal_mla", "linear_attention", "causal_conv_with_state"
    }  # fmt: skip
    assert hybrid["causal_mla"] == indexed["sparse_mla"]
    # 16 chunks of 64 heads: two squares of 32, and two factors of 128 for each.
    assert hybrid["linear_attention"] == 16 * 64 * (2 * 32 * 32 * 2 + 2 * 128 * 4)
    assert m.workspace_bytes(HYBRID_CONFIG, 195_000, 1)["plugins"] == hybrid["moe_experts"]
    # Many sequences of one token each ask for more than a prompt.
    many = m.plugin_bytes(CONFIG, 195_000, 1024)
    assert many["indexer_topk"] >= 2 * scores and many["moe_experts"] >= 2 * pairs
    dense = replace(HYBRID_CONFIG, mlp_layer_types=("dense",) * 78)
    assert "moe_experts" not in m.plugin_bytes(dense, 195_000, 1)


def test_decode_roofline(fp8: Weights) -> None:
    bound = decode_bound(fp8, find_gpu("h200"), 8, 195_000, 1)
    # Each layer scans 195,000 keys of 256 bytes and reads 2,048 entries of 1,152.
    assert bound.state_bytes == 78 * (195_000 * 256 + 2048 * 1152)
    assert bound.seconds == (bound.weight_bytes + bound.state_bytes) / 4.8e12
    assert bound.tokens_per_second == pytest.approx(1 / bound.seconds)
    assert step_state_bytes(CONFIG, 1, 100) == 78 * 100 * (256 + 1152)  # all that there are
    # On one GPU: all but the embedding (of which a row) and the 248 experts of each layer.
    expert = 3 * (2048 * 6144 + 16 * 48 * 4)
    idle = 75 * 248 * expert + (154880 - 1) * 6144 * 2
    assert fp8.rank_step_bytes(1, 1) == 746_130_054_912 - idle
    # Two tokens hit 256 · (1 − (31/32)²) experts.
    more = fp8.rank_step_bytes(1, 2) - fp8.rank_step_bytes(1, 1)
    assert more == pytest.approx(75 * expert * (256 * (1 - (31 / 32) ** 2) - 8) + 6144 * 2, abs=1)


def test_decode_of_a_hybrid() -> None:
    recurrent, conv = 64 * 128 * 128 * 4, 12288 * 3 * 2
    for gpus in (1, 8):
        linear = 59 * 2 * (recurrent + conv) // gpus  # read and written
        assert step_state_bytes(HYBRID_CONFIG, gpus, 5000) == linear + 19 * 5000 * 1152


def test_hybrid_plan(tmp_path: Path) -> None:
    options = PlanOptions(gpus=("h100", "h200"), batch=2)
    plan = make_plan(find_source("glm-5.1-hybrid"), options)
    assert plan == make_plan(source_of(HYBRID, tmp_path), options) | {"source": plan["source"]}
    assert plan["model"]["attention"] == {"linear": 59, "full": 19}
    assert plan["build"]["kinds"] == ["embedding", "dense_linear", "sparse_full", "sparse_linear",
                                      "head", "mtp_sparse_full"]  # fmt: skip
    layer = 20480 * 6144 + 128 * 6144 + 12288 * 4 + 64 + 64 + 128 + 6144 * 8192
    assert plan["parameters"]["components"]["linear_attention"] == 59 * layer
    assert plan["state"]["bytes_per_sequence"] == 59 * (12288 * 3 * 2 + 64 * 128 * 128 * 4)
    state = plan["state"]["contexts"][0]["bytes"]
    assert state == 2 * (1024 * 19 * 1152 + plan["state"]["bytes_per_sequence"])
    json.dumps(plan)


def test_options(tmp_path: Path) -> None:
    source = source_of(GLM_5_1, tmp_path)
    one = PlanOptions(gpus=("rtx-4090",), contexts=(5000, 5000, 10), precisions=("fp8", "bf16"))
    plan = make_plan(source, one)
    assert plan["options"]["contexts"] == [10, 5000]
    assert [entry["precision"] for entry in plan["fit"]] == ["bf16", "fp8"]
    assert plan["recommended"][0]["gpu"] is None
    # Of GPUs with as much memory the faster one.
    equal = PlanOptions(gpus=("h100-pcie", "h100"), contexts=(1024,), precisions=("fp8",))
    assert make_plan(source, equal)["recommended"][0]["gpu"] == "h100"
    # None is planned twice.
    for most, contexts in ((500, (500,)), (98_000, (1024, 98_000)), (195_000, CONTEXTS)):
        config = replace(source.config, max_position_embeddings=most)
        assert PlanOptions().chosen_contexts(config) == contexts
    mtp = make_plan(source, PlanOptions(gpus=("h200",), with_mtp=True))
    assert mtp["state"]["bytes_per_token"] == 79 * 1408
    assert mtp["weights"]["bf16"]["bytes"] == 1_487_822_475_264
    for options in (
        PlanOptions(gpus=("h300",)), PlanOptions(contexts=(0,)), PlanOptions(batch=0),
        PlanOptions(contexts=(202_753,)),
    ):  # fmt: skip
        with pytest.raises(GlmTrtError, match="expected"):
            make_plan(source, options)


def test_sources(tmp_path: Path) -> None:
    source = find_source(TINY)
    assert source.files == 1
    assert source.stored_bytes == (TINY / "model.safetensors").stat().st_size
    assert find_source(TINY / "config.json").files == 0
    with pytest.raises(ConfigError, match="-hybrid; found none"):
        find_source(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"config\.json: not found"):
        find_source(tmp_path)


def test_constants_are_those_of_the_builder() -> None:
    from glm_trt.engines.build.engines import BuildOptions
    from glm_trt.engines.build.flavours import RTX_TARGETS

    assert BuildOptions().max_prefill == m.PREFILL_TOKENS
    assert host.BUILD_TARGETS == RTX_TARGETS


def test_tiny_checkpoint_is_exactly_what_is_stored() -> None:
    plan = make_plan(find_source(TINY), PlanOptions(gpus=("rtx-4090",)))
    header = int.from_bytes((TINY / "model.safetensors").read_bytes()[:8], "little") + 8
    stored = plan["source"]["stored_bytes"] - header
    biases = 6 * 16 * 2  # the routers' are stored in bf16 here
    assert stored + biases == plan["weights"]["bf16"]["bytes_with_mtp"]
