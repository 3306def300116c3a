"""The programs in examples/, as they stand, against a server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from servers import Running

EXAMPLES = Path(__file__).parents[3] / "examples"
NODE = shutil.which("node")


def run(
    *command: str | Path, server: Running, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OPENAI_BASE_URL": f"{server.url}/v1"}
    environment.pop("OPENAI_API_KEY", None)
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True,
                          timeout=300)  # fmt: skip


def sections(output: str) -> dict[str, str]:
    """What was printed, by the headings before it."""
    parts = output.split("== ")[1:]
    return {name: text for name, _, text in (part.partition("\n") for part in parts)}


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_curl(server: Running) -> None:
    done = run(EXAMPLES / "curl.sh", server=server)
    assert done.returncode == 0, done.stderr
    found = [*sections(done.stdout).values()]
    assert [x["id"] for x in json.loads(found[0])["data"]] == ["glm-5.1"]
    assert json.loads(found[1])["choices"][0]["message"]["role"] == "assistant"
    events = [x.removeprefix("data: ") for x in found[2].splitlines() if x]
    assert events[-1] == "[DONE]" and json.loads(events[-2])["usage"]["completion_tokens"] <= 8
    verdict = json.loads(json.loads(found[3])["choices"][0]["message"]["content"])
    assert verdict["verdict"] in ("yes", "no", "unknown")
    assert json.loads(found[4])["error"]["param"] == "temprature"


def test_openais_client(server: Running) -> None:
    done = run(sys.executable, "-P", EXAMPLES / "openai_client.py", server=server)
    assert done.returncode == 0, done.stderr
    found = sections(done.stdout)
    assert [*found] == ["whole", "streamed", "structured", "log_probabilities"]
    assert "tokens: " in found["whole"] and "tokens: " in found["streamed"]
    assert found["structured"].startswith("{'verdict': ")
    assert "%" in found["log_probabilities"].splitlines()[0]


def test_an_agent_is_told_why_there_are_no_calls(server: Running) -> None:
    done = run(sys.executable, "-P", EXAMPLES / "agent.py", server=server)
    assert done.returncode == 1
    assert "tools: the tokenizer has no token" in done.stderr and "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the Node clients with its packages, outside the repository."""
    npm = shutil.which("npm")
    if NODE is None or npm is None:
        pytest.skip("no Node here")
    folder = tmp_path_factory.mktemp("node")
    for path in (EXAMPLES / "node").iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    command = [npm, "install", "--no-audit", "--no-fund", "--prefer-offline", "--fetch-retries=0"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        pytest.skip(f"npm install: {done.stderr.strip().splitlines()[-1]}")
    return folder


def test_openais_client_for_node(server: Running, node: Path) -> None:
    done = run(str(NODE), "chat.mjs", server=server, cwd=node)
    assert done.returncode == 0, done.stderr
    found = [*sections(done.stdout).values()]
    assert "tokens: " in found[0]
    assert found[1].startswith("refused: 400 tools: the tokenizer has no token")
    assert found[2].strip() == "400: 400 temprature: unknown field"


def test_the_ai_sdk(server: Running, node: Path) -> None:
    done = run(str(NODE), "ai_sdk.mjs", server=server, cwd=node)
    assert done.returncode == 0, done.stderr
    found: list[Any] = [*sections(done.stdout).values()]
    assert "tokens: " in found[0]
    assert found[1].startswith("{ verdict: '")
    assert found[2].startswith("refused: tools: the tokenizer has no token")
