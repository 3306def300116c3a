"""The documentation table of the operators, from their contracts."""

from __future__ import annotations

from collections.abc import Iterable

from glm_trt.plugins.common.contract import ACTIVATION, ACTIVATION_DTYPES, Contract, Port

HEADER = """# Operators

Domain `glm_trt`, version 1. Generated from the contracts (`python -m
glm_trt.plugins.common.documentation > docs/operators.md`); a test compares. *T* is the dtype of
the block: {dtypes}. In any top-k, ties go to the smaller index; −1 is no entry.
"""


def operators_markdown(contracts: Iterable[Contract]) -> str:
    """A section for each contract."""
    parts = [HEADER.format(dtypes=", ".join(ACTIVATION_DTYPES))]
    for contract in contracts:
        rows = [_row("input", port) for port in contract.inputs]
        rows += [_row("output", port) for port in contract.outputs]
        rows += [f"| attribute | `{n}` | | {kind.__name__} |" for n, kind in
                 contract.attributes.items()]  # fmt: skip
        tolerances = ", ".join(f"{name} {value:g}" for name, value in contract.tolerance.items())
        axes = ", ".join(f"{axis} = {_derived(of)}" for axis, of in contract.derived.items())
        parts += [
            f"## {contract.name}",
            contract.doc,
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


def _row(kind: str, port: Port) -> str:
    dtype = "T" if port.dtype == ACTIVATION else port.dtype
    return f"| {kind} | `{port.name}` | {' × '.join(port.axes)} | {dtype} |"


def _derived(of: tuple[str, ...]) -> str:
    return f"`{of[0]}`" if len(of) == 1 else f"min(`{of[0]}`, {of[1]})"


if __name__ == "__main__":
    from glm_trt.plugins.operators import CONTRACTS

    print(operators_markdown(CONTRACTS.values()), end="")
