"""Exact kernel density against plain exact sums and against the published algorithm. The latter needs faiss.

    python benchmarks/density.py                                                # n = 20k, 100k, 500k
    python benchmarks/density.py --sizes 100000 --spreads 0.5 0.7 0.85 1 --near 5 15 50 --no-plain --calls 2
    python benchmarks/density.py --sizes 20000 --clusters 1 --bandwidths 1.5    # nothing can be ruled out
    python benchmarks/density.py --sizes 100000 --bandwidths 0.75 0.94 --pool 5000 --no-peer --no-plain
    python benchmarks/density.py --npy embeddings.npy --bandwidths 0.75 0.5 0.3 0.1 --no-peer

"near" is the mean number of points within h, the point itself included. "apart" is the share of all pairs that lie in
cells which h cannot bridge: near 100% where clusters stand apart, 0% where they overlap so far that whole cells rule
nothing out. "plain" multiplies every pair once (NumPy, tiles of 2,048, float32); "published" sums over the 1,000
nearest that a faiss index finds among its 10 nearest lists, as the TSDS authors do. "of limit" is the time that the
float32 products of all pairs would take at the GEMM speed of this run, as a share of ours: above 100% where pairs are
ruled out. On a CPU nothing is compiled.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measure import clustered, compare, gemm_flops, print_table


@dataclass(frozen=True)
class Settings:
    """Which cases to time."""

    sizes: tuple[int, ...] = (20_000, 100_000, 500_000)
    """n, numbers of points."""
    bandwidths: tuple[float, ...] = (0.92,)
    """h."""
    dimensions: int = 384
    """D."""
    near: tuple[float, ...] = ()
    """Mean numbers of points within h: the bandwidths are those that give them, instead of `bandwidths`."""
    clusters: int = 200
    """Gaussians of the mixture."""
    spreads: tuple[float, ...] = (1.0,)
    """Deviations of the Gaussians, as a share of that of their centers."""
    npy: Path | None = None
    """A float32 [n, D] file to use instead."""
    pool: int | None = None
    """Density of this many of the points over all of them, instead of all over all."""
    peer: bool = True
    """Whether to time the published algorithm, up to `peer_limit` points."""
    plain: bool = True
    """Whether to time plain exact sums, up to `peer_limit` points."""
    peer_limit: int = 100_000
    """Peers are not timed beyond: 500,000 points take them many minutes."""
    rounds: int = 1
    """How often each contender gets a process of its own."""
    calls: int = 1
    """Calls in a process."""


def ours(points: str, bandwidth: float, pool: int | None) -> Callable[[], Any]:
    """`dt.kernel_density` of an array in memory."""
    from deft_tsds import kernel_density

    x = np.load(points, allow_pickle=False)
    if pool is None:
        return lambda: kernel_density(x, bandwidth=bandwidth)
    return lambda: kernel_density(x[:pool], bandwidth=bandwidth, pool=x)


def plain(points: str, bandwidth: float, pool: int | None) -> Callable[[], Any]:
    """All pairs, each once where the matrix of pairs is symmetric; two more columns hold the norms."""
    x = np.load(points, allow_pickle=False)
    h2, tile = bandwidth**2, 2048

    def density() -> np.ndarray:
        squares, one = np.einsum("nd,nd->n", x, x)[:, None], np.ones((len(x), 1), np.float32)
        left = np.concatenate([x, squares, one], axis=1)
        right = np.concatenate([2 * x / h2, -one / h2, 1 - squares / h2], axis=1).astype(np.float32)
        sums = np.zeros(pool or len(x))
        kernel = np.empty((tile, tile), np.float32)
        for i in range(0, len(sums), tile):
            rows = left[i : min(i + tile, len(sums))]
            for j in range(0 if pool else i, len(x), tile):
                columns = right[j : j + tile]
                out = kernel.reshape(-1)[: len(rows) * len(columns)].reshape(len(rows), len(columns))
                np.maximum(np.matmul(rows, columns.T, out=out), 0, out=out)
                sums[i : i + tile] += out.sum(axis=1)
                if not pool and j > i:
                    sums[j : j + tile] += out.sum(axis=0)
        return sums

    return density


def published(points: str, bandwidth: float, pool: int | None) -> Callable[[], Any]:
    """The density phase of TSDS as published, over the points themselves."""
    from reference import reference_density

    x = np.load(points, allow_pickle=False)[:pool]
    return lambda: reference_density(x, bandwidth)


def squared_distances(points: np.ndarray) -> np.ndarray:
    """Of 500 points to all: what is near is judged by them."""
    some = points[np.random.default_rng(0).choice(len(points), min(500, len(points)), replace=False)]
    squares, some_squares = np.einsum("nd,nd->n", points, points), np.einsum("nd,nd->n", some, some)
    return some_squares[:, None] - 2 * some @ points.T + squares


def bandwidth_for(near: float, squared: np.ndarray) -> float:
    """The h that has so many points within it, in the mean."""
    place = min(round(near * len(squared)), squared.size - 1)
    return float(np.sqrt(np.partition(squared.reshape(-1), place)[place]))


def share_apart(points: np.ndarray, bandwidth: float) -> float:
    """The share of all pairs of points that the bound of whole cells rules out."""
    from deft_tsds.geometry.cells import find_cells, pack

    with ThreadPoolExecutor() as threads:
        cells = find_cells(points, points, threads, dimensions=0)
        packed = pack(points, cells, threads, origin_D=cells.center_D)
    together_TxT = packed.reach_TxK[:, packed.cell_T]
    needed_KxK = cells.squares_KxK - bandwidth * np.sqrt(cells.squares_KxK)
    apart_TxT = together_TxT + together_TxT.T < needed_KxK[np.ix_(packed.cell_T, packed.cell_T)]
    shares_T = packed.sizes_T / len(points)
    return float(shares_T @ apart_TxT @ shares_T)


def main(settings: Settings) -> None:
    """Time all cases and print the table."""
    flops = gemm_flops()
    peers = {"plain": settings.plain, "published": settings.peer}
    table = []
    sizes = settings.sizes if settings.npy is None else (len(np.load(settings.npy, mmap_mode="r", allow_pickle=False)),)
    for n, spread in itertools.product(sizes, settings.spreads if settings.npy is None else (1.0,)):
        path = settings.npy or clustered(n, settings.dimensions, clusters=settings.clusters, spread=spread)
        points = np.load(path, mmap_mode="r", allow_pickle=False)
        squared = squared_distances(points)
        for bandwidth in [bandwidth_for(near, squared) for near in settings.near] or settings.bandwidths:
            timed = [name for name, wanted in peers.items() if wanted and n <= settings.peer_limit]
            case = {"points": str(path), "bandwidth": bandwidth, "pool": settings.pool}
            contenders = {name: f"density:{name}" for name in ["ours", *timed]}
            found = compare(contenders, case, rounds=settings.rounds, calls=settings.calls)
            mine = found["ours"]
            rows = settings.pool or n
            products = 2 * rows * n * points.shape[1] / (1 if settings.pool else 2)
            near = np.mean(np.sum(squared <= bandwidth**2, axis=1))
            table.append([f"{rows:,}", f"{n:,}", "" if settings.npy else f"{spread:g}"])
            apart = share_apart(points, bandwidth)
            table[-1] += [f"{bandwidth:.3g}", f"{near:.1f}", f"{apart:.1%}", f"{mine.seconds:.2f}"]
            for name in peers:
                seconds = found[name].seconds if name in found else None
                table[-1] += ["", ""] if seconds is None else [f"{seconds:.2f}", f"{mine.seconds / seconds:.3f}"]
            table[-1] += [f"{products / flops / mine.seconds:.0%}", f"{mine.peak_bytes / 1e9:.2f}"]
    title = f"D = {points.shape[1]}, GEMM {flops / 1e9:.0f} GFLOP/s; ratios are ours / theirs"
    columns = ["points", "pool", "spread", "h", "near", "apart", "ours s", "plain s", "ratio", "published s", "ratio"]
    print_table(title, [*columns, "of limit", "peak GB"], table)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Settings, description=__doc__))
