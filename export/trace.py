"""Tracing one block to an ONNX graph: weights as inputs, batch, sequence and capacity dynamic."""

from __future__ import annotations

import logging
import math
import mmap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from glm_trt.export.onnx_version import require_opset
from glm_trt.export.operators import TracedOperators, translations
from glm_trt.export.passes.lower_opset import WRITTEN_FOR, lower_opset
from glm_trt.export.passes.name_axes import name_axes
from glm_trt.export.passes.type_constants import type_constants
from glm_trt.model.checkpoint.bindings import parameter_dtype
from glm_trt.model.config import ModelConfig, block_kind
from glm_trt.model.glm_moe_dsa import (
    DecoderLayer,
    Embedding,
    Head,
    PredictionLayer,
    run_block,
)
from glm_trt.model.states import layer_states
from glm_trt.plugins.bodies import function_bodies

MAP_NORESERVE = 0x4000  # Linux's; Python has no name for it
# Example sizes; all different and above 1, so that no two dynamic axes are taken for one.
BATCH, LENGTH, CAPACITY = 2, 3, 5
NOT_LAYERS = ("embedding", "head")


class _Traced(nn.Module):
    """A block as a function of its weights, with flat inputs and outputs."""

    block: nn.Module

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        # Not a submodule: its parameters must not become constants.
        object.__setattr__(self, "block", block)

    def forward(self, inputs: dict[str, Tensor], weights: dict[str, Tensor]) -> dict[str, Tensor]:
        def call(*arguments: Any) -> Any:
            return torch.func.functional_call(self.block, weights, arguments)

        return run_block(self.block, inputs, call)


def trace_block(config: ModelConfig, kind: str, dtype: torch.dtype) -> onnx.ModelProto:
    """The ONNX graph of `kind`: "embedding", "head", or a `block_kind`.

    Inputs are named as in the eager block: activations and states first, then the weights by
    parameter name; outputs `hidden_out`, each state's `NAME_out`, `topk_indices`,
    `expert_indices`, `cos`, `sin`, `logits`, whichever the block has. Open axes are named `batch`,
    `sequence`, `capacity`, `selected` and, where tokens of all sequences are packed, `tokens`.
    """
    operators = TracedOperators()
    block: nn.Module
    with torch.device("meta"):
        if kind == "embedding":
            block = Embedding(config)
        elif kind == "head":
            block = Head(config, operators)
        else:
            layer = _first_layer(config, kind)
            predicts = layer >= config.num_hidden_layers
            layer_type = PredictionLayer if predicts else DecoderLayer
            block = layer_type(config, layer, absorbed=True, operators=operators)
    # torch.onnx.ops.symbolic traces to CPU tensors, so meta ones cannot be mixed in.
    inputs, axes = _example_inputs(config, kind, dtype, torch.device("cpu"))
    weights = {
        name: _without_memory(parameter.shape, _dtype_of(name, parameter, dtype))
        for name, parameter in block.named_parameters()
    }
    return _export(kind, _Traced(block), inputs, axes, weights)


def _dtype_of(name: str, parameter: Tensor, dtype: torch.dtype) -> torch.dtype:
    if parameter.dtype == torch.int8:  # bytes of a weight that is stored narrow
        return torch.int8
    return torch.float32 if parameter_dtype(name) else dtype


