"""The C++ runtime draws the Python runtime's tokens."""

from __future__ import annotations

import math
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glm_trt.engines.python.sampling import Sampling, choose, log_probabilities


def cases(count: int, vocabulary: int, seed: int) -> list[tuple[Any, Sampling, int, Any]]:
    """Logits, options, place and what has occurred, of every kind."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        logits = rng.normal(0, rng.choice([0.5, 3, 10]), vocabulary).astype(np.float32)
        if i % 3 == 0:
            logits = np.round(logits)  # ties
        if i % 5 == 0:
            logits[rng.integers(0, vocabulary, vocabulary // 2)] = -np.inf
        sampling = Sampling(
            temperature=float(rng.choice([0, 0.3, 1, 1.7])),
            top_k=int(rng.choice([0, 1, 20, vocabulary + 5])),
            top_p=float(rng.choice([1, 0.1, 0.9, 0.999])),
            min_p=float(rng.choice([0, 0.01, 0.5])),
            repetition_penalty=float(rng.choice([1, 1.3, 0.8])),
            seed=int(rng.integers(0, 1 << 63)) * 2 + 1,
        )
        occurred = rng.integers(0, vocabulary, rng.integers(0, 50))
        made.append((logits, sampling, int(rng.integers(0, 200_000)), occurred))
    return made


@pytest.mark.parametrize(("count", "vocabulary"), [(600, 97), (300, 2048), (30, 154_880)])
def test_the_same_tokens(tmp_path: Path, probe: Path, count: int, vocabulary: int) -> None:
    made = cases(count, vocabulary, vocabulary)
    path = tmp_path / "cases"
    with path.open("wb") as file:
        for logits, s, position, occurred in made:
            file.write(struct.pack("<dqdddQ", s.temperature, s.top_k, s.top_p, s.min_p,
                                   s.repetition_penalty, s.seed))  # fmt: skip
            file.write(struct.pack("<qqq", position, len(occurred), len(logits)))
            file.write(occurred.astype(np.int64).tobytes() + logits.tobytes())
    done = subprocess.run([probe, "sample", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == count
    for i, (line, (logits, sampling, position, occurred)) in enumerate(
        zip(lines, made, strict=True)
    ):
        token = choose(logits, sampling, position, occurred)
        chosen, top = log_probabilities(logits, token, 2)
        assert int(line[0]) == token, (i, sampling)
        assert math.isclose(float(line[1]), chosen, abs_tol=1e-10), i
        assert int(line[2]) == top[1][0]
        assert math.isclose(float(line[3]), top[1][1], abs_tol=1e-10), i
