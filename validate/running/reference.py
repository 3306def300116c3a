"""The eager model as the truth: one block at a time, with the scores behind its choices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from glm_trt.export.bundle.format import Block, Shard
from glm_trt.export.bundle.read import Bundle
from glm_trt.export.export_checkpoint import shard_entries
from glm_trt.model.checkpoint import bindings as b
from glm_trt.model.checkpoint.read import Checkpoint
from glm_trt.model.checkpoint.weights import (
    TORCH_DTYPES,
    as_torch,
    empty_block,
    fill_block,
    load_weights,
)
from glm_trt.model.errors import BundleError, CheckpointError
from glm_trt.model.glm_moe_dsa import run_block
from glm_trt.model.operators import EagerOperators, positions_of
from glm_trt.model.states import input_dtype
from glm_trt.validate.judging.systematic import ADDED
from glm_trt.validate.running.cases import is_small
from glm_trt.validate.running.published import Part, PublishedWeights

Array = NDArray[Any]


OWN_WEIGHTS = (
    "the bundle's own weights and bindings; that they are the checkpoint's was not checked"
)


@contextmanager
def fitting_threads(bundle: Bundle) -> Iterator[None]:
    """One thread of torch's for a small model: several are no faster on small operators, and on a
    machine that does something else they spin for one another, up to six times as long.
    """
    threads = torch.get_num_threads()
    if is_small(bundle):
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class RecordingOperators(EagerOperators):
    """The eager operators, remembering the scores by which experts and positions were chosen."""

    def __init__(self) -> None:
        self.scores: dict[str, Tensor] = {}

    def moe_routing(self, logits: Tensor, correction_bias: Tensor, **options: Any) -> Any:
        """As the base class; keeps what is chosen by: expert scores [T, E], group scores."""
        choice = logits.sigmoid() + correction_bias
        self.scores["expert_scores"] = choice
        groups = choice.unflatten(-1, (options["n_group"], -1)).topk(2, dim=-1).values.sum(-1)
        self.scores["group_scores"] = groups
        return super().moe_routing(logits, correction_bias, **options)

    def indexer_topk(self, query: Tensor, keys: Tensor, weights: Tensor, *rest: Any, **options: Any
    ) -> Tensor:  # fmt: skip
        """As the base class; keeps the scores [B, S, C], −inf where not visible."""
        (past_lengths,) = rest
        scores = self.indexer_scores(query, keys, weights, options["scale"])
        positions = positions_of(past_lengths, query.shape[1]).unsqueeze(-1)
        hidden = torch.arange(keys.shape[2]) > positions
        self.scores["position_scores"] = scores.masked_fill(hidden, float("-inf"))
        return super().indexer_topk(query, keys, weights, past_lengths, **options)


class EagerBlock:
    """One block of the eager model on arrays: the same inputs and outputs as its graph.

    `scores` are what its last run chose by and, in float64, what each of its parts added to the
    hidden state (`ADDED`), in float32.
    """

    def __init__(self, block: nn.Module, dtype: str, operators: RecordingOperators) -> None:
        self.block, self.dtype, self.operators = block, dtype, operators
        self.scores: dict[str, Array] = {}
        if dtype == "float64":
            _record_parts(block, operators.scores)

    @torch.no_grad()
    def __call__(self, inputs: dict[str, Array]) -> dict[str, Array]:
        """Run; floating inputs are converted to this block's dtypes first."""
        tensors = {name: self._tensor(name, array) for name, array in inputs.items()}
        self.operators.scores.clear()
        outputs = run_block(self.block, tensors)
        self.scores = {name: as_array(scores) for name, scores in self.operators.scores.items()}
        return {name: as_array(tensor) for name, tensor in outputs.items()}

    def _tensor(self, name: str, array: Array) -> Tensor:
        return as_tensor(name, array, self.dtype)


# Modules of a layer whose outputs are added to its hidden state; a mixture of experts adds two.
_PARTS = {
    "eh_proj": "projection", "self_attn": "attention", "linear_attn": "attention",
    "mlp.experts": "experts", "mlp.shared_experts": "shared_experts", "mlp": "mlp",
}  # fmt: skip


