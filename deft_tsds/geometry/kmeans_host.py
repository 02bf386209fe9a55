"""Lloyd's iterations on a CPU: what `kmeans_mesh.lloyd` does, by the host's BLAS, and for fewer points.

**Which label is right.** The nearest centroid by distances in float64, the lower index of two. A float32 product gives
every pair a score |c|^2 - 2 x.c with a bound on its error; where that leaves two centroids or more, they are measured
in difference form. Sums over clusters are exact: float64 of points on a grid (`mesh.grid`). So neither blocks nor
threads can change a label, nor can a mesh of devices (`kmeans_mesh`).

**Which points are looked at.** Those whose labels `kmeans_bounds` cannot tell. Sums follow the labels, so that points
which keep theirs are not read for them either.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy.sparse import csr_array
from threadpoolctl import threadpool_limits

from deft_tsds.arrays import row_blocks, usable_cpus
from deft_tsds.geometry.buffers import Buffers
from deft_tsds.geometry.kmeans_bounds import bounds_for, squares
from deft_tsds.geometry.mesh import grid

_ROWS = 2048  # points of one product, fewer where there are so many centroids that it would be larger than this
_SCORES = 2**22
_MOVED_ROWS = 512  # points that change their cluster, at a time: few in most iterations, yet for all threads


def lloyd(
    points_NxD: np.ndarray,
    centroids_KxD: np.ndarray,
    max_iterations: int,
    movement: float,
    floor: float,
    spherical: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, bool]:
    """Lloyd's iterations until the labels stay, the centroids move by at most `movement`, or `max_iterations`.

    Returns:
        centroids_KxD float32, labels_N int32, errors_N float32 (squared distances to them), iterations, converged.
    """
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(usable_cpus()) as threads:
        clusters = _Clusters(points_NxD, centroids_KxD, threads)
        iterations, converged = 0, False
        while iterations < max_iterations and not converged:
            old_KxD = clusters.centroids_KxD
            changed = clusters.assign()
            sums_KxD, counts_K, repaired = clusters.repaired(floor)
            new_KxD = np.where(counts_K[:, None] > 0, sums_KxD / np.maximum(counts_K, 1)[:, None], old_KxD)
            if spherical:
                lengths_K = np.sqrt(np.einsum("kd,kd->k", new_KxD, new_KxD))
                new_KxD = np.where(lengths_K[:, None] > 0, new_KxD / np.maximum(lengths_K, 1e-300)[:, None], old_KxD)
            clusters.centroids_KxD = new_KxD.astype(np.float32)
            still = not changed or squares(clusters.centroids_KxD - old_KxD.astype(np.float64)).sum() <= movement
            # A repair moves a centroid after the labels were given: they have to be given once more.
            converged = still and not repaired
            iterations += 1
        clusters.assign()
        return clusters.centroids_KxD, clusters.labels_N, clusters.errors(), iterations, converged


class _Clusters:
    """Centroids, the label of each point, and the sum and number of the points of each cluster by the labels."""

    def __init__(self, points_NxD: np.ndarray, centroids_KxD: np.ndarray, threads: ThreadPoolExecutor):
        n, k = len(points_NxD), len(centroids_KxD)
        self.points_NxD, self.threads, self.buffers = points_NxD, threads, Buffers()
        self.centroids_KxD = centroids_KxD
        self.step = max(1, min(_ROWS, _SCORES // k))
        self.labels_N = np.full(n, -1, np.int32)
        self.sums_KxD, self.counts_K = np.zeros(centroids_KxD.shape), np.zeros(k, np.int64)
        self.squares_N = self._by_points(lambda x_RxD, _: squares(x_RxD), np.float64)
        self.grid = grid(math.sqrt(self.squares_N.max()), n)
        self.bounds = bounds_for(points_NxD, self.squares_N, k, threads)

    def assign(self) -> bool:
        """Bring labels and sums up to date with the centroids; whether any label changed."""
        old_N = self.labels_N.copy()
        rows = self.bounds.open_rows(self.centroids_KxD, self.labels_N)
        self.bounds.note(rows, self._measure(rows))
        changed = np.flatnonzero(self.labels_N != old_N)
        self._move(changed, old_N[changed])
        return len(changed) > 0

    def _measure(self, rows: np.ndarray) -> np.ndarray:
        """Label some points, in ascending order. Returns how much farther the second nearest centroid is."""
        gaps_R = np.empty(len(rows))
        squares_K, factor_DxK = squares(self.centroids_KxD), np.ascontiguousarray(-2 * self.centroids_KxD.T)
        largest = np.sqrt(squares_K.max())

        def label(piece: slice) -> None:
            rows_P, places = rows[piece], np.arange(len(rows[piece]))
            # |c|^2 - 2 x.c
            scores_PxK = self.buffers.get("scores", (len(rows_P), len(squares_K)), np.float32)
            np.matmul(self._rows(rows_P), factor_DxK, out=scores_PxK)
            scores_PxK += squares_K
            labels_P = scores_PxK.argmin(axis=1)
            first_P = scores_PxK[places, labels_P].astype(np.float64)
            scores_PxK[places, labels_P] = np.inf
            second_P = scores_PxK[places, scores_PxK.argmin(axis=1)].astype(np.float64)  # twice as fast as `min`
            # Any order of summation errs by at most D 2^-24 of the sum of the absolute products (Higham, section 3.1).
            scale_P = (np.sqrt(self.squares_N[rows_P]) + largest) ** 2
            error_P = (self.points_NxD.shape[1] + 8) * (2.0**-23 * scale_P + np.finfo(np.float32).tiny)
            close = np.flatnonzero(second_P - first_P <= 2 * error_P)
            if len(close):
                scores_PxK[close, labels_P[close]] = first_P[close]
                limits = (first_P + 2 * error_P)[close]
                labels_P[close] = self._nearest(rows_P[close], scores_PxK[close] <= limits[:, None])
            self.labels_N[rows_P] = labels_P
            first_P += self.squares_N[rows_P] + error_P
            second_P += self.squares_N[rows_P] - error_P
            gaps_R[piece] = np.sqrt(np.maximum(second_P, 0)) - np.sqrt(first_P)

        step = min(self.step, max(_MOVED_ROWS, len(rows) // 4))
        list(self.threads.map(label, row_blocks(len(rows), 1, step)))
        return gaps_R

    def _nearest(self, rows: np.ndarray, near_RxK: np.ndarray) -> np.ndarray:
        """The nearest centroids of some points by distances in float64, of those that are marked."""
        squares_RxK = np.full(near_RxK.shape, np.inf)
        near = np.nonzero(near_RxK)
        for pairs in row_blocks(len(near[0]), row_bytes=8 * self.points_NxD.shape[1], budget_bytes=2**20):
            r, k = near[0][pairs], near[1][pairs]
            squares_RxK[r, k] = squares(self.points_NxD[rows[r]].astype(np.float64) - self.centroids_KxD[k])
        return squares_RxK.argmin(axis=1)

    def _move(self, rows: np.ndarray, old_R: np.ndarray) -> None:
        """Take points out of the sums of their old clusters into those of their new ones: after a few iterations these
        are few."""
        new_R = self.labels_N[rows]
        order_R = np.argsort(new_R, kind="stable")  # so that the points of one product have few clusters
        rows, old_R, new_R = rows[order_R], old_R[order_R], new_R[order_R]

        def sums(piece: slice) -> tuple[np.ndarray, np.ndarray]:
            x_RxD = self.buffers.take(self.points_NxD, rows[piece], "points")
            exact_RxD = self.buffers.get("exact", x_RxD.shape, np.float64)
            np.rint(np.divide(x_RxD, self.grid, out=exact_RxD), out=exact_RxD)
            left = np.flatnonzero(old_R[piece] >= 0)
            labels = np.concatenate([new_R[piece], old_R[piece][left]])
            of_S, clusters = np.unique(labels, return_inverse=True)
            signs = np.repeat([1.0, -1.0], [len(x_RxD), len(left)])
            places = np.concatenate([np.arange(len(x_RxD)), left])
            signs_SxR = csr_array((signs, (clusters, places)), shape=(len(of_S), len(x_RxD)))
            return of_S, np.multiply(self.grid, signs_SxR @ exact_RxD)

        for of_S, sums_SxD in self.threads.map(sums, row_blocks(len(rows), 1, _MOVED_ROWS)):
            self.sums_KxD[of_S] += sums_SxD
        k = len(self.counts_K)
        self.counts_K += np.bincount(new_R, minlength=k) - np.bincount(old_R[old_R >= 0], minlength=k)

    def repaired(self, floor: float) -> tuple[np.ndarray, np.ndarray, bool]:
        """Sums and numbers where every empty cluster has got the point farthest from its centroid, among clusters that
        hold more than one; and whether there was one."""
        sums_KxD, counts_K, repaired = self.sums_KxD, self.counts_K, False
        empty = np.flatnonzero(counts_K == 0)
        if len(empty):
            sums_KxD, counts_K, errors_N = sums_KxD.copy(), counts_K.copy(), self.errors()
            for cluster in empty:
                free_N = np.where(counts_K[self.labels_N] > 1, errors_N, 0)
                farthest = free_N.argmax()
                if free_N[farthest] <= floor:
                    break
                point_D = self.grid * np.rint(self.points_NxD[farthest] / self.grid)
                sums_KxD[self.labels_N[farthest]] -= point_D
                sums_KxD[cluster] = point_D
                counts_K[self.labels_N[farthest]] -= 1
                counts_K[cluster] = 1
                errors_N[farthest] = 0
                repaired = True
        return sums_KxD, counts_K, repaired

    def errors(self) -> np.ndarray:
        """Squared distance of every point to its own centroid, in difference form, float32 [N]."""

        def errors(x_RxD: np.ndarray, rows: slice) -> np.ndarray:
            difference_RxD = self.buffers.take(self.centroids_KxD, self.labels_N[rows], "points")
            return squares(np.subtract(x_RxD, difference_RxD, out=difference_RxD))

        return self._by_points(errors, np.float32)

    def _by_points(self, function, dtype) -> np.ndarray:
        """A number for each point, by blocks."""
        out_N = np.empty(len(self.points_NxD), dtype)

        def fill(rows: slice) -> None:
            out_N[rows] = function(self.points_NxD[rows], rows)

        list(self.threads.map(fill, row_blocks(len(out_N), 1, self.step)))
        return out_N

    def _rows(self, rows: np.ndarray) -> np.ndarray:
        """Some points, in ascending order: as they lie where none is left out, else in a buffer."""
        if rows[-1] - rows[0] == len(rows) - 1:
            return self.points_NxD[rows[0] : rows[-1] + 1]
        return self.buffers.take(self.points_NxD, rows, "points")
