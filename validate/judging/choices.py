"""Comparing what a block chose: its experts and its indexer's positions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm_trt.model.config import ModelConfig
from glm_trt.validate.judging.compare import Choices, score_noise

Array = NDArray[Any]
Arrays = dict[str, Array]

# Output → the recorded scores it was chosen by, in the order in which a layer chooses.
CHOSEN_BY = {"topk_indices": "position_scores", "expert_indices": "expert_scores"}


def compare_choices(
    config: ModelConfig,
    name: str,
    outputs: dict[str, Arrays],
    scores: tuple[Arrays, Arrays],
    pooled: Choices,
    place: str,
    counted: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    """Pool the backend's choice of output `name`; tokens [T] where all three chose alike.

    Parameters
    ----------
    outputs : of "exact", "rounded" and "found", by name.
    scores : those of the exact and of the rounded model, by name.
    counted : tokens [T] that are pooled, all if None.
    """
    width = outputs["exact"][name].shape[-1]
    expected, rounded, found = (
        outputs[chain][name].reshape(-1, width) for chain in ("exact", "rounded", "found")
    )
    equal = np.ones(len(expected), bool)
    of = equal.copy() if counted is None else counted

    def by_token(by: str) -> tuple[Array, Array]:
        exact, rounded = (chain[by].reshape(len(expected), -1)[of] for chain in scores)
        return exact, rounded

    exact_scores, rounded_scores = by_token(CHOSEN_BY[name])
    noise = np.full(len(exact_scores), score_noise(exact_scores, rounded_scores))
    if name == "expert_indices" and config.n_group > 1:
        exact_scores, doubtful = _limited_to_groups(config, exact_scores, by_token("group_scores"))
        noise[doubtful] = np.inf
    equal[of] = pooled.add(found[of], expected[of], (exact_scores, rounded_scores), noise, place)
    alike = (np.sort(rounded) == np.sort(expected)).all(-1)
    pooled.dtype_near_ties += int((of & ~alike).sum())
    return equal & alike


def _limited_to_groups(
    config: ModelConfig, scores: Array, of_groups: tuple[Array, Array]
) -> tuple[Array, NDArray[np.bool_]]:
    """`scores` of experts [T, E] with −inf outside the kept groups, and tokens [T] where rounding
    may decide which groups those are (then every group that may be kept is).
    """
    groups = of_groups[0]
    noise = score_noise(*of_groups)
    boundary = -np.sort(-groups, axis=-1)[:, config.topk_group - 1, None]
    kept = groups >= boundary - 2 * noise
    doubtful = kept.sum(-1) > config.topk_group
    size = config.n_routed_experts // config.n_group
    inside = np.repeat(kept, size, axis=-1)
    return np.where(inside, scores, -np.inf), doubtful


def most_near_ties(dtype_near_ties: int, ratio: float) -> int:
    """How many near ties a backend may have where the eager model in its dtype has so many.

    Both are counts of rare events, whose roots scatter by 1/2 around those of their means, which
    errors `ratio` times as large make `ratio` times as large. Beyond five standard errors of the
    difference of the two roots there is one faultless backend in three million.
    """
    root = float(np.sqrt(ratio * dtype_near_ties + 3 / 8)) + 5 * float(np.sqrt(1 / 2))
    return int(root**2 - 3 / 8)
