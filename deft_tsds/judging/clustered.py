"""Means of judgments that come in clusters: several raters on one item are not several items.

The bootstrap draws whole clusters. Its interval is Hesterberg's expanded percentile interval: the plain one is too
narrow for few clusters, because it takes their variance for (G - 1)/G of what it is and its tails for normal ones
(Hesterberg, "What teachers should know about the bootstrap", The American Statistician 69, 2015).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from deft_tsds.metrics import Interval


def cluster_weights(clusters_N: ArrayLike, *, resamples: int, seed: int) -> np.ndarray:
    """How often each row is drawn where whole clusters are drawn with replacement, float64 [resamples, N]."""
    names, place_N = np.unique(np.asarray(clusters_N), return_inverse=True)
    chances = np.full(len(names), 1 / len(names))
    drawn_RxG = np.random.default_rng(seed).multinomial(len(names), chances, size=resamples)
    return drawn_RxG[:, place_N].astype(np.float64)


def clustered_mean(
    values_N: ArrayLike,
    clusters_N: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int,
) -> Interval:
    """The mean of values in [0, 1] with an interval over clusters.

    Where all clusters agree on a value v the bootstrap knows of nothing else, and the interval is [v c, 1 - (1 - v) c]
    with c the smallest share of such clusters that the exact binomial interval allows.

    Args:
        values_N: each in [0, 1].
        clusters_N: the cluster of each.
        level: coverage, in (0, 1).
        resamples: of the bootstrap.
        seed: of its numpy Generator.

    Raises:
        ValueError: no values, values outside [0, 1], or a level outside (0, 1).
    """
    values_N, clusters_N = np.asarray(values_N, np.float64), np.asarray(clusters_N)
    if values_N.ndim != 1 or values_N.shape != clusters_N.shape or not len(values_N):
        raise ValueError(
            f"values {values_N.shape} and clusters {clusters_N.shape}: give one cluster for each of 1 value or more."
        )
    if not ((values_N >= 0) & (values_N <= 1)).all():
        raise ValueError("values lie outside [0, 1]: give shares, such as 0 for no and 1 for yes.")
    _, place_N, sizes_G = np.unique(clusters_N, return_inverse=True, return_counts=True)
    value, means_G = float(values_N.mean()), np.bincount(place_N, values_N) / sizes_G
    if np.ptp(means_G) < 1e-12:
        share = unanimous(len(sizes_G), level)
        return Interval(value, value * share, 1 - (1 - value) * share)
    weights_RxN = cluster_weights(clusters_N, resamples=resamples, seed=seed)
    return Interval(value, *ends(weights_RxN @ values_N / weights_RxN.sum(1), clusters=len(sizes_G), level=level))


def ends(draws_R: np.ndarray, *, clusters: int, level: float) -> tuple[float, float]:
    """The expanded percentile interval of bootstrap draws over two clusters or more; draws that are nan are left out.

    Raises:
        ValueError: a level outside (0, 1).
    """
    from scipy import stats

    _check(level)
    reach = np.sqrt(clusters / (clusters - 1)) * stats.t.ppf((1 + level) / 2, clusters - 1)
    tail = float(stats.norm.sf(reach))
    low, high = np.nanquantile(draws_R, [tail, 1 - tail])
    return float(low), float(high)


def unanimous(count: int, level: float) -> float:
    """The smallest probability of an outcome that the exact binomial interval allows after `count` of `count`."""
    _check(level)
    return float(((1 - level) / 2) ** (1 / count))


def _check(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: give a coverage between 0 and 1, such as 0.95.")
