"""A long prompt in chunks against the eager model in one pass: logits, memory, and what float32
costs.

The tiny checkpoint of the tests with a wider window reads Python source. The runtime prefills it in
chunks; the eager model, in float64, in one pass over all tokens. A token whose experts or positions
were chosen at a tie within rounding may come out otherwise, in any float32 arithmetic: so tokens
beyond the bound are counted, and the eager model in float32 is counted beside.

Exit codes: 0 reported, 1 the last token's logits, or more tokens than the eager float32 model's,
are beyond the bound.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import glm_trt
from glm_trt.engines.python.runtime import Runtime
from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint
from glm_trt.model.checkpoint.read import Checkpoint
from glm_trt.model.checkpoint.weights import load_model

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "tests" / "data" / "glm-5.1-tiny"
WORK = ROOT / "build" / "bench"
BOUND = 1e-4


@dataclass(frozen=True)
class Options:
    """The command line."""

    tokens: int
    chunk: int | None
    json: Path | None


def parse(arguments: list[str] | None = None) -> Options:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokens", type=int, default=20000, help="of the prompt (default 20000)")
    parser.add_argument("--chunk", type=int, help="of prefill (default: the backend's)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return Options(**vars(parser.parse_args(arguments)))


def wide_checkpoint(tokens: int) -> Path:
    """The tiny checkpoint with a window of `tokens` or more: nothing in its weights knows of it."""
    directory = WORK / f"tiny-{tokens}"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(TINY, directory)
    config = json.loads((TINY / "config.json").read_text())
    config["max_position_embeddings"] = max(config["max_position_embeddings"], tokens)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def prompt(runtime: Runtime, tokens: int) -> list[int]:
    """Source of the standard library, which the checkpoint was trained for."""
    assert runtime.text is not None
    ids: list[int] = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        if len(ids) < tokens:
            ids += runtime.text.encode(path.read_text(errors="replace"))
    return ids[:tokens]


def in_chunks(runtime: Runtime, ids: list[int], chunk: int) -> NDArray[np.float32]:
    """Logits [S, vocab]."""
    batch = runtime.backend.batch(1)  # grows as it goes
    parts = [
        batch.step(np.array([ids[begin : begin + chunk]]), logits="all")[0]
        for begin in range(0, len(ids), chunk)
    ]
    return np.concatenate(parts)


def eager(checkpoint: Path, ids: list[int], dtype: str) -> NDArray[np.floating]:
    """Logits [S, vocab] of one pass."""
    model = load_model(Checkpoint.open(checkpoint), dtype)
    states = model.empty_states(1, len(ids))
    logits, _ = model(torch.tensor([ids]), states, torch.zeros(1).long())
    found: NDArray[np.floating] = logits[0].numpy()
    return found


def differences(found: NDArray[np.floating], expected: NDArray[np.floating]) -> NDArray[np.float64]:
    """Relative L2 of each token's logits [S]."""
    wide = expected.astype(np.float64)
    return np.linalg.norm(found - wide, axis=-1) / np.linalg.norm(wide, axis=-1)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    checkpoint = wide_checkpoint(options.tokens)
    bundle = WORK / f"tiny-{options.tokens}-bundle"
    export_checkpoint(checkpoint, bundle, ExportOptions(dtypes=("float32",)))
    with glm_trt.load(bundle) as runtime:
        ids = prompt(runtime, options.tokens)
        chunk = options.chunk or runtime.backend.most_tokens(len(ids))
        began = time.perf_counter()
        found = in_chunks(runtime, ids, chunk)
        seconds = time.perf_counter() - began
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    exact = eager(checkpoint, ids, "float64")
    ours = differences(found, exact)
    theirs = differences(eager(checkpoint, ids, "float32"), exact)
    same = float((found.argmax(-1) == exact.argmax(-1)).mean())
    result = {
        "tokens": len(ids), "chunk": chunk, "seconds": seconds, "peak_megabytes": megabytes,
        "last_token": float(ours[-1]), "median": float(np.median(ours)),
        "beyond": int((ours > BOUND).sum()), "eager_float32_beyond": int((theirs > BOUND).sum()),
        "same_likeliest": same,
    }  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    print(
        f"{len(ids)} tokens in chunks of {chunk}: {seconds:.1f} s, {megabytes:,.0f} MB resident at "
        f"most (logits of all tokens included: {found.nbytes / 1e6:,.0f} MB)\n"
        f"logits against the eager model in float64, in one pass, relative L2: "
        f"last token {ours[-1]:.1e}, median {np.median(ours):.1e}; likeliest token the same in "
        f"{same:.3%}\n"
        f"beyond {BOUND:.0e}: {result['beyond']} tokens; of the eager model in float32 "
        f"{result['eager_float32_beyond']}"
    )
    return int(ours[-1] > BOUND or result["beyond"] > result["eager_float32_beyond"])


if __name__ == "__main__":
    sys.exit(main())
