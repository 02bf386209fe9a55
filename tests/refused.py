"""Rows of the tables of bad input: what is wrong, how to make it, and what must be said of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class Bad:
    """A bad input.

    Attributes:
        what: is wrong.
        do: makes it in an empty folder, and hands it over.
        names: what the message says of where it is: the argument or file, and the row where there is one.
        way_out: what it says can be done.
    """

    what: str
    do: Callable[[Path], Any]
    names: str
    way_out: str


def table(rows: Sequence[Bad]) -> Any:
    """Parametrizes a test over the rows."""
    assert len({row.what for row in rows}) == len(rows)
    return pytest.mark.parametrize("bad", rows, ids=lambda row: row.what)


def check(bad: Bad, folder: Path, capsys: Any) -> None:
    """The input is refused in words; of the command line, what stands on standard error counts."""
    with pytest.raises((ValueError, FileNotFoundError, SystemExit)) as caught:
        bad.do(folder)
    message = " ".join(str(caught.value).split())
    if caught.errisinstance(SystemExit):
        message = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert bad.names in message, message
    assert bad.way_out in message, message


def lines(path: Path, *rows: Any) -> Path:
    """A file of JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def text(path: Path, content: str | bytes) -> Path:
    """A file with this in it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def changed(path: Path, **changes: Any) -> None:
    """A JSON object in a file, with other entries; None takes an entry away."""
    found = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}), encoding="utf-8")
