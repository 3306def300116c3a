"""What rounding the decay of linear layers to bfloat16 costs, against transformers.

transformers computes the log decay g in float32 and gives it so to the delta rule. ONNX has one
type for queries, keys, values, decay and update rate, so graphs in bfloat16 round g, and the eager
model here rounds as they do. The first table is of one layer: the state kept after so many tokens,
by transformers' own rule, with g rounded, where it changes from token to token and where a head
keeps one g, so that all its errors are alike; and beside it with queries, keys, values and rates
rounded, which any model in bfloat16 does. The second is of whole small models: logits against
transformers in float32 on the same weights.

Exit codes: 0 reported, 1 the rounded decay costs more than all other rounding together in a model.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "model"))

from hybrids import make_hybrid, save_hybrid
from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

from glm_trt.model.checkpoint.read import Checkpoint
from glm_trt.model.checkpoint.weights import load_model
from glm_trt.model.linear_attention import GatedDeltaNet

CASES = ((0.5, 64), (0.5, 1024), (0.1, 1024), (0.02, 1024), (0.02, 8192), (0.005, 8192))
HEADS, WIDTH = 8, 64
MODELS = ("all_linear", "linear_first", "three_to_one")
LENGTH, SEEDS = 200, 3


def relative(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference, of that of what is expected."""
    return float((found - expected).double().norm() / expected.double().norm())


def rounded(x: Tensor) -> Tensor:
    """As bfloat16 holds it."""
    return x.bfloat16().float()


def state_after(query: Tensor, key: Tensor, value: Tensor, decay: Tensor, rate: Tensor) -> Tensor:
    """The state that transformers keeps; [1, S, heads, width] and [1, S, heads]."""
    state: Tensor = torch_chunk_gated_delta_rule(
        query, key, value, g=decay, beta=rate, output_final_state=True
    )[1]
    return state


def states(mean: float, tokens: int) -> dict[str, Any]:
    """Errors of the kept state, where g is spread evenly between 0 and twice the mean."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, tokens, HEADS)

    def normal() -> Tensor:
        return torch.randn(*shape, WIDTH, generator=generator)

    query, key = (torch.nn.functional.normalize(normal(), dim=-1) for _ in "qk")
    value, rate = normal(), torch.rand(shape, generator=generator)
    found: dict[str, Any] = {"mean": mean, "tokens": tokens}
    for what, drawn in (("steady", (1, 1, HEADS)), ("decay", shape)):
        decay = (-2 * mean * torch.rand(drawn, generator=generator)).expand(shape)
        exact = state_after(query, key, value, decay, rate)
        found[what] = relative(state_after(query, key, value, rounded(decay), rate), exact)
    of_others = state_after(*map(rounded, (query, key, value)), decay, rounded(rate))
    return found | {"others": relative(of_others, exact)}


class ExactGates(GatedDeltaNet):
    """The decay stays in float32."""

    def _gates(self, x: Tensor, lengths: Tensor, length: int) -> tuple[Tensor, Tensor]:
        decay, rate = super()._gates(x.float(), lengths, length)
        return decay, rate.to(x.dtype)


def logits(name: str, seed: int, directory: Path) -> dict[str, float]:
    """Errors of a model's logits against transformers in float32."""
    oracle = make_hybrid(name, seed)
    with torch.no_grad():
        for parameter in oracle.parameters():
            parameter.copy_(rounded(parameter))
        ids = torch.randint(0, 97, (2, LENGTH), generator=torch.Generator().manual_seed(seed))
        expected = oracle(ids, use_cache=False).logits
        checkpoint = Checkpoint.open(save_hybrid(oracle, directory))
        theirs = copy.deepcopy(oracle).bfloat16()
        for ours, wide in zip(theirs.modules(), oracle.modules(), strict=True):
            for buffer, tensor in wide.named_buffers(recurse=False):
                setattr(ours, buffer, tensor)  # rotary frequencies stay in float32
        found = {"theirs": relative(theirs(ids, use_cache=False).logits.float(), expected)}
        model = load_model(checkpoint, "bfloat16")
        for what in ("ours", "exact"):
            if what == "exact":
                for module in model.modules():
                    if isinstance(module, GatedDeltaNet):
                        module.__class__ = ExactGates
                        # The gates' own product in bfloat16, as before.
                        module.in_proj_ba.register_forward_pre_hook(lambda m, x: x[0].to(m.weight))
            states = model.empty_states(*ids.shape)
            made, _ = model(ids, states, torch.zeros(len(ids), dtype=torch.int64))
            found[what] = relative(made.float(), expected)
    return found


def main() -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    print(f"{'mean decay':>10}{'tokens':>8}{'g rounded':>11}{'one g':>9}{'others':>9}")
    rows = [states(mean, tokens) for mean, tokens in CASES]
    for row in rows:
        print(
            f"{row['mean']:>10}{row['tokens']:>8}{row['decay']:>11.3%}{row['steady']:>9.3%}"
            f"{row['others']:>9.3%}",
            flush=True,
        )
    print(f"\n{'logits in bfloat16':<20}{'transformers':>14}{'ours':>10}{'decay in float32':>19}")
    models = {}
    for name in MODELS:
        found = []
        for seed in range(SEEDS):
            with tempfile.TemporaryDirectory() as directory:
                found.append(logits(name, seed, Path(directory)))
        models[name] = {key: sum(x[key] for x in found) / SEEDS for key in found[0]}
        of = models[name]
        print(f"{name:<20}{of['theirs']:>14.3%}{of['ours']:>10.3%}{of['exact']:>19.3%}", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"states": rows, "models": models}, indent=1))
    return int(any(of["ours"] ** 2 > 2 * of["exact"] ** 2 for of in models.values()))


if __name__ == "__main__":
    sys.exit(main())
