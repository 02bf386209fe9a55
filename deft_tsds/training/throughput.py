"""How fast training goes: model FLOP/s against the matrix product that this machine does at its best, and traces."""

from __future__ import annotations

import contextlib
import functools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

_LONG_ENOUGH = 0.02  # seconds of one product from which on larger ones are no faster
_LARGEST = 8192


@functools.cache
def gemm_peak(dtype: DTypeLike) -> float:
    """FLOP/s of the fastest square matrix product of one local device, measured now and once a process."""
    product = jax.jit(jnp.matmul)
    best, size = 0.0, 1024
    while True:
        a = jnp.ones((size, size), dtype)
        product(a, a).block_until_ready()
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            product(a, a).block_until_ready()
            seconds.append(time.perf_counter() - start)
        best = max(best, 2 * size**3 / min(seconds))
        if min(seconds) > _LONG_ENOUGH or size >= _LARGEST:
            return best
        size *= 2


class Meter:
    """Model FLOPs and target tokens since the last reading; pauses are left out by `restart`."""

    def __init__(self, peak: float):
        self._peak = peak
        self.restart()

    def restart(self) -> None:
        self._flops = self._tokens = 0.0
        self._began = time.perf_counter()

    def count(self, flops: float, tokens: int) -> None:
        self._flops += flops
        self._tokens += tokens

    def read(self) -> dict[str, float]:
        """Tokens a second (both sides, padding not counted) and the share of the peak, since the last reading."""
        seconds = time.perf_counter() - self._began
        found = {"tokens_per_second": self._tokens / seconds, "utilisation": self._flops / seconds / self._peak}
        self.restart()
        return found


class Trace(contextlib.ExitStack):
    """A trace of a few steps, written to a folder for TensorBoard, xprof or Perfetto; none without a folder."""

    FIRST, LAST = 3, 5  # of the steps of this process: those before compile

    def __init__(self, folder: Path | None):
        super().__init__()
        self._folder = folder

    def before(self, step: int) -> None:
        """Called before each step of this process, counted from 1."""
        if self._folder is not None and step == self.FIRST:
            self.enter_context(jax.profiler.trace(self._folder))
        if step == self.LAST + 1:
            self.close()
