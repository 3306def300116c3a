"""The config of `glm_moe_dsa`, read from a Hugging Face `config.json` and checked as a whole."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from glm_trt.model.config_defaults import (
    DTYPE_NAMES,
    OLDER_LAYER_TYPES,
    own_config,
    rope_parameters,
    with_defaults,
)
from glm_trt.model.errors import ConfigError
from glm_trt.model.files import what_it_is
from glm_trt.model.quantization import LINEARS, MAYBE_LINEARS, Quantization
from glm_trt.model.quantization_config import read_quantization

CONFIG_FILE, MODELOPT_FILE = "config.json", "hf_quant_config.json"
MODEL_TYPES = ("glm_moe_dsa",)
DTYPES = ("float32", "bfloat16", "float16")

_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size",
    "num_hidden_layers", "num_attention_heads", "q_lora_rank", "kv_lora_rank",
    "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "n_routed_experts", "n_shared_experts",
    "num_experts_per_tok", "n_group", "topk_group", "max_position_embeddings",
)  # fmt: skip
MAX_LAYERS = 1 << 14  # more are no model, and their lists would fill the memory
LAYER_TYPES = ("indexed_attention", "full_attention", "linear_attention")
# Required where some layer is of the type.
_SIZES_OF = {
    "indexed_attention": ("index_topk", "index_head_dim", "index_n_heads"),
    "linear_attention": (
        "linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim",
        "linear_value_head_dim", "linear_conv_kernel_dim",
    ),
}  # fmt: skip
_NUMBERS = ("routed_scaling_factor", "rms_norm_eps")
# Fields that may be absent, but if present must say this: no graph of ours computes anything else.
# transformers does not read those that may be null; other programs do.
_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "scoring_func": ("sigmoid", None),
    "topk_method": ("noaux_tc", None),
    "rope_interleave": (True, None),
    "indexer_rope_interleave": (True, None),
    "per_layer_config": (None, {}),
}


@dataclass(frozen=True)
class ModelConfig:
    """What the model computes; names and meaning are those of `config.json`.

    The sizes `index_*` and `linear_*` may be 0 where no layer needs them. Build it with
    `from_directory` or `from_dict`, which raise `ConfigError` naming the file, the field, what was
    expected and what was found. Unknown fields are ignored.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    moe_intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    q_lora_rank: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    n_group: int
    topk_group: int
    max_position_embeddings: int
    routed_scaling_factor: float
    rms_norm_eps: float
    norm_topk_prob: bool
    rope_theta: float
    layer_types: tuple[str, ...]
    mlp_layer_types: tuple[str, ...]
    indexer_types: tuple[str, ...]
    index_topk: int = 0
    index_head_dim: int = 0
    index_n_heads: int = 0
    linear_num_key_heads: int = 0
    linear_num_value_heads: int = 0
    linear_key_head_dim: int = 0
    linear_value_head_dim: int = 0
    linear_conv_kernel_dim: int = 0
    attention_bias: bool = False
    tie_word_embeddings: bool = False
    num_nextn_predict_layers: int = 0
    eos_token_ids: tuple[int, ...] = ()
    dtype: str | None = None
    quantization: Quantization = field(default_factory=Quantization)

    @classmethod
    def from_directory(cls, directory: str | Path) -> ModelConfig:
        """Read `directory/config.json`."""
        return cls.from_dict(read_config(Path(directory)), str(Path(directory) / CONFIG_FILE))

    @classmethod
    def from_dict(cls, data: dict[str, Any], source: str = "config.json") -> ModelConfig:
        """Check `data` as a whole and keep what the model needs."""
        return _Reader(data, source).read()

    @property
    def attention_kinds(self) -> tuple[str, ...]:
        """Of each layer: "indexed" (with an indexer of its own), "shared" (attends to what an
        earlier layer's selected), "full" (to the whole context) or "linear".
        """
        short = {"full_attention": "full", "linear_attention": "linear"}
        indexed = {"full": "indexed", "shared": "shared"}
        pairs = zip(self.layer_types, self.indexer_types, strict=True)
        return tuple(short.get(layer, indexed[indexer]) for layer, indexer in pairs)

    def mlp_kind(self, layer: int) -> str:
        """Of a decoder or prediction layer: "dense" or "sparse"."""
        return self.mlp_layer_types[layer] if layer < self.num_hidden_layers else "sparse"

    def attention_kind(self, layer: int) -> str:
        """As in `attention_kinds`; a prediction layer attends as the decoder does where that is not
        linear.
        """
        if layer < self.num_hidden_layers:
            return self.attention_kinds[layer]
        return "indexed" if "indexed_attention" in self.layer_types else "full"


