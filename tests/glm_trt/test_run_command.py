"""`glm-trt run` as a user runs it: streams, conversations, JSON, mistakes."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from glm_trt.cli import main
from glm_trt.engines.python.text import Text
from glm_trt.export.bundle.read import Bundle
from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint

TINY = Path(__file__).parent.parent / "data" / "glm-5.1-tiny"


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = main(["run", *map(str, arguments)])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_prompts(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, plain, errors = run(capsys, tiny_bundle, "--prompt", "def main():")
    assert (code, errors) == (0, "") and plain.startswith("def main():\n")
    assert run(capsys, tiny_bundle, "--prompt", "def main():", "--drafts", 2)[1] == plain
    code, text, _ = run(
        capsys, tiny_bundle, "--prompt", "def main():", "--json", "--drafts", 2, "--logprobs", 2
    )
    result = json.loads(text)
    assert "def main():" + result["text"] + "\n" == plain
    assert len(result["token_ids"]) == len(result["logprobs"]) == 32
    assert 0 < result["draft_acceptance"] < 1 and result["finish_reason"] == "length"
    code, text, _ = run(capsys, tiny_bundle, "--prompt", "def main():", "--stop", "Return")
    assert text == plain[: plain.index("Return")] + "\n"
    ids = ",".join(map(str, result["input_ids"]))
    sampled = [
        run(capsys, tiny_bundle, "--input-ids", ids, "--temperature", 1, "--seed", seed)[1]
        for seed in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]


def test_it_streams(tiny_bundle: Path) -> None:
    """The first characters are there before the last token is."""
    command = [sys.executable, "-m", "glm_trt.cli", "run", str(tiny_bundle), "--prompt", "import",
               "--max-new-tokens", "600"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(12).startswith(b"import")
        assert process.poll() is None
        process.stdout.close()  # as `| head` does
        assert process.wait() == 0


def test_a_reader_that_has_gone_is_no_error(tiny_bundle: Path) -> None:
    """Not even where what it did not read is still to be written when Python ends."""
    for arguments in (["inspect", str(tiny_bundle), "--json"], ["plan", "glm-5.1", "--json"]):
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [sys.executable, "-m", "glm_trt.cli", *arguments], stdout=write, check=False,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        os.close(write)
        assert (done.returncode, done.stderr) == (0, "")


def test_conversation(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "import os\n\nclass A:\nand then?\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(said))
    code, text, _ = run(
        capsys, tiny_bundle, "--chat", "--system", "x = 1", "--json", "--max-new-tokens", 9
    )
    answers = [json.loads(line) for line in text.splitlines()]
    assert code == 0 and len(answers) == 3
    assert answers[0]["reused_tokens"] == 0
    first = [{"role": "system", "content": "x = 1"}, {"role": "user", "content": "import os"}]
    assert answers[0]["input_ids"] == Text(Bundle.open(tiny_bundle)).chat(first)
    for before, after in itertools.pairwise(answers):
        # All of what was run before, unless its text is split into other tokens now.
        both = [*before["input_ids"], *before["token_ids"]]
        assert after["input_ids"][: len(before["input_ids"])] == before["input_ids"]
        assert len(before["input_ids"]) <= after["reused_tokens"] < len(both)
    monkeypatch.setattr(sys, "stdin", io.StringIO(said))
    _, plain, _ = run(
        capsys, tiny_bundle, "--chat", "--system", "x = 1", "--max-new-tokens", 9, "--drafts", 1
    )
    assert plain == "".join(answer["text"] + "\n" for answer in answers)


def test_a_conversation_by_another_template(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(TINY, tmp_path / "c")
    named = tmp_path / "c" / "additional_chat_templates" / "rag.jinja"
    named.parent.mkdir()
    named.write_text("x = {{ messages[0].content }}")
    export_checkpoint(tmp_path / "c", tmp_path / "b", ExportOptions(dtypes=("float32",)))
    options = ["--chat", "--json", "--max-new-tokens", 2, "--chat-template"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("1\n"))
    code, text, _ = run(capsys, tmp_path / "b", *options, "rag")
    assert code == 0
    assert json.loads(text)["input_ids"] == Text(Bundle.open(tmp_path / "b")).encode("x = 1")
    code, text, errors = run(capsys, tmp_path / "b", *options, "none")
    assert (code, text) == (2, "") and "no chat template 'none'; there are: rag" in errors


def stream(content: bytes, encoding: str) -> io.TextIOWrapper:
    """As Python opens the standard streams: what is no text there is an error."""
    return io.TextIOWrapper(io.BytesIO(content), encoding=encoding, errors="strict")


def test_a_bad_line_does_not_end_a_conversation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes that are no UTF-8, what the template refuses or fails on, and what is too long."""
    shutil.copytree(TINY, tmp_path / "c")
    (tmp_path / "c" / "chat_template.jinja").write_text(
        "{% for m in messages %}"
        "{% if m.content == 'no' %}{{ raise_exception('not so') }}{% endif %}"
        "{{ m.content }}{{ m.content[0] ~ 1 // (m.content | length - 3) }}\n{% endfor %}"
    )
    settings = ExportOptions(dtypes=("float32",), max_seq_len=64)
    export_checkpoint(tmp_path / "c", tmp_path / "b", settings)
    options = [tmp_path / "b", "--chat", "--json", "--max-new-tokens", 2]
    bad = [b"\xff\xfe", b"caf\xe9", b"no", b"div", b"long " * 99]
    monkeypatch.setattr(sys, "stdin", stream(b"\n".join([b"good", *bad, b"more"]), "utf-8"))
    code, text, errors = run(capsys, *options)
    first, *said, last = map(json.loads, text.splitlines())
    reasons = [
        "the line: expected Unicode text, found U+DCFF at character 0: half of a surrogate pair, "
        "the byte 0xFF",
        "the line: expected Unicode text, found U+DCE9 at character 3: half of a surrogate pair, "
        "the byte 0xE9",
        "chat template: not so",
        "chat template: ZeroDivisionError: integer division or modulo by zero",
        "64",
    ]
    assert code == 2 and len(said) == len(bad)
    for line, answer, reason in zip(errors.splitlines(), said, reasons, strict=True):
        assert reason in answer["error"] and line == f"glm-trt run: error: {answer['error']}"
    # As if they had not been there.
    monkeypatch.setattr(sys, "stdin", stream(b"good\nmore\n", "utf-8"))
    code, text, errors = run(capsys, *options)
    assert (code, errors) == (0, "") and [*map(json.loads, text.splitlines())] == [first, last]


