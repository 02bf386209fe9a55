"""What `faults.py` disturbs: a whole tiny run in a child process, and what is the same after every way of running it.

Starting Python with JAX takes seconds, so that two hundred kills would take an hour. Here one process imports all that
a run needs, without touching a device, and forks a child for each attempt; a compilation cache does the rest. The child
runs `scripts/run.py` as it is.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import re
import runpy
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CONFIG = '''"""All stages in seconds, with random weights."""
from deft_tsds.config import Arm, Evaluate, Experiment, Scratch, Synthetic, Train
from deft_tsds.selectors import DEFT, TSDS

arms = {"deft": Arm(DEFT(clusters=3), share=0.4), "tsds": Arm(TSDS(), count=24)}
config = Experiment(
    data=Synthetic(pool=150, queries=12, test=4),
    arms={name: arms[name] for name in ARMS},
    scratch=Scratch(vocabulary=300, d_model=16, d_ff=32, d_kv=8, heads=2, layers=1),
    train=Train(steps=8, batch_size=8, max_input_tokens=32, max_target_tokens=24, save_every=3, log_every=2),
    evaluate=Evaluate(metrics=("exact_match", "chrf"), max_new_tokens=8, batch_size=24, resamples=50),
)
'''
# What differs between two runs that nothing disturbs: times, speeds, memory.
TIMES = {
    "seconds",
    "finished",
    "peak_memory_bytes",
    "memory",
    "tokens_per_second",
    "utilisation",
    "command",
    "seal",
    "files",
}


class Child:
    """One attempt at the run, in a process group of its own."""

    def __init__(
        self,
        home: Path,
        run: Path,
        *,
        fault: Callable[[], None] = lambda: None,
        environment: Mapping[str, str] | None = None,
        name: str = "child",
    ):
        """Start it.

        Args:
          home: has `config.py` and gets the compilation cache and the output.
          run: the run folder.
          fault: called in the child before it begins.
          environment: more of it, for the child.
          name: of the file of its output.
        """
        self.log = home / f"{name}.log"
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid, self.began, self.code = os.fork(), time.monotonic(), None
        if self.pid == 0:
            _become(home, run, fault, environment or {}, self.log)

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self, seconds: float) -> int | None:
        """The exit code, if it ends in so many seconds."""
        end = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < end:
            time.sleep(0.005)
        return self.code

    def kill(self, signum: int = signal.SIGKILL) -> None:
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)
            if signum == signal.SIGKILL:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, signum)

    def said(self) -> str:
        return self.log.read_text(errors="replace")


def _become(home: Path, run: Path, fault: Callable[[], None], environment: Mapping[str, str], log: Path) -> None:
    """The life of a child; it never returns."""
    code = 1
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(environment)
        script = str(ROOT / "scripts" / "run.py")
        sys.argv = [script, str(home / "config.py"), "--workdir", str(run)]
        sys.orig_argv = ["python", *sys.argv]
        import jax

        jax.config.update("jax_compilation_cache_dir", str(home / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        fault()
        runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def prepare(home: Path, *, arms: int) -> None:
    """Import all that a child needs, and write its config."""
    os.environ |= {"JAX_PLATFORMS": "cpu", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    sys.path.insert(0, str(ROOT))
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.py").write_text(CONFIG.replace("ARMS", str(["deft", "tsds"][:arms])))
    import orbax.checkpoint
    import plotly.graph_objects
    import sklearn.cluster
    import transformers

    import deft_tsds.cli

    for module in (orbax.checkpoint, plotly.graph_objects, sklearn.cluster, transformers, deft_tsds.cli):
        assert module.__name__
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    assert AutoTokenizer is not None
    assert PreTrainedTokenizerFast is not None
    for name in ("t5.generate", "report", "training.finetune", "metrics"):
        importlib.import_module(f"deft_tsds.{name}")


def outcome(run: Path) -> dict[str, str]:
    """Every file of a run that has ended, without the times in it; checkpoints of trainings that are done do not count,
    nor do logs of the lock."""
    found = {}
    for path in sorted(run.rglob("*")):
        if path.name == "log.jsonl":  # it tells when what was done, and by whom
            continue
        name = path.relative_to(run).as_posix()
        if path.is_file() and "checkpoints" not in name and not path.name.startswith("."):
            found[name] = _content(path)
    return found


def _content(path: Path) -> str:
    if path.suffix == ".json":
        return json.dumps(_without_times(json.loads(path.read_text())), sort_keys=True)
    if path.suffix == ".jsonl":
        return "\n".join(json.dumps(_without_times(json.loads(line))) for line in path.read_text().splitlines())
    if path.suffix == ".html":
        # The tables of the stages say how long each took and when it ended, in that order.
        tables = re.compile(r"<table.*?</table>", re.DOTALL)
        return tables.sub(lambda it: "" if re.search(r'class="(stages|when)', it[0]) else it[0], path.read_text())
    return path.read_bytes().hex()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if key not in TIMES}
    if isinstance(value, list):
        return [_without_times(item) for item in value]
    return value


def manifests(run: Path) -> dict[str, dict[str, Any]]:
    """The manifests of the stages that are done, by the stage's folder."""
    found = {}
    for path in run.rglob("manifest.json"):
        found[path.parent.relative_to(run).as_posix()] = json.loads(path.read_text())
    return found


