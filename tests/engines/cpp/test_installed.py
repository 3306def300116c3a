"""The installed C++ runtime as a user has it: find_package, pkg-config, C, the command."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from glm_trt.engines.build.runtime import cmake_command
from glm_trt.engines.build.wheel import Libraries, build_wheel
from glm_trt.model.errors import MissingCapabilityError

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "engines" / "cpp" / "examples" / "simple.cpp"
DRIVER = "no NVIDIA driver (libcuda.so.1)"

C_PROGRAM = """
#include <glm_trt/glm_trt.h>
#include <stdio.h>

int main(int count, char** arguments)
{
    glm_trt_runtime* runtime = 0;
    glm_trt_options options = {0};
    if (glm_trt_default_options(&options) != 2)
    {
        return 99;
    }
    printf("%s\\n", glm_trt_last_error());
    options.size = sizeof options;
    if (glm_trt_default_options(&options) != 0)
    {
        return 98;
    }
    int status = glm_trt_load(count > 1 ? arguments[1] : 0, 0, 0, &runtime);
    printf("%s %d %d %s\\n", glm_trt_version(), (int) options.max_new_tokens, runtime != 0, glm_trt_last_error());
    glm_trt_free(runtime);
    return status;
}
"""  # noqa: E501

PROJECT = """
cmake_minimum_required(VERSION 3.22)
project(user LANGUAGES CXX)
find_package(glm_trt 0.1 REQUIRED)
add_executable(simple simple.cpp)
target_link_libraries(simple PRIVATE glm_trt::glm_trt)
"""


@pytest.fixture(scope="session")
def installed(runtime_build: Path) -> Path:
    """A tree that `cmake --install` made, moved once: nothing in it may know where it was."""
    build = runtime_build
    tree = ROOT / "build" / "runtime-installed"
    with FileLock(build / ".lock"):
        first = ROOT / "build" / "runtime-installed-elsewhere"
        shutil.rmtree(tree, ignore_errors=True)
        run(*cmake_command(), "--install", build, "--prefix", first)
        first.rename(tree)
    return tree


def run(*command: Any, status: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [str(x) for x in command], capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == status, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done


def has_driver() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def test_the_tree(installed: Path) -> None:
    files = {str(p.relative_to(installed)) for p in installed.rglob("*") if p.is_file()}
    headers = {name for name in files if name.startswith("include/")}
    assert headers == {f"include/glm_trt/{x}.h" for x in ("errors", "glm_trt", "runtime")}
    assert "bin/glm-trt-run" in files
    library = next(installed.glob("lib*/libglm_trt.so"))
    symbols = run("nm", "-D", "--defined-only", "-C", library).stdout
    names = {line.split(" ", 2)[2] for line in symbols.splitlines()}
    foreign = {x for x in names if "glm_trt" not in x}
    assert not foreign, sorted(foreign)[:10]
    needed = run("readelf", "-d", library).stdout
    assert "nvinfer" not in needed and "tensorrt" not in needed and "libcuda" not in needed
    for path in installed.rglob("*"):
        if path.is_file() and path.suffix in (".cmake", ".pc"):
            assert str(ROOT) not in path.read_text(), path


def test_simple_by_find_package(installed: Path, tmp_path: Path, tiny_bundle: Path) -> None:
    (tmp_path / "CMakeLists.txt").write_text(PROJECT)
    shutil.copy(EXAMPLE, tmp_path)
    run(*cmake_command(), "-S", tmp_path, "-B", tmp_path / "b", f"-DCMAKE_PREFIX_PATH={installed}")
    run(*cmake_command(), "--build", tmp_path / "b")
    run(tmp_path / "b" / "simple", status=2)
    if not has_driver():
        assert DRIVER in run(tmp_path / "b" / "simple", tiny_bundle, "1", status=3).stderr


def test_simple_by_pkg_config(installed: Path, tmp_path: Path) -> None:
    """Nothing but the public headers; the flags are those of glm_trt.pc."""
    place = next(installed.glob("lib*/pkgconfig"))
    text = (place / "glm_trt.pc").read_text()
    fields = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    assert fields["Version"] == "0.1.0"
    if shutil.which("pkg-config"):
        asked = run(
            "pkg-config", "--cflags", "--libs", "glm_trt",
            env=os.environ | {"PKG_CONFIG_PATH": str(place)},
        ).stdout  # fmt: skip
        flags = asked.split()
    else:
        flags = [f"-I{installed / 'include'}", f"-L{place.parent}", "-lglm_trt"]
    run("g++", "-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", EXAMPLE, *flags,
        "-o", tmp_path / "simple")  # fmt: skip
    environment = os.environ | {"LD_LIBRARY_PATH": str(place.parent)}
    run(tmp_path / "simple", status=2, env=environment)


def test_a_c_program(installed: Path, tmp_path: Path, tiny_bundle: Path) -> None:
    (tmp_path / "user.c").write_text(C_PROGRAM)
    library = next(installed.glob("lib*/libglm_trt.so"))
    run("gcc", "-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", tmp_path / "user.c",
        f"-I{installed / 'include'}", library, f"-Wl,-rpath,{library.parent}",
        "-o", tmp_path / "user")  # fmt: skip
    size, said = run(tmp_path / "user", status=2).stdout.splitlines()
    assert said.startswith("0.1.0 32 0 ") and "NULL" in said
    assert size == (
        "glm_trt_options: size 0: expected 64, which is sizeof(glm_trt_options) of this release "
        "(0.1.0)"
    )
    assert "not a finished bundle" in run(tmp_path / "user", tmp_path, status=2).stdout
    if not has_driver():
        assert DRIVER in run(tmp_path / "user", tiny_bundle, status=3).stdout


def test_the_command(installed: Path, tmp_path: Path, tiny_bundle: Path) -> None:
    command = installed / "bin" / "glm-trt-run"
    assert run(command, "--version").stdout == "glm-trt-run 0.1.0, for tensorrt\n"
    assert "usage: glm-trt-run" in run(command, "--help").stdout
    ids = ("--input-ids", "1,2,3")
    mistakes = {
        (): "usage",
        (tiny_bundle,): "--input-ids",
        (*ids,): "bundle",
        (tiny_bundle, "--input-ids", "1,x"): "--input-ids: expected a number, found 'x'",
        (tiny_bundle, "--input-ids", "1,,2"): "--input-ids: expected a number",
        (tiny_bundle, *ids, "--seed"): "--seed",
        (tiny_bundle, *ids, "--wrong", "1"): "--wrong: unknown",
        (tiny_bundle, *ids, "--max-new-tokens", "0"): "--max-new-tokens",
        (tiny_bundle, *ids, "--seed", "9" * 30): "--seed",
        (tiny_bundle, *ids, "--backend", "onnxruntime"): "backend 'onnxruntime'",
        (tmp_path, *ids): "not a finished bundle",
    }
    for arguments, said in mistakes.items():
        assert said in run(command, *arguments, status=2).stderr, arguments
    shutil.copytree(tiny_bundle, tmp_path / "b")
    graph = tmp_path / "b" / "graphs" / "float32" / "head.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    if not has_driver():
        # What the machine lacks is told before files are hashed.
        assert DRIVER in run(command, tmp_path / "b", *ids, status=3).stderr
        for backend in ("tensorrt", "tensorrt-rtx"):
            done = run(command, tiny_bundle, *ids, "--backend", backend, "--json", status=3)
            assert done.stdout == "" and done.stderr.count("\n") == 1 and DRIVER in done.stderr


def test_a_wheel_wants_every_kernel(installed: Path, library: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingCapabilityError, match=r"only some of the kernels.*make plugins"):
        build_wheel(tmp_path / "dist", Libraries(library, installed))
    assert not (tmp_path / "dist").exists()


@pytest.mark.slow
def test_the_wheel(installed: Path, whole_library: Path, tmp_path: Path) -> None:
    """It carries both libraries, which are found where it is unpacked."""
    wheel = build_wheel(tmp_path / "dist", Libraries(whole_library, installed))
    assert "none-any" not in wheel.name
    place = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    code = "from glm_trt.plugins.library import find_library; print(find_library())"
    found = run(
        sys.executable, "-c", code, env=os.environ | {"PYTHONPATH": str(place)}, cwd=tmp_path
    )
    assert found.stdout.strip() == str(place / "glm_trt" / "plugins" / whole_library.name)
    prefix = place / "glm_trt" / "engines" / "runtime"
    (tmp_path / "CMakeLists.txt").write_text(PROJECT)
    shutil.copy(EXAMPLE, tmp_path)
    run(*cmake_command(), "-S", tmp_path, "-B", tmp_path / "b", f"-DCMAKE_PREFIX_PATH={prefix}")
    run(*cmake_command(), "--build", tmp_path / "b")
