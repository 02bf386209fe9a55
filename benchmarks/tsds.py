"""TSDS against the published algorithm (`benchmarks/reference.py`).

    python benchmarks/tsds.py                                   # probabilities alone: closed form, heap of events
    python benchmarks/tsds.py --what whole                      # neighbours, density, probabilities, draw
    python benchmarks/tsds.py --what growth                     # our own time as N grows, from a memory-map

"probabilities" times `dt.tsds` beside the heap of events on the same neighbourhoods, K = N / 20. At alpha = 0.005 these
are filled, and too few for the optimum: then ours stops at the largest s within K, the published sweep goes on with
the queries that still have neighbours, and the two are no longer the same. No matrix product is in it, so no GEMM limit
either.

"whole" and "growth" time whole processes, from the start of the interpreter to its end: imports, reading, compilation.
"of limit" is the time that the one float32 matrix product of the search (2 M N D operations) would take at the GEMM
speed of this run, as a share of ours. Peak memory is that of the process, pages of a mapped file among it. "whole" has
K = N / 10 at the most, as published; there a reference at N = 100,000 takes minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from measure import CACHE, clustered, compare, gemm_flops, print_table

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Settings:
    """Which cases to time."""

    what: Literal["probabilities", "whole", "growth"] = "probabilities"
    """Probabilities alone, all of TSDS beside its peer, or all of it alone."""
    sizes: tuple[int, ...] = ()
    """N, numbers of candidates; () has the sizes of the README."""
    alphas: tuple[float, ...] = (0.5, 0.05, 0.005)
    """For "probabilities"; the rest has 0.5."""
    queries: int = 1000
    """M, the number of queries."""
    dimensions: int = 384
    """D."""
    neighbors: int = 5000
    """K at the most."""
    peer: bool = True
    """Whether to time the published algorithm as well."""
    rounds: int = 2
    """How often ours gets a process of its own."""


def neighborhoods(n: int, m: int, d: int, k: int) -> Path:
    """A file with distances, indices and densities of a clustered pool, made once."""
    path = CACHE / f"neighborhoods-{n}-{m}-{d}-{k}.npz"
    if not path.exists():
        from deft_tsds import Problem

        problem = Problem.from_embeddings(
            np.load(clustered(n, d), allow_pickle=False),
            np.load(clustered(m, d, seed=1), allow_pickle=False),
            neighbors=k,
            bandwidth=0.75,
        )
        fields = ("costs_MxK", "next_cost_M", "index_MxK", "shortlist_U", "density_U", "query_weights_M")
        temporary = path.with_suffix(f".{os.getpid()}.npz")
        np.savez(temporary, **{name: getattr(problem, name) for name in fields})
        temporary.rename(path)
    return path


def closed_form(path: str, n: int, alpha: float) -> Callable[[], Any]:
    """`dt.tsds`, from the problem to the plan."""
    from deft_tsds import Problem, tsds

    with np.load(path, allow_pickle=False) as arrays:
        problem = Problem(**arrays, size=n)
    return lambda: tsds(problem, alpha=alpha)


def events(path: str, n: int, alpha: float) -> Callable[[], Any]:
    """The heap of events of the published algorithm."""
    from reference import event_loop

    with np.load(path, allow_pickle=False) as arrays:
        indices = arrays["shortlist_U"][arrays["index_MxK"]].astype(np.int64)
        density = arrays["density_U"][arrays["index_MxK"]].astype(np.float64)
        distances = arrays["costs_MxK"].astype(np.float64)
    return lambda: event_loop(distances, indices, density, n, alpha, scale=5.0)


def time_closed_form(settings: Settings) -> None:
    """Print the table of the probabilities alone."""
    table = []
    for n in settings.sizes or (10_000, 20_000, 100_000):
        k = min(settings.neighbors, n // 20)
        path = str(neighborhoods(n, settings.queries, settings.dimensions, k))
        for alpha in settings.alphas:
            case = {"path": path, "n": n, "alpha": alpha}
            ours = compare({"ours": "tsds:closed_form"}, case, rounds=settings.rounds, calls=5)["ours"]
            row = [f"{n:,}", f"{k:,}", f"{alpha:g}", f"{1e3 * ours.seconds:.1f}", f"{1e3 * ours.first_seconds:.1f}"]
            if settings.peer:
                loop = events(**case)
                start = time.perf_counter()
                theirs = loop()  # plain Python for seconds or minutes: a process of its own would change nothing
                seconds = time.perf_counter() - start
                plan = closed_form(**case)()
                difference = f"{np.abs(theirs - plan.probabilities()).max():.0e}"
                if plan.info["exhausted"]:
                    difference = "K too few"
                row += [f"{1e3 * seconds:,.0f}", f"{seconds / ours.seconds:.0f}", difference]
            table.append([*row, f"{ours.peak_bytes / 1e9:.2f}"])
    columns = ["N", "K", "alpha", "ours ms", "first call ms"]
    columns += ["events ms", "times faster", "max |dp|"] if settings.peer else []
    print_table(f"probabilities alone, M = {settings.queries:,}", [*columns, "peak GB"], table)


def ours_whole(candidates: str, queries: str, neighbors: int, budget: int) -> None:
    """All of TSDS in this process; prints the seconds of each phase and the peak memory, as JSON."""
    began = time.perf_counter()
    import resource

    import jax

    from deft_tsds import Problem, sample, tsds
    from deft_tsds.transport import problem

    seconds = {"import": time.perf_counter() - began, "rest": 0.0}

    def timed(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            result = function(*arguments, **options)
            seconds[phase] = time.perf_counter() - start
            return result

        return call

    # The two long steps inside `from_embeddings`, timed where it finds them.
    problem.nearest_neighbors = timed("neighbours", problem.nearest_neighbors)
    problem.kernel_density = timed("density", problem.kernel_density)
    x, q = np.load(candidates, mmap_mode="r", allow_pickle=False), np.load(queries, allow_pickle=False)
    found = timed("problem", Problem.from_embeddings)(x, q, neighbors=neighbors, bandwidth=0.75)
    plan = timed("probabilities", tsds)(found)
    timed("draw", sample)(plan.probabilities(), budget, key=jax.random.key(0), replace=True)
    seconds["rest"] = seconds.pop("problem") - seconds["neighbours"] - seconds["density"]
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"seconds": seconds, "peak_bytes": peak, "shortlist": found.info["shortlist"]}))


def whole_process(*command: str) -> dict[str, Any]:
    """Run a Python command to its end: what it printed as JSON, and the seconds that the whole process took."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OPENBLAS_")}
    environment["PYTHONPATH"] = str(HERE)
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *command], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    whole = time.perf_counter() - start
    return {**json.loads(done.stdout.splitlines()[-1]), "whole": whole}


