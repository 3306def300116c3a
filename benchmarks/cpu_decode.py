"""Decoding on the CPU: the onnxruntime backend against transformers, float32, the same tokens.

Both sides decode greedily in one process with the same threads, in turns; a table is printed only
if every side chose the same tokens in every round. Two checkpoints: the tiny one of the tests,
where overhead counts, and a generated one whose active weights are read from memory for each
token. Tokens a second belong to the machine; the claim is the ratio to the faster transformers.

Exit codes: 0 reported, 1 the sides chose different tokens.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np
import torch
from transformers import DynamicCache, GlmMoeDsaConfig, GlmMoeDsaForCausalLM
from transformers.utils import logging as transformers_logging

from glm_trt.engines.python.onnxruntime_backend import OnnxruntimeBackend
from glm_trt.engines.python.request import GenerateOptions
from glm_trt.engines.python.runtime import Runtime
from glm_trt.export.bundle.read import Bundle
from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint
from glm_trt.model.config import ModelConfig

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "tests" / "data" / "glm-5.1-tiny"
WORK = ROOT / "build" / "bench"
OURS = "onnxruntime"
EXPERTS = ("eager", "grouped_mm")  # transformers' two forms of the experts

# Beyond this share of other processes a comparison says little: transformers' threads wait for
# one another and lose far more than the share.
QUIET = 0.05

# 3.1 GB of float32, a third of it active. Positions stay within index_topk: beyond it,
# transformers breaks the indexer's exact-zero ties in another way than the contract does.
GENERATED: dict[str, Any] = dict(
    vocab_size=16384, hidden_size=2048, intermediate_size=6144, moe_intermediate_size=1024,
    num_hidden_layers=4, first_k_dense_replace=1, num_attention_heads=16, num_key_value_heads=16,
    n_shared_experts=1, n_routed_experts=32, num_experts_per_tok=8, n_group=1, topk_group=1,
    q_lora_rank=768, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
    index_topk=1024, index_head_dim=128, index_n_heads=16, max_position_embeddings=4096,
    rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    pad_token_id=0, bos_token_id=None, eos_token_id=0,
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One prompt and its continuation."""

    prefill_seconds: float
    decode_seconds: float
    tokens: list[int]


class Side(Protocol):
    """What is compared."""

    name: str

    def run(self, prompt: np.ndarray, new_tokens: int) -> Run:
        """Prefill `prompt` [1, S], then decode greedily until there are `new_tokens`."""
        ...


class Transformers:
    """transformers' model with its KV cache, without the overhead of its `generate`."""

    def __init__(self, model: GlmMoeDsaForCausalLM, experts: str) -> None:
        self.model, self.experts, self.name = model, experts, f"transformers {experts}"

    @torch.inference_mode()
    def run(self, prompt: np.ndarray, new_tokens: int) -> Run:
        """As in `Side`."""
        self.model.set_experts_implementation(self.experts)
        cache = DynamicCache(config=self.model.config)
        ids, tokens, marks = torch.from_numpy(prompt), [], [time.perf_counter()]
        for _ in range(new_tokens):
            logits = self.model(ids, past_key_values=cache, logits_to_keep=1).logits
            ids = logits[:, -1].argmax(-1, keepdim=True)
            tokens.append(int(ids))
            marks.append(time.perf_counter())
        return Run(marks[1] - marks[0], marks[-1] - marks[1], tokens)


