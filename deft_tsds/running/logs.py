"""The log of a run: `log.jsonl` in its folder, one JSON object a line, for programs to read.

    {"time": "2026-01-02T03:04:05.678+00:00", "level": "info", "stage": "embed", "message": "begun", "pid": 4711, ...}

It has every line that the console shows, and when each stage began, ended or failed. The logger is `logging`'s own,
`deft_tsds`: a handler of one's own sees the same records. Only the first process writes, on the console too.

A log that cannot be written (a full disk, a folder of somebody else) stops nothing.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import logging
import math
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import jax
from rich.console import Console
from rich.text import Text

P = ParamSpec("P")
R = TypeVar("R")

NAME = "log.jsonl"

logger = logging.getLogger("deft_tsds")
logger.setLevel(logging.INFO)
logger.addHandler(logging.NullHandler())
logger.propagate = False  # the console has its own line of each record

_stage: ContextVar[str | None] = ContextVar("stage", default=None)
_file: logging.FileHandler | None = None


def is_first_process() -> bool:
    """Whether this process is the one that writes and speaks. Starts no backend where there is but one process."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: time, level, stage, message, and the fields given as `extra={"fields": {...}}`."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created).astimezone()
        line = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "stage": _stage.get(),
            "message": record.getMessage(),
        }
        fields = {name: _plain(value) for name, value in getattr(record, "fields", {}).items() if name not in line}
        return json.dumps(line | fields, ensure_ascii=False, default=str)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class _Lines(logging.FileHandler):
    """Appends lines; begins a new one where a kill has left half a line. Opened at the first record."""

    def __init__(self, path: Path):
        super().__init__(path, mode="a", encoding="utf-8", errors="backslashreplace", delay=True)
        self.setFormatter(JsonFormatter())

    def _open(self) -> Any:
        path = Path(self.baseFilename)
        path.parent.mkdir(parents=True, exist_ok=True)
        torn = False
        if path.exists() and path.stat().st_size:
            with path.open("rb") as file:
                file.seek(-1, os.SEEK_END)
                torn = file.read(1) != b"\n"
        stream = super()._open()
        if torn:
            stream.write("\n")
        return stream

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing: what keeps the log from being written will keep the stage from it, and that is said."""


def event(message: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Write a record into the log, and nothing on the console."""
    logger.log(level, message, extra={"fields": fields})


def write_to(folder: Path | None) -> None:
    """Have records written to `log.jsonl` of this run folder from now on; None for nowhere."""
    global _file
    path = None if folder is None else Path(folder).absolute() / NAME
    if _file is not None and (path is None or Path(_file.baseFilename) != path):
        logger.removeHandler(_file)
        with contextlib.suppress(OSError):  # what is left in the buffer may not fit on the disk
            _file.close()
        _file = None
    if path is not None and _file is None and is_first_process():
        _file = _Lines(path)
        logger.addHandler(_file)


@contextlib.contextmanager
def stage(folder: Path, name: str) -> Iterator[None]:
    """Records from inside are of stage `name` and go to the log of the run folder.

    Those that follow go there too, with no stage; inside the stage of another run, they go to that one's log again.
    """
    outer = _file
    token = _stage.set(name)
    write_to(folder)
    nested = token.old_value not in (token.MISSING, None)
    try:
        yield
    finally:
        _stage.reset(token)
        if nested:
            write_to(None if outer is None else Path(outer.baseFilename).parent)


def logged_stage(do: Callable[Concatenate[Any, str, Callable[[Path], Any], P], R]) -> Callable[..., R]:
    """Decorate `Run.do(name, work, ...)`: say in the log when the work begins, and how it ends where it fails."""

    @functools.wraps(do)
    def logged(run: Any, name: str, work: Callable[[Path], Any], *args: P.args, **kwargs: P.kwargs) -> R:
        @functools.wraps(work)
        def begun(folder: Path) -> Any:
            event("begun", **process())
            try:
                return work(folder)
            except BaseException as error:
                stopped = not isinstance(error, Exception)  # Ctrl-C, SIGTERM
                what = {"error": type(error).__name__, "why": str(error)}
                event("stopped" if stopped else "failed", level=logging.WARNING if stopped else logging.ERROR, **what)
                raise

        with stage(run.folder, name):
            return do(run, name, begun, *args, **kwargs)

    return logged


def process() -> dict[str, Any]:
    """Who does the work, so that others can see whether it still does: host, pid, and when that process began."""
    return {
        "host": platform.node(),
        "pid": os.getpid(),
        "process_began": began(os.getpid()),
        "processes": jax.process_count() if jax.distributed.is_initialized() else 1,
        "command": " ".join(sys.argv[:1]),
    }


def began(pid: int) -> int | None:
    """When a process of this host began, in clock ticks after boot; None where there is none, or no way to know.

    With the pid it names one process for good: pids are used again.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(text.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a log; lines that a kill left half-written are passed over."""
    records = []
    with contextlib.suppress(FileNotFoundError), path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(json.JSONDecodeError):
                record = json.loads(line)
                if isinstance(record, dict):
                    records.append(record)
    return records


class LoggedConsole(Console):
    """A console whose lines of text are in the log as well. Silent in all processes but the first."""

    def print(self, *objects: Any, fields: Mapping[str, Any] | None = None, **options: Any) -> None:
        """As `rich`'s; `fields` go to the log alone.

        What no encoding has (half a surrogate pair, out of a damaged file) is shown by its number.
        """
        if not is_first_process():
            return
        objects = tuple(
            text.encode(errors="backslashreplace").decode() if isinstance(text, str) else text for text in objects
        )
        super().print(*objects, **options)
        words = [text for text in objects if isinstance(text, str)]
        if words and len(words) == len(objects):
            if options.get("markup", True):
                words = [Text.from_markup(text).plain for text in words]
            logger.info(" ".join(words), extra={"fields": dict(fields or {})})

    @property
    def is_terminal(self) -> bool:
        """Whether there is anybody to show a progress bar to."""
        return super().is_terminal and is_first_process()
