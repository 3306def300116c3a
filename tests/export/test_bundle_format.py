"""The format of bundles: one description, what is made of it, and what does not follow it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import jsonschema
import pytest
from manifests import edit_manifest, manifest_json
from spoiled_bundles import SPOILED

from glm_trt.export.bundle import generate
from glm_trt.export.bundle.cpp_header import cpp_name, cpp_type, header_of
from glm_trt.export.bundle.format import FILE_NAME, Bindings, Manifest
from glm_trt.export.bundle.read import Bundle, bindings_schema, manifest_schema, read_manifest
from glm_trt.export.bundle.records import APART, from_json, records_in, schema_of, to_json
from glm_trt.export.bundle.write import write_manifest
from glm_trt.model.errors import BundleError
from glm_trt.model.rules import Rules
from glm_trt.model.states import layer_states


@dataclass(frozen=True)
class Leaf:
    """A leaf. Of no tree."""

    header_sha256: Annotated[str, Rules("word", max_length=3), "what it says"]
    dtype: Annotated[str, Rules(choices=("float32", "int8"))] | None


@dataclass(frozen=True)
class Tree:
    """A tree."""

    leaves: dict[str, tuple[Leaf, ...]]
    height: Annotated[int, Rules(minimum=1)]
    note: Any
    beside: tuple[Leaf, ...] = field(default=(), metadata=APART)


TREE = Tree({"a": (Leaf("x", None), Leaf("y", "int8")), "b": ()}, 3, {"z": [1]})


def test_nothing_that_is_made_is_stale(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else: python -P -m glm_trt.export.bundle.generate."""
    assert generate.stale_files() == []
    files = {tmp_path / "a": "a\n", tmp_path / "b": "b\n"}
    monkeypatch.setattr(generate, "generated", lambda: files)
    (tmp_path / "a").write_text("other\n")
    monkeypatch.setattr("sys.argv", ["generate", "--check"])
    assert generate.main() == 1 and not (tmp_path / "b").exists()
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(": stale")[0] for line in told] == [str(path) for path in files]
    monkeypatch.setattr("sys.argv", ["generate"])
    assert generate.main() == 0 and generate.stale_files() == []


def test_records_are_json_and_back() -> None:
    content = to_json(TREE)
    assert content == {
        "leaves": {
            "a": [{"header_sha256": "x", "dtype": None}, {"header_sha256": "y", "dtype": "int8"}],
            "b": [],
        },
        "height": 3,
        "note": {"z": [1]},
    }
    assert from_json(Tree, json.loads(json.dumps(content))) == TREE
    whole = from_json(Tree, content | {"height": 3.0})  # an integer, says JSON Schema
    assert type(whole.height) is int


def test_the_schema_of_a_record() -> None:
    schema = schema_of(Tree, "Trees")
    jsonschema.Draft202012Validator.check_schema(schema)
    check = jsonschema.Draft202012Validator(schema)
    good = to_json(TREE)
    assert check.is_valid(good)
    leaf = good["leaves"]["a"][0]
    for wrong in (
        good | {"more": 1}, {"leaves": {}, "note": 1}, good | {"height": 0},
        good | {"height": 1 << 54}, good | {"height": "3"}, good | {"leaves": []},
        good | {"leaves": {"a": leaf}}, good | {"leaves": {"a": [leaf | {"dtype": "int4"}]}},
        good | {"leaves": {"a": [leaf | {"header_sha256": "long"}]}}, good | {"beside": []},
    ):  # fmt: skip
        assert not check.is_valid(wrong), wrong
    assert set(schema["$defs"]) == {"Leaf", "word"}
    assert schema["$defs"]["Leaf"]["description"] == "A leaf. Of no tree."
    with pytest.raises(TypeError, match="no type of a record's field"):
        schema_of(set[str], "Sets")


def test_the_header_of_a_record() -> None:
    assert list(records_in(Tree)) == [Leaf, Tree]
    assert cpp_name("header_sha256") == "headerSha256"
    assert cpp_type(dict[str, Any]) == "Json"
    with pytest.raises(TypeError, match=r"no type of the C\+\+ runtime"):
        cpp_type(int | str)
    text = header_of([Tree], {"Trees": dict[str, Tree]}, {"kVersion": 3, "kName": "x"})
    for part in (
        "constexpr int64_t kVersion = 3;", 'constexpr char kName[] = "x";',
        "    std::string headerSha256; // what it says\n    std::optional<Dtype> dtype;\n};",
        "    ByName<std::vector<Leaf>> leaves;\n    int64_t height{};\n    Json note;\n"
        "    std::vector<Leaf> beside;\n};",
        '    visit("header_sha256", record.headerSha256);', "using Trees = ByName<Tree>;",
    ):  # fmt: skip
        assert part in text, part
    assert '"beside"' not in text and text.index("struct Leaf") < text.index("struct Tree")


def test_a_bundle_is_what_its_dataclasses_hold(tiny_bundle: Path) -> None:
    for schema in (manifest_schema(), bindings_schema()):
        jsonschema.Draft202012Validator.check_schema(schema)
    content = manifest_json(tiny_bundle)
    manifest = read_manifest(tiny_bundle)
    assert to_json(manifest) == content == to_json(from_json(Manifest, content))
    rows = json.loads((tiny_bundle / "bindings.json").read_text())
    assert to_json(from_json(Bindings, rows)) == rows
    bundle = Bundle.open(tiny_bundle)
    assert [block.name for block in bundle.blocks] == [
        block.name for block in manifest.blocks if not block.name.startswith("mtp")
    ]
    for block in bundle.blocks:
        expected = () if block.layer is None else layer_states(bundle.config, block.layer)
        assert bundle.states(block) == expected
        assert [x.name for x in block.bindings] == [x["name"] for x in rows[block.name]]


def test_a_manifest_is_written_as_it_was(tiny_bundle: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path, read_manifest(tiny_bundle))
    assert (tmp_path / FILE_NAME).read_bytes() == (tiny_bundle / FILE_NAME).read_bytes()


def test_states_are_pools_of_the_config(tiny_bundle: Path, tmp_path: Path) -> None:
    pools = read_manifest(tiny_bundle).states["sparse_indexed"]
    assert [(x.name, x.unit, x.shape, x.position_axis) for x in pools] == [
        ("kv_cache", "page", (1, 4096, 80), 1), ("index_keys", "page", (1, 4096, 32), 1),
    ]  # fmt: skip
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    edit_manifest(copy, lambda manifest: manifest["states"]["sparse_indexed"].pop())
    with pytest.raises(
        BundleError,
        match=r"states of sparse_indexed: by the config expected kv_cache in pages of "
        r"\(1, 4096, 80\), the dtype; index_keys .*, found kv_cache in pages of \S+ \S+ \S+ the "
        "dtype$",
    ):
        Bundle.open(copy)


@pytest.mark.parametrize("name", SPOILED)
def test_what_does_not_hold_together_is_refused(
    tiny_bundle: Path, tmp_path: Path, name: str
) -> None:
    spoil, says = SPOILED[name]
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    spoil(copy)
    with pytest.raises(BundleError) as error:
        Bundle.open(copy)
    assert says in str(error.value)
