"""What every benchmark shares: inputs, a fair comparison, the limit of the machine, and the table.

Each contender runs in a process of its own, so that thread pools, caches and memory of one never touch another, and
the rounds alternate (ours, peer, ours, peer, ...), so that a machine that slows down slows all alike. A contender is
`module:function` and takes the case as keywords; it prepares (loads, compiles) and returns the call to be timed.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

CACHE = Path(os.environ.get("DEFT_TSDS_BENCH_CACHE", tempfile.gettempdir())) / "deft_tsds_bench"


@dataclass(frozen=True)
class Timing:
    """Of one contender: the best time of a call, the first call (compilation included), and peak memory."""

    seconds: float
    first_seconds: float
    peak_bytes: int
    """The process's high-water mark above what it held after its imports and its input: the work's own memory."""


def clustered(n: int, d: int, *, seed: int = 0, clusters: int = 200, spread: float = 1.0) -> Path:
    """A float32 [n, d] file of unit rows: a mixture of `clusters` Gaussians, 5% duplicates, half of them exact.

    `spread` is the deviation about the centers, whose own deviation is 1.
    """
    path = CACHE / f"clustered-{n}-{d}-{clusters}-{seed}{f'-{spread:g}' if spread != 1 else ''}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        centers = np.random.default_rng(0).standard_normal((clusters, d), dtype=np.float32)
        rng = np.random.default_rng([seed, n])
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        out = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=(n, d))
        for start in range(0, n, 50_000):
            rows = min(50_000, n - start)
            about = np.float32(spread) * rng.standard_normal((rows, d), dtype=np.float32)
            block = centers[rng.integers(clusters, size=rows)] + about
            copies = rng.choice(rows, rows // 20, replace=False)
            block[copies] = block[rng.integers(rows, size=len(copies))]
            block[copies[::2]] += 0.01 * rng.standard_normal((len(copies[::2]), d), dtype=np.float32)
            out[start : start + rows] = block / np.linalg.norm(block, axis=1, keepdims=True)
        out.flush()
        temporary.rename(path)
    return path


def compare(contenders: dict[str, str], case: dict[str, Any], *, rounds: int = 3, calls: int = 2) -> dict[str, Timing]:
    """Time contenders on one case; keep the best of all rounds. The environment drops OPENBLAS_* (see the README)."""
    found: dict[str, list[Timing]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, target in contenders.items():
            found[name].append(_apart(target, case, calls))
    return {
        name: Timing(
            min(t.seconds for t in timings), min(t.first_seconds for t in timings), min(t.peak_bytes for t in timings)
        )
        for name, timings in found.items()
    }


def _apart(target: str, case: dict[str, Any], calls: int) -> Timing:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OPENBLAS_")}
    # The package beside this file, whichever one is installed.
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (Path(__file__).parent, Path(__file__).parents[1])))
    command = [sys.executable, __file__, target, json.dumps(case), str(calls)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return Timing(**json.loads(done.stdout.splitlines()[-1]))


def _high_water_bytes(reset: bool = False) -> int:
    """VmHWM of this process; Linux lets a process set the mark back to what it holds now."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def _main() -> None:
    target, case, calls = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
    module, function = target.split(":")
    call: Callable[[], Any] = getattr(importlib.import_module(module), function)(**case)
    before = _high_water_bytes(reset=True)
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    timing = Timing(min(seconds), seconds[0], _high_water_bytes() - before)
    print(json.dumps(vars(timing)))


def gemm_flops() -> float:
    """The machine's float32 GEMM in this very run, flop/s: the better of NumPy and JAX."""
    case = {"n": 4096}
    timings = compare({"numpy": "measure:_numpy_gemm", "jax": "measure:_jax_gemm"}, case, rounds=1, calls=4)
    return 2 * case["n"] ** 3 / min(timing.seconds for timing in timings.values())


def _numpy_gemm(n: int) -> Callable[[], Any]:
    a = np.random.default_rng(0).standard_normal((n, n), dtype=np.float32)
    return lambda: a @ a


def _jax_gemm(n: int) -> Callable[[], Any]:
    import jax

    a = jax.random.normal(jax.random.key(0), (n, n))
    product = jax.jit(lambda a: jax.numpy.matmul(a, a, precision="highest"))
    return lambda: product(a).block_until_ready()


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print one table, on a terminal or into a file."""
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    Console(width=140).print(table)


if __name__ == "__main__":
    _main()
