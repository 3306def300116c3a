"""Checkpoints by their names on the Hugging Face hub, through `huggingface_hub`.

Where they are kept, whose token is used and whether the network may be asked at all is the
library's to say: HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE mean what they mean there.
"""

from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from glm_trt.model.checkpoint.place import hub_name
from glm_trt.model.checkpoint.presets import PRESETS
from glm_trt.model.config import CONFIG_FILE, MODELOPT_FILE, ModelConfig, read_json
from glm_trt.model.errors import CheckpointError, GlmTrtError, MissingCapabilityError
from glm_trt.model.quantization_config import check_supported
from glm_trt.model.requirements import require

LOWEST = (2, 4)  # of huggingface_hub: the first that keeps a list of a model's files
LINE_SECONDS = 30.0  # between two lines of a download, where there is no terminal for bars
# Neither other folders (copies in another format) nor weights that the reader leaves alone, which
# may be as large as the model.
OTHER_WEIGHTS = (".bin", ".gguf", ".pt", ".pth", ".ckpt", ".safetensors")
NOT_FILES = ["*/*.safetensors", "*/*.json", "consolidated*", "adapter_model*"]


def find_checkpoint(
    path: Path,
    revision: str | None = None,
    *,
    config_only: bool = False,
    say: Callable[[str], None] = print,
) -> Path:
    """The directory of a checkpoint: `path` itself, or, where it can only be a name on the hub and
    no such directory is there, what the hub has of that name, in the library's cache.

    Parameters
    ----------
    path : what was given for a checkpoint.
    revision : a branch, a tag or a commit; the hub's main branch without it.
    config_only : fetch the config alone, not the weights.
    say : told that the hub is asked, and what for.

    Raises
    ------
    GlmTrtError
        If a revision is given for what is no name on the hub.
    MissingCapabilityError
        If `huggingface_hub` is not installed, or too old.
    ConfigError, CheckpointError
        If there is no such model, it cannot be read by this package, or it cannot be fetched.
    """
    name = None if path.exists() or str(path) in PRESETS else hub_name(path)
    if name is None:
        if revision is not None:
            raise GlmTrtError(
                f"--revision: of a model on the hub, by its name as zai-org/GLM-5.1; found {path}"
            )
        return path
    what = f"{name}: no such directory here; fetching it from the Hugging Face hub"
    require(what, "hub", "huggingface_hub")
    from huggingface_hub import __version__, constants

    if tuple(map(int, re.findall(r"\d+", __version__)[:2])) < LOWEST:
        raise MissingCapabilityError(
            f"{what} needs huggingface_hub {'.'.join(map(str, LOWEST))} or newer, found "
            f"{__version__}: pip install --upgrade 'glm-trt[hub]'"
        )

    of = name if revision is None else f"{name}, revision {revision}"
    where = f"asking the hub at {constants.ENDPOINT} for it"
    if constants.HF_HUB_OFFLINE:
        where = f"looking in {constants.HF_HUB_CACHE}, as HF_HUB_OFFLINE is set"
    say(f"{of}: no such directory here; {where}")
    with _sentences(name, revision):
        directory = _fetch_config(name, revision)
    if config_only:
        return directory
    # Refused before hundreds of gigabytes are fetched.
    config = ModelConfig.from_directory(directory)
    check_supported(config.quantization, f"{of}: {CONFIG_FILE}")
    say(f"{of}: fetching what is not yet in {constants.HF_HUB_CACHE}")
    with _sentences(name, revision):
        _fetch_all(name, directory, None if sys.stderr.isatty() else _lines(say))
    say(f"{of}: whole, in {directory}")
    return directory


