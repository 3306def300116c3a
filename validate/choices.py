"""Comparing what a block chose: its experts and its indexer's positions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from glm_trt.model.config import ModelConfig
from glm_trt.validate.compare import Choices, score_noise

Array = NDArray[Any]
Arrays = dict[str, Array]

# Output → the recorded scores it was chosen by.
CHOSEN_BY = {"expert_indices": "expert_scores", "topk_indices": "position_scores"}


def compare_choices(
    config: ModelConfig,
    name: str,
    outputs: dict[str, Arrays],
    scores: tuple[Arrays, Arrays],
    pooled: Choices,
    place: str,
) -> NDArray[np.bool_]:
    """Pool the backend's choice of output `name`; tokens [T] where all three chose alike.

    Parameters
    ----------
    outputs : of "exact", "rounded" and "found", by name.
    scores : those of the exact and of the rounded model, by name.
    """
    width = outputs["exact"][name].shape[-1]
    expected, rounded, found = (
        outputs[chain][name].reshape(-1, width) for chain in ("exact", "rounded", "found")
    )
    exact_scores, rounded_scores = (of[CHOSEN_BY[name]].reshape(len(expected), -1) for of in scores)
    noise = np.full(len(expected), score_noise(exact_scores, rounded_scores))
    if name == "expert_indices" and config.n_group > 1:
        exact_scores, doubtful = _limited_to_groups(config, scores)
        noise[doubtful] = np.inf
    equal = pooled.add(found, expected, (exact_scores, rounded_scores), noise, place)
    return equal & (np.sort(rounded) == np.sort(expected)).all(-1)


def _limited_to_groups(
    config: ModelConfig, scores: tuple[Arrays, Arrays]
) -> tuple[Array, NDArray[np.bool_]]:
    """Expert scores [T, E] with −inf outside the kept groups, and tokens [T] where rounding may
    decide which groups those are (then every group that may be kept is).
    """
    groups = scores[0]["group_scores"]
    noise = score_noise(groups, scores[1]["group_scores"])
    boundary = -np.sort(-groups, axis=-1)[:, config.topk_group - 1, None]
    kept = groups >= boundary - 2 * noise
    doubtful = kept.sum(-1) > config.topk_group
    size = config.n_routed_experts // config.n_group
    inside = np.repeat(kept, size, axis=-1)
    return np.where(inside, scores[0]["expert_scores"], -np.inf), doubtful
