"""The solver: problem RT at full size beside its closed form, a sweep of weights beside separate solves, and POT.

    python benchmarks/solve.py                       # RT at M = 50, 200 and 1,000; K = 500, 1,000 and 5,000
    python benchmarks/solve.py --what sweep          # 64 weights at M = 200, K = 1,000
    python benchmarks/solve.py --what pot            # entropic transport, both marginals given, M = 1,000, U = 10,000

"first" includes compilation. "gap" is what the solver certifies, relative to the value; "above" is how far its value
lies above the exact optimum of `dt.tsds`, relative to that. "peak" is all that the process has ever held, the
problem and what went before it included.
Beside POT, "off" is the sum over candidates of how far p_j is from its marginal.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from measure import clustered, compare, print_table


@dataclass(frozen=True)
class Settings:
    """Which cases to time."""

    what: Literal["rt", "sweep", "pot"] = "rt"
    """Problem RT, the sweep, or the comparison with POT."""
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
    calls: int = 4
    """How often each solve is run; the best counts."""
    lanes: int = 1
    """Weights that the sweep solves side by side."""
    epsilon: float = 0.02
    """Weight of the entropy, for "pot"; random costs are between 0 and 1, distances between 0 and 2."""


def neighborhoods(settings: Settings, m: int, k: int) -> Any:
    """A problem on the clustered pool."""
    from deft_tsds import Problem

    x, q = (
        np.load(clustered(n, settings.dimensions, seed=s), allow_pickle=False)
        for n, s in ((settings.candidates, 0), (m, 1))
    )
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
            memory = f"{1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9:.2f}"
            row = [f"{m:,}", f"{k:,}", regularizer, f"{first:.2f}", f"{best:.2f}", memory, str(info["steps"])]
            row += [f"{info['gap'] / info['value']:.0e}", f"{info['value'] / optimum - 1:.0e}", str(info["converged"])]
            table.append(row)
    columns = ["M", "K", "term", "first s", "s", "peak GB", "steps", "gap", "above", "converged"]
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
        ("sweep", lambda: dt.sweep(problem, objective, lanes=settings.lanes, kde=weights)),
        ("separate solves", separate),
    ):
        first, best, answers = timed(call, settings.calls)
        steps = [info["steps"] for _, info in answers]
        done = sum(info["converged"] for _, info in answers)
        rows.append([name, f"{first:.2f}", f"{best:.2f}", f"{min(steps)} to {max(steps)}", f"{done} of {len(answers)}"])
    print_table(f"{settings.weights} weights, M = 200, K = 1,000", ["", "first s", "s", "steps", "converged"], rows)


def dense(m: int, u: int, costs: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Costs [m, u], random or distances between clustered points, and two even marginals."""
    if costs == "random":
        cost_MxU = np.random.default_rng(0).random((m, u))
    else:
        x, q = (np.load(clustered(n, 64, seed=s), allow_pickle=False).astype(np.float64) for n, s in ((u, 0), (m, 1)))
        squares = (q**2).sum(axis=1)[:, None] - 2 * q @ x.T + (x**2).sum(axis=1)
        cost_MxU = np.sqrt(np.maximum(squares, 0))
    return cost_MxU, np.full(m, 1 / m), np.full(u, 1 / u)


def solve_dense(m: int, u: int, costs: str, epsilon: float) -> Callable[[], Any]:
    """`dt.solve` with transport cost, entropy and a given marginal; it stops at a tenth of the tolerance in that."""
    import deft_tsds as dt

    cost_MxU, rows, columns = dense(m, u, costs)
    index, ones = np.arange(u, dtype=np.int32), np.ones(u, np.float32)
    problem = dt.Problem(cost_MxU, np.full(m, np.inf), np.broadcast_to(index, (m, u)), index, ones, rows, u)
    objective = dt.Objective.of(align=(1.0, dt.terms.transport_cost), spread=(epsilon, dt.terms.entropy))
    return lambda: dt.solve(problem, objective, marginal=columns, tolerance=1e-8)


def sinkhorn_dense(m: int, u: int, costs: str, epsilon: float) -> Callable[[], Any]:
    """`ot.sinkhorn`, which stops at a marginal error of 1e-9."""
    import ot

    cost_MxU, rows, columns = dense(m, u, costs)
    return lambda: ot.sinkhorn(rows, columns, cost_MxU, epsilon, stopThr=1e-9, numItermax=20_000, log=True)


def time_pot(settings: Settings) -> None:
    """Print `solve` and POT on dense problems: one that takes few iterations, and one that takes many."""
    contenders = {"solve": "solve:solve_dense", "POT": "solve:sinkhorn_dense"}
    for costs in ("random", "clustered"):
        case = {"m": 1000, "u": 10_000, "costs": costs, "epsilon": settings.epsilon}
        timings = compare(contenders, case, rounds=1, calls=settings.calls)
        (plan, info), (peer, log) = solve_dense(**case)(), sinkhorn_dense(**case)()
        off = {"solve": info["violation"], "POT": np.abs(peer.sum(axis=0) - 1 / case["u"]).sum()}
        passes = {"solve": 10 * info["steps"], "POT": log["niter"]}
        rows = []
        for name, t in timings.items():
            seconds = [f"{t.first_seconds:.2f}", f"{t.seconds:.2f}"]
            rows.append([name, *seconds, f"{t.peak_bytes / 1e9:.2f}", f"{passes[name]:,}", f"{off[name]:.0e}"])
        rows.append(["ratio", "", f"{timings['solve'].seconds / timings['POT'].seconds:.2f}", "", "", ""])
        apart = np.abs(plan.mass_MxK - peer).sum()
        title = f"{costs} costs, M = 1,000, U = 10,000, eps {settings.epsilon:g}; the plans differ by {apart:.0e}"
        print_table(title, ["", "first s", "s", "memory GB", "iterations", "off"], rows)


if __name__ == "__main__":
    import tyro

    chosen = tyro.cli(Settings, description=__doc__)
    {"rt": time_rt, "sweep": time_sweep, "pot": time_pot}[chosen.what](chosen)
