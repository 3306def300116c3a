"""Threads in the C++ runtime, watched by ThreadSanitizer.

The runtime's own tests run under it in the slow build `threads` (conftest.py); what shares state by
itself is here, compiled alone, as it costs seconds.
"""

from __future__ import annotations

import subprocess
from importlib.util import find_spec
from pathlib import Path

CPP = Path(__file__).parents[3] / "engines" / "cpp"
SOURCES = ("src/schema.cpp", "src/json.cpp", "tests/two_threads.cpp")


def test_manifests_are_checked_in_two_threads(tmp_path: Path) -> None:
    schema = tmp_path / "bundle_schemas.cpp"
    text = (CPP / "cmake" / "bundle_schemas.cpp.in").read_text()
    for name in ("manifest", "bindings"):
        content = (CPP.parents[1] / "export" / "bundle" / f"{name}.schema.json").read_text()
        text = text.replace(f"@GLM_TRT_{name.upper()}_SCHEMA@", content)
    schema.write_text(text)
    spec = find_spec("nlohmann_json")
    assert spec is not None and spec.origin is not None
    program = tmp_path / "two_threads"
    subprocess.run(
        ["g++", "-std=c++17", "-g1", "-fsanitize=thread", "-pthread", f"-I{CPP / 'include'}",
         f"-I{CPP / 'src'}", "-isystem", str(Path(spec.origin).parent / "include"),
         *(str(CPP / name) for name in SOURCES), str(schema), "-o", str(program)],
        check=True,
    )  # fmt: skip
    for _ in range(5):
        done = subprocess.run([program], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[:3000]
