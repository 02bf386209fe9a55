"""Which target examples are badly served: how far the nearest chosen example is, and how near the pool could offer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deft_tsds.geometry.neighbors import nearest_neighbors
from deft_tsds.report.view import RunView

_SHOWN = 12
_LEAST_LOSS = 5e-4  # what three decimals do not show is no loss


@dataclass(frozen=True)
class BadlyServed:
    """A query whose nearest chosen example is farther than what the pool could offer."""

    query: int
    distance: float
    """To the nearest chosen example, `row`."""
    row: int
    offered: float
    """To the nearest example of the pool, `offered_row`."""
    offered_row: int
    random: float | None
    """To the nearest example of the random arm; None without one."""


@dataclass(frozen=True)
class ArmCoverage:
    """How near an arm's first selection comes to the queries. Distances are one minus the cosine."""

    label: str
    number: int
    """Of the arm in the run."""
    distances_M: np.ndarray
    """Of each query to its nearest chosen example."""
    mean: float
    worst: float
    best: float
    """Share of the queries that have nothing nearer in the pool than what was chosen."""
    behind_random: float | None
    """Share of the queries that the random arm comes nearer to; None without one, and for that arm itself."""
    badly: tuple[BadlyServed, ...]
    """The queries that lose the most against the pool, worst first; none that loses nothing."""


@dataclass(frozen=True)
class Coverage:
    """The pool's own offer, and the arms."""

    offered_M: np.ndarray
    """The distance of each query to its nearest example of the pool."""
    arms: tuple[ArmCoverage, ...]
    """Without those that take the whole pool: nothing could be nearer."""


def coverage(view: RunView) -> Coverage | None:
    """Measure the coverage of the queries by each arm's first selection; None without embeddings of both."""
    if view.embeddings_NxD is None or view.query_embeddings_MxD is None or view.queries is None:
        return None
    pool_NxD, queries_MxD = view.embeddings_NxD, view.query_embeddings_MxD
    offered = nearest_neighbors(queries_MxD, pool_NxD, 1, metric="cosine")
    offered_M, offered_row_M = offered.distances_MxK[:, 0], offered.indices_MxK[:, 0]
    nearest = {}
    for arm in view.arms:
        if not arm.is_whole(len(view.pool)):
            rows = np.unique(arm.first.indices)
            found = nearest_neighbors(queries_MxD, pool_NxD[rows], 1, metric="cosine")
            nearest[arm.name] = found.distances_MxK[:, 0], rows[found.indices_MxK[:, 0]]
    drawn = next((arm.name for arm in view.arms if arm.selector == "Random" and arm.name in nearest), None)
    random_M = nearest[drawn][0] if drawn is not None else None
    arms = []
    for number, arm in enumerate(view.arms):
        if arm.name not in nearest:
            continue
        distance_M, row_M = nearest[arm.name]
        lost_M = distance_M - offered_M
        badly = []
        for query in np.lexsort((-distance_M, -lost_M))[:_SHOWN].tolist():
            if lost_M[query] >= _LEAST_LOSS:
                badly.append(
                    BadlyServed(
                        query=query,
                        distance=float(distance_M[query]),
                        row=int(row_M[query]),
                        offered=float(offered_M[query]),
                        offered_row=int(offered_row_M[query]),
                        random=None if random_M is None else float(random_M[query]),
                    )
                )
        behind = None
        if random_M is not None and arm.name != drawn:
            behind = float((distance_M - random_M >= _LEAST_LOSS).mean())
        arms.append(
            ArmCoverage(
                label=arm.label,
                number=number,
                distances_M=distance_M,
                mean=float(distance_M.mean()),
                worst=float(distance_M.max()),
                best=float((lost_M < _LEAST_LOSS).mean()),
                behind_random=behind,
                badly=tuple(badly),
            )
        )
    return Coverage(offered_M, tuple(arms))
