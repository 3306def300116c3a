"""Where a checkpoint is looked for, and what to do where there is none."""

from __future__ import annotations

import re
from pathlib import Path

from glm_trt.model.checkpoint.presets import PRESETS
from glm_trt.model.errors import CheckpointError


def require_directory(path: Path) -> None:
    """Raise unless `path` is a directory; the message says what to do with what was given.

    Raises
    ------
    CheckpointError
        For a file in the directory that was meant, a preset's name, a name on a hub, and all else.
    """
    if path.is_dir():
        return
    if path.is_file():
        if (other := other_format(path)) is not None:
            raise CheckpointError(f"{path.parent}: {other}")
        raise CheckpointError(
            f"{path}: a file, not a directory; give the checkpoint's directory: {path.parent}"
        )
    raise CheckpointError(f"{path}: not a directory; expected a checkpoint directory{_hint(path)}")


# Endings of files that hold weights otherwise.
_OTHERS = {
    ".gguf": "GGUF is not read; export the BF16, FP8 or NVFP4 checkpoint that it was made from",
    **dict.fromkeys((".bin", ".pth", ".pt", ".ckpt"), "pickled weights are never loaded; save "
                    "them with save_pretrained of transformers, as safetensors"),
}  # fmt: skip


def other_format(path: Path) -> str | None:
    """What to say of a file of weights that are not safetensors, by its ending."""
    text = _OTHERS.get(path.suffix.lower())
    return None if text is None else f"{path.name}: {text}"


def hub_name(path: Path) -> str | None:
    """`path` where it can only be a model's name on a hub: OWNER/MODEL, and no folder OWNER."""
    name = str(path)
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) and not path.parent.exists():
        return name
    return None


def _hint(path: Path) -> str:
    if str(path) in PRESETS:
        return f". To try things with: glm-trt make-checkpoint {path} -o DIR"
    if (name := hub_name(path)) is not None:
        return (
            f". A model of the Hugging Face hub is to be downloaded first: "
            f"hf download {name} --local-dir {path.name}; then give {path.name}"
        )
    return ""
