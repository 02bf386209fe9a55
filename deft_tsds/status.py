"""What a run folder says of itself: which stages are done, running, half-way, out of date, not begun.

Everything is read from the files: requests, manifests, `metrics.jsonl`, `log.jsonl`. Nothing is written or locked, so
that a run may be looked at from beside, from another machine, or after it was killed. What is still to come is known
where an `experiment.json` names arms and seeds; a study's other cells are made up by its command as it goes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import math
import os
import platform
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from deft_tsds.running import logs
from deft_tsds.runs import read_json

State = Literal["done", "running", "half-way", "stale", "damaged", "not begun"]
STATES: tuple[State, ...] = ("done", "running", "half-way", "stale", "damaged", "not begun")

FRESH = 60.0
"""A stage that cannot be asked whose process it is counts as running if something in it is younger, in seconds."""

_RATE_ROWS = 20
_WHOLE = ("data", "hygiene", "embed", "tokenizer", "table", "report")


@dataclasses.dataclass(frozen=True)
class StageStatus:
    """One stage. Bytes and seconds; None is what the folder does not say."""

    name: str
    state: State
    seconds: float | None = None
    """What the work took, or has taken so far."""
    memory_bytes: int | None = None
    """Done: the peak of the stage. Running on this machine: what the process holds now."""
    step: int | None = None
    """Of a training: the last step in its log."""
    steps: int | None = None
    saved_step: int | None = None
    """The checkpoint that a killed training goes on from."""
    loss: float | None = None
    eta_seconds: float | None = None
    """What is left, at the pace of the last steps."""
    holder: str | None = None
    """Who does the work, or did it last."""
    finished: str | None = None
    note: str = ""

    @property
    def kind(self) -> str:
        """What stages of one sort have in common: "finetune", "curve/select"."""
        parts = self.name.split("/")
        while len(parts) > 1 and re.fullmatch(r"[0-9a-f]{12}|seed-\d+|side-by-side", parts[-1]):
            parts.pop()
        return "/".join(parts if parts[-1] in _WHOLE or len(parts) == 1 else parts[:-1])


@dataclasses.dataclass(frozen=True)
class Status:
    """A run folder."""

    folder: Path
    stages: tuple[StageStatus, ...]
    lock: dict[str, Any] | None
    """Who has the folder to himself: pid, host, command, since, and `alive`, None of another machine."""
    to_come: bool
    """Whether "not begun" has all that is still to come; else only what is begun is known."""

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError(
                f"{self.folder} is no run folder: it holds no stage (request.json, manifest.json) and no "
                "experiment.json. Give the --workdir of a run, a curve, an ablation or a study."
            )

    @property
    def counts(self) -> dict[State, int]:
        found = [stage.state for stage in self.stages]
        return {state: found.count(state) for state in STATES if state in found}

    def left(self) -> tuple[float, int]:
        """Seconds of work that is left, as far as stages of the same kind tell; and of how many stages nothing does."""
        took: dict[str, list[float]] = {}
        for stage in self.stages:
            if stage.state == "done" and stage.seconds is not None:
                took.setdefault(stage.kind, []).append(stage.seconds)
        seconds, unknown = 0.0, 0
        for stage in self.stages:
            if stage.state == "done":
                continue
            if stage.eta_seconds is not None:
                seconds += stage.eta_seconds
            elif stage.kind in took:
                seconds += sum(took[stage.kind]) / len(took[stage.kind])
            else:
                unknown += 1
        return seconds, unknown

    def as_json(self) -> dict[str, Any]:
        seconds, unknown = self.left()
        return {
            "folder": str(self.folder),
            "counts": self.counts,
            "lock": self.lock,
            "to_come_is_known": self.to_come,
            "left_seconds": round(seconds, 1),
            "left_unknown": unknown,
            "stages": [dataclasses.asdict(stage) for stage in self.stages],
        }


def status(folder: str | Path) -> Status:
    """Read a run folder, also one that is being written.

    Args:
      folder: the `--workdir` of a run, of a curve, an ablation, a matrix, a study.

    Raises:
      ValueError: it is no folder, or holds no stage.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder. Give the --workdir of a run.")
    found: dict[str, StageStatus] = {}
    planned: list[str] = []
    experiments, logged = [], {}
    stages = []
    for path, files in _walk(folder):
        if "experiment.json" in files:
            experiments.append(path)
        if logs.NAME in files:
            logged |= {(path / name).relative_to(folder).as_posix(): row for name, row in _holders(path).items()}
        if {"request.json", "manifest.json"} & files:
            stages.append(path)
    train_steps: dict[str, int] = {}
    for path in experiments:
        experiment = _read(path / "experiment.json")
        prefix = path.relative_to(folder)
        names = _planned(experiment)
        planned += [(prefix / name).as_posix() for name in names]
        for arm, steps in (experiment.get("train_steps") or {}).items():
            train_steps[(prefix / "finetune" / arm).as_posix()] = steps
    for path in stages:
        name = path.relative_to(folder).as_posix()
        steps = train_steps.get(name.rpartition("/")[0])
        found[name] = _stage(folder, name, logged.get(name), steps)
    ordered = [*planned, *sorted(found.keys() - set(planned))]
    rows = tuple(found.get(name) or StageStatus(name, "not begun") for name in dict.fromkeys(ordered))
    return Status(folder, rows, _lock(folder), to_come=bool(experiments) and found.keys() <= set(planned))


