"""What a selection will need: bytes and operations by stage, known from the sizes alone, before anything runs.

The formulas follow the code. A byte count is what the arrays of a stage take at its peak, an operation count is that of
its matrix products. Both are upper bounds: they cannot know how far neighbourhoods overlap, how many survivors a search
has to measure, or how much of a density is pruned. Tests hold the bytes to what problems of some thousand rows really
allocate: not less than that, and not more than four times as much. With L = M K places in the neighbourhoods, U
candidates in the shortlist and W threads:

    neighbours    24 L: keys of distance and index, 8 bytes, and both taken apart. A thread works on 512 queries at a
                  time, with 32 bytes for each of 2,048 candidates and 120 for each of K, 512 W (65,536 + 120 K).
                  5 N to number the shortlist
    density       8 L kept; the shortlist, a sorted copy and its sketch, 10 U D; its reach towards G cells, 2 U G, with
                  G = U / 250 and at most 512; 48 MB of tiles a thread. Over the pool, 131,072 rows of it as well
    closed form   8 L kept, 9 L of sums along the neighbourhoods, 8 L for the plan, blocks of 8 MB at the most
    draw          16 L kept, 64 N of probabilities and orders; to explain, 12 L, then the shortlist, 4 U D, and the
                  search for the B nearest duplicates in it
    k-means       the rows and the rows at unit length, or these and their copy on the device, 8 N D; with them either
                  blocks in float64, 16 N D and at most 128 MB, or distances, 4 N (K + 16 (2 + log K))
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from deft_tsds.arrays import BLOCK_BYTES, check_count, usable_cpus

_TILE_QUERIES = 512
_CHUNK_CANDIDATES = 2048
_CELL, _CELLS = 250, 512
_POOL_ROWS = 2**17
_DENSITY_TILES = 48 * 2**20
_CLOSED_FORM_BLOCKS = 8 * 2**20
_KMEANS_ITERATIONS = 100


@dataclass(frozen=True)
class StageCost:
    """One stage of a selection."""

    name: str
    bytes: int
    """The most memory in use while the stage runs, beyond candidates and queries: its own arrays, and what is kept of
    the stages before it."""
    operations: int
    """Floating-point operations, an upper bound."""


@dataclass(frozen=True)
class PlanCost:
    """The stages of a selection in the order in which they run. Prints as a table.

    Example:
        >>> cost = dt.plan_cost(10_000, 10, 64, 100)
        >>> [stage.name for stage in cost.stages]
        ['neighbours', 'density', 'closed form', 'draw, reasons']
        >>> cost.bytes == max(stage.bytes for stage in cost.stages)
        True
    """

    stages: tuple[StageCost, ...]

    @property
    def bytes(self) -> int:
        """The most memory that any stage needs: what a memory budget has to hold."""
        return max(stage.bytes for stage in self.stages)

    @property
    def operations(self) -> int:
        """The operations of all stages."""
        return sum(stage.operations for stage in self.stages)

    def __add__(self, other: PlanCost) -> PlanCost:
        """One plan, then the other."""
        return PlanCost(self.stages + other.stages)

    def __str__(self) -> str:
        rows = [(stage.name, stage.bytes, stage.operations) for stage in self.stages]
        rows.append(("peak, and sum", self.bytes, self.operations))
        lines = [f"{'stage':<16}{'GB':>10}{'GFLOP':>14}"]
        lines += [f"{name:<16}{size / 1e9:>10.3f}{operations / 1e9:>14,.1f}" for name, size, operations in rows]
        return "\n".join(lines)


def plan_cost(
    n: int,
    m: int,
    d: int,
    k: int,
    *,
    budget: int = 1,
    shortlist: int | None = None,
    density_over: str | None = "shortlist",
    clusters: int | None = None,
) -> PlanCost:
    """What TSDS needs, stage by stage: neighbours, density, closed form, draw; and k-means, if clusters are asked for.

    Args:
        n: N candidates.
        m: M queries.
        d: D dimensions.
        k: K neighbours of a query; a K above N means all N.
        budget: B rows to draw. Each looks for its nearest duplicate in the shortlist.
        shortlist: U, the distinct candidates in all neighbourhoods; by default its upper bound min(N, M K).
        density_over: "shortlist" or "pool", or None for plans without densities (regularizers "uniform" and "tv").
        clusters: number of k-means clusters of the pool, or None.

    Returns:
        PlanCost; `print` shows it as a table.

    Raises:
        ValueError: a size below 1, a budget or a shortlist above N, unknown density_over.

    Example:
        >>> cost = dt.plan_cost(n=1_000_000, m=100, d=384, k=1000, budget=5000)
        >>> cost.bytes < 4e9, cost.operations > 2 * 1_000_000 * 100 * 384
        (True, True)
    """
    n, m, d = check_count(n, "n", 1), check_count(m, "m", 1), check_count(d, "d", 1)
    k = min(check_count(k, "k", 1), n)
    budget = check_count(budget, "budget", 1, n)
    places = m * k
    u = min(n, places) if shortlist is None else check_count(shortlist, "shortlist", 1, n)
    if density_over not in ("shortlist", "pool", None):
        raise ValueError(f"density_over is {density_over!r}: choose one of shortlist, pool, None.")

    stages = list(clustering_cost(n, d, clusters).stages) if clusters is not None else []
    stages += neighbors_cost(n, m, d, k).stages
    if density_over is not None:
        rows, compared = (u, u) if density_over == "shortlist" else (u + min(n, _POOL_ROWS), n)
        cells = min(_CELLS, 1 + compared // _CELL)
        tiles = usable_cpus() * min(_DENSITY_TILES, 16 * u * compared)
        pairs = u * u if density_over == "shortlist" else 2 * u * n  # over the shortlist a pair serves both of its rows
        stages.append(StageCost("density", 8 * places + rows * (10 * d + 2 * cells) + tiles, pairs * d))
    blocks = min(40 * places, _CLOSED_FORM_BLOCKS)
    stages.append(StageCost("closed form", 25 * places + blocks, 20 * places))
    duplicates = neighbors_cost(u, budget, d, 2)
    explaining = max(12 * places, 4 * u * d + duplicates.bytes)
    drawing = n * math.ceil(math.log2(n + 1))
    stages.append(StageCost("draw, reasons", 16 * places + 64 * n + explaining, drawing + duplicates.operations))
    return PlanCost(tuple(stages))


def neighbors_cost(n: int, m: int, d: int, k: int) -> PlanCost:
    """What `nearest_neighbors` and the numbering of the shortlist need, without a block read from disk."""
    k = min(k, n)
    tiles = min(usable_cpus(), -(-m // _TILE_QUERIES)) * min(m, _TILE_QUERIES)
    size = 24 * m * k + tiles * (32 * min(_CHUNK_CANDIDATES, n) + 120 * k) + 5 * n
    return PlanCost((StageCost("neighbours", size, 2 * m * n * d),))


def clustering_cost(n: int, d: int, clusters: int) -> PlanCost:
    """What k-means of rows of unit length needs; the operations are those of 100 iterations, most fits need fewer."""
    clusters = min(clusters, n)
    tries = 2 + int(math.log(clusters))
    operations = _KMEANS_ITERATIONS * 4 * n * clusters * d + 4 * n * clusters * tries * d
    size = 8 * n * d + max(min(16 * n * d, 2 * BLOCK_BYTES), 4 * n * (clusters + 16 * tries))
    return PlanCost((StageCost("k-means", size, operations),))


def available_memory() -> int | None:
    """Bytes that can be had without swapping: MemAvailable of /proc/meminfo, else the free pages that `os.sysconf`
    reports, else None (then nothing is known, and `select` checks against a given memory_budget alone).

    Of a limit on a container, neither knows: give `select` a memory_budget there.
    """
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):  # no such function (Windows), or no such name (macOS)
        return None
