"""When what happened to one sequence of a request."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Timeline:
    """Moments in seconds of `time.monotonic`; None until they come, or if they never do.

    Attributes
    ----------
    arrived : the request was there, its body not yet read.
    submitted : it was read and checked, and waits for a row.
    admitted : the first pass over its prompt begins.
    first, latest : of its tokens.
    ended : nothing more comes.
    """

    arrived: float
    submitted: float | None = None
    admitted: float | None = None
    first: float | None = None
    latest: float | None = None
    ended: float | None = None

    @property
    def to_first_token(self) -> float | None:
        """Seconds that the client waited for the first token."""
        return _between(self.arrived, self.first)

    @property
    def whole(self) -> float | None:
        """Seconds from the request to the end."""
        return _between(self.arrived, self.ended)

    @property
    def queue(self) -> float | None:
        """Seconds that it waited for a row, and for other prompts."""
        return _between(self.submitted, self.admitted)

    @property
    def prefill(self) -> float | None:
        """Seconds from then to the first token."""
        return _between(self.admitted, self.first)

    @property
    def decode(self) -> float | None:
        """Seconds from the first token to the last."""
        return _between(self.first, self.latest)

    @property
    def inference(self) -> float | None:
        """Prefill and decode."""
        return _between(self.admitted, self.latest)


def _between(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else end - begin
