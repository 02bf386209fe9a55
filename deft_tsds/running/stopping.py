"""Being told to stop: SIGTERM, as a machine that is taken away gets it, and Ctrl-C.

Every file is written atomically and every stage goes on where it stopped, so that any moment will do: the signal is an
exception. Only a training has something to lose, the steps since its last checkpoint: it asks `requested` after each.
"""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from deft_tsds.running import processes

_signals = (signal.SIGTERM, signal.SIGINT)
_asked: int | None = None
_deferred = 0


class Stopped(KeyboardInterrupt):
    """The process was told to stop; what it did so far is on disk."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 0 if signum == signal.SIGTERM else 128 + signum


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Have the signals raise `Stopped` in the main thread."""
    global _asked
    if threading.current_thread() is not threading.main_thread():  # only the main thread can hear signals
        yield
        return
    _asked, before = None, [signal.getsignal(signum) for signum in _signals]
    for signum in _signals:
        signal.signal(signum, _hear)
    try:
        yield
    finally:
        told, _asked = _asked is not None, None
        for signum, handler in zip(_signals, before, strict=True):
            signal.signal(signum, signal.SIG_IGN if told else handler)  # it ends, however often it is told to


def _hear(signum: int, frame: FrameType | None) -> None:
    global _asked
    again, _asked = _asked is not None, signum
    processes.tell_to_stop(signum)
    # In a training the first signal waits for the step to end. Ctrl-C twice is meant.
    if signum == signal.SIGINT if again else not _deferred:
        raise Stopped(signum)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Let the signals wait: who is inside asks `requested` and calls `stop`."""
    global _deferred
    _deferred += 1
    try:
        yield
    finally:
        _deferred -= 1
    if _asked is not None and not _deferred:  # it came too late to be asked for
        stop()


def requested(*, together: bool = False) -> bool:
    """Whether a signal waits.

    Args:
      together: all processes call this now, and all get the answer of the writer. Else a run of several processes
        gets False, since they must stop at the same step.
    """
    if processes.count() == 1:
        return _asked is not None
    return bool(processes.from_writer(_asked is not None)) if together else False


def stop() -> None:
    """Raise for the signal that waited."""
    raise Stopped(_asked or signal.SIGTERM)


def command() -> str:
    """What was typed, to be typed again."""
    return shlex.join(sys.orig_argv)
