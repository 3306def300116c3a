"""Errors of a chat, for those who asked in other words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from glm_trt.engines.serve.protocol.common import ApiError

Places = Sequence[tuple[str, str]]


def renamed(error: ApiError, places: Places) -> ApiError:
    """A chat's error with the names that its fields have elsewhere.

    Parameters
    ----------
    places : patterns of places in a chat's body, and what is there called so; the first that fits.
    """
    detail = error.detail
    place, colon, rest = detail.message.partition(": ")
    return ApiError(
        f"{_place(place, places)}{colon}{rest}", detail.param and _place(detail.param, places),
        status=error.status, type=detail.type, code=detail.code, retry_seconds=error.retry_seconds,
    )  # fmt: skip


def _place(name: str, places: Places) -> str:
    for theirs, ours in places:
        found = re.match(rf"{theirs}(?=[.\[]|$)", name)
        if found:
            return found.expand(ours) + name[found.end() :]
    return name
