"""The copies of metrics.jsonl, read back by TensorBoard's own reader and from the records of Weights & Biases."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import training_run
from test_pipeline import SMALL
from training_run import STEPS

from deft_tsds.config import Arm
from deft_tsds.pipeline import Pipeline
from deft_tsds.runs import read_jsonl
from deft_tsds.selectors import Random
from deft_tsds.training import tracking
from deft_tsds.training.finetune import Trained, finetune, learning_rates, make_optimizer
from deft_tsds.training.tracking import TrackedLog, check_trackers, copy_log

pytest.importorskip("tensorboard", reason="needs the extra `tracking`")
pytest.importorskip("wandb", reason="needs the extra `tracking`")

BOTH = ("tensorboard", "wandb")


def row(step: int) -> dict:
    return {"step": step, "loss": 1 / step} | ({"validation_loss": 2 / step} if step % 3 == 0 else {})


def seen_by_tensorboard(folder: Path) -> list[dict]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tracking/tensorboard"), {"tensors": 0}).Reload()
    rows: dict[int, dict] = {}
    for name in events.Tags()["tensors"]:
        for event in events.Tensors(name):
            found = rows.setdefault(event.step, {"step": event.step})
            assert name not in found, f"{name} has step {event.step} twice"
            found[name] = event.tensor_proto.float_val[0] if event.tensor_proto.float_val else _float(event)
    return [rows[step] for step in sorted(rows)]


def _float(event) -> float:
    return float(np.frombuffer(event.tensor_proto.tensor_content, np.float32)[0])


def seen_by_wandb(folder: Path) -> list[dict]:
    """The history in the one .wandb file, once its run has ended: its own process writes it."""
    (file,) = folder.glob("tracking/wandb/offline-run-*/*.wandb")
    deadline = time.monotonic() + 60
    while (rows := _history(file.read_bytes())) is None:
        assert time.monotonic() < deadline, f"{file} has no end"
        time.sleep(0.05)
    return rows


def _history(data: bytes) -> list[dict] | None:
    """The rows in a LevelDB log of protocol buffers; None before the record of the end."""
    record_type: Any = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    place, part, rows = 7, b"", []
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # what is left of a block holds no header
            place += 32768 - place % 32768
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        part = data[place + 7 : place + 7 + size] if kind in (1, 2) else part + data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):
            record = record_type.FromString(part)
            if record.WhichOneof("record_type") == "exit":
                return rows
            if record.WhichOneof("record_type") == "history":
                items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
                values = {name: json.loads(value) for name, value in items.items()}
                names = [name for name in values if not name.startswith("_")]
                rows.append({"step": values["_step"]} | {name: values[name] for name in names})
    return None


def rounded(rows: list[dict]) -> list[dict]:
    return [{name: float(np.float32(value)) for name, value in row.items()} for row in rows]


@pytest.fixture
def listener(monkeypatch):
    """Where Weights & Biases would go if it went online; ready to be counted."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(0.2)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "5ec4e7" * 7)
        monkeypatch.delenv("WANDB_MODE", raising=False)
        yield server


def test_copies_hold_every_row_and_nothing_goes_over_the_network(tmp_path, listener):
    log = TrackedLog(tmp_path / "metrics.jsonl", track=BOTH)
    for step in range(1, 8):
        log.write(row(step))
    log.close()
    expected = [row(step) for step in range(1, 8)]
    assert read_jsonl(tmp_path / "metrics.jsonl") == expected
    assert seen_by_wandb(tmp_path) == expected
    assert seen_by_tensorboard(tmp_path) == rounded(expected)
    with pytest.raises(TimeoutError):
        listener.accept()
    for path in tmp_path.rglob("*"):  # the key of the user's account is in no file
        assert not path.is_file() or b"5ec4e7" * 7 not in path.read_bytes(), path


KILLED = """
import sys, time
from pathlib import Path
from deft_tsds.training.tracking import TrackedLog
log = TrackedLog(Path(sys.argv[1]) / "metrics.jsonl", track=("tensorboard", "wandb"))
for step in range(1, 7):
    log.write({"step": step, "loss": 9.0})
print("written", flush=True)
time.sleep(500)
"""


def test_a_killed_run_that_goes_on_has_no_step_twice(tmp_path, listener):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    environment.pop("WANDB_SERVICE", None)  # of this process, which the killed one would not take with it
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert "written" in process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert [found["step"] for found in seen_by_tensorboard(tmp_path)] == [1, 2, 3, 4, 5, 6]
    identity = (tmp_path / "tracking/wandb/id").read_text()
    log = TrackedLog(tmp_path / "metrics.jsonl", keep_until_step=3, track=BOTH)
    for step in range(4, 9):
        log.write(row(step))
    log.close()
    expected = [{"step": step, "loss": 9.0} for step in (1, 2, 3)] + [row(step) for step in range(4, 9)]
    assert read_jsonl(tmp_path / "metrics.jsonl") == expected
    assert seen_by_wandb(tmp_path) == expected
    assert seen_by_tensorboard(tmp_path) == rounded(expected)
    assert (tmp_path / "tracking/wandb/id").read_text() == identity


