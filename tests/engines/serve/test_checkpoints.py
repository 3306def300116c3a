"""What a server needs of its bundle, and what it can do without."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError
from servers import Start

from glm_trt.export.bundle import ExportOptions, export_checkpoint

DIALOGUE = Path(__file__).parents[2] / "data" / "glm-5.1-dialogue"
QUESTION: list[Any] = [{"role": "user", "content": "What is the weather in Paris?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]
        },
    },
}  # fmt: skip


def without_ends(directory: Path) -> Path:
    """The dialogue checkpoint, none of whose files has an end token."""
    shutil.copytree(DIALOGUE, directory)
    for path in directory.glob("*config.json"):
        fields = json.loads(path.read_text())
        kept = {name: of for name, of in fields.items() if not name.startswith("eos_token")}
        assert kept != fields, path
        path.write_text(json.dumps(kept))
    return directory


def test_without_end_tokens(tmp_path: Path, start_server: Start) -> None:
    """A form ends the answer; nothing else does, but its length."""
    bundle = tmp_path / "bundle"
    export_checkpoint(
        without_ends(tmp_path / "checkpoint"), bundle, ExportOptions(dtypes=("float32",))
    )
    client = start_server("--drafts", "1", bundle=bundle).client

    def ask(**options: Any) -> Any:
        return client.chat.completions.create(
            model="glm-5.1", messages=QUESTION, temperature=0, max_tokens=150, **options
        ).choices[0]

    free = ask()
    assert free.finish_reason == "length" and free.message.reasoning_content
    called = ask(tools=[WEATHER], tool_choice="required")
    assert called.finish_reason == "tool_calls"
    (call,) = called.message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
              "additionalProperties": False}  # fmt: skip
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answered = ask(response_format=wanted)
    assert answered.finish_reason == "stop" and [*json.loads(answered.message.content)] == ["ok"]
    wanted["json_schema"] = {"name": "x", "schema": {"type": "number"}}
    with pytest.raises(BadRequestError, match="as this model has no end token") as found:
        ask(response_format=wanted)
    assert found.value.param == "response_format.json_schema.schema"


def test_without_a_tokenizer(tmp_path: Path) -> None:
    checkpoint, bundle = tmp_path / "checkpoint", tmp_path / "bundle"
    shutil.copytree(DIALOGUE, checkpoint, ignore=shutil.ignore_patterns("tokenizer.json"))
    export_checkpoint(checkpoint, bundle, ExportOptions(dtypes=("float32",)))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "glm_trt.cli", "serve", str(bundle), "--port", "0"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    expected = (
        f"glm-trt serve: error: {bundle}: has no tokenizer.json (its checkpoint had none), which "
        "serving needs; put it beside the checkpoint's config.json and export again\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)
