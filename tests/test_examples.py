"""The programs in examples/ that need no server, as they stand. Those that ask one are in
tests/engines/serve/test_examples.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import glm_trt

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
TESTED = {  # each with the test that runs it
    "sessions.py": "tests/test_examples.py",
    "make_task.py": "tests/test_examples.py",
    "openai_client.py": "tests/engines/serve/test_examples.py",
    "anthropic_client.py": "tests/engines/serve/test_examples.py",
    "agent.py": "tests/engines/serve/test_examples.py",
    "curl.sh": "tests/engines/serve/test_examples.py",
    "chat.mjs": "tests/engines/serve/test_examples.py",
    "ai_sdk.mjs": "tests/engines/serve/test_examples.py",
}


def run(*command: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-P", *command], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done


def test_sessions(tiny_bundle: Path, tmp_path: Path) -> None:
    """The greedy one goes on as `generate` does."""
    said = run(EXAMPLES / "sessions.py", tiny_bundle).stdout
    logits, requests = said.removeprefix("== logits\n").split("== two requests\n")
    with glm_trt.load(tiny_bundle) as runtime:
        assert runtime.text is not None
        ids = runtime.text.encode("def main(")
        (expected,) = runtime.generate([ids], max_new_tokens=12)
        likeliest = runtime.text.decode([runtime.forward([ids])[0, -1].argmax()])
        assert f"'def main(' -> {runtime.text.decode(expected)!r} (length)\n" in requests
    assert logits.splitlines()[0].endswith(repr(likeliest)) and len(logits.splitlines()) == 3
    assert requests.count("(length)") == 2
    absent = run(EXAMPLES / "sessions.py", tmp_path, code=2)
    assert absent.stderr == (
        f"{tmp_path}/manifest.json: not found; {tmp_path} is not a finished bundle\n"
    )


def test_a_task_for_lm_eval() -> None:
    made = run(EXAMPLES / "lm_eval" / "make_task.py", __file__, "--questions", "5").stdout
    questions = [json.loads(line) for line in made.splitlines()]
    source = "\n".join(x for x in Path(__file__).read_text().splitlines() if x.strip())
    assert len(questions) == 5
    for question in questions:
        assert len({*question["choices"]}) == 4
        assert question["context"] + question["choices"][question["label"]] in source


def test_every_program_is_run_by_a_test() -> None:
    found = [path for of in ("*.py", "*.sh", "*.mjs") for path in EXAMPLES.rglob(of)]
    programs = {path.name for path in found if not {"operator", "node_modules"} & {*path.parts}}
    assert programs == {*TESTED}
    for program, test in TESTED.items():
        assert f'"{program}"' in (ROOT / test).read_text().replace(f'"{program}":', "")
        assert program in (EXAMPLES / "README.md").read_text() or program == "make_task.py"
