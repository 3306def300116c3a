"""Writing the C++ that the plugin library is generated from: contracts, launches, kernels.

`operators.cpp` holds one function per launch (grid, arguments and choice of the kernel as they
says) and one `Operator` per contract; `kernels.S` embeds the compiled images.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from glm_trt.plugins.common.aot import Cubin, Variant, choices, variant
from glm_trt.plugins.common.contract import (
    ACTIVATION,
    STATE,
    Choice,
    Contract,
    Port,
    attribute_kind,
)
from glm_trt.plugins.common.expressions import names_in, to_cpp, to_postfix
from glm_trt.plugins.common.launch import SIZE_ALIGNMENT, Launch, Launches, Pick
from glm_trt.plugins.common.selection import TARGETS, Selection
from glm_trt.plugins.library import MARK

_DTYPES = {"float32": "kFLOAT32", "float16": "kFLOAT16", "bfloat16": "kBFLOAT16", "int8": "kINT8",
           "int32": "kINT32", "int64": "kINT64", ACTIVATION: "kACTIVATION",
           STATE: "kSTATE"}  # fmt: skip
_WORDS = {ACTIVATION: "the block's dtype", STATE: "float32 or the block's dtype"}
_OPCODES = {"+": "kADD", "-": "kSUBTRACT", "*": "kMULTIPLY", "//": "kDIVIDE", "min": "kMINIMUM",
            "max": "kMAXIMUM"}  # fmt: skip
_SIZES = {"float32": "4", "int32": "4", "int64": "8", ACTIVATION: "ITEMSIZE"}


ABSENT = -1  # in place of a kernel's number


class KernelTable:
    """The compiled kernels of a library: equal images once, numbered in order of first use."""

    def __init__(self, cubins: Mapping[Variant, Cubin]) -> None:
        self.cubins = cubins
        self.kernels: list[Cubin] = []
        self._numbers: dict[Cubin, int] = {}

    def number(self, of: Variant) -> int:
        """The kernel's index in the library; `ABSENT` where it is not in it."""
        cubin = self.cubins.get(of)
        if cubin is None:
            return ABSENT
        if cubin not in self._numbers:
            self._numbers[cubin] = len(self.kernels)
            self.kernels.append(cubin)
        return self._numbers[cubin]


def operators_cpp(
    all_launches: Sequence[tuple[Launches, Mapping[str, Any]]],
    table: KernelTable,
    version: str,
    selection: Selection,
) -> str:
    """`operators.cpp`, from the launches with their Triton functions by name.

    `selection` says which kernels the table has.
    """
    functions, operators = [], []
    for i, (launches, _) in enumerate(all_launches):
        functions.append(f"constexpr int32_t {launches.contract.torch_name}_index = {i};\n")
    for launches, kernels in all_launches:
        written = [
            _launch(launches, launch, f"{launches.contract.torch_name}_{i}", kernels, table)
            for i, launch in enumerate(launches.steps)
        ]
        functions += [_offset_function(launches), *written, _entry_functions(launches)]
        operators.append(_operator(launches.contract))
    externs = "".join(
        f"extern unsigned char const glm_trt_kernel_{i}[];\n" for i in range(len(table.kernels))
    )
    entries = "".join(
        f'    {{"{k.entry}", glm_trt_kernel_{i}, {k.shared_bytes}, {32 * k.num_warps}}},\n'
        for i, k in enumerate(table.kernels)
    )
    targets = ", ".join(target.removeprefix("sm") for target in TARGETS)
    labels = " ".join(selection.targets)
    # An array of nothing is not C++.
    entries = entries or "    {nullptr, nullptr, 0, 0},\n"
    return f'''// Generated from the operators' contracts and launches. Do not edit.
#include "operators.h"

extern "C"
{{
{externs}}}

namespace glm_trt
{{
namespace
{{

Kernel const kKernels[] = {{
{entries}}};

{"".join(functions)}
}} // namespace

int32_t const kTargets[] = {{{targets}}};
int32_t const kTargetCount = {len(TARGETS)};
char const* const kVersion = "{version}";
char const* const kTargetNames = "{labels}";
//! What the library says of itself to who reads its bytes.
extern char const kSelection[];
char const kSelection[] __attribute__((used)) = "{MARK}"
    R"json({selection.to_json()})json";

Operator const kOperators[] = {{
{"".join(operators)}}};
int32_t const kOperatorCount = {len(operators)};

}} // namespace glm_trt
'''


