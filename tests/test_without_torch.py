"""A bundle is run without PyTorch, and by whatever else only exporting and validating need."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from bundles import LENGTH, make_checkpoint

import glm_trt
from glm_trt.engines.build.wheel import build_wheel
from glm_trt.export.export_checkpoint import ExportOptions, export_checkpoint
from glm_trt.model.errors import MissingCapabilityError
from glm_trt.model.requirements import require

ROOT = Path(__file__).parent.parent
FOLDERS = ("model", "plugins", "export", "engines", "validate")
PAGE = ROOT / "engines" / "serve" / "page"
WITHOUT = ROOT / "tests" / "support" / "without.py"
# What the package itself does not require, but for onnxruntime.
ABSENT = (
    "torch", "onnxscript", "onnx_ir", "safetensors", "triton", "transformers", "polygraphy",
    "matplotlib", "tensorrt", "tensorrt_rtx", "cuda",
)  # fmt: skip
IDS = [1, 7, 20, 3]
# Everything that somebody does with a bundle who only runs it.
RUNS = """
import contextlib, io, json, sys
import glm_trt
from glm_trt.cli import main

def command(*arguments):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(arguments) == 0, arguments
    return out.getvalue()

tokens = {}
for bundle in sys.argv[1:]:
    ids = "1,7,20,3"
    run = json.loads(command("run", bundle, "--input-ids", ids, "--max-new-tokens", "6", "--json"))
    command("inspect", bundle)
    with glm_trt.load(bundle) as runtime:
        session = runtime.session(max_batch=2)
        options = glm_trt.GenerateOptions(6, glm_trt.Sampling())
        request = session.submit([1, 7, 20, 3], options)
        session.run()
        assert request.tokens == run["token_ids"]
    tokens[bundle] = run["token_ids"]
bundle = sys.argv[1]
sys.stdin = io.StringIO("Hello\\n")
chat = json.loads(command("run", bundle, "--chat", "--max-new-tokens", "4", "--json"))
drafted = command("run", bundle, "--prompt", "def main():", "--drafts", "2")
assert drafted == command("run", bundle, "--prompt", "def main():")
command("plan", "glm-5.1", "--gpu", "h200")
with contextlib.suppress(SystemExit):
    command("--print-completion", "bash")
absent = set(%r) & {name.partition(".")[0] for name in sys.modules}
assert not absent, absent
print(json.dumps({"tokens": tokens, "chat": chat["token_ids"]}))
""" % (ABSENT,)  # noqa: UP031


def without(*names: str, code: str, arguments: tuple[str, ...] = ()) -> tuple[int, str, str]:
    """Exit code, output and errors of a Python in which these packages are not installed."""
    command = [sys.executable, "-P", str(WITHOUT), ",".join(names), "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def bundles(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The tiny one, and one of each other way of storing weights, with the weights inside."""
    place = tmp_path_factory.mktemp("bundles")
    made = [tiny_bundle]
    for name in ("hybrid", "fp8", "nvfp4"):
        options = ExportOptions(("float32",), LENGTH, materialize=True)
        export_checkpoint(make_checkpoint(name, place), place / name, options)
        made.append(place / name)
    return made


def test_bundles_give_the_same_tokens(bundles: list[Path]) -> None:
    expected = {}
    for bundle in bundles:
        with glm_trt.load(bundle) as runtime:
            expected[str(bundle)] = runtime.generate([IDS], max_new_tokens=6)[0]
    code, output, errors = without(*ABSENT, code=RUNS, arguments=tuple(expected))
    assert code == 0, errors
    found = json.loads(output)
    assert found["tokens"] == expected
    assert len(found["chat"]) == 4


