"""Faults put into the files of a bundle: graphs, weights. Each is what a real bug would leave.

A faulty bundle is whole (every hash is right), so that only a comparison can tell.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from manifests import manifest_json
from onnx import helper

from glm_trt.export.bundle.format import FILE_NAME
from glm_trt.export.bundle.records import to_json
from glm_trt.export.bundle.write import file_entry, seal
from glm_trt.model.checkpoint.safetensors_file import SafetensorsFile
from glm_trt.model.files import sha256_of

Edit = Callable[["Faulty"], None]


class Faulty:
    """A copy of a materialized bundle, whose files may be edited."""

    def __init__(self, bundle: Path, copy: Path) -> None:
        shutil.copytree(bundle, copy)
        self.directory = copy
        self.manifest = manifest_json(copy)

    def seal(self) -> None:
        """Write the manifest with the files' present hashes."""
        for name in self.manifest["files"]:
            self.manifest["files"][name] = to_json(file_entry(self.directory / name))
        for entry in self.manifest["checkpoint"]["files"]:
            file = SafetensorsFile(self.directory / "weights" / entry["file"])
            entry["sample_sha256"] = file.sample_sha256()
            entry["sha256"] = sha256_of(file.path)
        (self.directory / FILE_NAME).write_bytes(seal(self.manifest))

    def kind_of(self, block: str) -> str:
        return next(x["kind"] for x in self.manifest["blocks"] if x["name"] == block)

    def graphs(self, block: str, edit: Callable[[onnx.ModelProto], None]) -> None:
        """Edit the graphs of the block's kind, in every dtype."""
        for entry in self.manifest["graphs"]:
            if entry["kind"] == self.kind_of(block):
                path = self.directory / entry["file"]
                model = onnx.load(path)
                edit(model)
                onnx.save(model, path)

    def weight(self, block: str, name: str, edit: Callable[[Any], Any]) -> None:
        """Replace a weight by what `edit` makes of it: bytes as int8, else float32."""
        path = self.directory / "weights" / f"{block}.safetensors"
        file = SafetensorsFile(path)
        info, old = file.tensors[f"{block}.{name}"], file.tensor(f"{block}.{name}")
        narrow = old.dtype == np.int8
        new = edit(old.copy() if narrow else old.astype(np.float32)).astype(old.dtype)
        assert new.shape == old.shape and not np.array_equal(new.view(np.int8), old.view(np.int8))
        with path.open("r+b") as stream:
            stream.seek(info.offset)
            stream.write(np.ascontiguousarray(new).tobytes())


@dataclass(frozen=True)
class Fault:
    """A fault, where it is, and the operators of which one must be named.

    `of` is the bundle it is put into: "plain", "hybrid", "fp8", "nvfp4"; `dtype` that in which it
    exceeds rounding, None if both.
    """

    name: str
    of: str
    block: str
    operators: tuple[str, ...]
    edit: Edit
    dtype: str | None = None
    slow: bool = False


FAULTS: list[Fault] = []


def fault(
    of: str, block: str, *operators: str, dtype: str | None = None, slow: bool = False
) -> Callable[[Edit], Edit]:
    def listed(edit: Edit) -> Edit:
        FAULTS.append(Fault(edit.__name__, of, block, operators, edit, dtype, slow))
        return edit

    return listed


def node_of(model: onnx.ModelProto, op_type: str, at: int = 0) -> onnx.NodeProto:
    return [node for node in model.graph.node if node.op_type == op_type][at]


def maker_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if name in node.output)


def set_attribute(node: onnx.NodeProto, name: str, value: Any) -> None:
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])


def insert(model: onnx.ModelProto, before: onnx.NodeProto, *nodes: onnx.NodeProto) -> None:
    at = list(model.graph.node).index(before)
    for node in reversed(nodes):
        model.graph.node.insert(at, node)


def constant(model: onnx.ModelProto, name: str, value: Any) -> str:
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), name))
    return name


