"""Disturb a tiny run of all stages in every way that machines do, and see that it ends as if nothing had been.

    python benchmarks/faults.py                                 # all rows; 200 kills
    python benchmarks/faults.py --kills 20 --rows sigkill disk  # some

The run (data, embed, select, finetune, evaluate, table, report; two arms) is done once undisturbed. Then it is
disturbed and resumed until it ends, and every file must be that of the undisturbed run, byte for byte, times aside. A
fault is survived if that is so, if the process said what it should have said, and if no file is half-written. Bytes
lost are those of stages that were done before the fault and had to be made again, or are gone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import tyro
from fault_children import (
    AtWrite,
    Child,
    CountWrites,
    die,
    fresh,
    half_written,
    jumping_clock,
    lost_bytes,
    manifests,
    outcome,
    prepare,
)
from measure import print_table

LONG = 600.0
"""Seconds after which a child hangs."""


@dataclasses.dataclass
class Row:
    """What came of one kind of fault."""

    fault: str
    tried: int = 0
    survived: int = 0
    lost: int = 0
    wrong: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    def note(self, problems: list[str], lost: int = 0, *, tried: int = 1) -> None:
        self.tried += tried
        self.survived += 0 if problems or lost else tried
        self.lost += lost
        self.wrong += problems


@dataclasses.dataclass
class Bench:
    """The undisturbed run, and what it took."""

    home: Path
    rng: random.Random
    kills: int
    others: int
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    writes: int = 0
    bytes: int = 0

    @property
    def run(self) -> Path:
        """One path for all runs, since it stands in their files."""
        return self.home / "run"

    @property
    def whole(self) -> Path:
        return self.home / "undisturbed"

    def undisturbed(self) -> None:
        for attempt in ("cold", "warm"):  # the first fills the compilation cache
            fresh(self.run)
            child = Child(self.home, self.run, fault=CountWrites(self.home / "writes"), name=attempt)
            assert child.wait(LONG) == 0, child.said()
            self.seconds = time.monotonic() - child.began
            found = outcome(self.run)
            if self.files:
                assert not difference(found, self.files), (
                    f"two undisturbed runs differ: {difference(found, self.files)}"
                )
            self.files = found
        self.writes = int((self.home / "writes").read_text())
        self.bytes = sum(path.stat().st_size for path in self.run.rglob("*") if path.is_file())
        wrong = half_written(self.run)
        assert not wrong, wrong
        fresh(self.whole)
        shutil.copytree(self.run, self.whole, copy_function=shutil.copy2)

    def problems(self, run: Path | None = None) -> list[str]:
        """What is wrong with a run that has ended."""
        return difference(outcome(run or self.run), self.files) + half_written(run or self.run)

    def finish(self, *, name: str = "last") -> list[str]:
        """Resume until the end; what is wrong with that."""
        child = Child(self.home, self.run, name=name)
        if child.wait(LONG) != 0:
            child.kill()
            return [f"resumed, it ended with {child.code}: {child.said()[-500:]}"]
        return self.problems()

    def finished_copy(self) -> Path:
        """A run that has ended, to be damaged."""
        fresh(self.run)
        return Path(shutil.copytree(self.whole, self.run, copy_function=shutil.copy2))


def difference(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    missing = [f"{name} is missing" for name in expected.keys() - found.keys()]
    more = [f"{name} is new" for name in found.keys() - expected.keys()]
    other = [f"{name} differs" for name in expected.keys() & found.keys() if found[name] != expected[name]]
    return sorted(missing + more + other)


def killed(
    bench: Bench, row: Row, kills: int, arm: Callable[[], tuple[Callable[[], None] | None, float | None]]
) -> None:
    """Kill and resume until a run ends, again and again, until there were enough kills.

    Args:
      arm: gives a fault for the next attempt, or after how many seconds it is killed from outside.
    """
    total = 0
    while total < kills:
        fresh(bench.run)
        problems, lost, here, done = [], 0, 0, {}
        while True:
            fault, after = arm() if total + here < kills else (None, None)
            child = Child(bench.home, bench.run, fault=fault or (lambda: None), name="killed")
            child.wait(LONG if after is None else after)
            child.kill()
            child.wait(10)
            lost += lost_bytes(done, bench.run)
            done = manifests(bench.run)
            if child.code != -signal.SIGKILL:
                break
            here += 1
        if child.code != 0:
            problems.append(f"after {here} kills it ended with {child.code}: {child.said()[-500:]}")
        else:
            problems += bench.problems()
        total += here
        row.note(problems, lost, tried=here)
        if problems:
            shutil.copytree(bench.run, bench.home / f"wrong-{row.fault}-{total}", dirs_exist_ok=True)
        if not here:  # the last attempt of a run may outlive its moment
            continue


def sigkill(bench: Bench) -> Iterator[Row]:
    """Half of the kills at random times, half at random writes: where a file may be half-written."""
    mean = max(0.3, bench.seconds / 12)
    row = Row("SIGKILL at a random moment")
    yield row
    killed(bench, row, (bench.kills + 1) // 2, lambda: (None, bench.rng.uniform(0.02, 2 * mean)))
    row = Row("SIGKILL while a file is written")
    yield row

    def at_write() -> tuple[Callable[[], None], None]:
        reach = max(2, bench.writes // 6)
        return AtWrite(bench.rng.randint(1, reach), die, after=bench.rng.random() < 0.5), None

    killed(bench, row, bench.kills // 2, at_write)


def signals(bench: Bench) -> Iterator[Row]:
    """SIGTERM, after which the process must end well and say how to go on; Ctrl-C."""
    for name, signum, code in (("SIGTERM", signal.SIGTERM, 0), ("Ctrl-C", signal.SIGINT, 130)):
        row = Row(f"{name} at a random moment")
        yield row
        while row.tried < bench.others:
            fresh(bench.run)
            problems, lost, here, done = [], 0, 0, {}
            while row.tried + here < bench.others:
                (bench.run / ".lock").unlink(missing_ok=True)
                child = Child(bench.home, bench.run, name="stopped")
                while not (bench.run / ".lock").exists() and child.poll() is None:
                    time.sleep(0.005)  # before it has begun, there is nothing to save
                child.wait(bench.rng.uniform(0, 0.4 * bench.seconds))
                ended = child.poll() is not None
                child.kill(signum)
                child.wait(60)
                if ended:
                    break
                here += 1
                finished = "report:" in child.said() and child.code == 0
                if not finished and (child.code != code or "resume with: python " not in child.said()):
                    child.kill()
                    problems.append(f"it ended with {child.code}: {child.said()[-300:]}")
                lost += lost_bytes(done, bench.run)
                done = manifests(bench.run)
            row.note(problems + bench.finish(), lost + lost_bytes(done, bench.run), tried=here)


def disk(bench: Bench) -> Iterator[Row]:
    """A disk that is too small, and is then made larger."""
    row = Row("full disk (tmpfs)" if _may_mount(bench.home) else "full disk (ENOSPC in place of a write)")
    yield row
    for _ in range(bench.others):
        fresh(bench.run)
        problems: list[str] = []
        if "tmpfs" in row.fault:
            size = bench.rng.randint(32 * 1024, int(0.95 * bench.bytes))
            with _mounted(bench.run, size):
                child = Child(bench.home, bench.run, name="full")
                problems += _full(child)
                done = manifests(bench.run)
                subprocess.run(["mount", "-o", "remount,size=1g", str(bench.run)], check=True)
                problems += bench.finish()
                row.note(problems, lost_bytes(done, bench.run))
        else:

            def full() -> None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            child = Child(bench.home, bench.run, fault=AtWrite(bench.rng.randint(1, bench.writes), full), name="full")
            problems += _full(child)
            done = manifests(bench.run)
            problems += bench.finish()
            row.note(problems, lost_bytes(done, bench.run))


def _full(child: Child) -> list[str]:
    if child.wait(LONG) == 1 and re.search(r"error No room to write \S+: [\d,]+ bytes are free", child.said()):
        return [] if "Traceback" not in child.said() else [f"a traceback: {child.said()[-500:]}"]
    child.kill()
    return [f"on a full disk it ended with {child.code}: {child.said()[-500:]}"]


def _may_mount(home: Path) -> bool:
    try:
        with _mounted(home / "mounted", 65536):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextlib.contextmanager
def _mounted(folder: Path, size: int) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True, capture_output=True
    )
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def damaged(bench: Bench) -> Iterator[Row]:
    """A file of a stage that is done, cut off or with one bit flipped; the next stage must not believe it."""
    for fault in ("truncated file of a finished stage", "flipped bit in a finished stage"):
        row = Row(fault)
        yield row
        for _ in range(bench.others):
            run = bench.finished_copy()
            files = [
                run / stage / name
                for stage, manifest in sorted(manifests(run).items())
                for name, (size, _) in sorted(manifest["files"].items())
                if size and stage != "report"
            ]
            path = bench.rng.choice(files)
            content = bytearray(path.read_bytes())
            if "bit" in fault:
                content[bench.rng.randrange(len(content))] ^= 1 << bench.rng.randrange(8)
                (run / "report" / "manifest.json").unlink()  # so that something reads the run
            else:
                del content[bench.rng.randrange(len(content)) :]
            path.write_bytes(content)
            child = Child(bench.home, run, name="damaged")
            said = _plain(child.said()) if child.wait(LONG) is not None else ""
            cure = re.search(r"Delete (\S+?)(?: and (\S+))?:", said)
            problems = []
            if child.code != 1 or f"{path} is damaged" not in said or cure is None:
                problems.append(f"{path.relative_to(run)}: it ended with {child.code}: {said[-400:]}")
            else:
                for place in [Path(name) for name in cure.groups() if name]:
                    place.unlink() if place.is_file() else shutil.rmtree(place)
                problems += bench.finish()
            row.note(problems)
        shutil.rmtree(bench.run, ignore_errors=True)
    row = Row("damaged checkpoint of a training")
    yield row
    for number in range(3 * bench.others):
        if row.tried == bench.others:
            break
        fresh(bench.run)
        memo = bench.run / "finetune" / "deft" / "seed-0" / "checkpoints.json"
        child = Child(bench.home, bench.run, name="damaged")
        while not memo.exists() and child.poll() is None:
            time.sleep(0.002)
        child.kill()
        child.wait(10)
        [(step, known)] = json.loads(memo.read_text()).items() if memo.exists() else [("none", {})]
        if child.code == 0 or not (memo.parent / "checkpoints" / step).exists():
            continue  # killed between a checkpoint and its hash
        path = (
            memo.parent / "checkpoints" / step / bench.rng.choice([name for name, (size, _) in known.items() if size])
        )
        content = bytearray(path.read_bytes())
        content[bench.rng.randrange(len(content))] ^= 16
        path.write_bytes(content if number % 2 else content[:-1])
        child = Child(bench.home, bench.run, name="damaged")
        said = _plain(child.said()) if child.wait(LONG) is not None else ""
        problems = []
        if child.code != 1 or f"{path} is damaged" not in said or "trains this model anew" not in said:
            problems.append(f"{path.relative_to(bench.run)}: it ended with {child.code}: {said[-400:]}")
        shutil.rmtree(memo.parent / "checkpoints")
        row.note(problems + bench.finish())


def _plain(said: str) -> str:
    return " ".join(said.split())


def clock(bench: Bench) -> Iterator[Row]:
    """A wall clock that jumps by years, through a run that is killed once."""
    row = Row("clock that jumps by up to 10 years")
    yield row
    for _ in range(bench.others):
        fresh(bench.run)
        child = Child(bench.home, bench.run, fault=jumping_clock(bench.rng.randrange(10**6)), name="clock")
        child.wait(bench.rng.uniform(0.2, 0.8) * bench.seconds)
        child.kill()
        child.wait(10)
        done = manifests(bench.run)
        child = Child(bench.home, bench.run, fault=jumping_clock(bench.rng.randrange(10**6)), name="clock")
        problems = [] if child.wait(LONG) == 0 else [f"it ended with {child.code}: {child.said()[-500:]}"]
        seconds = {stage: manifest["seconds"] for stage, manifest in manifests(bench.run).items()}
        problems += [f"{stage} took {took} s" for stage, took in seconds.items() if not 0 <= took < LONG]
        row.note(problems + bench.problems(), lost_bytes(done, bench.run))


def lock(bench: Bench) -> Iterator[Row]:
    """A second process on the same folder; and the folder of a process that was killed."""
    row = Row("two processes on one workdir")
    yield row
    for _ in range(bench.others):
        fresh(bench.run)
        first = Child(bench.home, bench.run, name="first")
        while not (bench.run / ".lock").exists() and first.poll() is None:
            time.sleep(0.005)
        first.wait(bench.rng.uniform(0, 0.5) * bench.seconds)
        second = Child(bench.home, bench.run, name="second")
        second.wait(60)
        problems, said = [], _plain(second.said())
        if second.code != 1 or f"is in use: process {first.pid} on " not in said or "--workdir" not in said:
            problems.append(f"the second ended with {second.code}: {said[-400:]}")
        first.kill()
        first.wait(10)
        done = manifests(bench.run)
        row.note(problems + bench.finish(), lost_bytes(done, bench.run))  # the lock went with the process


def host(bench: Bench) -> Iterator[Row]:
    """Two processes as one run; one is killed at a random moment, the other must end plainly, and one alone go on.

    Trained by two, a model differs in its last bits; what was chosen must not differ.
    """
    row = Row("two processes, undisturbed")
    yield row
    chosen = {
        name: content
        for name, content in bench.files.items()
        if name.startswith(("select/", "embed/")) and not name.endswith("/manifest.json")  # which count the devices
    }
    fresh(bench.run)
    pair = two(bench)
    problems = [f"it ended with {child.code}: {child.said()[-500:]}" for child in pair if child.wait(LONG) != 0]
    for child in pair:
        child.kill()
    row.note(problems + _chosen(bench, chosen))
    row = Row("host lost in a two-process run")
    yield row
    for number in range(bench.others):
        fresh(bench.run)
        pair = two(bench)
        pair[0].wait(bench.rng.uniform(0.3, 2.0) * bench.seconds)
        if any(child.poll() is not None for child in pair):
            continue
        victim = number % 2
        pair[victim].kill()
        began, other = time.monotonic(), pair[1 - victim]
        other.wait(90)
        seconds = time.monotonic() - began
        problems = []
        said = _plain(other.said())
        if other.code != 1 or seconds > 60 or "resume with: python " not in said or "lost" not in said:
            problems.append(f"the other ended with {other.code} after {seconds:.0f} s: {said[-600:]}")
            other.kill()
            other.wait(10)
        pair[victim].wait(10)
        done = manifests(bench.run)
        last = Child(bench.home, bench.run, name="last")
        if last.wait(LONG) != 0:
            problems.append(f"resumed, it ended with {last.code}: {last.said()[-500:]}")
        row.note(problems + _chosen(bench, chosen), lost_bytes(done, bench.run))


def two(bench: Bench) -> list[Child]:
    """The two processes of one run."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    common = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2"}
    return [
        Child(bench.home, bench.run, environment={**common, "JAX_PROCESS_ID": str(i)}, name=f"process-{i}")
        for i in range(2)
    ]


