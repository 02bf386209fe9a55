"""Points sorted into cells about centroids, with numbers a point that bound distances between points of two cells.

The cells are k-means cells, roughly: how good they are decides how much a bound rules out, never an answer. Cells and
bounds are about a common centre. u is a row minus the centroid of its cell.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import Mesh
from scipy.sparse import csr_array

from deft_tsds.arrays import row_blocks
from deft_tsds.geometry.mesh import Part, exchanged, own_rows, processes, rows_of

_CELL = 250  # rows of a cell, on average, but no more cells than this, nor than 0.8 sqrt N
_CELLS = 512
_TILE = 512  # a larger cell is cut into tiles
_CENTROID_ROWS = 2**17  # the centroids are means of so many rows, or up to twice as many
_BLOCK = 1024


@dataclass(frozen=True, eq=False)
class Cells:
    """Centroids of K cells and what is known between them.

    Attributes:
        center_D: float32, what is subtracted from every row.
        radius: the largest norm of a row about the centre.
        centroids_KxD: float32, about the centre.
        squares_KxK: float64, |c_a - c_b|^2, symmetric to the last bit: both ends of a pair must judge it alike.
        basis_DxE: float32, orthonormal: the E directions in which u varies most. E may be 0.
    """

    center_D: np.ndarray
    radius: float
    centroids_KxD: np.ndarray
    squares_KxK: np.ndarray
    basis_DxE: np.ndarray


@dataclass(frozen=True, eq=False)
class Packed:
    """Rows sorted by cell and cut into T tiles, each within one cell.

    Attributes:
        order_N: which row of the matrix each packed row is.
        tiles: the packed rows of each tile.
        sizes_T: rows of each tile.
        cell_T, cell_N: the cell of each tile and of each packed row.
        rows_NxF: float32, F = D + 4: x about the origin asked for, |x|^2, what float32 leaves of it, 1, 1.
        squares_N: float32, |u|^2.
        reach_KxN: u.(c_k - c_own), how far a row reaches towards another centroid: the largest of these matrices, so
            it is kept in 16 bits (`halved`, upwards: a bound stays one) and read by `reach`.
        reach_TxK: float32, the farthest of a tile.
        sketch_NxE: float32, E + 2 columns: Pu for the projection P on the basis; |u - Pu|, rounded upwards; 1. No
            columns without a basis.
    """

    order_N: np.ndarray
    tiles: Sequence[slice]
    sizes_T: np.ndarray
    cell_T: np.ndarray
    cell_N: np.ndarray
    rows_NxF: np.ndarray
    squares_N: np.ndarray
    reach_KxN: np.ndarray
    reach_TxK: np.ndarray
    sketch_NxE: np.ndarray

    def reach(self, cells: int | slice, rows: slice | np.ndarray = slice(None)) -> np.ndarray:
        """float32, the reach of some packed rows towards one cell or some."""
        bits = self.reach_KxN[cells, rows].astype(np.uint32)
        return np.left_shift(bits, 16, out=bits).view(np.float32)


def halved(numbers: np.ndarray) -> np.ndarray:
    """The upper halves, uint16, of finite float32 numbers: rounded upwards, by less than 1 part in 128."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.int32)
    # Of a negative number what is cut off brings it up; to a positive one, all ones below are added.
    return ((bits + (0xFFFF & ~(bits >> 31))) >> 16).astype(np.uint16)


def rounding(d: int, radius: float) -> float:
    """A bound on the rounding of a squared distance that a few float32 products over D columns make up.

    One product errs by at most about D 2^-24 of the norms, and in practice by the root of that.
    """
    return 64 * (d + 8) * 2.0**-24 * radius**2


