"""Ranges in pyproject.toml, exact versions in constraints.txt: one fits the other."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
# Not installed by make: an alternative to `cpu`, and what only its vendor's index has.
ELSEWHERE = ("gpu", "tensorrt")
REQUIRE = ("require", "require_installed")


def constraints() -> dict[str, Version]:
    found = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            name, version = re.fullmatch(r"([\w.-]+)==([\w.]+)", line).groups()  # type: ignore[union-attr]
            found[canonicalize_name(name)] = Version(version)
    return found


def requirements(extra: str | None) -> list[Requirement]:
    return [Requirement(text) for text in (EXTRAS[extra] if extra else PROJECT["dependencies"])]


def closure(extra: str) -> set[str]:
    """The names that an extra installs, beside the package's own dependencies."""
    found = set()
    for requirement in requirements(extra):
        if requirement.name == "glm-trt":
            found |= set().union(*(closure(inner) for inner in requirement.extras))
        else:
            found.add(canonicalize_name(requirement.name))
    return found


@pytest.mark.parametrize("extra", [None, *(name for name in EXTRAS if name not in ELSEWHERE)])
def test_constraints_are_in_the_ranges(extra: str | None) -> None:
    exact = constraints()
    for requirement in requirements(extra):
        if requirement.name != "glm-trt":
            assert exact[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_nothing_in_the_package_is_exact() -> None:
    for extra in (None, *EXTRAS):
        for requirement in requirements(extra):
            assert all(part.operator == ">=" for part in requirement.specifier), requirement


def test_running_needs_neither_torch_nor_an_onnxruntime() -> None:
    names = {canonicalize_name(requirement.name) for requirement in requirements(None)}
    assert not names & {"torch", "onnxruntime", "onnxruntime-gpu", "onnxscript", "triton"}


def test_extras_by_role() -> None:
    assert closure("cpu") == {"onnxruntime"}
    assert closure("gpu") == {"onnxruntime-gpu"}
    polygraphy = {"polygraphy", "onnx-graphsurgeon"}
    assert closure("charts") | closure("export") | polygraphy == closure("validate")
    everything = closure("all")
    for extra in EXTRAS:
        if extra not in (*ELSEWHERE, "dev"):
            assert closure(extra) <= everything, extra
    assert "onnxruntime-gpu" not in everything  # two packages, one module


def test_an_extra_that_an_error_names_has_the_module() -> None:
    """Of each call of `require` in the package whose extra is written there."""
    distributions = {"cuda": "cuda-bindings", "opentelemetry": "opentelemetry-sdk"}
    checked = set()
    for folder in ("glm_trt", "model", "plugins", "export", "engines", "validate"):
        for path in (ROOT / folder).glob("**/*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") in REQUIRE:
                    extra, *modules = [getattr(given, "value", None) for given in node.args[1:]]
                    for module in modules if isinstance(extra, str) else ():
                        name = module.partition(".")[0]
                        found = distributions.get(name, canonicalize_name(name))
                        assert found in closure(extra), (path, module)
                        checked.add((extra, name))
    assert {("export", "torch"), ("validate", "torch"), ("plugins", "triton")} <= checked
