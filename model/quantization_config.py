"""What a config says of how weights are stored: in every spelling in which writers say it.

The forms that are read are FP8 (e4m3, a scale for 128 x 128 weights or for a whole one) and NVFP4
as ModelOpt writes it. Any other is refused by its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from glm_trt.model.errors import ConfigError
from glm_trt.model.quantization import FP8_BLOCK, NVFP4_GROUP, Quantization, of_most

FIELD = "quantization_config"
# Lists of modules that stay whole, by writers: transformers; vLLM; ModelOpt in config.json and in
# its own file. All that are there count together.
_LISTS = ("modules_to_not_convert", "ignored_layers", "ignore", "exclude_modules")
_MODELOPT = ("modelopt", "modelopt_fp4", "modelopt_fp8", "modelopt_mixed")
_ORIGINAL = "export the BF16, FP8 or NVFP4 checkpoint that it was made from"
# Tried with 5.23 on NVFP4, MXFP4 and FP8 with scales by row; integers fail in it.
_WRITES_WHOLE = (
    "from_pretrained(DIR, quantization_config=CompressedTensorsConfig(dequantize=True)) and "
    "save_pretrained(OUT, save_original_format=False) of transformers write it whole"
)
# `quant_method` → its name, and what can be done.
_NOT_READ = {
    "gptq": ("GPTQ", _ORIGINAL),
    "awq": ("AWQ", _ORIGINAL),
    "auto-round": ("AutoRound", _ORIGINAL),
    "bitsandbytes": ("bitsandbytes", _ORIGINAL),
    "hqq": ("HQQ", _ORIGINAL),
    "quark": ("Quark", _ORIGINAL),
    "mxfp4": ("MXFP4", _ORIGINAL),
    "mxfp8": ("MXFP8", _ORIGINAL),
    "nvfp4": ("NVFP4 of transformers, which is made while loading and not stored", _ORIGINAL),
    "fbgemm_fp8": ("FBGEMM's FP8, with a scale for each row", _ORIGINAL),
    "torchao": ("torchao", _ORIGINAL),
    "mlx": ("MLX's format", _ORIGINAL),
}  # fmt: skip
_REQUANTISE = "quantise the original with NVFP4_DEFAULT_CFG or FP8_DEFAULT_CFG of ModelOpt"
# ModelOpt's `quant_algo` → precision, and rows and columns that share a scale in fp8.
_ALGORITHMS: dict[str, tuple[str, tuple[int, int] | None]] = {
    "NVFP4": ("nvfp4", FP8_BLOCK),
    "W4A16_NVFP4": ("nvfp4", FP8_BLOCK),
    "FP8": ("fp8", None),
    "FP8_PB_WO": ("fp8", FP8_BLOCK),
    "FP8_PB_REAL": ("fp8", FP8_BLOCK),
}


class _Form(NamedTuple):
    """How some modules are stored."""

    precision: str
    block: tuple[int, int] | None


def read_quantization(config: dict[str, Any], source: str) -> Quantization:
    """What `config` (a whole `config.json`) says of its weights.

    Raises
    ------
    ConfigError
        For a form that is not read, by its name; for a field that cannot be.
    """
    data = config.get(FIELD) or config.get("compression_config")
    if not data:
        if isinstance(config.get("quantization"), dict):
            raise _refusal(f"{source}: quantization", "mlx", config["quantization"])
        return Quantization()
    return _Reader(data, f"{source}: {FIELD}").read()


def check_supported(quantization: Quantization, source: str) -> None:
    """ConfigError unless operators exist for what a config says (a plan needs none)."""
    block = quantization.block
    if quantization.precision == "fp8" and block not in (None, FP8_BLOCK):
        raise ConfigError(
            f"{source}: {FIELD}.weight_block_size: expected {list(FP8_BLOCK)}, found {list(block)}"
        )
    if quantization.method == "compressed-tensors" and quantization.precision == "nvfp4":
        raise ConfigError(
            f"{source}: {FIELD}.quant_method: NVFP4 of compressed-tensors can be planned for only; "
            f"expected fp8, or modelopt for NVFP4; {_converted()}"
        )


def _converted() -> str:
    return f"{_WRITES_WHOLE}, or {_ORIGINAL}"


def _refusal(field: str, method: str, data: dict[str, Any]) -> ConfigError:
    name, hint = _NOT_READ[method]
    found = f"quant_method {data.get('quant_method', '')!r}" if "quant_method" in data else "bits"
    found += f", {data['bits']} bits" if "bits" in data else ""
    return ConfigError(f"{field}: {name} is not read; expected fp8 or NVFP4, found {found}; {hint}")


class _Reader:
    def __init__(self, data: Any, field: str) -> None:
        if not isinstance(data, dict):
            raise ConfigError(f"{field}: expected an object, found {data!r}")
        self.data, self.field = data, field
        self.method = str(data.get("quant_method") or "").lower()
        producer = data.get("producer")
        if not self.method and isinstance(producer, dict):
            self.method = str(producer.get("name") or "").lower()

    def fail(self, field: str, expected: str, found: object) -> ConfigError:
        return ConfigError(f"{self.field}{field}: expected {expected}, found {found!r}")

    def read(self) -> Quantization:
        data, excluded = self.data, self.excluded()
        if self.method in _NOT_READ:
            raise _refusal(self.field, self.method, data)
        if not self.method and "bits" in data and "config_groups" not in data:
            raise _refusal(self.field, "mlx", data)
        if self.method == "fp8":
            return Quantization("fp8", self.method, excluded, self.fp8_block())
        algorithm = str(data.get("quant_algo") or "").upper()
        layers = data.get("quantized_layers")
        if algorithm == "MIXED_PRECISION" and layers:
            return self.of_modules(self.layers(layers), excluded)
        if algorithm and algorithm != "MIXED_PRECISION" and self.method != "compressed-tensors":
            form = self.algorithm(algorithm, data)
            return Quantization(form.precision, self.method, excluded, form.block)
        if data.get("config_groups"):
            return self.groups(excluded)
        # NVFP4 of compressed-tensors by its format alone.
        if self.method == "compressed-tensors" and "nvfp4" in str(data.get("format")).lower():
            return Quantization("nvfp4", self.method, excluded)
        found = f"quant_method {data.get('quant_method')!r}, quant_algo {data.get('quant_algo')!r}"
        raise ConfigError(f"{self.field}: expected fp8 or NVFP4, found {found}")

    def excluded(self) -> tuple[str, ...]:
        entries: list[str] = []
        for name in _LISTS:
            found = self.data.get(name) or []
            if not isinstance(found, list) or not all(isinstance(x, str) for x in found):
                raise self.fail(f".{name}", "a list of module names", found)
            entries += found
        self.check_expressions(entries)
        return tuple(dict.fromkeys(entries))

    def check_expressions(self, entries: Iterable[str]) -> None:
        for entry in entries:
            if entry.startswith("re:"):
                try:
                    re.compile(entry[3:])
                except (re.error, RecursionError, OverflowError) as error:
                    expected = f"a regular expression after re: ({error})"
                    raise self.fail("", expected, entry) from None

    def fp8_block(self) -> tuple[int, int] | None:
        kind = str(self.data.get("fmt", "e4m3")).lower()
        if kind != "e4m3":
            raise ConfigError(f"{self.field}: expected fp8 or NVFP4, found fp8 of fmt {kind!r}")
        return self.block(".weight_block_size", self.data.get("weight_block_size"))

    def block(self, field: str, value: Any) -> tuple[int, int] | None:
        if value is None:
            return None
        sizes = value if isinstance(value, list) else []
        if len(sizes) != 2 or any(type(size) is not int or size < 1 for size in sizes):
            raise self.fail(field, "two sizes", value)
        return sizes[0], sizes[1]

    def algorithm(self, name: str, data: dict[str, Any], module: str = "") -> _Form:
        """What ModelOpt's algorithm of that name stores."""
        place = f"{self.field}: {module}" if module else self.field
        if name not in _ALGORITHMS or data.get("pre_quant_scale"):
            raise ConfigError(
                f"{place}: ModelOpt's {name} is not read; expected {', '.join(_ALGORITHMS)}; "
                f"{_REQUANTISE}"
            )
        precision, block = _ALGORITHMS[name]
        group = data.get("group_size") or NVFP4_GROUP
        if precision == "nvfp4" and group != NVFP4_GROUP:
            raise ConfigError(f"{place}: group_size: expected {NVFP4_GROUP}, found {group!r}")
        return _Form(precision, block)

    def layers(self, layers: Any) -> list[tuple[str, _Form]]:
        """ModelOpt's `quantized_layers`: of each module its algorithm."""
        found: list[tuple[str, _Form]] = []
        for module, of in layers.items() if isinstance(layers, dict) else ():
            if not isinstance(of, dict):
                raise self.fail(f".quantized_layers: {module}", "an object", of)
            algorithm = str(of.get("quant_algo") or "").upper()
            found.append((module, self.algorithm(algorithm, of, module)))
        if not found:
            raise self.fail(".quantized_layers", "an object of modules", layers)
        return found

    def groups(self, excluded: tuple[str, ...]) -> Quantization:
        """`config_groups`, of compressed-tensors or of ModelOpt in its words."""
        groups = self.data["config_groups"]
        if not isinstance(groups, dict) or not all(isinstance(of, dict) for of in groups.values()):
            raise self.fail(".config_groups", "an object of objects", groups)
        for name in ("transform_config", "sparsity_config"):
            of = self.data.get(name)
            if of and not (isinstance(of, dict) and of.get("format") == "dense"):
                raise ConfigError(
                    f"{self.field}.{name}: compressed-tensors with it is not read; expected none, "
                    f"found {of!r}; {_converted()}"
                )
        forms = {name: self.group(name, of) for name, of in groups.items()}
        targets = {name: self.targets(name, of) for name, of in groups.items()}
        named = [(target, forms[name]) for name, of in targets.items() for target in of]
        # A class of modules rather than their names: all of them.
        if any("." not in target and not target.startswith("re:") for target, _ in named):
            if len(set(forms.values())) > 1:
                raise self.fail(".config_groups", "names of modules as targets", named)
            form = next(iter(forms.values()))
            return Quantization(form.precision, self.method, excluded, form.block)
        return self.of_modules(named, excluded)

    def targets(self, name: str, group: dict[str, Any]) -> list[str]:
        found = group.get("targets") or ["Linear"]
        if not isinstance(found, list) or not all(isinstance(x, str) for x in found):
            raise self.fail(f".config_groups.{name}.targets", "a list of names", found)
        return found

    def group(self, name: str, group: dict[str, Any]) -> _Form:
        """How a group's weights are stored."""
        place, weights = f"{self.field}.config_groups.{name}", group.get("weights")
        if not isinstance(weights, dict):
            raise self.fail(f".config_groups.{name}.weights", "an object", weights)
        bits, kind = weights.get("num_bits"), str(weights.get("type", "int")).lower()
        size, strategy = weights.get("group_size"), str(weights.get("strategy") or "")
        scheme = f"{kind}{bits}" + (f" with scales by {strategy}" if strategy else "")
        if kind == "float" and bits == 4 and (size or NVFP4_GROUP) == NVFP4_GROUP:
            return _Form("nvfp4", FP8_BLOCK)
        if kind == "float" and bits == 8 and not size and strategy in ("", "tensor", "block"):
            block = weights.get("block_structure") if strategy == "block" else None
            return _Form("fp8", self.block(f".config_groups.{name}.block_structure", block))
        scheme += f" of {size}" if size else ""
        writer = "ModelOpt" if self.method in _MODELOPT else "compressed-tensors"
        hint = _converted() if kind == "float" else _ORIGINAL
        hint = _REQUANTISE if self.method in _MODELOPT else hint
        raise ConfigError(
            f"{place}: {scheme} of {writer} is not read; expected fp8 (float8, with scales by "
            f"block or tensor) or NVFP4 (float4, with scales by group of {NVFP4_GROUP}); {hint}"
        )

    def of_modules(
        self, modules: list[tuple[str, _Form]], excluded: tuple[str, ...]
    ) -> Quantization:
        """A form for each module, or for those whose names match."""
        blocks = {form.block for _, form in modules if form.precision == "fp8"} - {None, FP8_BLOCK}
        block = blocks.pop() if blocks else FP8_BLOCK
        names = tuple((name, form.precision) for name, form in modules)
        self.check_expressions(name for name, _ in names)
        return Quantization(of_most(names), self.method, excluded, block, names)