def run_ours(settings: Settings, n: int, k: int) -> dict[str, Any]:
    """The fastest of some runs of ours."""
    x, q = str(clustered(n, settings.dimensions)), str(clustered(settings.queries, settings.dimensions, seed=1))
    call = f"import tsds; tsds.ours_whole({x!r}, {q!r}, {k}, 10_000)"
    return min((whole_process("-c", call) for _ in range(settings.rounds)), key=lambda run: run["whole"])


def phases(run: dict[str, Any]) -> str:
    return ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in run["seconds"].items())


def time_whole(settings: Settings) -> None:
    """Print the table of whole processes; with a peer, K is at most N / 10, which is its rule."""
    flops = gemm_flops()
    compared = settings.what == "whole" and settings.peer
    table = []
    for n in settings.sizes or (
        (20_000, 100_000) if settings.what == "whole" else (20_000, 100_000, 500_000, 1_000_000)
    ):
        k = min(settings.neighbors, n // 10 if settings.what == "whole" else n)
        ours = run_ours(settings, n, k)
        floor = 2 * settings.queries * n * settings.dimensions / flops
        row = [f"{n:,}", f"{k:,}", "ours", f"{ours['whole']:.1f}", f"{floor / ours['whole']:.0%}"]
        table.append([*row, f"{ours['peak_bytes'] / 1e9:.2f}", phases(ours)])
        if compared:
            x, q = clustered(n, settings.dimensions), clustered(settings.queries, settings.dimensions, seed=1)
            peer = whole_process(str(HERE / "reference.py"), "--candidates", str(x), "--queries", str(q))
            row = ["", f"{k:,}", "published", f"{peer['whole']:.1f}", ""]
            table.append([*row, f"{peer['peak_bytes'] / 1e9:.2f}", phases(peer)])
            ratios = [f"{peer['whole'] / ours['whole']:.1f}", "", f"{peer['peak_bytes'] / ours['peak_bytes']:.1f}"]
            table.append(["", "", "ratio", *ratios, ""])
    title = f"M = {settings.queries:,}, D = {settings.dimensions}, GEMM {flops / 1e9:.0f} GFLOP/s"
    print_table(title, ["N", "K", "", "seconds", "of limit", "peak GB", "seconds by phase"], table)


if __name__ == "__main__":
    import tyro

    chosen = tyro.cli(Settings, description=__doc__)
    (time_closed_form if chosen.what == "probabilities" else time_whole)(chosen)