def _fetch_config(name: str, revision: str | None) -> Path:
    """The snapshot's directory with the config in it; its name is the commit."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    config = Path(hf_hub_download(name, CONFIG_FILE, revision=revision, **_client()))
    commit = config.parent.name
    if try_to_load_from_cache(name, MODELOPT_FILE, revision=commit) is None:  # not known yet
        try:
            hf_hub_download(name, MODELOPT_FILE, revision=commit, **_client())
        except EntryNotFoundError as error:  # most models have none
            if isinstance(error, LocalEntryNotFoundError) and not constants.HF_HUB_OFFLINE:
                raise
    return config.parent


def _fetch_all(name: str, directory: Path, bars: Any) -> None:
    from huggingface_hub import constants, get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError

    from glm_trt.model.checkpoint.read import INDEX_FILE, NAMED_TEMPLATES, TOKENIZER_FILES

    files = [
        CONFIG_FILE, MODELOPT_FILE, INDEX_FILE, "*.safetensors", *TOKENIZER_FILES,
        f"{NAMED_TEMPLATES}/*.jinja",
    ]  # fmt: skip
    snapshot_download(
        name, revision=directory.name, allow_patterns=files, ignore_patterns=NOT_FILES,
        tqdm_class=bars, **_client(),
    )  # fmt: skip
    if _is_whole(directory, directory / INDEX_FILE):
        return
    try:
        listed = [file.path for file in get_cached_repo_tree(name, revision=directory.name)]
    except CachedRepoTreeNotFoundError:  # without a list the library takes what there is
        raise LocalEntryNotFoundError(f"{directory}: weights are missing") from None
    large = [file for file in listed if file.endswith(OTHER_WEIGHTS)]
    if not any(file.endswith(".safetensors") and "/" not in file for file in listed):
        raise CheckpointError(
            f"{name}: the model at {constants.ENDPOINT} has no .safetensors file; it has "
            f"{', '.join(large[:4]) or 'no weights'}"
        )


def _is_whole(directory: Path, index: Path) -> bool:
    """Whether the weights are there that the index names, or any where there is no index."""
    if not index.is_file():
        return any(directory.glob("*.safetensors"))
    names = read_json(index).get("weight_map")
    files = set(names.values()) if isinstance(names, dict) else set()
    return all((directory / str(file)).is_file() for file in files)


def _client() -> dict[str, Any]:
    from glm_trt import __version__

    return {"library_name": "glm-trt", "library_version": __version__}


def _lines(say: Callable[[str], None]) -> Any:
    """What stands in for the library's bars where there is no terminal: a line now and then."""
    from huggingface_hub.utils.tqdm import tqdm

    class Lines(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            self._counts = options.get("name") == "huggingface_hub.snapshot_download"
            self._said = time.monotonic()
            super().__init__(*args, **options | {"disable": False, "file": io.StringIO()})

        def display(self, *_: Any, **__: Any) -> bool:
            """Called as bytes come."""
            if self._counts and self.total and time.monotonic() - self._said >= LINE_SECONDS:
                self._said = time.monotonic()
                say(f"{self.n / 1e9:,.1f} of {self.total / 1e9:,.1f} GB")
            return True

    return Lines


@contextmanager
def _sentences(name: str, revision: str | None) -> Iterator[None]:
    """What the library raises, as an error that says what to do."""
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    try:
        yield
    except errors.GatedRepoError:
        text = (
            f"{hub} asks for an account that has accepted its terms: accept them at "
            f"{hub}/{name}, then: hf auth login"
        )
    except errors.RepositoryNotFoundError:
        text = (
            f"neither a directory here nor a model at {hub}; if it is a private one there: "
            "hf auth login"
        )
    except errors.RevisionNotFoundError:
        text = f"--revision: {hub} has no branch, tag or commit {revision or 'main'} of it"
    except errors.LocalEntryNotFoundError as error:
        offline = constants.HF_HUB_OFFLINE
        why = "HF_HUB_OFFLINE is set" if offline else f"{hub} does not answer ({_first(error)})"
        text = (
            f"no such directory here, and the cache {constants.HF_HUB_CACHE} has it not or not "
            f"whole; {why}"
        )
    except errors.EntryNotFoundError:
        text = f"the model at {hub} has no {CONFIG_FILE}: expected a checkpoint of transformers"
    except errors.HFValidationError:
        text = "neither a directory here nor a name that a model can have on the hub"
    except GlmTrtError:
        raise
    except Exception as error:  # of sockets, HTTP, disks and the library's own store
        text = (
            f"{_first(error)}; files that have come whole are kept, and the same command goes on "
            "from there"
        )
    else:
        return
    raise CheckpointError(f"{name}: {text}") from None


def _first(error: BaseException) -> str:
    """The line of a chain of errors that says the cause."""
    while (inner := error.__cause__) is not None:
        error = inner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
