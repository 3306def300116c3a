"""The plan: everything known from a config alone, as one JSON object.

`docs/plan.md` says what each number means; `FORMAT_VERSION` changes where a field does.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from glm_trt.engines.planning import host
from glm_trt.engines.planning import memory as m
from glm_trt.engines.planning.decode import decode_bound
from glm_trt.engines.planning.gpus import GPUS, GpuModel, find_gpu
from glm_trt.engines.planning.limits import missing, untried
from glm_trt.engines.planning.source import Source
from glm_trt.engines.planning.weights import Weights, gpu_counts
from glm_trt.model.config import ModelConfig
from glm_trt.model.errors import GlmTrtError
from glm_trt.model.quantization import PRECISIONS, Quantization

FORMAT, FORMAT_VERSION = "glm-trt plan", 1
CONTEXTS = (1_024, 98_000, 195_000)

Plan = dict[str, Any]


@dataclass(frozen=True)
class PlanOptions:
    """What to plan for.

    Parameters
    ----------
    gpus : names in `GPUS`; None means all.
    contexts : tokens of each sequence; None means those of `CONTEXTS` that the model has.
    batch : sequences at once.
    precisions : of `PRECISIONS`; None means all, or that which the checkpoint is quantised in.
    with_mtp : hold and read the prediction layers too.
    """

    gpus: tuple[str, ...] | None = None
    contexts: tuple[int, ...] | None = None
    batch: int = 1
    precisions: tuple[str, ...] | None = None
    with_mtp: bool = False

    def chosen_contexts(self, config: ModelConfig) -> tuple[int, ...]:
        """Checked and sorted."""
        most = config.max_position_embeddings
        if self.contexts is None:
            usual = [context for context in CONTEXTS if context < most]
            return tuple(usual if len(usual) == len(CONTEXTS) else [*usual, most])
        for context in self.contexts:
            if not 1 <= context <= most:
                raise GlmTrtError(
                    f"--context: expected 1 to {most:,} (max_position_embeddings), found {context}"
                )
        return tuple(sorted(set(self.contexts)))

    def chosen_precisions(self, quantisation: Quantization) -> tuple[str, ...]:
        """In the order of `PRECISIONS`."""
        if self.precisions is None:
            stored = quantisation.precision
            return PRECISIONS if stored == "bf16" else (stored,)
        return tuple(name for name in PRECISIONS if name in self.precisions)

    def chosen_gpus(self) -> tuple[GpuModel, ...]:
        """In the order of `GPUS`."""
        names = {find_gpu(name).name for name in self.gpus or GPUS}
        return tuple(gpu for gpu in GPUS.values() if gpu.name in names)


def make_plan(source: Source, options: PlanOptions) -> Plan:
    """Plan for `source`.

    Raises
    ------
    GlmTrtError
        If a GPU is not known, or a context or batch cannot be.
    """
    if options.batch < 1:
        raise GlmTrtError(f"--batch: expected at least 1, found {options.batch}")
    config = source.config
    contexts = options.chosen_contexts(config)
    precisions = options.chosen_precisions(source.config.quantization)
    gpus = options.chosen_gpus()
    by_precision = {name: weights_in(source, name, options.with_mtp) for name in precisions}
    fit = [
        _fit(weights, gpu, contexts, options.batch)
        for weights in by_precision.values()
        for gpu in gpus
    ]
    recommended = [_recommend(fit, name, options.batch) for name in precisions]
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "source": {
            "name": source.name,
            "precision": source.config.quantization.precision,
            "files": source.files,
            "stored_bytes": source.stored_bytes,
        },
        "options": {"contexts": list(contexts), "batch": options.batch, "mtp": options.with_mtp},
        "model": _model(config),
        "parameters": _parameters(next(iter(by_precision.values()))),
        "weights": {name: _stored(weights) for name, weights in by_precision.items()},
        "state": _state(config, contexts, options),
        "workspace": [
            {"context": context, **m.workspace_bytes(config, context, options.batch)}
            for context in contexts
        ],
        "export": {name: host.export_needs(weights) for name, weights in by_precision.items()},
        "build": host.build_needs(config),
        "gpus": [asdict(gpu) | {"native": list(gpu.native)} for gpu in gpus],
        "fit": fit,
        "recommended": recommended,
        "decode": [
            row for choice in recommended if choice["gpu"]
            for row in _decode(by_precision[choice["precision"]], choice, contexts, options.batch)
        ],
    }  # fmt: skip


def weights_in(source: Source, precision: str, with_mtp: bool) -> Weights:
    """The weights of `source` in a precision: by its own lists where it is stored in that, else as
    releases in that precision do.
    """
    own = source.config.quantization
    quantisation = own if own.precision == precision else Quantization(precision)
    return Weights(source.config, quantisation, with_mtp)


def _model(config: ModelConfig) -> dict[str, Any]:
    return {
        "layers": config.num_hidden_layers,
        "attention": dict(Counter(config.attention_kinds)),
        "mlp": dict(Counter(config.mlp_layer_types)),
        "prediction_layers": config.num_nextn_predict_layers,
        "max_context": config.max_position_embeddings,
    }


def _parameters(weights: Weights) -> dict[str, Any]:
    components = weights.parameters()
    mtp = components.pop("mtp", 0)
    without = sum(components.values())
    return {
        "components": components,
        "without_mtp": without,
        "mtp": mtp,
        "with_mtp": without + mtp,
        "active_per_token": weights.active_parameters(),
        "tensors": weights.tensors(),
    }


def _stored(weights: Weights) -> dict[str, int]:
    return {
        "bytes": weights.stored_bytes(with_mtp=False),
        "bytes_with_mtp": weights.stored_bytes(with_mtp=True),
        "quantised_bytes": weights.quantised_bytes(),
    }


def _state(config: ModelConfig, contexts: tuple[int, ...], options: PlanOptions) -> dict[str, Any]:
    states = m.state_bytes(config, options.with_mtp)
    token, sequence = sum(states.per_token.values()), sum(states.per_sequence.values())
    return {
        "bytes_per_token": token,
        "bytes_per_sequence": sequence,
        "per_token": states.per_token,
        "per_sequence": states.per_sequence,
        "contexts": [
            {"context": context, "bytes": options.batch * (token * context + sequence)}
            for context in contexts
        ],
    }


def _fit(weights: Weights, gpu: GpuModel, contexts: tuple[int, ...], batch: int) -> dict[str, Any]:
    precision = weights.quantisation.precision
    counts = gpu_counts(weights.config)
    rows = []
    for context in contexts:
        row: dict[str, Any] = {"context": context, "gpus": None}
        count = m.gpus_needed(weights, gpu, counts, context, batch)
        if count is not None:
            load = m.rank_load(weights, count, context, batch)
            row |= {
                "gpus": count,
                "weights_bytes": load.weights,
                "state_bytes": load.state,
                "workspace_bytes": load.workspace,
                "used_bytes": load.total,
                "free_bytes": m.usable_bytes(gpu) - load.total,
                "max_batch": m.largest_batch(weights, gpu, count, context),
                "max_context": m.largest_context(weights, gpu, count, batch),
                "missing": missing(gpu, count, batch),
                "untried": untried(gpu),
            }
        rows.append(row)
    return {
        "gpu": gpu.name,
        "precision": precision,
        "native": precision in gpu.native,
        "usable_bytes": m.usable_bytes(gpu),
        "contexts": rows,
    }


def _recommend(fit: list[dict[str, Any]], precision: str, batch: int) -> dict[str, Any]:
    """The fewest GPUs that hold the longest context; of as many, those with the least memory, then
    the fastest. GPUs that multiply the precision natively go before all others.
    """
    entries = [entry for entry in fit if entry["precision"] == precision]
    context = entries[0]["contexts"][-1]["context"]
    fitting = [entry for entry in entries if entry["contexts"][-1]["gpus"]]
    choice = {"precision": precision, "context": context, "batch": batch, "gpu": None}
    if not fitting:
        return choice

    def order(entry: dict[str, Any]) -> tuple[Any, ...]:
        gpu, count = GPUS[entry["gpu"]], entry["contexts"][-1]["gpus"]
        return not entry["native"], count, gpu.memory_gb, -gpu.bandwidth_gb_s

    best = min(fitting, key=order)
    native = {"native": best["native"], "usable_bytes": best["usable_bytes"]}
    return choice | {"gpu": best["gpu"]} | native | best["contexts"][-1]


def _decode(
    weights: Weights, choice: dict[str, Any], contexts: tuple[int, ...], batch: int
) -> list[dict[str, Any]]:
    """Bounds on the recommended number of GPUs and up to four times as many."""
    gpu = find_gpu(choice["gpu"])
    first = choice["gpus"]
    counts = [count for count in gpu_counts(weights.config) if first <= count <= 4 * first]
    return [
        {"precision": choice["precision"], "gpu": gpu.name, "gpus": count, "context": context}
        | asdict(decode_bound(weights, gpu, count, context, batch))
        for count in counts
        for context in contexts
    ]
