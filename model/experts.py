"""How the weights of a layer's routed experts are stacked: one tensor for each of two products."""

from __future__ import annotations

from glm_trt.model.config import ModelConfig

# Of each stacked tensor: the modules of an expert whose rows it has, in this order.
EXPERT_MODULES = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


def experts_precision(config: ModelConfig, layer: int) -> str:
    """In which of `PRECISIONS` the layer's routed experts are stored: in a checkpoint that was
    opened they are alike.
    """
    return config.quantization.precision_of(f"model.layers.{layer}.mlp.experts.0.gate_proj")


def stacked_shapes(
    config: ModelConfig, name: str, precision: str
) -> list[tuple[str, tuple[int, ...], str | None]]:
    """The stacked tensors of `name` in `EXPERT_MODULES`: what follows its name, shape and dtype (as
    a binding's). Gate and up rows follow one another; scales of theirs that are no rows, [E, 2, ·].
    """
    experts, hidden = config.n_routed_experts, config.hidden_size
    width, count = config.moe_intermediate_size, len(EXPERT_MODULES[name])
    rows, columns = (hidden, width) if name == "down_proj" else (width, hidden)
    if precision == "bf16":
        return [("", (experts, count * rows, columns), None)]
    shapes: list[tuple[str, tuple[int, ...], str | None]] = []
    for part in config.quantization.parts((rows, columns), precision):
        if part.shape[:1] == (rows,):
            shape: tuple[int, ...] = (count * rows, *part.shape[1:])
        else:
            shape = part.shape if count == 1 else (count, *part.shape)
        suffix = part.suffix.removeprefix(".weight")
        shapes.append((suffix, (experts, *shape), part.bound_dtype))
    return shapes
