"""The command `glm-trt`: parse, call the library, print. Exit codes 0, 1, 2, 3 as documented."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import glm_trt
from glm_trt.model.errors import GlmTrtError
from glm_trt.model.presets import PRESETS, SCALES
from glm_trt.model.quantization import PRECISIONS
from glm_trt.progress import print_table
from glm_trt.validate.names import SUBJECTS

DTYPES = ("float32", "bfloat16", "float16")
BACKENDS = ("onnxruntime", "tensorrt", "tensorrt-rtx")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code. argparse itself ends with 2 on wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except GlmTrtError as error:
        print(f"glm-trt {options.command}: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"glm-trt {options.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; nothing to tell it
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="glm-trt", description="Compile GLM-5.1 checkpoints to TensorRT engines."
    )
    parser.add_argument("--version", action="version", version=f"glm-trt {glm_trt.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, run: Any, *positional: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        for argument in positional:
            sub.add_argument(argument.lower(), metavar=argument, type=Path)
        sub.add_argument("--json", action="store_true", help="print the result as JSON only")
        sub.set_defaults(run=run)
        return sub

    sub = command("export", "write a bundle from a checkpoint", _export, "CHECKPOINT")
    sub.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE")
    sub.add_argument(
        "--dtype", nargs="+", choices=DTYPES, metavar="DTYPE",
        help="dtypes of the graphs beside float32 (default: the checkpoint's)",
    )  # fmt: skip
    sub.add_argument("--max-seq-len", type=int, metavar="N", help="longest sequence to serve")
    sub.add_argument("--materialize", action="store_true", help="copy the weights into the bundle")

    sub = command("run", "continue a prompt, or hold a conversation", _run, "BUNDLE")
    prompt = sub.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT")
    prompt.add_argument("--input-ids", metavar="1,2,3", type=_ids)
    prompt.add_argument(
        "--chat", action="store_true",
        help="answer each line of the standard input, by the checkpoint's chat template",
    )  # fmt: skip
    sub.add_argument("--system", metavar="TEXT", help="the first message of a conversation")
    sub.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help="default: 32; 1024 for each answer of a chat",
    )
    sub.add_argument("--backend", choices=BACKENDS, default="onnxruntime")
    sub.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 (default) is greedy"
    )
    sub.add_argument("--top-k", type=int, default=0, metavar="N", help="only the N best tokens")
    sub.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="only the best, of this mass together"
    )
    sub.add_argument(
        "--min-p", type=float, default=0.0, metavar="P",
        help="only those at least P times as probable as the best",
    )  # fmt: skip
    sub.add_argument("--repetition-penalty", type=float, default=1.0, metavar="R")
    sub.add_argument("--seed", type=int, default=0, metavar="S", help="of the sampling")
    sub.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end there (may be repeated)"
    )
    sub.add_argument(
        "--logprobs", type=int, metavar="N",
        help="with --json: log-probabilities of each token and of the N most probable ones",
    )  # fmt: skip
    sub.add_argument(
        "--drafts", type=int, default=0, metavar="N",
        help="tokens that the multi-token-prediction layer drafts for each pass: the same text, "
        "in fewer passes",
    )  # fmt: skip
    sub.add_argument("--checkpoint", type=Path, help="where the weights lie, if they moved")

    sub = command("build", "build TensorRT engines, with no GPU where tensorrt-rtx is", _build,
                  "BUNDLE")  # fmt: skip
    sub.add_argument("--backend", choices=BACKENDS[1:], default="tensorrt-rtx")
    sub.add_argument(
        "--target", nargs="+", metavar="sm89",
        help="GPU architectures (default: sm80, sm86, sm89 and sm120; the present GPU's with "
        "tensorrt)",
    )  # fmt: skip
    sub.add_argument("--dtype", choices=DTYPES, help="of the graphs (default: the checkpoint's)")
    plugins = sub.add_mutually_exclusive_group()
    plugins.add_argument(
        "--no-plugins",
        action="store_true",
        help="expand our operators into standard ones, to compare or to do without the library",
    )
    plugins.add_argument("--plugins", type=Path, metavar="LIBRARY", help="the plugin library")
    sub.add_argument(
        "--embed-plugins", action="store_true", help="carry the library inside each plan"
    )  # fmt: skip

    sub = command("validate", "compare a bundle with the eager model", _validate, "BUNDLE")
    _add_subject(sub)
    _add_judgement(sub)
    sub.add_argument(
        "--save", type=Path, metavar="DIR", help="keep what was seen, for glm-trt diff"
    )
    sub.add_argument(
        "--text", type=Path, metavar="FILE", help="measure the perplexity on this text"
    )

    sub = command("diff", "judge and compare two runs saved by validate --save", _diff, "A", "B")
    _add_judgement(sub)

    sub = command(
        "bisect", "find the first block out of tolerance, and the operator in it that is wrong",
        _bisect, "BUNDLE",
    )  # fmt: skip
    _add_subject(sub)
    sub.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="write a small reproducer there"
    )

    command("inspect", "show what a bundle holds", _inspect, "BUNDLE")

    sub = command("make-checkpoint", "write a checkpoint of a preset, to try things with",
                  _make_checkpoint)  # fmt: skip
    sub.add_argument("preset", metavar="PRESET", choices=PRESETS, help=" or ".join(PRESETS))
    sub.add_argument(
        "--scale", choices=SCALES, default="tiny",
        help="tiny (default): small, random weights; block: one layer of each kind at the real "
        "sizes; full: all layers. The last two hold zeros that take no space on the disk",
    )  # fmt: skip
    sub.add_argument("--precision", choices=PRECISIONS, default="bf16", help="of the weights")
    sub.add_argument("--layers", type=int, metavar="N", help="only so many, from the first")
    sub.add_argument("--kind", metavar="KIND", help="only layers such as sparse_indexed")
    sub.add_argument("--without-mtp", action="store_true", help="no prediction layers")
    sub.add_argument(
        "--random", action="store_true", default=None,
        help="random weights at any scale, which take their full size",
    )  # fmt: skip
    sub.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="of the random weights")

    sub = command("plan", "say what a model needs: memory, GPUs, disk, and a bound on its speed",
                  _plan)  # fmt: skip
    sources = f"a checkpoint directory, a config.json, or {' or '.join(PRESETS)}"
    sub.add_argument("source", metavar="CHECKPOINT_OR_CONFIG", help=sources)
    sub.add_argument("--gpu", nargs="+", metavar="h200", help="GPUs to consider (default: all)")
    sub.add_argument("--context", nargs="+", type=int, metavar="N", help="tokens of a sequence")
    sub.add_argument("--batch", type=int, default=1, metavar="N", help="sequences at once")
    sub.add_argument(
        "--precision", nargs="+", choices=PRECISIONS, metavar="|".join(PRECISIONS),
        help="of the weights (default: all, or the checkpoint's where it is quantised)",
    )  # fmt: skip
    sub.add_argument("--mtp", action="store_true", help="hold and read the MTP layers too")
    sub.add_argument("--chart", type=Path, metavar="FILE.svg|png", help="draw memory by context")
    return parser


def _add_subject(sub: argparse.ArgumentParser) -> None:
    """What is validated, and on what."""
    sub.add_argument(
        "--backend", choices=SUBJECTS, metavar="BACKEND",
        help="; ".join(f"{name}: {what}" for name, what in SUBJECTS.items())
        + " (default: onnxruntime; graph for a --dtype that onnxruntime has not)",
    )  # fmt: skip
    sub.add_argument(
        "--dtype", choices=(*DTYPES, "float64"), metavar="DTYPE",
        help="of graph, kernels and eager (default: the checkpoint's)",
    )  # fmt: skip
    sub.add_argument(
        "--checkpoint", type=Path, help="where the checkpoint lies, if it moved; what a "
        "materialized bundle is compared with",
    )  # fmt: skip
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="of the random ids")
    sub.add_argument(
        "--longest", type=int, metavar="N", help="tokens of the longest case (default: 768)"
    )


def _add_judgement(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--report", type=Path, metavar="DIR", help="write report.html, report.md and report.json"
    )
    sub.add_argument(
        "--policy", type=Path, metavar="FILE", help="TOML that tightens limits or waives problems"
    )
    sub.add_argument(
        "--baseline", type=Path, metavar="REPORT", help="fail where this earlier report was better"
    )


def _ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers as 1,2,3; found {text!r}") from None


def _export(options: argparse.Namespace) -> int:
    from glm_trt.export.bundle import ExportOptions, export_checkpoint
    from glm_trt.progress import Progress

    settings = ExportOptions(
        tuple(options.dtype) if options.dtype else None, options.max_seq_len, options.materialize
    )
    with Progress("export", quiet=options.json) as progress:
        written = export_checkpoint(options.checkpoint, options.output, settings, progress)
    if options.json:
        print(json.dumps({"bundle": str(options.output), "written": written}))
    else:
        print(f"{options.output}: {'written' if written else 'up to date'}")
    return 0


def _run(options: argparse.Namespace) -> int:
    from glm_trt.run_command import RunOptions, run_chat, run_prompt

    new_tokens = options.max_new_tokens
    if new_tokens is None:
        new_tokens = 1024 if options.chat else 32
    if new_tokens < 1:
        raise GlmTrtError(f"--max-new-tokens: expected at least 1, found {new_tokens}")
    if options.system is not None and not options.chat:
        raise GlmTrtError("--system: a message of a conversation; use it with --chat")
    if options.logprobs is not None and not options.json:
        raise GlmTrtError("--logprobs: printed with --json only")
    settings = RunOptions(
        options.prompt,
        options.input_ids,
        options.chat,
        options.system,
        new_tokens,
        _sampling(options),
        tuple(options.stop),
        options.logprobs,
        options.drafts,
        options.json,
    )  # fmt: skip
    with glm_trt.load(options.bundle, options.backend, checkpoint=options.checkpoint) as runtime:
        (run_chat if options.chat else run_prompt)(runtime, settings)
    return 0


def _sampling(options: argparse.Namespace) -> Any:
    from glm_trt.engines.python.sampling import Sampling

    try:
        return Sampling(
            options.temperature, options.top_k, options.top_p, options.min_p,
            options.repetition_penalty, options.seed,
        )  # fmt: skip
    except GlmTrtError as error:  # by the name that was typed
        name, _, rest = str(error).partition(":")
        raise GlmTrtError(f"--{name.replace('_', '-')}:{rest}") from None


def _build(options: argparse.Namespace) -> int:
    from glm_trt.engines.build import BuildOptions, build_engines
    from glm_trt.plugins.library import find_library
    from glm_trt.progress import Progress

    if options.no_plugins and options.embed_plugins:
        raise GlmTrtError("--embed-plugins: there is nothing to embed with --no-plugins")
    settings = BuildOptions(
        options.backend,
        tuple(options.target) if options.target else None,
        options.dtype,
        plugins=None if options.no_plugins else find_library(options.plugins),
        embed_plugins=options.embed_plugins,
    )
    with Progress("build", quiet=options.json) as progress:
        engines = build_engines(options.bundle, settings, progress)
    if options.json:
        print(json.dumps([engine.entry | {"cached": engine.cached} for engine in engines]))
        return 0
    rows = [
        (e.entry["target"], e.entry["kind"], e.entry["dtype"], f"{e.entry['bytes'] / 1e6:.1f} MB",
         "cached" if e.cached else f"{e.entry['seconds']:.1f} s", f"{e.entry['layers']} layers",
         f"{len(e.entry['plugins'])} plugins",
         f"{e.entry['peak_memory_bytes'] / 1e6:.0f} MB peak")
        for e in engines
    ]  # fmt: skip
    print_table(rows)
    built = sum(not engine.cached for engine in engines)
    print(f"{options.bundle}: {len(engines)} engines, {built} built, {len(engines) - built} cached")
    return 0


def _validate(options: argparse.Namespace) -> int:
    from glm_trt.progress import Progress
    from glm_trt.validate.validation import validate_bundle

    settings = replace(
        _validation_options(options), policy=options.policy, baseline=options.baseline,
        save=options.save,
    )  # fmt: skip
    _check_report(options)
    with Progress("validate", quiet=options.json) as progress:
        report = validate_bundle(options.bundle, settings, progress)
    return _print_report(report, options)


def _validation_options(options: argparse.Namespace) -> Any:
    from glm_trt.validate.cases import LONGEST, CaseOptions, read_text
    from glm_trt.validate.subjects import default_subject
    from glm_trt.validate.validation import ValidationOptions

    if options.seed < 0:
        raise GlmTrtError(f"--seed: expected 0 or more, found {options.seed}")
    longest = LONGEST if options.longest is None else options.longest
    if longest < 1:
        raise GlmTrtError(f"--longest: expected at least 1, found {longest}")
    text = getattr(options, "text", None)
    return ValidationOptions(
        options.backend or default_subject(options.dtype),
        options.dtype,
        options.checkpoint,
        CaseOptions(longest, options.seed, None if text is None else read_text(text)),
    )


def _check_report(options: argparse.Namespace) -> None:
    from glm_trt.validate.report_files import check_report_place

    if options.report:
        check_report_place(options.report)


def _print_report(report: dict[str, Any], options: argparse.Namespace) -> int:
    from glm_trt.validate.report_files import PAGE, write_report
    from glm_trt.validate.report_text import summary

    if options.report:
        write_report(report, options.report)
    print(json.dumps(report) if options.json else summary(report))
    if options.report and not options.json:
        print(f"  report: {options.report / PAGE}")
    return 0 if report["ok"] else 1


def _diff(options: argparse.Namespace) -> int:
    from glm_trt.validate.diff import DiffOptions, diff_runs

    _check_report(options)
    report = diff_runs(options.a, options.b, DiffOptions(options.policy, options.baseline))
    return _print_report(report, options)


def _bisect(options: argparse.Namespace) -> int:
    from glm_trt.progress import Progress
    from glm_trt.validate.bisect import bisect_bundle, describe_finding

    settings = _validation_options(options)
    with Progress("bisect", quiet=options.json) as progress:
        report = bisect_bundle(options.bundle, settings, options.output, progress)
    print(json.dumps(report) if options.json else describe_finding(report))
    return 0 if report["ok"] else 1


def _inspect(options: argparse.Namespace) -> int:
    from glm_trt.export.manifest import read_manifest, verify_files

    manifest = read_manifest(options.bundle)
    verify_files(options.bundle, manifest)
    if options.json:
        print(json.dumps(manifest))
        return 0
    layers: dict[str, int] = {}
    for block in manifest["blocks"]:
        layers[block["kind"]] = layers.get(block["kind"], 0) + 1
    source = manifest["checkpoint"]
    files = len(source["files"])
    print(f"{options.bundle}: {manifest['config']['model_type']}, every hash verified")
    print_table(
        [("checkpoint", f"{source['directory']} ({source['dtype']}, {files} file(s))"),
         ("graphs", f"{', '.join(manifest['dtypes'])}; up to {manifest['max_seq_len']} tokens"),
         *((kind, f"{count} block(s)") for kind, count in layers.items()),
         *((f"{e['backend']} {e['target']}", f"{e['kind']} in {e['dtype']}: "
            f"{e['bytes'] / 1e6:.1f} MB, {e['layers']} layers") for e in manifest["engines"])]
    )  # fmt: skip
    return 0


def _make_checkpoint(options: argparse.Namespace) -> int:
    from glm_trt.model.generate_checkpoint import CheckpointOptions, make_checkpoint

    if options.seed < 0:
        raise GlmTrtError(f"--seed: expected 0 or more, found {options.seed}")
    settings = CheckpointOptions(
        options.preset, options.scale, options.precision, options.layers, options.kind,
        not options.without_mtp, options.random, options.seed,
    )  # fmt: skip
    written = make_checkpoint(settings, options.output)
    if options.json:
        print(json.dumps(asdict(written) | {"directory": str(options.output)}))
        return 0
    print(
        f"{options.output}: {written.layers} layers, {written.tensors} tensors in {written.files} "
        f"file(s), {written.bytes / 1e6:,.1f} MB ({written.disk_bytes / 1e6:,.1f} MB on the disk)"
    )
    return 0


def _plan(options: argparse.Namespace) -> int:
    from glm_trt.engines.planning.chart import check_chart, write_chart
    from glm_trt.engines.planning.plan import PlanOptions, make_plan
    from glm_trt.engines.planning.source import find_source
    from glm_trt.plan_text import print_plan

    if options.chart:
        check_chart(options.chart)
    source = find_source(options.source)
    settings = PlanOptions(
        tuple(options.gpu) if options.gpu else None,
        tuple(options.context) if options.context else None,
        options.batch,
        tuple(options.precision) if options.precision else None,
        options.mtp,
    )
    plan = make_plan(source, settings)
    if options.chart:
        write_chart(options.chart, source, plan)
    if options.json:
        print(json.dumps(plan))
        return 0
    print_plan(plan)
    if options.chart:
        print(f"\n{options.chart}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
