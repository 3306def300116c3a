"""Which checkpoint tensors feed which input of a block, after which transformation.

A binding is data: the eager model, the bundle and the runtimes read the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from glm_trt.model.checkpoint.read import Checkpoint
from glm_trt.model.checkpoint.stored_weights import dequantize
from glm_trt.model.config import ModelConfig
from glm_trt.model.errors import CheckpointError
from glm_trt.model.experts import EXPERT_MODULES, experts_precision, stacked_shapes
from glm_trt.model.rules import Rules

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int8": np.dtype(np.int8),
}

# Parameters that a layer wants in float32 whatever its own dtype, by their names' beginnings.
_FLOAT32_PARAMETERS = ("mlp.gate.", "linear_attn.A_log", "linear_attn.dt_bias")
_FLOAT32_SCALES = ("_scale_inv", "_scale_2")


def parameter_dtype(name: str) -> str | None:
    """The dtype of a layer's parameter that has one of its own (float32), else None."""
    wide = name.startswith(_FLOAT32_PARAMETERS) or name.endswith(_FLOAT32_SCALES)
    return "float32" if wide else None


_LAST_NORM = "model.norm.weight"  # the decoder's
EXPERTS_PREFIX = "mlp.experts."
# Numbers in one tensor: above that, the eager model reads what it needs of it each time.
LARGE = 1 << 26


TRANSFORMS = ("none", "head_rows", "fill", "stack_experts")
BOUND_DTYPES = ("float32", "int8")


@dataclass(frozen=True)
class Binding:
    """One weight input of a block.

    The rules are for the schema of a bundle's bindings.json.

    Attributes
    ----------
    name : the input's name, which is the parameter's name in the eager block.
    tensors : checkpoint names; `{expert}` stands for 0 … experts-1.
    transform : "none"; "head_rows" (view [heads, rows, cols], keep rows start:stop of each head; of
        several tensors, the codes and scales of a matrix that is stored narrow, which is
        dequantised first); "fill" (the one number of the tensor, everywhere); "stack_experts" (for
        each expert the tensors after one another; with the argument "fill" each of one number,
        which fills its share).
    arguments : the transformation's integers, by name.
    shape : the input's shape.
    dtype : "float32" where the block wants that whatever its own dtype, "int8" where it wants the
        stored bytes as they are, else None.
    """

    name: str
    tensors: Annotated[tuple[str, ...], Rules(min_items=1)]
    shape: tuple[Annotated[int, Rules(minimum=0)], ...]
    transform: Annotated[str, Rules(choices=TRANSFORMS)] = "none"
    arguments: dict[str, int] = field(default_factory=dict)
    dtype: Annotated[str, Rules(choices=BOUND_DTYPES)] | None = None


def embedding_bindings(config: ModelConfig, checkpoint: Checkpoint) -> list[Binding]:
    """Weights of the embedding block."""
    shape = (config.vocab_size, config.hidden_size)
    return [Binding("embed_tokens.weight", (checkpoint.embedding_name,), shape)]


def head_bindings(
    config: ModelConfig, checkpoint: Checkpoint, norm: str = _LAST_NORM
) -> list[Binding]:
    """Weights of the head block behind the norm of that name."""
    return [
        Binding("norm.weight", (norm,), (config.hidden_size,)),
        Binding("lm_head.weight", (checkpoint.head_name,), (config.vocab_size, config.hidden_size)),
    ]


def layer_bindings(config: ModelConfig, checkpoint: Checkpoint, layer: int) -> list[Binding]:
    """Weights of decoder or prediction layer `layer`."""
    prefix = f"model.layers.{layer}."
    names = ["input_layernorm.weight", "post_attention_layernorm.weight"]
    bindings = []
    if layer >= config.num_hidden_layers:
        names += ["enorm.weight", "hnorm.weight"]
        bindings = [Binding("norm.weight", (_LAST_NORM,), (config.hidden_size,))]
        bindings += _linear(checkpoint, prefix, "eh_proj")
    bindings += [_plain(checkpoint, prefix, name) for name in names]
    if config.attention_kind(layer) == "linear":
        bindings += _linear_bindings(checkpoint, prefix)
    else:
        bindings += _attention_bindings(config, checkpoint, layer, prefix)
    if config.mlp_kind(layer) == "sparse":
        bindings += _moe_bindings(config, checkpoint, layer, prefix)
    else:
        bindings += _dense_bindings(checkpoint, prefix, "mlp.")
    return bindings


def _plain(checkpoint: Checkpoint, prefix: str, name: str) -> Binding:
    shape = checkpoint.info(prefix + name).shape
    return Binding(name, (prefix + name,), shape, dtype=parameter_dtype(name))