def _lock(folder: Path) -> dict[str, Any] | None:
    """What the holder wrote into `.lock`. The lock itself is not tried: that would keep somebody from taking it."""
    found = _read(folder / ".lock")
    if "pid" not in found:
        return None
    here = found.get("host") == platform.node()
    alive = (isinstance(found["pid"], int) and logs.began(found["pid"]) is not None) if here else None
    return {**found, "alive": alive}


def _walk(folder: Path) -> Iterator[tuple[Path, set[str]]]:
    """All folders with the names of their files, but nothing below a stage."""
    with contextlib.suppress(OSError):  # a stage may be cleared while we look
        entries = list(os.scandir(folder))
        files = {entry.name for entry in entries if entry.is_file()}
        yield folder, files
        if {"request.json", "manifest.json"} & files:
            return
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path))


def _read(path: Path) -> dict[str, Any]:
    """A JSON object, {} where it is not there or not whole."""
    with contextlib.suppress(OSError, ValueError):
        value = read_json(path)
        return value if isinstance(value, dict) else {}
    return {}


def _holders(folder: Path) -> dict[str, dict[str, Any]]:
    """By stage: the last record of its beginning, with `ended` where the same log says that it did."""
    found: dict[str, dict[str, Any]] = {}
    for row in logs.read(folder / logs.NAME):
        name, message = row.get("stage"), row.get("message")
        if not isinstance(name, str):
            continue
        if message == "begun":
            found[name] = row
        elif message in ("stopped", "failed") and name in found:
            found[name] = {**found[name], "ended": message, "error": row.get("error"), "why": row.get("why")}
    return found


def _planned(experiment: Mapping[str, Any]) -> list[str]:
    """The stages of the main job, in the order of the work: what `Pipeline.report` will ask for."""
    config = experiment.get("config") or {}
    arms, encoders = experiment.get("arms") or {}, config.get("encoders") or {}
    train = config.get("train") or {}
    seeds = [f"seed-{seed}" for seed in experiment.get("seeds") or [0]]
    used = [arm.get("options", {}).get("encoder") for arm in arms.values()]
    names = ["data"]
    if config.get("hygiene"):
        names.append("hygiene")
    for name in dict.fromkeys(used):
        if name is None:
            names.append("embed")
        elif (encoders.get(name) or {}).get("class") != "Ngrams":
            names.append(f"encoders/{name}")
    names += [f"select/{arm}/{seed}" for arm in arms for seed in seeds]
    names.append("tokenizer")
    together = ["side-by-side"] if train.get("side_by_side") else seeds
    names += [f"finetune/{arm}/{run}" for arm in arms for run in together]
    names.append("evaluate/copy/seed-0")
    names += [f"evaluate/{arm}/{seed}" for arm in arms for seed in seeds]
    return [*names, "table", "report"]