def exchange(bundle: Faulty, name: str) -> None:
    """A weight of two layers, exchanged in what says which tensor feeds which input."""
    path = bundle.directory / bundle.manifest["bindings"]
    bindings = json.loads(path.read_text())
    one, other = (
        next(x for x in bindings[block] if x["name"] == name) for block in ("layer.1", "layer.2")
    )
    one["tensors"], other["tensors"] = other["tensors"], one["tensors"]
    path.write_text(json.dumps(bindings))


# Weights.


@fault("plain", "layer.1", "MoeExperts")
def swapped_gate_and_up(bundle: Faulty) -> None:
    bundle.weight("layer.1", "mlp.experts.gate_up_proj",
                  lambda w: np.concatenate(np.split(w, 2, axis=1)[::-1], axis=1))  # fmt: skip


@fault("plain", "layer.2", "MoeRouting")
def dropped_correction_bias(bundle: Faulty) -> None:
    bundle.weight("layer.2", "mlp.gate.e_score_correction_bias", lambda b: b * 0)


@fault("plain", "layer.1", "MoeExperts")
def permuted_experts(bundle: Faulty) -> None:
    bundle.weight("layer.1", "mlp.experts.down_proj", lambda w: np.roll(w, 1, axis=0))


@fault("plain", "layer.1", "RMSNormalization", "Gemm")
def exchanged_layers(bundle: Faulty) -> None:
    """The weights of two layers of one kind."""
    files = [SafetensorsFile(bundle.directory / "weights" / f"layer.{i}.safetensors")
             for i in (1, 2)]  # fmt: skip
    stored = [
        {name.split(".", 2)[2]: file.tensor(name).copy() for name in file.tensors} for file in files
    ]
    for block, other in (("layer.1", stored[1]), ("layer.2", stored[0])):
        for name, array in other.items():
            try:
                bundle.weight(block, name, lambda _, array=array: array)
            except AssertionError:  # the two are equal here: norms of ones
                continue


@fault("plain", "layer.2", "Transpose", "MatMul")
def heads_out_of_order(bundle: Faulty) -> None:
    bundle.weight("layer.2", "self_attn.v_up_proj", lambda w: np.roll(w, 1, axis=0))


@fault("plain", "layer.0", "Gemm")
def one_weight_off(bundle: Faulty) -> None:
    """One element of 80 × 48, by as much as the largest."""

    def edit(w: Any) -> Any:
        w[7, 5] += np.abs(w).max()
        return w

    bundle.weight("layer.0", "mlp.up_proj.weight", edit)


@fault("plain", "head", "RMSNormalization")
def norm_of_another_layer(bundle: Faulty) -> None:
    bundle.weight("head", "norm.weight", lambda w: np.roll(w, 1))


@fault("plain", "embedding", "Gather")
def shifted_embedding(bundle: Faulty) -> None:
    bundle.weight("embedding", "embed_tokens.weight", lambda w: np.roll(w, 1, axis=0))


@fault("fp8", "layer.1", "Fp8MoeExperts")
def scale_of_one_fp8_block(bundle: Faulty) -> None:
    def edit(scales: Any) -> Any:
        scales[3, 0, 0, 0] *= 2
        return scales

    bundle.weight("layer.1", "mlp.experts.gate_up_proj_scale_inv", edit)


@fault("fp8", "layer.0", "Fp8Linear")
def inverted_fp8_scale(bundle: Faulty) -> None:
    bundle.weight("layer.0", "self_attn.q_b_proj.weight_scale_inv", lambda s: 1 / s)


@fault("nvfp4", "layer.1", "Nvfp4MoeExperts")
def exchanged_nvfp4_nibbles(bundle: Faulty) -> None:
    def edit(codes: Any) -> Any:
        unsigned = codes.view(np.uint8)
        return ((unsigned << 4) | (unsigned >> 4)).view(np.int8)

    bundle.weight("layer.1", "mlp.experts.gate_up_proj", edit)


@fault("plain", "layer.1", "Gemm")
def exchanged_bindings(bundle: Faulty) -> None:
    exchange(bundle, "self_attn.o_proj.weight")


# Graphs.