def _special(name: str) -> dict[str, str]:
    """A number that JSON has not, as transformers writes it."""
    return {"__float__": name}


def _finite(digits: str) -> float | dict[str, str]:
    number = float(digits)
    return number if math.isfinite(number) else _special(f"{'-' * (number < 0)}Infinity")


def _whole(digits: str) -> int | float | dict[str, str]:
    return int(digits) if len(digits) < 19 else _finite(digits)


# Fields that nobody reads may hold anything; the config as a whole has its place in a bundle.
_NUMBERS_BEYOND_JSON: dict[str, Any] = {
    "parse_constant": _special, "parse_float": _finite, "parse_int": _whole,
}  # fmt: skip


def read_json(path: Path) -> dict[str, Any]:
    """The object in a `config.json`, not yet checked; ConfigError where there is none."""
    content = b""
    try:
        content = path.read_bytes()
        data = json.loads(content.decode("utf-8"), **_NUMBERS_BEYOND_JSON)
    except FileNotFoundError:
        raise ConfigError(f"{path}: not found; a checkpoint has a config.json") from None
    except (OSError, ValueError, RecursionError) as error:
        known = what_it_is(content) if not isinstance(error, OSError) else None
        raise ConfigError(f"{path}: {known or f'not readable as JSON: {error}'}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a JSON object, found {type(data).__name__}")
    return data


def read_config(directory: Path) -> dict[str, Any]:
    """The checkpoint's `config.json`, not yet checked; with ModelOpt's file of its own in it, where
    only that says how the weights are quantised.
    """
    data = read_json(directory / CONFIG_FILE)
    path = directory / MODELOPT_FILE
    if data.get("quantization_config") is None and path.is_file():
        of = read_json(path).get("quantization")
        if not isinstance(of, dict):
            raise ConfigError(f"{path}: quantization: expected an object, found {of!r}")
        data["quantization_config"] = {"quant_method": "modelopt"} | of
    return data


def block_kind(config: ModelConfig, layer: int) -> str:
    """The layer's kind, such as `dense_indexed`; layers of the same kind share one graph.

    The words are those of `ModelConfig.mlp_kind` and `attention_kind`; a third, such as `fp8`, is
    there where weights are stored narrow (or several of them), with a number from the second set of
    narrow modules on.
    `mtp` stands before those of a prediction layer.
    """
    return _block_kinds(config)[layer]


@lru_cache
def _block_kinds(config: ModelConfig) -> tuple[str, ...]:
    quantization, names = config.quantization, []
    found: dict[str, list[tuple[str, ...]]] = {}
    for layer in range(config.num_hidden_layers + config.num_nextn_predict_layers):
        name = f"{config.mlp_kind(layer)}_{config.attention_kind(layer)}"
        name = name if layer < config.num_hidden_layers else f"mtp_{name}"
        modules = (*LINEARS, *MAYBE_LINEARS)
        stored = tuple(quantization.precision_of(f"model.layers.{layer}.{of}") for of in modules)
        if narrow := sorted(set(stored) - {"bf16"}):
            name = "_".join([name, *narrow])
            sets = found.setdefault(name, [])
            if stored not in sets:
                sets.append(stored)
            number = sets.index(stored) + 1
            name += f"_{number}" if number > 1 else ""
        names.append(name)
    return tuple(names)


