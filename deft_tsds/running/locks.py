"""One process at a time works in a run folder. The kernel keeps the lock, so that a process that dies leaves none."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from deft_tsds.running.files import clear_leftovers, told_when_full

_NAME = ".lock"
_held: dict[Path, tuple[IO[str] | None, int]] = {}
"""The locks of this process: the open file, and how many are inside."""
_keepers = 0


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Have `folder` to oneself; inside `kept`, until that ends.

    Raises:
      ValueError: another process has it; the message says which, and the ways out.
    """
    folder = folder.resolve()
    file, inside = _held[folder] if folder in _held else (_take(folder), 0)
    _held[folder] = (file, inside + 1)
    try:
        yield
    finally:
        _held[folder] = (file, inside)
        _let_go()


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Keep every lock that is taken inside until the end: for a script, which must not lose its folder between two
    stages."""
    global _keepers
    _keepers += 1
    try:
        yield
    finally:
        _keepers -= 1
        _let_go()


def _let_go() -> None:
    for folder, (file, inside) in list(_held.items()):
        if not inside and not _keepers:
            del _held[folder]
            if file is not None:
                file.close()  # and with it the lock


def _take(folder: Path) -> IO[str] | None:
    with told_when_full(folder / _NAME):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / _NAME).open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        owner = file.read()
        file.close()
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise ValueError(_in_use(folder, owner)) from error
        # A file system without locks (some object stores): nothing can be promised there, and nothing is refused.
        return None
    clear_leftovers(folder, below=False)
    with contextlib.suppress(OSError):  # a full disk: the lock holds all the same, it only has no name
        file.truncate(0)
        me = {"pid": os.getpid(), "host": platform.node(), "command": shlex.join(sys.argv)}
        file.write(json.dumps({**me, "since": time.strftime("%Y-%m-%d %H:%M:%S")}))
        file.flush()
    return file


def _in_use(folder: Path, owner: str) -> str:
    try:
        about = json.loads(owner)
        who = f"process {about['pid']} on {about['host']} ({about['command']}, since {about['since']})"
        stop = f"stop it (kill {about['pid']})"
    except (ValueError, KeyError, TypeError):
        who, stop = "another process", "stop it"
    return (
        f"{folder} is in use: {who} works in it. Wait until it ends, {stop}, or give this run another folder "
        "(--workdir)."
    )
