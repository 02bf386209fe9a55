"""Folders with a model of somebody's: found by path or hub name, never a pickle or code, told apart by their bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open

from deft_tsds.runs import read_json

_FILES = ("*.safetensors", "*.json", "spiece.model", "sentencepiece.bpe.model", "vocab.txt", "merges.txt")


def model_folder(name: str | Path) -> Path:
    """The folder itself, or the local snapshot of a hub name: weights as safetensors, settings, tokenizer.

    Raises:
        ValueError: no such folder, and no such name on the hub or no network.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    import huggingface_hub

    try:
        patterns = [*_FILES, *(f"*/{pattern}" for pattern in _FILES)]
        return Path(huggingface_hub.snapshot_download(str(name), allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{str(name)!r} is no local folder, and the Hugging Face hub did not give it ({type(error).__name__}: "
            f"{error}). Check the name and the network, or give a folder."
        ) from error


def folder_hash(folder: Path) -> str:
    """SHA-256 of the names and bytes of the files that decide what the model does: weights, settings, tokenizer."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _FILES for path in folder.rglob(pattern)):
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(json.dumps([path.relative_to(folder).as_posix(), sha256]).encode())
    return digest.hexdigest()


def untrained(name: str | Path) -> str | None:
    """What of the model in a folder has never been trained, in the words of its file `UNTRAINED`; None without one."""
    mark = Path(name).expanduser() / "UNTRAINED"
    return mark.read_text(encoding="utf-8").strip() if mark.is_file() else None


def within(folder: Path, name: str, where: Path) -> Path:
    """The path of what a file of a folder names in it.

    Args:
        folder: that nothing may leave.
        name: what is named.
        where: the file that names it, for the error.

    Raises:
        ValueError: an absolute path, one with "..", or a link that leads out of the folder (but for the links by which
            the hub's cache holds a snapshot), or a name that the file system refuses.
    """
    path, home = folder / name, folder.resolve()
    homes = [home, home.parents[1] / "blobs"] if home.parent.name == "snapshots" else [home]
    parts = PurePosixPath(name.replace("\\", "/")).parts
    plain = "\0" not in name and ".." not in parts and not Path(name).is_absolute()
    if not plain or not any(path.resolve().is_relative_to(one) for one in homes):
        raise ValueError(
            f"{where} names {name[:80]!r}, which leads out of {folder}: nothing outside a folder is read because a "
            "file in it says so. Copy what is meant into the folder."
        )
    try:
        path.is_file()
    except OSError as error:
        raise ValueError(
            f"{where} names {name[:80]!r}, which no file can be called ({error.strerror}): copy or download the folder "
            "again."
        ) from error
    return path


def read_settings(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: the file is missing, or no JSON object.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: give a folder as save_pretrained or SentenceTransformer.save wrote it.")
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object: give a folder as save_pretrained wrote it.")
    return found


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder, in order.

    Raises:
        ValueError: there is none; a pickle (.bin) is refused with the reason.
    """
    found = sorted(folder.glob("model*.safetensors"))
    if found:
        return found
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles:
        raise ValueError(
            f"{folder} has {pickles[0]} and no model.safetensors. A .bin file is a pickle, which can run any code "
            "when it is read, so it is refused. Convert it where you trust it: load it with transformers or "
            "sentence-transformers and save it again, which writes safetensors."
        )
    raise ValueError(f"{folder} has no model*.safetensors: give a folder with the weights of a model.")


@contextmanager
def open_weights(path: Path) -> Iterator[Any]:
    """Open a safetensors file; what cannot be read is a ValueError that names it."""
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}). It may be truncated: copy or download it again.") from error
