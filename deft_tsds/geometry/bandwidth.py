"""A proposal for the bandwidth h of the kernel density, from the near-duplicates that the points themselves show.

**The rule.** h should lie above the distance of near-duplicates, so that they count as one, and below that of ordinary
neighbours, so that these do not. So take up to 2,000 of the points as probes, and of each the distance to the nearest
other point that is no exact copy (exact copies count as one whatever h is). Sorted, r_1 <= r_2 <= ... <= r_P, these
distances have a *valley* between a = r_i and b = r_(i+g) when b >= 3 a, where

- at least P/50 of them (and 4) lie at or below a: near-duplicates, not a few close calls;
- at least P/10 lie at or above b: ordinary neighbours, not a few outliers;
- g = P/100, and 1 at the least: stragglers may lie in the valley.

The widest valley (the largest b/a) wins and h = sqrt(a b).

Where nearly every point has a copy, none of these distances is ordinary. So where they have no valley, the distances to
the 2nd, 4th, ... 64th other point are set beside them, one after another, until one shows a valley of b >= 10 a: up to
64 copies of each point are told from the points beyond them. (Tight clusters look the same, hence the wider valley.)

Without any valley the points have no duplicate structure that distances alone could show: then h is the 5% quantile of
the r, so that only the closest pairs count as near.

The rule moves with the data: points times c give h times c. The probes are chosen by their rank in an order that the
caller gives, every ceil(U/2000)-th of them, so that no chance enters and the order of the points does not matter.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from deft_tsds.geometry.neighbors import nearest_neighbors

_PROBES = 2000
_NEIGHBORS = 128  # so many exact copies may hide the nearest other point
_FARTHER = (2, 4, 8, 16, 32, 64)
_RATIO, _RATIO_FARTHER = 3.0, 10.0
_QUANTILE = 0.05


def propose_bandwidth(points_UxD: np.ndarray, rank_by_U: np.ndarray) -> tuple[float, dict[str, Any]]:
    """Propose h for checked float32 points.

    Args:
        points_UxD: the points whose density is wanted.
        rank_by_U: what to order the points by before every ceil(U/2000)-th becomes a probe; their distance to the
            queries, say.

    Returns:
        h, and what was seen:
            rule: "valley" or "quantile";
            probes: P, the number of points looked at;
            exact_copies: the share of probes with an exact copy among the points;
            near_copies: the share of probes with another point within h that is no exact copy;
            valley: [a, b], or None;
            message: one sentence for people.

    Raises:
        ValueError: no probe has a neighbour that is not an exact copy of it.
    """
    u = len(points_UxD)
    order = np.lexsort((points_UxD[:, 0], rank_by_U))  # a tie in rank is not left to the order of the points
    probes = np.sort(order[:: -(-u // _PROBES)])
    distances = nearest_neighbors(points_UxD[probes], points_UxD, min(_NEIGHBORS, u)).distances_MxK.astype(np.float64)
    apart = distances > 0
    seen = apart.any(axis=1)
    if not seen.any():
        raise ValueError(
            f'bandwidth="auto" found nothing but exact copies among the {distances.shape[1]} nearest points of each '
            "probe: give bandwidth as a number."
        )
    first = np.argmax(apart, axis=1)[seen]
    r = np.sort(distances[seen, first])
    valley = _widest_valley(r, _RATIO)
    for j in _FARTHER:
        inside = first + j - 1 < distances.shape[1]
        if valley is not None or not inside.any():
            break
        farther = distances[seen][inside, first[inside] + j - 1]
        valley = _widest_valley(np.sort(np.concatenate([r, farther])), _RATIO_FARTHER)
    h = math.sqrt(valley[0]) * math.sqrt(valley[1]) if valley else float(np.quantile(r, _QUANTILE, method="higher"))
    exact = float(np.mean(np.count_nonzero(~apart, axis=1) > 1))
    near = float(np.count_nonzero(r < h) / len(probes))
    found: dict[str, Any] = {
        "rule": "valley" if valley else "quantile",
        "probes": len(probes),
        "exact_copies": exact,
        "near_copies": near,
        "valley": list(valley) if valley else None,
    }
    seen_of = f"Of {len(probes)} points looked at, {exact:.1%} have an exact copy"
    if valley:
        found["message"] = (
            f"{seen_of} and {near:.1%} a near-copy, at most {valley[0]:.4g} away; ordinary neighbours are at least "
            f"{valley[1]:.4g} away: bandwidth {h:.4g} lies between."
        )
    else:
        found["message"] = (
            f"{seen_of}; near-copies do not stand out from ordinary neighbours: bandwidth {h:.4g} is the distance "
            f"within which {_QUANTILE:.0%} of them have a neighbour."
        )
    return h, found


def _widest_valley(r: np.ndarray, ratio: float) -> tuple[float, float] | None:
    """The widest valley (a, b) of sorted distances above 0, if there is one."""
    below, above, gap = max(4, -(-len(r) // 50)), -(-len(r) // 10), max(1, len(r) // 100)
    first, last = below - 1, len(r) - above - gap  # places of a
    if first > last:
        return None
    a, b = r[first : last + 1], r[first + gap : last + gap + 1]
    widest = int(np.argmax(b / a))
    return (float(a[widest]), float(b[widest])) if b[widest] >= ratio * a[widest] else None
