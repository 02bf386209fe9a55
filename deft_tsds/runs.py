"""The run folder: one sub-folder a stage, each with a manifest; skip what is done, resume what was killed.

A stage is described by its *request*: its name, its settings, its seed, and the fingerprints of the stages that it
reads. The fingerprint is the SHA-256 of that request. `request.json` is written when a stage begins and `manifest.json`
when it ends, so that a folder says of itself whether it is empty, half-way (same request: go on), stale (another
request: begin anew), or done. Every write is atomic: a temporary file, fsync, rename.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from deft_tsds.running import damage, processes, stopping
from deft_tsds.running.files import (
    atomic_write,
    clear_leftovers,
    file_hash,
    read_json,
    read_jsonl,
    told_when_full,
    write_json,
    write_jsonl,
)
from deft_tsds.running.locks import locked
from deft_tsds.running.logs import LoggedConsole, logged_stage
from deft_tsds.running.secrets import masked, masked_command
from deft_tsds.running.watermarks import Watermarks, peak_memory_bytes

__all__ = [
    "MetricsLog",
    "Run",
    "Stage",
    "atomic_write",
    "console",
    "file_hash",
    "plain",
    "progress_bar",
    "read_json",
    "read_jsonl",
    "stage_key",
    "track",
    "write_json",
    "write_jsonl",
]

T = TypeVar("T")

console = LoggedConsole(stderr=True, highlight=False)

_RECORDED_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scikit-learn", "transformers")


def progress_bar() -> Progress:
    """The one progress display of the project."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Iterate with a progress bar on standard error; silent where that is no terminal."""
    if total is None and isinstance(iterable, Sequence):
        total = len(iterable)
    with progress_bar() as bar:
        task = bar.add_task(description, total=total, note="")
        for item in iterable:
            yield item
            bar.advance(task)


class MetricsLog:
    """Append-only `metrics.jsonl`, cut back to the last checkpoint when a killed run goes on."""

    def __init__(self, path: Path, *, keep_until_step: int = 0):
        """Open the log, dropping rows after `keep_until_step` and a last line that a kill left half-written."""
        kept = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(json.JSONDecodeError):
                    row = json.loads(line)
                    if row["step"] <= keep_until_step:
                        kept.append(row)
        write_jsonl(path, kept)
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        with told_when_full(Path(self._file.name)):
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()


def stage_key(seed: int, *names: str) -> jax.Array:
    """The key of a stage: the run's seed with the stage's names folded in, one after another."""
    key = jax.random.key(seed)
    for name in names:
        key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return key


