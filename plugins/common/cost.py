"""What a call of an operator needs, as data: bytes, operations, and its sizes in a model.

`glm-trt plan` takes the workspace from it, and a test the figures of the operators' READMEs. The
workspace itself is that of `launch.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from glm_trt.model.config import ModelConfig
from glm_trt.plugins.common.contract import Contract
from glm_trt.plugins.common.expressions import evaluate

Sizes = Mapping[str, int]  # axis or attribute → its size


@dataclass(frozen=True)
class Cost:
    """The cost of a call.

    Attributes
    ----------
    bytes : what memory has to give and to take at least once, an expression of the names that
        launches know. Of stacked experts it counts as many as the tokens may hit at most.
    operations : multiplications and additions of the products, likewise.
    sizes : the sizes in a model of what is neither tokens nor context; None where no layer of it
        has the operator.
    narrow : the operator is for weights that are stored so; any model may be.
    """

    bytes: str
    operations: str
    sizes: Callable[[ModelConfig], Sizes | None]
    narrow: bool = False


def sizes_of_experts(config: ModelConfig) -> Sizes | None:
    """Of the axes that operators of MoE experts have in common, as in `Cost`."""
    if "sparse" not in config.mlp_layer_types:
        return None
    return {
        "E": config.n_routed_experts,
        "I": config.moe_intermediate_size,
        "hidden": config.hidden_size,
        "k": config.num_experts_per_tok,
    }


def sizes_of_call(
    contract: Contract, sizes: Sizes, batch: int, tokens: int, context: int, itemsize: int = 2
) -> dict[str, int]:
    """Every name of a call of `batch` sequences with `tokens` each, over `context` positions."""
    call = {"B": batch, "S": tokens, "L": tokens, "T": batch * tokens, "C": context}
    names = {f"has_{port.name}": 1 for port in contract.inputs if port.optional}
    # The convolution's C is its channels: what the model says of an axis comes before the call.
    names |= call | dict(sizes) | {"ITEMSIZE": itemsize}
    for axis, expression in contract.derived.items():
        names.setdefault(axis, evaluate(expression, names))
    return names