def kernels_assembly(table: KernelTable, files: Mapping[int, str]) -> str:
    """`kernels.S`: each image under the symbol that `operators.cpp` names."""
    parts = ["// Generated. The compiled kernels, aligned as ELF wants.", ".section .rodata"]
    for i in range(len(table.kernels)):
        symbol = f"glm_trt_kernel_{i}"
        parts += [f".global {symbol}", f".hidden {symbol}", ".balign 16", f"{symbol}:",
                  f'.incbin "{files[i]}"']  # fmt: skip
    return "\n".join([*parts, '.section .note.GNU-stack,"",@progbits', ""])


def contract_header(contract: Contract, limits: Sequence[tuple[str, str]] = ()) -> str:
    """A C++ header with the contract's names, indices, types and limits, for callers of the plugin.

    `limits` are those of the operator's launches.
    """
    space = contract.torch_name
    lines = [
        f"// Generated from the contract of {contract.name}: {contract.doc}",
        "#pragma once",
        "",
        "#include <cstdint>",
        "",
        f"namespace glm_trt::{space}",
        "{",
        f'constexpr char const* kName = "{contract.name}";',
        f'constexpr char const* kNamespace = "{contract.domain}";',
        f"constexpr int32_t kInputCount = {len(contract.inputs)};",
        f"constexpr int32_t kOutputCount = {len(contract.outputs)};",
    ]
    for kind, ports in (("Input", contract.inputs), ("Output", contract.outputs)):
        for i, port in enumerate(ports):
            dtype = _WORDS.get(port.dtype, port.dtype) + (", optional" if port.optional else "")
            lines.append(
                f"constexpr int32_t k{kind}{_camel(port.name)} = {i}; "
                f"//!< [{', '.join(port.axes)}] {dtype}"
            )
    for name, type_ in contract.attributes.items():
        words = " or ".join(type_.values) if isinstance(type_, Choice) else attribute_kind(type_)
        lines.append(f'constexpr char const* k{_camel(name)}Field = "{name}"; //!< {words}')
    lines.append("//! What the kernels can do, over the axes and attributes above.")
    texts = [f'    "{expression}", // {message}' for expression, message in limits]
    lines += ["constexpr char const* kLimits[] = {", *texts, "    nullptr,", "};"]
    return "\n".join([*lines, f"}} // namespace glm_trt::{space}", ""])


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _axes(contract: Contract) -> list[str]:
    return list(dict.fromkeys(axis for port in contract.ports for axis in port.axes))


def _names(launches: Launches, expressions: list[str], known: set[str]) -> list[str]:
    """C++ that defines the sizes that `expressions` read and `known` has not."""
    contract, lines = launches.contract, []
    axes, attributes = _axes(contract), list(contract.attributes)
    optional = {f"has_{p.name}": i for i, p in enumerate(contract.inputs) if p.optional}
    wanted = {name for expression in expressions for name in names_in(expression)}
    for name in sorted(wanted - known):
        if name == "ITEMSIZE":
            value = "call.types == 0 ? 4 : 2"  # the first are float32
        elif name in axes:
            value = f"call.axes[{axes.index(name)}]"
        elif name in optional:
            value = f"call.present[{optional[name]}] ? 1 : 0"
        elif contract.attributes.get(name, float) is not float:
            value = f"call.integers[{attributes.index(name)}]"
        else:
            raise ValueError(f"{contract.name}: {name!r} is no axis, attribute or constant")
        lines.append(f"    int64_t const {name} = {value};")
    return lines


