"""Reading a Hugging Face checkpoint: lazy, memory-mapped, every tensor checked before any work."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm_trt.model.checkpoint_place import other_format, require_directory
from glm_trt.model.config import CONFIG_FILE, DTYPES, ModelConfig, read_config
from glm_trt.model.errors import CheckpointError
from glm_trt.model.quantization_config import FIELD, check_supported
from glm_trt.model.safetensors_file import SafetensorsFile, TensorInfo
from glm_trt.model.stored_forms import USUAL_SCALES, Stored, StoredForms
from glm_trt.model.tensors import checkpoint_tensors, mtp_layers

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
GENERATION_CONFIG = "generation_config.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    GENERATION_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
NAMED_TEMPLATES = "additional_chat_templates"  # a folder of NAME.jinja
# Of a module whose weight is packed otherwise: what stands in its place, and who writes that.
_PACKED = {
    "weight_packed": "compressed-tensors", "qweight": "GPTQ or AWQ", "W_q": "HQQ",
    
}  # fmt: skip
_COMPARED_ROWS = 4096  # of embedding and head at once
_LOG = logging.getLogger(__name__)


class Checkpoint:
    """A checkpoint directory whose files agree with its config. Use `Checkpoint.open`."""

    def __init__(self, directory: Path, config: ModelConfig, files: list[SafetensorsFile]) -> None:
        self.directory, self.config, self.files = directory, config, tuple(files)
        self._said = config.quantization
        self._file_of: dict[str, SafetensorsFile] = {}
        for file in files:
            for name in file.tensors:
                if name in self._file_of:
                    first = self._file_of[name].path.name
                    raise CheckpointError(
                        f"{directory}: {name}: duplicated in {first} and {file.path.name}"
                    )
                self._file_of[name] = file
        self.names = tuple(sorted(self._file_of))
        self._check_tensors()

    @classmethod
    def open(cls, directory: str | Path) -> Checkpoint:
        """Map every shard and check names, shapes and dtypes against the config.

        Raises
        ------
        ConfigError, CheckpointError
            Naming file and tensor, what was expected and what was found.
        """
        directory = Path(directory)
        require_directory(directory)
        config = ModelConfig.from_directory(directory)
        check_supported(config.quantization, str(directory / CONFIG_FILE))
        checkpoint = cls(directory, config, _open_files(directory))
        if config.tie_word_embeddings and checkpoint.head_name != checkpoint.embedding_name:
            _LOG.warning(
                "%s: %s: the config ties it to the embedding (tie_word_embeddings), but it is "
                "stored with other values; the stored one is used, as in transformers",
                checkpoint.info(HEAD).file,
                HEAD,
            )
        return checkpoint

    @property
    def dtype(self) -> str:
        """What the model runs in: the config's dtype, or the embedding's where that says none. A
        tensor may be stored in another.
        """
        name = self.embedding_name
        found = self.info(name).dtype if name in self._file_of else "bfloat16"
        return self.config.dtype or found

    @property
    def embedding_name(self) -> str:
        """The tensor of the embedding: of a tied pair that which is stored."""
        alone = HEAD in self._file_of and EMBEDDING not in self._file_of
        return HEAD if alone and self.config.tie_word_embeddings else EMBEDDING

    @cached_property
    def head_name(self) -> str:
        """The tensor of the head. As in transformers, one that is stored wins over the config's
        word that it is tied to the embedding; one of equal values is the embedding.
        """
        if HEAD not in self._file_of:
            return EMBEDDING
        tied = self.config.tie_word_embeddings and EMBEDDING in self._file_of
        return EMBEDDING if tied and self._equal(EMBEDDING, HEAD) else HEAD

    def _equal(self, first: str, second: str) -> bool:
        """Whether two matrices of the same shape hold the same values; read in pieces."""
        a, b = self.tensor(first), self.tensor(second)
        pieces = (slice(i, i + _COMPARED_ROWS) for i in range(0, len(a), _COMPARED_ROWS))
        same = all(
            np.array_equal(a[rows].astype(np.float32), b[rows].astype(np.float32))
            for rows in pieces
        )
        self.release(first)
        self.release(second)
        return same

    @property
    def has_mtp(self) -> bool:
        """Whether the multi-token-prediction layers are stored (transformers drops them)."""
        prefixes = tuple(f"model.layers.{i}." for i in mtp_layers(self.config))
        return any(name.startswith(prefixes) for name in self.names) if prefixes else False

    @property
    def tokenizer_files(self) -> tuple[Path, ...]:
        """The tokenizer's files that exist, chat templates included; a checkpoint may have none."""
        paths = [self.directory / name for name in TOKENIZER_FILES]
        paths += sorted((self.directory / NAMED_TEMPLATES).glob("*.jinja"))
        return tuple(path for path in paths if path.is_file())

    def eos_token_ids(self) -> tuple[int, ...]:
        """Where generation stops: generation_config.json's ids, else the config's.

        Raises
        ------
        CheckpointError
            If that file is not JSON, or its ids are not tokens.
        """
        path = self.directory / GENERATION_CONFIG
        if not path.is_file():
            return self.config.eos_token_ids
        try:
            ids = json.loads(path.read_text()).get("eos_token_id")
        except (ValueError, AttributeError) as error:
            raise CheckpointError(f"{path}: expected a JSON object: {error}") from error
        if ids is None:
            return self.config.eos_token_ids
        ids = ids if isinstance(ids, list) else [ids]
        vocabulary = self.config.vocab_size
        if not all(type(i) is int and 0 <= i < vocabulary for i in ids):
            raise CheckpointError(
                f"{path}: eos_token_id: expected tokens below {vocabulary}, found {ids}"
            )
        return tuple(ids)

    def info(self, name: str) -> TensorInfo:
        """Shape, dtype and place of a tensor."""
        return self._file_of[name].tensors[name]

    def tensor(self, name: str) -> NDArray[Any]:
        """A read-only view of the mapped file."""
        return self._file_of[name].tensor(name)

    def release(self, name: str) -> None:
        """As `SafetensorsFile.release`."""
        self._file_of[name].release(name)

    def stored(self, module: str) -> Stored:
        """How the weight of a linear layer is stored, by the layer's full name."""
        return self._forms.of(module)

    def config_data(self) -> dict[str, Any]:
        """`config.json` for whoever has no files: with how weights are stored, where the config's
        own words and lists say it otherwise than the files.
        """
        data = read_config(self.directory)
        quantization = self.config.quantization
        if self._said == quantization:
            return data
        for name in (FIELD, "compression_config"):
            data.pop(name, None)
        return data | ({FIELD: quantization.to_config()} if quantization.modules else {})

    def experts_stacked(self, layer: int) -> bool:
        """Whether the layer's experts are stored as one tensor rather than one each."""
        return f"model.layers.{layer}.mlp.experts.gate_up_proj" in self._file_of

    def _check_tensors(self) -> None:
        config = self.config
        layers = range(config.num_hidden_layers + config.num_nextn_predict_layers)
        stacked = {layer for layer in layers if self.experts_stacked(layer)}
        # A tied head may be stored all the same.
        head = not config.tie_word_embeddings or HEAD in self._file_of
        whole = checkpoint_tensors(
            config, dtype=self.dtype, stacked=stacked, with_mtp=self.has_mtp, with_head=head
        )
        expected = {spec.name: spec for spec in whole}
        if self.embedding_name == HEAD:
            del expected[EMBEDDING]
        missing = [name for name in expected if name not in self._file_of]
        if missing:
            hint = self._packed(missing[0])
            raise CheckpointError(f"{self.directory}: missing {_some(missing)}{hint}")
        infos = {name: file.tensors[name] for name, file in self._file_of.items()}
        self._forms = forms = StoredForms(
            config.quantization, infos, expected.values(), CONFIG_FILE
        )
        self.config = replace(config, quantization=forms.quantization)
        for notice in forms.notices.lines():
            _LOG.warning("%s: %s", self.directory, notice)
        for suffix, names in forms.ignored.items():
            # Those of inputs are in each file of the kind.
            level = logging.INFO if suffix in USUAL_SCALES else logging.WARNING
            text = "%s: not used: *%s, %d of them, the first %s"
            _LOG.log(level, text, self.directory, suffix, len(names), names[0])
        known = expected.keys() | forms.tensors | {x for of in forms.ignored.values() for x in of}
        extra = [name for name in self.names if name not in known]
        if extra:
            file = self._file_of[extra[0]].path
            raise CheckpointError(f"{file}: not expected by config.json: {_some(extra)}")
        for name, spec in expected.items():
            if name in forms.tensors:
                continue
            info = self.info(name)
            if info.shape != spec.shape:
                raise CheckpointError(
                    f"{info.file}: {name}: expected shape {spec.shape}, found {info.shape}"
                )
            # Each whole tensor may be in a float dtype of its own, and is cast where it is bound.
            if info.dtype not in DTYPES:
                stacked_hint = " (quantised experts are read one tensor an expert)"
                hint = stacked_hint if ".mlp.experts." in name else ""
                raise CheckpointError(
                    f"{info.file}: {name}: expected dtype {' or '.join(DTYPES)}, "
                    f"found {info.dtype}{hint}"
                )

    def _packed(self, missing: str) -> str:
        """What the names of the tensors that stand in place of a missing weight tell of it."""
        module = missing.removesuffix(".weight")
        found = next((x for x in _PACKED if f"{module}.{x}" in self._file_of), None)
        if found is None:
            return ""
        return f"; {module}.{found} is that of {_PACKED[found]}, which is not read"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{len(names)} tensor(s): " + ", ".join(names[:5]) + more


