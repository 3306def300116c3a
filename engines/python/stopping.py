"""When a sequence ends: by text."""

from __future__ import annotations

from glm_trt.model.errors import GlmTrtError


class StopStrings:
    """Watches text that comes piece by piece for any of `stops`.

    Text that may be the beginning of a stop string is held back until it is known not to be one; a
    stop string itself is never given.

    Attributes
    ----------
    stop : the one that was found; None until then.

    Raises
    ------
    GlmTrtError
        If a stop string is empty.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        if not all(stops):
            raise GlmTrtError("stop: expected strings that are not empty")
        self._stops = stops
        self._held = ""
        self.stop: str | None = None

    @property
    def found(self) -> bool:
        """Whether any was."""
        return self.stop is not None

    def feed(self, piece: str) -> str:
        """The text that is sure to be wanted; `stop` is set at the first stop string."""
        if self.found:
            return ""
        text = self._held + piece
        places = [(text.find(stop), stop) for stop in self._stops if stop in text]
        if places:
            place, self.stop = min(places, key=lambda found: found[0])
            self._held = ""
            return text[:place]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def rest(self) -> str:
        """What is held back, when no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How long an end of `text` begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
