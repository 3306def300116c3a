"""What a layer carries from step to step, as data: the model, the exporter and the runtimes ask
here for the names, axes and dtypes of its states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from glm_trt.model.config import ModelConfig

if TYPE_CHECKING:  # torch takes seconds to load, and a plan or a runtime needs only the names
    from torch import Tensor

State: TypeAlias = "dict[str, Tensor]"  # of one layer, by name

# The states that are float32 (or wider) whatever the block's dtype.
FLOAT32_STATES = ("recurrent_state",)
# "batch" and "capacity" are open; the config gives the sizes of the others.
STATE_AXES = {
    "kv_cache": ("batch", "one", "capacity", "width"),
    "index_keys": ("batch", "one", "capacity", "width"),
    "conv_state": ("batch", "channels", "columns"),
    "recurrent_state": ("batch", "heads", "key", "value"),
}


@dataclass(frozen=True)
class StateSpec:
    """One state of a layer.

    Attributes
    ----------
    name : the input's name in graphs; the updated state is the output NAME_out.
    axes : "batch", "capacity", or a size. A state with a capacity holds an entry a position, and
        a pass writes those of its own tokens; any other is replaced as a whole.
    dtype : "float32" where the state has that (or wider) whatever the block's dtype, else None.
    """

    name: str
    axes: tuple[int | str, ...]
    dtype: str | None = None

    def shape(self, batch: int, capacity: int) -> tuple[int, ...]:
        """The shape for sizes of the open axes."""
        sizes = {"batch": batch, "capacity": capacity}
        return tuple(sizes[axis] if isinstance(axis, str) else axis for axis in self.axes)

    @property
    def open_axes(self) -> dict[int, str]:
        """Number and name of the axes without a fixed size."""
        return {i: axis for i, axis in enumerate(self.axes) if isinstance(axis, str)}

    @property
    def has_capacity(self) -> bool:
        """Whether it holds an entry a position."""
        return "capacity" in self.axes


def layer_states(config: ModelConfig, layer: int) -> tuple[StateSpec, ...]:
    """The states of decoder or prediction layer `layer`, in the order of its graph's inputs."""
    return kind_states(config, config.attention_kind(layer))


def kind_states(config: ModelConfig, kind: str) -> tuple[StateSpec, ...]:
    """The states of a layer that attends as `kind`, one of `ModelConfig.attention_kinds`."""
    if kind == "linear":
        columns = config.linear_conv_kernel_dim - 1
        sizes = {
            "heads": config.linear_num_value_heads,
            "key": config.linear_key_head_dim,
            "value": config.linear_value_head_dim,
        }
        return (
            _spec("conv_state", channels=linear_channels(config), columns=columns),
            _spec("recurrent_state", **sizes),
        )
    latent = config.kv_lora_rank + config.qk_rope_head_dim
    states = [_spec("kv_cache", one=1, width=latent)]
    if kind == "indexed":
        states.append(_spec("index_keys", one=1, width=config.index_head_dim))
    return tuple(states)


def _spec(name: str, **sizes: int) -> StateSpec:
    axes = tuple(sizes.get(axis, axis) for axis in STATE_AXES[name])
    return StateSpec(name, axes, "float32" if name in FLOAT32_STATES else None)


def input_dtype(name: str, dtype: str) -> str:
    """The dtype of the floating input `name` of a block in `dtype`."""
    return "float32" if name in FLOAT32_STATES and dtype != "float64" else dtype


def linear_channels(config: ModelConfig) -> int:
    """Channels of the convolution of linear attention: those of the queries, keys and values."""
    keys = config.linear_num_key_heads * config.linear_key_head_dim
    return 2 * keys + config.linear_num_value_heads * config.linear_value_head_dim
