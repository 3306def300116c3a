"""A `polygraphy run` line for one block of a bundle, and the inputs that it reads."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm_trt.export.bundle.format import Block
from glm_trt.export.bundle.read import Bundle
from glm_trt.model.checkpoint.bindings import NUMPY_DTYPES, bound_tensor
from glm_trt.model.errors import GlmTrtError, MissingCapabilityError
from glm_trt.model.files import write_atomically
from glm_trt.model.states import input_dtype
from glm_trt.validate.saving.polygraphy_files import FOLDER, read_inputs

Arrays = dict[str, NDArray[Any]]
# Two rows, one with tokens before it and one without, and a cache with room behind both.
PAST = (3, 0)
SEQUENCE, CAPACITY = 5, 12

_SCRIPT = '''"""Inputs of {block} in {dtype}, for `polygraphy run --data-loader-script`."""

from glm_trt.validate.saving.polygraphy_run import block_feeds


def load_data():
    """Activations, states and weights by name, one pass after the other."""
    yield from block_feeds({bundle!r}, {block!r}, {dtype!r}, {run!r})
'''


def polygraphy_line(
    bundle: Bundle, name: str, dtype: str, run: Path | None, directory: Path
) -> str:
    """Write what loads the inputs to `directory`; the line that runs the graph on them. A graph
    whose opset the installed onnxruntime does not know is written there too, in a lower one.

    Parameters
    ----------
    name : a block, or a kind: then its first block.
    run : a run saved by `validate --save`, whose inputs to use; None for random ones.

    Raises
    ------
    GlmTrtError
        If there is no such block, no graph of it in `dtype`, or no inputs of it in `run`.
    """
    block = _block(bundle, name)
    if dtype == "bfloat16":
        raise GlmTrtError(
            "--dtype: onnxruntime has no arithmetic in bfloat16 on the CPU, and Polygraphy no "
            "arrays of it; expected float32 or float16"
        )
    graph = _readable(bundle.graph_path(block.kind, dtype).resolve(), directory, dtype)
    if run is not None:
        read_inputs(_saved(run, block))
    script = directory.resolve() / f"{block.name.replace('.', '_')}_{dtype}.py"
    text = _SCRIPT.format(
        block=block.name, dtype=dtype, bundle=str(bundle.directory.resolve()),
        run=None if run is None else str(run.resolve()),
    )  # fmt: skip
    write_atomically(script, text.encode())
    arguments = ["polygraphy", "run", str(graph), "--onnxrt", "--data-loader-script", str(script)]
    return shlex.join(arguments)


def _readable(graph: Path, directory: Path, dtype: str) -> Path:
    """The graph, or what was made of it in `directory` for the onnxruntime that is installed."""
    import onnx

    try:
        from glm_trt.engines.python import contrib_linear
    except MissingCapabilityError:  # there is no onnxruntime here: it will run elsewhere
        return graph
    model = onnx.load(graph)
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    if contrib_linear.reads_opset(opset):
        return graph
    path = directory.resolve() / f"{graph.stem}_{dtype}.onnx"
    write_atomically(path, contrib_linear.use_contrib_linear(model).SerializeToString())
    return path


def block_feeds(directory: str, name: str, dtype: str, run: str | None) -> Iterator[Arrays]:
    """The inputs of a block, its weights among them: each pass of `run`, or one of random numbers.

    Raises
    ------
    GlmTrtError
        As in `polygraphy_line`.
    """
    bundle = Bundle.open(directory)
    block = _block(bundle, name)
    weights = {
        binding.name: bound_tensor(
            binding, bundle.weights, None if binding.dtype == "int8" else binding.dtype or dtype
        )
        for binding in block.bindings
    }
    passes = [random_inputs(bundle, block)]
    if run is not None:
        passes = read_inputs(_saved(Path(run), block))
    for fed in passes:
        yield {k: _in_dtype(k, x, dtype) for k, x in fed.items()} | weights


def random_inputs(bundle: Bundle, block: Block, seed: int = 0) -> Arrays:
    """Activations and states of a block, floating ones in float64; indices and lengths are valid.

    The names are those that a graph of the block has, and no others.
    """
    config = bundle.config
    generator = np.random.default_rng(seed)
    batch = len(PAST)
    past = np.array(PAST, np.int64)
    angles = generator.uniform(0, 2 * np.pi, (batch, SEQUENCE, config.qk_rope_head_dim // 2))
    positions = past[:, None] + np.arange(SEQUENCE)
    count = min(config.index_topk, CAPACITY)
    selected = np.broadcast_to(np.arange(count), (batch, SEQUENCE, count))
    hidden = (batch, SEQUENCE, config.hidden_size)
    made: Arrays = {
        "input_ids": generator.integers(0, config.vocab_size, (batch, SEQUENCE)),
        "past_lengths": past,
        "lengths": np.full(batch, SEQUENCE, np.int64),
        "hidden": generator.standard_normal(hidden),
        "embedded": generator.standard_normal(hidden),
        "cos": np.cos(angles),
        "sin": np.sin(angles),
        "shared_indices": np.where(selected <= positions[..., None], selected, -1).astype(np.int32),
    }
    for spec in bundle.states(block):
        made[spec.name] = generator.standard_normal(spec.shape(batch, CAPACITY))
    return {name: made[name] for name in _inputs(bundle, block)}


def _inputs(bundle: Bundle, block: Block) -> list[str]:
    """The graph's inputs that are no weights."""
    import onnx

    graph = onnx.load(bundle.graph_path(block.kind, "float32")).graph
    weights = {binding.name for binding in block.bindings}
    return [value.name for value in graph.input if value.name not in weights]


def _in_dtype(name: str, array: NDArray[Any], dtype: str) -> NDArray[Any]:
    if array.dtype.kind != "f":
        return array
    return array.astype(NUMPY_DTYPES[input_dtype(name, dtype)])


def _block(bundle: Bundle, name: str) -> Block:
    blocks = [*bundle.blocks, *bundle.prediction_blocks]
    for block in blocks:
        if name in (block.name, block.kind):
            return block
    names = ", ".join(dict.fromkeys([*(b.name for b in blocks), *(b.kind for b in blocks)]))
    raise GlmTrtError(f"{bundle.directory}: no block or kind {name}; it has {names}")


def _saved(run: Path, block: Block) -> Path:
    return run / FOLDER / f"{block.name}.inputs.json"
