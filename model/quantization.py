"""Which tensors of a checkpoint are stored narrow, and how: FP8 in blocks, or NVFP4.

What a file holds decides (`checkpoint/stored_forms.py`); what a config says
(`quantization_config.py`) is checked against it, and is all there is where no file is.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

PRECISIONS = ("bf16", "fp8", "nvfp4")
FP8_BLOCK = (128, 128)  # the only one that the kernels know
NVFP4_GROUP = 16

# Modules of a layer that releases quantise: what a config of such weights means where it names
# none. One expert stands for all.
LINEARS = (
    *(f"self_attn.{of}_proj" for of in ("q_a", "q_b", "kv_b", "o")),
    "self_attn.kv_a_proj_with_mqa", "self_attn.indexer.wq_b", "self_attn.indexer.wk",
    "linear_attn.in_proj_qkvz", "linear_attn.out_proj",
    *(f"mlp.{of}{part}_proj" for of in ("", "shared_experts.", "experts.0.")
      for part in ("gate", "up", "down")),
)  # fmt: skip
# Those that some writers quantise besides, so that a file alone tells. The list of the FP8 release
# calls the first `indexers_proj`, as no tensor is called; ModelOpt's NVFP4_DEFAULT quantises it.
MAYBE_LINEARS = ("self_attn.indexer.weights_proj", "eh_proj")
_LAST_NAMES = frozenset(name.rpartition(".")[2] for name in LINEARS)
_MAYBE_LAST_NAMES = frozenset(name.rpartition(".")[2] for name in MAYBE_LINEARS)
NARROW_NAMES = _LAST_NAMES | _MAYBE_LAST_NAMES  # last parts of what can be narrow at all
_EXPERT = re.compile(r"\.experts\.\d+\.")
# As ModelOpt names them where each module has an algorithm of its own.
_ALGORITHMS = {"fp8": "FP8_PB_WO", "nvfp4": "NVFP4"}


@dataclass(frozen=True)
class StoredPart:
    """One of the tensors that hold a matrix: `suffix` follows the module's name."""

    suffix: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def bound_dtype(self) -> str:
        """The dtype of a block's input that takes it as it is: bytes are "int8"."""
        return "float32" if self.dtype == "float32" else "int8"


