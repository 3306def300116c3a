"""Run a bundle without a server: logits, then two requests at once, one of them drawn.

python sessions.py BUNDLE
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import glm_trt
from glm_trt.model.errors import GlmTrtError

PROMPTS = ("def main(", "import ")


def show(bundle: Path) -> None:
    """Print what the model thinks of a prompt, and how it goes on with two."""
    with glm_trt.load(bundle) as runtime:
        print("== logits")
        ids = runtime.text.encode(PROMPTS[0])
        last = runtime.forward([ids])[0, -1]  # float32 [B, S, vocab], from empty states
        for token in last.argsort()[::-1][:3]:
            print(f"{last[token]:7.3f}  {runtime.text.decode([token])!r}")

        print("== two requests")
        session = runtime.session(max_batch=2)
        greedy = glm_trt.GenerateOptions(max_new_tokens=12)
        drawn = glm_trt.GenerateOptions(
            max_new_tokens=12, sampling=glm_trt.Sampling(temperature=0.8, top_p=0.95, seed=1)
        )
        requests = [
            session.submit(runtime.text.encode(prompt), options)
            for prompt, options in zip(PROMPTS, (greedy, drawn), strict=True)
        ]
        while session.step():  # a token of each
            pass  # others may be submitted here
        for prompt, request in zip(PROMPTS, requests, strict=True):
            print(f"{prompt!r} -> {request.text!r} ({request.finish_reason})")


def main() -> int:
    """The exit code is that of `glm-trt`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    try:
        show(parser.parse_args().bundle)
    except GlmTrtError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
