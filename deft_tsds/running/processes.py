"""Several processes, one program: who they are, who writes, and how they wait for each other.

Every process runs the same script on the same config and sees the same run folder. Process 0 writes manifests,
selections, scores and reports; the others wait and read. All take part in what is shared out: embedding, selection over
the devices of all, training.

JAX finds the others by itself on Slurm, on TPU pods and on GKE; elsewhere each process is told:

    JAX_COORDINATOR_ADDRESS=host0:1234 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=0 python scripts/run.py ...

A process that dies takes the others with it, within a minute and with a plain message: each looks at the others'
heartbeats, and none waits without looking. Nothing that was finished is lost; the same command goes on, with as many
processes as there are then.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import importlib.util
import json
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import jax

W = TypeVar("W", bound=Callable[..., Any])

_ALONE: ContextVar[bool] = ContextVar("alone", default=False)

BEAT_SECONDS = 2.0
LOST_SECONDS = float(os.environ.get("DEFT_TSDS_LOST_SECONDS", "40"))
"""Without a sign of life for so long, a process counts as lost. A busy machine may well be silent for ten."""

_told = False
"""Whether the others know that this process is to stop."""
_turn = 0
"""How many times this process has met the others; the same in each, since each runs the same program."""
_over = threading.Event()
_watcher: threading.Thread | None = None
_abort_handler: Any = None


def start(coordinator: str | None = None, count: int | None = None, index: int | None = None) -> None:
    """Join the other processes of this run, if there are any. To be called before anything else touches a device.

    Args:
      coordinator: "host:port" of process 0. By default `JAX_COORDINATOR_ADDRESS`; without it the machine is asked.
      count: of processes; by default `JAX_NUM_PROCESSES`. 1 is one process, whatever the machine says.
      index: of this process; by default `JAX_PROCESS_ID`.

    Raises:
      ValueError: some of the three are given and some are not; the others cannot be reached.
    """
    global _watcher
    given = {
        "JAX_COORDINATOR_ADDRESS": coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS"),
        "JAX_NUM_PROCESSES": _whole("JAX_NUM_PROCESSES", count),
        "JAX_PROCESS_ID": _whole("JAX_PROCESS_ID", index),
    }
    if jax.distributed.is_initialized() or given["JAX_NUM_PROCESSES"] == 1:
        return
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == 3:
        if pod() is None:
            return
    elif missing:
        raise ValueError(
            f"{', '.join(missing)} is missing: a run of several processes needs all of {', '.join(given)}."
        )
    try:
        # Where all are None, JAX asks the machine. Its own watch, which aborts, comes long after the one here.
        jax.distributed.initialize(*given.values(), heartbeat_timeout_seconds=int(20 * LOST_SECONDS))
    except RuntimeError as error:
        raise ValueError(f"The processes of this run did not find each other: {error}") from error
    if jax.process_count() > 1:
        _die_plainly()
        _watcher = threading.Thread(target=_watch, daemon=True, name="heartbeat")
        _watcher.start()


def _whole(name: str, value: int | None) -> int | None:
    text = os.environ.get(name) if value is None else str(value)
    if text is None:
        return None
    if not text.isdigit():
        raise ValueError(f"{name} is {text!r}; it must be a whole number.")
    return int(text)


def pod() -> str | None:
    """What has started several processes, where JAX can learn all else from it; None for a single machine."""
    environment = os.environ
    slurm = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    if all(name in environment for name in slurm):
        return "Slurm" if int(environment["SLURM_NTASKS"]) > 1 else None
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES", "")
    if "," in hosts or int(environment.get("MEGASCALE_NUM_SLICES") or 1) > 1:
        return "GKE"
    # A TPU VM: chips that can be seen, and a metadata server that knows the other hosts (GKE has none).
    chips = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    if chips and importlib.util.find_spec("libtpu") and not hosts and "TPU_SKIP_MDS_QUERY" not in environment:
        return "TPU VM"
    return None


def count() -> int:
    """How many processes this run has."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def index() -> int:
    """Which of them this one is."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def is_writer() -> bool:
    """Whether this process writes what there is one of: manifests, selections, scores, reports."""
    return index() == 0


def my_share(n: int) -> slice:
    """The part of range(n) that this process does; all parts together are the whole, none differ by more than one."""
    return slice(n * index() // count(), n * (index() + 1) // count())


def everywhere(work: W) -> W:
    """Mark the work of a stage that every process does, and in which it writes only its own part."""
    work.everywhere = True  # type: ignore[attr-defined]
    return work


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, this process works for itself while the others wait: what it computes is on its own devices, and nothing
    in it may wait for another process."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def is_alone() -> bool:
    """Whether this process is inside `alone`."""
    return _ALONE.get()


@contextlib.contextmanager
def writer_first(name: str) -> Iterator[None]:
    """Have the writer do what is inside before the others do."""
    if not is_writer():
        barrier(f"{name}: the writer")
    yield
    if is_writer():
        barrier(f"{name}: the writer")


def barrier(name: str) -> None:
    """Wait until every process has come here.

    Raises:
      ValueError: one of them has come elsewhere: they do not run the same program on the same config.
    """
    if count() == 1:
        return
    turn = _next_turn()
    _set(f"at/{turn}/{index()}", name)
    for other in range(count()):
        there = _get(f"at/{turn}/{other}")
        if there != name:
            raise ValueError(
                f"Process {other} is at {there!r} and process {index()} at {name!r}: start every process with the same "
                "command, config and files."
            )


def from_writer(value: Any) -> Any:
    """What the writer gave here (JSON), in every process."""
    if count() == 1:
        return value
    turn = _next_turn()
    if is_writer():
        _set(f"said/{turn}", json.dumps(value))
        return value
    return json.loads(_get(f"said/{turn}"))


def wait_for(path: Path, found: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What `found` returns once it is true: shared folders show another host's file late.

    Raises:
      ValueError: it does not come.
    """
    end = time.monotonic() + seconds
    while not (value := found()):
        if time.monotonic() > end:
            raise ValueError(
                f"Process 0 wrote {path}, and process {index()} on {platform.node()} does not see it: every process "
                "needs the same run folder, on a file system that they share."
            )
        time.sleep(0.1)
    return value


