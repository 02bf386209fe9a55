"""TSDS from a pool that need not fit into memory: float16 shards on a disk, read in blocks.

    python benchmarks/larger_than_memory.py                                   # 1, 3 and 10 million rows of 384
    python benchmarks/larger_than_memory.py --rows 1000000 --folder /big/disk --cold

The pool is made once: shards of 250,000 float16 rows of unit length, a mixture of 200 Gaussians with 5% duplicates,
half of them exact. The first shards serve for a smaller size; a killed call goes on at the next shard. 10 million rows
take 7.7 GB of disk.

TSDS runs in a process of its own, from the start of the interpreter to the rows drawn and their reasons. Beside it are
the least that it could take: reading the same bytes and doing nothing with them ("read s"), and the one float32 matrix
product of the search at the GEMM speed of this run ("GEMM s"). Memory is what the process had of its own at its worst
(RssAnon of /proc/PID/status, looked at fifty times a second): pages of a mapped file are the system's, which takes them
back when it needs them. `--cold` drops the pool's pages from the cache before every timing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measure import CACHE, gemm_flops, print_table

HERE = Path(__file__).parent
SHARD_ROWS = 250_000
CLUSTERS = 200


@dataclass(frozen=True)
class Settings:
    """Which sizes, and where the pool lies."""

    rows: tuple[int, ...] = (1_000_000, 3_000_000, 10_000_000)
    """N, numbers of candidates: multiples of 250,000."""
    folder: Path = CACHE / "pool"
    """Where the shards are made and kept."""
    queries: int = 200
    """M, the number of queries."""
    dimensions: int = 384
    """D."""
    neighbors: int = 5000
    """K."""
    budget: int = 10_000
    """Rows to draw."""
    cold: bool = False
    """Read from the disk and not from the page cache."""


def write_shards(folder: Path, n: int, d: int) -> list[Path]:
    """The files of the first n rows; those that are there already are left as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    if n % SHARD_ROWS:
        raise SystemExit(f"rows is {n:,}: give a multiple of {SHARD_ROWS:,}.")
    paths = [folder / f"shard-{number:05d}-{d}.npy" for number in range(n // SHARD_ROWS)]
    for number, path in enumerate(paths):
        if not path.exists():
            temporary = path.with_suffix(".tmp")
            with temporary.open("wb") as file:
                np.save(file, mixture(SHARD_ROWS, d, [0, number]))
            temporary.rename(path)
    return paths


def mixture(n: int, d: int, seed: list[int]) -> np.ndarray:
    """float16 [n, d], rows of unit length about common centres; 5% are copies, half of them moved a little."""
    centers = np.random.default_rng(0).standard_normal((CLUSTERS, d), dtype=np.float32)
    rng = np.random.default_rng(seed)
    out = np.empty((n, d), np.float16)
    for start in range(0, n, 50_000):
        rows = min(50_000, n - start)
        block = centers[rng.integers(CLUSTERS, size=rows)] + rng.standard_normal((rows, d), dtype=np.float32)
        copies = rng.choice(rows, rows // 20, replace=False)
        block[copies] = block[rng.integers(rows, size=len(copies))]
        block[copies[::2]] += 0.01 * rng.standard_normal((len(copies[::2]), d), dtype=np.float32)
        out[start : start + rows] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return out


def forget(paths: list[Path]) -> None:
    """Drop the pages of some files from the cache."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_alone(paths: list[Path]) -> float:
    """Seconds to read every byte, in order, into one buffer."""
    buffer = memoryview(bytearray(2**26))
    start = time.perf_counter()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - start


def whole(folder: str, rows: int, queries: int, neighbors: int, budget: int) -> None:
    """All of TSDS in this process; prints what it took, as JSON."""
    began = time.perf_counter()
    import jax

    import deft_tsds as dt
    from deft_tsds.transport import problem

    seconds = {"import": time.perf_counter() - began}

    def timed(phase: str, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments, **options)
            seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - start
            return result

        return call

    problem.nearest_neighbors = timed("neighbours", problem.nearest_neighbors)
    problem.kernel_density = timed("density", problem.kernel_density)
    opened = dt.open_shards(folder)
    pool = dt.Shards(opened.files[: rows // SHARD_ROWS])
    targets = mixture(queries, pool.shape[1], [1, 0]).astype(np.float32)
    start = time.perf_counter()
    selection = dt.select(
        pool,
        targets,
        selector=dt.selectors.TSDS(neighbors=neighbors),
        budget=budget,
        key=jax.random.key(0),
        memory_budget=2**50,  # what it needs is what is to be seen
    )
    seconds["rest"] = time.perf_counter() - start - seconds["neighbours"] - seconds["density"]
    searches = selection.info["neighbors_used"], selection.info["shortlist"]
    print(json.dumps({"seconds": seconds, "neighbors_used": searches[0], "shortlist": searches[1]}))


def watched(call: str) -> dict[str, Any]:
    """Run a call in a process of its own: what it printed, its seconds, and the most memory of its own it had."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OPENBLAS_")}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (HERE, HERE.parent)))
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", call], env=environment, stdout=subprocess.PIPE, text=True)
    peak, when = 0, 0.0
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        held = anonymous_bytes(status)
        if held > peak:
            peak, when = held, time.perf_counter() - start
        time.sleep(0.02)
    seconds = time.perf_counter() - start
    if process.returncode or process.stdout is None:
        raise SystemExit(f"{call} failed.")
    printed = json.loads(process.stdout.read().splitlines()[-1])
    return {**printed, "whole": seconds, "peak_anonymous": peak, "peak_after": when}


def anonymous_bytes(status: Path) -> int:
    """RssAnon of a process; 0 when it has just ended."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def main(settings: Settings) -> None:
    """Make the pool, time every size, print the table."""
    flops = gemm_flops()
    table = []
    for n in settings.rows:
        paths = write_shards(settings.folder, n, settings.dimensions)
        size = sum(path.stat().st_size for path in paths)
        if settings.cold:
            forget(paths)
        read = read_alone(paths)
        if settings.cold:
            forget(paths)
        arguments = str(settings.folder), n, settings.queries, settings.neighbors, settings.budget
        run = watched(f"import larger_than_memory; larger_than_memory.whole(*{arguments!r})")
        search = run["seconds"]["neighbours"]
        table.append(
            [
                f"{n:,}",
                f"{size / 1e9:.2f}",
                f"{run['whole']:.1f}",
                f"{run['whole'] / (n / 1e6):.2f}",
                f"{search:.1f}",
                f"{search / (n / 1e6):.2f}",
                f"{size / 1e9 / search:.2f}",
                f"{run['seconds']['density']:.1f}",
                f"{run['seconds']['rest']:.1f}",
                f"{read:.1f}",
                f"{run['whole'] / read:.1f}",
                f"{2 * settings.queries * n * settings.dimensions / flops:.1f}",
                f"{run['shortlist']:,}",
                f"{run['peak_anonymous'] / 1e9:.2f}",
            ]
        )
        print(json.dumps({"rows": n, "read": read, **run}), flush=True)
    columns = ["N", "GB", "all s", "s/M", "search s", "s/M", "GB/s", "density s", "rest s", "read s", "ratio"]
    title = (
        f"M = {settings.queries}, K = {settings.neighbors:,}, D = {settings.dimensions}, GEMM {flops / 1e9:.0f} GFLOP/s"
    )
    print_table(title, [*columns, "GEMM s", "shortlist", "anon GB"], table)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Settings, description=__doc__))
