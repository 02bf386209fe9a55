"""Every fault of `benchmarks/faults.py`, a few times; and each part that survives them, by itself.

`KILLS=50 OTHERS=5 python -m pytest tests/test_faults.py` tries more.
"""

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import training_run

from deft_tsds.running import damage, processes
from deft_tsds.running.files import DiskFull, atomic_write, write_json
from deft_tsds.running.locks import kept, locked
from deft_tsds.running.stopping import Stopped, listening
from deft_tsds.runs import MetricsLog, Run, read_json
from deft_tsds.training.checkpoints import Checkpoints

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import fault_children  # noqa: E402
from faults import difference  # noqa: E402

KILLS, OTHERS = os.environ.get("KILLS", "4"), os.environ.get("OTHERS", "1")


def python(code: str, *arguments: object, **environment: str) -> subprocess.Popen:
    """A process that runs `code`."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    known = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **environment}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, env=known, text=True, **pipes)


# All stages, disturbed.


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory):
    """The rows of the table by name, and the folder with the undisturbed run."""
    home = tmp_path_factory.mktemp("faults")
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "faults.py"),
        "--kills",
        KILLS,
        "--others",
        OTHERS,
        "--arms",
        "1",
    ]
    command += ["--home", str(home), "--out", str(home / "rows.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "DEFT_TSDS_LOST_SECONDS": "15"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (home / "rows.json").exists(), done.stdout[-2000:] + done.stderr[-2000:]
    return {row["fault"]: row for row in read_json(home / "rows.json")}, home


ROWS = (
    "SIGKILL at a random moment",
    "SIGKILL while a file is written",
    "SIGTERM at a random moment",
    "Ctrl-C at a random moment",
    "full disk",
    "truncated file of a finished stage",
    "flipped bit in a finished stage",
    "damaged checkpoint of a training",
    "clock that jumps by up to 10 years",
    "two processes on one workdir",
    "two processes, undisturbed",
    "host lost in a two-process run",
)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ROWS)
def test_the_run_ends_as_if_nothing_had_been(disturbed, fault):
    row = next(row for name, row in disturbed[0].items() if name.startswith(fault))
    assert row["wrong"] == []
    assert row["survived"] == row["tried"] > 0
    assert row["lost"] == 0


@pytest.mark.slow
def test_the_table_would_show_a_run_that_is_not_the_same(disturbed, tmp_path):
    """The comparison sees a changed file, a missing one, one too many, a leftover, and work that was done twice."""
    whole = disturbed[1] / "undisturbed"
    expected = fault_children.outcome(whole)
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    assert difference(fault_children.outcome(run), expected) == []
    assert fault_children.half_written(run) == []
    assert fault_children.lost_bytes(fault_children.manifests(whole), run) == 0
    store = run / "embed" / "pool" / "shard-00000.npy"
    store.write_bytes(store.read_bytes()[:-1] + b"\x55")
    (run / "select" / "deft" / "seed-0" / "chosen.jsonl").unlink()
    (run / "data" / ".pool.jsonl.0-1.tmp").write_text("half of")
    (run / "new").write_text("")
    assert difference(fault_children.outcome(run), expected) == [
        "embed/pool/shard-00000.npy differs",
        "new is new",
        "select/deft/seed-0/chosen.jsonl is missing",
    ]
    wrong = "\n".join(fault_children.half_written(run))
    for word in ("shard-00000.npy is damaged", "chosen.jsonl is missing", ".pool.jsonl.0-1.tmp"):
        assert word in wrong
    shutil.rmtree(run / "table")
    assert fault_children.lost_bytes(fault_children.manifests(whole), run) > 0


# One part at a time.


def test_a_second_process_is_told_who_has_the_folder(tmp_path):
    code = """
    import sys
    from pathlib import Path
    from deft_tsds.running.locks import locked
    with locked(Path(sys.argv[1])):
        print("mine", flush=True)
        sys.stdin.readline()
    """
    owner = python(code, tmp_path)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "mine\n"
        with pytest.raises(ValueError, match=rf"is in use: process {owner.pid} on .*kill {owner.pid}.*--workdir"):
            Run(tmp_path, 0).do("data", lambda folder: None, settings={})
        assert not (tmp_path / "data").exists()
    finally:
        owner.kill()
        owner.communicate()
    Run(tmp_path, 0).do("data", lambda folder: None, settings={})  # its lock died with it


def test_a_lock_may_be_taken_twice_and_is_kept_until_the_end(tmp_path):
    """By one process, which may have several pipelines; others see it from first to last."""

    def free() -> bool:
        code = (
            "import sys, pathlib; from deft_tsds.running.locks import locked; "
            "locked(pathlib.Path(sys.argv[1])).__enter__()"
        )
        other = python(code, tmp_path)
        other.communicate()
        return other.returncode == 0

    with kept():
        with locked(tmp_path), locked(tmp_path):
            pass
        assert not free()
    assert free()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_one_plain_error_and_leaves_nothing(tmp_path, monkeypatch, number):
    def full(descriptor):
        raise OSError(number, os.strerror(number))

    write_json(tmp_path / "table.json", {"old": 1})
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match=r"No room to write .*table\.json: [\d,]+ bytes are free .*the run goes on"):
        write_json(tmp_path / "table.json", {"new": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["table.json"]
    assert read_json(tmp_path / "table.json") == {"old": 1}


def test_a_full_disk_that_a_library_meets_is_the_same_error(tmp_path):
    def work(folder):
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    with pytest.raises(DiskFull, match=r"No room to write .*model"):
        Run(tmp_path, 0).do("model", work, settings={})
    assert not (tmp_path / "model" / "manifest.json").exists()


def test_another_error_of_a_file_stays_what_it_is(tmp_path):
    with pytest.raises(PermissionError), atomic_write(tmp_path / "file"):
        raise PermissionError(errno.EACCES, "no")


@pytest.fixture
def three_stages(tmp_path):
    """a <- b <- c, in which c can be asked for again."""

    def make(setting: int = 0):
        run = Run(tmp_path, 0)

        def write(name):
            def work(folder):
                (folder / "deep").mkdir(exist_ok=True)
                write_json(folder / "deep" / f"{name}.json", {"is": name})

            return work

        a = run.do("a", write("a"), settings={})
        b = run.do("b", write("b"), settings={}, upstream=[a])
        return run.do("c", write("c"), settings={"setting": setting}, upstream=[b])

    make()
    return tmp_path, make


def test_a_truncated_file_is_named_at_once(three_stages):
    folder, make = three_stages
    path = folder / "b" / "deep" / "b.json"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"b\.json is damaged: it has 1 bytes.*Delete \S+/b: the same command"):
        make()
    path.unlink()
    with pytest.raises(ValueError, match=r"b\.json is missing"):
        make()
    shutil.rmtree(folder / "b")
    make()
    assert read_json(path) == {"is": "b"}


@pytest.mark.parametrize("stage", ["a", "b"])
def test_a_flipped_bit_is_named_before_the_stage_is_read(three_stages, stage, monkeypatch):
    folder, make = three_stages
    monkeypatch.setattr("deft_tsds.runs._checked", set())
    path = folder / stage / "deep" / f"{stage}.json"
    path.write_bytes(path.read_bytes().replace(b"is", b"ir"))
    make()  # nothing is read
    with pytest.raises(ValueError, match=rf"{stage}\.json is damaged: its SHA-256"):
        make(setting=1)


def test_a_manifest_that_was_changed_is_not_believed(three_stages):
    folder, make = three_stages
    path = folder / "a" / "manifest.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ValueError, match=r"manifest\.json is damaged or was changed by hand. Delete it"):
        make()


def test_the_hash_of_a_shard_is_that_of_its_store(tmp_path):
    (tmp_path / "shard.npy").write_bytes(b"rows")
    shard = {"file": "shard.npy", "rows": 1, "bytes": 4, "sha256": "known"}
    write_json(tmp_path / "store.json", {"shards": [shard]})
    assert damage.listed(tmp_path)["shard.npy"] == [4, "known"]


def test_what_is_cleared_by_half_is_no_stage(three_stages, monkeypatch):
    """Another request clears the folder; a kill in the midst of that must not leave what the old one takes for done."""
    folder, make = three_stages

    def dies(path):
        assert not (path / "manifest.json").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", dies)
    with pytest.raises(KeyboardInterrupt):
        make(setting=1)
    monkeypatch.undo()
    make(setting=0)
    assert read_json(folder / "c" / "deep" / "c.json") == {"is": "c"}


@pytest.mark.slow
def test_a_training_that_is_told_to_stop_saves_and_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    """SIGTERM between two checkpoints: the step that is under way is taken, saved, and not taken again."""
    undisturbed = training_run.train(tmp_path / "whole")[1]
    write, steps = MetricsLog.write, []

    def told(self, row):
        write(self, row)
        steps.append(row["step"])
        if row["step"] == 8 and len(steps) == 8:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(MetricsLog, "write", told)
    with pytest.raises(Stopped) as stopped, _deaf_afterwards(), listening():
        training_run.train(tmp_path / "run")
    assert stopped.value.exit_code == 0
    saved = Checkpoints(tmp_path / "run")._latest.latest_step()
    assert saved in (8, 9)  # save_every is 3: no checkpoint was due at 8
    assert training_run.train(tmp_path / "run")[1] == undisturbed
    assert steps[saved] == saved + 1


@contextlib.contextmanager
def _deaf_afterwards():
    """`listening` ignores signals once it was told to stop, since the process ends; this one goes on."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def test_a_share_for_each_process_and_none_left_over(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 3)
    parts = []
    for index in range(3):
        monkeypatch.setattr(processes, "index", lambda index=index: index)
        parts.append(processes.my_share(11))
    assert [row for part in parts for row in range(11)[part]] == list(range(11))
    assert {part.stop - part.start for part in parts} == {3, 4}


