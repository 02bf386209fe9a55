"""What a representation sees, before anything is chosen by it: the papers' experiment on the choice of an encoder.

Everything is measured on rows of unit length, with cosines: that is what the selectors' defaults look at. Labels (task,
domain) are used to judge alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from deft_tsds.arrays import as_matrix, check_count, normalize_rows
from deft_tsds.geometry.kmeans import kmeans
from deft_tsds.geometry.neighbors import nearest_neighbors

COSINES = (0.9, 0.95, 0.99)
"""Cosines at which near-duplicates are counted."""
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Duplicates:
    """Rows that lie as near to another row as a cosine says; groups are connected by such pairs."""

    cosine: float
    share: float
    """Share of the rows that are in a group, alone in none."""
    groups: int
    """Groups of two rows and more."""
    largest: int
    """Rows of the largest group; 1 where there is none."""


@dataclass(frozen=True)
class Inspection:
    """What was found in the embeddings of N rows with L labels. Lists have an entry a seed of k-means."""

    rows: int
    dimension: int
    labels: int
    purity: list[float]
    """Share of rows with the commonest label of their cluster; L clusters, spherical k-means. At least the share of
    the commonest label."""
    nmi: list[float]
    """Mutual information of clusters and labels over the mean of their entropies: 0 independent, 1 the same."""
    silhouette: float
    """Mean over rows of (b - a) / max(a, b): a the mean cosine distance to its own label, b to the nearest other one.
    Rousseeuw 1987. Below 0 where rows lie nearer to another label than to their own."""
    neighbor_agreement: float
    """Share of rows whose nearest other row has the same label."""
    anisotropy: float
    """Mean cosine of two different rows (Ethayarajh, arXiv 1909.00512): 0 where directions are spread evenly, near 1
    where all rows lie in a narrow cone."""
    spread: float
    """Participation ratio of the variances l along the principal axes, (sum l)^2 / sum l^2: as many equal directions
    would hold the same variance."""
    repeated: float
    """Share of rows that equal an earlier row in every bit."""
    duplicates: list[Duplicates]
    """Near-duplicates at each of `COSINES`."""


def inspect(embeddings, labels: Sequence[str], *, key: jax.Array, seeds: int = 5) -> Inspection:
    """Measure one representation.

    Args:
        embeddings: [N, D] finite; rows of zeros keep a cosine of 0 to all others.
        labels: N labels, at least two different ones and fewer than rows.
        key: for the starts of k-means.
        seeds: how often to cluster.

    Returns:
        An `Inspection`.

    Raises:
        ValueError: bad embeddings, labels of another number, too few or too many different labels, seeds < 1.
    """
    from sklearn.metrics import normalized_mutual_info_score, silhouette_score

    matrix_NxD = as_matrix(embeddings, "embeddings")
    if len(labels) != len(matrix_NxD):
        raise ValueError(f"labels has {len(labels)} entries for {len(matrix_NxD)} rows: give one a row.")
    names, label_N = np.unique(np.asarray(labels), return_inverse=True)
    if not 2 <= len(names) < len(label_N):
        raise ValueError(f"labels has {len(names)} different ones for {len(label_N)} rows: give from 2 to N - 1.")
    check_count(seeds, "seeds", 1)

    unit_NxD = normalize_rows(np.asarray(matrix_NxD[:]))
    clusters = [
        kmeans(unit_NxD, len(names), key=jax.random.fold_in(key, seed), spherical=True).labels_N
        for seed in range(seeds)
    ]
    cosine_N, other_N = _nearest_other(unit_NxD)
    return Inspection(
        rows=len(unit_NxD),
        dimension=unit_NxD.shape[1],
        labels=len(names),
        purity=[purity(label_N, cluster_N) for cluster_N in clusters],
        nmi=[float(normalized_mutual_info_score(label_N, cluster_N)) for cluster_N in clusters],
        silhouette=float(silhouette_score(unit_NxD, label_N, metric="cosine")),
        neighbor_agreement=float(np.mean(label_N[other_N] == label_N)),
        anisotropy=anisotropy(unit_NxD),
        spread=participation_ratio(unit_NxD),
        repeated=1 - len(np.unique(unit_NxD, axis=0)) / len(unit_NxD),
        duplicates=[_duplicates(unit_NxD, cosine_N, cosine) for cosine in COSINES],
    )


def purity(label_N: np.ndarray, cluster_N: np.ndarray) -> float:
    """Share of rows that have the commonest label of their cluster; labels and clusters are numbers from 0."""
    counts = np.zeros((cluster_N.max() + 1, label_N.max() + 1), np.int64)
    np.add.at(counts, (cluster_N, label_N), 1)
    return float(counts.max(axis=1).sum() / len(label_N))


def anisotropy(unit_NxD: np.ndarray) -> float:
    """Mean inner product of two different rows, from the length of their sum: (|sum x|^2 - sum |x|^2) / (N (N - 1))."""
    rows = len(unit_NxD)
    total_D = unit_NxD.sum(axis=0, dtype=np.float64)
    own = np.einsum("nd,nd->", unit_NxD, unit_NxD, dtype=np.float64)
    return float((total_D @ total_D - own) / (rows * (rows - 1)))


def participation_ratio(matrix_NxD: np.ndarray) -> float:
    """(tr C)^2 / tr C^2 for the covariance C of the rows; 0 where all rows are equal."""
    centred_NxD = matrix_NxD - matrix_NxD.mean(axis=0, dtype=np.float64)
    n, d = centred_NxD.shape
    products = centred_NxD.T @ centred_NxD if d <= n else centred_NxD @ centred_NxD.T  # the same eigenvalues
    total = np.trace(products)
    return float(total**2 / np.sum(products**2)) if total > 1e-12 * n else 0.0


def near_groups(unit_NxD: np.ndarray, cosine: float) -> np.ndarray:
    """Groups of rows that are connected by pairs of at least this cosine; int64 [N], numbered by their first row.

    Each group is walked through from its first row, and only rows that no group has yet are compared: memory is that
    of a block, even where all rows are near one another.
    """
    group_N = np.full(len(unit_NxD), -1)
    open_U, number = np.arange(len(unit_NxD)), 0
    while open_U.size:
        front, open_U = open_U[:1], open_U[1:]
        while front.size:
            group_N[front] = number
            now, front = front[:_ROWS_AT_ONCE], front[_ROWS_AT_ONCE:]
            near_U = np.zeros(len(open_U), bool)
            for start in range(0, len(open_U), _ROWS_AT_ONCE):
                part = slice(start, start + _ROWS_AT_ONCE)
                near_U[part] = (unit_NxD[open_U[part]] @ unit_NxD[now].T >= cosine).any(axis=1)
            front, open_U = np.concatenate([front, open_U[near_U]]), open_U[~near_U]
        number += 1
    return group_N


def _nearest_other(unit_NxD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row the highest cosine to another row, and that row; of equals the lowest."""
    found = nearest_neighbors(unit_NxD, unit_NxD, 2, metric="cosine")
    itself_N = found.indices_MxK[:, 0] == np.arange(len(unit_NxD))
    place = itself_N.astype(int)[:, None]  # among equal rows the row itself may come second, or not at all
    distance_N = np.take_along_axis(found.distances_MxK, place, axis=1)[:, 0]
    return 1 - distance_N, np.take_along_axis(found.indices_MxK, place, axis=1)[:, 0]


def _duplicates(unit_NxD: np.ndarray, cosine_N: np.ndarray, cosine: float) -> Duplicates:
    twins = np.flatnonzero(cosine_N >= cosine)
    sizes = np.bincount(near_groups(unit_NxD[twins], cosine), minlength=1)
    sizes = sizes[sizes > 1]  # a pair that is at the cosine by one rounding and not by the other is none
    return Duplicates(
        cosine=cosine,
        share=float(sizes.sum() / len(unit_NxD)),
        groups=len(sizes),
        largest=int(sizes.max(initial=1)),
    )
