"""The operator that CONTRIBUTING.md adds: its folder where a test wants it, its use in a model."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "examples" / "operator" / "toy_add"
PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def write_toy(place: Path, without: tuple[str, ...] = (), name: str = "toy_add") -> Path:
    """The folder of the operator in `place`, which belongs to `glm_trt.plugins.__path__`."""
    left_out = shutil.ignore_patterns("__pycache__", *(f"{part}.py" for part in without))
    return shutil.copytree(FOLDER, place / name, ignore=left_out)


def use_in_model(tree: Path) -> None:
    """Change the files of `tree`/model as CONTRIBUTING.md says; those not there come from here."""
    (difference,) = re.findall(r"```diff\n(.*?)```", PAGE, flags=re.DOTALL)
    for name in re.findall(r"^\+\+\+ b/(.*)$", difference, flags=re.MULTILINE):
        if not (tree / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    # A repository in a folder above is not the one that is meant.
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(tree.resolve().parent)}
    done = subprocess.run(
        ["git", "apply", "-"], input=difference, text=True, capture_output=True, check=False,
        cwd=tree, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def walk() -> list[str]:
    """The commands of CONTRIBUTING.md from a checkpoint to engines that are validated."""
    section = PAGE.partition("### 4. ")[2]
    return re.findall(r"```\n(.*?)```", section, flags=re.DOTALL)[0].splitlines()
