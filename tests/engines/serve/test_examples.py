"""The programs in examples/, as they stand, against a server."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from servers import Running

EXAMPLES = Path(__file__).parents[3] / "examples"
NODE = shutil.which("node")
CURL = ("models", "a whole answer", "a stream, with the tokens in its last event",
        "JSON of a schema, without reasoning", "a field that does not exist")  # fmt: skip
CHAT = ("a stream", "a call", "a field that does not exist")
AI_SDK = ("a stream", "an object", "a tool")


def run(
    *command: str | Path, server: Running, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OPENAI_BASE_URL": f"{server.url}/v1",
                                "ANTHROPIC_BASE_URL": server.url}  # fmt: skip
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        environment.pop(name, None)
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True,
                          timeout=300)  # fmt: skip


def sections(output: str, *names: str) -> list[str]:
    """What was printed below each of these headings. A model's text may have lines like them."""
    found = []
    for name in names:
        before, heading, output = output.partition(f"== {name}\n")
        assert heading, (name, before)
        found.append(before)
    return [*found[1:], output]


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_curl(server: Running) -> None:
    done = run(EXAMPLES / "curl.sh", server=server)
    assert done.returncode == 0, done.stderr
    found = sections(done.stdout, *CURL)
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
    found = sections(done.stdout, "whole", "streamed", "structured", "log_probabilities")
    assert "tokens: " in found[0] and "tokens: " in found[1]
    assert found[2].startswith("{'verdict': ")
    assert "%" in found[3].splitlines()[0]


@pytest.mark.skipif(find_spec("anthropic") is None, reason="no client of Anthropic's here")
def test_anthropics_client(dialogue_server: Running) -> None:
    done = run(sys.executable, "-P", EXAMPLES / "anthropic_client.py", server=dialogue_server)
    assert done.returncode == 0, done.stderr
    found = sections(done.stdout, "whole", "streamed", "tools")
    assert "tokens: " in found[0] and "ended by: " in found[1]
    assert calls_of_add(found[2]) == 1 and len(found[2].splitlines()) == 2


def calls_of_add(output: str) -> int:
    """How many lines tell a call of it; each with the sum."""
    found = re.findall(r"add\((\{.*\})\) = (\{.*\})", output)
    for arguments, result in found:
        assert sum(json.loads(arguments).values()) == json.loads(result)["result"]
    return len(found)


def test_an_agent(dialogue_server: Running) -> None:
    command = (sys.executable, "-P", EXAMPLES / "agent.py", "--temperature", "0")
    done = run(*command, "What is 17 plus 25?", server=dialogue_server)
    assert done.returncode == 0, done.stderr
    assert calls_of_add(done.stdout) == 1
    reasoning, call, again, answer = done.stdout.splitlines()
    assert reasoning and call.startswith("-> add(") and again and answer
    done = run(*command, "What time is it?", "--turns", "1", server=dialogue_server)
    assert done.returncode == 1 and "-> get_time({}) = " in done.stdout
    assert done.stderr == "no answer within 1 turns\n"
    done = run(*command, "--max-tokens", "3", server=dialogue_server)
    assert done.returncode == 1 and done.stderr.startswith("the answer was cut")


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


def test_calls_from_node(dialogue_server: Running, node: Path) -> None:
    done = run(str(NODE), "chat.mjs", server=dialogue_server, cwd=node)
    assert done.returncode == 0, done.stderr
    call = re.fullmatch(r"add\((.*)\)\n", sections(done.stdout, *CHAT)[1])
    assert call is not None and [*json.loads(call[1])] == ["a", "b"]
    done = run(str(NODE), "ai_sdk.mjs", server=dialogue_server, cwd=node)
    assert done.returncode == 0, done.stderr
    assert calls_of_add(sections(done.stdout, *AI_SDK)[2]) >= 1


def test_openais_client_for_node(server: Running, node: Path) -> None:
    done = run(str(NODE), "chat.mjs", server=server, cwd=node)
    assert done.returncode == 0, done.stderr
    found = sections(done.stdout, *CHAT)
    assert "tokens: " in found[0]
    assert found[1].startswith("refused: 400 tools: the tokenizer has no token")
    assert found[2].strip() == "400: 400 temprature: unknown field"


def test_the_ai_sdk(server: Running, node: Path) -> None:
    done = run(str(NODE), "ai_sdk.mjs", server=server, cwd=node)
    assert done.returncode == 0, done.stderr
    found = sections(done.stdout, *AI_SDK)
    assert "tokens: " in found[0]
    assert found[1].startswith("{ verdict: '")
    assert found[2].startswith("refused: tools: the tokenizer has no token")
