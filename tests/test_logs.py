"""The log of a run, and the watermarks of memory in its manifests."""

from __future__ import annotations

import json
import logging
import sys
import time

import jax
import numpy as np
import pytest

from deft_tsds.running import logs, watermarks
from deft_tsds.runs import Run, console, progress_bar, read_json


@pytest.fixture(autouse=True)
def _no_log_left_open():
    yield
    logs.write_to(None)


def records(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_stage_leaves_its_beginning_and_the_lines_of_the_console(tmp_path, capsys):
    def work(folder):
        console.print("[bold]half[/] way, [not markup", markup=False)
        console.print("[bold]nearly[/]", fields={"rows": np.int64(3), "loss": float("nan")})

    Run(tmp_path, 0).do("select/a", work, settings={})
    found = records(tmp_path)
    assert [row["message"] for row in found[:3]] == ["begun", "[bold]half[/] way, [not markup", "nearly"]
    assert found[3]["message"].startswith("done select/a")
    assert {row["stage"] for row in found} == {"select/a"}
    assert {row["level"] for row in found} == {"info"}
    assert found[0]["pid"] > 0
    assert (found[2]["rows"], found[2]["loss"]) == ("3", "nan")
    assert "nearly" in capsys.readouterr().err  # the console has its line all the same


def test_times_are_iso_with_a_zone(tmp_path):
    import datetime

    Run(tmp_path, 0).do("data", lambda folder: None, settings={})
    time = datetime.datetime.fromisoformat(records(tmp_path)[0]["time"])
    assert time.tzinfo is not None
    assert abs((datetime.datetime.now(datetime.UTC) - time).total_seconds()) < 60


def test_a_done_stage_writes_nothing(tmp_path):
    run = Run(tmp_path, 0)
    run.do("data", lambda folder: None, settings={})
    (tmp_path / "log.jsonl").unlink()
    logs.write_to(None)
    run.do("data", lambda folder: None, settings={})
    assert not (tmp_path / "log.jsonl").exists()


@pytest.mark.parametrize(
    ("error", "message", "level"),
    [
        (ValueError("row 3"), "failed", "error"),
        (KeyboardInterrupt(), "stopped", "warning"),
        (SystemExit(0), "stopped", "warning"),
    ],
)
def test_a_failure_is_told_apart_from_a_stop(tmp_path, error, message, level):
    def work(folder):
        raise error

    with pytest.raises(type(error)):
        Run(tmp_path, 0).do("data", work, settings={})
    last = records(tmp_path)[-1]
    assert (last["message"], last["level"], last["stage"]) == (message, level, "data")
    assert last["error"] == type(error).__name__
    assert last["why"] == str(error)


def test_records_of_a_run_inside_a_run_go_to_their_own_log(tmp_path):
    outer, inner = Run(tmp_path / "outer", 0), Run(tmp_path / "inner", 0)

    def work(folder):
        inner.do("in", lambda folder: console.print("inside"), settings={})
        console.print("outside")

    outer.do("out", work, settings={})
    console.print("afterwards")
    assert [row["message"] for row in records(tmp_path / "inner")][:2] == ["begun", "inside"]
    assert {row["stage"] for row in records(tmp_path / "inner")} == {"in"}
    messages = {row["message"]: row["stage"] for row in records(tmp_path / "outer")}
    assert messages["outside"] == "out"
    assert messages["afterwards"] is None


def test_half_a_line_that_a_kill_left_spoils_nothing(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"message": "whole"}\n{"mess')
    Run(tmp_path, 0).do("data", lambda folder: None, settings={})
    assert [row["message"] for row in logs.read(tmp_path / "log.jsonl")][:2] == ["whole", "begun"]


def test_hostile_text_is_one_line(tmp_path):
    text = "a\nb\u2028c \ud800 </script> \x00"
    logs.write_to(tmp_path)
    # Straight to the file: pytest would capture what a logger gets, and its workers cannot hand on half a character.
    handler = logs._file
    assert handler is not None
    handler.handle(logging.LogRecord("deft_tsds", logging.INFO, "", 0, text, None, None))
    logs.write_to(None)
    lines = (tmp_path / "log.jsonl").read_text(encoding="utf-8").split("\n")
    assert len(lines) == 2
    assert json.loads(lines[0])["message"].startswith("a\nb\u2028c ")


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "log.jsonl").mkdir()
    assert Run(tmp_path, 0).do("data", lambda folder: {"rows": 1}, settings={}).results == {"rows": 1}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/dev/full is Linux")
def test_a_full_disk_stops_nothing(tmp_path, capsys):
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    assert Run(tmp_path, 0).do("data", lambda folder: {"rows": 1}, settings={}).results == {"rows": 1}
    assert "Traceback" not in capsys.readouterr().err


def test_other_processes_are_silent(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(logs, "is_first_process", lambda: False)
    Run(tmp_path, 0).do("data", lambda folder: console.print("hello"), settings={})
    assert capsys.readouterr().err == ""
    assert not (tmp_path / "log.jsonl").exists()
    monkeypatch.setattr(type(console).__mro__[1], "is_terminal", True)
    assert progress_bar().disable


def test_a_handler_of_ones_own_sees_the_records(tmp_path):
    seen = []

    class Mine(logging.Handler):
        def emit(self, record):
            seen.append(record.getMessage())

    handler = Mine()
    logging.getLogger("deft_tsds").addHandler(handler)
    try:
        Run(tmp_path, 0).do("data", lambda folder: None, settings={})
    finally:
        logging.getLogger("deft_tsds").removeHandler(handler)
    assert seen[0] == "begun"


def resident():
    found = watermarks.resident()
    assert found is not None
    return found


linux = pytest.mark.skipif(watermarks.resident() is None, reason="no /proc")


@linux
def test_a_stage_that_sets_the_mark_of_the_process_knows_its_peak_exactly():
    before = watermarks.peak_memory_bytes()
    size = before - resident().total + 64 * 2**20
    with watermarks.Watermarks() as marks:
        held = np.ones(size, np.uint8)
        del held
    found = marks.found()
    assert found["host_peak_is"] == "exact"
    assert found["host_peak_bytes"] == watermarks.peak_memory_bytes() > before


@linux
def test_a_stage_below_the_mark_is_sampled():
    np.ones(192 * 2**20, np.uint8)  # so that the mark is high
    began = resident()
    with watermarks.Watermarks() as marks:
        held = np.ones(64 * 2**20, np.uint8)
        time.sleep(5 * watermarks.INTERVAL)
        del held
    found = marks.found()
    assert found["host_peak_is"] == "sampled"
    rise = found["host_peak_bytes"] - began.total
    assert 60 * 2**20 < rise < 100 * 2**20
    assert 60 * 2**20 < found["host_peak_anonymous_bytes"] - began.anonymous < 100 * 2**20


def test_devices_say_whether_the_stage_set_their_mark(monkeypatch):
    class Device:
        def __init__(self, name, peaks):
            self.name, self.peaks = name, iter(peaks)

        def __str__(self):
            return self.name

        def memory_stats(self):
            peak = next(self.peaks)
            return None if peak is None else {"peak_bytes_in_use": peak, "bytes_limit": 100}

    devices = [Device("cuda:0", [5, 9]), Device("cuda:1", [7, 7]), Device("cpu:0", [None, None])]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    with watermarks.Watermarks() as marks:
        pass
    assert marks.found()["devices"] == [
        {"device": "cuda:0", "peak_bytes": 9, "limit_bytes": 100, "of": "stage"},
        {"device": "cuda:1", "peak_bytes": 7, "limit_bytes": 100, "of": "process"},
    ]


def test_the_manifest_has_the_watermarks(tmp_path):
    Run(tmp_path, 0).do("data", lambda folder: None, settings={})
    manifest = read_json(tmp_path / "data" / "manifest.json")
    assert 1_000_000 < manifest["memory"]["host_peak_bytes"] <= manifest["peak_memory_bytes"]
    assert manifest["memory"]["devices"] == watermarks.device_peaks()
