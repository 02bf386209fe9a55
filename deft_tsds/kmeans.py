"""k-means: greedy k-means++ and Lloyd's iterations, compiled, over blocks of rows.

The points lie in blocks of equal size (`points_BxRxD`), the last one filled up with rows of weight zero. A scan over
the blocks keeps the working set in cache, and the zero weights keep the filling out of every sum, draw and repair.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deft_tsds.arrays import as_matrix, check_count, check_real, normalize_rows
from deft_tsds.sampling import check_key

_BLOCK_ROWS = 2048

# A squared distance below this share of the mean squared norm is rounding, not a point away from its centroid:
# without the floor, exact duplicates would be "repaired" for ever when there are fewer distinct points than clusters.
_ROUNDING = 1e-10


@dataclass(frozen=True, eq=False)
class KMeans:
    """A clustering of N points into K clusters.

    Attributes:
        centroids_KxD: float32, the mean of each cluster (of unit length if spherical).
        labels_N: int32, the nearest centroid of each point; ties go to the lower index.
        inertia: sum of squared distances of the points to their centroids.
        iterations: Lloyd iterations that were run.
        converged: whether the centroids stood still before `max_iterations`.
    """

    centroids_KxD: np.ndarray
    labels_N: np.ndarray
    inertia: float
    iterations: int
    converged: bool

    @property
    def sizes_K(self) -> np.ndarray:
        """int64, how many points each cluster holds; 0 only when there are fewer distinct points than clusters."""
        return np.bincount(self.labels_N, minlength=len(self.centroids_KxD))


def kmeans(
    points,
    k: int,
    *,
    key: jax.Array,
    init: Literal["k-means++"] | np.ndarray = "k-means++",
    max_iterations: int = 100,
    tolerance: float = 1e-4,
    spherical: bool = False,
) -> KMeans:
    """Cluster points: min over c_1..c_k of sum_i min_j |x_i - c_j|^2, by Lloyd's iterations.

    It stops when no label changes, or when the squared movement of all centroids together is at most `tolerance`
    times the mean variance of the coordinates (scikit-learn's rule). A cluster that loses all its points takes the
    point farthest from its own centroid, lowest index first. From the same start it ends where
    `KMeans(algorithm="lloyd")` ends.

    Args:
        points: [N, D] finite numbers.
        k: number of clusters, 1 <= k <= N. With fewer than k distinct points the clusters that are left over stay
            empty, each at a copy of a point.
        key: `jax.random.key(seed)`; used by "k-means++" only.
        init: "k-means++" (greedy: the best of 2 + floor(log k) draws each time) or an array [k, D] of first centroids.
        max_iterations: at most this many iterations, >= 1.
        tolerance: >= 0; 0 runs until no label changes.
        spherical: cluster by angle: rows are brought to unit length, and so is every centroid.

    Returns:
        A `KMeans` of NumPy arrays.

    Raises:
        ValueError: bad rows, k < 1, k > N, an `init` of the wrong shape or an unknown name.

    References:
        Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding", 2007 (section 7 for the greedy form).
    """
    points_NxD = as_matrix(points, "points")
    n, d = points_NxD.shape
    k = check_count(k, "k", 1, n)
    max_iterations = check_count(max_iterations, "max_iterations", 1)
    tolerance = check_real(tolerance, "tolerance", at_least=0)
    key = check_key(key)
    if isinstance(init, str):
        if init != "k-means++":
            raise ValueError(f"init must be 'k-means++' or an array of centroids [{k}, {d}], not {init!r}.")
        start_KxD = None
    else:
        start_KxD = as_matrix(init, "init")
        if start_KxD.shape != (k, d):
            raise ValueError(f"init has shape {start_KxD.shape}; {k} clusters of these points need ({k}, {d}).")

    if spherical:
        points_NxD = normalize_rows(points_NxD)
        start_KxD = None if start_KxD is None else normalize_rows(start_KxD)
        center_D = np.zeros(d, np.float32)  # angles are taken at the origin
    else:
        # About the mean, |x|^2 - 2xc + |c|^2 loses the fewest digits.
        center_D = points_NxD.mean(axis=0, dtype=np.float64).astype(np.float32)
    points_BxRxD, weights_BxR = _blocks(points_NxD, center_D)
    squares_BxR = jnp.sum(points_BxRxD**2, axis=-1)

    if start_KxD is None:
        centroids_KxD = _plus_plus(key, points_BxRxD, squares_BxR, weights_BxR, k)
    else:
        centroids_KxD = jnp.asarray(start_KxD - center_D)
    mean_square = float(np.sum(np.asarray(squares_BxR), dtype=np.float64)) / n
    variance = mean_square
    if spherical:
        variance -= float(np.sum(points_NxD.mean(axis=0, dtype=np.float64) ** 2))
    centroids_KxD, labels_BxR, errors_B, iterations, converged = _lloyd(
        points_BxRxD,
        weights_BxR,
        centroids_KxD,
        max_iterations,
        tolerance * variance / d,
        _ROUNDING * mean_square,
        spherical,
    )
    return KMeans(
        centroids_KxD=np.asarray(centroids_KxD) + center_D,
        labels_N=np.asarray(labels_BxR).reshape(-1)[:n],
        inertia=float(np.sum(np.asarray(errors_B), dtype=np.float64)),
        iterations=int(iterations),
        converged=bool(converged),
    )


def _blocks(points_NxD: np.ndarray, center_D: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Centred points in blocks, and weights that are 1 for points and 0 for the rows that fill up the last block."""
    n, d = points_NxD.shape
    rows = min(_BLOCK_ROWS, 1 << (n - 1).bit_length())  # powers of two, so that few sizes of small pools are compiled
    blocks = -(-n // rows)
    points = np.zeros((blocks * rows, d), np.float32)
    np.subtract(points_NxD, center_D, out=points[:n])
    weights = (np.arange(blocks * rows) < n).astype(np.float32)
    return jnp.asarray(points.reshape(blocks, rows, d)), jnp.asarray(weights.reshape(blocks, rows))


def _dot(a, b):
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


@partial(jax.jit, static_argnames="k")
def _plus_plus(key, points_BxRxD, squares_BxR, weights_BxR, k):
    """Greedy k-means++: draw candidates in proportion to the squared distance, keep the one that lowers the sum the
    most."""
    trials = 2 + int(np.log(k))
    d = points_BxRxD.shape[-1]

    def draw(key, mass_BxR):
        # First the block, then the row in it: the law of one draw over all rows, at the price of B + R random numbers.
        key_block, key_row = jax.random.split(key)
        block_T = jax.random.categorical(key_block, jnp.log(mass_BxR.sum(axis=1)), shape=(trials,))
        return block_T, jax.random.categorical(key_row, jnp.log(mass_BxR[block_T]), axis=-1)

    def distances(candidates_TxD):
        cross_BxRxT = _dot(points_BxRxD, candidates_TxD.T)
        return jnp.maximum(squares_BxR[..., None] - 2 * cross_BxRxT + jnp.sum(candidates_TxD**2, axis=1), 0)

    def choose(index, state):
        centroids_KxD, nearest_BxR = state
        mass_BxR = weights_BxR * nearest_BxR
        mass_BxR = jnp.where(mass_BxR.sum() > 0, mass_BxR, weights_BxR)  # every point is a centroid: any will do
        candidates_TxD = points_BxRxD[draw(jax.random.fold_in(key, index), mass_BxR)]
        nearest_BxRxT = jnp.minimum(nearest_BxR[..., None], distances(candidates_TxD))
        best = jnp.argmin(jnp.einsum("brt,br->bt", nearest_BxRxT, weights_BxR).sum(axis=0))
        return centroids_KxD.at[index].set(candidates_TxD[best]), nearest_BxRxT[..., best]

    block_T, row_T = draw(jax.random.fold_in(key, 0), weights_BxR)
    first_D = points_BxRxD[block_T[0], row_T[0]]
    state = (jnp.zeros((k, d), jnp.float32).at[0].set(first_D), distances(first_D[None])[..., 0])
    return lax.fori_loop(1, k, choose, state)[0]


@partial(jax.jit, static_argnames="spherical")
def _lloyd(points_BxRxD, weights_BxR, centroids_KxD, max_iterations, movement, rounding, spherical):
    """Lloyd's iterations until the labels stay, the centroids move by at most `movement`, or `max_iterations`."""

    def unfinished(state):
        _, _, iteration, converged = state
        return (iteration < max_iterations) & ~converged

    def step(state):
        old_KxD, old_labels_BxR, iteration, _ = state
        labels_BxR, sums_KxD, counts_K = _assign(points_BxRxD, weights_BxR, old_KxD)
        sums_KxD, counts_K, repaired = lax.cond(
            jnp.any(counts_K == 0),
            partial(_repair, points_BxRxD, weights_BxR, old_KxD, labels_BxR, rounding),
            lambda sums_KxD, counts_K: (sums_KxD, counts_K, jnp.array(False)),
            sums_KxD,
            counts_K,
        )
        new_KxD = jnp.where(counts_K[:, None] > 0, sums_KxD / jnp.maximum(counts_K, 1)[:, None], old_KxD)
        if spherical:
            lengths_K = jnp.linalg.norm(new_KxD, axis=1)
            new_KxD = jnp.where(
                lengths_K[:, None] > 0, new_KxD / jnp.where(lengths_K > 0, lengths_K, 1)[:, None], old_KxD
            )
        same_labels = jnp.all((labels_BxR == old_labels_BxR) | (weights_BxR == 0))
        still = same_labels | (jnp.sum((new_KxD - old_KxD) ** 2) <= movement)
        # A repair moves a centroid after the labels were given: they have to be given once more.
        return new_KxD, labels_BxR, iteration + 1, still & ~repaired

    no_labels_BxR = jnp.full(weights_BxR.shape, -1, jnp.int32)
    start = (centroids_KxD, no_labels_BxR, 0, jnp.array(False))
    centroids_KxD, _, iterations, converged = lax.while_loop(unfinished, step, start)
    labels_BxR, _, _ = _assign(points_BxRxD, weights_BxR, centroids_KxD)
    errors_B = jnp.sum(_errors(points_BxRxD, weights_BxR, centroids_KxD, labels_BxR), axis=1)
    return centroids_KxD, labels_BxR, errors_B, iterations, converged


def _assign(points_BxRxD, weights_BxR, centroids_KxD):
    """Nearest centroid of every point, and the sum and number of the points of each cluster."""
    k, d = centroids_KxD.shape
    squares_K = jnp.sum(centroids_KxD**2, axis=1)

    def block(carry, inputs):
        sums_KxD, counts_K = carry
        points_RxD, weights_R = inputs
        labels_R = jnp.argmin(squares_K - 2 * _dot(points_RxD, centroids_KxD.T), axis=1).astype(jnp.int32)
        member_RxK = jnp.where(labels_R[:, None] == jnp.arange(k), weights_R[:, None], 0)
        return (sums_KxD + _dot(member_RxK.T, points_RxD), counts_K + member_RxK.sum(axis=0)), labels_R

    start = (jnp.zeros((k, d), jnp.float32), jnp.zeros(k, jnp.float32))
    (sums_KxD, counts_K), labels_BxR = lax.scan(block, start, (points_BxRxD, weights_BxR))
    return labels_BxR, sums_KxD, counts_K


def _errors(points_BxRxD, weights_BxR, centroids_KxD, labels_BxR):
    """Squared distance of every point to its own centroid, in difference form; 0 for the filling rows."""

    def block(inputs):
        points_RxD, weights_R, labels_R = inputs
        return weights_R * jnp.sum((points_RxD - centroids_KxD[labels_R]) ** 2, axis=1)

    return lax.map(block, (points_BxRxD, weights_BxR, labels_BxR))


def _repair(points_BxRxD, weights_BxR, centroids_KxD, labels_BxR, rounding, sums_KxD, counts_K):
    """Give every empty cluster the point farthest from its centroid, among clusters that hold more than one."""
    points_NxD = points_BxRxD.reshape(-1, points_BxRxD.shape[-1])
    labels_N = labels_BxR.reshape(-1)
    errors_N = _errors(points_BxRxD, weights_BxR, centroids_KxD, labels_BxR).reshape(-1)

    def fill(cluster, state):
        sums_KxD, counts_K, errors_N, repaired = state
        free_N = jnp.where(counts_K[labels_N] > 1, errors_N, 0)
        farthest = jnp.argmax(free_N)
        giver, point_D = labels_N[farthest], points_NxD[farthest]
        move = (counts_K[cluster] == 0) & (free_N[farthest] > rounding)
        amount = move.astype(jnp.float32)
        sums_KxD = sums_KxD.at[giver].add(-amount * point_D).at[cluster].add(amount * point_D)
        counts_K = counts_K.at[giver].add(-amount).at[cluster].add(amount)
        errors_N = errors_N.at[farthest].multiply(1 - amount)
        return sums_KxD, counts_K, errors_N, repaired | move

    state = (sums_KxD, counts_K, errors_N, jnp.array(False))
    sums_KxD, counts_K, _, repaired = lax.fori_loop(0, len(counts_K), fill, state)
    return sums_KxD, counts_K, repaired
