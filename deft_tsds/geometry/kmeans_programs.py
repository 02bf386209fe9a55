"""The compiled programs of `kmeans`: greedy k-means++, Lloyd's iterations, the step of a mini-batch.

The points are one matrix of whole blocks, the last one filled up with rows at the origin. The filling has the mass 0
in every draw and the label K, which no cluster has, so it enters no sum, no repair and no inertia.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

BLOCK_ROWS = 2048

# A squared distance below this share of the mean squared norm is rounding, not a point away from its centroid:
# without the floor, exact duplicates would be "repaired" for ever when there are fewer distinct points than clusters.
ROUNDING = 1e-10

# One product of all points with all centroids is faster than one a block, as long as its result is not too large.
_LARGEST_PRODUCT = 2**26

# Points that change their cluster are moved so many at a time.
_MOVED_ROWS = 512

# The sums of the clusters follow the labels by differences, and start afresh so often that rounding cannot gather.
_FRESH_SUMS_EVERY = 32


@jax.jit
def moments(points_NxD):
    """The squared length of every row, and the sum of the rows."""
    return jnp.sum(points_NxD**2, axis=1), jnp.sum(points_NxD, axis=0)


def _dot(a, b):
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


@partial(jax.jit, static_argnames="k")
def plus_plus(key, first, points_NxD, squares_N, n, k):
    """Greedy k-means++ from the row `first`: of some points drawn in proportion to the squared distance, keep the one
    that lowers the sum the most.

    A pass over the points costs the same for one candidate as for a dozen, so candidates are drawn and measured in
    batches. A point drawn when its mass was m is accepted later, when its mass is m', with probability m'/m: so those
    that are accepted follow the present masses exactly. When too few are left, a new batch is drawn.
    """
    trials = 2 + int(np.log(k))
    batch = 8 * trials
    rows, d = min(BLOCK_ROWS, len(points_NxD)), points_NxD.shape[1]
    real_N = jnp.arange(len(points_NxD)) < n

    def mass(nearest_N):  # where every point is a centroid, any will do
        return jnp.where(nearest_N.sum() > 0, nearest_N, real_N)

    def pick(mass_xR, uniform_x):
        sum_xR = jnp.where(mass_xR > 0, jnp.cumsum(mass_xR, axis=-1), 0)  # so that nothing without mass is picked
        return jnp.argmax(sum_xR > (uniform_x * sum_xR.max(axis=-1))[..., None], axis=-1)

    def draw(mass_N, uniform_2xS):
        # First the block, then the row in it: the law of one draw over all rows, with sums short enough for float32.
        mass_BxR = mass_N.reshape(-1, rows)
        block_S = pick(mass_BxR.sum(axis=1), uniform_2xS[0])
        return block_S * rows + pick(mass_BxR[block_S], uniform_2xS[1])

    def distances(candidates_SxD):
        cross_NxS = _dot(points_NxD, candidates_SxD.T)
        squared_NxS = squares_N[:, None] - 2 * cross_NxS + jnp.sum(candidates_SxD**2, axis=1)
        return jnp.where(real_N[:, None], jnp.maximum(squared_NxS, 0), 0)

    def draw_batch(state):
        index, _, nearest_N = state
        uniform_3xS = jax.random.uniform(jax.random.fold_in(key, index), (3, batch))
        mass_N = mass(nearest_N)
        row_S = draw(mass_N, uniform_3xS[:2])
        candidates_SxD = points_NxD[row_S]
        distances_NxS = distances(candidates_SxD)
        threshold_S = uniform_3xS[2] * mass_N[row_S]

        def accepted(nearest_N, used):
            return (jnp.arange(batch) >= used) & (threshold_S <= mass(nearest_N)[row_S])

        def enough(state):
            (index, _, nearest_N), used = state
            return (index < k) & (accepted(nearest_N, used).sum() >= trials)

        def choose(state):
            (index, centroids_KxD, nearest_N), used = state
            accepted_S = accepted(nearest_N, used)
            rank_S = jnp.cumsum(accepted_S)
            sum_S = jnp.minimum(nearest_N[:, None], distances_NxS).sum(axis=0)
            best = jnp.argmin(jnp.where(accepted_S & (rank_S <= trials), sum_S, jnp.inf))
            centroids_KxD = centroids_KxD.at[index].set(candidates_SxD[best])
            nearest_N = jnp.minimum(nearest_N, distances_NxS[:, best])
            return (index + 1, centroids_KxD, nearest_N), jnp.argmax(rank_S == trials) + 1

        return lax.while_loop(enough, choose, (state, 0))[0]

    first_D = points_NxD[first]
    start = (1, jnp.zeros((k, d), jnp.float32).at[0].set(first_D), distances(first_D[None])[:, 0])
    return lax.while_loop(lambda state: state[0] < k, draw_batch, start)[1]


@partial(jax.jit, static_argnames="spherical")
def lloyd(points_NxD, n, centroids_KxD, max_iterations, movement, floor, spherical):
    """Lloyd's iterations until the labels stay, the centroids move by at most `movement`, or `max_iterations`."""
    k = len(centroids_KxD)

    def unfinished(state):
        *_, iteration, converged = state
        return (iteration < max_iterations) & ~converged

    def step(state):
        old_KxD, old_labels_N, sums_KxD, counts_K, iteration, _ = state
        fresh = iteration % _FRESH_SUMS_EVERY == 0
        known_N = jnp.where(fresh, k, old_labels_N)
        labels_N = _nearest(points_NxD, n, old_KxD)
        sums_KxD, counts_K = _follow(
            points_NxD, known_N, labels_N, jnp.where(fresh, 0, sums_KxD), jnp.where(fresh, 0, counts_K)
        )
        full_sums_KxD, full_counts_K, repaired = lax.cond(
            jnp.any(counts_K == 0),
            partial(_repair, points_NxD, old_KxD, labels_N, floor),
            lambda sums_KxD, counts_K: (sums_KxD, counts_K, jnp.array(False)),
            sums_KxD,
            counts_K,
        )
        means_KxD = full_sums_KxD / jnp.maximum(full_counts_K, 1)[:, None]
        new_KxD = jnp.where(full_counts_K[:, None] > 0, means_KxD, old_KxD)
        if spherical:
            new_KxD = unit_rows(new_KxD, old_KxD)
        still = jnp.all(labels_N == old_labels_N) | (jnp.sum((new_KxD - old_KxD) ** 2) <= movement)
        # A repair moves a centroid after the labels were given: they have to be given once more.
        return new_KxD, labels_N, sums_KxD, counts_K, iteration + 1, still & ~repaired

    no_labels_N = jnp.full(len(points_NxD), k, jnp.int32)
    no_counts_K = jnp.zeros(k, jnp.int32)
    start = (centroids_KxD, no_labels_N, jnp.zeros_like(centroids_KxD), no_counts_K, 0, jnp.array(False))
    centroids_KxD, *_, iterations, converged = lax.while_loop(unfinished, step, start)
    labels_N, errors_N = label(points_NxD, n, centroids_KxD)
    return centroids_KxD, labels_N, errors_N, iterations, converged