@dataclass(frozen=True)
class Quantization:
    """How the modules of a checkpoint are stored: as its config says, or as its files do.

    Attributes
    ----------
    precision : one of `PRECISIONS`; "bf16" where nothing is narrow. In a checkpoint of several that
        of most modules.
    method : the config's `quant_method`, in lower case.
    excluded : modules that stay whole besides those that always do: names, or parts of names from
        dot to dot (what is below them is meant too), patterns with `*`, or regular expressions
        after "re:".
    block : rows and columns that share a scale in fp8, in a config; None where it names none.
    modules : the narrow modules one by one, each with its precision, "*" for the numbers of experts
        (and, in a config, patterns as in `excluded`): no other is. None where rules say it.
    """

    precision: str = "bf16"
    method: str = ""
    excluded: tuple[str, ...] = ()
    block: tuple[int, int] | None = FP8_BLOCK
    modules: tuple[tuple[str, str], ...] | None = None

    def precision_of(self, module: str) -> str:
        """In which of `PRECISIONS` the weight of `module` (its full name) is stored."""
        if self.modules is not None:
            return "bf16" if self.excludes(module) else self._named(module)
        return self.precision if self.may_narrow(module) else "bf16"

    def narrows(self, module: str) -> bool:
        """Whether the weight of `module` is stored narrow."""
        return self.precision_of(module) != "bf16"

    def may_narrow(self, module: str) -> bool:
        """Whether it would be in a precision that is narrow: by its name and the config's lists."""
        if self.modules is not None:
            return self.narrows(module)
        return module.rpartition(".")[2] in _LAST_NAMES and not self.excludes(module)

    def excludes(self, module: str) -> bool:
        """Whether a list of the config says that `module` stays whole."""
        return bool(self.excluded) and _excluder(self.excluded).matches(module)

    def is_silent_on(self, module: str) -> bool:
        """Whether a file alone can tell: `MAYBE_LINEARS` that no list names."""
        maybe = module.rpartition(".")[2] in _MAYBE_LAST_NAMES
        return maybe and self.precision != "bf16" and self.modules is None

    def parts(self, shape: tuple[int, ...], precision: str | None = None) -> tuple[StoredPart, ...]:
        """The tensors that hold a matrix [..., out, in] in a narrow precision (None: the
        checkpoint's), the codes first, as operators take them.
        """
        *leading, rows, columns = shape
        if (precision or self.precision) == "fp8":
            blocks = (*leading, -(-rows // FP8_BLOCK[0]), -(-columns // FP8_BLOCK[1]))
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

    def stored_bytes(self, shape: tuple[int, ...], dtype: str, precision: str) -> int:
        """Bytes of a tensor with its scales; the last two axes are rows and columns."""
        if precision == "bf16":
            return math.prod(shape) * (4 if dtype == "float32" else 2)
        *leading, rows, columns = shape
        if precision == "fp8":
            block = self.block or (rows, columns)
            scales = math.prod(leading) * -(-rows // block[0]) * -(-columns // block[1])
            return math.prod(shape) + 4 * scales
        sizes = {"float32": 4, "float8_e4m3fn": 1, "uint8": 1}
        total = sum(
            math.prod(part.shape) * sizes[part.dtype] for part in self.parts(shape, precision)
        )
        return total + 4 * math.prod(leading)  # `input_scale` of each matrix

    def to_config(self) -> dict[str, Any]:
        """`modules` as a config says them, in ModelOpt's words: what `read_quantization` reads."""
        layers = {
            name: {"quant_algo": _ALGORITHMS[precision]} for name, precision in self.modules or ()
        }
        return {
            "quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": layers,
        }  # fmt: skip

    def _named(self, module: str) -> str:
        if module.rpartition(".")[2] not in NARROW_NAMES:  # a pattern may match them
            return "bf16"
        name = for_all_experts(module)
        while name:  # or what it is in
            if (found := self._by_name.get(name)) is not None:
                return found
            name = name.rpartition(".")[0]
        matching = (of for pattern, of in self._patterns if pattern.match(module))
        return next(matching, "bf16")

    @cached_property
    def _by_name(self) -> dict[str, str]:
        return {for_all_experts(name): of for name, of in self.modules or ()}

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], str]]:
        """Of the names with "*", but for those that only stand for experts."""
        names = [(name, of) for name, of in self.modules or ()]
        regular = [(re.compile(name[3:]), of) for name, of in names if name.startswith("re:")]
        return regular + [
            (re.compile(fnmatch.translate(name)), of)
            for name, of in names
            if "*" in name.replace(".experts.*.", "") and not name.startswith("re:")
        ]


def of_most(modules: tuple[tuple[str, str], ...]) -> str:
    """The precision of most weights: that of experts, whose names stand for many, if there are."""
    experts = [precision for name, precision in modules if "experts" in name]
    return Counter(experts or [precision for _, precision in modules]).most_common(1)[0][0]


def for_all_experts(module: str) -> str:
    """The module's name with "*" in place of an expert's number."""
    return _EXPERT.sub(".experts.*.", module)


class _Excluder:
    """The lists of modules, prepared: a checkpoint asks for some 60,000."""

    def __init__(self, entries: tuple[str, ...]) -> None:
        plain = [entry for entry in entries if not entry.startswith("re:")]
        self._names = {entry for entry in plain if "*" not in entry}
        stars = [fnmatch.translate(entry) for entry in plain if "*" in entry]
        # Regular expressions one by one: flags and names of groups are each one's own.
        regular = [entry[3:] for entry in entries if entry.startswith("re:")]
        joined = ["|".join(stars)] if stars else []
        self._patterns = [re.compile(pattern) for pattern in joined + regular]

    def matches(self, module: str) -> bool:
        if any(pattern.match(module) for pattern in self._patterns):
            return True
        words = module.split(".")
        pieces = (
            ".".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)
        )
        return bool(self._names) and any(piece in self._names for piece in pieces)


@lru_cache
def _excluder(entries: tuple[str, ...]) -> _Excluder:
    return _Excluder(entries)
