"""`scripts/status.py`: runs that are whole, running, killed, out of date, damaged, and studies of many cells."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_run import write_fake_run

from deft_tsds.running import logs
from deft_tsds.runs import Run, read_json, write_json, write_jsonl
from deft_tsds.status import lines, span, status
from deft_tsds.studies.variants import Shelf

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_fake_run(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def run(whole, tmp_path):
    """A copy to spoil: every stage but table, report, tokenizer and the copy baseline is done."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


@pytest.fixture(autouse=True)
def _no_log_left_open():
    yield
    logs.write_to(None)


def by_name(folder):
    return {stage.name: stage for stage in status(folder).stages}


def half_way(run, name, *, settings=None, upstream=None, hours_ago=2.0):
    """What a stage leaves that was killed some time ago."""
    (run / name / "manifest.json").unlink(missing_ok=True)
    write_json(run / name / "request.json", {"settings": settings or {}, "upstream": upstream or {}})
    then = time.time() - 3600 * hours_ago
    for parent, _, files in os.walk(run / name):
        for file in files:
            os.utime(Path(parent) / file, (then, then))


def test_done_and_not_begun_are_told_apart(run):
    found = status(run)
    assert found.to_come
    states = {stage.name: stage.state for stage in found.stages}
    assert [name for name, state in states.items() if state == "not begun"] == [
        "tokenizer",
        "evaluate/copy/seed-0",
        "table",
        "report",
    ]
    assert states["select/deft/seed-1"] == "done"
    stage = by_name(run)["finetune/deft/seed-0"]
    assert (stage.seconds, stage.memory_bytes, stage.kind) == (55.0, 812_000_000, "finetune")
    assert next(iter(states)) == "data"
    assert list(states)[-1] == "report"  # in the order of the work


def test_a_killed_training_says_its_step_its_checkpoint_and_what_is_left(run):
    name = "finetune/deft/seed-0"
    (run / name / "checkpoints" / "200").mkdir(parents=True)
    rows = [{"step": step, "loss": 1.0, "seconds": 2.0 * step} for step in (10, 100, 200)]
    rows += [{"step": step, "loss": 0.5, "seconds": 10 + (step - 200) / 10} for step in (220, 240, 250)]  # went on
    write_jsonl(run / name / "metrics.jsonl", rows)
    with (run / name / "metrics.jsonl").open("a") as file:
        file.write('{"step": 260, "lo')
    half_way(run, name, settings={"train": {"steps": 500, "batch_size": 8}})
    stage = by_name(run)[name]
    assert stage.state == "half-way"
    assert (stage.step, stage.steps, stage.saved_step, stage.loss) == (250, 500, 200, 0.5)
    assert stage.eta_seconds == pytest.approx(25)  # at the pace since it went on
    row = next(row for row in lines(status(run)) if row[0] == name)
    assert "step 250 of 500, goes on from 200, loss 0.500" in row[4]
    assert "2 h 00 min ago" in row[4]


def test_steps_of_epochs_come_from_the_plan_or_the_selection(run):
    name = "finetune/deft/seed-0"
    half_way(run, name, settings={"train": {"steps": None, "epochs": 3, "batch_size": 8}})
    assert by_name(run)[name].steps == 500  # of experiment.json
    (run / "experiment.json").unlink()
    manifest = run / "select/deft/seed-0/manifest.json"
    write_json(manifest, {**read_json(manifest), "results": {"chosen": 78}})
    train = {"steps": None, "epochs": 3, "batch_size": 8}
    half_way(run, name, settings={"train": train}, upstream={"select/deft/seed-0": "-"})
    assert by_name(run)[name].steps == 30


def test_a_stage_whose_upstream_was_made_anew_is_stale(run):
    manifest = run / "select/tsds/seed-0/manifest.json"
    write_json(manifest, {**read_json(manifest), "upstream": {"embed": "another", "no such stage": "x"}})
    stage = by_name(run)["select/tsds/seed-0"]
    assert stage.state == "stale"
    assert stage.note == "made from another embed: will be made anew"


@pytest.mark.parametrize("content", ['{"fing', "", "[]", "{}", "\x00\xff"])
def test_a_damaged_manifest_is_said_and_spoils_nothing(run, content):
    (run / "embed/manifest.json").write_text(content, encoding="latin-1")
    found = by_name(run)
    assert found["embed"].state == "damaged"
    assert "delete it" in found["embed"].note
    assert found["data"].state == "done"


def test_an_evaluation_says_how_many_tests_it_has_answered(run):
    manifest = run / "data/manifest.json"
    write_json(manifest, {**read_json(manifest), "results": {"tests": {"jfleg": 20, "asset": 20, "wnc": 20}}})
    (run / "evaluate/deft/seed-0/predictions_wnc.jsonl").unlink()
    half_way(run, "evaluate/deft/seed-0")
    assert by_name(run)["evaluate/deft/seed-0"].note.startswith("2 of 3 test sets answered")


def test_work_left_is_told_by_stages_of_the_same_kind(run):
    half_way(run, "evaluate/deft/seed-0")
    seconds, unknown = status(run).left()
    assert seconds == pytest.approx(2 * 21.0)  # this one and copy
    assert unknown == 3  # tokenizer, table, report