def _nearest(points_NxD, n, centroids_KxD):
    """Nearest centroid of each of the first n rows, the lower index of two; K for the rows beyond."""
    k = len(centroids_KxD)
    squares_K = jnp.sum(centroids_KxD**2, axis=1)

    def nearest(point_D):
        return jnp.argmin(squares_K - 2 * _dot(point_D, centroids_KxD.T)).astype(jnp.int32)

    rows = len(points_NxD) if len(points_NxD) * k <= _LARGEST_PRODUCT else BLOCK_ROWS
    labels_N = lax.map(nearest, points_NxD, batch_size=rows)
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


def _follow(points_NxD, old_labels_N, labels_N, sums_KxD, counts_K):
    """Bring the sum and the number of points of each cluster from the old labels to the new.

    Only points that changed are read, and after a few iterations these are few: an iteration then costs the distances
    alone.
    """
    n, k = len(labels_N), len(counts_K)
    rows = min(_MOVED_ROWS, n)
    changed_N = labels_N != old_labels_N
    changed = jnp.sum(changed_N)
    which_N = jnp.nonzero(changed_N, size=n + rows, fill_value=0)[0]  # longer by the end of the last slice

    def move(state):
        start, sums_KxD, counts_K = state
        which_R = lax.dynamic_slice(which_N, (start,), (rows,))
        real_R = start + jnp.arange(rows) < changed
        # A product, because a GPU adds scattered rows in any order, and the same key would not give the same clusters.
        moves_RxK = (jax.nn.one_hot(labels_N[which_R], k) - jax.nn.one_hot(old_labels_N[which_R], k)) * real_R[:, None]
        sums_KxD += _dot(moves_RxK.T, points_NxD[which_R])
        counts_K += jnp.sum(moves_RxK, axis=0).astype(jnp.int32)
        return start + rows, sums_KxD, counts_K

    return lax.while_loop(lambda state: state[0] < changed, move, (0, sums_KxD, counts_K))[1:]