def test_characters_that_the_terminal_lacks(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = stream(b"", "ascii")
    monkeypatch.setattr(sys, "stdout", output)
    command = ["run", str(tiny_bundle), "--prompt", "x = 'é🙂'", "--max-new-tokens", "1"]
    assert main(command) == 0
    assert output.buffer.getvalue().startswith(rb"x = '\xe9\U0001f642'")  # type: ignore[attr-defined]


@pytest.mark.parametrize("option", ["--prompt", "--system"])
def test_arguments_that_are_no_text(
    option: str, tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mode = ["--chat"] if option == "--system" else []
    code, text, errors = run(capsys, tiny_bundle, *mode, option, os.fsdecode(b"a\xff"))
    assert (code, text) == (2, "")
    assert errors == (
        f"glm-trt run: error: {option}: expected Unicode text, found U+DCFF at character 1: half "
        "of a surrogate pair, the byte 0xFF\n"
    )


def test_without_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(TINY, tmp_path / "c", ignore=shutil.ignore_patterns("tokenizer*"))
    export_checkpoint(tmp_path / "c", tmp_path / "b", ExportOptions(dtypes=("float32",)))
    code, text, _ = run(capsys, tmp_path / "b", "--input-ids", "5,6", "--max-new-tokens", 3)
    assert code == 0 and len(text.split(",")) == 3
    for arguments in (["--prompt", "x"], ["--chat"]):
        code, text, errors = run(capsys, tmp_path / "b", *arguments)
        assert (code, text) == (2, "") and "has no tokenizer.json" in errors


def test_a_tokenizer_that_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Export says so before anybody waits for a model to load."""
    shutil.copytree(TINY, tmp_path / "c")
    config = json.loads((TINY / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "Qwen2Tokenizer"
    (tmp_path / "c" / "tokenizer_config.json").write_text(json.dumps(config))
    command = ["export", str(tmp_path / "c"), "-o", str(tmp_path / "b"), "--dtype", "float32"]
    assert main(command) == 0
    reason = "tokenizer_config.json: tokenizer_class: Qwen2Tokenizer: transformers builds this"
    errors = capsys.readouterr().err
    assert "but not run from Python" in errors and reason in errors
    code, text, errors = run(capsys, tmp_path / "b", "--prompt", "x")
    assert (code, text) == (2, "") and reason in errors


@pytest.mark.parametrize(("arguments", "message"), [
    (["--prompt", ""], "--prompt"),
    (["--prompt", "x", "--max-new-tokens", "0"], "--max-new-tokens"),
    (["--prompt", "x", "--temperature", "-1"], "temperature"),
    (["--prompt", "x", "--top-p", "0"], "--top-p: expected"),
    (["--prompt", "x", "--drafts", "-1"], "drafts"),
    (["--prompt", "x", "--system", "y"], "--chat"),
    (["--prompt", "x", "--chat-template", "y"], "--chat-template: of a conversation"),
    (["--prompt", "x", "--logprobs", "0"], "--json"),
    (["--prompt", "x", "--stop", ""], "stop"),
    (["--input-ids", "5000"], "input_ids"),
])  # fmt: skip
def test_mistakes(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    code, text, errors = run(capsys, tiny_bundle, *arguments)
    assert code == 2 and message in errors and text in ("", "x")
