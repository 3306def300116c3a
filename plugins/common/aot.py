"""Compiling the kernels of launches ahead of time, with no GPU, into a cache by content."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glm_trt.model.files import write_atomically
from glm_trt.plugins.common.bounds import Bounds
from glm_trt.plugins.common.contract import Types
from glm_trt.plugins.common.launch import POINTER_ALIGNMENT, SIZE_ALIGNMENT, Launch, Launches
from glm_trt.plugins.common.selection import WHOLE, Selection
from glm_trt.plugins.common.use_ranges import describe, possible_values

_TRITON = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int8": "i8",
           "int32": "i32", "int64": "i64"}  # fmt: skip
Constants = tuple[tuple[str, int], ...]  # of a kernel, by name
_OPTIONS = ("num_warps", "num_stages", "maxnreg")


@dataclass(frozen=True)
class Variant:
    """One kernel, compiled for one target: a Triton function with types, constants and options.

    `signature` is the Triton type of each run-time parameter, by name and in order; "i32:16" is an
    integer known to be a multiple of 16.
    """

    function: str
    target: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, int], ...]
    options: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Cubin:
    """A compiled variant: the image, its entry point, and what a launch has to give it."""

    image: bytes
    entry: str
    shared_bytes: int
    num_warps: int

    @property
    def sha256(self) -> str:
        """Of the image."""
        return hashlib.sha256(self.image).hexdigest()


def dtypes_of(launches: Launches) -> tuple[str, ...]:
    """Activation dtypes that an operator's kernels exist in."""
    return tuple(dict.fromkeys(types.activation for types in launches.contract.types()))


def choices(launch: Launch) -> list[tuple[Constants, bool]]:
    """Every combination of the launch's constants, and whether its sizes are multiples of 16."""
    names = list(launch.constants)
    values = itertools.product(*(launch.constants[name].values for name in names))
    found = [tuple(zip(names, combination, strict=True)) for combination in values]
    if not launch.aligned:
        return [(chosen, False) for chosen in found]
    largest = launch.largest()
    general = dict.fromkeys(tuple((dict(c) | largest).items()) for c in found)
    return [*((chosen, True) for chosen in found), *((chosen, False) for chosen in general)]


def possible_choices(launch: Launch, ranges: Mapping[str, Bounds]) -> list[tuple[Constants, bool]]:
    """Those of `choices` that the launch may make where names are in these ranges."""
    values = possible_values(launch, ranges)
    if values is None:
        return []
    return [
        (chosen, aligned)
        for chosen, aligned in choices(launch)
        if aligned in values.aligned
        and all(
            value in values.constants[name]
            or (not aligned and bool(launch.aligned) and not launch.constants[name].exact)
            for name, value in chosen
        )
    ]


def variant(
    launches: Launches,
    launch: Launch,
    kernels: Mapping[str, Any],
    target: str,
    types: Types,
    chosen: Constants,
    aligned: bool,
) -> Variant:
    """The variant that a launch uses for a target, dtypes and picked constants.

    `aligned` says that the launch's `aligned` arguments are multiples of 16.
    """
    function = kernels[launch.kernel]
    config = launch.config(target, types.activation)
    constants = dict(chosen) | {k: v for k, v in config.items() if k not in _OPTIONS}
    parameters = [name for name in function.arg_names if name not in constants]
    if len(parameters) != len(launch.arguments):
        raise ValueError(
            f"{launches.contract.name}: {launch.kernel}: its run-time parameters are {parameters}, "
            f"the launch gives {list(launch.arguments)}"
        )
    pointers = _pointer_types(launches, types)
    signature = tuple(
        (name, pointers.get(argument) or _scalar_type(launches, launch, argument, aligned))
        for name, argument in zip(parameters, launch.arguments, strict=True)
    )
    options = tuple(sorted((k, v) for k, v in config.items() if k in _OPTIONS))
    return Variant(launch.kernel, target, signature, tuple(sorted(constants.items())), options)


def variants(
    launches: Launches, kernels: Mapping[str, Any], selection: Selection = WHOLE
) -> Iterator[Variant]:
    """Every variant that some launch may use, for what is selected."""
    for launch in launches.steps:
        for types, (chosen, aligned) in _wanted(launches, launch, selection):
            for target in selection.targets:
                yield variant(launches, launch, kernels, target, types, chosen, aligned)


