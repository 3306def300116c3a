"""Which tensors of a checkpoint are stored narrow, and how: FP8 in blocks, or NVFP4."""

from __future__ import annotations

import fnmatch
import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from glm_trt.model.errors import ConfigError

PRECISIONS = ("bf16", "fp8", "nvfp4")
FP8_BLOCK = (128, 128)  # the only one that the kernels know
NVFP4_GROUP = 16

# Modules of a layer that a release quantises. The rest stay whole whatever the config's lists say:
# embedding, head, norms, router, `indexer.weights_proj` (which the list of the FP8 release calls
# `indexers_proj`, as no tensor is called), `eh_proj`; and, as in Qwen3-Next's release, `in_proj_ba`
# and `conv1d` of linear attention. One expert stands for all.
LINEARS = (
    *(f"self_attn.{of}_proj" for of in ("q_a", "q_b", "kv_b", "o")),
    "self_attn.kv_a_proj_with_mqa", "self_attn.indexer.wq_b", "self_attn.indexer.wk",
    "linear_attn.in_proj_qkvz", "linear_attn.out_proj",
    *(f"mlp.{of}{part}_proj" for of in ("", "shared_experts.", "experts.0.")
      for part in ("gate", "up", "down")),
)  # fmt: skip
_LAST_NAMES = frozenset(name.rpartition(".")[2] for name in LINEARS)
# In this order: ModelOpt's files have it under "quantization".
_LISTS = ("modules_to_not_convert", "ignore", "exclude_modules")
# Behind a module's name, and read by nobody here: activations and caches are not quantised by
# scales of the checkpoint.
UNUSED_SCALES = (".input_scale", ".k_scale", ".v_scale")