class Onnxruntime:
    """The runtime as its users have it: a session, on the onnxruntime backend of a bundle."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime, self.name = runtime, OURS

    def run(self, prompt: np.ndarray, new_tokens: int) -> Run:
        """As in `Side`."""
        session = self.runtime.session(max_batch=1)
        marks = [time.perf_counter()]
        request = session.submit(
            prompt[0],
            GenerateOptions(new_tokens, eos_token_ids=()),
            on_token=lambda _: marks.append(time.perf_counter()),
        )
        session.run()
        return Run(marks[1] - marks[0], marks[-1] - marks[1], request.tokens)


def first_difference(runs: dict[str, list[int]]) -> str | None:
    """Where the first two sides part, None if every side chose the same tokens."""
    (name, expected), *others = runs.items()
    for other, tokens in others:
        for i, (a, b) in enumerate(zip(expected, tokens, strict=True)):
            if a != b:
                return f"token {i}: {name} chose {a}, {other} chose {b}"
    return None


def processor_seconds() -> tuple[float, float]:
    """Seconds of processor time so far: of all other processes, and in all (0, 0 if unknown)."""
    try:
        line = Path("/proc/stat").read_text().splitlines()[0]
    except OSError:
        return 0.0, 0.0
    ticks = [int(field) / os.sysconf("SC_CLK_TCK") for field in line.split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4] - sum(os.times()[:2]), sum(ticks)  # less idle, iowait


def active_bytes(config: ModelConfig, bundle: Bundle) -> int:
    """Bytes of float32 weights that one decoded token reads (one row of the embedding)."""
    total = 0
    for block in bundle.blocks:
        for binding in block.bindings:
            size = int(np.prod(binding.shape))
            if binding.name.startswith("mlp.experts."):
                size = size // config.n_routed_experts * config.num_experts_per_tok
            total += 0 if block.kind == "embedding" else size
    return 4 * total


def generated_checkpoint() -> Path:
    """Random weights of a fixed seed, written once by transformers itself."""
    directory = WORK / "generated"
    key = json.dumps(GENERATED, sort_keys=True)
    done = directory / "benchmark.json"
    if done.is_file() and done.read_text() == key:
        return directory
    shutil.rmtree(directory, ignore_errors=True)
    torch.manual_seed(0)
    model = GlmMoeDsaForCausalLM(GlmMoeDsaConfig(**GENERATED, dtype="float32"))
    model.save_pretrained(directory)
    done.write_text(key)
    return directory


def measure(
    checkpoint: Path, prompt_tokens: int, new_tokens: int, rounds: int, threads: int
) -> dict[str, Any]:
    """Run the sides in turns and sum up; see `summary` for what comes back.

    Raises
    ------
    SystemExit
        If the sides chose different tokens.
    """
    bundle_directory = WORK / f"{checkpoint.name}-bundle"
    export_checkpoint(checkpoint, bundle_directory, ExportOptions(dtypes=("float32",)))
    bundle = Bundle.open(bundle_directory)
    model = GlmMoeDsaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    rng = np.random.default_rng(0)
    prompt = rng.integers(1, bundle.config.vocab_size, (1, prompt_tokens))
    with Runtime(OnnxruntimeBackend(bundle, threads)) as runtime:
        sides: list[Side] = [Transformers(model, experts) for experts in EXPERTS]
        sides.append(Onnxruntime(runtime))
        runs: list[dict[str, Run]] = []
        others_before, all_before = processor_seconds()
        for i in range(rounds + 1):  # the first one warms up
            runs.append({side.name: side.run(prompt, new_tokens) for side in sides})
            difference = first_difference({name: run.tokens for name, run in runs[-1].items()})
            if difference is not None:
                print(f"{checkpoint.name}, round {i}: {difference}; no figures", file=sys.stderr)
                raise SystemExit(1)
            sides = sides[1:] + sides[:1]
        others, everything = processor_seconds()
    return {
        "checkpoint": checkpoint.name,
        "active_megabytes": active_bytes(bundle.config, bundle) / 1e6,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "threads": threads,
        "rounds": rounds,
        "others_share": (others - others_before) / max(everything - all_before, 1e-9),
    } | summary(runs[1:], prompt_tokens, new_tokens)


def summary(
    runs: list[dict[str, Run]], prompt_tokens: int, new_tokens: int
) -> dict[str, dict[str, Any]]:
    """Medians of tokens a second by side, and of the rounds' ratios to the faster transformers."""
    speeds = {
        "prefill": {
            name: [prompt_tokens / r[name].prefill_seconds for r in runs] for name in runs[0]
        },
        "decode": {
            name: [(new_tokens - 1) / r[name].decode_seconds for r in runs] for name in runs[0]
        },
    }
    result = {}
    for phase, rates in speeds.items():
        theirs = [name for name in rates if name != OURS]
        best = max(theirs, key=lambda name: median(rates[name]))
        ratios = [a / b for a, b in zip(rates[OURS], rates[best], strict=True)]
        result[phase] = {
            "tokens_per_second": {name: median(values) for name, values in rates.items()},
            "faster_transformers": best,
            "ratio": median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
        }
    return result


def print_table(result: dict[str, Any]) -> None:
    megabytes = result["active_megabytes"]
    print(
        f"\n{result['checkpoint']}: {megabytes:.1f} MB of weights active a token, float32, "
        f"{result['threads']} threads, {result['prompt_tokens']} + {result['new_tokens']} tokens, "
        f"median of {result['rounds']} rounds; the same tokens on every side"
    )
    if result["others_share"] > QUIET:
        print(
            f"warning: other processes took {result['others_share']:.0%} of the processors; "
            f"these figures are not to be quoted"
        )
    print(f"{'':24}{'prefill tok/s':>14}{'decode tok/s':>14}{'decode GB/s':>13}")
    for name, decode in result["decode"]["tokens_per_second"].items():
        prefill = result["prefill"]["tokens_per_second"][name]
        print(f"{name:24}{prefill:14.1f}{decode:14.2f}{decode * megabytes / 1e3:13.1f}")
    for phase in ("prefill", "decode"):
        found = result[phase]
        low, high = found["ratio_range"]
        print(
            f"{phase}: {OURS} is {found['ratio']:.2f} x {found['faster_transformers']} "
            f"(rounds {low:.2f} … {high:.2f})"
        )


@dataclass(frozen=True)
class Options:
    """The command line."""

    rounds: int
    new_tokens: int
    threads: int
    only: str | None
    json: Path | None


def parse(arguments: list[str] | None = None) -> Options:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default 5)")
    parser.add_argument("--new-tokens", type=int, default=32, help="a run's tokens (default 32)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", choices=("tiny", "generated"))
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = Options(**vars(parser.parse_args(arguments)))
    if options.new_tokens < 2 or options.rounds < 1 or options.threads < 1:
        parser.error("--new-tokens takes 2 or more, --rounds and --threads 1 or more")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    results = []
    for name, prompt_tokens in (("tiny", 24), ("generated", 128)):
        if options.only in (None, name):
            checkpoint = TINY if name == "tiny" else generated_checkpoint()
            gc.collect()
            results.append(
                measure(
                    checkpoint, prompt_tokens, options.new_tokens, options.rounds, options.threads
                )
            )
            print_table(results[-1])
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
