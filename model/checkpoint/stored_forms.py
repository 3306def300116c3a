"""How a file stores each weight: whole, FP8 or NVFP4, read from dtypes, shapes and scales.

The config's lists are a check. A module that a list says is narrow may be whole: what is stored is
what it means, and a notice says so. One that is narrow against the config's word is refused: other
readers take its codes for numbers.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from glm_trt.model.checkpoint.safetensors_file import TensorInfo
from glm_trt.model.checkpoint.tensors import TensorSpec
from glm_trt.model.errors import CheckpointError
from glm_trt.model.quantization import (
    FP8_BLOCK,
    NARROW_NAMES,
    NVFP4_GROUP,
    Quantization,
    for_all_experts,
    of_most,
)

FLOATS = ("float32", "bfloat16", "float16", "float64")
_CODES = {"float8_e4m3fn": "fp8", "uint8": "nvfp4"}
# The same under two names: transformers', and that of compressed-tensors and ModelOpt.
FP8_SCALES = (".weight_scale_inv", ".weight_scale")
_WEIGHT_SCALES = (*FP8_SCALES, ".weight_scale_2")
# Behind a module's name, and read by nobody here: activations are not quantised by scales of the
# checkpoint. Those of caches and results, and of the head, are `extra_tensors`.
INPUT_SCALES = (".input_scale", ".input_global_scale", ".activation_scale")


class Stored(NamedTuple):
    """How a module's weight is stored.

    Attributes
    ----------
    precision : one of `PRECISIONS`.
    suffixes : what follows the module's name in its tensors', in the order of
        `Quantization.parts`.
    by_tensor : whether one scale is for the whole weight (FP8).
    """

    precision: str
    suffixes: tuple[str, ...]
    by_tensor: bool = False


@dataclass
class Notices:
    """What was read otherwise than the config says: sentences, each of them once a kind."""

    modules: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def lines(self) -> Iterator[str]:
        """The sentences, with how many modules and the first of them."""
        for text, names in self.modules.items():
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            yield f"{names[0]}{more}: {text}"


class StoredForms:
    """How the modules of a checkpoint are stored.

    Parameters
    ----------
    said : what the config says.
    infos : of each tensor of the files, by name.
    specs : the tensors that a whole checkpoint of this config has.
    source : the config, for errors.

    Attributes
    ----------
    quantization : of the modules that are narrow.
    tensors : names of the tensors that hold narrow weights.
    ignored : those of scales that nobody needs, by the kind of scale.
    notices : where files and config differ in what does not matter.

    Raises
    ------
    CheckpointError
        If a narrow weight has other scales than a form that is read; if the config says that it is
        whole; if the experts of a layer are stored in several ways.
    """

    def __init__(
        self,
        said: Quantization,
        infos: Mapping[str, TensorInfo],
        specs: Iterable[TensorSpec],
        source: str,
    ) -> None:
        self._said, self._infos, self._source = said, infos, source
        self.tensors: set[str] = set()
        self.ignored: dict[str, list[str]] = defaultdict(list)
        self.notices = Notices()
        self._forms: dict[str, Stored] = {}
        first: dict[str, str] = {}  # of the experts of a layer: the first module
        agrees = True
        for spec in specs:
            module = spec.name.removesuffix(".weight")
            if module == spec.name or spec.name not in infos or len(spec.shape) != 2:
                continue
            stored = self._read(module, spec)
            name = for_all_experts(module)
            if name != module:
                self._check_alike(first, name, module, stored)
            self._forms.setdefault(name, stored)
            agrees = agrees and stored.precision == said.precision_of(module)
            self._check(module, stored.precision, spec)
        self._collect_unused()
        self.quantization = said if agrees else self._explicit()

    def of(self, module: str) -> Stored:
        """How `module` is stored; an expert's stands for all of its layer."""
        return self._forms.get(for_all_experts(module), Stored("bf16", (".weight",)))

    def _read(self, module: str, spec: TensorSpec) -> Stored:
        info = self._infos[spec.name]
        precision = _CODES.get(info.dtype)
        if precision is None:
            return Stored("bf16", (".weight",))
        if module.rpartition(".")[2] not in NARROW_NAMES:
            expected = " or ".join(FLOATS[:3])
            raise CheckpointError(
                f"{info.file}: {spec.name}: expected dtype {expected} (it is read whole only), "
                f"found {info.dtype}"
            )
        if self._said.precision_of(module) == "bf16" and not self._said.is_silent_on(module):
            raise CheckpointError(
                f"{info.file}: {spec.name}: expected dtype {' or '.join(FLOATS[:3])}, as "
                f"{self._source}: {self._reason(module)}; found {info.dtype}"
            )
        stored = self._fp8(module, spec) if precision == "fp8" else self._nvfp4(module, spec)
        self.tensors |= {module + suffix for suffix in stored.suffixes}
        return stored

    def _fp8(self, module: str, spec: TensorSpec) -> Stored:
        self._check_shape(self._infos[spec.name], spec.shape)
        scales = [module + suffix for suffix in FP8_SCALES if module + suffix in self._infos]
        if len(scales) != 1:
            found = " and ".join(scales) or "none"
            names = " or ".join(module + suffix for suffix in FP8_SCALES)
            raise CheckpointError(
                f"{self._infos[spec.name].file}: {spec.name} is FP8: missing its scale: expected "
                f"{names}, found {found}"
            )
        scale = self._infos[scales[0]]
        rows, columns = spec.shape
        blocks = -(-rows // FP8_BLOCK[0]), -(-columns // FP8_BLOCK[1])
        if scale.dtype not in FLOATS:
            form = " (MXFP8)" if scale.dtype == "uint8" else ""
            expected = " or ".join(FLOATS[:3])
            raise CheckpointError(
                f"{scale.file}: {scale.name}: expected dtype {expected}, found {scale.dtype}{form}"
            )
        by_tensor = scale.shape != blocks
        if by_tensor and math.prod(scale.shape) != 1:
            by_row = " (one for each row)" if math.prod(scale.shape) == rows else ""
            raise CheckpointError(
                f"{scale.file}: {scale.name}: expected shape {blocks} (one for "
                f"{FP8_BLOCK[0]} x {FP8_BLOCK[1]} weights) or one number, found "
                f"{scale.shape}{by_row}"
            )
        return Stored("fp8", (".weight", scale.name.removeprefix(module)), by_tensor)

    def _nvfp4(self, module: str, spec: TensorSpec) -> Stored:
        parts = self._said.parts(spec.shape, "nvfp4")
        file = self._infos[spec.name].file
        missing = [part for part in parts if module + part.suffix not in self._infos]
        if missing:
            raise CheckpointError(
                f"{file}: {spec.name} is of pairs of 4 bits: missing {module}{missing[0].suffix}, "
                "as ModelOpt's NVFP4 has it"
            )
        for part in parts:
            info = self._infos[module + part.suffix]
            if info.dtype != part.dtype:
                form = " (MXFP4)" if info.dtype == "uint8" else ""
                raise CheckpointError(
                    f"{info.file}: {info.name}: expected dtype {part.dtype}, found "
                    f"{info.dtype}{form}"
                )
            # A scalar may be stored as one number in a row.
            if info.shape != part.shape and (part.shape or info.shape != (1,)):
                groups = info.shape[-1] if info.shape else 0
                of = f" (groups of {spec.shape[1] // groups})" if groups else ""
                wanted = f" (groups of {NVFP4_GROUP})" if part.suffix == ".weight_scale" else ""
                raise CheckpointError(
                    f"{info.file}: {info.name}: expected shape {part.shape}{wanted}, found "
                    f"{info.shape}{of if wanted else ''}"
                )
        return Stored("nvfp4", tuple(part.suffix for part in parts))

    def _check_shape(self, info: TensorInfo, shape: tuple[int, ...]) -> None:
        if info.shape != shape:
            raise CheckpointError(
                f"{info.file}: {info.name}: expected shape {shape}, found {info.shape}"
            )

    def _check_alike(self, first: dict[str, str], name: str, module: str, stored: Stored) -> None:
        """The experts of a layer go through one operator."""
        layer = name.partition(".experts.")[0]
        other = first.setdefault(layer, module)
        if other == module:
            return
        # Gate, up and down may differ in the names of their scales.
        before = self._forms.get(name) or self._forms[for_all_experts(other)]
        same = before == stored if name in self._forms else before[::2] == stored[::2]
        if not same:
            raise CheckpointError(
                f"{self._infos[module + '.weight'].file}: {module}: expected all experts of a "
                f"layer stored alike; {other} is {_words(before)}, this is {_words(stored)}"
            )

    def _check(self, module: str, precision: str, spec: TensorSpec) -> None:
        said = self._said.precision_of(module)
        if precision == said:
            return
        info = self._infos[spec.name]
        if precision == "bf16":
            self._check_no_scales(module, info)
            self.notices.modules[
                f"stored whole ({info.dtype}), though the config says {said}; read as it is stored"
            ].append(module)
        elif self._said.modules is not None:
            raise CheckpointError(
                f"{info.file}: {spec.name}: expected {said}, as {self._source}: "
                f"quantized_layers or config_groups says; found {info.dtype} ({precision})"
            )
        elif said != "bf16":
            self.notices.modules[
                f"stored as {precision}, though the config says {said}; read as it is stored"
            ].append(module)

    def _check_no_scales(self, module: str, info: TensorInfo) -> None:
        scales = [x for x in _WEIGHT_SCALES if module + x in self._infos]
        if scales:
            raise CheckpointError(
                f"{info.file}: {info.name}: expected dtype {' or '.join(_CODES)}, as "
                f"{module}{scales[0]} is stored beside it; found {info.dtype}"
            )

    def _reason(self, module: str) -> str:
        if self._said.excludes(module):
            return "a list in quantization_config names it as one that stays whole"
        if self._said.modules is not None:
            return "neither quantized_layers nor config_groups of quantization_config names it"
        return "no quantization_config says that it is narrow"

    def _collect_unused(self) -> None:
        for name in self._infos:
            if name in self.tensors or name.startswith("lm_head."):
                continue
            for suffix in INPUT_SCALES:
                if name.endswith(suffix):
                    self.ignored[suffix].append(name)
            for suffix in _WEIGHT_SCALES:  # beside a weight that the config says is whole
                module = name.removesuffix(suffix)
                whole = module != name and f"{module}.weight" in self._infos
                if whole and self.of(module).precision == "bf16":
                    self.ignored[suffix].append(name)

    def _explicit(self) -> Quantization:
        modules = {n: of.precision for n, of in self._forms.items() if of.precision != "bf16"}
        if not modules:
            return replace(self._said, precision="bf16", excluded=(), modules=None, block=FP8_BLOCK)
        named = tuple(sorted(modules.items()))
        return Quantization(of_most(named), self._said.method, (), FP8_BLOCK, named)


def _words(stored: Stored) -> str:
    if stored.precision == "bf16":
        return "whole"
    scale = ", one scale for the whole" if stored.by_tensor else ""
    return f"{stored.precision} ({', '.join(stored.suffixes)}{scale})"
