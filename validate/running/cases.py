"""What a validation runs: prompts continued greedily, a held text, and random ids.

The continuations are the exact model's own. So every backend, dtype and machine runs the same
tokens, and up to the first token that a backend would choose otherwise they are what it generates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from glm_trt.export.bundle.read import Bundle
from glm_trt.model.errors import GlmTrtError

if TYPE_CHECKING:  # diff reads cases too, and needs no PyTorch
    from glm_trt.validate.running.reference import Reference

PROMPTS = (
    "def fibonacci(n):",
    "import os\n\n\nclass Reader:\n    def __init__(self, path):\n",
    "The quick brown fox jumps over the lazy dog. Die Würde des Menschen. 你好，世界。",
)
NEW_TOKENS = 16
DECODE_STEPS = 8
# Tokens of the longest row in the two passes of a ragged prefill, and the tokens of each row in the
# passes behind them: steps, and the few tokens at once that verifying drafts takes.
RAGGED, RAGGED_STEPS = (19, 11), ((1, 1, 1), (2, 1, 0), (1, 3, 2), (1, 1, 1))
# No case is longer, whatever the model allows: the eager model in float64 is slow.
LONGEST = 768
# Tokens of one pass: what engines take unless they are built for other sizes.
MOST_TOKENS = 512
HELD_TEXT = "held text"
# Numbers: a model with fewer may be held in float64 as a whole.
SMALL = 1 << 27


def is_small(bundle: Bundle) -> bool:
    """Whether the whole model is little for any machine."""
    return sum(math.prod(x.shape) for block in bundle.blocks for x in block.bindings) < SMALL


@dataclass(frozen=True)
class Piece:
    """One pass of a case: columns `begin` to `end` of its ids, of which each row takes its first
    `lengths` [B], behind `past_lengths` [B] tokens of its own.
    """

    begin: int
    end: int
    past_lengths: NDArray[np.int64]
    lengths: NDArray[np.int64]


@dataclass(frozen=True)
class Case:
    """Ids int64 [B, S]: the first `prefill` columns in few passes, then column by column.

    `continued` says that what follows the prefill is the exact model's greedy continuation.

    `ragged` [passes, B] are the tokens that each row takes of each pass, where that is not all of
    its columns: a pass has as many columns as its longest row tokens, and what is behind a shorter
    row's is padding, which its sequence does not have.
    """

    name: str
    ids: NDArray[np.int64]
    prefill: int
    continued: bool = False
    ragged: NDArray[np.int64] | None = None

    @cached_property
    def pieces(self) -> list[Piece]:
        """The passes: the prefill by `MOST_TOKENS`, then one column each; or those of `ragged`."""
        (batch, length), begins = self.ids.shape, range(0, self.prefill, MOST_TOKENS)
        if self.ragged is not None:
            widths = self.ragged.max(axis=1).tolist()
            ends = np.cumsum(widths).tolist()
            past = np.cumsum(self.ragged, axis=0) - self.ragged
            return [
                Piece(end - width, end, before, lengths)
                for width, end, before, lengths in zip(widths, ends, past, self.ragged, strict=True)
            ]
        bounds = [(i, min(i + MOST_TOKENS, self.prefill)) for i in begins]
        bounds += [(i, i + 1) for i in range(self.prefill, length)]
        return [Piece(a, b, np.full(batch, a), np.full(batch, b - a)) for a, b in bounds]

    @cached_property
    def counted(self) -> NDArray[np.bool_] | None:
        """Which of the ids [B, S] are tokens and not padding; None where all are."""
        if self.ragged is None:
            return None
        return np.concatenate([_within(piece) for piece in self.pieces], axis=1)


def _within(piece: Piece) -> NDArray[np.bool_]:
    return np.arange(piece.end - piece.begin) < piece.lengths[:, None]


@dataclass(frozen=True)
class CaseOptions:
    """What to run.

    Parameters
    ----------
    longest : tokens of the longest case at most.
    seed : of the random ids.
    text : to measure the perplexity on; None for the one that comes with the package.
    """

    longest: int = LONGEST
    seed: int = 0
    text: str | None = None


def make_cases(
    bundle: Bundle, reference: Reference, options: CaseOptions = CaseOptions()
) -> list[Case]:
    """Prompts and a text where the bundle has a tokenizer, and random ids of several lengths and
    batches, shortest first.

    One random case exceeds `index_topk` where `longest` allows, so that the indexer has to choose.
    """
    limit = min(bundle.max_seq_len, options.longest)
    generator = np.random.default_rng(options.seed)

    def random(batch: int, length: int) -> NDArray[np.int64]:
        return generator.integers(0, bundle.config.vocab_size, (batch, length))

    cases = []
    if limit > NEW_TOKENS:
        texts = _prompt_ids(bundle) or {"random ids": random(1, 9)[0].tolist()}
        prompts = [ids[: limit - NEW_TOKENS] for ids in texts.values()]
        continued = _continued(bundle, reference, prompts)
        for name, prompt, ids in zip(texts, prompts, continued, strict=True):
            cases.append(Case(f"prompt {name}", ids, len(prompt), continued=True))
    if text := _held_ids(bundle, held_text(options)):
        ids = np.array([text[:limit]], np.int64)
        cases.append(Case(HELD_TEXT, ids, _prefill(ids.shape[1])))
    above = min(limit, max(2 * bundle.config.index_topk, 96))
    for batch, length in sorted({(1, 1), (2, min(limit, 23)), (1, above), (1, limit)}):
        name = f"random {batch} x {length}"
        cases.append(Case(name, random(batch, length), _prefill(length)))
    cases.append(_ragged_case(limit, random))
    return sorted(cases, key=lambda case: case.ids.size)


def _ragged_case(limit: int, random: Callable[[int, int], NDArray[np.int64]]) -> Case:
    """Three sequences of different lengths side by side: two passes of several tokens, in the
    second of which their pasts differ and one has nothing to add, then one to three at a time.
    """
    steps = RAGGED_STEPS if limit > 2 * sum(map(max, RAGGED_STEPS)) else ()
    room = limit - sum(map(max, steps))
    first = max(1, min(RAGGED[0], 2 * room // 3))
    second = min(RAGGED[1], room - first)
    passes = [(first, max(1, 3 * first // 8), max(1, 5 * first // 8))]
    if second:
        passes.append((second // 2, second, 0))
    passes += steps
    ids = random(3, sum(map(max, passes)))
    return Case("ragged rows", ids, first + second, ragged=np.array(passes, np.int64))


def _prefill(length: int) -> int:
    return max(1, length // 2, length - DECODE_STEPS)


def _tokenized(bundle: Bundle, texts: list[str]) -> list[list[int]]:
    path = bundle.tokenizer_file("tokenizer.json")
    if path is None:
        return []
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    return [tokenizer.encode(text).ids for text in texts]


def _prompt_ids(bundle: Bundle) -> dict[str, list[int]]:
    ids = _tokenized(bundle, list(PROMPTS))
    return {repr(prompt[:24]): of for prompt, of in zip(PROMPTS, ids, strict=False)}


def read_text(path: Path) -> str:
    """The text in a file.

    Raises
    ------
    GlmTrtError
        If it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise GlmTrtError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise GlmTrtError(f"{path}: not UTF-8: {error.reason} at byte {error.start}") from None


