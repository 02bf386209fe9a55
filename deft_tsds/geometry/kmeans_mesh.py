"""The programs of `kmeans` over all points, split over the devices of a mesh: greedy k-means++ and Lloyd's iterations.

Each device has a part of the points, of whole blocks; centroids, sums and draws are on all. One program text for one
device and for many, and the same labels on any:

- A label is the nearest centroid by distances in float64, the lower index of two, as in `kmeans_host`. A float32
  product gives every pair a score with a bound on its error; the few points where that leaves two centroids or more
  are measured in difference form.
- Sums over clusters are exact (`mesh.grid`): whole numbers of grid steps in float64, whose order decides nothing. Only
  points that changed their cluster are read for them.
- k-means++ draws by float32 distances of blocks of one shape, whatever the mesh, and by sums of these in float64, which
  are exact or nearly so. Another kind of device may round a distance otherwise and then, rarely, draw another point.

The filling beyond the N points has the mass 0 in every draw and the label K, which no cluster has, so that it enters no
sum, no repair and no inertia. All of it is traced under `jax.enable_x64`.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from deft_tsds.geometry import kmeans_programs as programs
from deft_tsds.geometry.mesh import AXIS, per_device

# A product in float32 is made of several shorter ones on an accelerator: its error is allowed to be some times larger.
_ROUNDING = 4.0

# Points that change their cluster, and points whose labels scores leave open, so many at a time.
_MOVED_ROWS = 512
_OPEN_ROWS = 64

# |x|^2 - 2 xc + |c|^2 in float32 below this share of |x|^2 + |c|^2 is rounding: x and c are the same point.
_SAME = 1e-6

# Candidates of k-means++ drawn together, for each that a step tries.
_BATCH = 16


@partial(jax.jit, static_argnames="mesh")
def moments(points_NxD, *, mesh):
    """The squared length of every row, float32 [N]; and of all rows its sum, their sum, the largest squared length."""

    def of_part(points_SxD):
        # Kept apart, since XLA's one loop over rows and columns takes ten times as long on a CPU as the two passes.
        squares_S = lax.optimization_barrier(jnp.sum(jnp.square(points_SxD.astype(jnp.float64)), axis=1))
        sum_D = jnp.sum(lax.optimization_barrier(points_SxD), axis=0, dtype=jnp.float64)
        sums = jnp.sum(squares_S), sum_D
        return squares_S.astype(jnp.float32), *lax.psum(sums, AXIS), lax.pmax(jnp.max(squares_S), AXIS)

    return per_device(mesh, of_part, inputs=P(AXIS), outputs=(P(AXIS), P(), P(), P()))(points_NxD)


@partial(jax.jit, static_argnames=("k", "mesh"))
def plus_plus(first, uniform_Kx3xT, points_NxD, squares_N, largest, n, k, *, mesh):
    """Greedy k-means++ from the row `first`: of some points drawn in proportion to the squared distance, keep the one
    that lowers the sum the most.

    A pass over the points costs little more for dozens of candidates than for one, so candidates are drawn and
    measured in batches. A point drawn when its mass was m is accepted later, when its mass is m', with probability
    m'/m: so those that are accepted follow the present masses exactly. When too few are left, a new batch is drawn.
    The first batch is drawn before any distance is known, evenly: by the mass 4 `largest`, which none exceeds.
    """
    of_part = partial(_plus_plus, k=k)
    inputs = P(), P(), P(AXIS), P(AXIS), P(), P()
    return per_device(mesh, of_part, inputs=inputs, outputs=P())(
        first, uniform_Kx3xT, points_NxD, squares_N, largest, n
    )


def draws(generator, n, k):
    """The first row of k-means++ and the uniform numbers of its batches: no more than K, as each adds a centroid."""
    batch = _BATCH * _trials(k)
    return np.int64(generator.integers(n)), generator.random((k, 3, batch), np.float32)


def _trials(k):
    return 2 + int(np.log(k))


def _plus_plus(first, uniform_Kx3xT, points_SxD, squares_S, largest, n, *, k):
    trials, batch = _trials(k), uniform_Kx3xT.shape[-1]
    s, d = points_SxD.shape
    rows = min(programs.BLOCK_ROWS, s)
    start = lax.axis_index(AXIS) * s
    real_BxR = (start + jnp.arange(s) < n).reshape(-1, rows)
    points_BxRxD, squares_BxR = points_SxD.reshape(-1, rows, d), squares_S.reshape(-1, rows)

    def of_rows(rows_T, read):
        """What `read` finds about some rows of all in their blocks, on every device."""
        here_T = (rows_T >= start) & (rows_T < start + s)
        found_T = read(*jnp.divmod(jnp.clip(rows_T - start, 0, s - 1), rows))
        return lax.psum(jnp.where(here_T.reshape(-1, *[1] * (found_T.ndim - 1)), found_T, 0), AXIS)

    def distances(candidates_TxD):
        """Squared distances [B, T, R]."""
        squares_Tx1 = jnp.sum(jnp.square(candidates_TxD), axis=1, keepdims=True)

        def of_block(block):
            x_RxD, squares_R, real_R = block
            both_TxR = squares_Tx1 + squares_R
            squared_TxR = both_TxR - 2 * programs.dot(candidates_TxD, x_RxD.T)
            return jnp.where(real_R & (squared_TxR > _SAME * both_TxR), squared_TxR, 0)

        return lax.map(of_block, (points_BxRxD, squares_BxR, real_BxR))

    def pick(mass_xR, uniform_x):
        sum_xR = jnp.where(mass_xR > 0, jnp.cumsum(mass_xR, axis=-1, dtype=jnp.float64), 0)  # nothing without mass
        return jnp.argmax(sum_xR > (uniform_x * sum_xR.max(axis=-1))[..., None], axis=-1)

    def draw(mass_BxR, uniform_2xT):
        # First the block, then the row in it: the law of one draw over all rows.
        blocks, before = len(mass_BxR), start // rows
        block_T = pick(lax.all_gather(mass_BxR.sum(axis=1, dtype=jnp.float64), AXIS, tiled=True), uniform_2xT[0])
        own_T = jnp.clip(block_T - before, 0, blocks - 1)
        row_T = block_T * rows + pick(mass_BxR[own_T], uniform_2xT[1])
        return lax.psum(jnp.where(block_T == before + own_T, row_T, 0), AXIS)

    def draw_batch(state):
        index, _, nearest_BxR, total = state
        uniform_3xT = uniform_Kx3xT[index]
        mass_BxR = jnp.where(total > 0, nearest_BxR, real_BxR)  # where every point is a centroid, any will do
        row_T = draw(mass_BxR, uniform_3xT[:2])
        row_T = jnp.where((index == 0) & (jnp.arange(batch) == 0), first, row_T)
        points_TxD = of_rows(row_T, lambda block_T, row_T: points_BxRxD[block_T, row_T])
        mass_T = of_rows(row_T, lambda block_T, row_T: mass_BxR[block_T, row_T])
        distances_BxTxR = distances(points_TxD)
        between_TxT = of_rows(row_T, lambda block_T, row_T: distances_BxTxR[block_T, :, row_T])

        def accepted(state):
            (index, *_, total), present_T, used = state
            likely_T = uniform_3xT[2] * mass_T < jnp.where(total > 0, present_T, 1)
            return jnp.where(index == 0, jnp.arange(batch) == 0, likely_T & (jnp.arange(batch) >= used))

        def enough(state):
            index = state[0][0]
            return (index < k) & (accepted(state).sum() >= jnp.where(index == 0, 1, trials))

        def choose(state):
            (index, centroids_KxD, nearest_BxR, _), present_T, _ = state
            tried = jnp.sort(jnp.where(accepted(state), jnp.arange(batch), batch))[:trials]
            tried = jnp.where(tried < batch, tried, tried[0])
            sum_t = jnp.minimum(nearest_BxR[:, None], distances_BxTxR[:, tried]).sum(axis=(0, 2), dtype=jnp.float64)
            sum_t = lax.psum(sum_t, AXIS)
            best = tried[jnp.argmin(sum_t)]
            centroids_KxD = centroids_KxD.at[index].set(points_TxD[best])
            nearest_BxR = jnp.minimum(nearest_BxR, distances_BxTxR[:, best])
            present_T = jnp.minimum(present_T, between_TxT[:, best])
            return (index + 1, centroids_KxD, nearest_BxR, jnp.min(sum_t)), present_T, tried[-1] + 1

        return lax.while_loop(enough, choose, (state, mass_T, 0))[0]

    any_BxR = jnp.where(real_BxR, 4 * largest, 0).astype(jnp.float32)
    begin = 0, jnp.zeros((k, d), jnp.float32), any_BxR, jnp.float64(1)
    return lax.while_loop(lambda state: state[0] < k, draw_batch, begin)[1]


@partial(jax.jit, static_argnames=("spherical", "mesh"))
def lloyd(points_NxD, n, centroids_KxD, max_iterations, movement, floor, grid, *, spherical, mesh):
    """Lloyd's iterations until the labels stay, the centroids move by at most `movement`, or `max_iterations`.

    Returns:
        centroids_KxD float32, labels_N int32, inertia, iterations, converged.
    """
    of_part = partial(_lloyd, spherical=spherical)
    program = per_device(mesh, of_part, inputs=(P(AXIS), *6 * [P()]), outputs=(P(), P(AXIS), P(), P(), P()))
    return program(points_NxD, n, centroids_KxD, max_iterations, movement, floor, grid)


def _lloyd(points_SxD, n, centroids_KxD, max_iterations, movement, floor, grid, *, spherical):
    k, s = len(centroids_KxD), len(points_SxD)
    start = lax.axis_index(AXIS) * s
    real_S = start + jnp.arange(s) < n
    squares_S = jnp.sum(points_SxD**2, axis=1)

    def assign(centroids_KxD, known_S):
        labels_S, open_S = _labels(points_SxD, squares_S, centroids_KxD)
        labels_S = _measured(points_SxD, centroids_KxD, labels_S, open_S & real_S)
        labels_S = jnp.where(real_S, labels_S, k)
        return labels_S, lax.psum(jnp.sum(labels_S != known_S), AXIS) > 0

    def step(state):
        old_KxD, known_S, own_sums_KxD, own_counts_K, iteration, _ = state
        labels_S, changed = assign(old_KxD, known_S)
        own_sums_KxD, own_counts_K = _follow(points_SxD, known_S, labels_S, own_sums_KxD, own_counts_K, grid)
        sums_KxD, counts_K = lax.psum((own_sums_KxD, own_counts_K), AXIS)
        sums_KxD, counts_K, repaired = lax.cond(
            jnp.any(counts_K == 0),
            partial(_repair, points_SxD, old_KxD, labels_S, real_S, floor, grid),
            lambda sums_KxD, counts_K: (sums_KxD, counts_K, jnp.array(False)),
            sums_KxD,
            counts_K,
        )
        means_KxD = grid * sums_KxD / jnp.maximum(counts_K, 1)[:, None]
        new_KxD = jnp.where(counts_K[:, None] > 0, means_KxD, old_KxD)
        if spherical:
            new_KxD = programs.unit_rows(new_KxD, old_KxD)
        new_KxD = new_KxD.astype(jnp.float32)
        moved = jnp.sum(jnp.square(new_KxD.astype(jnp.float64) - old_KxD))
        # A repair moves a centroid after the labels were given: they have to be given once more.
        converged = (~changed | (moved <= movement)) & ~repaired
        return new_KxD, labels_S, own_sums_KxD, own_counts_K, iteration + 1, converged

    no_labels_S = jnp.full(s, k, jnp.int32)
    begin = centroids_KxD, no_labels_S, jnp.zeros(centroids_KxD.shape), jnp.zeros(k, jnp.int64), 0, jnp.array(False)
    state = lax.while_loop(lambda state: (state[-2] < max_iterations) & ~state[-1], step, begin)
    centroids_KxD, labels_S, _, _, iterations, converged = state
    labels_S, _ = assign(centroids_KxD, labels_S)
    errors_S = _errors(points_SxD, labels_S, real_S, centroids_KxD)
    return centroids_KxD, labels_S, lax.psum(jnp.sum(errors_S, dtype=jnp.float64), AXIS), iterations, converged


def _labels(points_SxD, squares_S, centroids_KxD):
    """The lowest score |c|^2 - 2 x.c of each row, and whether another is so near that rounding may have decided."""
    squares_K = jnp.sum(centroids_KxD**2, axis=1)
    k, d = centroids_KxD.shape

    def two_lowest(point_D, square):
        scores_K = squares_K - 2 * programs.dot(point_D, centroids_KxD.T)
        label = jnp.argmin(scores_K).astype(jnp.int32)
        gap = jnp.min(jnp.where(jnp.arange(k) == label, jnp.inf, scores_K)) - scores_K[label]
        # Any order of summation errs by at most D 2^-24 of the sum of the absolute products (Higham, section 3.1).
        scale = jnp.square(jnp.sqrt(square) + jnp.sqrt(jnp.max(squares_K)))
        error = _ROUNDING * (d + 8) * (2.0**-23 * scale + np.finfo(np.float32).tiny)
        return label, gap <= 2 * error

    rows = programs.rows_at_once(len(points_SxD), k)
    return lax.map(lambda row: two_lowest(*row), (points_SxD, squares_S), batch_size=rows)


def _measured(points_SxD, centroids_KxD, labels_S, open_S):
    """The labels with those of open rows by distances in float64, in difference form."""
    s = len(points_SxD)
    rows = min(_OPEN_ROWS, s)
    many = jnp.sum(open_S)
    which_S = jnp.nonzero(open_S, size=s + rows, fill_value=s)[0]  # longer by the end of the last slice

    def nearest(row):
        return jnp.argmin(jnp.sum(jnp.square(points_SxD[row].astype(jnp.float64) - centroids_KxD), axis=1))

    def measure(state):
        first, labels_S = state
        which_R = lax.dynamic_slice(which_S, (first,), (rows,))
        labels_R = lax.map(nearest, jnp.minimum(which_R, s - 1), batch_size=8).astype(jnp.int32)
        return first + rows, labels_S.at[which_R].set(labels_R, mode="drop")

    return lax.while_loop(lambda state: state[0] < many, measure, (0, labels_S))[1]


def _follow(points_SxD, old_S, labels_S, sums_KxD, counts_K, grid):
    """Bring the sum, in grid steps, and the number of points of each cluster from the old labels to the new.

    Only points that changed are read, and after a few iterations these are few: an iteration then costs the distances
    alone.
    """
    s, k = len(labels_S), len(counts_K)
    rows = min(_MOVED_ROWS, s)
    changed_S = labels_S != old_S
    many = jnp.sum(changed_S)
    which_S = jnp.nonzero(changed_S, size=s + rows, fill_value=0)[0]

    def move(state):
        first, sums_KxD, counts_K = state
        which_R = lax.dynamic_slice(which_S, (first,), (rows,))
        real_R = first + jnp.arange(rows) < many
        moves_RxK = jax.nn.one_hot(labels_S[which_R], k) - jax.nn.one_hot(old_S[which_R], k)
        moves_RxK = moves_RxK * real_R[:, None]
        sums_KxD += programs.dot(moves_RxK.T, _steps(points_SxD[which_R], grid))
        return first + rows, sums_KxD, counts_K + jnp.sum(moves_RxK, axis=0).astype(jnp.int64)

    return lax.while_loop(lambda state: state[0] < many, move, (0, sums_KxD, counts_K))[1:]


def _steps(points, grid):
    """Points as whole numbers of grid steps."""
    return jnp.round(points.astype(jnp.float64) / grid)


def _errors(points_SxD, labels_S, real_S, centroids_KxD):
    """Squared distance of every point to its own centroid, in difference form; 0 for the filling."""

    def error(point_D, label):
        own_D = centroids_KxD[jnp.minimum(label, len(centroids_KxD) - 1)]
        return jnp.sum(jnp.square(point_D.astype(jnp.float64) - own_D)).astype(jnp.float32)

    batch = min(programs.BLOCK_ROWS, len(points_SxD))
    errors_S = lax.map(lambda row: error(*row), (points_SxD, labels_S), batch_size=batch)
    return jnp.where(real_S, errors_S, 0)


def _repair(points_SxD, centroids_KxD, labels_S, real_S, floor, grid, sums_KxD, counts_K):
    """Give every empty cluster the point farthest from its centroid, among clusters that hold more than one."""
    k, me = len(counts_K), lax.axis_index(AXIS)
    empty_K = jnp.nonzero(counts_K == 0, size=k)[0]

    def fill(state):
        done, sums_KxD, counts_K, errors_S, repaired = state
        cluster = empty_K[done]
        free_S = jnp.where(real_S & (counts_K[jnp.minimum(labels_S, k - 1)] > 1), errors_S, 0)
        own = jnp.argmax(free_S)
        farthest_P = lax.all_gather(free_S[own], AXIS)
        whose = jnp.argmax(farthest_P)
        mine = me == whose
        giver, point_D = lax.psum(
            jax.tree.map(lambda x: jnp.where(mine, x, 0), (labels_S[own], _steps(points_SxD[own], grid))), AXIS
        )
        move = farthest_P[whose] > floor
        given_D = jnp.where(move, point_D, 0)
        sums_KxD = sums_KxD.at[giver].add(-given_D).at[cluster].add(given_D)
        counts_K = counts_K.at[giver].add(-move.astype(jnp.int64)).at[cluster].add(move.astype(jnp.int64))
        errors_S = errors_S.at[own].set(jnp.where(move & mine, 0, errors_S[own]))
        return done + 1, sums_KxD, counts_K, errors_S, repaired | move

    begin = 0, sums_KxD, counts_K, _errors(points_SxD, labels_S, real_S, centroids_KxD), jnp.array(False)
    many = jnp.sum(counts_K == 0)
    _, sums_KxD, counts_K, _, repaired = lax.while_loop(lambda state: state[0] < many, fill, begin)
    return sums_KxD, counts_K, repaired
