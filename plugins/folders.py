"""The operators, found by their folders and listed nowhere.

A folder of this package that has a `contract.py` is an operator, and its name is that of the torch
operator. `docs/plugins.md` says what lies in it. What runs bundles reads contracts, so that nothing
here loads torch or Triton.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import TYPE_CHECKING

from glm_trt import plugins
from glm_trt.model.errors import GlmTrtError
from glm_trt.plugins.common.contract import Contract

if TYPE_CHECKING:  # a plan finds operators too, and is there in a fraction of a second
    import onnx

_SHARED = "common"  # the folder of what operators share


def part_of(operator: str, part: str) -> ModuleType:
    """`part`.py of an operator's folder.

    Raises
    ------
    GlmTrtError
        If the folder has no such file.
    """
    name = f"{plugins.__name__}.{operator}.{part}"
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise  # the file is there, and something that it imports is not
        raise GlmTrtError(f"plugins/{operator}: expected {part}.py, found none") from None


def has_part(operator: str, part: str) -> bool:
    """Whether an operator's folder has `part`.py."""
    package = import_module(f"{plugins.__name__}.{operator}")
    return any(module.name == part for module in iter_modules(package.__path__))


def _contracts() -> dict[str, Contract]:
    found = {}
    for module in sorted(iter_modules(plugins.__path__), key=lambda module: module.name):
        if not module.ispkg or module.name == _SHARED:
            continue
        contract: Contract = part_of(module.name, "contract").CONTRACT
        if contract.torch_name != module.name:
            raise GlmTrtError(
                f"plugins/{module.name}/contract.py: torch_name: expected the folder's name, "
                f"found {contract.torch_name}"
            )
        found[module.name] = contract
    return found


CONTRACTS = _contracts()  # by folder, in the order of their names
_OF_NODES = {(c.domain, c.name): c for c in CONTRACTS.values()}


def contract_of(node: onnx.NodeProto) -> Contract | None:
    """The contract of a node's operator; None where it has no folder here."""
    return _OF_NODES.get((node.domain, node.op_type))
