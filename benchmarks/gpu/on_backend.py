"""The package on TensorRT, or with `--stand-ins` on the tests' own device and engines.

python on_backend.py decode BUNDLE BACKEND FILE [--stand-ins]
python on_backend.py cli --stand-ins ARGUMENTS ...
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from outcome import ROOT, Settings, Skipped

PROMPT = [1, 2, 3, 4, 5, 6, 7, 8]
TOKENS = 24
DOUBLES = str(ROOT / "tests/support")


def need_engines(settings: Settings) -> None:
    """Raises Skipped where the step before built none."""
    if not (settings.bundle / "engines" / settings.backend).is_dir():
        raise Skipped(f"no engines of {settings.backend} are in {settings.bundle}")


def glm_trt(settings: Settings, *arguments: str) -> tuple[int, str]:
    """The command `glm-trt` with these arguments."""
    from commands import run_python

    if settings.stand_ins:
        return run_python(Path(__file__), "cli", "--stand-ins", *arguments)
    return run_python("-P", "-m", "glm_trt.cli", *arguments)


def use_stand_ins() -> None:
    """Backends opened from now on are the tests' own: host memory, onnxruntime for engines."""
    sys.path.insert(0, DOUBLES)
    from tensorrt_double import MAX_TOKENS, HostDevice, open_double

    import glm_trt.engines.python.tensorrt_backend as backend
    from glm_trt.validate import cases, subjects

    def opened(bundle: Any, _name: str) -> Any:
        return open_double(bundle, HostDevice())

    cases.MOST_TOKENS = MAX_TOKENS
    backend.open_backend = subjects.open_backend = opened


def tokens(bundle: str, backend: str, record: bool = True) -> tuple[list[int], int]:
    """Greedy tokens, and how many steps were replayed."""
    import glm_trt

    replays = 0
    with glm_trt.load(bundle, backend) as runtime:
        device = getattr(runtime.backend, "device", None)
        if device is not None:
            recorded = device.record

            def counted(work: Callable[[], None]) -> Callable[[], None] | None:
                replay = recorded(work) if record else None
                if replay is None:
                    return None

                def again() -> None:
                    nonlocal replays
                    replays += 1
                    replay()

                return again

            device.record = counted
        made = runtime.generate([PROMPT], max_new_tokens=TOKENS, eos_token_ids=())[0]
    return [int(token) for token in made], replays


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
    arguments = [x for x in sys.argv[1:] if x != "--stand-ins"]
    if "--stand-ins" in sys.argv:
        use_stand_ins()
    if arguments[0] == "cli":
        from glm_trt.cli import main as command

        return command(arguments[1:])
    from glm_trt.model.errors import GlmTrtError

    try:
        return decode(*arguments[1:])
    except GlmTrtError as error:
        print(f"decode: error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
