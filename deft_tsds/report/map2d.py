"""A flat map of the pool: a proportional sample, PCA to 50 dimensions, t-SNE to two, the same for the same key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
import numpy as np

from deft_tsds.report.view import RunView

MOST_POINTS = 2000
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
    query_rows: np.ndarray
    """int [m], rows of the queries."""
    query_points_mx2: np.ndarray


def pool_map(view: RunView, *, key: jax.Array) -> PoolMap | None:
    """Place a sample of the pool, and the queries, on a plane; None without embeddings.

    The sample is proportional within every combination of group and of arms that chose a row, so each arm's share of
    the points is its share of the pool.
    """
    if view.embeddings_NxD is None:
        return None
    sample_key, query_key, layout_key = jax.random.split(key, 3)
    chosen = [np.isin(np.arange(len(view.pool)), arm.first.indices) for arm in view.arms]
    _, group_N = np.unique(np.array(view.pool.groups), return_inverse=True)
    rows = proportional_sample([*chosen, group_N], MOST_POINTS, key=sample_key)
    embedded = np.asarray(view.embeddings_NxD[rows], dtype=np.float32)
    query_rows = np.zeros(0, dtype=np.int64)
    if view.query_embeddings_MxD is not None:
        queries_MxD = np.asarray(view.query_embeddings_MxD, dtype=np.float32)
        query_rows = proportional_sample([np.zeros(len(queries_MxD))], MOST_QUERIES, key=query_key)
        embedded = np.concatenate([embedded, queries_MxD[query_rows]])
    points = plane(embedded, key=layout_key)
    return PoolMap(rows, points[: rows.size], query_rows, points[rows.size :])


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
