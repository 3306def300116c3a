"""Reading a Hugging Face checkpoint: lazy, memory-mapped, every tensor checked before any work."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm_trt.model.checkpoint.extra_tensors import PREDICTION_COPIES, by_kind
from glm_trt.model.checkpoint.place import require_directory
from glm_trt.model.checkpoint.safetensors_file import SafetensorsFile, TensorInfo
from glm_trt.model.checkpoint.stored_forms import INPUT_SCALES, Stored, StoredForms
from glm_trt.model.checkpoint.tensors import checkpoint_tensors, mtp_layers
from glm_trt.model.checkpoint.weight_files import INDEX_FILE as INDEX_FILE
from glm_trt.model.checkpoint.weight_files import SINGLE_FILE as SINGLE_FILE
from glm_trt.model.checkpoint.weight_files import layer_of, open_files, some
from glm_trt.model.config import CONFIG_FILE, DTYPES, MODEL_TYPES, ModelConfig, read_config
from glm_trt.model.config_defaults import own_config
from glm_trt.model.errors import CheckpointError
from glm_trt.model.files import what_it_is
from glm_trt.model.quantization_config import FIELD, check_supported
from glm_trt.model.strict_json import parse_json

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
STORED_DTYPES = (*DTYPES, "float64")  # of tensors that are stored whole
NAMED_TEMPLATES = "additional_chat_templates"  # a folder of NAME.jinja
# Of a module whose weight is packed otherwise: what stands in its place, and who writes that.
_PACKED = {
    "weight_packed": "compressed-tensors", "qweight": "GPTQ or AWQ", "W_q": "HQQ",
}  # fmt: skip
_COMPARED_ROWS = 4096  # of embedding and head at once
_SAMPLED_ROWS = 64  # of a prediction layer's copy of either
_LOG = logging.getLogger(__name__)


def tokenizer_files(directory: Path) -> tuple[Path, ...]:
    """The tokenizer's files that exist, chat templates included; a checkpoint may have none."""
    paths = [directory / name for name in TOKENIZER_FILES]
    paths += sorted((directory / NAMED_TEMPLATES).glob("*.jinja"))
    return tuple(path for path in paths if path.is_file())