def _linear(checkpoint: Checkpoint, prefix: str, module: str) -> list[Binding]:
    """The weight of a linear layer; of one that is stored narrow its bytes and scales."""
    stored = checkpoint.stored(prefix + module)
    if stored.precision == "bf16":
        return [_plain(checkpoint, prefix, f"{module}.weight")]
    bindings = []
    rows, columns = checkpoint.info(f"{prefix}{module}.weight").shape
    wide = (rows, columns if stored.precision == "fp8" else 2 * columns)
    parts = checkpoint.config.quantization.parts(wide, stored.precision)
    for part, suffix in zip(parts, stored.suffixes, strict=True):
        source, shape = prefix + module + suffix, part.shape or (1,)
        transform = "fill" if stored.by_tensor and part.suffix != ".weight" else "none"
        name = module + part.suffix
        bindings.append(Binding(name, (source,), shape, transform, dtype=part.bound_dtype))
    return bindings


def _dense_bindings(checkpoint: Checkpoint, prefix: str, module: str) -> list[Binding]:
    parts = ("gate_proj", "up_proj", "down_proj")
    return [x for part in parts for x in _linear(checkpoint, prefix, module + part)]


def _linear_bindings(checkpoint: Checkpoint, prefix: str) -> list[Binding]:
    names = ("in_proj_ba.weight", "conv1d.weight", "norm.weight", "A_log", "dt_bias")
    bindings = [_plain(checkpoint, prefix, f"linear_attn.{name}") for name in names]
    for module in ("in_proj_qkvz", "out_proj"):
        bindings += _linear(checkpoint, prefix, f"linear_attn.{module}")
    return bindings


def _attention_bindings(
    config: ModelConfig, checkpoint: Checkpoint, layer: int, prefix: str
) -> list[Binding]:
    with_bias = ("q_a_proj", "kv_a_proj_with_mqa", "o_proj")
    modules = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj"]
    names = ["q_a_layernorm.weight", "kv_a_layernorm.weight"]
    if config.attention_bias:
        names += [f"{part}.bias" for part in with_bias]
    if config.attention_kind(layer) == "indexed":
        modules += ["indexer.wq_b", "indexer.wk", "indexer.weights_proj"]
        names += ["indexer.k_norm.weight", "indexer.k_norm.bias"]
    bindings = [_plain(checkpoint, prefix, f"self_attn.{name}") for name in names]
    for module in modules:
        bindings += _linear(checkpoint, prefix, f"self_attn.{module}")
    heads, rank = config.num_attention_heads, config.kv_lora_rank
    nope, value = config.qk_nope_head_dim, config.v_head_dim
    parts = _linear(checkpoint, prefix, "self_attn.kv_b_proj")
    source = tuple(name for part in parts for name in part.tensors)
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
    experts = config.n_routed_experts
    bindings = [
        _plain(checkpoint, prefix, name)
        for name in ("mlp.gate.weight", "mlp.gate.e_score_correction_bias")
    ]
    precision = experts_precision(config, layer)
    for name, modules in EXPERT_MODULES.items():
        target = f"mlp.experts.{name}"
        shapes = stacked_shapes(config, name, precision)
        if checkpoint.experts_stacked(layer):
            bindings.append(Binding(target, (prefix + target,), shapes[0][1]))
            continue
        stored = [checkpoint.stored(f"{prefix}mlp.experts.0.{module}") for module in modules]
        for i, (suffix, shape, dtype) in enumerate(shapes):
            ends = [f"{of}{x.suffixes[i]}" for of, x in zip(modules, stored, strict=True)]
            sources = tuple(f"{prefix}mlp.experts.{{expert}}.{end}" for end in ends)
            fills = stored[0].by_tensor and suffix != ""
            arguments = {"experts": experts} | ({"fill": 1} if fills else {})
            bindings.append(
                Binding(target + suffix, sources, shape, "stack_experts", arguments, dtype)
            )
    return bindings + _dense_bindings(checkpoint, prefix, "mlp.shared_experts.")


class TensorSource(Protocol):
    """Anything that gives a stored tensor by name: a checkpoint, or a bundle's own weights."""

    def tensor(self, name: str) -> NDArray[Any]:
        """A read-only view of the tensor."""
        ...

    def release(self, name: str) -> None:
        """Let go of the memory of what was read of the tensor."""
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
    numpy_dtype = NUMPY_DTYPES[target or bound_dtype(binding, checkpoint)]
    if binding.transform == "stack_experts":
        result = _stack_experts(binding, checkpoint, numpy_dtype)
    else:
        parts = [checkpoint.tensor(name) for name in binding.tensors]
        result = parts[0] if len(parts) == 1 else dequantize(*parts)
        if binding.transform == "head_rows":
            result = _head_rows(result, **binding.arguments)
        if binding.dtype == "int8":
            result = result.view(np.int8)
        result = np.ascontiguousarray(cast(result, numpy_dtype))
        if binding.transform == "fill":
            result = np.full(binding.shape, result.reshape(()))
        result = result.reshape(result.shape or (1,))
    if result.shape != binding.shape:
        raise CheckpointError(
            f"{binding.tensors[0]}: input {binding.name} expects shape {binding.shape}, "
            f"{binding.transform} gives {result.shape}"
        )
    return result