SLURM = {
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, None),
        (SLURM, "Slurm"),
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, "GKE"),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "GKE"),
    ],
)
def test_what_has_started_several_processes(monkeypatch, environment, found):
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TPU_", "MEGASCALE_"))]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert processes.pod() == found


def test_half_of_an_address_is_refused(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "host:1")
    monkeypatch.delenv("JAX_NUM_PROCESSES", raising=False)
    monkeypatch.delenv("JAX_PROCESS_ID", raising=False)
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES, JAX_PROCESS_ID is missing"):
        processes.start()
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(ValueError, match="JAX_NUM_PROCESSES is 'two'"):
        processes.start()


def test_one_process_waits_for_nobody():
    processes.start(count=1)
    processes.barrier("here")
    assert (processes.count(), processes.index(), processes.is_writer()) == (1, 0, True)
    assert processes.from_writer({"a": 1}) == {"a": 1}


def test_processes_that_are_at_different_places_say_so():
    code = """
    import sys
    from deft_tsds.running import processes
    processes.start(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
    assert processes.from_writer(processes.index() + 5) == 5
    processes.barrier("together")
    try:
        processes.barrier(f"place {processes.index()}")
    except ValueError as error:
        print(error, flush=True)
        processes.finish()
    """
    from test_resume import free_port

    port = free_port()
    pair = [python(code, port, index) for index in range(2)]
    said = [process.communicate(timeout=200)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    for text in said:
        assert "start every process with the same command, config and files" in text
        assert "'place 0'" in text
        assert "'place 1'" in text


def test_manifests_are_json_with_a_seal(tmp_path):
    Run(tmp_path, 0).do("data", lambda folder: {"pair": (1, 2)}, settings={})
    path = tmp_path / "data" / "manifest.json"
    assert damage.read_sealed(path)["results"] == {"pair": [1, 2]}
    assert json.loads(path.read_text())["seconds"] >= 0


def test_a_checkpoint_that_does_not_fit_is_not_begun(tmp_path, monkeypatch):
    kept = Checkpoints(tmp_path)
    state = {"w": np.zeros(1000, np.float32)}
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("deft_tsds.training.checkpoints.shutil.disk_usage", lambda _: usage._replace(free=266_143))
    for save in (lambda: kept.save(1, state, {}, {}), lambda: kept.keep_as_best(1, state)):
        with pytest.raises(OSError, match="a checkpoint takes 266,144 bytes") as caught:
            save()
        assert caught.value.errno == errno.ENOSPC
    kept.close()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
