"""`glm-trt serve`: its arguments; the server is in `glm_trt.engines.serve`."""

from __future__ import annotations

import argparse
from pathlib import Path

import glm_trt
from glm_trt.commands.command import (
    BACKENDS,
    Command,
    add_checkpoint,
    add_paths,
    add_provider,
    find_checkpoint,
)
from glm_trt.model.errors import GlmTrtError
from glm_trt.model.requirements import require


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_paths(parser, "BUNDLE")
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="0 is any free one")
    parser.add_argument(
        "--model-name", default="glm-5.1", metavar="NAME", help="by which clients ask for it"
    )
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE",
        help="keys, one a line, of which clients give one; without it none is needed",
    )  # fmt: skip
    parser.add_argument("--backend", choices=BACKENDS, default="onnxruntime")
    add_provider(parser)
    add_checkpoint(parser, "where the weights lie, if they moved")
    parser.add_argument(
        "--log-prompts", action="store_true",
        help="write prompts and answers in the log of requests, too",
    )  # fmt: skip
    parser.add_argument(
        "--otlp-endpoint", metavar="URL",
        help="an OpenTelemetry collector that gets a trace of each request: http://HOST:4318",
    )  # fmt: skip
    engine = parser.add_argument_group("the engine")
    engine.add_argument(
        "--max-batch", type=int, default=8, metavar="N", help="sequences at once (default: 8)"
    )
    engine.add_argument(
        "--prefill-chunk", type=int, metavar="N", help="tokens of a prompt in a pass"
    )
    engine.add_argument(
        "--drafts", type=int, default=0, metavar="N",
        help="tokens that the multi-token-prediction layer drafts for each pass",
    )  # fmt: skip
    engine.add_argument(
        "--prefix-cache", type=float, default=1.0, metavar="GB",
        help="states kept for prompts that begin alike (default: 1; 0 keeps none)",
    )  # fmt: skip
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-waiting", type=int, default=64, metavar="N",
        help="requests that wait for a row; more are refused with 429 (default: 64)",
    )  # fmt: skip
    limits.add_argument(
        "--max-wait", type=float, default=60.0, metavar="SECONDS",
        help="how long one waits; then it is refused with 503 (default: 60)",
    )  # fmt: skip
    limits.add_argument(
        "--grace", type=float, default=30.0, metavar="SECONDS",
        help="to finish what was begun, after SIGTERM (default: 30)",
    )  # fmt: skip
    limits.add_argument(
        "--max-body", type=float, default=16.0, metavar="MB", help="of a request (default: 16)"
    )


def _run(options: argparse.Namespace) -> int:
    require("glm-trt serve", "serve", "fastapi", "uvicorn", "prometheus_client", "llguidance")
    from glm_trt.engines.serve.limits import Limits
    from glm_trt.engines.serve.serve import ServeOptions, serve

    if options.otlp_endpoint is not None:
        require("--otlp-endpoint", "tracing", "opentelemetry.sdk",
                "opentelemetry.exporter.otlp.proto.http")  # fmt: skip

    for name, least in (("max_batch", 1), ("max_waiting", 0), ("max_wait", 0), ("grace", 0),
                        ("prefix_cache", 0), ("max_body", 0), ("port", 0)):  # fmt: skip
        if getattr(options, name) < least:
            flag = f"--{name.replace('_', '-')}"
            raise GlmTrtError(f"{flag}: expected {least} or more, found {getattr(options, name)}")
    if options.port > 65535:
        raise GlmTrtError(f"--port: expected 65535 at most, found {options.port}")
    keys = () if options.api_key_file is None else read_keys(options.api_key_file)
    checkpoint = find_checkpoint(options)
    with glm_trt.load(
        options.bundle, options.backend, provider=options.provider, checkpoint=checkpoint
    ) as runtime:
        return serve(
            runtime,
            ServeOptions(
                host=options.host,
                port=options.port,
                model_name=options.model_name,
                keys=keys,
                max_batch=options.max_batch,
                prefill_chunk=options.prefill_chunk,
                drafts=options.drafts,
                prefix_bytes=round(options.prefix_cache * 1e9),
                limits=Limits(
                    waiting=options.max_waiting,
                    waiting_seconds=options.max_wait,
                    grace_seconds=options.grace,
                    body_bytes=round(options.max_body * 1e6),
                ),
                log_prompts=options.log_prompts,
                otlp_endpoint=options.otlp_endpoint,
                json=options.json,
            ),
        )


def read_keys(path: Path) -> tuple[str, ...]:
    """The keys of a file, one a line; lines that begin with # are none.

    Raises
    ------
    GlmTrtError
        If it cannot be read, or holds none.
    """
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise GlmTrtError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise GlmTrtError(f"{path}: expected at least one key, found none")
    return keys


COMMAND = Command(
    "serve",
    "answer over HTTP, as OpenAI's API does",
    "glm-trt serve bundle\n"
    "glm-trt serve bundle --host 0.0.0.0 --port 8000 --api-key-file keys.txt --max-batch 16",
    _add_arguments,
    _run,
)