def _stage(folder: Path, name: str, begun: Mapping[str, Any] | None, steps: int | None) -> StageStatus:
    path = folder / name
    holder = None if begun is None else f"pid {begun.get('pid')} on {begun.get('host')}"
    if (path / "manifest.json").exists():
        manifest = _read(path / "manifest.json")
        if "fingerprint" not in manifest:
            return StageStatus(name, "damaged", note="manifest.json is not whole: delete it to have the stage redone")
        memory = (manifest.get("memory") or {}).get("host_peak_bytes") or manifest.get("peak_memory_bytes")
        changed = [up for up, mark in (manifest.get("upstream") or {}).items() if _changed(folder, name, up, mark)]
        results = manifest.get("results") or {}
        return StageStatus(
            name,
            "stale" if changed else "done",
            seconds=manifest.get("seconds"),
            memory_bytes=memory,
            step=results.get("steps"),
            steps=results.get("steps"),
            loss=results.get("loss"),
            holder=holder,
            finished=manifest.get("finished"),
            note=f"made from another {', '.join(changed)}: will be made anew" if changed else "",
        )
    request, touched = _read(path / "request.json"), _touched(path)
    alive, note, memory = _alive(begun, touched)
    found = _training(folder, name, path, request, steps) | _evaluation(folder, name, path)
    if not alive and begun is not None and begun.get("ended"):
        note = str(begun["ended"])
        if begun.get("error"):
            note += f": {begun['error']} {begun.get('why') or ''}".rstrip()
    elif not alive:
        known = begun is not None and begun.get("host") == platform.node()
        note = f"{'killed; ' if known else ''}last written {_ago(touched)}"
    seconds = None
    if alive and begun is not None:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            seconds = round(time.time() - datetime.datetime.fromisoformat(begun["time"]).timestamp(), 1)
    note = "; ".join(part for part in (found.pop("note", ""), note) if part)
    state: State = "running" if alive else "half-way"
    return StageStatus(name, state, **{"seconds": seconds, **found}, memory_bytes=memory, holder=holder, note=note)


def _changed(folder: Path, name: str, upstream: str, fingerprint: str) -> bool:
    """Whether the stage that was read has been made anew since. A nested run names stages from its own folder."""
    for root in (folder, *(folder / parent for parent in Path(name).parents)):
        now = _read(root / upstream / "manifest.json").get("fingerprint")
        if now is not None:
            return now != fingerprint
    return False


def _touched(path: Path) -> float:
    """When something below was last written."""
    newest = 0.0
    for parent, _, files in os.walk(path):
        for file in files:
            with contextlib.suppress(OSError):
                newest = max(newest, os.stat(os.path.join(parent, file)).st_mtime)
    return newest


def _alive(begun: Mapping[str, Any] | None, touched: float) -> tuple[bool, str, int | None]:
    """Whether somebody works on it, what is to be said of that, and the memory of the process."""
    fresh = abs(time.time() - touched) < FRESH  # a clock that jumped makes no future
    if begun is None:
        return fresh, f"last written {_ago(touched)}" if fresh else "", None
    if begun.get("ended"):
        return False, "", None
    if begun.get("host") != platform.node():
        return fresh, f"on another machine; last written {_ago(touched)}", None
    pid = begun.get("pid")
    if not isinstance(pid, int) or begun.get("process_began") is None:
        return fresh, f"last written {_ago(touched)}", None
    alive = logs.began(pid) == begun["process_began"]
    memory = None
    if alive:
        with contextlib.suppress(OSError, ValueError, IndexError):
            text = Path(f"/proc/{pid}/status").read_text()
            memory = 1024 * int(re.findall(r"^VmRSS:\s+(\d+)", text, re.M)[0])
    return alive, "", memory


