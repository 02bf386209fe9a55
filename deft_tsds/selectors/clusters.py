"""Clusters of directions: k-means on rows of unit length, with a number of clusters that is given or chosen."""

from __future__ import annotations

from typing import Any, Literal, cast

import jax
import numpy as np
from threadpoolctl import threadpool_limits

from deft_tsds.arrays import Rows, check_count, normalize_rows, row_blocks
from deft_tsds.geometry.kmeans import KMeans, kmeans
from deft_tsds.geometry.mesh import by_own_rows, mesh_of, processes
from deft_tsds.runs import track
from deft_tsds.sampling import generator_of

Clusters = int | Literal["silhouette", "auto"]

PAPER_CLUSTERS = 7
"""K of the paper's experiments, for data that have no number of their own."""

_SAMPLE_ROWS = 2000
_HALVED_ROWS = 1000  # their halves are clustered 66 times for K = 2 to 12
_HALVINGS = 3
_STABLE = 0.8  # "good" recovery of clusters by the adjusted Rand index (Steinley 2004)


def check_clusters(clusters: Any, most_clusters: Any) -> None:
    """ValueError unless `clusters` is a number, "silhouette" or "auto", and `most_clusters` a number from 2 on."""
    if isinstance(clusters, str):
        if clusters not in ("silhouette", "auto"):
            raise ValueError(f"clusters is {clusters!r}: give a number, or 'silhouette' or 'auto' to have it chosen.")
    else:
        check_count(clusters, "clusters", 1)
    check_count(most_clusters, "most_clusters", 2)


def largest_k(clusters: Clusters, most_clusters: int) -> int:
    """The most clusters that `cluster_rows` can make."""
    return most_clusters if isinstance(clusters, str) else clusters


def cluster_rows(
    unit_NxD: np.ndarray, clusters: Clusters, *, most_clusters: int, key: jax.Array
) -> tuple[KMeans, dict[str, Any]]:
    """Cluster rows of unit length, and say what was done, in plain JSON.

    Args:
        unit_NxD: float32 rows of length 1 (or 0).
        clusters: K, at most N is used; "silhouette" and "auto" choose it between 2 and `most_clusters`.
        most_clusters: the largest K that is tried.
        key: `jax.random.key(seed)`.
    """
    info: dict[str, Any] = {}
    if isinstance(clusters, str):
        key_choice, key = jax.random.split(key)
        clusters, info = number_of_clusters(unit_NxD, clusters, most_clusters=most_clusters, key=key_choice)
    clustering = kmeans(unit_NxD, min(clusters, len(unit_NxD)), key=key)
    info |= {
        "clusters": len(clustering.centroids_KxD),
        "inertia": float(f"{clustering.inertia:.6g}"),  # the digits that are the same on any mesh
        "iterations": clustering.iterations,
        "converged": clustering.converged,
    }
    return clustering, info


def number_of_clusters(
    unit_NxD: np.ndarray, clusters: Clusters, *, most_clusters: int, key: jax.Array
) -> tuple[int, dict[str, Any]]:
    """K as a number, and how it was found: under "silhouette" the scores, or under "auto" the decision."""
    if clusters == "silhouette":
        best, scores = choose_clusters(unit_NxD, most_clusters, key=key)
        return best, {"silhouette": scores}
    if clusters == "auto":
        best, decision = stable_clusters(unit_NxD, most_clusters, key=key)
        return best, {"auto": {"clusters": decision}}
    return clusters, {}


def choose_clusters(unit_NxD: np.ndarray, most_clusters: int, *, key: jax.Array) -> tuple[int, list[dict[str, Any]]]:
    """The K from 2 to `most_clusters` whose k-means clustering of a sample has the highest mean silhouette.

    The sample is at most 2,000 rows, drawn uniformly; ties go to the smaller K. Rows that are all alike, or fewer than
    three, have no silhouette: they are one cluster. The sample is clustered by scikit-learn, since our own k-means
    compiles a program for each K, which takes longer than to cluster 2,000 rows.

    Returns:
        K, and the mean silhouette of each K that was tried.

    References:
        Rousseeuw, "Silhouettes: a graphical aid to the interpretation and validation of cluster analysis", 1987.
    """
    from sklearn.cluster import KMeans as Lloyd  # here, because they take a second to import
    from sklearn.metrics import silhouette_score

    generator = generator_of(key)
    n = min(len(unit_NxD), _SAMPLE_ROWS)
    sample_nxD = unit_NxD[np.sort(generator.choice(len(unit_NxD), n, replace=False))]
    distinct = len(np.unique(sample_nxD, axis=0))
    scores = []
    for k in track(range(2, min(most_clusters, n - 1, distinct) + 1), "choosing the number of clusters"):
        labels_n = Lloyd(k, random_state=int(generator.integers(2**31))).fit_predict(sample_nxD)
        scores.append({"clusters": k, "score": float(silhouette_score(sample_nxD, labels_n))})
    best = max(scores, key=lambda item: item["score"], default={"clusters": 1})
    return best["clusters"], scores


