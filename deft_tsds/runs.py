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
import os
import platform
import resource
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")

console = Console(stderr=True, highlight=False)

_RECORDED_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scikit-learn", "transformers")


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success flush it to disk and rename it to `path`.

    A kill at any moment leaves either the old file or the new one, never half of one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)  # the rename itself must survive a power cut
    finally:
        temporary.unlink(missing_ok=True)


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
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}). Delete it to have it made anew.") from error


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Read one JSON object a line; the error names the file and the line."""
    rows = []
    with Path(path).open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not valid JSON ({error.msg}).") from error
    return rows


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


@dataclasses.dataclass(frozen=True)
class Stage:
    """A finished stage: where its files are, what identifies it, and what its work returned."""

    name: str
    folder: Path
    fingerprint: str
    results: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder. `do` carries out one stage in it, or finds that it has been done."""

    folder: Path
    seed: int

    def do(
        self,
        name: str,
        work: Callable[[Path], Mapping[str, Any] | None],
        *,
        settings: Mapping[str, Any],
        upstream: Sequence[Stage] = (),
    ) -> Stage:
        """Carry out stage `name` unless the same request has been carried out before.

        Args:
          name: the stage, and its sub-folder ("select/deft/seed-0").
          work: called with the sub-folder. It may find there what a killed attempt at the same request left, never
            what another request left. What it returns (JSON) is kept in the manifest.
          settings: all that the outcome depends on, besides the seed and the upstream stages (JSON).
          upstream: the stages whose files `work` reads.
        """
        request = {
            "stage": name,
            "settings": plain(settings),
            "seed": self.seed,
            "upstream": {stage.name: stage.fingerprint for stage in upstream},
            "version": importlib.metadata.version("deft-tsds"),
        }
        fingerprint = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        folder = self.folder / name
        if (folder / "manifest.json").exists():
            manifest = read_json(folder / "manifest.json")
            if manifest["fingerprint"] == fingerprint:
                return Stage(name, folder, fingerprint, manifest["results"])
        self._prepare(folder, request)
        began = time.time()
        results = dict(work(folder) or {})
        write_json(
            folder / "manifest.json",
            {
                **request,
                "fingerprint": fingerprint,
                "results": results,
                "seconds": round(time.time() - began, 3),
                "peak_memory_bytes": peak_memory_bytes(),
                "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                "command": " ".join(sys.argv),
                "versions": versions(),
            },
        )
        console.print(f"[green]done[/] {name} [dim]{time.time() - began:.1f} s[/]")
        return Stage(name, folder, fingerprint, results)

    def _prepare(self, folder: Path, request: Mapping[str, Any]) -> None:
        """Keep what a killed attempt at the same request left in `folder`; clear what another request left."""
        mark = folder / "request.json"
        if folder.exists() and (not mark.exists() or read_json(mark) != json.loads(json.dumps(request))):
            changed = _changed(read_json(mark), request) if mark.exists() else "no request recorded"
            console.print(f"[yellow]anew[/] {request['stage']} [dim]({changed})[/]")
            shutil.rmtree(folder)
        write_json(mark, request)


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Name the parts of a request that differ, settings one by one."""
    parts = [key for key in new if key != "settings" and old.get(key) != new[key]]
    before, after = old.get("settings", {}), json.loads(json.dumps(new["settings"]))
    parts += [f"settings.{key}" for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    return "changed: " + ", ".join(parts)


def peak_memory_bytes() -> int:
    """The largest resident set of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


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
