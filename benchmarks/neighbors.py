"""Exact nearest neighbours against faiss `IndexFlatL2`.

    python benchmarks/neighbors.py                                       # N = 20k, 100k, 500k; K = 10, 100, 5,000
    python benchmarks/neighbors.py --sizes 1000000 --ks 5000 --no-peer   # time and memory from a memory-map

The input is a memory-map for us and an array in memory for faiss, which takes nothing else. "of limit" is the time
that the one float32 matrix product of the search (2 M N D operations) would take at the GEMM speed of this run, as a
share of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from measure import clustered, compare, gemm_flops, print_table


@dataclass(frozen=True)
class Settings:
    """Which cases to time."""

    sizes: tuple[int, ...] = (20_000, 100_000, 500_000)
    """N, numbers of candidates."""
    ks: tuple[int, ...] = (10, 100, 5000)
    """K, numbers of neighbours."""
    queries: int = 1000
    """M, the number of queries."""
    dimensions: int = 384
    """D."""
    peer: bool = True
    """Whether to time faiss as well."""
    rounds: int = 3
    """How often each contender gets a process of its own."""


def ours(candidates: str, queries: str, k: int) -> Callable[[], Any]:
    """`dt.nearest_neighbors` on a memory-map."""
    from deft_tsds import nearest_neighbors

    x, q = np.load(candidates, mmap_mode="r", allow_pickle=False), np.load(queries, allow_pickle=False)
    np.asarray(x[::64]).sum()  # the file into the page cache, as far as it is not there
    return lambda: nearest_neighbors(q, x, k)


def faiss_flat(candidates: str, queries: str, k: int) -> Callable[[], Any]:
    """`IndexFlatL2`: exact up to float32 rounding; building it (a copy) is not timed."""
    import faiss

    x, q = np.load(candidates, allow_pickle=False), np.load(queries, allow_pickle=False)
    index = faiss.IndexFlatL2(x.shape[1])
    index.add(x)
    return lambda: index.search(q, k)


def main(settings: Settings) -> None:
    """Time all cases and print the table."""
    flops = gemm_flops()
    contenders = {"ours": "neighbors:ours"} | ({"faiss": "neighbors:faiss_flat"} if settings.peer else {})
    queries = str(clustered(settings.queries, settings.dimensions, seed=1))
    table = []
    for n in settings.sizes:
        for k in settings.ks:
            case = {"candidates": str(clustered(n, settings.dimensions)), "queries": queries, "k": k}
            found = compare(contenders, case, rounds=settings.rounds, calls=5)
            mine, peer = found["ours"], found.get("faiss")
            floor = 2 * settings.queries * n * settings.dimensions / flops
            table.append(
                [f"{n:,}", f"{k:,}", f"{mine.seconds:.2f}", f"{mine.first_seconds:.2f}"]
                + ([f"{peer.seconds:.2f}", f"{mine.seconds / peer.seconds:.2f}"] if peer else ["", ""])
                + [f"{floor / mine.seconds:.0%}", f"{mine.peak_bytes / 1e9:.2f}"]
            )
    title = f"M = {settings.queries:,}, D = {settings.dimensions}, GEMM {flops / 1e9:.0f} GFLOP/s"
    print_table(title, ["N", "K", "ours s", "first call s", "faiss s", "ratio", "of limit", "peak GB"], table)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Settings, description=__doc__))