@fault("plain", "layer.1", "TensorScatter")
def cache_one_position_late(bundle: Faulty) -> None:
    """Where the last position is the last that there is room for, the block cannot even run."""

    def edit(model: onnx.ModelProto) -> None:
        node = maker_of(model, "kv_cache_out")
        one = constant(model, "one_late", np.int64(1))
        insert(model, node, helper.make_node("Add", [node.input[2], one], ["late"]))
        node.input[2] = "late"

    bundle.graphs("layer.1", edit)


@fault("plain", "layer.1", "RotaryEmbedding")
def half_split_rotation(bundle: Faulty) -> None:
    def edit(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            if node.op_type == "RotaryEmbedding":
                set_attribute(node, "interleaved", 0)

    bundle.graphs("layer.1", edit)


@fault("plain", "layer.1", "IndexerTopK")
def causal_mask_off_by_one(bundle: Faulty) -> None:
    """Each token sees all but itself; the first sees nothing."""

    def edit(model: onnx.ModelProto) -> None:
        node = node_of(model, "IndexerTopK")
        one = constant(model, "one_less", np.int64(-1))
        insert(model, node, helper.make_node("Add", [node.input[3], one], ["too_early"]))
        node.input[3] = "too_early"

    bundle.graphs("layer.1", edit)


@fault("hybrid", "layer.3", "CausalMla")
def sees_the_next_token(bundle: Faulty) -> None:
    def edit(model: onnx.ModelProto) -> None:
        node = node_of(model, "CausalMla")
        one = constant(model, "one_more", np.int64(1))
        insert(model, node, helper.make_node("Add", [node.input[2], one], ["too_late"]))
        node.input[2] = "too_late"

    bundle.graphs("layer.3", edit)


@fault("plain", "layer.1", "TensorScatter")
def cache_not_updated(bundle: Faulty) -> None:
    def edit(model: onnx.ModelProto) -> None:
        node = maker_of(model, "kv_cache_out")
        name = node.input[0]
        node.CopyFrom(helper.make_node("Identity", [name], ["kv_cache_out"], name=node.name))

    bundle.graphs("layer.1", edit)


@fault("hybrid", "layer.0", "LinearAttention")
def recurrent_state_not_updated(bundle: Faulty) -> None:
    def edit(model: onnx.ModelProto) -> None:
        node = node_of(model, "LinearAttention")
        node.output[1] = "lost"
        same = helper.make_node("Identity", ["recurrent_state"], ["recurrent_state_out"])
        model.graph.node.append(same)

    bundle.graphs("layer.0", edit)


@fault("plain", "layer.1", "IndexerTopK")
def ties_to_the_larger_index(bundle: Faulty) -> None:
    """The scores are ranked from the last position on."""

    def edit(model: onnx.ModelProto) -> None:
        body = next(f for f in model.functions if f.name == "IndexerTopK")
        at, node = next(
            (i, n) for i, n in enumerate(body.node) if n.op_type == "TopK" and not any(
                a.name == "largest" and not a.i for a in n.attribute)
        )  # fmt: skip
        masked, best = node.input[0], node.output[1]

        def ints(name: str, value: int) -> onnx.NodeProto:
            tensor = onnx.numpy_helper.from_array(np.array([value], np.int64))
            return helper.make_node("Constant", [], [name], value=tensor)

        node.input[0], node.output[1] = "reversed_scores", "reversed_best"
        before = [
            ints("tie_less", -1), ints("tie_lowest", -(2**62)), ints("tie_axis", 2),
            helper.make_node("Slice", [masked, "tie_less", "tie_lowest", "tie_axis", "tie_less"],
                             ["reversed_scores"]),
            helper.make_node("Shape", [masked], ["tie_columns"], start=2, end=3),
            helper.make_node("Add", ["tie_columns", "tie_less"], ["tie_last"]),
        ]  # fmt: skip
        body.node.insert(at + 1, helper.make_node("Sub", ["tie_last", "reversed_best"], [best]))
        for other in reversed(before):
            body.node.insert(at, other)

    bundle.graphs("layer.1", edit)


@fault("hybrid", "layer.0", "Where")
def nan_in_a_padded_row(bundle: Faulty) -> None:
    """Padding has an update rate of NaN, not 0."""

    def edit(model: onnx.ModelProto) -> None:
        attention = node_of(model, "LinearAttention")
        node = maker_of(model, attention.input[5])
        while node.op_type == "Cast":
            node = maker_of(model, node.input[0])
        assert node.op_type == "Where"
        zero = next(x for x in model.graph.initializer if x.name == node.input[2])
        nan = onnx.numpy_helper.to_array(zero) * 0 + np.nan
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(nan.astype(onnx.numpy_helper.to_array(zero).dtype), "nan")
        )
        node.input[2] = "nan"

    bundle.graphs("layer.0", edit)