def _launch(
    launches: Launches, launch: Launch, name: str, kernels: Mapping[str, Any], table: KernelTable
) -> str:
    contract = launches.contract
    pointers = _pointers(launches)
    scalars = [
        a for a in launch.arguments
        if a not in pointers and contract.attributes.get(a) is not float
    ]  # fmt: skip
    config_names = list(next(iter(launch.configs.values())))
    sizes = [n for n in config_names if not n.startswith("num_") and n != "maxnreg"]
    expressions = [*launch.grid, launch.when, *scalars]
    expressions += [pick.expression for pick in launch.constants.values()]
    read = {n for expression in expressions for n in names_in(expression)}
    lines = [f"Error launch_{name}(Call const& call)", "{"]
    lines += _names(launches, expressions, {*sizes, *launch.constants})
    types = contract.types()
    for size in (s for s in sizes if s in read):
        rows = ", ".join(
            "{" + ", ".join(str(launch.config(t, d.activation)[size]) for d in types) + "}"
            for t in TARGETS
        )
        lines += [
            f"    static constexpr int64_t k_{size}[{len(TARGETS)}][{len(types)}] = {{{rows}}};",
            f"    int64_t const {size} = k_{size}[call.target][call.types];",
        ]
    if launch.when != "1":
        lines += [f"    if (!{to_cpp(launch.when)})", "    {", "        return {};", "    }"]
    if launch.aligned:
        multiples = [f"{to_cpp(size)} % {SIZE_ALIGNMENT} == 0" for size in launch.aligned]
        lines.append(f"    bool const multiples = {' && '.join(multiples)};")
    for constant, pick in launch.constants.items():
        lines += _picked(constant, pick, bool(launch.aligned))
    grid = ", ".join(to_cpp(size) for size in launch.grid)
    lines += [
        f"    int64_t const grid[3] = {{{grid}}};",
        "    if (grid[0] == 0 || grid[1] == 0 || grid[2] == 0)",
        "    {",
        "        return {};",
        "    }",
        *_kernel_choice(launches, launch, kernels, table),
        *_arguments(launches, launch, pointers),
        "}",
        "",
        "",
    ]
    return "\n".join(lines)


def _picked(constant: str, pick: Pick, aligned: bool) -> list[str]:
    """C++ that picks a constant: its index in the values, and the value."""
    values = ", ".join(map(str, pick.values))
    needed = to_cpp(pick.expression)
    lines = [
        f"    int32_t i_{constant} = pickIndex({{{values}}}, {needed});",
        f"    if (i_{constant} < 0)",
        "    {",
        f'        return "{pick.expression} = " + std::to_string({needed}) + '
        f'": expected at most {pick.values[-1]}";',
        "    }",
    ]
    if aligned and not pick.exact:
        lines.append(f"    i_{constant} = multiples ? i_{constant} : {len(pick.values) - 1};")
    lines.append(
        f"    int64_t const {constant} = std::initializer_list<int64_t>{{{values}}}"
        f".begin()[i_{constant}];"
    )
    return lines


