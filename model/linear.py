"""Linear layers whose weights are whole, FP8 or NVFP4, as the checkpoint stores them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from glm_trt.model.operators import EagerOperators
from glm_trt.model.quantization import Quantization


def empty_parameter(shape: tuple[int, ...], dtype: torch.dtype | None = None) -> nn.Parameter:
    """A parameter to be loaded: of integers too, which have no gradient."""
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)


class QuantizedLinear(nn.Module):
    """W x + b with W stored narrow, its tensors under their names in the checkpoint: `weight` int8
    (the bytes), `weight_scale_inv` float32 in FP8; `weight_scale` int8 (e4m3 bytes) and
    `weight_scale_2` float32 [1] in NVFP4.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bias: bool,
        quantization: Quantization,
        precision: str,
        operators: EagerOperators,
    ) -> None:
        super().__init__()
        self.precision, self.operators = precision, operators
        self.names: list[str] = []
        for part in quantization.parts((outputs, inputs), precision):
            dtype = torch.float32 if part.dtype == "float32" else torch.int8
            name = part.suffix.removeprefix(".")
            self.register_parameter(name, empty_parameter(part.shape or (1,), dtype))
            self.names.append(name)
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[T, inputs] → [T, outputs]."""
        tensors = [getattr(self, name) for name in self.names]
        if self.precision == "fp8":
            y = self.operators.fp8_linear(x, *tensors, quantize_activations=0)
        else:
            y = self.operators.nvfp4_linear(x, *tensors)
        return y if self.bias is None else y + self.bias


class Linears:
    """Makes the linear layers of a block, each as the checkpoint stores it.

    Parameters
    ----------
    quantization : the checkpoint's.
    prefix : what stands before the names of the modules, "model.layers.3.self_attn." for example.
    """

    def __init__(self, quantization: Quantization, prefix: str, operators: EagerOperators) -> None:
        self.quantization, self.prefix, self.operators = quantization, prefix, operators

    def within(self, name: str) -> Linears:
        """The same for a module inside."""
        return Linears(self.quantization, f"{self.prefix}{name}.", self.operators)

    def __call__(self, name: str, inputs: int, outputs: int, bias: bool = False) -> nn.Module:
        """The linear layer `name`: [T, inputs] → [T, outputs]."""
        precision = self.quantization.precision_of(self.prefix + name)
        if precision == "bf16":
            return nn.Linear(inputs, outputs, bias=bias)
        return QuantizedLinear(inputs, outputs, bias, self.quantization, precision, self.operators)
