"""A runtime behind HTTP, from the first request to the last."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field

from glm_trt.engines.python.runtime import Runtime
from glm_trt.engines.python.session import Session
from glm_trt.engines.serve.app import make_app
from glm_trt.engines.serve.engine_loop import EngineLoop
from glm_trt.engines.serve.grammar import Grammars
from glm_trt.engines.serve.limits import Limits
from glm_trt.engines.serve.metrics import Metrics
from glm_trt.engines.serve.server import Server
from glm_trt.engines.serve.settings import Served
from glm_trt.engines.serve.tracing import Tracing
from glm_trt.model.errors import GlmTrtError


@dataclass(frozen=True)
class ServeOptions:
    """As the command has them; sizes in bytes."""

    host: str = "127.0.0.1"
    port: int = 8000
    model_name: str = "glm-5.1"
    keys: tuple[str, ...] = ()
    max_batch: int = 8
    prefill_chunk: int | None = None
    drafts: int = 0
    prefix_bytes: int = 0
    limits: Limits = field(default_factory=Limits)
    log_prompts: bool = False
    otlp_endpoint: str | None = None
    json: bool = False


def serve(runtime: Runtime, options: ServeOptions) -> int:
    """Answer requests until a signal ends it; the exit code.

    Raises
    ------
    GlmTrtError
        If the bundle has no tokenizer, an option is out of range, or the port is taken.
    """
    text = runtime.text
    if text is None:
        raise GlmTrtError(
            f"{runtime.bundle.directory}: has no tokenizer.json (its checkpoint had none), which "
            "serving needs; put it beside the checkpoint's config.json and export again"
        )
    tracing = None
    if options.otlp_endpoint is not None:
        tracing = Tracing.to(options.otlp_endpoint, options.model_name)
    session = Session(
        runtime.backend, max_batch=options.max_batch, prefill_chunk=options.prefill_chunk,
        drafts=options.drafts,
    )  # fmt: skip
    engine = EngineLoop(session, options.limits, options.prefix_bytes)
    config = runtime.bundle.config
    grammars = Grammars(text.tokenizer_json(), config.vocab_size, runtime.bundle.eos_token_ids())
    served = Served(
        options.model_name,
        runtime,
        text,
        engine,
        grammars,
        Metrics(options.model_name, engine),
        options.limits,
    )

    def announce(port: int) -> None:
        host = f"[{options.host}]" if ":" in options.host else options.host
        place = f"http://{host}:{port}"
        if options.json:
            print(json.dumps({"url": place, "model": options.model_name}), flush=True)
        else:
            print(f"{options.model_name} at {place}/v1 (Ctrl-C ends it)", file=sys.stderr,
                  flush=True)  # fmt: skip

    server = Server(
        make_app(served, options.keys, options.log_prompts, tracing),
        engine,
        options.host,
        options.port,
        announce,
    )
    engine.start()
    try:
        server.run()
    except SystemExit:  # uvicorn has said why: the port is taken
        raise GlmTrtError(f"{options.host}:{options.port} cannot be listened on") from None
    finally:
        engine.close(0)
        if tracing is not None:
            tracing.close()
    return 1 if engine.status == "failed" else 0
