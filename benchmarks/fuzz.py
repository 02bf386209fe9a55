"""Spoil the input of every reader for as long as asked, and see that it is refused in words.

    python benchmarks/fuzz.py --minutes 60
    python benchmarks/fuzz.py --minutes 5 --only store --keep-going True
    python benchmarks/fuzz.py --engine random

The readers are those of `tests/readers.py`, each in a process of its own, in turn. By atheris where it is installed
(coverage of `deft_tsds` guides what is kept), else by random changes; both know JSON, headers of arrays and the like.
A reader may raise ValueError or FileNotFoundError with a message. Anything else, an input that takes longer than
`--limit` seconds or more than `--memory` GB beyond the start, is a finding: its bytes and its traceback are written to
`--out`, and the run stops there, or goes on to other findings with `--keep-going True`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TQDM_DISABLE": "1", "JAX_PLATFORMS": "cpu"}
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]

FOUND = 77
"""The exit status of a child that found something and was to stop."""

# Time of the processor, since the machine may be busy with other things; and of the clock, since a reader may sleep.
_TIMERS = ((signal.ITIMER_PROF, signal.SIGPROF, 1), (signal.ITIMER_REAL, signal.SIGALRM, 30))

STARTING = 180
"""Seconds that a child may take to begin."""


@dataclass(frozen=True)
class Settings:
    """How long, and what."""

    minutes: float = 60.0
    """For all readers together."""
    only: str = ""
    """Take only readers with this in their name."""
    out: Path = Path("runs/fuzz")
    """Where findings go."""
    limit: float = 10.0
    """Seconds of the processor that one input may take, and thirty times as many by the clock."""
    memory: float = 2.0
    """GB that a reader may take beyond what it began with."""
    keep_going: bool = False
    """Do not stop at the first finding; alike ones are written once."""
    engine: Literal["auto", "atheris", "random"] = "auto"
    """What changes the inputs."""
    seed: int = 0
    """Of the changes."""
    child: str = ""
    """Set by the parent: the one reader to read."""
    seconds: float = 0.0
    """Set by the parent."""


class TooLong(BaseException):
    """An input took more than its time."""


class Trial:
    """A reader in a folder of its own, and what was found out about it."""

    def __init__(self, settings: Settings):
        readers = importlib.import_module("readers")
        self.settings, self.spoil = settings, readers.spoil
        self.reader = next(one for one in readers.readers() if one.name == settings.child)
        self.folder = Path(os.environ["FUZZ_FOLDER"])
        self.reader.make(self.folder)
        self.good = (self.folder / self.reader.file).read_bytes()
        self.tried, self.seen = 0, set()
        with contextlib.suppress(*readers.ALLOWED):
            self.reader.read(self.folder)  # imports, and what else is taken once
        self.began_with = _peak()

    def attempt(self, data: bytes) -> None:
        """Read these bytes; a finding is written, and ends the process unless it is to go on."""
        self.tried += 1
        (self.folder / self.reader.file).parent.mkdir(parents=True, exist_ok=True)
        problem = None
        for timer, number, times in _TIMERS:
            signal.signal(number, _too_long)
            signal.setitimer(timer, times * self.settings.limit)
        try:
            with (
                open(os.devnull, "w") as nowhere,
                contextlib.redirect_stderr(nowhere),
                contextlib.redirect_stdout(nowhere),
            ):
                self.reader.try_bytes(self.folder, data)
        except (AssertionError, MemoryError, TooLong) as error:
            problem = error
        finally:
            for timer, _, _ in _TIMERS:
                signal.setitimer(timer, 0)
        used = _peak() - self.began_with
        if problem is None and used > self.settings.memory * 1e9:
            problem = MemoryError(f"{used / 1e9:.2f} GB more than at the start")
            self.began_with = _peak()
        if problem is not None:
            self._found(data, problem)

    def _found(self, data: bytes, problem: BaseException) -> None:
        signature = _signature(problem)
        if signature in self.seen:
            return
        self.seen.add(signature)
        text = "".join(traceback.format_exception(problem))
        path = keep(self.settings.out, self.reader.name, data, text)
        print(f"FOUND {self.reader.name}: {str(problem)[:300]!r} -> {path}", flush=True)
        if not self.settings.keep_going:
            self.end(FOUND)

    def end(self, status: int = 0) -> None:
        print(json.dumps({"tried": self.tried, "findings": len(self.seen)}), flush=True)
        os._exit(status)


def _too_long(*_: Any) -> None:
    raise TooLong("took longer than its time")


def _peak() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _signature(problem: BaseException) -> tuple[str, str]:
    """Alike findings have the same: the kind of error, and the line of ours where it came through."""
    cause = problem.__cause__ or problem
    ours = [f for f in traceback.extract_tb(cause.__traceback__) if "deft_tsds" in f.filename]
    return type(cause).__name__, f"{ours[-1].filename}:{ours[-1].lineno}" if ours else ""


def keep(out: Path, name: str, data: bytes, text: str) -> Path:
    """Write an input that broke the contract, and beside it what happened."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    path.with_name(f"{path.name}.txt").write_text(f"{name}\n{text}", encoding="utf-8", errors="replace")
    return path


