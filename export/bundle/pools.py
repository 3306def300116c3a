"""A layer's states as pools of pages and slots: made of the model's, and checked.

A state that holds an entry a position lies in pages, any other in slots. In this release a page has
as many positions as the longest sequence, so that each has one page.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from glm_trt.export.bundle.format import Block, Manifest, StatePool
from glm_trt.model.config import ModelConfig
from glm_trt.model.errors import BundleError
from glm_trt.model.states import StateSpec, layer_states


def make_pools(
    config: ModelConfig, blocks: Iterable[Block], page: int
) -> dict[str, tuple[StatePool, ...]]:
    """Of each kind that has states; `page` is the number of a page's positions."""
    layers = {block.kind: block.layer for block in blocks if block.layer is not None}
    return {
        kind: tuple(_pool(spec, page) for spec in layer_states(config, layer))
        for kind, layer in layers.items()
    }


def _pool(spec: StateSpec, page: int) -> StatePool:
    return StatePool(
        name=spec.name,
        unit="page" if spec.has_capacity else "slot",
        shape=spec.shape(1, page)[1:],
        position_axis=spec.axes.index("capacity") - 1 if spec.has_capacity else None,
        dtype=spec.dtype,
    )


def spec_of(pool: StatePool) -> StateSpec:
    """The state as inputs of graphs have it: a batch of units."""
    axes: list[int | str] = ["batch", *pool.shape]
    if pool.position_axis is not None:
        axes[1 + pool.position_axis] = "capacity"
    return StateSpec(pool.name, tuple(axes), pool.dtype)


def check_pools(path: Path, manifest: Manifest, config: ModelConfig) -> None:
    """Raise `BundleError` unless this release runs the pools, and the config asks for them.

    The C++ runtime, which does not know the config, checks all but that.
    """
    for kind, pools in manifest.states.items():
        for pool in pools:
            place, axis = f"{path}: states of {kind}: {pool.name}", pool.position_axis
            if (axis is None) != (pool.unit == "slot") or (axis or 0) >= len(pool.shape):
                raise BundleError(f"{place}: a page has an axis of positions, a slot has none")
            if axis is not None and pool.shape[axis] != manifest.max_seq_len:
                raise BundleError(
                    f"{place}: expected pages of {manifest.max_seq_len} positions (max_seq_len), "
                    f"found {pool.shape[axis]}"
                )
    expected = make_pools(config, manifest.blocks, manifest.max_seq_len)
    for kind in dict.fromkeys((*expected, *manifest.states)):
        if (wanted := expected.get(kind)) != (found := manifest.states.get(kind)):
            raise BundleError(
                f"{path}: states of {kind}: by the config expected {_text(wanted)}, "
                f"found {_text(found)}"
            )


def _text(pools: tuple[StatePool, ...] | None) -> str:
    units = (f"{x.name} in {x.unit}s of {x.shape}, {x.dtype or 'the dtype'}" for x in pools or ())
    return "; ".join(units) or "none"
