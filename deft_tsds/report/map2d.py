"""A flat map of the pool: a proportional sample by PCA to 50 dimensions and t-SNE to two; the others beside it.

The map is the same for the same key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
import numpy as np

from deft_tsds.geometry.neighbors import nearest_neighbors
from deft_tsds.report.view import RunView

MOST_POINTS = 2000
"""Laid out by t-SNE, and shown with their texts."""
MOST_PLACED = 100_000
"""On the map in all: those beyond `MOST_POINTS` are placed between the nearest of them."""
MOST_QUERIES = 200
_COMPONENTS = 50
_PERPLEXITY = 30.0
_ITERATIONS = 500


@dataclass(frozen=True)
class PoolMap:
    """Where the sampled rows of the pool and of the queries lie on the map."""

    rows: np.ndarray
    """int [n], rows of the pool, ascending."""
    points_nx2: np.ndarray
    placed_rows: np.ndarray
    """int [p], further rows of the pool, ascending; none where `rows` are all."""
    placed_points_px2: np.ndarray
    query_rows: np.ndarray
    """int [m], rows of the queries."""
    query_points_mx2: np.ndarray

    def places(self) -> dict[int, tuple[float, float]]:
        """Where each row of the pool lies that is on the map."""
        rows = np.concatenate([self.rows, self.placed_rows]).tolist()
        points = np.concatenate([self.points_nx2, self.placed_points_px2]).tolist()
        return {row: (x, y) for row, (x, y) in zip(rows, points, strict=True)}


def pool_map(view: RunView, *, key: jax.Array) -> PoolMap | None:
    """Place a sample of the pool, and the queries, on a plane; None without embeddings.

    The samples are proportional within every combination of group and of arms that chose a row, so each arm's share of
    the points is its share of the pool.
    """
    if view.embeddings_NxD is None:
        return None
    sample_key, query_key, layout_key = jax.random.split(key, 3)
    chosen = [np.isin(np.arange(len(view.pool)), arm.first.indices) for arm in view.arms]
    _, group_N = np.unique(np.array(view.pool.groups), return_inverse=True)
    on_map = proportional_sample([*chosen, group_N], MOST_PLACED, key=jax.random.fold_in(sample_key, 0))
    strata = [labels_N[on_map] for labels_N in (*chosen, group_N)]
    rows = on_map[proportional_sample(strata, MOST_POINTS, key=sample_key)]
    placed_rows = np.setdiff1d(on_map, rows, assume_unique=True)
    embedded = np.asarray(view.embeddings_NxD[rows], dtype=np.float32)
    query_rows = np.zeros(0, dtype=np.int64)
    if view.query_embeddings_MxD is not None:
        queries_MxD = np.asarray(view.query_embeddings_MxD, dtype=np.float32)
        query_rows = proportional_sample([np.zeros(len(queries_MxD))], MOST_QUERIES, key=query_key)
        embedded = np.concatenate([embedded, queries_MxD[query_rows]])
    points = plane(embedded, key=layout_key)
    laid_out = points[: rows.size]
    placed = place(view.embeddings_NxD[placed_rows], embedded[: rows.size], laid_out)
    return PoolMap(rows, laid_out, placed_rows, placed, query_rows, points[rows.size :])


def place(rest_pxD: np.ndarray, embedded_nxD: np.ndarray, points_nx2: np.ndarray) -> np.ndarray:
    """Put points on a map that others make: each at the mean of its three nearest, weighted by 1 / distance^2.

    Args:
      rest_pxD: float32, what has no place yet; may have no rows.
      embedded_nxD: float32, what the map was made of.
      points_nx2: where these lie.

    Returns:
      float32 [p, 2]; a point that equals one of the map lies on it.
    """
    if not len(rest_pxD):
        return np.zeros((0, 2), dtype=np.float32)
    found = nearest_neighbors(rest_pxD, embedded_nxD, min(3, len(embedded_nxD)))
    weight_px3 = 1 / np.maximum(found.distances_MxK, 1e-6) ** 2
    weight_px3 /= weight_px3.sum(axis=1, keepdims=True)
    return np.einsum("pk,pkx->px", weight_px3, points_nx2[found.indices_MxK]).astype(np.float32)


def proportional_sample(strata: Sequence[np.ndarray], size: int, *, key: jax.Array) -> np.ndarray:
    """Systematic sample: sort by stratum, in random order within it, and take every (N / size)-th row.

    Every stratum keeps its share to within one row, however many strata there are.

    Args:
      strata: arrays [N]; rows equal in all of them are one stratum.
      size: rows to take; all of them when there are no more.
      key: a PRNG key.

    Returns:
      int [min(size, N)], ascending.
    """
    total = len(strata[0])
    if total <= size:
        return np.arange(total)
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    order = np.lexsort((rng.random(total), *strata))
    picks = np.floor((np.arange(size) + rng.random()) * (total / size)).astype(np.int64)
    return np.sort(order[picks])


def plane(embeddings_nxD: np.ndarray, *, key: jax.Array) -> np.ndarray:
    """Lay points out on a plane: PCA to 50 dimensions, then t-SNE started from the first two of them.

    Args:
      embeddings_nxD: float32.
      key: a PRNG key.

    Returns:
      float32 [n, 2]. Fewer than ten points are too few for t-SNE and keep their first two principal components.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    size, dimension = embeddings_nxD.shape
    if not np.ptp(embeddings_nxD, axis=0).any():  # one point, or all points in one place: no direction is principal
        return np.zeros((size, 2), dtype=np.float32)
    seed = int(np.random.default_rng(np.asarray(jax.random.key_data(key))).integers(2**31))
    components = min(_COMPONENTS, dimension, size)
    reduced = PCA(components, random_state=seed).fit_transform(embeddings_nxD)
    start = np.zeros((size, 2), dtype=np.float32)
    start[:, : min(2, components)] = reduced[:, :2]
    if size < 10:
        return start
    # scikit-learn's own PCA start divides by a standard deviation that is 0 when all points are equal.
    start *= 1e-4 / max(float(start[:, 0].std()), 1e-12)
    # scikit-learn's stubs know `init` as a name only; an array [n, 2] is documented.
    tsne = TSNE(
        perplexity=min(_PERPLEXITY, (size - 1) / 3), init=cast(Any, start), random_state=seed, max_iter=_ITERATIONS
    )
    # Its threads meet at a barrier in every iteration: on a busy machine two of them take longer than one.
    with threadpool_limits(1, user_api="openmp"):
        return tsne.fit_transform(reduced).astype(np.float32)
