"""The C++ runtime's readers against the Python runtime's: the same buffers, the same refusals."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from checkpoints import SHAPES, make_oracle, save
from hybrids import make_hybrid, save_hybrid
from manifests import edit_manifest
from quantize_checkpoint import quantize_checkpoint
from safetensors.torch import load_file, save_file
from spoiled_bundles import SPOILED

from glm_trt.export.bundle.format import FORMAT_VERSION
from glm_trt.export.bundle.read import Bundle, manifest_schema, read_manifest
from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint
from glm_trt.model.checkpoint.bindings import NUMPY_DTYPES, bound_tensor, cast
from glm_trt.model.checkpoint.safetensors_file import SafetensorsFile
from glm_trt.model.errors import BundleError, CheckpointError, GlmTrtError

TINY = Path(__file__).parents[2] / "data" / "glm-5.1-tiny"
QUANTISED = TINY.parent / "quantised"
DTYPES = ("float32", "bfloat16", "float16")
CPP = Path(__file__).parents[3] / "engines" / "cpp"
PROGRAMS = sorted(
    path.stem for of in ("tests/test_*.cpp", "fuzz/fuzz_*.cpp") for path in CPP.glob(of)
)


@pytest.mark.parametrize("program", PROGRAMS)
def test_ctest(tests_build: Path, program: str, request: pytest.FixtureRequest) -> None:
    """The tests written in C++ and the fuzzers, which have more cases where slow tests are run."""
    command = [str(tests_build / "tests" / program)]
    if program.startswith("fuzz_"):
        is_sanitized = "plain" not in request.node.callspec.id
        command.append("100000" if is_sanitized else "20000")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def checkpoint_of(kind: str, place: Path) -> None:
    if kind in ("fp8", "nvfp4"):
        quantize_checkpoint(TINY, place, kind)
    elif (QUANTISED / kind).is_dir():
        shutil.copytree(QUANTISED / kind, place)
    elif kind == "tiny":
        shutil.copytree(TINY, place)
    elif kind == "mixed":
        save(make_oracle(), place)
        tensors = load_file(place / "model.safetensors")
        floats = itertools.cycle((torch.float32, torch.bfloat16, torch.float16, torch.float64))
        tensors = {name: tensor.to(next(floats)) for name, tensor in tensors.items()}
        save_file(tensors, place / "model.safetensors")
    elif kind == "hybrid":
        save_hybrid(make_hybrid("linear_first"), place)
    else:
        dtype = torch.float16 if kind == "stacked" else torch.float32
        oracle = make_oracle(**SHAPES["attention_bias" if kind == "stacked" else "odd_sizes"])
        save(oracle.to(dtype), place, save_original_format=kind != "stacked")


@pytest.mark.parametrize(
    "kind",
    [
        "tiny",
        "fp8",
        "nvfp4",
        "hybrid",
        "stacked",
        "odd",
        "mixed",
        "materialized",
        "fp8-by-tensor",
        "mixed-precision",
        pytest.param("compressed-tensors-fp8-block", marks=pytest.mark.slow),
    ],
)
def test_buffers_are_the_same(tmp_path: Path, probe: Path, kind: str) -> None:
    """Byte for byte, of every input of every block, in every dtype."""
    checkpoint_of("fp8" if kind == "materialized" else kind, tmp_path / "c")
    options = ExportOptions(dtypes=("float32",), materialize=kind == "materialized")
    export_checkpoint(tmp_path / "c", tmp_path / "b", options)
    bundle = Bundle.open(tmp_path / "b")
    blocks = [*bundle.blocks, *bundle.prediction_blocks]
    for dtype in DTYPES:
        expected = [
            f"{block.name} {x.name} "
            + hashlib.sha256(bound_tensor(x, bundle.weights, dtype).tobytes()).hexdigest()
            for block in blocks for x in block.bindings
        ]  # fmt: skip
        done = subprocess.run(
            [probe, "bind", tmp_path / "b", dtype], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == expected, dtype


def test_rounding_is_the_same(tmp_path: Path, probe: Path) -> None:
    """Every bfloat16 and float16 number, and float32 ones between and beyond them."""
    every = np.arange(1 << 16, dtype=np.uint16)
    wide = np.concatenate([
        every.view(np.float16).astype(np.float32), every.view(ml_dtypes.bfloat16).astype(np.float32)
    ])  # fmt: skip
    wide = wide[np.isfinite(wide)]
    rng = np.random.default_rng(0)
    between = wide.view(np.uint32) ^ rng.integers(0, 1 << 16, wide.size, dtype=np.uint32)
    ties = np.sort(np.abs(wide)).astype(np.float64)
    halves = ((ties[1:] + ties[:-1]) / 2).astype(np.float32)
    values = np.concatenate([wide, between.view(np.float32), halves])
    values = values[np.isfinite(values)]
    save_hybrid(make_hybrid("linear_first"), tmp_path / "c")
    export_checkpoint(tmp_path / "c", tmp_path / "b", ExportOptions(dtypes=("float32",)))
    # Float64 a little beyond halves too: rounded by way of float32, as in torch.
    beyond = np.concatenate(
        [values, halves.astype(np.float64) * (1 + 2.0**-30), ties * (1 + 2.0**-40)]
    )
    sources = {"F32": values, "F16": every.view(np.float16), "BF16": every.view(ml_dtypes.bfloat16),
               "F64": beyond}  # fmt: skip
    for name, source in sources.items():
        source = source[np.isfinite(source.astype(np.float32))]
        write_safetensors(tmp_path / "x.safetensors", {"x": (name, source)})
        for dtype in DTYPES:
            done = subprocess.run(
                [probe, "convert", tmp_path / "x.safetensors", dtype],
                capture_output=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            with np.errstate(over="ignore"):
                expected = cast(source, NUMPY_DTYPES[dtype]).tobytes()
            assert done.stdout == expected, (name, dtype)


def write_safetensors(path: Path, tensors: dict[str, tuple[str, Any]]) -> None:
    header, data = {}, b""
    for name, (code, array) in tensors.items():
        blob = np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": code, "shape": list(array.shape),
                        "data_offsets": [len(data), len(data) + len(blob)]}  # fmt: skip
        data += blob
    path.write_bytes(packed(json.dumps(header).encode(), data))


def packed(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def answers(probe: Path, requests: list[tuple[str, Path]]) -> list[str]:
    lines = "".join(f"{kind} {path}\n" for kind, path in requests)
    done = subprocess.run(
        [probe, "verdicts"], input=lines, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def verdict(read: Callable[[], Any]) -> str:
    try:
        read()
    except GlmTrtError as error:
        return f"{type(error).__name__}: {json.dumps(str(error), ensure_ascii=False)}"
    return "ok"


DATA = bytes(range(64))
HEADER = {
    "__metadata__": {"format": "pt"},
    "a.weight": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]},
    "b": {"dtype": "BF16", "shape": [15], "data_offsets": [32, 62]},
    "empty": {"dtype": "F16", "shape": [0, 7], "data_offsets": [62, 62]},
    "scalar": {"dtype": "U8", "shape": [], "data_offsets": [62, 63]},
    "ä": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [63, 64]},
}  # fmt: skip


def corrupt_safetensors() -> list[bytes]:
    """Faults by hand, then mutations of a good file."""
    good = json.dumps(HEADER, ensure_ascii=False).encode()
    whole = packed(good, DATA)

    def changed(name: str, **fields: Any) -> bytes:
        entry = {k: v for k, v in {**HEADER[name], **fields}.items() if v is not Ellipsis}
        return packed(json.dumps({**HEADER, name: entry}).encode(), DATA)

    big = 1 << 63
    cases = [
        whole, b"", b"\0", whole[:8], whole[:20], whole[:-1], whole + b"x", packed(b"", b""),
        struct.pack("<Q", 1 << 62) + whole[8:], struct.pack("<Q", 100_000_001) + whole[8:],
        struct.pack("<Q", len(whole) - 8) + whole[8:], struct.pack("<Q", (1 << 64) - 1) + whole[8:],
        packed(b"[]", b""), packed(b"null", b""), packed(b"{}", b""), packed(b"{}", b"x"),
        packed(b"{" * 100_000, b""), packed(b"[" * 100_000, b""), packed(b'{"a": NaN}', b""),
        packed(b'{"a": ' + b"9" * 5000 + b"}", b""), packed(good.replace(b"32", b"3" * 30), DATA),
        packed(good.decode().encode("utf-16"), DATA), packed(b"\xef\xbb\xbf" + good, DATA),
        packed(b'{"a": 1, "a": 2}', b""), packed(b'{"a": {"dtype": "F32", "dtype": "F32"}}', b""),
        packed(b'{"\\ud800": 1}', b""), packed(b'{"a\xff": 1}', b""), packed(b'{"a": 1e999}', b""),
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64, b"\xff\xfex" * 9,
        b" " * 9, changed("b", dtype="I64"), changed("b", dtype="I16"), changed("b", dtype="BOOL"),
        changed("b", dtype="F64"), changed("b", dtype="F4"), changed("b", dtype=..., x=1),
        changed("b", dtype=["F32"]),
        changed("b", shape=[15.0]), changed("b", shape=[True] * 15), changed("b", shape=[-15]),
        changed("b", shape="15"), changed("b", shape=[14]), changed("b", shape=[big - 1, 3]),
        changed("b", shape=[1 << 32, 1 << 32]), changed("b", shape=[0, big - 1, big - 1]),
        changed("b", data_offsets=[32]), changed("b", data_offsets=[62, 32]),
        changed("b", data_offsets=[32, 62, 63]), changed("b", data_offsets=[30, 60]),
        changed("b", data_offsets=[34, 64]), changed("b", data_offsets=[-32, -2]),
        changed("b", data_offsets=[big - 31, big - 1]), changed("scalar", data_offsets=[64, 65]),
        changed("empty", data_offsets=[5, 5]), changed("empty", data_offsets=[64, 64]),
    ]  # fmt: skip
    return cases + mutations(whole, 1500)


def mutations(good: bytes, count: int) -> list[bytes]:
    rng, cases = random.Random(0), []
    tokens = [b"0", b"-1", b"1.5", b"9223372036854775808", b"null", b"[]", b'"F32"', b",", b"}",
              b'"shape"', b"\xff", b"\\u0000", b"true", b"NaN", b"{", b"1e400"]  # fmt: skip
    for _ in range(count):
        data = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(data))
            match rng.randrange(5):
                case 0:
                    data[place] ^= 1 << rng.randrange(8)
                case 1:
                    del data[place : place + rng.randint(1, 12)]
                case 2:
                    data[place:place] = rng.choice(tokens)
                case 3:
                    data[place : place + rng.randint(1, 6)] = rng.choice(tokens)
                case _:
                    data[place:place] = data[rng.randrange(len(data)) :][: rng.randint(1, 40)]
            if not data:
                break
        cases.append(bytes(data))
    return cases


def test_safetensors_are_refused_alike(tmp_path: Path, probe: Path) -> None:
    requests, expected = [], []
    for i, content in enumerate(corrupt_safetensors()):
        path = tmp_path / f"{i}.safetensors"
        path.write_bytes(content)
        requests.append(("safetensors", path))
        expected.append(verdict(lambda path=path: SafetensorsFile(path)))
    requests += [("safetensors", tmp_path / "none"), ("safetensors", tmp_path)]
    expected += [verdict(lambda p=p: SafetensorsFile(p)) for p in (tmp_path / "none", tmp_path)]
    found = answers(probe, requests)
    assert found == expected
    assert expected[0] == "ok" and len({x.split(": ", 2)[-1] for x in expected}) > 40
    assert all(x == "ok" or x.startswith("CheckpointError") for x in expected)


def test_manifests_are_refused_alike(tmp_path: Path, probe: Path, tiny_bundle: Path) -> None:
    """With a wrong digest, and sealed anew, so that the schema is reached."""
    original = (tiny_bundle / "manifest.json").read_bytes()
    manifest = json.loads(original)
    rng = random.Random(1)
    values: list[Any] = [None, True, 0, -1, 1.0, 1.5, "", "x", "../x", "/x", "a\n", "x" * 2000, [],
                         {}, ["float32", "float32"], {"a b'\\": 1}, 1 << 62, "0" * 64]  # fmt: skip
    cases = [original, original[:-1], b"", b"[]", b"null", b'{"format": "glm-trt bundle"}',
             original.replace(b'"format_version": 6', b'"format_version": 5'),
             original.replace(b'"format_version": 6', b'"format_version": 6.0'),
             original.replace(b'"format_version": 6', b'"format_version": true')]  # fmt: skip
    cases += mutations(original, 500)
    for _ in range(1500):
        changed = json.loads(original)
        for _ in range(rng.randint(1, 2)):
            replace_somewhere(changed, rng, values)
        cases.append(sealed(changed))
    assert len(cases) > 2000
    requests, expected = [], []
    for i, content in enumerate(cases):
        place = tmp_path / str(i)
        place.mkdir()
        (place / "manifest.json").write_bytes(content)
        requests.append(("manifest", place / "manifest.json"))
        expected.append(verdict(lambda place=place: read_manifest(place)))
    found = answers(probe, requests)
    assert found == expected
    assert expected[0] == "ok" and sum("breaks the manifest's schema" in x for x in expected) > 800
    rules = {x.rsplit("(", 1)[-1] for x in expected if "schema" in x}
    assert len(rules) > 10, rules
    assert manifest["format_version"] == FORMAT_VERSION
    assert manifest_schema()["properties"]["format_version"]["const"] == FORMAT_VERSION


def replace_somewhere(value: Any, rng: random.Random, values: list[Any]) -> None:
    """One member at any depth: another value, gone, or a new one beside it."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(value[key], dict | list) and value[key] and rng.random() < 0.8:
            value = value[key]
            continue
        choice = rng.random()
        if choice < 0.7:
            value[key] = rng.choice(values)
        elif choice < 0.85:
            del value[key]
        elif isinstance(value, dict):
            value["more"] = rng.choice(values)
        else:
            value.append(rng.choice(values))
        return


