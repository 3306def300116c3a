"""Tokenizer files and templates mutated at random: as transformers reads them, or refused by a row
of `docs/checkpoints.md`; never a traceback, and within bounds of time and memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from text_mutations import own_templates, run


@pytest.mark.parametrize(
    "numbers",
    [range(60), pytest.param(range(60, 1000), marks=pytest.mark.slow)],
    ids=["some", "many"],
)
def test_mutations_are_read_as_transformers_reads_them(numbers: Sequence[int]) -> None:
    seen = run(numbers, own_templates())
    assert not seen.faults, "\n".join(seen.faults)
    assert seen.counts["cases"] == len(numbers)
    assert seen.counts["load in both"] >= 0.3 * len(numbers)
    assert seen.counts["asked: equal"] >= len(numbers)