def test_a_wheel_of_python_alone(tiny_bundle: Path, tmp_path: Path) -> None:
    """Unpacked, it is the whole package, its data files included."""
    wheel = build_wheel(tmp_path, None)
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    assert not [name for name in names if name.endswith(".so")]
    sources = [
        *(
            f"glm_trt/{path.relative_to(ROOT)}"
            for of in FOLDERS
            for path in (ROOT / of).rglob("*.py")
        ),
        *(str(path.relative_to(ROOT)) for path in (ROOT / "glm_trt").glob("*.py")),
        *(str(path.relative_to(ROOT)) for path in (ROOT / "glm_trt" / "commands").glob("*.py")),
    ]
    assert set(sources) <= set(names) and len(sources) > 150
    page = [f"glm_trt/engines/serve/page/{path.name}" for path in PAGE.iterdir()]
    assert set(page) <= set(names) and "glm_trt/engines/serve/page/index.html" in page
    package = f"sys.path.insert(0, {str(tmp_path / 'installed')!r})"
    script = (
        f"import sys\n{package}\nimport glm_trt\nassert 'installed' in glm_trt.__file__\n{RUNS}"
    )
    code, output, errors = without(*ABSENT, code=script, arguments=(str(tiny_bundle),))
    assert code == 0, errors
    with glm_trt.load(tiny_bundle) as runtime:
        expected = runtime.generate([IDS], max_new_tokens=6)[0]
    assert json.loads(output)["tokens"] == {str(tiny_bundle): expected}


def test_who_imports_is_named() -> None:
    code, _, errors = without("torch", code="import glm_trt.plugins.operators")
    assert code == 1
    assert "No module named 'torch'; imported by glm_trt.plugins.operators, line 8" in errors


def glm_trt_command(*arguments: object, absent: str, before: str = "") -> tuple[int, str, str]:
    """`glm-trt` where a package is not installed; `before` is run first."""
    code = f"import sys\nfrom glm_trt.cli import main\n{before}\nsys.exit(main(sys.argv[1:]))"
    return without(absent, code=code, arguments=tuple(map(str, arguments)))


@pytest.mark.parametrize(
    ("absent", "command", "error"),
    [
        ("torch", "export TINY -o OUTPUT", "export needs torch, ABSENT[export]'"),
        ("onnxscript", "export TINY -o OUTPUT", "export needs onnxscript, ABSENT[export]'"),
        ("torch", "validate BUNDLE", "validate needs torch, ABSENT[validate]'"),
        ("torch", "bisect BUNDLE", "bisect needs torch, ABSENT[validate]'"),
        ("onnxscript", "bisect BUNDLE", "bisect needs onnxscript, ABSENT[validate]'"),
        ("matplotlib", "validate BUNDLE --report OUTPUT", "--report needs matplotlib, "
         "ABSENT[charts]'"),
        ("triton", "validate BUNDLE --backend kernels", "backend 'kernels' needs triton, "
         "ABSENT[plugins]'"),
        ("polygraphy", "diff TINY/config.json TINY/config.json", "TINY/config.json: reading "
         "results needs polygraphy, ABSENT[validate]'"),
    ],
)  # fmt: skip
def test_a_command_names_the_extra(
    tiny_bundle: Path, tmp_path: Path, absent: str, command: str, error: str
) -> None:
    def filled(text: str) -> str:
        text = text.replace("ABSENT", "which is not installed: pip install 'glm-trt")
        text = text.replace("TINY", str(ROOT / "tests" / "data" / "glm-5.1-tiny"))
        return text.replace("BUNDLE", str(tiny_bundle)).replace("OUTPUT", str(tmp_path / "output"))

    code, output, errors = glm_trt_command(*filled(command).split(), absent=absent)
    lines = [line for line in errors.splitlines() if not line.startswith(f"{command.split()[0]}:")]
    assert (code, output) == (3, "")  # lines of progress apart
    assert lines == [f"glm-trt {command.split()[0]}: error: {filled(error)}"]
    assert not (tmp_path / "output").exists()


def test_building_without_tensorrt(tiny_bundle: Path) -> None:
    code, _, errors = glm_trt_command("build", tiny_bundle, absent="tensorrt_rtx,torch")
    assert code == 3 and errors.count("\n") == 1
    assert errors.endswith("pip install 'glm-trt[tensorrt-rtx]'\n")


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
@pytest.mark.parametrize("absent", ["triton", "torch"])
@pytest.mark.parametrize("module", ["glm_trt.engines.build.plugins", "glm_trt.plugins.__main__"])
def test_the_plugin_library_without_what_compiles_it(
    tiny_bundle: Path, module: str, absent: str
) -> None:
    code = f"import runpy\nrunpy.run_module({module!r}, run_name='__main__')"
    arguments = (str(tiny_bundle),) if "engines" in module else ()
    found, _, errors = without(absent, code=code, arguments=arguments)
    assert found == 3 and errors == (
        f"plugins: error: the plugin library needs {absent}, which is not installed: "
        "pip install 'glm-trt[plugins]'\n"
    )