def cast(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """`array` in `dtype`, itself where it has that. Float64 becomes float32 first, as in torch and
    in the C++ runtime: rounded twice, a number may be another than rounded once.
    """
    if array.dtype == np.float64 and dtype.itemsize < 4:
        array = array.astype(np.float32)
    return array.astype(dtype, copy=False)


def bound_dtype(binding: Binding, source: TensorSource) -> str:
    """The dtype that `bound_tensor` gives when it is asked for none: as stored; of tensors that are
    stacked, and stored in several, the narrowest that holds the values of all. Float32 for float64.
    """
    if binding.dtype is not None:
        return binding.dtype
    if binding.transform == "head_rows" and len(binding.tensors) > 1:
        return "float32"
    stored = {source.tensor(name).dtype for name in tensor_names([binding])}
    if np.dtype(np.float64) in stored or len(stored) > 1:
        return "float32"  # no block takes more; neither 16-bit format holds the other's values
    return next(name for name, dtype in NUMPY_DTYPES.items() if dtype in stored)


def _head_rows(tensor: NDArray[Any], heads: int, start: int, stop: int) -> NDArray[Any]:
    return tensor.reshape(heads, -1, tensor.shape[-1])[:, start:stop]


def is_large_stack(binding: Binding) -> bool:
    """Whether the input stacks more of the experts' weights than are to be held at once."""
    stacked = binding.name.startswith(EXPERTS_PREFIX)
    return stacked and math.prod(binding.shape) > LARGE


def expert_parts(binding: Binding, source: TensorSource, expert: int) -> list[NDArray[Any]]:
    """Of a stacked input, views of what one expert has in it: a tensor a module (gate and up), or
    all of them in one where they are stored so. Each is in the dtype in which it is stored, but for
    scales that the block wants in float32 or one number of a module: copies of those.
    """
    if binding.transform == "stack_experts":
        parts = [source.tensor(name.format(expert=expert)) for name in binding.tensors]
    else:
        parts = [source.tensor(binding.tensors[0])[expert]]
    if "fill" in binding.arguments:
        parts = [np.full(_share(binding), part.reshape(())) for part in parts]
    if binding.dtype == "float32":
        parts = [part.astype(np.float32, copy=False) for part in parts]
    return [part.view(np.int8) for part in parts] if binding.dtype == "int8" else parts


def _share(binding: Binding) -> tuple[int, ...]:
    """The shape of what one module has in an expert's part of a stacked input."""
    shape, count = binding.shape[1:], len(binding.tensors)
    return (
        shape if count == 1 else shape[1:] if shape[0] == count else (shape[0] // count, *shape[1:])
    )


def release_expert(binding: Binding, source: TensorSource, expert: int) -> None:
    """Let go of the memory of what `expert_parts` was read from."""
    for name in binding.tensors:
        source.release(name.format(expert=expert))


def bound_expert(binding: Binding, source: TensorSource, expert: int) -> NDArray[Any]:
    """The values of `bound_tensor(binding, source)[expert]`, without reading any other expert."""
    parts = expert_parts(binding, source, expert)
    shape = binding.shape[1:]
    if len(parts) == 1:
        return parts[0].reshape(shape)
    if len({part.dtype for part in parts}) > 1:
        parts = [part.astype(np.float32) for part in parts]
    return np.concatenate([part.reshape(-1) for part in parts]).reshape(shape)


def _stack_experts(
    binding: Binding, checkpoint: TensorSource, dtype: np.dtype[Any]
) -> NDArray[Any]:
    # One destination filled tensor by tensor: never a second copy of the whole.
    result = np.empty(binding.shape, dtype)
    flat = result.reshape(binding.shape[0], -1)
    share = flat.shape[1] // len(binding.tensors) if "fill" in binding.arguments else None
    for expert in range(binding.arguments["experts"]):
        filled = 0
        for template in binding.tensors:
            part = checkpoint.tensor(template.format(expert=expert)).reshape(-1)
            if binding.dtype == "int8":
                part = part.view(np.int8)
            size = share or part.size
            flat[expert, filled : filled + size] = cast(part, dtype)
            filled += size
    return result


def tensor_names(bindings: Iterable[Binding]) -> list[str]:
    """Every checkpoint tensor that `bindings` read, templates written out."""
    names: list[str] = []
    for binding in bindings:
        for template in binding.tensors:
            count = binding.arguments["experts"] if "{expert}" in template else 1
            names += [template.format(expert=expert) for expert in range(count)]
    return names