def held_text(options: CaseOptions) -> str:
    """What perplexity is measured on."""
    if options.text is not None:
        return options.text
    return files("glm_trt.validate.running").joinpath("held_text.txt").read_text(encoding="utf-8")


def _held_ids(bundle: Bundle, text: str) -> list[int]:
    found = _tokenized(bundle, [text])
    return found[0] if found and len(found[0]) > 1 else []


def _continued(
    bundle: Bundle, reference: Reference, prompts: list[list[int]]
) -> list[NDArray[np.int64]]:
    """Ids int64 [1, n + NEW_TOKENS] of each prompt with the exact model's greedy tokens.

    One block at a time is in memory, unless the model is small.
    """
    from glm_trt.validate.running.walk import start, step_exact

    held = (
        {block.name: reference.block(block, "float64") for block in bundle.blocks}
        if is_small(bundle)
        else {}
    )
    ids = [np.array([prompt + [0] * NEW_TOKENS], np.int64) for prompt in prompts]
    flows = [start(Case("", of, len(prompt))) for of, prompt in zip(ids, prompts, strict=True)]
    states: list[dict[str, dict[str, NDArray[np.float64]]]] = [{} for _ in prompts]
    for i in range(NEW_TOKENS):
        for block in bundle.blocks:
            runner = held.get(block.name) or reference.block(block, "float64")
            for flow, of in zip(flows, states, strict=True):
                step_exact(bundle, block, runner, flow, i, of)
        for flow, prompt in zip(flows, prompts, strict=True):
            chosen = int(flow.values["exact"][i]["logits"][0, -1].argmax())
            flow.case.ids[0, len(prompt) + i] = chosen
    return ids
