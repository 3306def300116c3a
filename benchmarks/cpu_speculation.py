"""Speculative decoding on the CPU: tokens a second with drafts against without, the same tokens.

The tiny checkpoint continues pieces of Python source, one sequence at a time, with 0, 1, 2 and 3
drafts of its multi-token-prediction layer by turns. The acceptance is the model's; the ratio
belongs to this machine and to a model whose passes are all overhead: on a GPU a pass is bound by
the bytes of the experts, and a token more in it costs what its experts add.

Exit codes: 0 reported, 1 the tokens differ.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

import glm_trt
from glm_trt.engines.python.request import GenerateOptions
from glm_trt.engines.python.runtime import Runtime
from glm_trt.engines.python.sampling import Sampling
from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "tests" / "data" / "glm-5.1-tiny"
BUNDLE = ROOT / "build" / "bench" / "tiny-speculation"
DRAFTS = (0, 1, 2, 3)


def run(runtime: Runtime, prompts: list[list[int]], options: GenerateOptions, drafts: int) -> Any:
    """Tokens of each prompt, seconds, what the session did."""
    session = runtime.session(max_batch=1, drafts=drafts)
    began = time.perf_counter()
    requests = [session.submit(ids, options) for ids in prompts]
    session.run()
    return [x.tokens for x in requests], time.perf_counter() - began, session.statistics


def measure(
    runtime: Runtime, prompts: list[list[int]], options: GenerateOptions, rounds: int
) -> Any:
    """Figures by number of drafts.

    Raises
    ------
    SystemExit
        If drafts changed a token.
    """
    seconds: dict[int, list[float]] = {drafts: [] for drafts in DRAFTS}
    statistics = {}
    for _ in range(rounds + 1):  # the first one warms up
        tokens = {}
        for drafts in DRAFTS:
            tokens[drafts], spent, statistics[drafts] = run(runtime, prompts, options, drafts)
            seconds[drafts].append(spent)
            if tokens[drafts] != tokens[0]:
                print(f"{drafts} drafts: other tokens than without; no figures", file=sys.stderr)
                raise SystemExit(1)
    return {
        drafts: {
            "ratio": median(
                a / b for a, b in zip(seconds[0][1:], seconds[drafts][1:], strict=True)
            ),
            "acceptance": found.acceptance,
            "accepted": found.accepted,
            "drafted": found.drafted,
            "tokens_per_pass": found.new_tokens / (found.passes + len(prompts)),
        }
        for drafts, found in statistics.items()
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--new-tokens", type=int, default=32, help="of each prompt")
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds (default 3)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    export_checkpoint(TINY, BUNDLE, ExportOptions(dtypes=("float32",)))
    results = {}
    with glm_trt.load(BUNDLE) as runtime:
        assert runtime.text is not None
        source = runtime.text.encode(Path(torch.__file__).read_text())
        rng = np.random.default_rng(0)
        lengths = rng.integers(1, 200, options.prompts)
        prompts = [
            source[a : a + n]
            for a, n in zip(
                rng.integers(0, len(source) - 200, options.prompts), lengths, strict=True
            )
        ]
        for name, sampling in (("greedy", Sampling()), ("sampled", Sampling(0.8, top_p=0.95))):
            wanted = GenerateOptions(options.new_tokens, sampling, eos_token_ids=())
            results[name] = measure(runtime, prompts, wanted, options.rounds)
            print_table(name, results[name], options)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    return 0


def print_table(name: str, figures: dict[int, Any], options: argparse.Namespace) -> None:
    print(
        f"\n{name}: {options.prompts} prompts, {options.new_tokens} tokens each, median of "
        f"{options.rounds} rounds; the same tokens in every row"
    )
    print(f"{'drafts':>8}{'accepted':>10}{'tokens a pass':>15}{'speed':>8}   by place")
    for drafts, x in figures.items():
        share = "" if x["acceptance"] is None else f"{x['acceptance']:.1%}"
        pairs = zip(x["accepted"], x["drafted"], strict=True)
        places = ", ".join(f"{accepted} of {drafted}" for accepted, drafted in pairs)
        row = f"{drafts:8}{share:>10}{x['tokens_per_pass']:15.2f}{x['ratio']:7.2f}x   {places}"
        print(row.rstrip())


if __name__ == "__main__":
    sys.exit(main())
