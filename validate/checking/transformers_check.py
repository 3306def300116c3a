"""One line of a report that shares no code with ours: transformers' own model on the same prompts.

Truth is our eager model in float64. That it is the published model at all is what transformers
says: it reads the checkpoint with its own reader and runs its own blocks, in float32. It holds
every weight, so it is asked where the model is no larger than a runtime may be.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from glm_trt.export.bundle.read import Bundle
from glm_trt.model.requirements import installed
from glm_trt.validate.judging.measure import divergence
from glm_trt.validate.running.reference import Reference
from glm_trt.validate.running.runtime_check import reason_to_skip
from glm_trt.validate.running.walk import Flow

Array = NDArray[Any]
Report = dict[str, Any]
# Where most tokens are further from our eager model than this, in nats, it is another model. Two
# right ones in float32 and float64 are 1e-13 apart; a choice that rounding decides moves a few
# tokens, not half of them.
MOST_DIVERGENCE = 1e-6


def transformers_line(bundle: Bundle, reference: Reference, flows: list[Flow]) -> Report:
    """What transformers makes of the prompts, beside the backend and the exact model.

    To be called when the flows have passed the head: their logits are compared.
    """
    line: Report = {"skipped": None, "version": installed("transformers"), "tokens": 0,
                    "backend": None, "exact": None, "problem": None}  # fmt: skip
    prompts = [flow for flow in flows if flow.case.continued]
    line["skipped"] = _reason(bundle, reference) if prompts else "no prompt is that short"
    if line["skipped"] is not None:
        return line
    try:
        model = _load(Path(reference.source))
        with torch.no_grad():
            theirs = [
                model(torch.from_numpy(flow.case.ids), use_cache=False).logits.double().numpy()
                for flow in prompts
            ]
    except Exception as error:  # of any kind: the library's own affair
        text = (str(error).strip().splitlines() or [""])[0]
        return line | {"skipped": f"it does not run: {type(error).__name__}: {text[:200]}"}
    line["tokens"] = sum(x.shape[1] for x in theirs)
    for name, chain in (("backend", "found"), ("exact", "exact")):
        ours = [_logits(flow, chain) for flow in prompts]
        line[name] = _compared(theirs, ours)
    apart = line["exact"]["median_kl_divergence"]
    if apart is None or apart > MOST_DIVERGENCE:
        line["problem"] = (
            f"transformers {line['version']} and the eager model in float64 are "
            f"{'not finite' if apart is None else f'{apart:.1e} nats'} apart in the median of "
            f"{line['tokens']} tokens, {MOST_DIVERGENCE:.0e} is allowed: the yardstick is wrong"
        )
    return line


def _reason(bundle: Bundle, reference: Reference) -> str | None:
    """Why transformers is not asked; None where it is."""
    config = bundle.config
    layers = range(config.num_hidden_layers)
    if installed("transformers") is None:
        return "transformers is not installed"
    if reference.published is None:
        return "the bundle has no checkpoint but itself"
    if {config.attention_kind(layer) for layer in layers} & {"linear", "full"}:
        return "transformers has no such hybrid"
    if any(x.dtype == "int8" for block in bundle.blocks for x in block.bindings):
        return "transformers runs weights that are stored so narrow on a GPU alone"
    return reason_to_skip(bundle)


def _load(directory: Path) -> Any:
    """The model in float32, from files of safetensors on this machine alone, with no code of the
    checkpoint's own.
    """
    import transformers

    with _quiet():
        return transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager",
            experts_implementation="eager", local_files_only=True, use_safetensors=True,
            trust_remote_code=False,
        ).eval()  # fmt: skip


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's bars and warnings; afterwards they are as they were, as are the hub's,
    which it turns off with its own.
    """
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from transformers.utils import logging as library

    level, bars = library.get_verbosity(), library.is_progress_bar_enabled()
    hub_is_quiet = are_progress_bars_disabled()
    library.set_verbosity_error()
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(level)
        if bars:
            library.enable_progress_bar()
        if not hub_is_quiet:
            enable_progress_bars()
        elif bars:
            disable_progress_bars()


def _logits(flow: Flow, chain: str) -> Array:
    pieces = [piece["logits"] for piece in flow.values[chain]]
    return np.concatenate(pieces, axis=1).astype(np.float64)


def _compared(theirs: list[Array], ours: list[Array]) -> Report:
    """Share of tokens whose likeliest is the same, and KL(transformers ‖ ours) in nats."""
    pairs = list(zip(theirs, ours, strict=True))
    equal = np.concatenate([(a.argmax(-1) == b.argmax(-1)).ravel() for a, b in pairs])
    apart = np.concatenate([divergence(a, b).ravel() for a, b in pairs])
    return {
        "top1": float(equal.mean()), "median_kl_divergence": _number(float(np.median(apart))),
        "max_kl_divergence": _number(float(apart.max())),
    }  # fmt: skip


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
