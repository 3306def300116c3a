"""Which checkpoint tensors feed which input of a block, after which transformation.

A binding is data: the eager model, the bundle and the runtimes read the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from glm_trt.model.checkpoint import Checkpoint
from glm_trt.model.config import ModelConfig
from glm_trt.model.errors import CheckpointError

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}

# Parameters that a layer wants in float32 whatever its own dtype, by their names' beginnings.
_FLOAT32_PARAMETERS = ("mlp.gate.", "linear_attn.A_log", "linear_attn.dt_bias")


def parameter_dtype(name: str) -> str | None:
    """The dtype of a layer's parameter that has one of its own (float32), else None."""
    return "float32" if name.startswith(_FLOAT32_PARAMETERS) else None


@dataclass(frozen=True)
class Binding:
    """One weight input of a block.

    Attributes
    ----------
    name : the input's name, which is the parameter's name in the eager block.
    tensors : checkpoint names; `{expert}` stands for 0 … experts-1.
    transform : "none"; "head_rows" (view [heads, rows, cols], keep rows start:stop of each head);
        "stack_experts" (for each expert the tensors' rows after one another: [E, rows, cols]).
    arguments : the transformation's integers, by name.
    shape : the input's shape.
    dtype : "float32" where the block wants that whatever its own dtype, else None.
    """

    name: str
    tensors: tuple[str, ...]
    shape: tuple[int, ...]
    transform: str = "none"
    arguments: dict[str, int] = field(default_factory=dict)
    dtype: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, for `bindings.json`."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Binding:
        """Read back what `to_dict` wrote."""
        return cls(**{**data, "tensors": tuple(data["tensors"]), "shape": tuple(data["shape"])})


def embedding_bindings(config: ModelConfig) -> list[Binding]:
    """Weights of the embedding block."""
    shape = (config.vocab_size, config.hidden_size)
    return [Binding("embed_tokens.weight", ("model.embed_tokens.weight",), shape)]


def head_bindings(config: ModelConfig, checkpoint: Checkpoint) -> list[Binding]:
    """Weights of the head block; a tied head reads the embedding."""
    tied = config.tie_word_embeddings or "lm_head.weight" not in checkpoint.names
    source = "model.embed_tokens.weight" if tied else "lm_head.weight"
    return [
        Binding("norm.weight", ("model.norm.weight",), (config.hidden_size,)),
        Binding("lm_head.weight", (source,), (config.vocab_size, config.hidden_size)),
    ]


def layer_bindings(config: ModelConfig, checkpoint: Checkpoint, layer: int) -> list[Binding]:
    """Weights of decoder layer `layer`."""
    prefix = f"model.layers.{layer}."
    bindings = [
        _plain(checkpoint, prefix, name)
        for name in ("input_layernorm.weight", "post_attention_layernorm.weight")
    ]
    if config.attention_kinds[layer] == "linear":
        bindings += _linear_bindings(checkpoint, prefix)
    else:
        bindings += _attention_bindings(config, checkpoint, layer, prefix)
    if config.mlp_layer_types[layer] == "sparse":
        bindings += _moe_bindings(config, checkpoint, layer, prefix)
    else:
        bindings += _dense_bindings(checkpoint, prefix, "mlp.")
    return bindings


def _plain(checkpoint: Checkpoint, prefix: str, name: str) -> Binding:
    shape = checkpoint.info(prefix + name).shape
    return Binding(name, (prefix + name,), shape, dtype=parameter_dtype(name))


def _dense_bindings(checkpoint: Checkpoint, prefix: str, module: str) -> list[Binding]:
    names = (f"{module}{part}_proj.weight" for part in ("gate", "up", "down"))
    return [_plain(checkpoint, prefix, name) for name in names]


def _linear_bindings(checkpoint: Checkpoint, prefix: str) -> list[Binding]:
    weights = (f"{part}.weight" for part in ("in_proj_qkvz", "in_proj_ba", "conv1d", "norm"))
    names = (*weights, "out_proj.weight", "A_log", "dt_bias")
    return [_plain(checkpoint, prefix, f"linear_attn.{name}") for name in names]


