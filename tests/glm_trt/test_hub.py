"""Checkpoints by their names on the hub: fetched, found in the cache, and all that goes wrong.

What the cache holds is laid out by `huggingface_hub` itself, from a stand-in for the hub.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_double import Hub, hub_of_this_machine
from huggingface_hub import constants

from glm_trt.cli import main
from glm_trt.export.bundle.read import Bundle
from glm_trt.model.checkpoint.hub import LOWEST

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "data" / "glm-5.1-tiny"
NAME = "zai-org/GLM-5.1"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
CHECKPOINT = {path.name for path in TINY.iterdir()}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """With the tiny model, beside what a reader has no use for."""
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    for stray in ("README.md", "consolidated.safetensors", "original/model.safetensors",
                  "model.gguf", "adapter_model.safetensors", "additional_chat_templates/a.jinja",
                  "chat_template.jinja"):  # fmt: skip
        (folder / stray).parent.mkdir(exist_ok=True)
        (folder / stray).write_text(f"{{# {stray} #}}")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with hub_of_this_machine(tmp_path / "cache", monkeypatch) as hub:
        hub.add(NAME, folder)
        yield hub


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = main([*map(str, arguments)])
    output = capsys.readouterr()
    return code, output.out, output.err


EXPORT = ("export", NAME, "-o", "bundle", "--dtype", "float32")


def test_export_and_run(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, errors = run(capsys, *EXPORT)
    assert (code, text) == (0, "bundle: written\n")
    said = [line for line in errors.splitlines() if line.startswith("glm-trt export: ")]
    assert said[0] == (
        f"glm-trt export: {NAME}: no such directory here; asking the hub at {hub.url} for it"
    )
    templates = {"chat_template.jinja", "additional_chat_templates/a.jinja"}
    assert set(hub.asked) == CHECKPOINT | templates and set(hub.asked.values()) == {1}
    snapshot = Path(said[-1].rpartition("whole, in ")[2])
    assert snapshot.is_relative_to(tmp_path / "cache")
    assert Bundle.open("bundle").weights_directory.resolve() == snapshot.resolve()
    assert run(capsys, *EXPORT)[1] == "bundle: up to date\n"
    assert set(hub.asked.values()) == {1}  # of the cache
    code, plain, _ = run(capsys, "run", "bundle", "--prompt", "x = 1")
    shutil.move("bundle", tmp_path / "moved")
    options = ("--prompt", "x = 1", "--checkpoint", NAME)
    assert code == 0 and run(capsys, "run", tmp_path / "moved", *options)[1] == plain
    code, _, errors = run(capsys, "run", tmp_path / "moved", "--prompt", "x", "--revision", "main")
    assert code == 2 and "--revision: goes with --checkpoint NAME" in errors
    hub.down = True  # what is whole in the cache does for it
    assert run(capsys, "run", tmp_path / "moved", *options)[:2] == (0, plain)


def test_a_download_says_how_far_it_is(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a terminal: in lines, and nothing else of a bar."""
    monkeypatch.setattr("glm_trt.model.checkpoint.hub.LINE_SECONDS", 0.0)
    code, _, errors = run(capsys, *EXPORT)
    assert code == 0 and "\r" not in errors and "%" not in errors
    assert re.search("^glm-trt export: 0.0 of 0.0 GB$", errors, re.MULTILINE)
    shutil.rmtree(constants.HF_HUB_CACHE)
    code, text, errors = run(capsys, *EXPORT, "--json")
    assert (code, errors) == (0, "") and not json.loads(text)["written"]