def _kernel_choice(
    launches: Launches, launch: Launch, kernels: Mapping[str, Any], table: KernelTable
) -> list[str]:
    """C++ that finds the kernel by target, dtypes and picked constants."""
    made = set(choices(launch))
    names = list(launch.constants)
    values = itertools.product(*(launch.constants[name].values for name in names))
    combinations = [
        (tuple(zip(names, combination, strict=True)), aligned)
        for combination in values
        for aligned in ((False, True) if launch.aligned else (False,))
    ]
    rows = []
    for target in TARGETS:
        by_types = []
        for types in launches.contract.types():
            numbers = [
                table.number(variant(launches, launch, kernels, target, types, *combination))
                if combination in made
                else ABSENT
                for combination in combinations
            ]
            by_types.append("{" + ", ".join(map(str, numbers)) + "}")
        rows.append("{" + ", ".join(by_types) + "}")
    index = "0"
    for constant, pick in launch.constants.items():
        index = f"({index} * {len(pick.values)} + i_{constant})"
    given = [f'{{"{name}", {name}}}' for name in names]
    if launch.aligned:
        index = f"({index} * 2 + (multiples ? 1 : 0))"
        given.append('{"multiples of 16", multiples ? 1 : 0}')
    shape = f"[{len(TARGETS)}][{len(launches.contract.types())}][{len(combinations)}]"
    operator = f"kOperators[{launches.contract.torch_name}_index]"
    return [
        f"    static constexpr int32_t kNumbers{shape} = {{{', '.join(rows)}}};",
        f"    int32_t const number = kNumbers[call.target][call.types][{index}];",
        "    if (number < 0)",
        "    {",
        f'        return absentKernel({operator}, call, "{launch.kernel}", '
        f"{{{', '.join(given)}}});",
        "    }",
        "    Kernel const& kernel = kKernels[number];",
    ]


def _pointers(launches: Launches) -> dict[str, str]:
    """C++ for the address behind each port or buffer."""
    contract = launches.contract
    found = {p.name: f"const_cast<void*>(call.inputs[{i}])" for i, p in enumerate(contract.inputs)}
    found |= {port.name: f"call.outputs[{i}]" for i, port in enumerate(contract.outputs)}
    for i, buffer in enumerate(launches.workspace):
        offset = f"{contract.torch_name}_offset(call, {i})"
        found[buffer.name] = f"inWorkspace(call, {offset})"
    return found


def _arguments(launches: Launches, launch: Launch, pointers: dict[str, str]) -> list[str]:
    contract = launches.contract
    attributes = list(contract.attributes)
    lines, addresses, integers = [], [], []
    for i, argument in enumerate(launch.arguments):
        if argument in pointers:
            lines.append(f"    void* a{i} = {pointers[argument]}; // {argument}")
        elif contract.attributes.get(argument) is float:
            at = attributes.index(argument)
            lines.append(f"    float a{i} = call.floats[{at}]; // {argument}")
        else:
            lines.append(f"    int64_t const n{i} = {to_cpp(argument)};")
            lines.append(f"    auto a{i} = static_cast<int32_t>(n{i});")
            integers.append(f"n{i}")
        addresses.append(f"&a{i}")
    # Triton appends two addresses of scratch memory, which none of these kernels uses.
    lines += [
        "    void* scratch = nullptr;",
        f"    void* parameters[] = {{{', '.join(addresses)}, &scratch, &scratch}};",
        f"    return launchChecked(call, kernel, grid, {{{', '.join(integers)}}}, parameters);",
    ]
    return lines


def _offset_function(launches: Launches) -> str:
    """C++: where each buffer of the workspace begins, and the whole size."""
    name, count = launches.contract.torch_name, len(launches.workspace)
    sizes = [f"{to_cpp(b.elements)} * {_SIZES[b.dtype]}" for b in launches.workspace]
    read = [buffer.elements for buffer in launches.workspace]
    read += ["ITEMSIZE"] if any(_SIZES[b.dtype] == "ITEMSIZE" for b in launches.workspace) else []
    places = {buffer.name: i for i, buffer in enumerate(launches.workspace)}
    over = ", ".join(str(places.get(buffer.over, -1)) for buffer in launches.workspace) or "-1"
    return "\n".join([
        f"//! Where buffer `index` of the workspace begins; its end for index {count}.",
        f"size_t {name}_offset([[maybe_unused]] Call const& call, int32_t index)",
        "{",
        *_names(launches, read, set()),
        f"    size_t const sizes[] = {{{', '.join(f'aligned({s})' for s in sizes) or '0'}}};",
        f"    constexpr int32_t kOver[] = {{{over}}}; // buffers that share a place",
        "    size_t offsets[std::size(sizes)]{};",
        "    size_t end = 0;",
        f"    for (int32_t i = 0; i < {count}; ++i)",
        "    {",
        "        offsets[i] = kOver[i] < 0 ? end : offsets[kOver[i]];",
        "        end = std::max(end, offsets[i] + sizes[i]);",
        "    }",
        f"    return index == {count} ? end : offsets[index];",
        "}",
        "",
        "",
    ])  # fmt: skip


