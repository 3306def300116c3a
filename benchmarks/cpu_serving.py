"""What HTTP costs: tokens a second of `glm-trt serve` at eight streams against the session itself.

Both run the same eight prompts, greedily, by turns: a session in this process, and a server in
another, asked by eight curl processes that stream. The model is that of `cpu_decode.py`, whose 1.2
GB of active weights are read for each token, so that a pass takes what it takes on a real model;
with `--tiny`, the small checkpoint, where all is overhead.

Exit codes: 0 reported, 1 the tokens differ.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from cpu_decode import GENERATED, TINY, WORK, generated_checkpoint

import glm_trt
from glm_trt.engines.python.request import GenerateOptions
from glm_trt.engines.python.runtime import Runtime
from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint

STREAMS = 8


class Server:
    """`glm-trt serve` of a bundle, in a process of its own."""

    def __init__(self, bundle: Path, options: list[str]) -> None:
        command = ["serve", str(bundle), "--port", "0", "--json", "--max-batch", str(STREAMS)]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "glm_trt.cli", *command, *options],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        self.url = json.loads(self._process.stdout.readline())["url"]

    def run(self, prompts: list[list[int]], count: int) -> tuple[list[str], float]:
        """Texts, and seconds until all have come."""
        with tempfile.TemporaryDirectory() as place:
            clients = []
            for i, prompt in enumerate(prompts):
                body = {"model": "glm-5.1", "prompt": prompt, "max_tokens": count,
                        "temperature": 0, "ignore_eos": True, "stream": True}  # fmt: skip
                (Path(place) / f"{i}.json").write_text(json.dumps(body))
            began = time.perf_counter()
            for i in range(len(prompts)):
                clients.append(subprocess.Popen(
                    ["curl", "-sN", f"{self.url}/v1/completions", "-o", f"{place}/{i}.sse",
                     "-H", "Content-Type: application/json", "-d", f"@{place}/{i}.json"],
                ))  # fmt: skip
            for client in clients:
                client.wait()
            seconds = time.perf_counter() - began
            return [_text(Path(place) / f"{i}.sse") for i in range(len(prompts))], seconds

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()


def _text(path: Path) -> str:
    lines = [line[6:] for line in path.read_text().splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]", path.read_text()[:500]
    return "".join(json.loads(line)["choices"][0]["text"] for line in lines[:-1])


def run_session(
    runtime: Runtime, prompts: list[list[int]], count: int, drafts: int
) -> tuple[list[str], float]:
    assert runtime.text is not None
    options = GenerateOptions(count, eos_token_ids=())
    session = runtime.session(max_batch=STREAMS, drafts=drafts)
    began = time.perf_counter()
    requests = [session.submit(prompt, options) for prompt in prompts]
    session.run()
    seconds = time.perf_counter() - began
    return [runtime.text.decode(request.tokens) for request in requests], seconds


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="the small checkpoint")
    parser.add_argument("--prompt-length", type=int, default=32, metavar="S")
    parser.add_argument("--new-tokens", type=int, default=32, metavar="N", help="of each stream")
    parser.add_argument("--drafts", type=int, default=0, metavar="N")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default 5)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    checkpoint = TINY if options.tiny else generated_checkpoint()
    bundle = WORK / ("serving-tiny" if options.tiny else "serving-generated")
    if not options.tiny:
        shutil.copy2(TINY / "tokenizer.json", checkpoint)  # texts need one; IDs beyond it are none
    export_checkpoint(checkpoint, bundle, ExportOptions(dtypes=("float32",)))
    vocabulary = 2048 if options.tiny else GENERATED["vocab_size"]
    rng = np.random.default_rng(0)
    prompts = rng.integers(1, vocabulary, (STREAMS, options.prompt_length)).tolist()
    # Prefixes would spare the server what the session runs.
    server = Server(bundle, ["--prefix-cache", "0", "--drafts", str(options.drafts)])
    ratios, speeds = [], []
    try:
        with glm_trt.load(bundle) as runtime:
            for number in range(options.rounds + 1):  # the first one warms up
                plain, seconds = run_session(runtime, prompts, options.new_tokens, options.drafts)
                served, more = server.run(prompts, options.new_tokens)
                if served != plain:
                    print("the server's tokens differ from the session's; no figures",
                          file=sys.stderr)  # fmt: skip
                    return 1
                if number:
                    ratios.append(more / seconds)
                    speeds.append(STREAMS * options.new_tokens / seconds)
    finally:
        server.close()
    found: dict[str, Any] = {
        "streams": STREAMS, "new_tokens": options.new_tokens, "rounds": options.rounds,
        "session_tokens_per_second": median(speeds), "overhead": median(ratios) - 1,
        "overheads": [ratio - 1 for ratio in ratios],
    }  # fmt: skip
    least, most = min(ratios) - 1, max(ratios) - 1
    print(f"{checkpoint.name}: {STREAMS} streams of {options.new_tokens} tokens, "
          f"{found['session_tokens_per_second']:.1f} tokens/s by the session; the server takes "
          f"{found['overhead']:+.1%} time (rounds {least:+.1%} to {most:+.1%})")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