def half_written(run: Path) -> list[str]:
    """What should not be in a run that has ended: leftovers of writers, and files that are not what was written."""
    from deft_tsds.running import damage

    wrong = [str(path) for path in run.rglob("*") if path.name.endswith(".tmp") or "orbax-checkpoint-tmp" in path.name]
    for stage, manifest in manifests(run).items():
        try:
            damage.read_sealed(run / stage / "manifest.json")
            damage.check(run / stage, manifest["files"], str, every_byte=True)
        except ValueError as error:
            wrong.append(str(error))
    return wrong


def lost_bytes(before: Mapping[str, Any], run: Path) -> int:
    """Bytes of the stages that were done in `before` (from `manifests`) and are not there any more, or made again."""
    after = manifests(run)
    return sum(
        sum(size for size, _ in manifest["files"].values())
        for stage, manifest in before.items()
        if stage not in after or after[stage].get("seal") != manifest.get("seal")
    )


def fresh(run: Path) -> Path:
    """An empty place for a run."""
    shutil.rmtree(run, ignore_errors=True)
    return run


class AtWrite:
    """A fault that comes at the n-th write of the child: when a file is flushed, renamed or deleted."""

    NAMES = ("fsync", "replace", "rename", "unlink")

    def __init__(self, at: int, what: Callable[[], None], *, after: bool = False):
        self.at, self.what, self.after, self.count = at, what, after, 0

    def __call__(self) -> None:
        for name in self.NAMES:
            setattr(os, name, self._disturbed(getattr(os, name)))

    def _disturbed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def disturbed(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            mine = self.count == self.at
            if mine and not self.after:
                self.what()
            result = call(*args, **kwargs)
            if mine and self.after:
                self.what()
            return result

        return disturbed


def die() -> None:
    """Be killed, as by a machine that is switched off."""
    os.killpg(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # until the signal comes


class CountWrites(AtWrite):
    """No fault: counts the writes of an undisturbed run into a file."""

    def __init__(self, file: Path):
        super().__init__(-1, die)
        self.file = file

    def __call__(self) -> None:
        super().__call__()
        leave = os._exit

        def told(code: int) -> None:
            self.file.write_text(str(self.count))
            leave(code)

        os._exit = told


def jumping_clock(seed: int) -> Callable[[], None]:
    """A fault: the wall clock jumps by up to 10 years, forth and back, whenever it is read."""

    def fault() -> None:
        rng = random.Random(seed)
        for name, unit in (("time", 1.0), ("time_ns", 10**9)):
            true = getattr(time, name)
            setattr(time, name, lambda true=true, unit=unit: true() + type(unit)(rng.uniform(-10, 10) * 3.15e7) * unit)
        plain = time.strftime
        time.strftime = lambda form, moment=None: plain(form, time.localtime(time.time()) if moment is None else moment)

    return fault
