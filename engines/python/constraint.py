"""What the tokens of a request must be, such as JSON: a mask on its logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Constraint(Protocol):
    """Sees the new tokens of one request, one by one, and says which may follow."""

    @property
    def ended(self) -> bool:
        """Whether what was taken is whole, and nothing may follow."""
        ...

    def allowed(self, drafts: Sequence[int]) -> NDArray[np.bool_] | None:
        """Which tokens [vocab] may come behind those that were taken and `drafts`, which are not;
        None if any may. Drafts that may not come, or that follow the end, may get any answer.
        """
        ...

    def take(self, token: int) -> None:
        """The next token is this."""
        ...

    def return_to(self, count: int) -> None:
        """Only the first `count` of the tokens that were taken have come."""
        ...