def _chosen(bench: Bench, expected: dict[str, str]) -> list[str]:
    found = {name: content for name, content in outcome(bench.run).items() if name in expected}
    return difference(found, expected) + half_written(bench.run)


ROWS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "sigkill": sigkill,
    "signals": signals,
    "disk": disk,
    "damaged": damaged,
    "clock": clock,
    "lock": lock,
    "host": host,
}


def main(
    kills: int = 200,
    others: int = 10,
    rows: tuple[str, ...] = tuple(ROWS),
    arms: int = 2,
    seed: int = 0,
    home: Path | None = None,
    out: Path | None = None,
) -> None:
    """Disturb the run.

    Args:
      kills: by SIGKILL.
      others: of each other fault.
      rows: which faults; all by default.
      arms: of the run, 1 or 2.
      seed: of the moments.
      home: where the runs are; a temporary folder by default, deleted if all went well.
      out: a JSON file for the rows.
    """
    if unknown := set(rows) - set(ROWS):
        raise SystemExit(f"--rows: there are {', '.join(ROWS)}, not {', '.join(sorted(unknown))}.")
    made = home or Path(tempfile.mkdtemp(prefix="deft-tsds-faults-"))
    bench = Bench(made, random.Random(seed), kills, others)
    prepare(made, arms=arms)
    bench.undisturbed()
    print(f"undisturbed: {bench.seconds:.1f} s, {bench.writes} writes, {bench.bytes:,} bytes", flush=True)
    done: list[Row] = []
    for name in rows:
        began = time.monotonic()
        for row in ROWS[name](bench):
            if done and not done[-1].seconds:
                done[-1].seconds = time.monotonic() - began
                began = time.monotonic()
                _tell(done[-1])
            done.append(row)
        done[-1].seconds = time.monotonic() - began
        _tell(done[-1])
    cells = [[row.fault, str(row.tried), str(row.survived), f"{row.lost:,}", f"{row.seconds:.0f}"] for row in done]
    print_table("Faults, and what they cost", ["fault", "tried", "survived", "bytes lost", "seconds"], cells)
    if out is not None:
        out.write_text(json.dumps([dataclasses.asdict(row) for row in done], indent=2))
    if any(row.wrong for row in done):
        raise SystemExit(f"Some were not survived; see above, and {made}.")
    if home is None:
        shutil.rmtree(made)


def _tell(row: Row) -> None:
    print(f"{row.fault}: {row.survived} of {row.tried}, {row.lost} bytes lost, {row.seconds:.0f} s", flush=True)
    for problem in row.wrong[:5]:
        print(f"  {problem}", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