def test_plan_fetches_the_config_alone(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, errors = run(capsys, "plan", NAME, "--json")
    plan = json.loads(text)
    assert (code, errors) == (0, "") and list(hub.asked) == ["config.json"]
    assert plan["source"]["name"] == NAME and plan["source"]["stored_bytes"] == 0
    _, text, _ = run(capsys, "plan", TINY / "config.json", "--json")
    assert plan["parameters"] == json.loads(text)["parameters"]


def test_revisions(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A branch follows the hub, a commit stays what it is."""
    (first,) = hub.models[NAME]
    folder = tmp_path / "second"
    shutil.copytree(TINY, folder)
    config = json.loads((TINY / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 512}))
    hub.add(NAME, folder)
    embedding = {}
    for revision in (None, first, "main"):
        options = () if revision is None else ("--revision", revision)
        code, text, _ = run(capsys, "plan", NAME, "--json", *options)
        assert code == 0
        embedding[revision] = json.loads(text)["parameters"]["components"]["embedding"]
    assert embedding[first] == 4 * embedding[None] == 4 * embedding["main"]


def test_offline(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(capsys, "plan", NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert run(capsys, "plan", NAME)[0] == 0
    code, _, errors = run(capsys, *EXPORT)
    assert code == 2 and errors.splitlines()[-1] == (
        f"glm-trt export: error: {NAME}: no such directory here, and the cache "
        f"{constants.HF_HUB_CACHE} has it not or not whole; HF_HUB_OFFLINE is set"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert run(capsys, *EXPORT)[0] == 0
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.models.clear()
    code, text, errors = run(capsys, *EXPORT)
    assert (code, text) == (0, "bundle: up to date\n")
    assert f"looking in {constants.HF_HUB_CACHE}, as HF_HUB_OFFLINE is set" in errors


def test_a_download_that_breaks_off(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once: it goes on from the byte. Always: an error; the next run fetches what is missing."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.cut["model.safetensors"] = 1
    assert run(capsys, *EXPORT)[0] == 0
    ((file, start),) = hub.ranges
    assert file == "model.safetensors" and start > 1_000_000
    shutil.rmtree(constants.HF_HUB_CACHE)
    hub.asked.clear()
    hub.cut["model.safetensors"] = 1000
    code, _, errors = run(capsys, *EXPORT)
    assert code == 2 and errors.splitlines()[-1].endswith(
        "; files that have come whole are kept, and the same command goes on from there"
    )
    assert "tokenizer.json" in hub.asked and "model.safetensors" not in hub.asked
    hub.cut.clear()
    assert run(capsys, *EXPORT)[0] == 0
    assert hub.asked["tokenizer.json"] == hub.asked["model.safetensors"] == 1


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ("zai-org/GLM-5", (), "neither a directory here nor a model at http://"),
        ("zai-org/GLM--5", (), "neither a directory here nor a name that a model can have on the"),
        (NAME, ("--revision", "v2"), "has no branch, tag or commit v2 of it"),
        ("gated/GLM-5.1", (), "accept them at http://"),
        ("empty/GLM-5.1", (), "has no config.json: expected a checkpoint of transformers"),
        ("other/model", (), "config.json"),
        ("awq/GLM-5.1", (), "awq"),
        ("blocks/GLM-5.1", (), "weight_block_size: expected [128, 128], found [64, 64]"),
        ("gguf/GLM-5.1", (), "has no .safetensors file; it has a.gguf, q4/b.gguf"),
    ],
)
def test_what_the_hub_has_not(
    given: str, options: tuple[str, ...], message: str, hub: Hub, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """No more is fetched than says so."""
    awq = json.loads((TINY / "config.json").read_text())
    awq["quantization_config"] = {"quant_method": "awq"}
    fp8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [64, 64]}
    blocks = awq | {"quantization_config": fp8}
    contents = {"empty": None, "other": {"model_type": "gpt2"}, "awq": awq, "blocks": blocks}
    for name, content in contents.items():
        (folder := tmp_path / name).mkdir()
        (folder / "model.safetensors").write_text("large")
        if content is not None:
            (folder / "config.json").write_text(json.dumps(content))
    hub.add("empty/GLM-5.1", tmp_path / "empty")
    hub.add("other/model", tmp_path / "other")
    hub.add("awq/GLM-5.1", tmp_path / "awq")
    hub.add("blocks/GLM-5.1", tmp_path / "blocks")
    for file in ("config.json", "a.gguf", "q4/b.gguf"):
        (tmp_path / "gguf" / file).parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(TINY / "config.json", tmp_path / "gguf" / file)
    hub.add("gguf/GLM-5.1", tmp_path / "gguf")
    hub.add("gated/GLM-5.1", TINY)
    hub.gated.add("gated/GLM-5.1")
    code, text, errors = run(capsys, "export", given, "-o", "bundle", *options)
    first, *_, last = errors.splitlines()
    assert (code, text) == (2, "") and f"{given}" in first and "asking the hub at" in first
    assert last.startswith("glm-trt export: error: ") and message in last
    assert not hub.asked["model.safetensors"]


@pytest.mark.parametrize(
    "given",
    ["models/GLM-5.1", "./zai-org/GLM-5.1", "zai-org/GLM-5.1/", "/zai-org/GLM-5.1", "a/b/c"],
)
def test_a_mistyped_path_is_not_asked_for(
    given: str, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("models").mkdir()
    code, text, errors = run(capsys, "export", given, "-o", "bundle")
    assert (code, text) == (2, "") and len(errors.splitlines()) == 1
    assert "not a directory; expected a checkpoint directory" in errors
    code, _, errors = run(capsys, "export", given, "-o", "bundle", "--revision", "main")
    assert code == 2 and "--revision: of a model on the hub, by its name as zai-org/" in errors


def test_a_directory_of_that_name_goes_before(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(TINY, NAME)
    code, _, errors = run(capsys, "plan", NAME)
    assert (code, errors) == (0, "") and not hub.asked


def test_the_extra_is_named() -> None:
    command = [sys.executable, "-P", str(ROOT / "tests" / "support" / "without.py"),
               "huggingface_hub", "-c", "import sys; from glm_trt.cli import main; "
               f"sys.exit(main(['plan', '{NAME}']))"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == (
        f"glm-trt plan: error: {NAME}: no such directory here; fetching it from the Hugging Face "
        "hub needs huggingface_hub, which is not installed: pip install 'glm-trt[hub]'\n"
    )


def test_an_old_library(
    hub: Hub, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.__version__", "1.21.0.rc0")
    code, text, errors = run(capsys, "plan", NAME)
    assert (code, text) == (3, "") and not hub.asked
    assert "needs huggingface_hub 2.4 or newer, found 1.21.0.rc0: pip install --upgrade" in errors
    (extra,) = EXTRAS["hub"]
    assert extra == f"huggingface_hub>={'.'.join(map(str, LOWEST))}"


def test_the_environment_is_the_librarys(hub: Hub, tmp_path: Path) -> None:
    """HF_ENDPOINT and HF_HOME, in a process of its own."""
    command = [sys.executable, "-m", "glm_trt.cli", "plan", NAME, "--json"]
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    environment |= {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["source"]["name"] == NAME
    assert [*(tmp_path / "home" / "hub").glob("*/snapshots/*/config.json")]
