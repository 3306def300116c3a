"""Which tensors a precision quantises, and the bytes that a tensor takes in it."""

from __future__ import annotations

import fnmatch
import math
import re
from dataclasses import dataclass
from typing import Any

from glm_trt.engines.planning.gpus import PRECISIONS
from glm_trt.model.errors import ConfigError
from glm_trt.model.tensors import TensorSpec

# As in the FP8 release of GLM-5.1; of linear layers as in that of Qwen3-Next.
_WHOLE_COMPONENTS = ("embedding", "head", "router", "norms")
_WHOLE_MODULES = ("weights_proj", "eh_proj", "in_proj_ba", "conv1d")
_LISTS = ("modules_to_not_convert", "ignore", "exclude_modules")  # each publisher has its own
FP8_BLOCK = (128, 128)
NVFP4_GROUP = 16


@dataclass(frozen=True)
class Quantisation:
    """What a checkpoint's `quantization_config` says.

    Attributes
    ----------
    precision : one of `PRECISIONS`; "bf16" where there is no such config.
    excluded : modules that stay whole besides those that always do: names (and all below them),
        patterns with `*`, or regular expressions after "re:".
    block : rows and columns that share a scale in fp8.
    """

    precision: str = "bf16"
    excluded: tuple[str, ...] = ()
    block: tuple[int, int] = FP8_BLOCK

    @classmethod
    def from_config(cls, data: dict[str, Any] | None, source: str) -> Quantisation:
        """Read `quantization_config`; ConfigError for a method other than fp8 and NVFP4."""
        if data is None:
            return cls()
        field = f"{source}: quantization_config"
        if not isinstance(data, dict):
            raise ConfigError(f"{field}: expected an object, found {data!r}")
        precision = _precision(data, field)
        lists = (data.get(name) for name in _LISTS)
        excluded: Any = next((entries for entries in lists if entries), [])
        if not isinstance(excluded, list) or not all(isinstance(name, str) for name in excluded):
            raise ConfigError(f"{field}: expected a list of module names, found {excluded!r}")
        block = data.get("weight_block_size") or FP8_BLOCK
        if len(block) != 2 or any(type(size) is not int or size < 1 for size in block):
            raise ConfigError(f"{field}.weight_block_size: expected two sizes, found {block!r}")
        return cls(precision, tuple(excluded), (block[0], block[1]))

    def quantises(self, spec: TensorSpec) -> bool:
        """Whether the tensor is stored narrow."""
        if len(spec.shape) < 2 or spec.component in _WHOLE_COMPONENTS:
            return False
        module = spec.name.removesuffix(".weight")
        if module.rpartition(".")[2] in _WHOLE_MODULES:
            return False
        return not self.excluded or not any(_matches(entry, module) for entry in self.excluded)

    def stored_bytes(self, shape: tuple[int, ...], dtype: str, quantised: bool) -> int:
        """Bytes of a tensor with its scales; the last two axes are rows and columns."""
        elements = math.prod(shape)
        if not quantised or self.precision == "bf16":
            return elements * (4 if dtype == "float32" else 2)
        *leading, rows, columns = shape
        matrices = math.prod(leading)
        if self.precision == "fp8":
            blocks = -(-rows // self.block[0]) * -(-columns // self.block[1])
            return elements + matrices * blocks * 4
        scales = rows * -(-columns // NVFP4_GROUP)
        return matrices * (rows * -(-columns // 2) + scales + 2 * 4)


def _precision(data: dict[str, Any], field: str) -> str:
    method = str(data.get("quant_method", "")).lower()
    form = f"{data.get('quant_algo', '')} {data.get('format', '')}".lower()
    if method == "fp8":
        return "fp8"
    if method in ("modelopt", "modelopt_fp4", "compressed-tensors") and "nvfp4" in form:
        return "nvfp4"
    found = f"quant_method {data.get('quant_method')!r}, {form.strip() or 'no algorithm'}"
    raise ConfigError(f"{field}: expected fp8 or NVFP4 ({', '.join(PRECISIONS)}), found {found}")


def _matches(entry: str, module: str) -> bool:
    if entry.startswith("re:"):
        return re.match(entry[3:], module) is not None
    if "*" in entry:
        return fnmatch.fnmatchcase(module, entry)
    return module == entry or module.startswith(entry + ".")
