"""How much memory a stage took at most: of the host, and of each device that counts its own.

The kernel keeps the largest resident set of a process since it began. Where a stage raises that mark, the mark is the
stage's own peak, exactly. Where it does not, all that is known is that the stage stayed below it; a thread that looks
ten times a second then says how high the stage came. The mark could be reset (`/proc/self/clear_refs`), but whoever
measures this process from outside, such as `time -v`, would then be told too little: it is left alone.

Devices keep such a mark too, and have no reset at all.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import jax

INTERVAL = 0.1
"""Seconds between two looks: one costs some 20 microseconds."""

_STATM = Path("/proc/self/statm")


class Resident(NamedTuple):
    """Bytes of this process in memory now: in all, and without the pages of files (memory-maps, libraries)."""

    total: int
    anonymous: int


def resident() -> Resident | None:
    """What is in memory now; None where the system does not say (no Linux)."""
    try:
        _, pages, shared, *_ = (int(field) for field in _STATM.read_text().split())
    except (OSError, ValueError):
        return None
    page = os.sysconf("SC_PAGE_SIZE")
    return Resident(pages * page, (pages - shared) * page)


def peak_memory_bytes() -> int:
    """The largest resident set of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_peaks() -> list[dict[str, Any]]:
    """Of each local device that counts its memory: `device`, `peak_bytes` of the process so far, and `limit_bytes`."""
    found = []
    for device in jax.local_devices():
        stats = device.memory_stats() or {}  # None on a CPU
        if "peak_bytes_in_use" in stats:
            limit = stats.get("bytes_limit")
            found.append({"device": str(device), "peak_bytes": stats["peak_bytes_in_use"], "limit_bytes": limit})
    return found


class Watermarks:
    """A context manager; `found()` says afterwards how high memory rose inside."""

    def __enter__(self) -> Self:
        self._before, self._devices_before = peak_memory_bytes(), {d["device"]: d["peak_bytes"] for d in device_peaks()}
        self._highest = resident()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watermarks", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._see()

    def _look(self) -> None:
        while not self._ended.wait(INTERVAL):
            self._see()

    def _see(self) -> None:
        now = resident()
        if now is not None and self._highest is not None:
            self._highest = Resident(*map(max, now, self._highest))

    def found(self) -> dict[str, Any]:
        """For the manifest.

        Returns:
            `host_peak_bytes`: the largest resident set during the stage.
            `host_peak_is`: how that is known. "exact" where the stage set the mark of the process, "sampled" where it
            stayed below, "process" where nothing but the mark of the process is known.
            `host_peak_anonymous_bytes`: the same without pages of files, sampled, or None.
            `devices`: as `device_peaks`, with `of` "stage" where the stage set the mark, else "process".
        """
        process = peak_memory_bytes()
        how: Literal["exact", "sampled", "process"] = "exact"
        host = process
        if process <= self._before:
            how = "process" if self._highest is None else "sampled"
            host = process if self._highest is None else min(self._highest.total, process)
        devices = device_peaks()
        for device in devices:
            rose = device["peak_bytes"] > self._devices_before.get(device["device"], 0)
            device["of"] = "stage" if rose else "process"
        return {
            "host_peak_bytes": host,
            "host_peak_is": how,
            "host_peak_anonymous_bytes": None if self._highest is None else self._highest.anonymous,
            "devices": devices,
        }