class _Reader:
    """Reads what transformers' own config class would say: absent fields have its defaults, and
    those that it derives from others are derived here too, whatever the file says of them. So
    `head_dim`, which a published GLM-5.2 gives as 192, is not read; nor are `qk_head_dim`, which
    its model adds up anew, and `num_key_value_heads`, as each head of latent attention has keys of
    its own.
    """

    def __init__(self, data: dict[str, Any], source: str) -> None:
        own = own_config(data, MODEL_TYPES)
        self.given, self.data = own.keys(), with_defaults(own)
        self.source = source

    def fail(self, field: str, expected: str, found: object) -> ConfigError:
        return ConfigError(f"{self.source}: {field}: expected {expected}, found {found!r}")

    def read(self) -> ModelConfig:
        data = self.data
        if data.get("model_type") not in MODEL_TYPES:
            raise self.fail("model_type", f"one of {MODEL_TYPES}", data.get("model_type"))
        layer_types = self.layers("layer_types", LAYER_TYPES)
        sizes = {name: self.integer(name) for name in _SIZES}
        for layer_type, names in _SIZES_OF.items():
            wanted = layer_type in layer_types
            if missing := [x for x in names if wanted and data.get(x) is None]:
                raise ConfigError(f"{self.source}: missing {', '.join(missing)}")
            given = [x for x in names if wanted or x in self.given]
            sizes |= {name: self.integer(name) for name in given if data.get(name) is not None}
        for name, allowed in _FIXED.items():
            if name in data and data[name] not in allowed:
                raise self.fail(name, f"{allowed[0]!r} (nothing else is supported)", data[name])
        self.boolean("mlp_bias", False)  # which changes nothing
        config = ModelConfig(
            **sizes,
            routed_scaling_factor=self.number(
                "routed_scaling_factor", data["routed_scaling_factor"]
            ),
            rms_norm_eps=self.number("rms_norm_eps", data["rms_norm_eps"]),
            norm_topk_prob=self.boolean("norm_topk_prob", True),
            rope_theta=self.rope_theta(),
            layer_types=layer_types,
            mlp_layer_types=self.mlp_layers(),
            indexer_types=self.indexers(layer_types),
            attention_bias=self.boolean("attention_bias", False),
            tie_word_embeddings=self.boolean("tie_word_embeddings", False),
            num_nextn_predict_layers=self.prediction_layers(),
            eos_token_ids=self.eos(sizes["vocab_size"]),
            dtype=self.dtype(),
            quantization=read_quantization(data, self.source),
        )
        self.check(config)
        return config

    def integer(self, name: str, default: int | None = None, least: int | None = 1) -> int:
        value = self.data.get(name, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.fail(name, "an integer", value)
        if least is not None and value < least:
            raise self.fail(name, f"an integer of at least {least}", value)
        return value

    def count(self, name: str, least: int = 1) -> int:
        """Of layers, each of which has an entry in lists."""
        value = self.integer(name, least=least)
        if value > MAX_LAYERS:
            raise self.fail(name, f"at most {MAX_LAYERS} layers", value)
        return value

    def number(self, name: str, value: object) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value <= 0:  # type: ignore[arg-type,operator]
            raise self.fail(name, "a positive finite number", value)
        return float(value)  # type: ignore[arg-type]

    def boolean(self, name: str, default: bool) -> bool:
        value = self.data.get(name, default)
        if not isinstance(value, bool):
            raise self.fail(name, "true or false", value)
        return value

    def rope_theta(self) -> float:
        field = "rope_scaling" if self.data.get("rope_scaling") else "rope_parameters"
        rope = rope_parameters(self.data)
        if not isinstance(rope, dict):
            raise self.fail(field, "an object", rope)
        if any(isinstance(value, dict) for value in rope.values()):
            raise self.fail(field, "parameters for all layers, not by their types", rope)
        if rope["rope_type"] != "default":
            raise self.fail(f"{field}.rope_type", "'default'", rope["rope_type"])
        return self.number(f"{field}.rope_theta", rope["rope_theta"])

    def layers(self, name: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
        count = self.count("num_hidden_layers")
        value = self.data.get(name)
        if value is None:
            return (allowed[0],) * count
        if not isinstance(value, list) or len(value) != count:
            raise self.fail(name, f"a list of num_hidden_layers = {count} entries", value)
        older = OLDER_LAYER_TYPES if name == "layer_types" else {}
        for i, entry in enumerate(value):
            if not isinstance(entry, str) or older.get(entry, entry) not in allowed:
                raise self.fail(f"{name}[{i}]", f"one of {allowed}", entry)
        return tuple(str(older.get(entry, entry)) for entry in value)

    def mlp_layers(self) -> tuple[str, ...]:
        if self.data.get("mlp_layer_types") is not None:
            return self.layers("mlp_layer_types", ("dense", "sparse"))
        count = self.count("num_hidden_layers")
        dense = min(self.integer("first_k_dense_replace", 3, 0), count)
        return ("dense",) * dense + ("sparse",) * (count - dense)

    def indexers(self, layer_types: tuple[str, ...]) -> tuple[str, ...]:
        """As transformers derives them: an explicit list, a pattern, or frequency and offset."""
        allowed, count = ("full", "shared"), self.count("num_hidden_layers")
        given = self.data.get("indexer_types")
        if given is not None:
            if isinstance(given, list):  # transformers reads no further than the last layer
                self.data["indexer_types"] = given[:count]
            kinds = self.layers("indexer_types", allowed)
        elif (pattern := self.data.get("index_topk_pattern")) is not None:
            letters = {"F": "full", "S": "shared"}
            letters = (
                letters if isinstance(pattern, str) else dict(zip(allowed, allowed, strict=True))
            )
            known = isinstance(pattern, str | list) and len(pattern) >= count
            if not known or any(str(entry) not in letters for entry in pattern):
                raise self.fail("index_topk_pattern", f"{count} of F and S", pattern)
            kinds = tuple(letters[entry] for entry in pattern[:count])
        else:
            every = max(self.integer("index_topk_freq", 1, None), 1)
            offset = self.integer("index_skip_topk_offset", 2, None)
            kinds = tuple(allowed[max(i - offset + 1, 0) % every != 0] for i in range(count))
        indexed = [i for i, kind in enumerate(layer_types) if kind == "indexed_attention"]
        if indexed and kinds[indexed[0]] != "full":
            field = f"indexer_types[{indexed[0]}]"
            raise self.fail(field, "'full' (nothing to share yet)", kinds[indexed[0]])
        return kinds

    def prediction_layers(self) -> int:
        none = self.data.get("num_nextn_predict_layers") is None
        return 0 if none else self.count("num_nextn_predict_layers", 0)

    def eos(self, vocabulary: int) -> tuple[int, ...]:
        """Those that are tokens: one beyond the vocabulary is never generated."""
        value = self.data.get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(not isinstance(token, int) or isinstance(token, bool) for token in ids):
            raise self.fail("eos_token_id", "token IDs", value)
        return tuple(token for token in ids if 0 <= token < vocabulary)

    def dtype(self) -> str | None:
        value = self.data.get("dtype")
        value = self.data.get("torch_dtype") if value is None else value
        name = value.removeprefix("torch.") if isinstance(value, str) else value
        if name is not None and not (isinstance(name, str) and name in DTYPE_NAMES):
            raise self.fail("dtype", f"one of {DTYPES}", value)
        return None if name is None else DTYPE_NAMES[name]

    def check(self, config: ModelConfig) -> None:
        """Fields that contradict each other."""
        if config.qk_rope_head_dim % 2:
            raise self.fail("qk_rope_head_dim", "an even width", config.qk_rope_head_dim)
        if 0 < config.index_head_dim < config.qk_rope_head_dim:
            expected = f"at least qk_rope_head_dim = {config.qk_rope_head_dim}"
            raise self.fail("index_head_dim", expected, config.index_head_dim)
        key_heads, value_heads = config.linear_num_key_heads, config.linear_num_value_heads
        if key_heads and value_heads % key_heads:
            expected = f"a multiple of linear_num_key_heads = {key_heads}"
            raise self.fail("linear_num_value_heads", expected, value_heads)
        experts, groups = config.n_routed_experts, config.n_group
        if experts % groups or experts // groups < 2:
            expected = f"groups of equal size, two or more each, in {experts} experts"
            raise self.fail("n_group", expected, groups)
        if config.topk_group > groups:
            raise self.fail("topk_group", f"at most n_group = {groups}", config.topk_group)
        selectable = experts // groups * config.topk_group
        if config.num_experts_per_tok > selectable:
            expected = f"at most {selectable} (experts in topk_group groups)"
            raise self.fail("num_experts_per_tok", expected, config.num_experts_per_tok)