def _open_files(directory: Path) -> list[SafetensorsFile]:
    index = directory / INDEX_FILE
    if index.exists():
        if (directory / SINGLE_FILE).exists():
            raise CheckpointError(
                f"{directory}: holds both {SINGLE_FILE} and {INDEX_FILE}; keep one of them"
            )
        return _open_indexed(directory, index)
    paths = sorted(directory.glob("*.safetensors"))
    if not paths:
        others = (other_format(path) for path in sorted(directory.iterdir()))
        hint = next((f"; {other}" for other in others if other), "")
        raise CheckpointError(f"{directory}: no .safetensors file found{hint}")
    return [SafetensorsFile(path) for path in paths]


def _open_indexed(directory: Path, index: Path) -> list[SafetensorsFile]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        items = sorted(weight_map.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index}: no readable weight_map: {error!r}") from error
    files: dict[str, SafetensorsFile] = {}
    for name, shard in items:
        # Lexical, not resolved: the Hugging Face cache links its files to elsewhere.
        parts = PurePosixPath(shard).parts if isinstance(shard, str) else ()
        if not parts or ".." in parts or PurePosixPath(shard).is_absolute():
            raise CheckpointError(
                f"{index}: {name}: expected a file inside the directory, found {shard!r}"
            )
        if shard not in files:
            if not (directory / shard).is_file():
                raise CheckpointError(f"{index}: {name}: shard {shard} does not exist")
            files[shard] = SafetensorsFile(directory / shard)
        if name not in files[shard].tensors:
            raise CheckpointError(f"{index}: {name}: not in {shard}, where the index puts it")
    for shard, file in files.items():
        for name in file.tensors:
            if weight_map.get(name) != shard:
                place = weight_map.get(name, "nowhere")
                raise CheckpointError(
                    f"{file.path}: {name}: stored here, but the index puts it in {place}"
                )
    return list(files.values())