def test_a_failure_is_in_the_note(tmp_path):
    def work(folder):
        raise ValueError("row 3 is bad")

    with pytest.raises(ValueError, match="row 3"):
        Run(tmp_path, 0).do("select/a/seed-0", work, settings={})
    stage = by_name(tmp_path)["select/a/seed-0"]
    assert (stage.state, stage.note) == ("half-way", "failed: ValueError row 3 is bad")


def test_a_stage_of_this_process_is_running(tmp_path):
    seen = {}

    def work(folder):
        seen.update(by_name(tmp_path))

    Run(tmp_path, 0).do("embed", work, settings={})
    assert seen["embed"].state == "running"
    assert seen["embed"].holder is not None
    assert str(os.getpid()) in seen["embed"].holder
    assert 0 <= seen["embed"].seconds < 60
    assert by_name(tmp_path)["embed"].state == "done"


def test_a_pid_that_is_used_again_is_not_the_process(tmp_path):
    write_json(tmp_path / "embed/request.json", {})
    logs.write_to(tmp_path)
    with logs.stage(tmp_path, "embed"):
        logs.event("begun", **{**logs.process(), "process_began": 1})
    stage = by_name(tmp_path)["embed"]
    assert stage.state == "half-way"
    assert stage.note.startswith("killed; last written")


def test_of_another_machine_the_age_of_the_files_decides(tmp_path):
    write_json(tmp_path / "embed/request.json", {})
    with logs.stage(tmp_path, "embed"):
        logs.event("begun", **{**logs.process(), "host": "elsewhere"})
    assert by_name(tmp_path)["embed"].state == "running"
    assert "another machine" in by_name(tmp_path)["embed"].note
    half_way(tmp_path, "embed")
    assert by_name(tmp_path)["embed"].state == "half-way"


WORK = """
import sys, time
from pathlib import Path
from deft_tsds.runs import Run

def work(folder):
    (folder / "shard-0").write_text("x")
    print("ready", flush=True)
    time.sleep(60)

Run(Path(sys.argv[1]), 0).do("embed", work, settings={})
"""


def test_a_process_that_runs_and_is_killed(tmp_path):
    command = [sys.executable, "-c", WORK, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        stage = by_name(tmp_path)["embed"]
        process.send_signal(signal.SIGKILL)
    assert stage.state == "running"
    assert stage.holder is not None
    assert str(process.pid) in stage.holder
    assert stage.memory_bytes is None or stage.memory_bytes > 10_000_000
    assert by_name(tmp_path)["embed"].state == "half-way"


def test_a_study_of_many_cells_is_summed_up_by_kind(tmp_path):
    shelf = Shelf(tmp_path, 0, room="curve")
    for cell in range(30):
        for stage in ("select", "finetune"):
            shelf.do(f"{stage}/deft/seed-0", lambda folder: None, settings={"cell": cell})
    (tmp_path / "log.jsonl").unlink()  # of this process, which lives
    cell = next(iter((tmp_path / "curve/finetune").rglob("manifest.json"))).parent
    half_way(tmp_path, cell.relative_to(tmp_path).as_posix())
    found = status(tmp_path)
    assert not found.to_come
    assert found.counts == {"done": 59, "half-way": 1}
    rows = lines(found)
    assert [row[:2] for row in rows[:2]] == [
        ("curve/finetune/*", "29 done, 1 half-way"),
        ("curve/select/*", "30 done"),
    ]
    assert len(rows) == 3
    assert len(lines(found, everything=True)) == 60


def test_the_holder_of_the_lock_is_named_while_it_lives(run):
    assert status(run).lock is None
    owner = {"pid": os.getpid(), "host": logs.process()["host"], "command": "scripts/run.py", "since": "today"}
    for change, alive in (({}, True), ({"pid": 2**22 + 1}, False), ({"host": "elsewhere"}, None)):
        write_json(run / ".lock", {**owner, **change})
        assert status(run).lock == {**owner, **change, "alive": alive}
    (run / ".lock").write_text("")  # a full disk
    assert status(run).lock is None


def test_no_run_folder_is_said_plainly(tmp_path):
    with pytest.raises(ValueError, match="no run folder"):
        status(tmp_path)
    with pytest.raises(ValueError, match="no folder"):
        status(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(7.06, "7.1 s"), (59.7, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min"), (273_600, "3 d 04 h")],
)
def test_spans(seconds, words):
    assert span(seconds) == words


def test_the_script_prints_a_table_or_json(run):
    def script(*arguments):
        command = [sys.executable, "scripts/status.py", *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    found = json.loads(script(run, "--json").stdout)
    assert found["counts"] == status(run).counts
    assert found["stages"][0]["name"] == "data"
    shown = script(run).stdout
    assert re.search(r"finetune/tsds/seed-1\s*│ done\s*│ 55.0 s\s*│ 812 MB", shown)
    assert "4 not begun" in shown
    wrong = script(run / "data" / "tests")
    assert wrong.returncode == 1
    assert wrong.stderr.startswith("error: ")
    assert "Traceback" not in wrong.stderr