def _attention_bindings(
    config: ModelConfig, checkpoint: Checkpoint, layer: int, prefix: str
) -> list[Binding]:
    with_bias = ("q_a_proj", "kv_a_proj_with_mqa", "o_proj")
    parts = ["q_a_proj", "q_a_layernorm", "q_b_proj", "kv_a_proj_with_mqa", "kv_a_layernorm"]
    names = [f"{part}.weight" for part in [*parts, "o_proj"]]
    if config.attention_bias:
        names += [f"{part}.bias" for part in with_bias]
    if config.attention_kinds[layer] == "indexed":
        names += [
            f"indexer.{part}"
            for part in (
                "wq_b.weight", "wk.weight", "k_norm.weight", "k_norm.bias", "weights_proj.weight"
            )
        ]  # fmt: skip
    bindings = [_plain(checkpoint, prefix, f"self_attn.{name}") for name in names]
    heads, rank = config.num_attention_heads, config.kv_lora_rank
    nope, value = config.qk_nope_head_dim, config.v_head_dim
    source = (f"{prefix}self_attn.kv_b_proj.weight",)
    for name, start, stop in (("k_up_proj", 0, nope), ("v_up_proj", nope, nope + value)):
        bindings.append(
            Binding(
                f"self_attn.{name}",
                source,
                (heads, stop - start, rank),
                "head_rows",
                {"heads": heads, "start": start, "stop": stop},
            )
        )
    return bindings


def _moe_bindings(
    config: ModelConfig, checkpoint: Checkpoint, layer: int, prefix: str
) -> list[Binding]:
    experts, hidden = config.n_routed_experts, config.hidden_size
    width = config.moe_intermediate_size
    bindings = [
        _plain(checkpoint, prefix, name)
        for name in ("mlp.gate.weight", "mlp.gate.e_score_correction_bias")
    ]
    stacked = {
        "gate_up_proj": (("gate_proj", "up_proj"), (experts, 2 * width, hidden)),
        "down_proj": (("down_proj",), (experts, hidden, width)),
    }
    for name, (parts, shape) in stacked.items():
        target = f"mlp.experts.{name}"
        if checkpoint.experts_stacked(layer):
            bindings.append(Binding(target, (prefix + target,), shape))
        else:
            sources = tuple(f"{prefix}mlp.experts.{{expert}}.{part}.weight" for part in parts)
            bindings.append(Binding(target, sources, shape, "stack_experts", {"experts": experts}))
    return bindings + _dense_bindings(checkpoint, prefix, "mlp.shared_experts.")


class TensorSource(Protocol):
    """Anything that gives a stored tensor by name: a checkpoint, or a bundle's own weights."""

    def tensor(self, name: str) -> NDArray[Any]:
        """A read-only view of the tensor."""
        ...


def bound_tensor(
    binding: Binding, checkpoint: TensorSource, dtype: str | None = None
) -> NDArray[Any]:
    """The array that feeds `binding`; a view of the mapped file where nothing must change.

    Parameters
    ----------
    dtype : the block's dtype, None to keep the checkpoint's. `binding.dtype` wins over it.

    Raises
    ------
    CheckpointError
        If the shape that the transformation gives is not the binding's.
    """
    target = binding.dtype or dtype
    numpy_dtype = NUMPY_DTYPES[target] if target else checkpoint.tensor(_first(binding)).dtype
    if binding.transform == "stack_experts":
        result = _stack_experts(binding, checkpoint, numpy_dtype)
    else:
        result = checkpoint.tensor(binding.tensors[0])
        if binding.transform == "head_rows":
            result = _head_rows(result, **binding.arguments)
        result = np.ascontiguousarray(result.astype(numpy_dtype, copy=False))
    if result.shape != binding.shape:
        raise CheckpointError(
            f"{binding.tensors[0]}: input {binding.name} expects shape {binding.shape}, "
            f"{binding.transform} gives {result.shape}"
        )
    return result


def _first(binding: Binding) -> str:
    return binding.tensors[0].format(expert=0)


def _head_rows(tensor: NDArray[Any], heads: int, start: int, stop: int) -> NDArray[Any]:
    return tensor.reshape(heads, -1, tensor.shape[-1])[:, start:stop]


def _stack_experts(
    binding: Binding, checkpoint: TensorSource, dtype: np.dtype[Any]
) -> NDArray[Any]:
    # One destination filled row block by row block: never a second copy of the whole.
    result = np.empty(binding.shape, dtype)
    for expert in range(binding.arguments["experts"]):
        row = 0
        for template in binding.tensors:
            part = checkpoint.tensor(template.format(expert=expert))
            result[expert, row : row + part.shape[0]] = part
            row += part.shape[0]
    return result


def tensor_names(bindings: Iterable[Binding]) -> list[str]:
    """Every checkpoint tensor that `bindings` read, templates written out."""
    names: list[str] = []
    for binding in bindings:
        for template in binding.tensors:
            count = binding.arguments["experts"] if "{expert}" in template else 1
            names += [template.format(expert=expert) for expert in range(count)]
    return names