def _wanted(
    launches: Launches, launch: Launch, selection: Selection
) -> Iterator[tuple[Types, tuple[Constants, bool]]]:
    if selection.uses is None:
        yield from itertools.product(launches.contract.types(), choices(launch))
        return
    for use in selection.uses:
        if use.operator == launches.contract.name:
            types, ranges = describe(launches.contract, use)
            for choice in possible_choices(launch, ranges):
                yield types, choice


def compile_variant(of: Variant, kernels: Mapping[str, Any], cache: Path) -> Cubin:
    """The compiled variant, from `cache` where it was compiled before from the same source."""
    function = kernels[of.function]
    key = hashlib.sha256(
        json.dumps([repr(of), _triton_version(), _source(function)]).encode()
    ).hexdigest()
    entry_file, image_file = cache / f"{key}.json", cache / f"{key}.cubin"
    if not entry_file.is_file() or not image_file.is_file():
        cubin = _compile(of, function)
        write_atomically(image_file, cubin.image)
        entry = {"entry": cubin.entry, "shared_bytes": cubin.shared_bytes,
                 "num_warps": cubin.num_warps, "sha256": cubin.sha256}  # fmt: skip
        write_atomically(entry_file, json.dumps(entry).encode())
        return cubin
    entry = json.loads(entry_file.read_text())
    cubin = Cubin(
        image_file.read_bytes(), entry["entry"], entry["shared_bytes"], entry["num_warps"]
    )
    if cubin.sha256 != entry["sha256"]:
        image_file.unlink()
        return compile_variant(of, kernels, cache)
    return cubin


def _compile(of: Variant, function: Any) -> Cubin:
    # Line information would put this machine's paths into the cubin.
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {name: kind.partition(":")[0] for name, kind in of.signature}
    signature = {name: "constexpr" for name, _ in of.constants} | types
    signature = {name: signature[name] for name in function.arg_names}
    order = {name: i for i, name in enumerate(function.arg_names)}
    aligned = {
        (order[name],): [
            ["tt.divisibility", POINTER_ALIGNMENT if kind.startswith("*") else SIZE_ALIGNMENT]
        ]
        for name, kind in of.signature
        if kind.startswith("*") or ":" in kind
    }
    source = ASTSource(function, signature, dict(of.constants), aligned)
    capability = int(of.target.removeprefix("sm"))
    compiled = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options=dict(of.options)
    )
    metadata = compiled.metadata
    if metadata.global_scratch_size or metadata.profile_scratch_size or metadata.num_ctas != 1:
        raise ValueError(f"{of.function}: wants scratch memory or a cluster, which no launch gives")
    return Cubin(compiled.asm["cubin"], metadata.name, metadata.shared, metadata.num_warps)


def _pointer_types(launches: Launches, types: Types) -> dict[str, str]:
    named = [(port.name, port.dtype) for port in launches.contract.ports]
    named += [(buffer.name, buffer.dtype) for buffer in launches.workspace]
    return {name: "*" + _TRITON[types.of(dtype)] for name, dtype in named}


def _scalar_type(launches: Launches, launch: Launch, argument: str, aligned: bool) -> str:
    if launches.contract.attributes.get(argument) is float:
        return "fp32"
    return f"i32:{SIZE_ALIGNMENT}" if aligned and argument in launch.aligned else "i32"


def _triton_version() -> str:
    from importlib.metadata import version

    return version("triton")


def _source(function: Any) -> str:
    """The source of the function's module, of those its Triton functions are from, and so on."""
    from triton import JITFunction

    from glm_trt.plugins.common import triton_helpers

    found: dict[str, str] = {}
    left = [inspect.getmodule(function.fn), triton_helpers]
    while left:
        module = left.pop()
        if module is not None and module.__name__ not in found:
            found[module.__name__] = inspect.getsource(module)
            functions = [of for of in vars(module).values() if isinstance(of, JITFunction)]
            left += [inspect.getmodule(of.fn) for of in functions]
    return "".join(found[name] for name in sorted(found))
