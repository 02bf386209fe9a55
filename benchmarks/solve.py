"""The solver: problem RT at full size beside its closed form, and a sweep of weights beside separate solves.

    python benchmarks/solve.py                       # RT at M = 50, 200 and 1,000; K = 500, 1,000 and 5,000
    python benchmarks/solve.py --what sweep          # 64 weights at M = 200, K = 1,000

"first" includes compilation. "gap" is what the solver certifies, relative to the value; "above" is how far its value
lies above the exact optimum of `dt.tsds`, relative to that.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from measure import clustered, print_table


@dataclass(frozen=True)
class Settings:
    """Which cases to time."""

    what: Literal["rt", "sweep"] = "rt"
    """Problem RT, or the sweep."""
    queries: tuple[int, ...] = (50, 200, 1000)
    """M, for "rt"."""
    neighbors: tuple[int, ...] = (500, 1000, 5000)
    """K, one for each M."""
    candidates: int = 20_000
    """N."""
    dimensions: int = 64
    """D."""
    regularizers: tuple[Literal["kde", "uniform", "tv"], ...] = ("kde", "uniform", "tv")
    """For "rt"."""
    weights: int = 64
    """Points of the sweep, at M = 200 and K = 1,000."""
    calls: int = 2
    """How often each solve is run; the best counts."""


def neighborhoods(settings: Settings, m: int, k: int) -> Any:
    """A problem on the clustered pool."""
    from deft_tsds import Problem

    x, q = (np.load(clustered(n, settings.dimensions, seed=s)) for n, s in ((settings.candidates, 0), (m, 1)))
    return Problem.from_embeddings(x, q, neighbors=k, bandwidth=0.75)


def timed(call: Any, calls: int) -> tuple[float, float, Any]:
    """Seconds of the first call and of the best, and what the last returned."""
    seconds, result = [], None
    for _ in range(calls):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return seconds[0], min(seconds), result


def time_rt(settings: Settings) -> None:
    """Print the table of problem RT."""
    import deft_tsds as dt

    kinks = {"kde": dt.terms.kde_deviation, "uniform": dt.terms.uniform_deviation, "tv": dt.terms.tv_deviation}
    table = []
    for m, k in zip(settings.queries, settings.neighbors, strict=True):
        problem = neighborhoods(settings, m, k)
        for regularizer in settings.regularizers:
            objective = dt.Objective.of(align=(0.1, dt.terms.transport_cost), far=(0.5, kinks[regularizer]))
            first, best, (_, info) = timed(
                lambda objective=objective, p=problem: dt.solve(p, objective), settings.calls
            )
            optimum = dt.tsds(problem, alpha=0.5, scale=5.0, regularizer=regularizer).info["value"]
            row = [f"{m:,}", f"{k:,}", regularizer, f"{first:.2f}", f"{best:.2f}", str(info["steps"])]
            row += [f"{info['gap'] / info['value']:.0e}", f"{info['value'] / optimum - 1:.0e}", str(info["converged"])]
            table.append(row)
    columns = ["M", "K", "term", "first s", "s", "steps", "gap", "above", "converged"]
    print_table(f"problem RT by solve, N = {settings.candidates:,}", columns, table)


def time_sweep(settings: Settings) -> None:
    """Print the sweep beside as many separate solves, none of which compiles again after the first."""
    import deft_tsds as dt

    problem = neighborhoods(settings, 200, 1000)
    objective = dt.Objective.of(align=(0.1, dt.terms.transport_cost), kde=(0.5, dt.terms.kde_repulsion))
    weights = np.geomspace(0.01, 10, settings.weights)

    def separate() -> list[Any]:
        return [dt.solve(problem, objective.with_weights(kde=weight)) for weight in weights]

    rows = []
    for name, call in (
        ("sweep", lambda: dt.sweep(problem, objective, kde=weights)),
        ("separate solves", separate),
    ):
        first, best, answers = timed(call, settings.calls)
        steps = [info["steps"] for _, info in answers]
        done = sum(info["converged"] for _, info in answers)
        rows.append([name, f"{first:.2f}", f"{best:.2f}", f"{min(steps)} to {max(steps)}", f"{done} of {len(answers)}"])
    print_table(f"{settings.weights} weights, M = 200, K = 1,000", ["", "first s", "s", "steps", "converged"], rows)


if __name__ == "__main__":
    import tyro

    chosen = tyro.cli(Settings, description=__doc__)
    (time_rt if chosen.what == "rt" else time_sweep)(chosen)