def test_commands_that_need_no_torch(tiny_bundle: Path, tmp_path: Path) -> None:
    made = tmp_path / "checkpoint"
    absent = ",".join(ABSENT)
    assert glm_trt_command("make-checkpoint", "glm-5.1", "-o", made, absent=absent)[0] == 0
    line = ("inspect", tiny_bundle, "--polygraphy", "layer.0", "-o", tmp_path / "inputs")
    code, output, errors = glm_trt_command(*line, absent=absent)
    assert code == 0 and output.startswith("polygraphy run "), errors
    # Saved runs and files of Polygraphy's are compared with NumPy alone.
    diff = "import glm_trt.validate.saving.diff, glm_trt.validate.saving.polygraphy_diff"
    assert without(*ABSENT, code=diff)[0] == 0


INSTALLED = """
from glm_trt.model import requirements
requirements.installed = %r.get
"""
NEITHER = (
    "glm-trt run: error: backend 'onnxruntime' needs onnxruntime or onnxruntime-gpu, and neither "
    "is installed: pip install 'glm-trt[cpu]', or for NVIDIA GPUs pip install 'glm-trt[gpu]'\n"
)
BOTH = (
    "glm-trt run: error: backend 'onnxruntime': onnxruntime 1.30.0 and onnxruntime-gpu 1.31.0 are "
    "both installed and overwrite one another's files; keep one: pip uninstall -y onnxruntime "
    "onnxruntime-gpu && pip install onnxruntime-gpu==1.31.0 (or onnxruntime==1.30.0, for the CPU "
    "alone)\n"
)
BROKEN = (
    "glm-trt run: error: backend 'onnxruntime': onnxruntime-gpu 1.31.0 cannot be loaded "
    "(No module named 'onnxruntime'; imported by glm_trt.engines.python.onnxruntime_module, "
    "line LINE): pip install --force-reinstall --no-deps onnxruntime-gpu==1.31.0\n"
)


@pytest.mark.parametrize(
    ("installed", "absent", "expected"),
    [
        ({}, "onnxruntime", NEITHER),
        ({"onnxruntime": "1.30.0", "onnxruntime-gpu": "1.31.0"}, "nothing", BOTH),
        ({"onnxruntime-gpu": "1.31.0"}, "onnxruntime", BROKEN),
    ],
)
def test_one_onnxruntime(
    tiny_bundle: Path, installed: dict[str, str], absent: str, expected: str
) -> None:
    command = ("run", tiny_bundle, "--input-ids", "1")
    code, output, errors = glm_trt_command(*command, absent=absent, before=INSTALLED % installed)
    assert (code, output) == (3, "")
    assert re.sub(r"line \d+", "line LINE", errors) == expected


def test_what_removing_the_other_one_left(tiny_bundle: Path) -> None:
    """A package without the files that both have."""
    before = "import types; sys.modules['onnxruntime'] = types.ModuleType('onnxruntime')\n"
    command = ("run", tiny_bundle, "--input-ids", "1")
    installed = INSTALLED % {"onnxruntime": "1.30.0"}
    code, _, errors = glm_trt_command(*command, absent="nothing", before=before + installed)
    assert code == 3 and errors.endswith(
        "onnxruntime 1.30.0 cannot be loaded (its files are not all there): "
        "pip install --force-reinstall --no-deps onnxruntime==1.30.0\n"
    )


def test_a_module_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_one.py").write_text("raise OSError('libgone.so: not there')")
    monkeypatch.syspath_prepend(tmp_path)
    expected = r"^x needs broken_one, which cannot be loaded \(libgone.so: not there\): pip install"
    with pytest.raises(MissingCapabilityError, match=expected):
        require("x", "export", "json", "broken_one")
    with pytest.raises(MissingCapabilityError, match=r"^x needs no\.such, which is not "):
        require("x", "export", "broken_one", "no.such")  # nothing is loaded in vain
