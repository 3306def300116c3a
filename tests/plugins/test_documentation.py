"""docs/operators.md and the generated C++ header say what the contracts say."""

from __future__ import annotations

import subprocess
from importlib import import_module
from pathlib import Path

import pytest

from glm_trt.plugins.common.codegen import contract_header
from glm_trt.plugins.common.documentation import operators_markdown
from glm_trt.plugins.common.expressions import evaluate, names_in, to_cpp, to_postfix
from glm_trt.plugins.folders import CONTRACTS

ROOT = Path(__file__).parent.parent.parent


def test_document_is_the_contracts() -> None:
    assert (ROOT / "docs/operators.md").read_text() == operators_markdown(CONTRACTS.values())


@pytest.mark.parametrize("contract", CONTRACTS.values(), ids=CONTRACTS)
def test_header_names_every_port_and_attribute(contract: object) -> None:
    header = contract_header(contract)  # type: ignore[arg-type]
    lines = header.splitlines()
    for kind, ports in (("Input", contract.inputs), ("Output", contract.outputs)):  # type: ignore[attr-defined]
        for i, port in enumerate(ports):
            camel = "".join(part.capitalize() for part in port.name.split("_"))
            (line,) = [text for text in lines if f"k{kind}{camel} =" in text]
            assert f"= {i};" in line
            assert f"[{', '.join(port.axes)}]" in line


def test_headers_compile(tmp_path: Path) -> None:
    """All of them in one program, which reads the limits."""
    source = ["#include <cstring>"]
    checks = []
    for name in CONTRACTS:
        launches = import_module(f"glm_trt.plugins.{name}.launch").LAUNCHES
        (tmp_path / f"{name}.h").write_text(contract_header(launches.contract, launches.limits))
        source.append(f'#include "{name}.h"')
        checks.append(f'!std::strcmp(glm_trt::{name}::kLimits[0], "{launches.limits[0][0]}")')
    source.append(f"int main() {{ return {' && '.join(checks)} ? 0 : 1; }}")
    (tmp_path / "main.cpp").write_text("\n".join(source))
    program = tmp_path / "program"
    command = ["g++", "-std=c++17", "-Wall", "-Werror", str(tmp_path / "main.cpp"), "-o"]
    subprocess.run([*command, str(program)], check=True)
    assert subprocess.run([str(program)]).returncode == 0


@pytest.mark.parametrize(
    ("expression", "value", "cpp"),
    [
        ("cdiv(T, 16)", 3, "cdiv(T, INT64_C(16))"),
        ("T * k <= 128 and k != 3", 1, "(((T * k) <= INT64_C(128)) && (k != INT64_C(3)))"),
        ("min(T, k // 2, 7)", 1, "std::min<int64_t>({T, (k / INT64_C(2)), INT64_C(7)})"),
        ("next_power_of_2(T) % 5", 4, "(next_power_of_2(T) % INT64_C(5))"),
        ("not T", 0, "(!T)"),
    ],
)
def test_expressions(expression: str, value: int, cpp: str) -> None:
    assert evaluate(expression, {"T": 33, "k": 2}) == value
    assert to_cpp(expression) == cpp
    assert names_in(expression) <= {"T", "k"}


def test_postfix() -> None:
    """What the library computes output shapes by."""
    assert to_postfix("q * (V // H) - 1") == [
        ("name", "q"), ("name", "V"), ("name", "H"), ("operator", "//"), ("operator", "*"),
        ("constant", 1), ("operator", "-"),
    ]  # fmt: skip
    assert to_postfix("min(q, 7)") == [("name", "q"), ("constant", 7), ("operator", "min")]
    with pytest.raises(ValueError, match="not for a stack machine"):
        to_postfix("q % 2")


@pytest.mark.parametrize("expression", ["T ** 2", "open('x')", "T.real", "T if k else 1", "[T]"])
def test_other_expressions_are_refused(expression: str) -> None:
    with pytest.raises(ValueError, match="language of launches"):
        evaluate(expression, {"T": 1, "k": 1})
