"""The documentation table of the operators, from their contracts."""

from __future__ import annotations

from collections.abc import Iterable

from glm_trt.plugins.common.contract import (
    ACTIVATION_DTYPES,
    DOMAIN,
    Choice,
    Contract,
    Port,
    attribute_kind,
)

HEADER = """# Operators

Of the domain `glm_trt`, version 1, where nothing else is said. Generated from the contracts
(`python -m glm_trt.plugins.common.documentation > docs/operators.md`); a test compares. *T* is the
dtype of the block: {dtypes}; *S* is float32 or that of the block. In any top-k, ties go to the
smaller index; −1 is no entry.
"""


def operators_markdown(contracts: Iterable[Contract]) -> str:
    """A section for each contract."""
    parts = [HEADER.format(dtypes=", ".join(ACTIVATION_DTYPES))]
    for contract in contracts:
        rows = [_row("input", port) for port in contract.inputs]
        rows += [_row("output", port) for port in contract.outputs]
        rows += [f"| attribute | `{name}` | | {_kind(kind)} |" for name, kind in
                 contract.attributes.items()]  # fmt: skip
        tolerances = ", ".join(f"{name} {value:g}" for name, value in contract.tolerance.items())
        axes = ", ".join(f"{axis} = `{of}`" for axis, of in contract.derived.items())
        parts += [
            f"## {contract.name}",
            contract.doc,
            *([] if contract.domain == DOMAIN else ["Standard: ai.onnx 27, namespace empty."]),
            "",
            "| | name | axes | dtype |",
            "|---|---|---|---|",
            *rows,
            "",
            *([f"{axes}."] if axes else []),
            f"Relative L2 error allowed against the float64 reference: {tolerances}.",
            "",
        ]
    return "\n".join(parts)


def _row(label: str, port: Port) -> str:
    optional = "optional " if port.optional else ""
    return f"| {optional}{label} | `{port.name}` | {' × '.join(port.axes)} | {port.dtype} |"


def _kind(kind: type | Choice) -> str:
    return " or ".join(kind.values) if isinstance(kind, Choice) else attribute_kind(kind)


if __name__ == "__main__":
    from glm_trt.plugins.folders import CONTRACTS

    print(operators_markdown(CONTRACTS.values()), end="")