@threadpool_limits.wrap(limits=1)  # the sample is small: threads would wait for one another
def stable_clusters(unit_NxD: np.ndarray, most_clusters: int, *, key: jax.Array) -> tuple[int, dict[str, Any]]:
    """The K of the highest silhouette among those whose clusters come again in another half of the data.

    For each K from 2 to `most_clusters`, both halves of a sample (`even_sample`) are clustered, all of the sample is
    given to the clusters of either, and the two are compared by the adjusted Rand index; its mean over three halvings
    is the stability of K. A K of 0.8 or more is stable. Stability alone would not do: two halves of one long cloud are
    stable as well, and so is a K that puts true clusters together. Where no K is stable the data do not decide, and K
    is the paper's 7. Exact copies count once, for they would come again in every half; near-copies do not, and raise
    the stability of a large K.

    Args:
        unit_NxD: float32 rows of unit length (or 0).
        most_clusters: the largest K that is tried.
        key: decides the halvings and the starts, not the sample.

    Returns:
        K, and the decision: `value`, `paper`, `why`, and under `tried` for each K its `stability` and `silhouette`.

    References:
        Lange, Roth, Braun, Buhmann, "Stability-based validation of clustering solutions", 2004; Steinley, "Properties
        of the Hubert-Arabie adjusted Rand index", 2004.
    """
    from sklearn.metrics import adjusted_rand_score, silhouette_score

    generator = generator_of(key)
    sample_nxD = even_sample(unit_NxD, _HALVED_ROWS)
    sample_nxD = sample_nxD[np.sort(np.unique(sample_nxD, axis=0, return_index=True)[1])]
    n = len(sample_nxD)
    if n < 4:  # no half has two rows that differ
        why = f"1 cluster: there are {n} distinct rows in the sample."
        return 1, {"value": 1, "paper": PAPER_CLUSTERS, "why": why, "tried": []}
    halvings = [np.split(generator.permutation(n), [n // 2]) for _ in range(_HALVINGS)]
    tried = []
    for k in track(range(2, min(most_clusters, n // 2) + 1), "choosing the number of clusters"):

        def labels_n(rows: np.ndarray, k: int = k) -> np.ndarray:
            return cluster_sample(sample_nxD[rows], k, generator, starts=2).predict(sample_nxD)

        agreement = [adjusted_rand_score(*map(labels_n, halves)) for halves in halvings]
        score = float(silhouette_score(sample_nxD, labels_n(np.arange(n))))
        tried.append({"clusters": k, "stability": float(np.mean(agreement)), "silhouette": score})
    span = f"of K = 2 to {tried[-1]['clusters']}"
    stable = [item for item in tried if item["stability"] >= _STABLE]
    if stable:
        best = max(stable, key=lambda item: item["silhouette"])
        value = best["clusters"]
        again = ", ".join(str(item["clusters"]) for item in stable)
        why = (
            f"{value} clusters: {span}, those that come again in another half of the data (adjusted Rand index of "
            f"{_STABLE:g} or more) are {again}, and of these {value} has the highest silhouette, "
            f"{best['silhouette']:.2f} (index {best['stability']:.2f})."
        )
    else:
        most = max(tried, key=lambda item: item["stability"])
        value = min(PAPER_CLUSTERS, most_clusters)
        why = (
            f"{value} clusters, as in the paper: {span} none comes again in another half of the data (the best is "
            f"{most['clusters']}, with an adjusted Rand index of {most['stability']:.2f}, below {_STABLE:g}), so that "
            "the data do not decide."
        )
    return value, {"value": value, "paper": PAPER_CLUSTERS, "why": why, "tried": tried}


def cluster_sample(sample_nxD: np.ndarray, k: int, generator: np.random.Generator, *, starts: int = 1) -> Any:
    """scikit-learn's k-means of a sample, which compiles nothing."""
    from sklearn.cluster import KMeans as Lloyd

    return Lloyd(k, n_init=cast(Any, starts), random_state=int(generator.integers(2**31))).fit(sample_nxD)


def even_sample(unit_NxD: np.ndarray, most: int = _SAMPLE_ROWS) -> np.ndarray:
    """At most so many of the rows, evenly by their distance to the mean: neither chance nor the order of the rows
    enters."""
    order = np.lexsort((unit_NxD[:, 0], distance_to_mean(unit_NxD)))
    return unit_NxD[order[:: -(-len(order) // most)]]


def distance_to_mean(unit_NxD: np.ndarray) -> np.ndarray:
    """float64 [N], the distance of each row to the mean of all."""
    mean_D, distance_N = unit_NxD.mean(axis=0, dtype=np.float64), np.empty(len(unit_NxD))
    for rows in row_blocks(len(unit_NxD), row_bytes=16 * unit_NxD.shape[1]):
        distance_N[rows] = np.linalg.norm(unit_NxD[rows] - mean_D, axis=1)
    return distance_N


def cosine_distances(unit_NxD: np.ndarray, centroids_KxD: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """float64 [N], 1 - cos(x_i, c_label(i)) for rows of unit length; 1 where the centroid or the row is zero."""
    norms_K = np.linalg.norm(centroids_KxD.astype(np.float64), axis=1)
    directions_KxD = centroids_KxD / np.where(norms_K > 0, norms_K, 1)[:, None]

    def distances(mine: slice) -> np.ndarray:
        distance_R = np.empty(mine.stop - mine.start)
        for block in row_blocks(len(distance_R), row_bytes=16 * unit_NxD.shape[1]):
            rows = slice(mine.start + block.start, mine.start + block.stop)
            own_BxD = directions_KxD[labels_N[rows]]
            distance_R[block] = 1 - np.einsum("nd,nd->n", unit_NxD[rows], own_BxD, dtype=np.float64)
        return distance_R

    return by_own_rows(distances, len(unit_NxD))


def unit_rows(matrix_NxD: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Some rows of a matrix at length 1; on several hosts each when it is asked for, so that none reads all."""
    unit = _UnitRows(matrix_NxD, rows)
    return unit[:] if processes(mesh_of(None)).size == 1 else cast(np.ndarray, unit)


class _UnitRows(Rows):
    def __init__(self, matrix_NxD: np.ndarray, rows_R: np.ndarray):
        self._matrix_NxD, self._rows_R = matrix_NxD, rows_R

    @property
    def shape(self) -> tuple[int, int]:
        return len(self._rows_R), self._matrix_NxD.shape[1]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return normalize_rows(self._matrix_NxD[self._rows_R[rows]])
