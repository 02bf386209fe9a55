"""The published TSDS algorithm, rendered plainly: the peer of `benchmarks/tsds.py`. Needs faiss.

    python benchmarks/reference.py --candidates x.npy --queries q.npy     # seconds by phase and peak memory, as JSON

The steps and settings are those of the authors' script (github.com/ZifanL/TSDS), the text is ours: an IVF index with
floor(sqrt N) / 2 lists and 10 probes, at most max_k = 5,000 neighbours a query and N / 10 at the most, densities over
the 1,000 nearest within the union of the neighbourhoods, and a heap of events for the probabilities. Where the steps
leave a choice we took the faster one: `np.unique` and an array look-up for their set, dict and `np.vectorize`.
"""

from __future__ import annotations

import heapq
import json
import resource
import time
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Settings:
    """One run."""

    candidates: str
    """A .npy file [N, D]."""
    queries: str
    """A .npy file [M, D]."""
    max_k: int = 5000
    """Neighbours of a query."""
    bandwidth: float = 0.75
    """sigma of the density."""
    alpha: float = 0.5
    """Weight of the distances."""
    scale: float = 5.0
    """C."""
    budget: int = 10_000
    """Draws, with replacement."""


def ivf_index(points: np.ndarray):
    """Lists about k-means centroids; a search looks into the 10 nearest lists."""
    import faiss

    lists = int(np.sqrt(len(points))) // 2
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(points.shape[1]), points.shape[1], lists)
    index.train(points)
    index.add(points)
    index.nprobe = 10
    return index


def reference_density(points: np.ndarray, bandwidth: float, near: int = 1000) -> np.ndarray:
    """The kernel sums over the 1,000 nearest of each point that the index finds, [U]."""
    squared, _ = ivf_index(points).search(points, min(near, len(points) // 10))
    kernel = 1 - squared / bandwidth**2
    return (kernel * (kernel > 0)).sum(axis=1)


def event_loop(
    distances_MxK: np.ndarray, indices_MxK: np.ndarray, density_MxK: np.ndarray, n: int, alpha: float, scale: float
) -> np.ndarray:
    """Raise s from event to event, at each of which one query has filled one more neighbour; the probabilities [N].

    Give distances and densities in float64: NumPy 1 computed so with scalars, NumPy 2 would keep to float32.
    """
    m, k_max = distances_MxK.shape
    events = [(1.0 / density_MxK[i][0], i, 0) for i in range(m)]
    heapq.heapify(events)
    poured = [distances_MxK[i][0] / density_MxK[i][0] for i in range(m)]
    cost = np.zeros(m)
    filled = [0] * m
    total, s = 0.0, 0.0
    while events:
        s, i, k = heapq.heappop(events)
        total -= cost[i]
        cost[i] = distances_MxK[i][k + 1] * s - poured[i]
        total += cost[i]
        if alpha / scale * total >= (1 - alpha) * m:
            break
        filled[i] = k
        if k + 2 < k_max:
            poured[i] += distances_MxK[i][k + 1] / density_MxK[i][k + 1]
            heapq.heappush(events, (s + 1.0 / density_MxK[i][k + 1], i, k + 1))
    probability_N = np.zeros(n)
    for i in range(m):
        given = 0.0
        for k in range(filled[i] + 1):
            share = 1.0 / (m * s * density_MxK[i][k])
            probability_N[indices_MxK[i][k]] += share
            given += share
        probability_N[indices_MxK[i][filled[i] + 1]] += max(1.0 / m - given, 0.0)
    return probability_N


def main(settings: Settings) -> None:
    """Run once; print the seconds of each phase and the peak memory."""
    marks = [("", time.perf_counter())]

    def done(phase: str) -> None:
        marks.append((phase, time.perf_counter()))

    x = np.load(settings.candidates, allow_pickle=False).astype(np.float32)
    q = np.load(settings.queries, allow_pickle=False).astype(np.float32)
    n = len(x)
    done("load")
    index = ivf_index(x)
    squared, indices = index.search(q, min(settings.max_k, n // 10))
    distances = np.sqrt(squared)  # where ten lists hold fewer than K, the rest is row -1 at an immense distance
    done("neighbours")
    union, place = np.unique(indices, return_inverse=True)
    done("union")
    density_U = reference_density(x[union], settings.bandwidth)
    done("density")
    density_MxK = density_U[place].reshape(indices.shape).astype(np.float64)
    probability_N = event_loop(distances.astype(np.float64), indices, density_MxK, n, settings.alpha, settings.scale)
    done("probabilities")
    np.random.choice(n, settings.budget, p=probability_N / probability_N.sum())
    done("draw")
    seconds = {phase: end - marks[i][1] for i, (phase, end) in enumerate(marks[1:])}
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "peak_bytes": peak}))


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Settings, description=__doc__))
