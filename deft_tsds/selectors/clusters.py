"""Clusters of directions: k-means on rows of unit length, with a number of clusters that is given or chosen."""

from __future__ import annotations

from typing import Any, Literal

import jax
import numpy as np

from deft_tsds.arrays import check_count, row_blocks
from deft_tsds.geometry.kmeans import KMeans, kmeans
from deft_tsds.runs import track
from deft_tsds.sampling import generator_of

Clusters = int | Literal["silhouette"]

_SILHOUETTE_ROWS = 2000


def check_clusters(clusters: Any, most_clusters: Any) -> None:
    """ValueError unless `clusters` is a number or "silhouette", and `most_clusters` a number from 2 on."""
    if isinstance(clusters, str):
        if clusters != "silhouette":
            raise ValueError(f"clusters is {clusters!r}: give a number, or 'silhouette' to have it chosen.")
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
        clusters: K, at most N is used; "silhouette" chooses it between 2 and `most_clusters`.
        most_clusters: the largest K that is tried.
        key: `jax.random.key(seed)`.
    """
    info: dict[str, Any] = {}
    if isinstance(clusters, str):
        key_choice, key = jax.random.split(key)
        clusters, scores = choose_clusters(unit_NxD, most_clusters, key=key_choice)
        info["silhouette"] = scores
    clustering = kmeans(unit_NxD, min(clusters, len(unit_NxD)), key=key)
    info |= {
        "clusters": len(clustering.centroids_KxD),
        "inertia": clustering.inertia,
        "iterations": clustering.iterations,
        "converged": clustering.converged,
    }
    return clustering, info


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
    n = min(len(unit_NxD), _SILHOUETTE_ROWS)
    sample_nxD = unit_NxD[np.sort(generator.choice(len(unit_NxD), n, replace=False))]
    distinct = len(np.unique(sample_nxD, axis=0))
    scores = []
    for k in track(range(2, min(most_clusters, n - 1, distinct) + 1), "choosing the number of clusters"):
        labels_n = Lloyd(k, random_state=int(generator.integers(2**31))).fit_predict(sample_nxD)
        scores.append({"clusters": k, "score": float(silhouette_score(sample_nxD, labels_n))})
    best = max(scores, key=lambda item: item["score"], default={"clusters": 1})
    return best["clusters"], scores


def cosine_distances(unit_NxD: np.ndarray, centroids_KxD: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """float64 [N], 1 - cos(x_i, c_label(i)) for rows of unit length; 1 where the centroid or the row is zero."""
    norms_K = np.linalg.norm(centroids_KxD.astype(np.float64), axis=1)
    directions_KxD = centroids_KxD / np.where(norms_K > 0, norms_K, 1)[:, None]
    distance_N = np.empty(len(unit_NxD))
    for rows in row_blocks(len(unit_NxD), row_bytes=16 * unit_NxD.shape[1]):
        distance_N[rows] = 1 - np.einsum("nd,nd->n", unit_NxD[rows], directions_KxD[labels_N[rows]], dtype=np.float64)
    return distance_N