def tell_to_stop(signum: int) -> None:
    """Pass a signal on to the other processes."""
    global _told
    if count() > 1 and not _told:
        _told = True
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            _set("stop/0", str(int(signum)))


def finish() -> None:
    """Leave the others once they, too, have done all that they had to do."""
    if count() > 1:
        _over.set()
        if _watcher is not None:
            _watcher.join(LOST_SECONDS)  # JAX crashes when it is shut down while another thread speaks by way of it
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            _set(f"left/{index()}", json.dumps(None))
        jax.distributed.shutdown()


def leave(code: int, message: str | None = None) -> None:
    """End this process of several at once; with a message, which says what failed, the others end too.

    Process 0 goes last, since the others speak by way of it.
    """
    if count() == 1:
        return
    with contextlib.suppress(Exception):  # what cannot be said any more is found out by the others
        _set(f"left/{index()}", json.dumps(message))
        if is_writer():
            end = time.monotonic() + 10 + 2 * BEAT_SECONDS
            while len(_all("left/")) < count() and time.monotonic() < end:
                time.sleep(0.1)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # JAX's own end waits for processes that may be gone


def await_loss() -> None:
    """Give the heartbeats the time to say who is lost: for who was told of a broken connection, and not whose."""
    time.sleep(LOST_SECONDS + 2 * BEAT_SECONDS)


def _watch() -> None:
    """The heartbeat of this process, and a look at the others'."""
    global _told
    me, others, beats = index(), [number for number in range(count()) if number != index()], 0
    seen: dict[int, tuple[str, float]] = {number: ("", time.monotonic()) for number in others}
    host = platform.node()
    looked = time.monotonic()
    while not _over.wait(BEAT_SECONDS if beats else 0):
        beats += 1
        asleep, looked = time.monotonic() - looked - 2 * BEAT_SECONDS, time.monotonic()
        if asleep > 0:  # this process was halted: it cannot know how the others were in the meantime
            seen = {number: (beat, since + asleep) for number, (beat, since) in seen.items()}
        try:
            _set(f"alive/{me}", f"{beats} {host}")
            alive, left = _all("alive/"), _all("left/")
            told = _all("stop/")
        except jax.errors.JaxRuntimeError as error:  # the one through which all speak is gone
            if _over.is_set():
                return
            _end(f"Process 0 of {count()} is lost ({str(error).splitlines()[0]}).")
        for number, reason in left.items():
            message = json.loads(reason)
            if number != me and message is not None:
                _end(f"Process {number} has failed: {message}")
        for number in others:
            beat = alive.get(number, "")
            if beat != seen[number][0] or number in left:
                seen[number] = (beat, time.monotonic())
            elif time.monotonic() - seen[number][1] > LOST_SECONDS:
                where = beat.partition(" ")[2] or "a machine that it never named"
                _end(
                    f"Process {number} of {count()}, on {where}, has been silent for {LOST_SECONDS:.0f} seconds: it is "
                    "lost."
                )
        if told and not _told:
            _told = True
            os.kill(os.getpid(), int(told[0]))


def _end(message: str) -> None:
    """End at once, from whatever thread, with a plain message."""
    _say(message)
    with contextlib.suppress(Exception):
        _set(f"left/{index()}", "null")
    os._exit(1)


def _say(message: str) -> None:
    command = " ".join(sys.orig_argv)
    after = "Nothing that was finished is lost; start the processes again, or one alone, to go on."
    os.write(2, f"\nerror {message} {after}\nresume with: {command}\n".encode())


def _die_plainly() -> None:
    """Have the process say what happened where JAX's own watch aborts it: when process 0 is gone, JAX knows it first.

    Python's handlers never run after an abort, so this is one for the C library.
    """
    global _abort_handler

    def handler(signum: int) -> None:
        _say(f"One of the {_count} processes of this run is lost, as JAX says above.")
        os._exit(1)

    _count = jax.process_count()
    _abort_handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handler)  # kept: C holds no reference
    libc = ctypes.CDLL(None)
    libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    libc.signal(signal.SIGABRT, ctypes.cast(_abort_handler, ctypes.c_void_p))


def _next_turn() -> int:
    global _turn
    _turn += 1
    return _turn


def _client() -> Any:
    from jax._src import distributed  # JAX's key-value store has no public name

    return distributed.global_state.client


def _set(key: str, value: str) -> None:
    _client().key_value_set(f"deft_tsds/{key}", value, allow_overwrite=True)


def _get(key: str) -> str:
    """The value of a key, as soon as it has one. In slices, so that signals are heard in between."""
    while True:
        try:
            return _client().blocking_key_value_get(f"deft_tsds/{key}", 500)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def _all(prefix: str) -> dict[int, str]:
    """The values of all processes under a key."""
    found = _client().key_value_dir_get(f"deft_tsds/{prefix}")
    return {int(key.rpartition("/")[2]): value for key, value in found}