def _record_parts(block: nn.Module, record: dict[str, Tensor]) -> None:
    """Whenever `block` runs, put what its parts add into `record`, [B·S, hidden] each."""

    def recorder(part: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            added = output[0] if isinstance(output, tuple) else output
            record[f"{ADDED}{part}"] = added.float()

        return keep

    modules = dict(block.named_modules())
    if "mlp.experts" in modules:
        modules.pop("mlp")
    for path, part in _PARTS.items():
        if path in modules:
            modules[path].register_forward_hook(recorder(part))


def as_tensor(name: str, array: Array, dtype: str) -> Tensor:
    """Input `name` of a block in `dtype`; integers stay as they are."""
    tensor = as_torch(array)
    wanted = TORCH_DTYPES[input_dtype(name, dtype)]
    return tensor.to(wanted) if tensor.is_floating_point() else tensor


def as_array(tensor: Tensor) -> Array:
    """NumPy's: bfloat16, which it has not, as float32, which holds each of its values."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


class Reference:
    """The eager blocks of a bundle's checkpoint, loaded one at a time.

    Config and weights are read from the checkpoint's own files (`published`), not as the bundle
    says: a bundle whose blocks, bindings or copied weights are not the checkpoint's is found. A
    materialized bundle without its checkpoint is its own reference, and that is not found: `source`
    says so. `files` are those that it reads, as a manifest lists them.

    Parameters
    ----------
    checkpoint : where it lies if not where the bundle says.
    own_bindings : take the bundle's bindings, right or wrong.

    Raises
    ------
    CheckpointError
        If the checkpoint is not sound, or has another config than the bundle.
    BundleError
        If the bundle's blocks are not those of the checkpoint.
    """

    def __init__(
        self, bundle: Bundle, checkpoint: Path | None = None, *, own_bindings: bool = False
    ) -> None:
        self.bundle, self.config = bundle, bundle.config
        self.published: PublishedWeights | None = None
        self.source = OWN_WEIGHTS
        self.files: tuple[Shard, ...] = bundle.manifest.checkpoint.files
        given = checkpoint is not None or not bundle.manifest.materialized
        if given and not own_bindings:
            opened = Checkpoint.open(checkpoint or bundle.weights_directory)
            if opened.config != bundle.config:
                raise CheckpointError(
                    f"{opened.directory}: has another config than the bundle {bundle.directory} "
                    "was exported with"
                )
            self.config = opened.config
            _check_blocks(bundle, opened)
            self.published = PublishedWeights(opened.directory, opened.config)
            self.source = str(opened.directory.resolve())
            if bundle.manifest.materialized:
                self.files = shard_entries(opened.files, opened.directory)

    def block(self, block: Block, dtype: str, *, absorbed: bool = False) -> EagerBlock:
        """`block` in `dtype`; expanded attention unless `absorbed`, as exported."""
        operators = RecordingOperators()
        module = self._empty(block, absorbed, operators)
        return EagerBlock(fill_block(module, self._weights(block, module, dtype)), dtype, operators)

    def weights(self, block: Block, dtype: str) -> dict[str, Any]:
        """The weights of `block` as its graph takes them, by name; see `load_weights`."""
        return self._weights(block, self._empty(block, False, RecordingOperators()), dtype)

    def release(self, block: Block) -> None:
        """Let go of the pages of files that a backend read `block` from, and this one too."""
        for name in b.tensor_names(block.bindings):
            self.bundle.weights.release(name)

    def _empty(self, block: Block, absorbed: bool, operators: EagerOperators) -> nn.Module:
        layer = block.kind if block.layer is None else block.layer
        return empty_block(self.config, layer, absorbed=absorbed, operators=operators)

    def _weights(self, block: Block, module: nn.Module, dtype: str) -> dict[str, Any]:
        if self.published is None:
            return load_weights(block.bindings, self.bundle.weights, dtype)
        return self.published.of(module, *self._names(block), dtype)

    def parts(self, block: Block) -> dict[str, tuple[Tensor, list[Part]]]:
        """What the published weights say that each input of `block` holds: an empty tensor of its
        shape and dtype, and the parts, none of them read yet.

        Raises
        ------
        CheckpointError
            If the bundle's own weights are all that there are.
        """
        if self.published is None:
            raise CheckpointError(f"{self.bundle.directory}: no checkpoint to compare with")
        names = self._names(block)
        empty = self._empty(block, False, RecordingOperators()).state_dict()
        return {
            name: (tensor, self.published.parts(name, tuple(tensor.shape), *names))
            for name, tensor in empty.items()
        }

    def _names(self, block: Block) -> tuple[str, str]:
        """What stands before the names of a block's tensors, and the name of its own norm."""
        prefix = "" if block.layer is None else f"model.layers.{block.layer}."
        norm = "model.norm.weight"
        if block.layer is None and block.prediction is not None:
            layer = self.config.num_hidden_layers + block.prediction
            norm = f"model.layers.{layer}.shared_head.norm.weight"
        return prefix, norm


def _check_blocks(bundle: Bundle, checkpoint: Checkpoint) -> None:
    """BundleError unless the bundle has the model's blocks, in their order, each as its layer."""
    config = checkpoint.config
    decoder = config.num_hidden_layers
    expected: list[tuple[str, int | None]] = [("embedding", None)]
    expected += [(f"layer.{i}", i) for i in range(decoder)]
    expected.append(("head", None))
    for i in range(config.num_nextn_predict_layers if checkpoint.has_mtp else 0):
        expected += [(f"mtp.{i}", decoder + i), (f"mtp.{i}.head", None)]
    found = [(block.name, block.layer) for block in (*bundle.blocks, *bundle.prediction_blocks)]
    for place, (wanted, given) in enumerate(zip_longest(expected, found)):
        if wanted != given:
            raise BundleError(
                f"{bundle.directory}: block {place}: expected {wanted}, found {given} (name, layer)"
            )
