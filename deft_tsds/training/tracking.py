"""Where the rows of `metrics.jsonl` go besides: TensorBoard and Weights & Biases (extra `tracking`).

`metrics.jsonl` is the record, and what is written here, to the folder `tracking` beside it, is a copy. A run that goes
on after a kill cuts its record back to the last checkpoint and makes its copies anew from what is left, so that no step
is in them twice.

Weights & Biases stays offline unless WANDB_MODE says otherwise: `wandb sync` sends later what lies in the run folder.
It gets the numbers of `metrics.jsonl` and the name of the run; no config, no code, nothing about the machine.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from deft_tsds.runs import MetricsLog, atomic_write, read_jsonl

Tracker = Literal["tensorboard", "wandb"]


def check_trackers(names: Sequence[str]) -> None:
    """Raise ValueError for a tracker that does not exist or is not installed."""
    for name in names:
        if name not in get_args(Tracker):
            raise ValueError(f"track has {name!r}: choose among {', '.join(get_args(Tracker))}.")
        if importlib.util.find_spec(name) is None:
            raise ValueError(
                f'track has {name!r}, which is not installed: pip install "deft-tsds[tracking]", or leave it out; '
                "metrics.jsonl is written anyway."
            )


class TrackedLog(MetricsLog):
    """`metrics.jsonl`, with a copy of every row for each tracker."""

    def __init__(self, path: Path, *, keep_until_step: int = 0, track: Sequence[str] = ()):
        """Open the log as `MetricsLog` does, and begin the copies with the rows that are kept."""
        super().__init__(path, keep_until_step=keep_until_step)
        for name in {*_COPIES} - {*track}:  # begun by an earlier attempt that was told to
            shutil.rmtree(_room(path) / name, ignore_errors=True)
        self._copies = [_COPIES[name](_room(path), _title(path)) for name in track]
        for row in read_jsonl(path) if track else ():
            self._copy(row)

    def write(self, row: Mapping[str, Any]) -> None:
        super().write(row)
        self._copy(row)

    def close(self) -> None:
        super().close()
        for copy in self._copies:
            copy.close()

    def _copy(self, row: Mapping[str, Any]) -> None:
        for copy in self._copies:
            copy.write(row)


def copy_log(path: Path, track: Sequence[str]) -> None:
    """Give a finished `metrics.jsonl` the copies that it does not have yet: tracking asked for after the training."""
    for name in track:
        if (_room(path) / name).exists():
            continue
        unfinished = _room(path) / ".unfinished"  # a copy that a kill cuts short must not look like a whole one
        shutil.rmtree(unfinished, ignore_errors=True)
        copy = _COPIES[name](unfinished, _title(path))
        for row in read_jsonl(path):
            copy.write(row)
        copy.close()
        (unfinished / name).rename(_room(path) / name)
        shutil.rmtree(unfinished)


def _room(path: Path) -> Path:
    return path.parent / "tracking"


def _title(path: Path) -> str:
    """What the run is called where runs of many folders meet: "demo/finetune/random/seed-0"."""
    return "/".join(path.parent.resolve().parts[-4:])


class _Copy(Protocol):
    """A copy of a log, begun anew in a folder of its own name in `room`."""

    def __init__(self, room: Path, title: str): ...

    def write(self, row: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class _TensorBoard:
    """Scalars in event files, by TensorBoard's own writer, which needs neither TensorFlow nor torch."""

    def __init__(self, room: Path, title: str):
        from tensorboard.summary import Writer  # here, because only who tracks has it

        del title  # TensorBoard calls a run by its path
        shutil.rmtree(room / "tensorboard", ignore_errors=True)
        self._writer = Writer(str(room / "tensorboard"))

    def write(self, row: Mapping[str, Any]) -> None:
        for name, value in _numbers(row).items():
            self._writer.add_scalar(name, value, row["step"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _WandB:
    """A Weights & Biases run. Its id stays the same when the training goes on, so that online it is one run."""

    def __init__(self, room: Path, title: str):
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        if mode == "offline":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read by the import; reports go over the network
        import wandb

        folder = room / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("offline-run-*"):
            shutil.rmtree(old)
        if not (folder / "id").exists():
            with atomic_write(folder / "id") as temporary:
                temporary.write_text(os.urandom(8).hex())
        self._run = wandb.init(
            dir=room,
            id=(folder / "id").read_text(),
            name=title,
            project=os.environ.get("WANDB_PROJECT", "deft_tsds"),
            mode=mode,
            resume="allow" if mode == "online" else None,
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_code=True,
                disable_git=True,
                disable_job_creation=True,
                save_code=False,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        self._first = self._run.step  # online, what came before is there already

    def write(self, row: Mapping[str, Any]) -> None:
        if row["step"] >= self._first:
            self._run.log(_numbers(row), step=row["step"])

    def close(self) -> None:
        self._run.finish()


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "step" and value is not None}


_COPIES: dict[str, type[_Copy]] = {"tensorboard": _TensorBoard, "wandb": _WandB}