def _repair(points_NxD, centroids_KxD, labels_N, floor, sums_KxD, counts_K):
    """Give every empty cluster the point farthest from its centroid, among clusters that hold more than one."""
    errors_N = _errors(points_NxD, labels_N, centroids_KxD)

    def fill(cluster, state):
        sums_KxD, counts_K, errors_N, repaired = state
        free_N = jnp.where(counts_K[labels_N] > 1, errors_N, 0)
        farthest = jnp.argmax(free_N)
        giver, point_D = labels_N[farthest], points_NxD[farthest]
        move = (counts_K[cluster] == 0) & (free_N[farthest] > floor)
        given_D = jnp.where(move, point_D, 0)
        sums_KxD = sums_KxD.at[giver].add(-given_D)
        sums_KxD = sums_KxD.at[cluster].set(jnp.where(move, point_D, sums_KxD[cluster]))
        counts_K = counts_K.at[giver].add(-move.astype(jnp.int32)).at[cluster].add(move.astype(jnp.int32))
        errors_N = errors_N.at[farthest].set(jnp.where(move, 0, errors_N[farthest]))
        return sums_KxD, counts_K, errors_N, repaired | move

    state = (sums_KxD, counts_K, errors_N, jnp.array(False))
    sums_KxD, counts_K, _, repaired = lax.fori_loop(0, len(counts_K), fill, state)
    return sums_KxD, counts_K, repaired


@partial(jax.jit, static_argnames="spherical")
def learn(batch_RxD, n, means_KxD, seen_K, met_K, spherical):
    """One step of mini-batch k-means: c <- c + (1 / v_c) sum (x - c) over the points x of the batch nearest to c."""
    k = len(means_KxD)
    centroids_KxD = unit_rows(means_KxD, means_KxD) if spherical else means_KxD
    labels_R, errors_R = label(batch_RxD, n, centroids_KxD)
    member_RxK = (labels_R[:, None] == jnp.arange(k)).astype(jnp.float32)
    counts_K = member_RxK.sum(axis=0)
    seen_K = seen_K + counts_K
    pull_KxD = _dot(member_RxK.T, batch_RxD) - counts_K[:, None] * means_KxD
    return means_KxD + pull_KxD / jnp.maximum(seen_K, 1)[:, None], seen_K, met_K + counts_K, errors_R


@jax.jit
def revive(means_KxD, seen_K, met_K, batch_RxD, errors_R, floor):
    """Put the centroids that met no point on those points of the batch that lie farthest from theirs."""
    far_error_K, far_K = lax.top_k(errors_R, len(means_KxD))
    rank_K = jnp.cumsum(met_K == 0) - 1
    moves_K = (met_K == 0) & (far_error_K[rank_K] > floor)
    means_KxD = jnp.where(moves_K[:, None], batch_RxD[far_K[rank_K]], means_KxD)
    return means_KxD, jnp.where(moves_K, 1, seen_K), jnp.any(moves_K)
