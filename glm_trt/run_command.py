"""`glm-trt run`: a prompt continued, or a conversation held, as it comes."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import Any

from glm_trt.chat_input import turns
from glm_trt.engines.python.request import CANCELLED, GenerateOptions, Request, Token
from glm_trt.engines.python.runtime import Runtime
from glm_trt.engines.python.sampling import Sampling
from glm_trt.engines.python.session import Session
from glm_trt.engines.python.text import Text, check_unicode
from glm_trt.model.errors import GlmTrtError


@dataclass(frozen=True)
class RunOptions:
    """What the command was asked for. One of `prompt`, `input_ids` and `chat` is given."""

    prompt: str | None
    input_ids: list[int] | None
    chat: bool
    system: str | None
    max_new_tokens: int
    sampling: Sampling
    stop: tuple[str, ...]
    logprobs: int | None
    drafts: int
    json: bool
    chat_template: str | None = None  # by its name


def run_prompt(runtime: Runtime, options: RunOptions) -> None:
    """Print the prompt's continuation while it comes, or all about it as JSON at the end."""
    ids = options.input_ids
    if ids is None:
        ids = _text(runtime).encode(options.prompt or "")
        if not ids:
            raise GlmTrtError("--prompt: expected at least one token, found none")
    session = runtime.session(max_batch=1, drafts=options.drafts)
    if options.prompt is not None and not options.json:
        _write(options.prompt)
    request = _submit(session, ids, options, keep=False)
    _finish(session, request, options, keep=False)
    if options.json:
        print(json.dumps(_described(session, request)))


def run_chat(runtime: Runtime, options: RunOptions) -> bool:
    """Answer each line of stdin; what was said before is not run again.

    A line that cannot be answered (it is no text, the template refuses it, it is too long) is said
    to be so, and the conversation goes on as if it had not been there; the result is False then.
    """
    text, session = _text(runtime), runtime.session(max_batch=1, drafts=options.drafts)
    text.templates.chosen(options.chat_template)  # before anything is typed
    messages = [] if options.system is None else [{"role": "system", "content": options.system}]
    first = len(messages)
    previous: Request | None = None

    def forget() -> None:
        nonlocal previous
        del messages[first:]
        previous = None

    all_answered = True
    for line in turns(forget, quiet=options.json):
        messages.append({"role": "user", "content": line})
        try:
            check_unicode(line, "the line")
            ids = text.chat(messages, options.chat_template)
            prefix = None if previous is None else previous.snapshot
            request = _submit(session, ids, options, keep=True, prefix=prefix)
        except GlmTrtError as error:
            messages.pop()
            all_answered = False
            print(f"glm-trt run: error: {error}", file=sys.stderr, flush=True)
            if options.json:
                print(json.dumps({"error": str(error)}), flush=True)
            continue
        _finish(session, request, options, keep=True)
        previous = request
        messages.append({"role": "assistant", "content": previous.text or ""})
        if options.json:
            print(json.dumps(_described(session, previous)), flush=True)
    return all_answered


def _submit(
    session: Session, ids: list[int], options: RunOptions, keep: bool, prefix: Any = None
) -> Request:
    wanted = GenerateOptions(
        options.max_new_tokens, options.sampling, options.stop, None, options.logprobs, keep
    )
    printed = _Printer(has_text=session.has_text)
    return session.submit(
        ids, wanted, prefix=prefix, on_token=None if options.json else printed.token
    )


def _finish(session: Session, request: Request, options: RunOptions, keep: bool) -> None:
    """Run it, streamed; interrupting a conversation ends the answer, not the conversation."""
    began = time.monotonic()
    try:
        session.run()
    except KeyboardInterrupt:
        if not keep:
            print(flush=True)  # behind what was streamed
            raise
        request.cancel()
        session.run()
    if not options.json:
        _write("\n")
        if sys.stderr.isatty():
            print(_summary(session, request, time.monotonic() - began), file=sys.stderr)


class _Printer:
    """Prints text as it comes, or token IDs where there is no tokenizer."""

    def __init__(self, has_text: bool) -> None:
        self._has_text, self._between = has_text, ""

    def token(self, token: Token) -> None:
        """One more."""
        if self._has_text:
            _write(token.text or "")
        else:
            _write(f"{self._between}{token.token_id}")
            self._between = ","


def _described(session: Session, request: Request) -> dict[str, Any]:
    result: dict[str, Any] = {
        "input_ids": request.prompt,
        "token_ids": request.tokens,
        "text": request.text,
        "finish_reason": request.finish_reason,
        "reused_tokens": request.reused,
    }
    if request.options.logprobs is not None:
        result |= {"logprobs": request.logprobs, "top_logprobs": request.top_logprobs}
    if session.statistics.drafted:
        result["draft_acceptance"] = session.statistics.acceptance
    return result


def _summary(session: Session, request: Request, seconds: float) -> str:
    parts = [f"{len(request.tokens)} tokens in {seconds:.1f} s"]
    if request.reused:
        parts.append(f"{request.reused} of {len(request.prompt)} of the prompt not run again")
    if (acceptance := session.statistics.acceptance) is not None:
        parts.append(f"{acceptance:.0%} of the drafts accepted")
    if request.finish_reason == CANCELLED:
        parts.append("interrupted")
    return f"({'; '.join(parts)})"


def _text(runtime: Runtime) -> Text:
    if runtime.text is None:
        raise GlmTrtError(
            f"{runtime.bundle.directory}: has no tokenizer.json (its checkpoint had none); "
            "use --input-ids"
        )
    return runtime.text


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
