"""A checkpoint's tensors summed up: by component, by precision, by GPU of a split."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from glm_trt.model.checkpoint.tensors import TensorSpec, checkpoint_tensors
from glm_trt.model.config import ModelConfig
from glm_trt.model.quantization import Quantization

_SPLIT_COMPONENTS = ("embedding", "head", "dense_mlp", "routed_experts", "shared_experts")
_SPLIT_TENSORS = (
    "self_attn.q_b_proj.weight", "self_attn.kv_b_proj.weight", "self_attn.o_proj.weight",
    "linear_attn.in_proj_qkvz.weight", "linear_attn.in_proj_ba.weight",
    "linear_attn.conv1d.weight", "linear_attn.out_proj.weight",
    "linear_attn.A_log", "linear_attn.dt_bias",
)  # fmt: skip


class Group(NamedTuple):
    """Tensors that are alike in all that a plan asks.

    `mtp`: of a prediction layer. `split`: each GPU holds its share of it, else all of it.
    `quantised`: in a checkpoint of such weights; `precision`: in this one.
    """

    component: str
    mtp: bool
    split: bool
    quantised: bool
    precision: str
    dtype: str
    shape: tuple[int, ...]


class Weights:
    """The tensors of `config` in the precision of `quantisation`.

    Parameters
    ----------
    with_mtp : whether the prediction layers count in what is asked of it, but for `parameters`.
    """

    def __init__(self, config: ModelConfig, quantisation: Quantization, with_mtp: bool) -> None:
        self.config, self.quantisation, self.with_mtp = config, quantisation, with_mtp
        groups: Counter[Group] = Counter()
        for spec in checkpoint_tensors(config, dtype="bfloat16"):
            groups[_group(config, quantisation, spec)] += 1
        self.groups = groups

    def tensors(self) -> int:
        """Tensors in the checkpoint, prediction layers included; scales of a precision are not."""
        return self.groups.total()

    def parameters(self) -> dict[str, int]:
        """Parameters by component; all of the prediction layers as "mtp"."""
        counts: Counter[str] = Counter()
        for group, count in self.groups.items():
            component = "mtp" if group.mtp else group.component
            counts[component] += count * math.prod(group.shape)
        return dict(counts)

    def active_parameters(self) -> int:
        """Parameters that one token meets: a row of the embedding, the experts it is routed to and
        all else, without prediction layers.
        """
        counts = self.parameters()
        counts.pop("mtp", None)
        vocabulary, experts = self.config.vocab_size, self.config.n_routed_experts
        routed = counts.pop("routed_experts", 0) * self.config.num_experts_per_tok // experts
        embedding = counts.pop("embedding")
        # A tied head multiplies with every row of the embedding.
        row = embedding if "head" not in counts else embedding // vocabulary
        return sum(counts.values()) + routed + row

    def stored_bytes(self, with_mtp: bool | None = None) -> int:
        """Bytes of the checkpoint's tensors with their scales."""
        return self._bytes(lambda _: True, with_mtp)

    def quantised_bytes(self) -> int:
        """Those of the quantised tensors among them, with scales."""
        return self._bytes(lambda group: group.quantised)

    def rank_bytes(self, gpus: int) -> int:
        """Bytes that the fullest of `gpus` GPUs holds: its share of what is split, all the rest."""
        split = self._bytes(lambda group: group.split)
        return self._bytes(lambda group: not group.split) + -(-split // gpus)

    def rank_step_bytes(self, gpus: int, batch: int) -> int:
        """Bytes that a GPU reads for one decode step of `batch` tokens, at the least.

        Experts are those that `batch` tokens hit when each is as likely as any other, spread
        evenly over the GPUs.
        """
        config = self.config
        miss = 1 - config.num_experts_per_tok / config.n_routed_experts
        hit = 1 - miss**batch
        experts = self._bytes(lambda group: group.component == "routed_experts")
        tied = not any(group.component == "head" for group in self.groups)
        lookup = 0 if tied else self._bytes(lambda group: group.component == "embedding")
        rows = batch * config.hidden_size * 2
        split = self._bytes(lambda group: group.split) - experts - lookup + round(experts * hit)
        return self._bytes(lambda group: not group.split) + rows + -(-split // gpus)

    def _bytes(self, wanted: Callable[[Group], bool], with_mtp: bool | None = None) -> int:
        with_mtp = self.with_mtp if with_mtp is None else with_mtp
        stored = self.quantisation.stored_bytes
        return sum(
            count * stored(group.shape, group.dtype, group.precision)
            for group, count in self.groups.items()
            if wanted(group) and (with_mtp or not group.mtp)
        )


def _group(config: ModelConfig, quantisation: Quantization, spec: TensorSpec) -> Group:
    mtp = spec.layer is not None and spec.layer >= config.num_hidden_layers
    split = spec.component in _SPLIT_COMPONENTS or spec.name.endswith(_SPLIT_TENSORS)
    module = spec.name.removesuffix(".weight")
    quantised, precision = quantisation.may_narrow(module), quantisation.precision_of(module)
    return Group(spec.component, mtp, split, quantised, precision, spec.dtype, spec.shape)


def gpu_counts(config: ModelConfig, most: int = 64) -> tuple[int, ...]:
    """Powers of two that divide the heads and the experts, so that every GPU has as many."""
    divided = [config.num_attention_heads]
    if "sparse" in config.mlp_layer_types:
        divided.append(config.n_routed_experts)
    if "linear_attention" in config.layer_types:
        divided.append(config.linear_num_key_heads)
    counts = (1 << power for power in range(most.bit_length()))
    return tuple(n for n in counts if n <= most and all(size % n == 0 for size in divided))