def _entry_functions(launches: Launches) -> str:
    """C++: what an `Operator` points to."""
    name = launches.contract.torch_name
    lines = [
        f"size_t {name}_workspaceBytes(Call const& call)",
        "{",
        f"    return {name}_offset(call, {len(launches.workspace)});",
        "}",
        "",
        f"Error {name}_check([[maybe_unused]] Call const& call)",
        "{",
        *_names(launches, [expression for expression, _ in launches.limits], set()),
    ]
    for expression, message in launches.limits:
        lines += [f"    if (!{to_cpp(expression)})", "    {", f'        return "{message}";',
                  "    }"]  # fmt: skip
    lines += ["    return {};", "}", "", f"Error {name}_launch(Call const& call)", "{",
              "    Error error;"]  # fmt: skip
    for i in range(len(launches.steps)):
        lines += ["    if (error.empty())", "    {",
                  f"        error = launch_{name}_{i}(call);", "    }"]  # fmt: skip
    return "\n".join([*lines, "    return error;", "}", "", ""])


def _operator(contract: Contract) -> str:
    axes, attributes = _axes(contract), list(contract.attributes)

    def ports(of: tuple[Port, ...]) -> str:
        texts = []
        for port in of:
            indices = ", ".join(str(axes.index(axis)) for axis in port.axes)
            texts.append(
                f'{{"{port.name}", Dtype::{_DTYPES[port.dtype]}, {_cpp_bool(port.optional)}, '
                f"{len(port.axes)}, {{{indices}}}}}"
            )
        return f"{len(of)}, {{{', '.join(texts)}}}"

    declared = ", ".join(_attribute(name, kind) for name, kind in contract.attributes.items())
    derived = ",\n            ".join(
        _derived_axis(axes, attributes, axis, expression)
        for axis, expression in contract.derived.items()
    )
    types = contract.types()
    pairs = ", ".join(
        f"{{Dtype::{_DTYPES[t.activation]}, Dtype::{_DTYPES[t.state]}}}" for t in types
    )
    name = contract.torch_name
    return (
        f'    {{"{contract.name}", "{contract.domain}", {ports(contract.inputs)}, '
        f"{ports(contract.outputs)},\n"
        f"        {len(types)}, {{{pairs}}},\n"
        f"        {len(attributes)}, {{{declared}}},\n"
        f"        {len(axes)}, {len(contract.derived)}, {{{derived}}},\n"
        f"        {name}_workspaceBytes, {name}_check, {name}_launch}},\n"
    )


def _attribute(name: str, kind: type | Choice) -> str:
    if isinstance(kind, Choice):
        values = ", ".join(f'"{value}"' for value in kind.values)
        return f'{{"{name}", AttributeKind::kCHOICE, {len(kind.values)}, {{{values}}}}}'
    label = "kFLOAT" if kind is float else "kINTEGER"
    return f'{{"{name}", AttributeKind::{label}, 0, {{}}}}'


def _derived_axis(axes: list[str], attributes: list[str], axis: str, expression: str) -> str:
    program = []
    for kind, value in to_postfix(expression):
        if kind == "operator":
            program.append(f"{{Opcode::{_OPCODES[str(value)]}, 0}}")
        elif kind == "constant":
            program.append(f"{{Opcode::kCONSTANT, {value}}}")
        elif value in axes:
            program.append(f"{{Opcode::kAXIS, {axes.index(str(value))}}}")
        else:
            program.append(f"{{Opcode::kINTEGER, {attributes.index(str(value))}}}")
    return f"{{{axes.index(axis)}, {len(program)}, {{{', '.join(program)}}}}}"


def _cpp_bool(value: bool) -> str:
    return "true" if value else "false"
