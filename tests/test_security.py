"""What SECURITY.md says that no other test shows."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from glm_trt.cli import make_parser
from glm_trt.engines.python.text import Text
from glm_trt.engines.serve.serve import ServeOptions
from glm_trt.export.bundle.read import manifest_schema
from glm_trt.model.checkpoint.read import Checkpoint

ROOT = Path(__file__).parent.parent
CHECKPOINT = ROOT / "tests/data/glm-5.1-tiny"
SOURCES = ("model", "plugins", "export", "engines", "validate", "glm_trt/commands")
RUNS_CODE = re.compile(
    r"\bpickle\b|torch\.load\(|allow_pickle=True|trust_remote_code=True|yaml\.load\(|shell=True|"
    r"os\.system\(|\bmarshal\b|\bexec\("
)
# The fields of a manifest that name files of the bundle, or of the checkpoint's directory.
FILES = {"graphs", "bindings", "library", "engines", "tokenizer", "files"}


def test_it_listens_on_this_machine_alone() -> None:
    assert make_parser().parse_args(["serve", "bundle"]).host == "127.0.0.1"
    assert ServeOptions().host == "127.0.0.1"


def test_no_code_of_a_checkpoint_is_run(tmp_path: Path) -> None:
    """Though its files ask for it as they ask transformers for it."""
    folder, ran = tmp_path / "checkpoint", tmp_path / "ran"
    shutil.copytree(CHECKPOINT, folder)
    code = f"open({str(ran)!r}, 'w')\n"
    for module in ("modeling_own", "configuration_own", "tokenization_own", "sitecustomize"):
        (folder / f"{module}.py").write_text(code)
    for name, fields in (
        ("config.json", {"AutoConfig": "configuration_own.C", "AutoModel": "modeling_own.M"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["tokenization_own.T", None]}),
    ):  # fmt: skip
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | {"auto_map": fields}))
    checkpoint = Checkpoint.open(folder)
    files = {path.relative_to(folder).as_posix(): path for path in checkpoint.tokenizer_files}
    assert Text.of_files(files, str(folder)).encode("def main():")
    assert not ran.exists()
    found = {
        path.relative_to(ROOT).as_posix()
        for of in SOURCES
        for path in (ROOT / of).rglob("*.py")
        if RUNS_CODE.search(_without_comments(path.read_text()))
    }
    assert not found


def _without_comments(source: str) -> str:
    source = re.sub(r'""".*?"""', "", source, flags=re.DOTALL)
    return re.sub(r"#.*|\"[^\"\n]*\"", "", source)


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "a/..", "a\nb", "a\x00", ""])
def test_paths_of_a_manifest_stay_in_the_bundle(path: str) -> None:
    schema = manifest_schema()
    rule = {"$defs": schema["$defs"], "$ref": "#/$defs/path"}
    jsonschema.validate("graphs/float32/head.onnx", rule)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(path, rule)
    found = {place for place, text in _references(schema, schema) if text == "#/$defs/path"}
    assert found >= FILES


def _references(schema: dict[str, Any], part: Any, top: str = "") -> Iterator[tuple[str, str]]:
    """Which field of the manifest leads to which definition."""
    for name, value in part.items() if isinstance(part, dict) else enumerate(part):
        if name == "$ref":
            yield top, value
            yield from _references(schema, schema["$defs"][value.rpartition("/")[2]], top)
        elif name == "properties" and part is schema:
            for field, of in value.items():
                yield from _references(schema, of, field)
        elif name != "$defs" and isinstance(value, dict | list):
            yield from _references(schema, value, top)