def find_cells(
    points_UxD: np.ndarray,
    pool_NxD: np.ndarray,
    threads: ThreadPoolExecutor,
    *,
    dimensions: int,
    mesh: Mesh | None = None,
) -> Cells:
    """Cells of the pool, and a basis of so many dimensions, about the mean of the points. On a mesh every process has
    the points and reads its own rows of the pool."""
    n, d = pool_NxD.shape
    # A shift changes no distance, but it shrinks the norms and with them the rounding.
    center_D = _mean(points_UxD, threads)
    radius = _largest_norm(points_UxD, center_D, threads)
    if pool_NxD is not points_UxD:
        own = _largest_norm(Part(pool_NxD, own_rows(mesh, n)), center_D, threads)
        radius = max(radius, float(exchanged(mesh, np.array([own])).max()))
    k = max(1, min(n // _CELL, 4 * math.isqrt(n) // 5, _CELLS))
    rng = np.random.default_rng(0)  # a fixed seed is right here: no answer depends on the cells
    sample_SxD = rows_of(mesh, pool_NxD, np.sort(rng.choice(n, min(n, 20 * k), replace=False))) - center_D
    centroids_KxD = _farthest_first(rng.permutation(sample_SxD)[: 10 * k], k)
    for _ in range(2):
        centroids_KxD = _lloyd(sample_SxD, np.float32(0), centroids_KxD, threads)
    # Centroids of a small sample lie off the middle of their cells, and that costs more than this pass.
    step = 1 + n // _CENTROID_ROWS
    more_RxD = pool_NxD[::step] if processes(mesh).size == 1 else rows_of(mesh, pool_NxD, np.arange(0, n, step))
    centroids_KxD = _lloyd(more_RxD, center_D, centroids_KxD, threads)

    # Cells that lie together get numbers that do: the first centroids of all are far apart and serve as their middles.
    coarse_K = _nearest(centroids_KxD, centroids_KxD[: math.isqrt(k)])
    centroids_KxD = centroids_KxD[np.argsort(coarse_K, kind="stable")]

    basis_DxE = np.empty((d, 0), np.float32)
    if dimensions:
        u_SxD = sample_SxD - centroids_KxD[_nearest(sample_SxD, centroids_KxD)]
        basis_DxE = np.ascontiguousarray(np.linalg.eigh(u_SxD.T @ u_SxD)[1][:, -dimensions:])
    exact_KxD = centroids_KxD.astype(np.float64)
    norms_K = squares(exact_KxD)
    squares_KxK = np.maximum(norms_K[:, None] - 2 * exact_KxD @ exact_KxD.T + norms_K, 0)
    squares_KxK = (squares_KxK + squares_KxK.T) / 2
    np.fill_diagonal(squares_KxK, 0)
    return Cells(center_D, radius, centroids_KxD, squares_KxK, basis_DxE)


def pack(matrix_NxD: np.ndarray, cells: Cells, threads: ThreadPoolExecutor, *, origin_D: np.ndarray) -> Packed:
    """Sort rows [N, D] into their cells, and keep them about an origin."""
    centroids_KxD, (n, d), k = cells.centroids_KxD, matrix_NxD.shape, len(cells.centroids_KxD)

    def label(rows: slice) -> np.ndarray:
        return _nearest(matrix_NxD[rows] - cells.center_D, centroids_KxD)

    labels_N = np.concatenate(list(threads.map(label, row_blocks(n, 1, _BLOCK))))
    order_N, starts = _sort(labels_N)
    tiles = []
    for start, stop in zip(starts, [*starts[1:], n], strict=True):
        step = -(-(stop - start) // -(-(stop - start) // _TILE))  # equal sizes
        tiles += [slice(int(row), int(min(row + step, stop))) for row in range(start, stop, step)]
    cell_N = labels_N[order_N]
    sizes_T = np.array([tile.stop - tile.start for tile in tiles])
    cell_T = cell_N[[tile.start for tile in tiles]]

    rows_NxF, squares_N = np.empty((n, d + 4), np.float32), np.empty(n, np.float32)
    reach_KxN, reach_TxK = np.empty((k, n), np.uint16), np.empty((len(tiles), k), np.float32)
    width = cells.basis_DxE.shape[1]
    sketch_NxE = np.empty((n, width + 2 if width else 0), np.float32)
    centred = np.array_equal(origin_D, cells.center_D)

    def measure(t: int) -> None:
        tile, own_D = tiles[t], centroids_KxD[cell_T[t]]
        rows_NxF[tile, :d] = matrix_NxD[order_N[tile]] - origin_D
        norms_R = squares(rows_NxF[tile, :d].astype(np.float64))
        rows_NxF[tile, d] = norms_R
        rows_NxF[tile, d + 1] = norms_R - rows_NxF[tile, d]
        rows_NxF[tile, d + 2 :] = 1
        about_RxD = rows_NxF[tile, :d] if centred else matrix_NxD[order_N[tile]] - cells.center_D
        u_RxD = about_RxD - own_D
        squares_N[tile] = squares(u_RxD)
        reach_KxR = (centroids_KxD - own_D) @ u_RxD.T
        reach_KxN[:, tile] = halved(reach_KxR)
        reach_TxK[t] = reach_KxR.max(axis=1)
        if width:
            sketch_NxE[tile, :-2] = projected_RxE = u_RxD @ cells.basis_DxE
            rest_R = np.maximum(squares_N[tile] - squares(projected_RxE), 0)
            sketch_NxE[tile, -2] = np.sqrt(rest_R + 4 * (d + 8) * 2.0**-24 * squares_N[tile])
            sketch_NxE[tile, -1] = 1

    list(threads.map(measure, range(len(tiles))))
    return Packed(order_N, tiles, sizes_T, cell_T, cell_N, rows_NxF, squares_N, reach_KxN, reach_TxK, sketch_NxE)


def _lloyd(rows_NxD: np.ndarray, center_D: Any, centroids_KxD: np.ndarray, threads: ThreadPoolExecutor) -> np.ndarray:
    """One of Lloyd's iterations, of the rows minus a centre. A centroid without rows stays."""
    k = len(centroids_KxD)

    def block(rows: slice) -> tuple[np.ndarray, np.ndarray]:
        x_RxD = rows_NxD[rows] - center_D
        labels_R = _nearest(x_RxD, centroids_KxD)
        of_row_RxK = csr_array((np.ones_like(x_RxD[:, 0]), labels_R, np.arange(len(x_RxD) + 1)), shape=(len(x_RxD), k))
        return of_row_RxK.T @ x_RxD, np.bincount(labels_R, minlength=k)

    sums_KxD, sizes_K = np.zeros_like(centroids_KxD), np.zeros(k, np.float32)
    for block_sums_KxD, block_sizes_K in threads.map(block, row_blocks(len(rows_NxD), 1, _BLOCK)):
        sums_KxD += block_sums_KxD
        sizes_K += block_sizes_K
    return np.where(sizes_K[:, None] > 0, sums_KxD / np.maximum(sizes_K, 1)[:, None], centroids_KxD)


def _farthest_first(rows_SxD: np.ndarray, k: int) -> np.ndarray:
    """k rows, each the farthest from those before: it meets every cluster that stands apart."""
    squares_S = squares(rows_SxD)
    nearest_S, chosen = np.full(len(rows_SxD), np.inf, np.float32), [0]
    while len(chosen) < k:
        last = chosen[-1]
        nearest_S = np.minimum(nearest_S, squares_S - 2 * (rows_SxD @ rows_SxD[last]) + squares_S[last])
        chosen.append(int(nearest_S.argmax()))
    return rows_SxD[chosen]


def _nearest(rows_NxD: np.ndarray, centroids_KxD: np.ndarray) -> np.ndarray:
    scores_NxK = rows_NxD @ centroids_KxD.T
    scores_NxK -= squares(centroids_KxD) / 2
    return scores_NxK.argmax(axis=1)


def _sort(labels_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows in the order of their labels, and where each label starts."""
    order_N = np.argsort(labels_N, kind="stable")
    return order_N, np.unique(labels_N[order_N], return_index=True)[1]


def squares(rows_NxD: np.ndarray) -> np.ndarray:
    """|x|^2 of each row."""
    return np.einsum("nd,nd->n", rows_NxD, rows_NxD)


def _mean(matrix_NxD: np.ndarray, threads: ThreadPoolExecutor) -> np.ndarray:
    """float32, by sums in float64."""
    sums = threads.map(lambda rows: matrix_NxD[rows].sum(axis=0, dtype=np.float64), _blocks(matrix_NxD))
    return np.asarray(sum(sums) / len(matrix_NxD), dtype=np.float32)


def _largest_norm(matrix: Any, center_D: np.ndarray, threads: ThreadPoolExecutor) -> float:
    largest = threads.map(lambda rows: float(squares(matrix[rows] - center_D).max()), _blocks(matrix))
    return math.sqrt(max(largest, default=0.0))


def _blocks(matrix: Any) -> Iterator[slice]:
    return row_blocks(len(matrix), row_bytes=4 * matrix.shape[1], budget_bytes=2**22)