def _without_memory(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor that no one may touch: address space alone, which may exceed what the machine has.

    (`torch.empty` is refused where the system counts what is reserved.)
    """
    size = math.prod(shape)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    memory = mmap.mmap(-1, size * dtype.itemsize, flags=flags)
    return torch.frombuffer(memory, dtype=dtype, count=size).reshape(shape)


def _first_layer(config: ModelConfig, kind: str) -> int:
    layers = range(config.num_hidden_layers + config.num_nextn_predict_layers)
    return next(i for i in layers if block_kind(config, i) == kind)


def _example_inputs(
    config: ModelConfig, kind: str, dtype: torch.dtype, device: torch.device
) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
    def made(*shape: int, kind: torch.dtype = dtype, **names: int) -> Any:
        axes = {axis: name for name, axis in names.items()}
        return torch.empty(*shape, dtype=kind, device=device), axes

    def zeros() -> Any:
        return torch.zeros(BATCH, dtype=torch.int64, device=device), {0: "batch"}

    layer = None if kind in NOT_LAYERS else _first_layer(config, kind)
    attention = None if layer is None else config.attention_kind(layer)
    hidden = made(BATCH, LENGTH, config.hidden_size, batch=0, sequence=1)
    if kind == "embedding":
        ids = made(BATCH, LENGTH, kind=torch.int64, batch=0, sequence=1)
        both = {"input_ids": ids, "past_lengths": zeros()}
    elif kind == "head":
        both = {"hidden": hidden}
    elif attention == "linear":
        both = {"hidden": hidden, "lengths": zeros()}
    else:
        # Two tensors: one passed twice would be traced as one input.
        cos, sin = (
            made(BATCH, LENGTH, config.qk_rope_head_dim // 2, batch=0, sequence=1) for _ in "cs"
        )
        both = {"hidden": hidden, "cos": cos, "sin": sin, "past_lengths": zeros()}
    if layer is not None and layer >= config.num_hidden_layers:
        both["embedded"] = made(BATCH, LENGTH, config.hidden_size, batch=0, sequence=1)
    if attention == "shared":
        both["shared_indices"] = made(
            BATCH, LENGTH, 4, kind=torch.int32, batch=0, sequence=1, selected=2
        )
    for spec in () if layer is None else layer_states(config, layer):
        state_dtype = torch.float32 if spec.dtype else dtype
        shape = spec.shape(BATCH, CAPACITY)
        both[spec.name] = torch.empty(shape, dtype=state_dtype, device=device), spec.open_axes
    return {k: v[0] for k, v in both.items()}, {k: v[1] for k, v in both.items()}


def _export(
    kind: str,
    traced: _Traced,
    inputs: dict[str, Tensor],
    axes: dict[str, dict[int, str]],
    weights: dict[str, Tensor],
) -> onnx.ModelProto:
    dims = {
        name: torch.export.Dim(name, min=1, max=1 << 20)
        for name in ("batch", "sequence", "capacity", "selected")
    }
    shapes = {name: {i: dims[dim] for i, dim in of.items()} for name, of in axes.items()}
    with _without_stack_traces():
        program = torch.export.export(
            traced,
            (inputs, weights),
            dynamic_shapes=(shapes, dict.fromkeys(weights)),
            strict=False,
        )
        exported = _to_onnx(program, [*inputs, *weights])
    model = exported.model_proto
    names = list(_output_names(program))
    renamed = dict(zip([o.name for o in model.graph.output], names, strict=True))
    _rename(model.graph, renamed)
    used = {node.op_type for node in model.graph.node if node.domain == "glm_trt"}
    model.functions.extend(body for name, body in function_bodies().items() if name in used)
    _drop_traces(model)
    type_constants(model)
    name_axes(model, axes)
    lower_opset(model)
    require_opset(model, kind)
    onnx.checker.check_model(model, full_check=True)
    return model


@contextmanager
def _without_stack_traces() -> Iterator[None]:
    """No node notes where it comes from: a sixth of the time, for what is dropped in the end."""
    config = torch.fx.config
    before = config.do_not_emit_stack_traces
    config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        config.do_not_emit_stack_traces = before


def _to_onnx(program: torch.export.ExportedProgram, input_names: list[str]) -> Any:
    # The exporter warns of an absent torchvision and of its own deprecated calls: no one's concern.
    registry = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registry.level
    registry.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return torch.onnx.export(
                program,
                opset_version=WRITTEN_FOR,
                custom_translation_table=translations(),
                input_names=input_names,
                verbose=False,
            )
    finally:
        registry.setLevel(level)


def _output_names(program: torch.export.ExportedProgram) -> list[str]:
    context = program.call_spec.out_spec.context
    return [str(name) for name in context]


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    # A value inside the graph may bear the name that an output is to have: move it aside.
    inner = {name for node in graph.node for name in node.output} - set(names)
    names = {name: f"{name}_inner" for name in inner & set(names.values())} | names
    for node in graph.node:
        for field in (node.input, node.output):
            for i, name in enumerate(field):
                field[i] = names.get(name, name)
    for value in [*graph.output, *graph.value_info]:
        value.name = names.get(value.name, value.name)


def _drop_traces(model: onnx.ModelProto) -> None:
    # The exporter notes Python stack traces, with paths of the machine it ran on.
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for item in [*model.graph.node, *model.graph.value_info, *model.graph.input]:
        del item.metadata_props[:]
    for output in model.graph.output:
        del output.metadata_props[:]