def _training(folder: Path, name: str, path: Path, request: Mapping[str, Any], steps: int | None) -> dict[str, Any]:
    """Step, pace and checkpoint of a fine-tuning; {} for other stages."""
    train = (request.get("settings") or {}).get("train")
    if not isinstance(train, dict):
        return {}
    found: dict[str, Any] = {"steps": train.get("steps") or steps or _steps(folder, name, request, train)}
    with contextlib.suppress(OSError):
        saved = [int(item.name) for item in (path / "checkpoints").iterdir() if item.name.isdigit()]
        found["saved_step"] = max(saved, default=None)
    for log in sorted([path / "metrics.jsonl", *path.glob("*/metrics.jsonl")]):
        rows = _rows(log)
        if not rows:
            continue
        found |= {"step": rows[-1]["step"], "loss": rows[-1].get("loss")}
        tail = rows[-_RATE_ROWS:]
        for place in range(len(tail) - 1, 0, -1):  # seconds begin anew where a run went on
            if tail[place]["seconds"] < tail[place - 1]["seconds"]:
                tail = tail[place:]
                break
        taken = tail[-1]["step"] - tail[0]["step"]
        if found["steps"] and taken > 0:
            pace = (tail[-1]["seconds"] - tail[0]["seconds"]) / taken
            left = max(0, found["steps"] - found["step"])
            found["eta_seconds"] = round(pace * left, 1)
        break
    return found


def _rows(log: Path) -> list[dict[str, Any]]:
    rows = []
    with contextlib.suppress(OSError), log.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(json.JSONDecodeError):  # half a line: it is being written
                row = json.loads(line)
                if isinstance(row, dict) and isinstance(row.get("step"), int) and "seconds" in row:
                    rows.append(row)
    return rows


def _steps(folder: Path, name: str, request: Mapping[str, Any], train: Mapping[str, Any]) -> int | None:
    """Steps of a training that is told its epochs, by the size of the selection that it reads."""
    for upstream in request.get("upstream") or {}:
        for root in (folder, *(folder / parent for parent in Path(name).parents)):
            chosen = (_read(root / upstream / "manifest.json").get("results") or {}).get("chosen")
            if chosen and train.get("epochs") and train.get("batch_size"):
                return math.ceil(train["epochs"] * chosen / train["batch_size"])
    return None


def _evaluation(folder: Path, name: str, path: Path) -> dict[str, Any]:
    """How many test sets have their answers; {} for other stages."""
    if "evaluate" not in name.split("/"):
        return {}
    answered = len(list(path.glob("predictions_*.jsonl")))
    tests = (_read(folder / "data" / "manifest.json").get("results") or {}).get("tests")
    return {"note": f"{answered} of {len(tests)} test sets answered" if tests else f"{answered} test sets answered"}


def _ago(moment: float) -> str:
    return f"{span(max(0.0, time.time() - moment))} ago" if moment else "never"


def span(seconds: float) -> str:
    """ "7.1 s", "3 min 05 s", "2 h 07 min", "3 d 04 h"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def memory(size: int | None) -> str:
    return "" if size is None else f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def lines(found: Status, *, everything: bool = False) -> Sequence[tuple[str, str, str, str, str]]:
    """Rows of a table: stage, state, time, memory, more. Above 40 stages those that are done or not begun are summed up
    by kind, unless `everything` is asked for."""
    rows = []
    summed = not everything and len(found.stages) > 40
    if summed:
        for kind in dict.fromkeys(stage.kind for stage in found.stages):
            of_kind = [stage for stage in found.stages if stage.kind == kind]
            counts = {state: sum(stage.state == state for stage in of_kind) for state in STATES}
            words = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
            seconds = sum(stage.seconds or 0 for stage in of_kind)
            peak = max((stage.memory_bytes or 0 for stage in of_kind), default=0)
            rows.append((f"{kind}/*" if len(of_kind) > 1 else kind, words, span(seconds), memory(peak or None), ""))
    for stage in found.stages:
        if summed and stage.state in ("done", "not begun"):
            continue
        more = []
        if stage.state != "done" and stage.step is not None:
            more.append(f"step {stage.step}" + (f" of {stage.steps}" if stage.steps else ""))
        if stage.state == "half-way" and stage.saved_step is not None:
            more.append(f"goes on from {stage.saved_step}")
        if stage.loss is not None and isinstance(stage.loss, (int, float)):
            more.append(f"loss {stage.loss:.3f}")
        if stage.state == "running" and stage.eta_seconds is not None:
            more.append(f"{span(stage.eta_seconds)} left")
        if stage.state == "running" and stage.holder:
            more.append(stage.holder)
        if stage.note:
            more.append(stage.note)
        took = "" if stage.seconds is None else span(stage.seconds)
        rows.append((stage.name, stage.state, took, memory(stage.memory_bytes), ", ".join(more)))
    return rows
