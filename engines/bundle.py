"""Opening a bundle: every hash checked, blocks with their bindings, the checkpoint's weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm_trt.export import manifest as m
from glm_trt.model.bindings import Binding
from glm_trt.model.config import ModelConfig
from glm_trt.model.errors import BundleError
from glm_trt.model.safetensors_file import SafetensorsFile, TensorFiles
from glm_trt.model.states import StateSpec, layer_states


@dataclass(frozen=True)
class BundleBlock:
    """One block: `layer` is None for the embedding and for heads."""

    name: str
    kind: str
    layer: int | None
    bindings: tuple[Binding, ...]

    @property
    def prediction(self) -> int | None:
        """Which prediction layer it is, or is the head of; None for the blocks of a pass."""
        first, *rest = self.name.split(".")
        return int(rest[0]) if first == "mtp" else None


class Bundle:
    """A verified bundle. `Bundle.open` raises `BundleError` for anything that is not whole.

    `blocks` are those of a pass, in its order; `prediction_blocks` the MTP layers and their heads.
    """

    def __init__(
        self, directory: Path, manifest: m.Manifest, weights: TensorFiles, weights_directory: Path
    ) -> None:
        self.directory, self.manifest, self.weights = directory, manifest, weights
        self.weights_directory = weights_directory
        self.config = ModelConfig.from_dict(manifest["config"], f"{directory}: config")
        bindings = _read_bindings(directory / manifest["bindings"])
        blocks = [
            BundleBlock(
                entry["name"], entry["kind"], entry.get("layer"),
                bindings[entry["name"]],
            )
            for entry in manifest["blocks"]
        ]  # fmt: skip
        self.blocks = [block for block in blocks if block.prediction is None]
        self.prediction_blocks = [block for block in blocks if block.prediction is not None]
        self.max_seq_len: int = manifest["max_seq_len"]

    @classmethod
    def open(cls, directory: str | Path, checkpoint: str | Path | None = None) -> Bundle:
        """Verify and open `directory`; `checkpoint` says where the weights lie if they moved."""
        directory = Path(directory)
        manifest = m.read_manifest(directory)
        m.verify_files(directory, manifest)
        source = manifest["checkpoint"]
        root = Path(checkpoint) if checkpoint else directory / source["directory"]
        if not root.is_dir():
            raise BundleError(
                f"{directory}: its checkpoint is not at {root.resolve()}; name the directory "
                f"where it lies (--checkpoint), or export again"
            )
        files = []
        for entry in source["files"]:
            path = root / entry["file"]
            m.verify_file(path, entry)
            files.append(SafetensorsFile(path))
            if files[-1].header_sha256 != entry["header_sha256"]:
                raise BundleError(f"{path}: another header than when the bundle was exported")
            if files[-1].sample_sha256() != entry["sample_sha256"]:
                raise BundleError(f"{path}: other weights than when the bundle was exported")
        return cls(directory, manifest, TensorFiles(files), root)

    @property
    def kinds(self) -> list[str]:
        """Block kinds in the order of a pass, and that of the prediction layers."""
        blocks = [*self.blocks, *self.prediction_blocks]
        return list(dict.fromkeys(block.kind for block in blocks))

    def states(self, block: BundleBlock) -> tuple[StateSpec, ...]:
        """The states of a block; none but a layer has any."""
        return () if block.layer is None else layer_states(self.config, block.layer)

    def graph_path(self, kind: str, dtype: str) -> Path:
        """The ONNX file of `kind` in `dtype`."""
        for graph in self.manifest["graphs"]:
            if (graph["kind"], graph["dtype"]) == (kind, dtype):
                return self.directory / graph["file"]
        have = ", ".join(self.manifest["dtypes"])
        raise BundleError(f"{self.directory}: no graph of {kind} in {dtype}; it has {have}")

    @property
    def tokenizer_files(self) -> dict[str, Path]:
        """The tokenizer's files that the checkpoint had, by their names in it."""
        names = [file.removeprefix("tokenizer/") for file in self.manifest["tokenizer"]]
        return {name: self.directory / "tokenizer" / name for name in names}

    def tokenizer_file(self, name: str) -> Path | None:
        """A tokenizer file by its name, None where the checkpoint had none."""
        path = f"tokenizer/{name}"
        return self.directory / path if path in self.manifest["tokenizer"] else None

    def eos_token_ids(self) -> tuple[int, ...]:
        """Where generation stops: generation_config.json's ids, else the config's."""
        return tuple(self.manifest["model"]["eos_token_ids"])


def _read_bindings(path: Path) -> dict[str, tuple[Binding, ...]]:
    """Block name → bindings. The manifest vouches for the content, so it is only parsed."""
    content: dict[str, Any] = json.loads(path.read_text())
    return {name: tuple(Binding.from_dict(x) for x in rows) for name, rows in content.items()}
