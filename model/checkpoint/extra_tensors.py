"""Tensors that a checkpoint holds besides those of the model, and that change nothing."""

from __future__ import annotations

from collections.abc import Iterable

from glm_trt.model.checkpoint.safetensors_file import TensorInfo
from glm_trt.model.checkpoint.weight_files import layer_of
from glm_trt.model.config import ModelConfig

HEAD = "lm_head.weight"
FREQUENCIES = "rotary frequencies, which are computed"
SHARED_INDEXERS = "indexers of layers that share another layer's selection"
CACHE_SCALES = "scales of caches and outputs, which are not quantised"
HEAD_SCALES = "scales of a head that is stored whole"
BUFFERS = "int64 buffers"
PREDICTION_COPIES = "the prediction layer's own embedding and head, for which the model's are taken"
PREDICTION = "a prediction layer without an indexer of its own: there are no drafts"

_CACHE_SCALES = (
    "k_scale", "v_scale", "q_scale", "kv_scale", "kv_cache_scale", "output_scale", "prob_scale",
)  # fmt: skip
_SCALES = ("weight_scale", "weight_scale_inv", "weight_scale_2", "input_scale", "scale")
_PREDICTION_COPIES = ("embed_tokens.weight", "shared_head.head.weight")


def harmless_kind(config: ModelConfig, info: TensorInfo, predicts: bool) -> str | None:
    """Which of the kinds above a tensor is that the model does not have; None if it is none.

    Parameters
    ----------
    predicts : whether prediction layers are read.
    """
    name, layer = info.name, layer_of(info.name)
    last = name.rpartition(".")[2]
    if name.endswith("rotary_emb.inv_freq"):
        return FREQUENCIES
    if last in _CACHE_SCALES:
        return CACHE_SCALES
    if name.startswith("lm_head.") and last in _SCALES:
        return HEAD_SCALES
    if layer is not None and layer >= config.num_hidden_layers:
        behind = name.partition(f".{layer}.")[2]
        if predicts and behind in _PREDICTION_COPIES:
            return PREDICTION_COPIES
        if not predicts and layer < config.num_hidden_layers + config.num_nextn_predict_layers:
            return PREDICTION
    if layer is not None and layer < config.num_hidden_layers:
        shares = config.attention_kind(layer) == "shared"
        if shares and name.startswith(f"model.layers.{layer}.self_attn.indexer."):
            return SHARED_INDEXERS
    return BUFFERS if info.dtype == "int64" else None


def by_kind(
    config: ModelConfig, infos: Iterable[TensorInfo], predicts: bool
) -> tuple[dict[str, list[str]], list[TensorInfo]]:
    """The names of harmless tensors by their kinds, and what is left."""
    kinds: dict[str, list[str]] = {}
    rest = []
    for info in infos:
        kind = harmless_kind(config, info, predicts)
        if kind is None:
            rest.append(info)
        else:
            kinds.setdefault(kind, []).append(info.name)
    return kinds, rest