def at_random(trial: Trial) -> None:
    """Change the valid input, or one of the last changed ones, again and again."""
    rng, kept = random.Random(f"{trial.settings.seed} {trial.reader.name}"), [trial.good]
    until = time.monotonic() + trial.settings.seconds
    while time.monotonic() < until:
        base = trial.good if rng.random() < 0.7 else rng.choice(kept)
        data = trial.spoil(base, trial.reader.kind, rng)[: 1 << 20]
        trial.attempt(data)
        if rng.random() < 0.05:
            kept = [*kept[-50:], data]
    trial.end()


def by_coverage(settings: Settings) -> None:
    """Let atheris change the input, guided by the lines of the package that it reaches."""
    atheris: Any = importlib.import_module("atheris")  # no dependency: not every Python has it

    with atheris.instrument_imports(include=["deft_tsds"]):
        trial = Trial(settings)
    corpus = trial.folder / ".corpus"
    corpus.mkdir()
    (corpus / "good").write_bytes(trial.good)
    until = time.monotonic() + settings.seconds

    def one(data: bytes) -> None:
        trial.attempt(data)
        if time.monotonic() > until:
            trial.end()

    def change(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.3:
            return atheris.Mutate(data, max_size)
        return trial.spoil(data, trial.reader.kind, rng)[:max_size]

    options = [f"-seed={settings.seed + 1}", "-max_len=65536", "-timeout=0", "-rss_limit_mb=0", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one, custom_mutator=change)
    atheris.Fuzz()


def child(settings: Settings) -> None:
    if settings.engine == "atheris":
        by_coverage(settings)
    else:
        at_random(Trial(settings))


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def one_reader(settings: Settings, name: str, file: str, seconds: float) -> tuple[int, int]:
    """How many inputs a reader was given, and how many findings there were."""
    arguments = [
        *("--child", name, "--seconds", str(seconds), "--out", str(settings.out), "--engine", settings.engine),
        *("--limit", str(settings.limit), "--memory", str(settings.memory), "--seed", str(settings.seed)),
        *("--keep-going", str(settings.keep_going)),
    ]
    with _folder() as folder:
        process = subprocess.Popen(
            [sys.executable, __file__, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "FUZZ_FOLDER": str(folder)},
        )
        try:
            said, _ = process.communicate(timeout=seconds + STARTING + 60 * settings.limit)
        except subprocess.TimeoutExpired:  # it hung where no signal reaches
            process.kill()
            said, _ = process.communicate()
        for line in said.splitlines():
            if line.startswith("FOUND"):
                print(line, flush=True)
        last = said.strip().splitlines()[-1] if said.strip() else ""
        if process.returncode in (0, FOUND) and last.startswith("{"):
            counted = json.loads(last)
            return counted["tried"], counted["findings"]
        spoiled = folder / file
        data = spoiled.read_bytes() if spoiled.is_file() else b""
        path = keep(settings.out, name, data, f"the process ended with {process.returncode}\n{said[-6000:]}")
        print(f"FOUND {name}: the process ended with {process.returncode} -> {path}", flush=True)
        return 0, 1


def parent(settings: Settings) -> int:
    readers = [one for one in importlib.import_module("readers").readers() if settings.only in one.name]
    if not readers:
        raise SystemExit(f"no reader has {settings.only!r} in its name")
    if settings.engine == "auto":
        found = importlib.util.find_spec("atheris") is not None
        settings = replace(settings, engine="atheris" if found else "random")
    began, tried, findings = time.time(), 0, 0
    print(f"{len(readers)} readers, {settings.minutes:g} minutes, engine {settings.engine}", flush=True)
    for number, reader in enumerate(readers):
        left = 60 * settings.minutes - (time.time() - began)
        seconds = max(left / (len(readers) - number) - 8, 1)  # a process takes some seconds to begin
        one = one_reader(settings, reader.name, reader.file, seconds)
        tried, findings = tried + one[0], findings + one[1]
        print(f"{time.strftime('%H:%M:%S')} {reader.name}: {one[0]:,} inputs, {one[1]} findings", flush=True)
        if findings and not settings.keep_going:
            break
    minutes = (time.time() - began) / 60
    print(f"{tried:,} inputs to {len(readers)} readers in {minutes:.1f} minutes: {findings} findings", flush=True)
    return 1 if findings else 0


def main() -> None:
    settings = tyro.cli(Settings, description=__doc__, config=(tyro.conf.FlagConversionOff,))
    if settings.child:
        child(settings)
    else:
        sys.exit(parent(settings))


if __name__ == "__main__":
    main()
