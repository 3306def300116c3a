"""Writing a bundle's manifest, and changing the engines of a bundle that is there."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema

from glm_trt.export.bundle.format import FILE_NAME, LIBRARY_PLACE, EngineEntry, FileEntry, Manifest
from glm_trt.export.bundle.read import NO_DIGEST, manifest_schema, read_manifest
from glm_trt.export.bundle.records import to_json
from glm_trt.model.files import sha256_of, sync_directory, write_atomically


def seal(content: dict[str, Any]) -> bytes:
    """The bytes of a manifest's JSON values with their digest, which is what `sha256` becomes."""
    blank = json.dumps(content | {"sha256": NO_DIGEST}, indent=1, ensure_ascii=False).encode()
    digest = hashlib.sha256(blank).hexdigest()
    return blank.replace(NO_DIGEST.encode(), digest.encode(), 1)


def write_manifest(bundle: Path, manifest: Manifest) -> None:
    """Check, seal with the digest and write `bundle/manifest.json`.

    Raises
    ------
    jsonschema.ValidationError
        If a value is none that the format allows.
    """
    content = to_json(replace(manifest, sha256=NO_DIGEST))
    jsonschema.validate(content, manifest_schema())
    write_atomically(bundle / FILE_NAME, seal(content))


def file_entry(path: Path) -> FileEntry:
    """Size and hash of a file, as the manifest lists them."""
    return FileEntry(path.stat().st_size, sha256_of(path))


def publish(partial: Path, output: Path) -> None:
    """Let the whole bundle `partial` appear as `output`, in place of one that is there."""
    sync_directory(partial)
    if output.exists():
        # A directory cannot be replaced in one step; a crash between the two leaves no bundle,
        # and the next export makes it again.
        old = output.parent / f".{output.name}.old"
        shutil.rmtree(old, ignore_errors=True)
        output.rename(old)
        partial.rename(output)
        shutil.rmtree(old, ignore_errors=True)
    else:
        partial.rename(output)
    sync_directory(output.parent)


class BundleEdit:
    """A bundle whose engines change; whoever makes one holds the bundle's lock.

    The manifest is written after each change, and never lists what is not whole.
    """

    def __init__(self, directory: Path) -> None:
        self.directory, self.manifest = directory, read_manifest(directory)

    def set_library(self, library: Path) -> None:
        """Put the plugin library into the bundle, where runtimes load it from.

        Engines built with another one are taken out: they could not be loaded beside it.
        """
        entry = file_entry(library)
        if self.manifest.files.get(LIBRARY_PLACE) == entry:
            return
        kept = (None, entry.sha256)
        self.forget(x for x in self.manifest.engines if x.plugin_library not in kept)
        with library.open("rb") as source:
            place = self.directory / LIBRARY_PLACE
            write_atomically(place, lambda file: shutil.copyfileobj(source, file))
        self._write(library=LIBRARY_PLACE, files=self.manifest.files | {LIBRARY_PLACE: entry})

    def add(self, engine: EngineEntry, built: Path) -> EngineEntry:
        """Move the plan `built` into the bundle as `engine`, whose size it gives, in place of the
        one that there is of the same identity.
        """
        self.forget(x for x in self.manifest.engines if x.identity == engine.identity)
        place = self.directory / engine.file
        place.parent.mkdir(parents=True, exist_ok=True)
        built.replace(place)
        sync_directory(place.parent)
        entry = file_entry(place)
        engine = replace(engine, bytes=entry.bytes)
        self._write(
            engines=(*self.manifest.engines, engine),
            files=self.manifest.files | {engine.file: entry},
        )
        return engine

    def forget(self, engines: Iterable[EngineEntry]) -> None:
        """Take engines out of the manifest, then off the disk."""
        gone = tuple(engines)
        if not gone:
            return
        names = {engine.file for engine in gone}
        self._write(
            engines=tuple(x for x in self.manifest.engines if x not in gone),
            files={k: v for k, v in self.manifest.files.items() if k not in names},
        )
        for name in names:
            (self.directory / name).unlink(missing_ok=True)

    def _write(self, **changes: Any) -> None:
        self.manifest = replace(self.manifest, **changes)
        write_manifest(self.directory, self.manifest)
