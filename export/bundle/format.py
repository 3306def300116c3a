"""What the files of a bundle say: every field of `manifest.json` and `bindings.json`, once.

The JSON Schemas and the C++ runtime's field tables are made of these dataclasses
(`python -P -m glm_trt.export.bundle.generate`). `Binding` is of `model`, whose mathematics read it
and which imports nothing from here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from glm_trt.export.bundle.records import APART
from glm_trt.model.checkpoint.bindings import Binding
from glm_trt.model.rules import Rules

FILE_NAME = "manifest.json"
LIBRARY_PLACE = "plugins/libglm_trt_plugins.so"
FORMAT = "glm-trt bundle"
FORMAT_VERSION = 6

# A string with a pattern has a greatest length, as the C++ runtime's <regex> needs a level of the
# stack for each character; and says itself that it has no last line break, which "$" lets pass.
Digest = Annotated[str, Rules("digest", max_length=64, pattern=r"^(?![\s\S]*\n)[0-9a-f]{64}$")]
Name = Annotated[str, Rules("name", min_length=1, max_length=1024)]
# Relative to the bundle, or to the checkpoint, which it does not leave.
FilePath = Annotated[
    str,
    Rules(
        "path", max_length=1024,
        pattern=r"^(?!/)(?![\s\S]*[\x00-\x1f])(?!.*(^|/)\.\.(/|$)).+$",
    ),
]  # fmt: skip
Target = Annotated[str, Rules(max_length=1024, pattern=r"^(?![\s\S]*\n)sm[0-9]+$")]
Dtype = Annotated[str, Rules("dtype", choices=("float32", "bfloat16", "float16"))]
StateDtype = Annotated[str, Rules(choices=("float32",))]
Count = Annotated[int, Rules(minimum=0)]
Positive = Annotated[int, Rules(minimum=1)]
Range = Annotated[tuple[Positive, ...], Rules(min_items=3, max_items=3), "least, best, most"]


@dataclass(frozen=True)
class FileEntry:
    """A file of the bundle."""

    bytes: Count
    sha256: Digest


@dataclass(frozen=True)
class Shard:
    """A file of weights. `sha256` is null where all of them are too large to be hashed."""

    file: FilePath
    bytes: Count
    header_sha256: Digest
    sample_sha256: Annotated[Digest, "of some pages of it"]
    sha256: Digest | None


@dataclass(frozen=True)
class CheckpointReference:
    """Where the weights lie: in the checkpoint, or in the bundle."""

    directory: Annotated[str, "relative to the bundle"]
    dtype: Dtype
    files: tuple[Shard, ...]


@dataclass(frozen=True)
class ModelFacts:
    """What a runtime needs to know of the config: tokens, and the axes of activations."""

    vocab_size: Positive
    hidden_size: Positive
    rotary_width: Annotated[int, Rules(minimum=0), "the last axis of cos and sin"]
    index_topk: Annotated[int, Rules(minimum=0), "0 without any indexer"]
    eos_token_ids: Annotated[tuple[Count, ...], "where generation stops"]


@dataclass(frozen=True)
class StatePool:
    """Where the layers of a kind keep one of their states, in the order of their graph's inputs.

    A pool is [units, *shape]. A sequence has pages for its positions, or one slot.
    """

    name: Annotated[Name, "the graph's input; the updated state is the output NAME_out"]
    unit: Annotated[str, Rules(choices=("page", "slot"))]
    shape: Annotated[tuple[Positive, ...], Rules(min_items=1), "of a page or a slot"]
    position_axis: Annotated[Count | None, "the axis of shape that is a page's positions"]
    dtype: Annotated[StateDtype | None, "null: the block's"]


@dataclass(frozen=True)
class Block:
    """A block of the model: embedding, layer, head, prediction layer or its head."""

    name: Name
    kind: Name
    layer: Annotated[Count | None, "null: the embedding's, and heads'"]
    bindings: tuple[Binding, ...] = field(default=(), metadata=APART)

    @property
    def prediction(self) -> int | None:
        """Which prediction layer it is, or is the head of; None for the blocks of a pass."""
        first, *rest = self.name.split(".")
        return int(rest[0]) if first == "mtp" else None


@dataclass(frozen=True)
class Graph:
    """The ONNX file of a kind in a dtype."""

    kind: Name
    dtype: Dtype
    file: FilePath


@dataclass(frozen=True)
class EngineEntry:
    """A built engine of a kind in a dtype for a target."""

    backend: Annotated[str, Rules(choices=("tensorrt", "tensorrt-rtx"))]
    backend_version: str
    target: Target
    kind: Name
    dtype: Dtype
    file: FilePath
    key: Annotated[Digest, "of everything that made it"]
    graph_sha256: Digest
    bytes: Positive
    seconds: Annotated[float, Rules(minimum=0)]
    peak_memory_bytes: Count
    layers: Positive
    profiles: Annotated[dict[str, dict[str, Range]], "by name, of each axis"]
    plugins: Annotated[tuple[Name, ...], "op types that plugins run"]
    plugin_library: Annotated[Digest | None, "SHA-256 of the library built with"]

    @property
    def identity(self) -> tuple[str, ...]:
        """What a bundle has one engine of."""
        return self.backend, self.target, self.kind, self.dtype


@dataclass(frozen=True)
class Manifest:
    """Manifest of a glm-trt bundle."""

    format: Annotated[str, Rules(const=FORMAT)]
    format_version: Annotated[int, Rules(const=FORMAT_VERSION)]
    sha256: Annotated[Digest, "of this file with these 64 digits as zeros"]
    key: Annotated[Digest, "of everything that made the graphs and bindings"]
    versions: dict[str, str]
    config: Annotated[dict[str, Any], "the checkpoint's config.json"]
    model: ModelFacts
    states: Annotated[dict[Name, tuple[StatePool, ...]], "of each kind that has any"]
    dtypes: Annotated[tuple[Dtype, ...], Rules(unique_items=True, min_items=1)]
    max_seq_len: Positive
    materialized: bool
    blocks: tuple[Block, ...]
    graphs: tuple[Graph, ...]
    bindings: FilePath
    checkpoint: CheckpointReference
    tokenizer: tuple[FilePath, ...]
    library: Annotated[FilePath | None, "the plugin library, if engines were built with one"]
    files: dict[FilePath, FileEntry]
    engines: tuple[EngineEntry, ...]


Bindings = dict[Name, tuple[Binding, ...]]  # by block
