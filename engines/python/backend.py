"""What a backend gives to the runtime: states of sequences side by side, and passes over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from glm_trt.export.bundle.read import Bundle
from glm_trt.model.errors import GlmTrtError

Array = NDArray[Any]
# Of which tokens of a pass logits are wanted.
Kept = Literal["none", "last", "all"]


@dataclass(frozen=True)
class RowState:
    """The states of one sequence, apart from any batch.

    Attributes
    ----------
    length : how many tokens they hold.
    prediction_length : how many of these the prediction layer has seen, each with its follower.
    arrays : block name → state name → array, those with a capacity cut to the length.
    cuttable : whether the states of fewer tokens are a part of them: not where a state sums up all.
    """

    length: int
    prediction_length: int
    arrays: dict[str, dict[str, Array]]
    cuttable: bool


class Batch(Protocol):
    """States of sequences side by side as rows, and passes over neighbouring rows.

    A pass takes n of the rows, `first` … `first` + n − 1, and up to S tokens of each. B rows, ids
    int64, logits float32.
    """

    lengths: NDArray[np.int64]
    """[B]: how many tokens the states of each row hold."""

    def step(
        self, ids: Array, lengths: Array | None = None, *, first: int = 0, logits: Kept = "last"
    ) -> NDArray[np.float32]:
        """Append ids [n, S] to n rows; logits [n, S or 1 or 0, vocab].

        Parameters
        ----------
        lengths : [n], how many of each row's S ids to append, all if None. What stands behind them
            is padding, whose logits mean nothing; so do the last token's of a row without any.

        Raises
        ------
        GlmTrtError
            If a sequence would outgrow the bundle's `max_seq_len`.
        """
        ...

    def keep(self, counts: Array) -> None:
        """Of the tokens that the latest `step` appended to its rows, keep the first counts [n]."""
        ...

    def predict(self, following: Array, lengths: Array) -> NDArray[np.float32]:
        """Run the prediction layer behind the latest `step`: logits [n, 1, vocab] of the token
        after the last of those that follow.

        Parameters
        ----------
        following : [n, S], the token that follows each of the step's, as far as they count.
        lengths : [n], how many of each row's S count.
        """
        ...

    def predict_further(self, ids: Array) -> NDArray[np.float32]:
        """Once more, from what the prediction layer itself made: ids [n, 1] follow the latest
        `predict`; logits [n, 1, vocab] of the token after them. The next `predict` overwrites it.
        """
        ...

    def align(self, count: int, *, first: int = 0) -> None:
        """Make rows ready for a common pass: what they hold stays the same. `step` does it too, but
        where that was needed the pass cannot be taken back.
        """
        ...

    def standing(self) -> Any:
        """What every row holds, for `return_to`; no state is copied."""
        ...

    def return_to(self, standing: Any) -> None:
        """Take back one `step` over aligned rows, finished or broken off anywhere, and what it was
        followed by; also what was done since to rows that were empty or are no longer wanted.
        """
        ...

    def clear(self, row: int) -> None:
        """Begin an empty sequence in `row`."""
        ...

    def move(self, source: int, target: int) -> None:
        """Put the sequence of row `source` into row `target`; what was there is lost."""
        ...

    def save(self, row: int) -> RowState:
        """A copy of the states of `row`."""
        ...

    def restore(self, row: int, state: RowState, length: int, prediction_length: int) -> None:
        """Put the first `length` tokens of `state` into `row`: all, unless it is cuttable."""
        ...


def check_room(past: Array, appended: Array, limit: int) -> None:
    """Refuse to append so many tokens [n] to sequences of `past` [n] if one would be too long.

    Raises
    ------
    GlmTrtError
        If a sequence would have more than `limit` tokens.
    """
    longest = int((past + appended).max())
    if longest > limit:
        raise GlmTrtError(
            f"sequence of {longest} tokens: the bundle was exported for {limit} (--max-seq-len)"
        )


class Backend(Protocol):
    """What runs the blocks of a bundle."""

    bundle: Bundle
    dtype: str

    def batch(self, rows: int, capacity: int = 1, *, predict: bool = False) -> Batch:
        """Empty states for `rows` sequences, with room for `capacity` tokens each to begin with.

        Parameters
        ----------
        predict : with those of the prediction layer.
        """
        ...

    def most_tokens(self, length: int) -> int:
        """How many tokens of one sequence a pass takes at most, so that sequences of up to `length`
        tokens need bounded memory.
        """
        ...

    def run_block(self, block: Any, inputs: dict[str, Array]) -> dict[str, Array]:
        """One block on arrays, all outputs by name; what validation compares."""
        ...

    def mark(self, kind: str, names: tuple[str, ...]) -> None:
        """Let `run_block` give these inner values of a kind's graph too, and no others, as far as
        they exist where it runs; for finding a fault.
        """
        ...

    def release(self, block: Any) -> None:
        """Let go of a block's weights, where they can be loaded again when it next runs."""
        ...

    def close(self) -> None:
        """Release everything."""
        ...
