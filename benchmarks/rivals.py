"""What each selector takes: seconds, memory beside what it said it would take, and its products' share of the limit.

    python benchmarks/rivals.py                                                  # N = 100k, 1% of it
    python benchmarks/rivals.py --n 1000000 --m 1000 --budget 1000 --dimensions 64 --only Nearest RoundRobin LESS

The pool is read through a memory-map. "operations" and "planned GB" are what the selector's method `cost` says: for
searches an upper bound, for the greedy ones one pass over the pool a row. Where it has none there is nothing to say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from measure import clustered, compare, gemm_flops, print_table


@dataclass(frozen=True)
class Settings:
    """Which selectors to time, on what."""

    n: int = 100_000
    """N, candidates."""
    m: int = 200
    """M, queries."""
    budget: int = 1000
    """B, how many to choose."""
    dimensions: int = 384
    """D."""
    only: tuple[str, ...] = (
        "Random",
        "Nearest",
        "RoundRobin",
        "LESS",
        "UnbalancedTransport",
        "TSDS",
        "DEFT",
        "SemDeDup",
        "Diverse",
        "KCenter",
        "Herding",
        "FacilityLocation",
    )
    """Names of selectors, with their default arguments."""
    rounds: int = 1
    """How often each selector gets a process of its own."""
    calls: int = 1
    """Calls in a process; the first compiles."""


def pool_of(points: str, m: int) -> tuple[np.ndarray, np.ndarray]:
    """The candidates, memory-mapped, and queries that lie near some of them."""
    candidates = np.load(points, mmap_mode="r", allow_pickle=False)
    rng = np.random.default_rng(1)
    rows = np.sort(rng.choice(len(candidates), m, replace=False))
    return candidates, candidates[rows] + 0.02 * rng.standard_normal((m, candidates.shape[1]), dtype=np.float32)


def chosen(selector: str, points: str, m: int, budget: int) -> Callable[[], Any]:
    """`dt.select` by one selector."""
    import jax

    import deft_tsds as dt

    made = {"DEFT": {"base": 0.0}, "TSDS": {"alpha": 0.01}}.get(selector, {})
    candidates, queries = pool_of(points, m)
    key = jax.random.key(0)
    return lambda: dt.select(
        candidates, queries, selector=getattr(dt.selectors, selector)(**made), budget=budget, key=key
    )


def main(settings: Settings) -> None:
    """Time all selectors and print the table."""
    import deft_tsds as dt

    flops = gemm_flops()
    path = clustered(settings.n, settings.dimensions)
    table = []
    for name in settings.only:
        case = {"selector": name, "points": str(path), "m": settings.m, "budget": settings.budget}
        timing = compare({name: "rivals:chosen"}, case, rounds=settings.rounds, calls=settings.calls)[name]
        row = [name, f"{timing.seconds:.2f}", f"{timing.first_seconds:.2f}", f"{timing.peak_bytes / 1e9:.2f}"]
        selector = getattr(dt.selectors, name)()
        if hasattr(selector, "cost"):
            plan = selector.cost(dt.Pool(*pool_of(str(path), settings.m)), settings.budget)
            share = plan.operations / flops / timing.seconds
            row += [f"{plan.bytes / 1e9:.2f}", f"{plan.operations:.2g}", f"{share:.0%}"]
        table.append(row)
    title = (
        f"N = {settings.n:,}, M = {settings.m:,}, B = {settings.budget:,}, D = {settings.dimensions}, "
        f"GEMM {flops / 1e9:.0f} GFLOP/s"
    )
    columns = ["selector", "seconds", "first call s", "peak GB", "planned GB", "operations", "of limit"]
    print_table(title, columns, table)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Settings, description=__doc__))
