"""What finished files were, so that a damaged one is named before it is believed.

A manifest lists the files of its stage by size and SHA-256. Whoever finds the stage done checks that the files are
there and of their size, which costs nothing; whoever reads them for new work checks every byte, once a process.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deft_tsds.running.files import read_json, write_json

# What nobody reads once a stage is done: it may be thrown away, and is too much to read again.
_NOT_READ = {"checkpoints", "best", "profile", "tracking"}
_OF_THE_RUN = {"manifest.json", "request.json"}


def listed(folder: Path) -> dict[str, list[Any]]:
    """Size and SHA-256 of every file of a stage, by its path in `folder`.

    Other stages that lie below have manifests of their own. The shards of an embedding store have been hashed when
    they were written; that hash is taken.
    """
    found: dict[str, list[Any]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if path.name not in _NOT_READ and not (path / "request.json").exists():
                found |= {f"{path.name}/{name}": entry for name, entry in listed(path).items()}
        elif path.name not in _OF_THE_RUN and not path.name.startswith("."):
            found[path.name] = [path.stat().st_size, ""]
    if "store.json" in found:
        for shard in read_json(folder / "store.json").get("shards", ()):
            if shard["file"] in found:
                found[shard["file"]][1] = shard["sha256"]
    for name, entry in found.items():
        entry[1] = entry[1] or _sha256(folder / name)
    return found


def check(folder: Path, files: Mapping[str, list[Any]], cure: Callable[[Path], str], *, every_byte: bool) -> None:
    """Compare files with what `listed` said of them.

    Args:
      folder: where they lie.
      files: from `listed`.
      cure: what is to be done about a file, for the message.
      every_byte: read them all; else only their sizes are looked at.

    Raises:
      ValueError: a file that is missing or another; it names the file.
    """
    for name, (size, sha256) in files.items():
        path, problem = folder / name, None
        if not path.is_file():
            problem = "missing"
        elif path.stat().st_size != size:
            problem = f"damaged: it has {path.stat().st_size} bytes instead of {size}"
        elif every_byte and _sha256(path) != sha256:
            problem = "damaged: its SHA-256 is not the one of the file that was written"
        if problem:
            raise ValueError(f"{path} is {problem}. {cure(path)}")


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with its own SHA-256."""
    manifest = json.loads(json.dumps(manifest))  # as it will be read
    return {**manifest, "seal": _seal(manifest)}


def read_sealed(path: Path) -> dict[str, Any]:
    """Read a manifest; one that was changed after it was written raises ValueError."""
    manifest = read_json(path)
    results = manifest.get("results") if isinstance(manifest, dict) else None
    if (
        not isinstance(results, dict)
        or "fingerprint" not in manifest
        or not isinstance(manifest.get("files", {}), dict)
    ):
        raise ValueError(f"{path} is no manifest of a stage. Delete it to have it made anew.")
    seal = manifest.pop("seal", None)
    if seal is not None and seal != _seal(manifest):  # older versions wrote none
        raise ValueError(f"{path} is damaged or was changed by hand. Delete it to have it made anew.")
    return manifest


def remember(folder: Path, memo: Path) -> None:
    """Write what the files in `folder` are into the file `memo`: for files that are read before a stage is done."""
    write_json(memo, {folder.name: listed(folder)})


def check_remembered(folder: Path, memo: Path, cure: str) -> None:
    """Compare every byte in `folder` with `memo`, where it speaks of a folder of this name."""
    files = read_json(memo).get(folder.name) if memo.exists() else None
    if files is not None:
        check(folder, files, lambda path: cure, every_byte=True)


def _seal(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