@dataclass(frozen=True)
class StoredPart:
    """One of the tensors that hold a matrix: `suffix` follows the module's name."""

    suffix: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Quantization:
    """What a checkpoint's `quantization_config` says.

    Attributes
    ----------
    precision : one of `PRECISIONS`; "bf16" where there is no such config.
    method : its `quant_method`, in lower case.
    excluded : modules that stay whole besides those that always do: names, or parts of names from
        dot to dot (what is below them is meant too), patterns with `*`, or regular expressions
        after "re:".
    block : rows and columns that share a scale in fp8; None where the config names none.
    """

    precision: str = "bf16"
    method: str = ""
    excluded: tuple[str, ...] = ()
    block: tuple[int, int] | None = FP8_BLOCK

    @classmethod
    def from_config(cls, data: dict[str, Any] | None, source: str) -> Quantization:
        """Read `quantization_config`; ConfigError for a method other than fp8 and NVFP4."""
        if data is None:
            return cls()
        field = f"{source}: quantization_config"
        if not isinstance(data, dict):
            raise ConfigError(f"{field}: expected an object, found {data!r}")
        method = str(data.get("quant_method", "")).lower()
        precision = _precision(method, data, field)
        lists = (data.get(name) for name in _LISTS)
        excluded: Any = next((entries for entries in lists if entries), [])
        if not isinstance(excluded, list) or not all(isinstance(name, str) for name in excluded):
            raise ConfigError(f"{field}: expected a list of module names, found {excluded!r}")
        block = data.get("weight_block_size")
        if precision != "fp8" or block is None:
            none = None if precision == "fp8" else FP8_BLOCK
            return cls(precision, method, tuple(excluded), none)
        sizes = block if isinstance(block, list) else []
        if len(sizes) != 2 or any(type(size) is not int or size < 1 for size in sizes):
            raise ConfigError(f"{field}.weight_block_size: expected two sizes, found {block!r}")
        return cls(precision, method, tuple(excluded), (sizes[0], sizes[1]))

    def check_supported(self, source: str) -> None:
        """ConfigError unless operators exist for this form (a plan needs none)."""
        if self.precision == "fp8" and self.block != FP8_BLOCK:
            raise ConfigError(
                f"{source}: quantization_config.weight_block_size: expected {list(FP8_BLOCK)}, "
                f"found {None if self.block is None else list(self.block)}"
            )
        if self.method == "compressed-tensors":
            raise ConfigError(
                f"{source}: quantization_config.quant_method: expected fp8, or modelopt for NVFP4; "
                "found compressed-tensors, which can be planned for only"
            )

    def narrows(self, module: str) -> bool:
        """Whether the weight of `module` (its full name) is stored narrow."""
        return self.precision != "bf16" and self.may_narrow(module)

    def may_narrow(self, module: str) -> bool:
        """Whether it would be in a precision that is narrow: by its name and the config's lists."""
        linear = module.rpartition(".")[2] in _LAST_NAMES
        return linear and not _excluder(self.excluded).matches(module)

    def parts(self, shape: tuple[int, ...]) -> tuple[StoredPart, ...]:
        """The tensors that hold a matrix [..., out, in] that is stored narrow, the codes first."""
        *leading, rows, columns = shape
        if self.precision == "fp8":
            block = self.block or FP8_BLOCK
            blocks = (*leading, -(-rows // block[0]), -(-columns // block[1]))
            return (
                StoredPart(".weight", shape, "float8_e4m3fn"),
                StoredPart(".weight_scale_inv", blocks, "float32"),
            )
        groups = -(-columns // NVFP4_GROUP)
        return (
            StoredPart(".weight", (*leading, rows, -(-columns // 2)), "uint8"),
            StoredPart(".weight_scale", (*leading, rows, groups), "float8_e4m3fn"),
            StoredPart(".weight_scale_2", tuple(leading), "float32"),
        )

    def stored_bytes(self, shape: tuple[int, ...], dtype: str, narrow: bool) -> int:
        """Bytes of a tensor with its scales; the last two axes are rows and columns."""
        if not narrow or self.precision == "bf16":
            return math.prod(shape) * (4 if dtype == "float32" else 2)
        sizes = {"float32": 4, "float8_e4m3fn": 1, "uint8": 1}
        total = sum(math.prod(part.shape) * sizes[part.dtype] for part in self.parts(shape))
        # NVFP4's `input_scale` of each matrix.
        return total + (4 * math.prod(shape[:-2]) if self.precision == "nvfp4" else 0)


class _Excluder:
    """The lists of modules, prepared: a checkpoint asks for some 60,000."""

    def __init__(self, entries: tuple[str, ...]) -> None:
        plain = [entry for entry in entries if not entry.startswith("re:")]
        self._names = {entry for entry in plain if "*" not in entry}
        patterns = [fnmatch.translate(entry) for entry in plain if "*" in entry]
        patterns += [f"(?:{entry[3:]})" for entry in entries if entry.startswith("re:")]
        self._pattern = re.compile("|".join(patterns)) if patterns else None

    def matches(self, module: str) -> bool:
        if self._pattern is not None and self._pattern.match(module):
            return True
        words = module.split(".")
        pieces = (
            ".".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)
        )
        return bool(self._names) and any(piece in self._names for piece in pieces)


@lru_cache
def _excluder(entries: tuple[str, ...]) -> _Excluder:
    return _Excluder(entries)


def _precision(method: str, data: dict[str, Any], field: str) -> str:
    form = f"{data.get('quant_algo', '')} {data.get('format', '')}".lower()
    if method == "fp8" and str(data.get("fmt", "e4m3")).lower() == "e4m3":
        return "fp8"
    if method in ("modelopt", "modelopt_fp4", "compressed-tensors") and "nvfp4" in form:
        return "nvfp4"
    found = f"quant_method {data.get('quant_method')!r}, {form.strip() or 'no algorithm'}"
    found += f", fmt {data['fmt']!r}" if "fmt" in data else ""
    raise ConfigError(f"{field}: expected fp8 or NVFP4 ({', '.join(PRECISIONS)}), found {found}")