def plain(value: Any) -> Any:
    """Turn nested dataclasses into JSON values; a dataclass keeps its class name, so that a union can be told apart."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"class": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


@dataclasses.dataclass(frozen=True)
class Stage:
    """A finished stage: where its files are, what identifies it, what its work returned, and the stages it read."""

    name: str
    folder: Path
    fingerprint: str
    results: Mapping[str, Any]
    upstream: tuple[Stage, ...] = dataclasses.field(default=(), compare=False, repr=False)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder. `do` carries out one stage in it, or finds that it has been done."""

    folder: Path
    seed: int

    @logged_stage
    def do(
        self,
        name: str,
        work: Callable[[Path], Mapping[str, Any] | None],
        *,
        settings: Mapping[str, Any],
        upstream: Sequence[Stage] = (),
    ) -> Stage:
        """Carry out stage `name` unless the same request has been carried out before.

        Of several processes all call this; the writer alone does the work, unless it is marked `everywhere`.

        Args:
          name: the stage, and its sub-folder ("select/deft/seed-0").
          work: called with the sub-folder. It may find there what a killed attempt at the same request left, never
            what another request left. What it returns (JSON) is kept in the manifest.
          settings: all that the outcome depends on, besides the seed and the upstream stages (JSON).
          upstream: the stages whose files `work` reads.

        Raises:
          ValueError: another process works in this run folder; a file of a stage that is done, or is about to be read,
            is not what it was.
          DiskFull: there is no room for what the stage writes.
        """
        request = {
            "stage": name,
            "settings": masked(plain(settings)),
            "seed": self.seed,
            "upstream": {stage.name: stage.fingerprint for stage in upstream},
            "version": importlib.metadata.version("deft-tsds"),
        }
        fingerprint = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        request = json.loads(json.dumps(request))
        folder, writes = self.folder / name, processes.is_writer()
        mark = folder / "manifest.json"

        def found() -> dict[str, Any] | None:
            manifest = damage.read_sealed(mark) if mark.exists() else None
            return manifest if manifest and manifest["fingerprint"] == fingerprint else None

        with contextlib.ExitStack() as held:
            if todo := writes and not found():
                held.enter_context(locked(self.folder))
                todo = not found()  # another process may have done it before the lock was ours
            if processes.from_writer(todo):
                self._carry_out(folder, work, {**request, "fingerprint": fingerprint}, upstream)
        manifest = processes.wait_for(mark, found)
        damage.check(folder, manifest.get("files", {}), partial(_cure, folder), every_byte=False)
        return Stage(name, folder, fingerprint, manifest["results"], tuple(upstream))

    def _carry_out(self, folder: Path, work: Callable, request: Mapping[str, Any], upstream: Sequence[Stage]) -> None:
        """Do the work of a stage and write its manifest."""
        name, writes = request["stage"], processes.is_writer()
        if stopping.requested():  # a library may have swallowed what the signal raised
            stopping.stop()
        if writes:
            for stage in upstream:
                _check_every_byte(stage)
            self._prepare(folder, {key: value for key, value in request.items() if key != "fingerprint"})
        processes.barrier(f"{name}: begin")
        began = time.perf_counter()
        everywhere = getattr(work, "everywhere", False)
        with (
            told_when_full(folder),
            Watermarks() as marks,
            contextlib.nullcontext() if everywhere else processes.alone(),
        ):
            results = dict(work(folder) or {}) if writes or everywhere else {}
        processes.barrier(f"{name}: end")
        seconds = time.perf_counter() - began
        if writes:
            manifest = {
                **request,
                "results": results,
                "files": damage.listed(folder),
                "seconds": round(seconds, 3),
                "peak_memory_bytes": peak_memory_bytes(),
                "memory": marks.found(),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "command": masked_command(sys.argv),
                "versions": versions(),
            }
            write_json(folder / "manifest.json", damage.sealed(manifest))
        console.print(f"[green]done[/] {name} [dim]{seconds:.1f} s[/]")

    def _prepare(self, folder: Path, request: Mapping[str, Any]) -> None:
        """Keep what a killed attempt at the same request left in `folder`; clear what another request left."""
        mark = folder / "request.json"
        if folder.exists() and (not mark.exists() or read_json(mark) != request):
            changed = _changed(read_json(mark), request) if mark.exists() else "no request recorded"
            console.print(f"[yellow]anew[/] {request['stage']} [dim]({escape(changed)})[/]")
            for name in ("manifest.json", "request.json"):  # first: what is cleared by half must not look like a stage
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(folder)
        if folder.exists():
            clear_leftovers(folder)
        write_json(mark, request)


_checked: set[tuple[Path, str]] = set()


def _check_every_byte(stage: Stage) -> None:
    """Check the files of a stage, and of all that it came from, before they are read: once a process."""
    for before in stage.upstream:
        _check_every_byte(before)
    known, mark = (stage.folder, stage.fingerprint), stage.folder / "manifest.json"
    if known not in _checked and mark.exists():
        damage.check(stage.folder, read_json(mark).get("files", {}), partial(_cure, stage.folder), every_byte=True)
        _checked.add(known)


def _cure(folder: Path, path: Path) -> str:
    """How to have the file `path` of the stage in `folder` made anew."""
    if (path.parent / "store.json").exists() and path.suffix == ".npy":  # a shard is made anew by itself
        return (
            f"Delete {path} and {folder / 'manifest.json'}: the same command makes that shard anew and keeps the rest."
        )
    return f"Delete {folder}: the same command makes that stage anew and keeps the rest."


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Name the parts of a request that differ, settings one by one."""
    if not isinstance(old, dict) or not isinstance(old.get("settings", {}), dict):
        return "the recorded request is damaged"
    parts = [key for key in new if key != "settings" and old.get(key) != new[key]]
    before, after = old.get("settings", {}), json.loads(json.dumps(new["settings"]))
    parts += [f"settings.{key}" for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    return "changed: " + ", ".join(parts)


def versions() -> dict[str, str]:
    """What the manifest says about the software and the machine."""
    found = {name: importlib.metadata.version(name) for name in ("deft-tsds", *_RECORDED_PACKAGES)}
    devices = jax.devices()
    return {
        **found,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": f"{len(devices)} x {devices[0].device_kind}",
    }
