"""Validating a bundle: every block and the whole pass on a backend, beside the eager model."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from glm_trt.export.bundle.format import Block
from glm_trt.export.bundle.read import Bundle
from glm_trt.validate.checking.graph_check import check_graphs, open_fresh
from glm_trt.validate.checking.transformers_check import transformers_line
from glm_trt.validate.checking.weights_check import WeightsCheck
from glm_trt.validate.judging.figures import Report
from glm_trt.validate.judging.limits import ALLOWED_RATIO, tolerances
from glm_trt.validate.judging.measure import Measures
from glm_trt.validate.judging.policy import NO_POLICY, RUNTIME, Target, read_policy, target_of
from glm_trt.validate.reporting.baseline import compare_with_baseline
from glm_trt.validate.reporting.report import TARGETS, assemble
from glm_trt.validate.reporting.report_files import read_report
from glm_trt.validate.running.cases import Case, CaseOptions, held_text, make_cases
from glm_trt.validate.running.environment import describe_backend, describe_environment
from glm_trt.validate.running.reference import Reference, fitting_threads
from glm_trt.validate.running.runtime_check import reason_to_skip, runtime_observations
from glm_trt.validate.running.subjects import Subject, as_backend, open_subject, require_subject
from glm_trt.validate.running.walk import (
    Flow,
    Observation,
    runners_of,
    start,
    start_prediction,
    walk_block,
)
from glm_trt.validate.saving.recording import Recorder

# What is done now, with its count; and how much of the work is behind it, from 0 to 1.
Progress = Callable[..., None]


@dataclass(frozen=True)
class ValidationOptions:
    """How to validate.

    Parameters
    ----------
    backend : one of `subjects.SUBJECTS`.
    dtype : of the backend, where it has a choice; None for the checkpoint's.
    checkpoint : where the checkpoint lies if it moved; for a materialized bundle, the checkpoint
        to compare with (without it, the bundle's own weights are the reference).
    cases : what to run.
    policy : a policy file.
    baseline : an earlier report, which this one is not to be worse than.
    save : a directory to save the run in.
    provider : of the backends that are onnxruntime; the CPU's if None.
    """

    backend: str = "onnxruntime"
    dtype: str | None = None
    checkpoint: Path | None = None
    cases: CaseOptions = field(default_factory=CaseOptions)
    policy: Path | None = None
    baseline: Path | None = None
    save: Path | None = None
    provider: str | None = None


def open_bundle(directory: Path, checkpoint: Path | None) -> Bundle:
    """The bundle; its weights are looked for in `checkpoint` unless it has its own."""
    from glm_trt.export.bundle.read import read_manifest

    own = read_manifest(directory).materialized
    return Bundle.open(directory, None if own else checkpoint)


def validate_bundle(
    directory: Path,
    options: ValidationOptions = ValidationOptions(),
    progress: Progress = lambda *_: None,
) -> Report:
    """Compare a backend on the bundle with the eager model; the report's `ok` is the verdict.

    Raises
    ------
    BundleError, CheckpointError
        If the bundle or its checkpoint is not sound.
    PolicyError, ReportError, RecordingError
        If the policy says nothing sensible, the baseline is of something else, or `save` is there
        and is something else.
    MissingCapabilityError
        If the backend cannot run here.
    """
    began = time.monotonic()
    earlier = read_report(options.baseline) if options.baseline else None
    progress("loading")
    require_subject(options.backend)
    bundle = open_bundle(directory, options.checkpoint)
    subject = open_subject(bundle, options.backend, options.dtype, options.provider)
    with (
        closing(subject), closing(open_fresh(bundle, subject.dtype)) as fresh,
        fitting_threads(bundle),
    ):  # fmt: skip
        targets = {block.name: _target(bundle, block) for block in all_blocks(bundle)}
        policy = NO_POLICY
        if options.policy:
            policy = read_policy(options.policy, targets, ALLOWED_RATIO[subject.dtype])
        reference = Reference(bundle, options.checkpoint)
        recorder = Recorder(options.save, subject.dtype) if options.save else None
        with recorder or nullcontext():
            progress("continuing prompts")
            cases = make_cases(bundle, reference, options.cases)
            by_name = {name: target.kind for name, target in targets.items()}
            measures = Measures(bundle.config, subject.dtype, cases, by_name)
            weights = WeightsCheck(bundle, reference)
            far: dict[str, int] = {}
            flows = [start(case) for case in cases]
            walked = walk(bundle, reference, subject, flows, progress, weights)
            for name, observations in walked:
                for seen in observations:
                    measures.add(seen)
                    if seen.mode == "far" and seen.inputs is not None:
                        kind, reached = by_name[name], int(seen.inputs["past_lengths"].max())
                        far[kind] = max(far.get(kind, 0), reached)
                    if recorder:
                        recorder.add(seen)
                if recorder:
                    recorder.close_block(name)
                if name == "head":
                    progress("asking transformers")
                    theirs = transformers_line(bundle, reference, flows)
            context = _context(bundle, directory, options, subject, reference, cases)
            context[TARGETS] = [[name, *target] for name, target in targets.items()]
            context["far"] = [{"kind": kind, "position": at} for kind, at in far.items()]
            context["weights"] = weights.to_dict()
            context["transformers"] = theirs
            context["graphs"] = check_graphs(bundle, reference, subject.dtype, fresh, progress)
            context["seconds"] = time.monotonic() - began
            if recorder:
                recorder.finish(context, bundle.manifest.config, measures, cases)
    report = assemble(context, measures, policy)
    if options.baseline:
        report["baseline"] = baseline = compare_with_baseline(report, options.baseline, earlier)
        report["ok"] = report["ok"] and baseline["ok"]
    return report


def all_blocks(bundle: Bundle) -> list[Block]:
    """Those of a pass, then those of prediction."""
    return [*bundle.blocks, *bundle.prediction_blocks]


def _target(bundle: Bundle, block: Block) -> Target:
    weights = tuple(binding.name for binding in block.bindings)
    return target_of(bundle.config, block.kind, block.layer, weights)


def walk(
    bundle: Bundle,
    reference: Reference,
    subject: Subject,
    flows: list[Flow],
    progress: Progress = lambda *_: None,
    weights: WeightsCheck | None = None,
) -> Iterator[tuple[str, Iterator[Observation]]]:
    """What is seen of each block in turn, and of the runtime behind the head, to be taken before
    the next: a block's weights are let go then. `weights` counts what is compared of those.
    """
    blocks = all_blocks(bundle)
    weights = weights or WeightsCheck(bundle, reference)
    for i, block in enumerate(blocks):
        of = f"{block.name} ({i + 1} of {len(blocks)})"
        progress(f"comparing weights of {of}", i / len(blocks))
        bound = Observation(
            block.name, "", "weights", 0, 0, {}, findings=tuple(weights.of_block(block))
        )
        progress(f"comparing {of}", i / len(blocks))
        if block.prediction is not None and block.layer is not None:
            for flow in flows:
                start_prediction(flow)
        runners = runners_of(reference, subject, block)
        yield block.name, chain([bound], walk_block(bundle, block, runners, flows))
        subject.release(block)
        reference.release(block)
        backend = as_backend(subject) if block.name == "head" else None
        if backend and not reason_to_skip(bundle):
            progress("running the runtime")
            yield RUNTIME, runtime_observations(backend, flows)
            for loaded in bundle.blocks:
                subject.release(loaded)


def _context(
    bundle: Bundle,
    directory: Path,
    options: ValidationOptions,
    subject: Subject,
    reference: Reference,
    cases: list[Case],
) -> Report:
    """The parts of a report that are not measured."""
    skipped = reason_to_skip(bundle)
    if as_backend(subject) is None:
        skipped = f"{options.backend} has no runtime"
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "bundle": {
            "directory": str(directory),
            "key": bundle.manifest.key,
            "materialized": bundle.manifest.materialized,
            "max_seq_len": bundle.max_seq_len,
        },
        "backend": describe_backend(bundle, options.backend, subject.dtype, options.provider),
        "reference": reference.source,
        "tolerance": tolerances(subject.dtype),
        "environment": describe_environment(bundle, reference.files),
        "options": {
            "longest": options.cases.longest,
            "seed": options.cases.seed,
            "text_sha256": hashlib.sha256(held_text(options.cases).encode()).hexdigest(),
        },
        "cases": [
            {"name": case.name, "shape": list(case.ids.shape), "prefill": case.prefill}
            for case in cases
        ],
        "runtime_skipped": skipped,
    }
