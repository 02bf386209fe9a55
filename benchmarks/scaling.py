"""Neighbours and k-means on meshes of 1, 2, 4 and 8 devices of one host: strong and weak scaling.

    python benchmarks/scaling.py                                   # N = 100k, D = 384
    python benchmarks/scaling.py --rows 400000 --clusters 7 100

The devices are the CPU's, by `jax_num_cpu_devices`: all share the cores of the host, so that more of them cannot be
faster. What is judged is what a mesh costs: the time of P devices over that of one device of the same program for the
same work. "Strong" keeps N for all P; "weak" keeps N / P, that is the largest mesh has N rows and one of P devices its
share of them. "host" is the way of a process with one CPU device, which needs no mesh.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from measure import clustered, compare, print_table


@dataclass(frozen=True)
class Settings:
    """Which cases to time."""

    rows: int = 100_000
    """N, the number of candidates or points on the largest mesh."""
    devices: tuple[int, ...] = (1, 2, 4, 8)
    """Sizes of the mesh; one device is what the others are compared with."""
    ks: tuple[int, ...] = (10, 5000)
    """K, numbers of neighbours."""
    clusters: tuple[int, ...] = (7, 100)
    """K, numbers of clusters."""
    queries: int = 1000
    """M, the number of queries."""
    dimensions: int = 384
    """D."""
    iterations: int = 10
    """Lloyd's iterations, the same number in all."""
    rounds: int = 3
    """How often each contender gets a process of its own."""


def _mesh(devices: int) -> Any:
    import jax

    jax.config.update("jax_num_cpu_devices", max(1, devices))
    if not devices:
        return None
    from deft_tsds.geometry.mesh import candidates_mesh

    return candidates_mesh()


def neighbors(devices: int, candidates: str, queries: str, k: int) -> Callable[[], Any]:
    """`dt.nearest_neighbors` on a memory-map."""
    mesh = _mesh(devices)
    from deft_tsds import nearest_neighbors

    x, q = np.load(candidates, mmap_mode="r", allow_pickle=False), np.load(queries, allow_pickle=False)
    np.asarray(x[::64]).sum()  # the file into the page cache, as far as it is not there
    return lambda: nearest_neighbors(q, x, k, mesh=mesh)


def clusters(devices: int, candidates: str, k: int, iterations: int) -> Callable[[], Any]:
    """`dt.kmeans`, so many iterations from k-means++ seeds."""
    mesh = _mesh(devices)
    import jax

    from deft_tsds import kmeans

    x = np.load(candidates, mmap_mode="r", allow_pickle=False)
    np.asarray(x[::64]).sum()
    return lambda: kmeans(x, k, key=jax.random.key(0), mesh=mesh, tolerance=0, max_iterations=iterations)


def __getattr__(name: str) -> Callable:
    """`neighbors_on_8` and the like: what `measure` calls by its name; 0 devices for the way of the host."""
    work, on, devices = name.rpartition("_on_")
    if not on:
        raise AttributeError(name)
    return partial({"neighbors": neighbors, "clusters": clusters}[work], int(devices))


def main(settings: Settings) -> None:
    """Time all cases and print the table."""
    d, most = settings.dimensions, max(settings.devices)
    works: list[tuple[str, str, dict[str, Any]]]
    works = [("neighbors", f"neighbours, K = {k:,}", {"k": k}) for k in settings.ks]
    works += [
        ("clusters", f"k-means, K = {k:,}", {"k": k, "iterations": settings.iterations}) for k in settings.clusters
    ]
    table, worst = [], 0.0
    for work, title, case in works:
        if work == "neighbors":
            case["queries"] = str(clustered(settings.queries, d, seed=1))
        strong = _times(work, settings.devices, case | {"candidates": str(clustered(settings.rows, d))}, settings)
        for devices in settings.devices:
            n = settings.rows * devices // most
            # The largest mesh has all rows in both: no need to time it twice.
            pair = {1, devices}
            weak = strong
            if devices != most:
                weak = _times(work, sorted(pair), case | {"candidates": str(clustered(n, d))}, settings)
            over = [times[devices] / times[1] - 1 for times in (strong, weak)]
            worst = max(worst, *over)
            row = [title, str(devices), f"{strong[devices]:.2f}", f"{over[0]:+.0%}", f"{strong[0]:.2f}"]
            table.append([*row, f"{n:,}", f"{weak[devices]:.2f}", f"{over[1]:+.0%}"])
    columns = ["work", "devices", "strong s", "over one", "host s", "weak N", "weak s", "over one"]
    print_table(f"N = {settings.rows:,}, M = {settings.queries:,}, D = {d}", columns, table)
    print(f"Largest overhead over one device for the same work: {worst:.0%}.")


def _times(work: str, sizes: Any, case: dict[str, Any], settings: Settings) -> dict[int, float]:
    """Seconds by the number of devices; 0 is the way of the host."""
    contenders = {str(size): f"scaling:{work}_on_{size}" for size in (0, *sizes)}
    return {int(name): timing.seconds for name, timing in compare(contenders, case, rounds=settings.rounds).items()}


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Settings, description=__doc__))
