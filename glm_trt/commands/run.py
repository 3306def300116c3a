"""`glm-trt run`: its arguments; what it does is in `glm_trt.run_command`."""

from __future__ import annotations

import argparse
from typing import Any

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


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_paths(parser, "BUNDLE")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT")
    prompt.add_argument("--input-ids", metavar="1,2,3", type=_ids)
    prompt.add_argument(
        "--chat", action="store_true",
        help="answer each line of the standard input, by the checkpoint's chat template",
    )  # fmt: skip
    parser.add_argument("--system", metavar="TEXT", help="the first message of a conversation")
    parser.add_argument(
        "--chat-template", metavar="NAME",
        help="of several chat templates that the checkpoint has (default: default)",
    )  # fmt: skip
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N",
        help="default: 32; 1024 for each answer of a chat",
    )  # fmt: skip
    parser.add_argument("--backend", choices=BACKENDS, default="onnxruntime")
    add_provider(parser)
    _add_sampling(parser)
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end there (may be repeated)"
    )
    parser.add_argument(
        "--logprobs", type=int, metavar="N",
        help="with --json: log-probabilities of each token and of the N most probable ones",
    )  # fmt: skip
    parser.add_argument(
        "--drafts", type=int, default=0, metavar="N",
        help="tokens that the multi-token-prediction layer drafts for each pass: the same text, "
        "in fewer passes",
    )  # fmt: skip
    add_checkpoint(parser, "where the weights lie, if they moved")


def _ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers as 1,2,3; found {text!r}") from None


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 (default) is greedy"
    )
    parser.add_argument("--top-k", type=int, default=0, metavar="N", help="only the N best tokens")
    parser.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="only the best, of this mass together"
    )
    parser.add_argument(
        "--min-p", type=float, default=0.0, metavar="P",
        help="only those at least P times as probable as the best",
    )  # fmt: skip
    parser.add_argument("--repetition-penalty", type=float, default=1.0, metavar="R")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the sampling")


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


def _run(options: argparse.Namespace) -> int:
    from glm_trt.engines.python.text import check_unicode
    from glm_trt.progress import spinner
    from glm_trt.run_command import RunOptions, run_chat, run_prompt

    new_tokens = options.max_new_tokens
    if new_tokens is None:
        new_tokens = 1024 if options.chat else 32
    if new_tokens < 1:
        raise GlmTrtError(f"--max-new-tokens: expected at least 1, found {new_tokens}")
    if options.system is not None and not options.chat:
        raise GlmTrtError("--system: a message of a conversation; use it with --chat")
    if options.chat_template is not None and not options.chat:
        raise GlmTrtError("--chat-template: of a conversation; use it with --chat")
    if options.provider is not None and options.backend != "onnxruntime":
        raise GlmTrtError(f"--provider: for --backend onnxruntime, not for {options.backend}")
    if options.logprobs is not None and not options.json:
        raise GlmTrtError("--logprobs: printed with --json only")
    for name in ("prompt", "system"):
        check_unicode(getattr(options, name) or "", f"--{name}")
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
        options.chat_template,
    )
    checkpoint = find_checkpoint(options)
    with spinner(f"loading {options.bundle}", quiet=options.json):
        runtime = glm_trt.load(
            options.bundle, options.backend, provider=options.provider,
            checkpoint=checkpoint,
        )  # fmt: skip
    with runtime:
        if options.chat:
            return 0 if run_chat(runtime, settings) else 2
        run_prompt(runtime, settings)
    return 0


COMMAND = Command(
    "run",
    "continue a prompt, or hold a conversation",
    'glm-trt run bundle --prompt "def main():" --max-new-tokens 64\n'
    "glm-trt run bundle --chat --temperature 0.7 --top-p 0.95",
    _add_arguments,
    _run,
)