@fault("plain", "embedding", "Add")
def shifted_by_one_in_decode(bundle: Faulty) -> None:
    """A pass of one token takes the position after its own."""

    def edit(model: onnx.ModelProto) -> None:
        node = node_of(model, "Add")
        one, shape = constant(model, "one", np.int64([1])), node.input[0]
        insert(
            model, node,
            helper.make_node("Shape", ["input_ids"], ["tokens"], start=1, end=2),
            helper.make_node("Equal", ["tokens", one], ["alone"]),
            helper.make_node("Cast", ["alone"], ["shift"], to=onnx.TensorProto.INT64),
            helper.make_node("Add", [shape, "shift"], ["shifted"]),
        )  # fmt: skip
        node.input[0] = "shifted"

    bundle.graphs("embedding", edit)


@fault("plain", "layer.1", "MoeRouting")
def no_routed_scaling(bundle: Faulty) -> None:
    bundle.graphs("layer.1", lambda model: set_attribute(
        node_of(model, "MoeRouting"), "routed_scaling_factor", 1.0))  # fmt: skip


@fault("plain", "layer.1", "RMSNormalization")
def larger_epsilon(bundle: Faulty) -> None:
    bundle.graphs("layer.1", lambda model: set_attribute(
        node_of(model, "RMSNormalization", -1), "epsilon", 1e-2))  # fmt: skip


@fault("plain", "layer.1", "SparseMla")
def scale_of_the_absorbed_width(bundle: Faulty) -> None:
    bundle.graphs("layer.1", lambda model: set_attribute(
        node_of(model, "SparseMla"), "scale", 24**-0.5))  # fmt: skip


@fault("plain", "layer.1", "Add")
def no_shared_expert(bundle: Faulty) -> None:
    def edit(model: onnx.ModelProto) -> None:
        experts = node_of(model, "MoeExperts").output[0]
        node = next(n for n in model.graph.node if n.op_type == "Add" and experts in n.input)
        zero = helper.make_node("Sub", [experts, experts], ["nothing"])
        insert(model, node, zero)
        other = 1 if node.input[0] == experts else 0
        node.input[other] = "nothing"

    bundle.graphs("layer.1", edit)


@fault("plain", "layer.1", "LayerNormalization")
def no_bias_of_the_indexers_norm(bundle: Faulty) -> None:
    def edit(model: onnx.ModelProto) -> None:
        del node_of(model, "LayerNormalization").input[2]

    bundle.graphs("layer.1", edit)


@fault("hybrid", "layer.0", "Neg", "Mul")
def growing_instead_of_decaying(bundle: Faulty) -> None:
    def edit(model: onnx.ModelProto) -> None:
        node = node_of(model, "Neg")
        node.op_type = "Identity"

    bundle.graphs("layer.0", edit)


@fault("hybrid", "layer.0", "CausalConvWithState")
def convolution_without_activation(bundle: Faulty) -> None:
    bundle.graphs("layer.0", lambda model: set_attribute(
        node_of(model, "CausalConvWithState"), "activation", "none"))  # fmt: skip


@fault("hybrid", "layer.0", "Where")
def state_without_the_past(bundle: Faulty) -> None:
    """The convolution's state is taken from the new columns alone."""

    def edit(model: onnx.ModelProto) -> None:
        node = maker_of(model, "conv_state_out")
        assert node.op_type == "Where"
        node.input[1] = node.input[2]

    bundle.graphs("layer.0", edit)
