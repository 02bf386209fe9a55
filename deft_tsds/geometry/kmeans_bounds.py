"""Which labels of a clustering are certain without a look at the points.

Two bounds. `Gaps` keeps two numbers a point, for any number of clusters. `Sketch` keeps some dozens and rules out far
more, as long as they are few beside the dimensions. Both leave a margin for rounding, so neither changes a label.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from deft_tsds.arrays import row_blocks
from deft_tsds.geometry.buffers import Buffers

# To look at all points as they lie costs no more than to gather so large a share of them.
_MOST = 0.85

# So many past centroids are kept to measure movements from; then all points are looked at once more.
_HISTORY = 32

# So many sets of centroids span the directions of a sketch: place, speed and the change of speed.
_SETS = 3

# Points of one product with the directions, and scores of one block: smaller blocks cost more in calls
_ROWS = 2048
_SCORES = 2**17

_TINY = np.finfo(np.float32).tiny


def bounds_for(points_NxD: np.ndarray, squares_N: np.ndarray, k: int, threads: ThreadPoolExecutor) -> Gaps | Sketch:
    """A sketch while it reads at most a sixth of the numbers of the points: 3 K <= D / 6. Gaps cost nothing."""
    n, d = points_NxD.shape
    return Sketch(points_NxD, squares_N, threads) if 6 * _SETS * k <= d else Gaps(n)


class Gaps:
    """When a point is measured, its gap is how much farther its second nearest centroid is than its own. By the
    triangle inequality its label stays as long as its own centroid and the fastest of the others have together moved by
    less than that (Hamerly, "Making k-means even faster", 2010; straight from where they were when the point was
    measured, as Newling and Fleuret, "Fast k-means with accurate bounds", 2016, not step by step)."""

    def __init__(self, n: int):
        self.gaps_N = np.empty(n)
        self.times_N = np.empty(n, np.int32)  # which of the past centroids each gap is about
        self.past_TxKxD: list[np.ndarray] = []

    def open_rows(self, centroids_KxD: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
        """The points whose labels may change, ascending row numbers."""
        if len(self.past_TxKxD) in (0, _HISTORY):
            self.past_TxKxD = [centroids_KxD]
            return np.arange(len(labels_N))
        steps = (centroids_KxD - past_KxD for past_KxD in self.past_TxKxD)
        moved_TxK = np.sqrt(np.stack([squares(step_KxD) for step_KxD in steps]))
        times_T, fastest_T = np.arange(len(moved_TxK)), moved_TxK.argmax(axis=1)
        limits_TxK = moved_TxK + moved_TxK.max(axis=1, keepdims=True)
        slower_TxK = moved_TxK.copy()
        slower_TxK[times_T, fastest_T] = 0
        limits_TxK[times_T, fastest_T] = moved_TxK.max(axis=1) + slower_TxK.max(axis=1)
        # For the rounding of the steps and their squares, and for what of these is lost below the smallest numbers.
        limits_TxK = limits_TxK * (1 + (centroids_KxD.shape[1] + 8) * 2.0**-23) + np.sqrt(_TINY)
        self.past_TxKxD.append(centroids_KxD)
        open_N = self.gaps_N <= limits_TxK[self.times_N, labels_N]
        if np.count_nonzero(open_N) > _MOST * len(open_N):
            open_N[:] = True
        return np.flatnonzero(open_N)

    def note(self, rows: np.ndarray, gaps_R: np.ndarray) -> None:
        """What was measured."""
        self.gaps_N[rows] = gaps_R
        self.times_N[rows] = len(self.past_TxKxD) - 1


class Sketch:
    """Centroids move less and less, and mostly along the directions in which they moved before. Let Q be a basis of the
    last three sets of them. With z = Q'x known for every point x, and centroids written as c = Qa + r,

        |x - c_k|^2 - |x - c_l|^2 = |c_k|^2 - |c_l|^2 - 2 z.(a_k - a_l) - 2 (x - Qz).(r_k - r_l)

    and the last term is at most 2 |x - Qz| |r_k - r_l|. Where the others exceed that for all k, the label l is certain.
    The products with Q are paid once; after that an iteration reads z and those points alone that stay open. Their
    number grows as the centroids leave the span of Q. When, since Q was made, as many points were open as there are in
    all, the next Q is worth its cost.
    """

    def __init__(self, points_NxD: np.ndarray, squares_N: np.ndarray, threads: ThreadPoolExecutor):
        self.points_NxD, self.squares_N, self.threads, self.buffers = points_NxD, squares_N, threads, Buffers()
        self.past: list[np.ndarray] = []
        self.norms_N = np.sqrt(squares_N)
        self.opened = len(points_NxD)  # since Q was made

    def open_rows(self, centroids_KxD: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
        """Put those labels that are certain in their places; the other points, ascending row numbers."""
        self.past = [*self.past, centroids_KxD][-_SETS:]
        if self.opened < len(labels_N):
            rows = self._label(centroids_KxD, labels_N)
            self.opened += len(rows)
            if self.opened < len(labels_N):
                return rows
        self._project()
        rows = self._label(centroids_KxD, labels_N)
        self.opened = len(rows)
        return rows

    def note(self, rows: np.ndarray, gaps_R: np.ndarray) -> None:
        """Nothing is kept of what was measured."""

    def _project(self) -> None:
        """A new basis, and the points in it."""
        directions_DxE = np.linalg.qr(np.concatenate(self.past).T.astype(np.float64))[0]
        self.basis_DxE = np.ascontiguousarray(directions_DxE, np.float32)
        n, (d, e) = len(self.points_NxD), self.basis_DxE.shape
        # Of a score |c|^2 - 2 z.a, as a share of (|x| + |c|)^2. Any order of summation errs by at most D 2^-24 of the
        # sum of the absolute products (Higham, section 3.1), in each of the E coordinates.
        self.error = (d * np.sqrt(e) + e + 16) * 2.0**-24
        # Coordinates first, points last: with few clusters all that follows is then done many points at a time.
        self.z_ExN, self.rest_N = np.ones((e + 1, n), np.float32), np.empty(n, np.float32)

        def project(rows: slice) -> None:
            z_ExR = np.matmul(self.basis_DxE.T, self.points_NxD[rows].T, out=self.z_ExN[:e, rows])
            rest_R = self.squares_N[rows] * (1 + 4 * self.error) - np.einsum("er,er->r", z_ExR, z_ExR)
            self.rest_N[rows] = np.sqrt(np.maximum(rest_R, 0))

        list(self.threads.map(project, row_blocks(n, 1, _ROWS)))

    def _label(self, centroids_KxD: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
        n, k, d = len(labels_N), *centroids_KxD.shape
        exact_KxD, basis_DxE = centroids_KxD.astype(np.float64), self.basis_DxE.astype(np.float64)
        a_KxE = (exact_KxD @ basis_DxE).astype(np.float32)
        r_KxD = exact_KxD - a_KxE @ basis_DxE.T
        apart_KxK = squares((r_KxD[:, None] - r_KxD).reshape(-1, d)).reshape(k, k)
        width_KxK = (2 * np.sqrt(apart_KxK)).astype(np.float32)
        squares_K = squares(exact_KxD)
        largest = np.sqrt(squares_K.max())
        np.maximum(labels_N, 0, out=labels_N)  # before the first iteration there are none
        left_KxE = np.concatenate([-2 * a_KxE, squares_K.astype(np.float32)[:, None]], axis=1)

        def label(rows: slice) -> np.ndarray:
            shape = k, rows.stop - rows.start
            scores_KxR = np.matmul(left_KxE, self.z_ExN[:, rows], out=self.buffers.get("scores", shape, np.float32))
            labels_R, best_R = labels_N[rows], scores_KxR.min(axis=0)
            lost_S = np.flatnonzero(scores_KxR[labels_R, np.arange(len(labels_R))] > best_R)  # in most iterations, few
            labels_R[lost_S] = scores_KxR[:, lost_S].argmin(axis=0)
            error_R = self.error * (self.norms_N[rows] + largest) ** 2 + (d + 8) * _TINY
            limits_KxR = self.buffers.get("limits", shape, np.float32)
            np.take(width_KxK, labels_R, axis=1, out=limits_KxR, mode="clip")
            limits_KxR *= self.rest_N[rows]
            limits_KxR += (best_R + 2 * error_R).astype(np.float32)
            near_KxR = np.less_equal(scores_KxR, limits_KxR, out=self.buffers.get("near", shape, bool))
            return rows.start + np.flatnonzero(near_KxR.view(np.uint8).sum(axis=0, dtype=np.uint8) > 1)  # itself is one

        return np.concatenate(list(self.threads.map(label, row_blocks(n, k, _SCORES))))


def squares(rows_NxD: np.ndarray) -> np.ndarray:
    """|x|^2 of each row."""
    return np.einsum("nd,nd->n", rows_NxD, rows_NxD)