def sealed(manifest: dict[str, Any]) -> bytes:
    if not isinstance(manifest.get("sha256"), str):
        return json.dumps(manifest).encode()
    blank = json.dumps({**manifest, "sha256": "0" * 64}, ensure_ascii=False).encode()
    return blank.replace(b"0" * 64, hashlib.sha256(blank).hexdigest().encode(), 1)


def test_bundles_are_refused_alike(tmp_path: Path, probe: Path, tiny_bundle: Path) -> None:
    """Files that are missing, altered, longer, shorter; a checkpoint that is gone."""
    export_checkpoint(TINY, tmp_path / "plain", ExportOptions(dtypes=("float32",)))

    def spoil(name: str, change: Callable[[Path], None], source: Path = tiny_bundle) -> None:
        place = tmp_path / name
        shutil.copytree(source, place)
        change(place)
        requests.append(("bundle", place))
        expected.append(verdict(lambda: Bundle.open(place)))

    def flip(path: Path, place: int) -> None:
        data = bytearray(path.read_bytes())
        data[place] ^= 1
        path.write_bytes(data)

    def elsewhere(place: Path) -> None:
        edit_manifest(place, lambda manifest: manifest["checkpoint"].update(directory="nowhere"))

    requests: list[tuple[str, Path]] = []
    expected: list[str] = []
    spoil("good", lambda place: None)
    spoil("graph", lambda place: flip(place / "graphs/float32/head.onnx", 100))
    spoil("short", lambda place: flip_size(place / "bindings.json", -1))
    spoil("long", lambda place: flip_size(place / "bindings.json", 1))
    spoil("weights", lambda place: flip(place / "weights/head.safetensors", -5))
    spoil("gone", lambda place: (place / "weights/layer.1.safetensors").unlink())
    spoil("tokenizer", lambda place: (place / "tokenizer/tokenizer.json").unlink())
    spoil("manifest", lambda place: (place / "manifest.json").unlink())
    spoil("moved", elsewhere, tmp_path / "plain")
    for name, (change, _) in SPOILED.items():
        spoil(name.replace(" ", "-"), change)
    assert answers(probe, requests) == expected
    assert expected[0] == "ok" and not any(x == "ok" for x in expected[1:])


def flip_size(path: Path, by: int) -> None:
    data = path.read_bytes()
    path.write_bytes(data + b" " * by if by > 0 else data[:by])


def test_python_raises_nothing_else(tmp_path: Path) -> None:
    """Mutations of a header, in Python: nothing but the two errors that are promised."""
    path = tmp_path / "x.safetensors"
    whole = packed(json.dumps(HEADER).encode(), DATA)
    accepted = 0
    for content in mutations(whole, 5000):
        path.write_bytes(content)
        try:
            SafetensorsFile(path)
            accepted += 1
        except (CheckpointError, BundleError):
            pass
    assert accepted < 2500
