"""The contract of an operator as data; the torch operator and the ONNX schema come from it.

Nothing here loads torch, nor onnx before a schema is asked for: what only runs a bundle reads
contracts too, and so does a plan, which is there in a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx.defs

DOMAIN, VERSION = "glm_trt", 1
STANDARD = ""  # the domain of ai.onnx
ACTIVATION = "T"  # a port of this type has the dtype of the block
STATE = "S"  # float32, or the dtype of the block
ITEMSIZES = {"float32": 4, "float16": 2, "bfloat16": 2}  # bytes, of the dtypes of blocks
ACTIVATION_DTYPES = tuple(ITEMSIZES)

_ONNX = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16"}


@dataclass(frozen=True)
class Port:
    """An input or output: axes by name, dtype a name, `ACTIVATION` or `STATE`."""

    name: str
    axes: tuple[str, ...]
    dtype: str = ACTIVATION
    optional: bool = False


@dataclass(frozen=True)
class Choice:
    """A string attribute, one of `values`; to expressions it is the index of its value."""

    values: tuple[str, ...]


@dataclass(frozen=True)
class Types:
    """What `ACTIVATION` and `STATE` stand for in one call."""

    activation: str
    state: str

    def of(self, dtype: str) -> str:
        """The dtype of a port or buffer."""
        return {ACTIVATION: self.activation, STATE: self.state}.get(dtype, dtype)


@dataclass(frozen=True)
class NarrowLinear:
    """A linear layer y = x Wᵀ: x, a weight that is stored narrow, its scales, what belongs to all.

    Attributes
    ----------
    rows_of_scale : rows of the weight to one of the scales.
    """

    rows_of_scale: int


@dataclass(frozen=True)
class StackedExperts:
    """A token's experts: x, indices, weights, what is stored of gate and up, and as much of down.

    Attributes
    ----------
    linear : the linear layer with what is stored of one expert: the folder of a `NarrowLinear`; ""
        for whole weights.
    """

    linear: str


@dataclass(frozen=True)
class Chooser:
    """Takes some of many: its first output says which, other outputs are of what was taken.

    Attributes
    ----------
    output : the name under which a block gives what was taken.
    """

    output: str


@dataclass(frozen=True)
class Contract:
    """One operator.

    Attributes
    ----------
    name : ONNX op type in `domain`; `torch_name` in `torch.ops.glm_trt`.
    inputs, outputs : in order; an output axis is an input's axis, or derived.
    attributes : name → int, float or a `Choice`, always explicit.
    derived : axis → expression over integer attributes, choices and axes of required inputs; where
        an input has such an axis, its size must be that.
    tolerance : dtype → relative L2 error allowed against the reference in float64.
    domain : `STANDARD` for an operator that ONNX defines.
    form : what passes over graphs know it by, where there are several of a kind.
    """

    name: str
    torch_name: str
    doc: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    attributes: dict[str, type | Choice]
    tolerance: dict[str, float]
    derived: dict[str, str] = field(default_factory=dict)
    domain: str = DOMAIN
    form: NarrowLinear | StackedExperts | Chooser | None = None

    @property
    def ports(self) -> tuple[Port, ...]:
        """Inputs, then outputs."""
        return (*self.inputs, *self.outputs)

    def types(self) -> tuple[Types, ...]:
        """Every assignment of the type variables that kernels exist for."""
        variables = {port.dtype for port in self.ports}
        if STATE in variables:
            pairs = ((a, s) for a in ACTIVATION_DTYPES for s in dict.fromkeys(("float32", a)))
            return tuple(Types(*pair) for pair in pairs)
        dtypes = ACTIVATION_DTYPES if ACTIVATION in variables else ("float32",)
        return tuple(Types(dtype, dtype) for dtype in dtypes)

    def types_of(self, tensors: Sequence[Any]) -> Types:
        """The type variables in a call; an absent input is None, an absent state has the dtype of
        the activations.
        """
        found: dict[str, str] = {}
        for port, tensor in zip(self.inputs, tensors, strict=True):
            if tensor is not None:
                found.setdefault(port.dtype, str(tensor.dtype).removeprefix("torch."))
        activation = found.get(ACTIVATION, "float32")
        return Types(activation, found.get(STATE, activation))

    def torch_schema(self) -> str:
        """For example `route(Tensor logits, …, *, int top_k) -> (Tensor, Tensor)`."""
        inputs = [f"Tensor{'?' if port.optional else ''} {port.name}" for port in self.inputs]
        attributes = [f"{attribute_kind(kind)} {name}" for name, kind in self.attributes.items()]
        outputs = ", ".join("Tensor" for _ in self.outputs)
        returns = f"({outputs})" if len(self.outputs) > 1 else outputs
        return f"{self.torch_name}({', '.join([*inputs, '*', *attributes])}) -> {returns}"

    def integers(self, attributes: Mapping[str, Any]) -> dict[str, int]:
        """What expressions see of the attributes: integers, and the indices of choices.

        Raises ValueError where a choice is none.
        """
        found = {}
        for name, kind in self.attributes.items():
            value = attributes[name]
            if isinstance(kind, Choice):
                if value not in kind.values:
                    expected = ", ".join(kind.values)
                    raise ValueError(
                        f"{self.name}: attribute {name}: expected one of {expected}; found {value}"
                    )
                found[name] = kind.values.index(value)
            elif kind is int:
                found[name] = int(value)
        return found

    def onnx_schema(self) -> onnx.defs.OpSchema:
        """The operator's schema in the domain `glm_trt`."""
        import onnx.defs

        schema = onnx.defs.OpSchema
        kinds = {"int": schema.AttrType.INT, "float": schema.AttrType.FLOAT,
                 "str": schema.AttrType.STRING}  # fmt: skip

        def ports(of: Sequence[Port]) -> list[Any]:
            names = {"float32": "tensor(float)", ACTIVATION: ACTIVATION}
            return [
                schema.FormalParameter(p.name, names.get(p.dtype, f"tensor({p.dtype})")) for p in of
            ]

        uses_activation = any(p.dtype == ACTIVATION for p in self.inputs)
        types = [f"tensor({_ONNX[name]})" for name in ACTIVATION_DTYPES]
        return schema(
            self.name,
            DOMAIN,
            VERSION,
            doc=self.doc,
            inputs=ports(self.inputs),
            outputs=ports(self.outputs),
            type_constraints=[(ACTIVATION, types, "the block's dtype")] if uses_activation else [],
            attributes=[
                schema.Attribute(name, kinds[attribute_kind(kind)], "")
                for name, kind in self.attributes.items()
            ],
        )


def attribute_kind(kind: type | Choice) -> str:
    """How torch and the documents call an attribute's type: int, float or str."""
    return "str" if isinstance(kind, Choice) else kind.__name__
