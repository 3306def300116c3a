"""What a validation runs: prompts that the backend continues, and random ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from glm_trt.engines.bundle import Bundle

PROMPTS = (
    "def fibonacci(n):",
    "import os\n\n\nclass Reader:\n    def __init__(self, path):\n",
    "The quick brown fox jumps over the lazy dog. Die Würde des Menschen. 你好，世界。",
)
# No case is longer, whatever the model allows: the eager model in float64 is slow.
LONGEST = 300
DECODE_STEPS = 8


@dataclass(frozen=True)
class Case:
    """Ids int64 [B, S]: the first `prefill` in one pass, then token by token.

    `continued` says that what follows the prefill are the backend's own greedy tokens.
    """

    name: str
    ids: NDArray[np.int64]
    prefill: int
    continued: bool = False

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """Start and stop of each pass: the prefill, then one token each."""
        length = self.ids.shape[1]
        return [(0, self.prefill), *((i, i + 1) for i in range(self.prefill, length))]


class Generator(Protocol):
    """What can continue ids greedily."""

    def generate(
        self, input_ids: list[list[int]], max_new_tokens: int, *, eos_token_ids: tuple[int, ...]
    ) -> list[list[int]]:
        """The new tokens of each row."""
        ...


def make_cases(bundle: Bundle, backend: Generator, new_tokens: int = 16) -> list[Case]:
    """Prompts where the bundle has a tokenizer, and random ids of several lengths and batches.

    The longest random case exceeds `index_topk` where `LONGEST` allows, so that the indexer has
    to choose.
    """
    limit = bundle.max_seq_len
    generator = np.random.default_rng(0)

    def random(batch: int, length: int) -> NDArray[np.int64]:
        return generator.integers(0, bundle.config.vocab_size, (batch, length))

    cases = []
    if limit > new_tokens:
        texts = _prompt_ids(bundle) or {"random ids": random(1, 9)[0].tolist()}
        for name, prompt in texts.items():
            ids = prompt[: limit - new_tokens]
            (continuation,) = backend.generate([ids], new_tokens, eos_token_ids=())
            both = np.array([ids + continuation], np.int64)
            cases.append(Case(f"prompt {name}", both, len(ids), continued=True))
    above = min(limit, LONGEST, max(2 * bundle.config.index_topk, 96))
    for batch, length in sorted({(1, 1), (2, min(limit, 23)), (1, above)}):
        prefill = max(1, length // 2, length - DECODE_STEPS)
        cases.append(Case(f"random {batch} x {length}", random(batch, length), prefill))
    return sorted(cases, key=lambda case: case.ids.size)


def _prompt_ids(bundle: Bundle) -> dict[str, list[int]]:
    path = bundle.tokenizer_file("tokenizer.json")
    if path is None:
        return {}
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    return {repr(prompt[:24]): tokenizer.encode(prompt).ids for prompt in PROMPTS}
