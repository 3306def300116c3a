"""Greedy tokens on TensorRT, replayed and queued: `python on_backend.py BUNDLE BACKEND FILE`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from outcome import ROOT, Settings, Skipped

PROMPT = [1, 2, 3, 4, 5, 6, 7, 8]
TOKENS = 24


def need_engines(settings: Settings) -> None:
    """Raises Skipped where the step before built none."""
    if not (settings.bundle / "engines" / settings.backend).is_dir():
        raise Skipped(f"no engines of {settings.backend} are in {settings.bundle}")


class Counted:
    """Recorded work that counts how often any was replayed."""

    replays = 0

    def __init__(self, work: Any) -> None:
        self.work = work

    def __call__(self) -> None:
        """Queue it once more."""
        Counted.replays += 1
        self.work()

    def close(self) -> Any:
        """Destroy it."""
        return self.work.close()


def tokens(bundle: str, backend: str, record: bool = True) -> tuple[list[int], int]:
    """Greedy tokens, and how many steps were replayed."""
    import glm_trt

    Counted.replays = 0
    with glm_trt.load(bundle, backend) as runtime:
        device = getattr(runtime.backend, "device", None)
        if device is not None:
            recorded = device.record

            def counted(work: Callable[[], None]) -> Any:
                replay = recorded(work) if record else None
                return None if replay is None else Counted(replay)

            device.record = counted
        made = runtime.generate([PROMPT], max_new_tokens=TOKENS, eos_token_ids=())[0]
    return [int(token) for token in made], Counted.replays


def decode(bundle: str, backend: str, file: str) -> int:
    """Write the tokens of both ways, and those of onnxruntime on the CPU."""
    recorded, replays = tokens(bundle, backend)
    queued, _ = tokens(bundle, backend, record=False)
    expected, _ = tokens(bundle, "onnxruntime")
    found = {"prompt": PROMPT, "recorded": recorded, "queued": queued, "onnxruntime": expected,
             "replays": replays}  # fmt: skip
    Path(file).write_text(json.dumps(found))
    return 0


def main() -> int:
    """See the module; exit codes are those of `glm-trt`."""
    sys.path.insert(0, str(ROOT))
    from glm_trt.model.errors import GlmTrtError

    try:
        return decode(*sys.argv[1:])
    except GlmTrtError as error:
        print(f"decode: error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
