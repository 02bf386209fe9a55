"""Files that are whole or not there: atomic writes, JSON and JSON lines, and the one error of a full disk."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

# A limit on the size of a file (EFBIG) is met as a full disk is: the bytes do not fit.
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# What libraries that write by themselves (safetensors, tokenizers, TensorStore) say instead of an errno.
_SAID_SO = ("No space left on device", "Disk quota exceeded", "File too large")


class DiskFull(OSError):
    """There was no room for a file. What was begun is gone again; the run goes on once there is room."""


@contextlib.contextmanager
def told_when_full(path: Path) -> Iterator[None]:
    """Turn whatever a full disk raises inside into `DiskFull`, which names `path` unless the error names another."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DiskFull) or not _is_full(error):
            raise
        named = Path(getattr(error, "filename", None) or path)
        there = next(folder for folder in [named, *named.absolute().parents] if folder.exists())
        free = shutil.disk_usage(there).free
        raise DiskFull(
            f"No room to write {named}: {free:,} bytes are free on its disk (or a quota is used up). Nothing "
            "half-written counts. Make space, and give the same command again: the run goes on from here."
        ) from error


def _is_full(error: BaseException) -> bool:
    chain: BaseException | None = error
    while chain is not None:
        if isinstance(chain, OSError) and chain.errno in _FULL:
            return True
        if any(words in str(chain) for words in _SAID_SO):
            return True
        chain = chain.__cause__ or chain.__context__
    return False


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it to `path`.

    A kill at any moment leaves either the old file or the new one, never half of one; so does a full disk.

    Raises:
      DiskFull: there was no room for it.
    """
    path = Path(path)
    with told_when_full(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        host = zlib.crc32(platform.node().encode())  # hosts that share a folder have processes of one number
        temporary = path.with_name(f".{path.name}.{host:08x}-{os.getpid()}.tmp")
        try:
            yield temporary
            _fsync(temporary)
            os.replace(temporary, path)
            _fsync(path.parent)  # the rename itself must survive a power cut
        finally:
            temporary.unlink(missing_ok=True)


def clear_leftovers(folder: Path, *, below: bool = True) -> None:
    """Delete the temporary files of writers that were killed. Only for who has the folder to himself."""
    for leftover in list(folder.rglob(".*.tmp") if below else folder.glob(".*.tmp")):
        if leftover.is_file():
            leftover.unlink(missing_ok=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; the error names the file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, too many digits, or too many levels
        raise ValueError(f"{path} is not valid JSON ({error}). Delete it to have it made anew.") from error


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Read one JSON object a line; the error names the file and the line."""
    rows = []
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                rows.append(json.loads(line.decode()))
            except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, too many digits, or too many levels
                said = error.msg if isinstance(error, json.JSONDecodeError) else error
                raise ValueError(f"{path}, line {number}: not valid JSON ({said}).") from error
    return rows


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, or of the names and bytes of all files below a folder."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file())
    for item in files:
        digest.update(str(item.relative_to(path)).encode())
        with item.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