class Checkpoint:
    """A checkpoint directory whose files agree with its config. Use `Checkpoint.open`."""

    def __init__(self, directory: Path, config: ModelConfig, files: list[SafetensorsFile]) -> None:
        self.directory, self.files = directory, tuple(files)
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
        self.config = self._with_prediction_layers(config)
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
        named = own_config(read_config(directory), MODEL_TYPES).get("transformers_weights")
        checkpoint = cls(directory, config, open_files(directory, config.num_hidden_layers, named))
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
        return self.config.dtype or (found if found in DTYPES else "float32")

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
        """Whether the multi-token-prediction layers are stored, each with what it attends by
        (transformers drops them).
        """
        return self._prediction_stored and self._without_indexer is None

    def config_data(self) -> dict[str, Any]:
        """`config.json` for whoever has no files, with what these say otherwise.

        Raises
        ------
        CheckpointError
            If it has text that is not Unicode, or too many levels.
        """
        data = dict(own_config(read_config(self.directory), MODEL_TYPES))
        if self.config.num_nextn_predict_layers != (data.get("num_nextn_predict_layers") or 0):
            data["num_nextn_predict_layers"] = self.config.num_nextn_predict_layers
        if self._said != self.config.quantization:
            for name in (FIELD, "compression_config"):
                data.pop(name, None)
            if self.config.quantization.modules:
                data[FIELD] = self.config.quantization.to_config()
        try:
            parse_json(json.dumps(data).encode())
        except ValueError as error:
            path = self.directory / CONFIG_FILE
            raise CheckpointError(f"{path}: cannot be part of a bundle: {error}") from error
        return data

    def _with_prediction_layers(self, config: ModelConfig) -> ModelConfig:
        """The config with as many prediction layers as are stored, where it announces fewer."""
        first, announced = config.num_hidden_layers, config.num_nextn_predict_layers
        stored = 0
        while f"model.layers.{first + stored}.eh_proj.weight" in self._file_of:
            stored += 1
        if stored > announced:
            _LOG.warning(
                "%s: %d prediction layer(s) are stored, which %s does not announce "
                "(num_nextn_predict_layers); they are read",
                self.directory, stored, CONFIG_FILE,
            )  # fmt: skip
            config = replace(config, num_nextn_predict_layers=stored)
        layers = mtp_layers(config)
        self._prediction_stored = any(layer_of(name) in layers for name in self.names)
        if layers and not self._prediction_stored:
            _LOG.warning(
                "%s: no file holds the %d prediction layer(s) that %s announces "
                "(num_nextn_predict_layers): there are no drafts",
                self.directory, announced, CONFIG_FILE,
            )  # fmt: skip
        wanted = "self_attn.indexer.wk.weight"
        indexed = bool(layers) and config.attention_kind(first) == "indexed"
        with_indexer = {layer_of(name) for name in self.names if ".self_attn.indexer." in name}
        lacking = [i for i in layers[:stored] if indexed and i not in with_indexer]
        self._without_indexer = f"model.layers.{lacking[0]}.{wanted}" if lacking else None
        return config

    @property
    def tokenizer_files(self) -> tuple[Path, ...]:
        """As `tokenizer_files`."""
        return tokenizer_files(self.directory)

    def eos_token_ids(self) -> tuple[int, ...]:
        """Where generation stops: generation_config.json's ids, else the config's.

        Raises
        ------
        CheckpointError
            If that file's ids are no numbers. A file that is no JSON is left aside with a notice,
            and so are ids beyond the vocabulary.
        """
        path = self.directory / GENERATION_CONFIG
        if not path.is_file():
            return self._config_eos()
        content = path.read_bytes()
        try:
            ids = json.loads(content.decode("utf-8")).get("eos_token_id")
        except (ValueError, AttributeError, RecursionError) as error:
            reason = what_it_is(content) or f"expected a JSON object: {error}"
            text = "%s: not read: %s; the end tokens are those of %s"
            _LOG.warning(text, path, reason, CONFIG_FILE)
            ids = None
        if ids is None:
            return self._config_eos()
        ids = ids if isinstance(ids, list) else [ids]
        if not all(type(i) is int for i in ids):
            raise CheckpointError(f"{path}: eos_token_id: expected token IDs, found {ids}")
        return self._tokens(ids, path)

    def _config_eos(self) -> tuple[int, ...]:
        data = own_config(read_config(self.directory), MODEL_TYPES)
        ids = data.get("eos_token_id", self.config.eos_token_ids)
        ids = [] if ids is None else ids if isinstance(ids, list | tuple) else [ids]
        return self._tokens(ids, self.directory / CONFIG_FILE)

    def _tokens(self, ids: Sequence[int], path: Path) -> tuple[int, ...]:
        vocabulary = self.config.vocab_size
        if beyond := [i for i in ids if not 0 <= i < vocabulary]:
            text = "%s: eos_token_id: %s: not below vocab_size = %d, and never generated"
            _LOG.warning(text, path, beyond, vocabulary)
        return tuple(i for i in ids if 0 <= i < vocabulary)

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
        # Those of a config that speaks of many more than there are need not all be listed.
        enough = 2 * len(self.names) + 1000
        expected = {spec.name: spec for spec in islice(whole, enough)}
        if self.embedding_name == HEAD:
            del expected[EMBEDDING]
        missing = [name for name in expected if name not in self._file_of]
        if missing:
            hint = self._packed(missing[0])
            raise CheckpointError(f"{self.directory}: missing {some(missing)}{hint}")
        infos = {name: file.tensors[name] for name, file in self._file_of.items()}
        self._forms = forms = StoredForms(
            config.quantization, infos, expected.values(), CONFIG_FILE
        )
        self.config = replace(config, quantization=forms.quantization)
        for notice in forms.notices.lines():
            _LOG.warning("%s: %s", self.directory, notice)
        for suffix, names in forms.ignored.items():
            # Those of inputs are in each file of the kind.
            level = logging.INFO if suffix in INPUT_SCALES else logging.WARNING
            text = "%s: not used: scales of inputs or beside whole weights: %s"
            _LOG.log(level, text, self.directory, some(names))
        known = expected.keys() | forms.tensors | {x for of in forms.ignored.values() for x in of}
        extra = self._not_harmless([name for name in self.names if name not in known])
        if extra:
            file = self._file_of[extra[0]].path
            raise CheckpointError(f"{file}: not expected by config.json: {some(extra)}")
        for name, spec in expected.items():
            if name in forms.tensors:
                continue
            info = self.info(name)
            if info.shape != spec.shape:
                raise CheckpointError(
                    f"{info.file}: {name}: expected shape {spec.shape}, found {info.shape}"
                )
            # Each whole tensor may be in a float dtype of its own, and is cast where it is bound.
            if info.dtype not in STORED_DTYPES:
                stacked_hint = " (quantised experts are read one tensor an expert)"
                hint = stacked_hint if ".mlp.experts." in name else ""
                raise CheckpointError(
                    f"{info.file}: {name}: expected dtype {' or '.join(STORED_DTYPES)}, "
                    f"found {info.dtype}{hint}"
                )

    def _packed(self, missing: str) -> str:
        """What the names of the tensors that stand in place of a missing weight tell of it."""
        if missing == EMBEDDING and (bare := EMBEDDING.removeprefix("model.")) in self._file_of:
            return (
                f"; found {bare}: names without model., as of a model that was saved without a head"
            )
        module = missing.removesuffix(".weight")
        found = next((x for x in _PACKED if f"{module}.{x}" in self._file_of), None)
        if found is None:
            return ""
        return f"; {module}.{found} is that of {_PACKED[found]}, which is not read"

    def _not_harmless(self, extra: list[str]) -> list[str]:
        """What of tensors that the model does not have is of no harmless kind; a notice a kind."""
        kinds, rest = by_kind(self.config, (self.info(name) for name in extra), self.has_mtp)
        for kind, names in kinds.items():
            _LOG.warning("%s: not used: %s: %s", self.directory, kind, some(names))
        for name in kinds.get(PREDICTION_COPIES, []):
            own = self.embedding_name if name.endswith("embed_tokens.weight") else self.head_name
            if not self._same_rows(name, own):
                text = "%s: %s: other values than %s, which drafts are made with: fewer may be kept"
                _LOG.warning(text, self.directory, name, own)
        return [info.name for info in rest]

    def _same_rows(self, first: str, second: str) -> bool:
        """Whether two matrices have one shape, and some rows at even distances the same values."""
        a, b = self.tensor(first), self.tensor(second)
        if a.shape != b.shape:
            return False
        rows = np.linspace(0, len(a) - 1, min(len(a), _SAMPLED_ROWS)).astype(int)
        return np.array_equal(a[rows].astype(np.float32), b[rows].astype(np.float32))