def test_what_is_no_longer_tracked_leaves_no_half_copy(tmp_path):
    TrackedLog(tmp_path / "metrics.jsonl", track=("tensorboard",)).write(row(1))
    log = TrackedLog(tmp_path / "metrics.jsonl", keep_until_step=1)
    log.write(row(2))
    log.close()
    assert not (tmp_path / "tracking/tensorboard").exists()
    copy_log(tmp_path / "metrics.jsonl", ["tensorboard"])
    assert seen_by_tensorboard(tmp_path) == rounded([row(1), row(2)])


def test_a_copy_cut_short_is_made_anew(tmp_path, monkeypatch):
    log = TrackedLog(tmp_path / "metrics.jsonl")
    for step in range(1, 5):
        log.write(row(step))
    log.close()

    def stop(self) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tracking._TensorBoard, "close", stop)
        with pytest.raises(KeyboardInterrupt):
            copy_log(tmp_path / "metrics.jsonl", ["tensorboard"])
    assert not (tmp_path / "tracking/tensorboard").exists()
    copy_log(tmp_path / "metrics.jsonl", ["tensorboard"])
    assert len(seen_by_tensorboard(tmp_path)) == 4
    assert [path.name for path in (tmp_path / "tracking").iterdir()] == ["tensorboard"]
    (written,) = (tmp_path / "tracking/tensorboard").iterdir()
    before = written.stat().st_mtime_ns
    copy_log(tmp_path / "metrics.jsonl", ["tensorboard"])
    assert written.stat().st_mtime_ns == before


def test_fine_tuning_that_was_stopped_between_checkpoints(tmp_path, monkeypatch, listener):
    model, pairs = training_run.model_and_pairs()

    def go_on() -> None:
        finetune(
            model,
            pairs,
            rates=learning_rates(steps=STEPS, peak=1e-2, warmup=0.1, schedule="linear"),
            batch_size=8,
            key=jax.random.key(1),
            folder=tmp_path,
            optimizer=make_optimizer("adamw"),
            save_every=3,
            log_every=1,
            track=BOTH,
        )

    def stop_at_eight(self, row) -> None:
        write(self, row)
        if row["step"] == 8:
            raise KeyboardInterrupt

    write = TrackedLog.write
    with monkeypatch.context() as patch:
        patch.setattr(TrackedLog, "write", stop_at_eight)
        with pytest.raises(KeyboardInterrupt):
            go_on()
    assert [found["step"] for found in seen_by_tensorboard(tmp_path)] == list(range(1, 9))
    go_on()
    assert seen_by_tensorboard(tmp_path) == rounded(read_jsonl(tmp_path / "metrics.jsonl"))
    assert seen_by_wandb(tmp_path) == read_jsonl(tmp_path / "metrics.jsonl")
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == STEPS


def test_asked_for_later_it_is_copied_and_nothing_trained_again(tmp_path, monkeypatch):
    def trained(model, pairs, *, folder, track, **settings) -> Trained:
        log = TrackedLog(folder / "metrics.jsonl", track=track)
        log.write(row(1))
        log.close()
        return Trained(steps=1, kept_step=1, loss=1.0, validation_loss=None)

    monkeypatch.setattr("deft_tsds.pipeline.finetune", trained)
    plain = dataclasses.replace(SMALL, arms={"random": Arm(Random(), count=20)}, workdir=tmp_path / "run")
    stage = Pipeline(plain).finetune("random", 0)
    assert not (stage.folder / "tracking/tensorboard").exists()
    written = (stage.folder / "manifest.json").stat().st_mtime_ns
    again = Pipeline(dataclasses.replace(plain, track=("tensorboard",))).finetune("random", 0)
    assert again.fingerprint == stage.fingerprint
    assert (stage.folder / "manifest.json").stat().st_mtime_ns == written
    assert seen_by_tensorboard(stage.folder) == rounded(read_jsonl(stage.folder / "metrics.jsonl"))


def test_what_is_missing_is_said_before_any_work(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="track has 'mlflow': choose among tensorboard, wandb"):
        check_trackers(["mlflow"])
    check_trackers(BOTH)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"'wandb', which is not installed: pip install \"deft-tsds\[tracking\]\""):
        Pipeline(dataclasses.replace(SMALL, track=("wandb",), workdir=tmp_path / "run"))
    assert not (tmp_path / "run").exists()
