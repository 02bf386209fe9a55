"""The compiled programs of `kmeans` over a batch or a block of the points; `kmeans_mesh` has those over all of them.

The points are one matrix of whole blocks, the last one filled up with rows at the origin. The filling has the mass 0
in every draw and the label K, which no cluster has, so it enters no sum, no repair and no inertia.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

BLOCK_ROWS = 2048

# A squared distance below this share of the mean squared norm is rounding, not a point away from its centroid:
# without the floor, exact duplicates would be "repaired" for ever when there are fewer distinct points than clusters.
ROUNDING = 1e-10

# One product of all points with all centroids is faster than one a block, as long as its result is not too large.
_LARGEST_PRODUCT = 2**26


def dot(a, b):
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def rows_at_once(n, k):
    """Rows of one product with all centroids."""
    return n if n * k <= _LARGEST_PRODUCT else BLOCK_ROWS


def _nearest(points_NxD, n, centroids_KxD):
    """Nearest centroid of each of the first n rows, the lower index of two; K for the rows beyond."""
    k = len(centroids_KxD)
    squares_K = jnp.sum(centroids_KxD**2, axis=1)

    def nearest(point_D):
        return jnp.argmin(squares_K - 2 * dot(point_D, centroids_KxD.T)).astype(jnp.int32)

    labels_N = lax.map(nearest, points_NxD, batch_size=rows_at_once(len(points_NxD), k))
    return jnp.where(jnp.arange(len(points_NxD)) < n, labels_N, k)


def _errors(points_NxD, labels_N, centroids_KxD):
    """Squared distance of every point to its own centroid, in difference form; 0 for the filling."""

    def error(point_D, label):
        own_D = centroids_KxD[jnp.minimum(label, len(centroids_KxD) - 1)]
        return jnp.where(label < len(centroids_KxD), jnp.sum((point_D - own_D) ** 2), 0)

    return lax.map(lambda row: error(*row), (points_NxD, labels_N), batch_size=min(BLOCK_ROWS, len(points_NxD)))


@jax.jit
def label(points_NxD, n, centroids_KxD):
    labels_N = _nearest(points_NxD, n, centroids_KxD)
    return labels_N, _errors(points_NxD, labels_N, centroids_KxD)


def unit_rows(vectors_KxD, otherwise_KxD):
    lengths_Kx1 = jnp.linalg.norm(vectors_KxD, axis=1, keepdims=True)
    return jnp.where(lengths_Kx1 > 0, vectors_KxD / jnp.where(lengths_Kx1 > 0, lengths_Kx1, 1), otherwise_KxD)


@partial(jax.jit, static_argnames="spherical")
def learn(batch_RxD, n, means_KxD, seen_K, met_K, spherical):
    """One step of mini-batch k-means: c <- c + (1 / v_c) sum (x - c) over the points x of the batch nearest to c."""
    k = len(means_KxD)
    centroids_KxD = unit_rows(means_KxD, means_KxD) if spherical else means_KxD
    labels_R, errors_R = label(batch_RxD, n, centroids_KxD)
    member_RxK = (labels_R[:, None] == jnp.arange(k)).astype(jnp.float32)
    counts_K = member_RxK.sum(axis=0)
    seen_K = seen_K + counts_K
    pull_KxD = dot(member_RxK.T, batch_RxD) - counts_K[:, None] * means_KxD
    return means_KxD + pull_KxD / jnp.maximum(seen_K, 1)[:, None], seen_K, met_K + counts_K, errors_R


@jax.jit
def revive(means_KxD, seen_K, met_K, batch_RxD, errors_R, floor):
    """Put the centroids that met no point on those points of the batch that lie farthest from theirs."""
    far_error_K, far_K = lax.top_k(errors_R, len(means_KxD))
    rank_K = jnp.cumsum(met_K == 0) - 1
    moves_K = (met_K == 0) & (far_error_K[rank_K] > floor)
    means_KxD = jnp.where(moves_K[:, None], batch_RxD[far_K[rank_K]], means_KxD)
    return means_KxD, jnp.where(moves_K, 1, seen_K), jnp.any(moves_K)
