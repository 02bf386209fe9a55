"""Kernel density with compact support: how crowded the place of each point is.

Most pairs of points are farther apart than the bandwidth and add nothing to the sums. The points are sorted into cells
about centroids. For x in the cell about c_a and y in the cell about c_b, write u = x - c_a, v = y - c_b and
delta = c_b - c_a. Then

    |x - y|^2 = |delta|^2 + |u|^2 + |v|^2 - 2 u.delta - 2 v.(-delta) - 2 u.v

where u.delta, how far x reaches towards b, is known for every point and every centroid. Three bounds follow, each
dearer and sharper than the one before:

- Tiles. If |x - y| <= h, then u.delta + v.(-delta) >= |delta|^2 - h |delta|, for the slab between the two must be
  narrow. Where even the farthest reaches of two tiles fail this, the pair of tiles is skipped.
- Rows. Of such x and y one reaches at least half of that, so it is enough to compare the rows of a that reach so far
  with all of b, and the rows of b that do with all of a.
- Sketch. u.v <= Pu.Pv + |Qu| |Qv| for a projection P on a few dimensions, Q = 1 - P: a product over fewer columns.

What is left is measured; where that is nearly everything, in strips without regard to cells. No bound changes a sum
beyond rounding: each leaves a margin for its own.

On a mesh the work is dealt out to the processes and their accelerators in pieces that are the same on any mesh: tiles
of points, blocks of a separate pool. Sums over pieces are exact (`mesh.grid`), so that no mesh can change a density.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from threadpoolctl import threadpool_limits

from deft_tsds.arrays import Rows, check_real, check_same_width, row_blocks, usable_cpus
from deft_tsds.geometry.buffers import Buffers
from deft_tsds.geometry.cells import Cells, Packed, find_cells, pack, rounding, squares
from deft_tsds.geometry.mesh import Layout, as_shared_matrix, grid, mesh_of, place_of, processes, rows_of, summed
from deft_tsds.runs import track

_ROWS = 2048  # rows that are compared with one tile at a time
_POOL_ROWS = 2**17  # rows of a separate pool that are held at a time
_DEVICE_BLOCK = 2048
_STRIP = 1024  # rows that are compared with all others where cells rule nothing out

# The sketch keeps a quarter of the dimensions. It is not worth its basis for fewer pairs than this.
_SKETCH_PAIRS = 2**26
# To measure one pair by itself costs as much as this many entries of a matrix product.
_PAIR_COST = 40

# The kernel is linear in the squared distance, so near-duplicates need no difference form: an error e in |x - y|^2
# moves a kernel value, which is near 1 for them, by e / h^2 and no more. In float32 |x|^2 - 2 x.y + |y|^2 has e of
# about sqrt(D) 2^-24 (|x|^2 + |y|^2), harmless until h is small beside the norms. Where e / h^2 could exceed this
# tolerance the products are taken in float64. Real errors are below half of the estimate, but alike for all pairs of a
# group of near-duplicates, so that the sums have them too: 2e-6 keeps these within 1e-6. Accelerators pay more for
# float64 than this is worth. Sums over tiles are float64 always.
_KERNEL_TOLERANCE = 2e-6
_DEVICE_TOLERANCE = 1e-5

_Shares = list[tuple[np.ndarray, np.ndarray]]
"""Packed rows, and what to add to their sums."""


def kernel_density(
    points: Any, *, bandwidth: float, pool: Any = None, rows: Any = None, mesh: Mesh | None = None
) -> np.ndarray:
    """Compute rho_j = sum_x max(0, 1 - |x_j - x|^2 / h^2) over all rows x of the pool (TSDS, kernel of its G_KDE).

    Exact. Pairs farther apart than h are ruled out in bulk, as far as the data allow; at worst it takes U N D
    multiplications, half of that without a separate pool. Memory: a copy of the points, and 4 bytes for each point and
    each of up to 512 cells. A separate pool is read in blocks.

    Args:
        points: [U, D] real.
        bandwidth: h > 0, in the units of the L2 distance.
        pool: [N, D] real, may be a memory-map; the points themselves when None (each then counts itself: rho_j >= 1).
        rows: [U] numbers of the rows of `points` that are meant, as in `points[rows]`, but without that copy; all when
            None.
        mesh: the devices to work on, whatever the axes; all devices of all processes when None. Every process holds
            the points, and reads its own rows of a separate pool.

    Returns:
        density_U float32.

    Raises:
        ValueError: bad rows, different widths, bandwidth not above 0, row numbers that `points` does not have.

    Example:
        >>> points = np.array([[0.0, 0.0], [0.0, 0.0], [9.0, 9.0]])  # a row, its copy, and one far away
        >>> dt.kernel_density(points, bandwidth=1.0)
        array([2., 2., 1.], dtype=float32)
    """
    mesh = mesh_of(mesh)
    points_UxD = matrix_NxD = as_shared_matrix(points, "points", mesh)
    rows_U = None if rows is None else _row_numbers(rows, len(matrix_NxD))
    if processes(mesh).size > 1:
        points_UxD = rows_of(mesh, matrix_NxD, np.arange(len(matrix_NxD)) if rows_U is None else rows_U)
    elif rows_U is not None:
        points_UxD = cast(np.ndarray, _Gathered(matrix_NxD, rows_U))
    pool_NxD = points_UxD if pool is None else as_shared_matrix(pool, "pool", mesh)
    check_same_width(points_UxD, pool_NxD, "points", "pool")
    bandwidth = check_real(bandwidth, "bandwidth", above=0.0)

    sketched = points_UxD.shape[1] >= 16 and len(points_UxD) * len(pool_NxD) > _SKETCH_PAIRS
    sums_U = np.zeros(len(points_UxD))
    # One BLAS thread to a worker: the products are small, and a sum then never depends on the number of threads.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(usable_cpus()) as threads:
        dimensions = points_UxD.shape[1] // 4 if sketched else 0
        cells = find_cells(points_UxD, pool_NxD, threads, dimensions=dimensions, mesh=None if pool is None else mesh)
        kernel = _Kernel.of(cells, bandwidth, grid(1, len(pool_NxD)))
        packed = pack(points_UxD, kernel.cells, threads, origin_D=kernel.origin_D)
        mine = Layout.of(processes(mesh), len(pool_NxD), multiple=_POOL_ROWS).mine
        for block in [slice(None)] if pool is None else row_blocks(mine.stop - mine.start, 1, _POOL_ROWS):
            other = packed
            if pool is not None:
                rows_BxD = pool_NxD[mine.start + block.start : mine.start + block.stop]
                other = pack(rows_BxD, kernel.cells, threads, origin_D=kernel.origin_D)
            place = place_of(mesh) if pool is None else (0, 1)
            if jax.default_backend() == "cpu":
                sums_U += _on_host(packed, other, kernel, threads, place)
            else:
                sums_U += _on_devices(packed, other, kernel, mesh, place)
    density_U = np.empty(len(sums_U), np.float32)
    density_U[packed.order_N] = kernel.step * summed(mesh, sums_U)
    return density_U


class _Gathered(Rows):
    """Some rows of a matrix, each read when it is asked for."""

    def __init__(self, matrix_NxD: np.ndarray, rows_U: np.ndarray):
        self._matrix_NxD, self._rows_U = matrix_NxD, rows_U

    @property
    def shape(self) -> tuple[int, int]:
        return len(self._rows_U), self._matrix_NxD.shape[1]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return self._matrix_NxD[self._rows_U[rows]]


def _row_numbers(rows: Any, n: int) -> np.ndarray:
    rows_U = np.asarray(rows)
    if rows_U.ndim != 1 or len(rows_U) == 0 or not np.issubdtype(rows_U.dtype, np.integer):
        raise ValueError(f"rows has shape {rows_U.shape} and dtype {rows_U.dtype}: give a list of row numbers.")
    outside = np.flatnonzero((rows_U < 0) | (rows_U >= n))
    if len(outside):
        raise ValueError(f"rows, entry {outside[0]}, is {rows_U[outside[0]]}: points has the rows 0 to {n - 1}.")
    return rows_U


@dataclass(frozen=True, eq=False)
class _Kernel:
    """The kernel over given cells."""

    cells: Cells
    bandwidth: float
    dtype: Any  # of the products
    origin_D: np.ndarray  # the shift rounds the rows: too much where float64 is needed, and of no use there
    margin: float  # for the rounding of a bound on a squared distance
    reach_KxK: np.ndarray  # float32: two points within h reach so far together, each towards the cell of the other
    step: float  # what a piece adds is rounded to whole steps

    @classmethod
    def of(cls, cells: Cells, bandwidth: float, step: float) -> _Kernel:
        d = len(cells.center_D)
        error = math.sqrt(d) * 2.0**-24 * 2 * cells.radius**2
        tolerance = _KERNEL_TOLERANCE if jax.default_backend() == "cpu" else _DEVICE_TOLERANCE
        dtype = np.float32 if error <= tolerance * bandwidth**2 else np.float64
        margin = rounding(d, cells.radius)
        reach_KxK = cells.squares_KxK - bandwidth * np.sqrt(cells.squares_KxK) - margin
        origin_D = cells.center_D if dtype == np.float32 else np.zeros_like(cells.center_D)
        return cls(cells, bandwidth, dtype, origin_D, margin, reach_KxK.astype(np.float32), step)

    def near_tiles(self, p: Packed, q: Packed) -> np.ndarray:
        """bool [tiles of p, tiles of q]: which pairs of tiles may hold two points within h of each other."""
        together_PxQ = p.reach_TxK[:, q.cell_T] + q.reach_TxK[:, p.cell_T].T
        return together_PxQ >= self.reach_KxK[np.ix_(p.cell_T, q.cell_T)]

    def far(self, p: Packed, cell: int) -> np.ndarray:
        """bool [rows of p]: which reach at least half of that towards a cell. Of two points within h, one does."""
        return p.reach(cell) >= np.repeat(self.reach_KxK[p.cell_T, cell] / 2, p.sizes_T)

    def count_far(self, p: Packed, q: Packed) -> np.ndarray:
        """int32 [tiles of p, tiles of q]: rows of each tile of p that are far towards the cell of each tile of q."""
        starts_T = [tile.start for tile in p.tiles]
        of_cell = {cell: np.add.reduceat(self.far(p, cell), starts_T, dtype=np.int32) for cell in np.unique(q.cell_T)}
        return np.stack([of_cell[cell] for cell in q.cell_T], axis=1)


def _on_host(
    points: Packed, pool: Packed, kernel: _Kernel, threads: ThreadPoolExecutor, place: tuple[int, int]
) -> np.ndarray:
    """Sums for the packed points in steps, float64: what the i-th of so many processes has to add."""
    near_PxQ = kernel.near_tiles(points, pool)
    far_points_PxQ = kernel.count_far(points, pool)
    far_pool_PxQ = kernel.count_far(pool, points).T
    sizes_Px1, sizes_Q = points.sizes_T[:, None], pool.sizes_T
    # With few rows left out, two products over selected rows cost more than one over the tiles as they lie.
    work_PxQ = far_points_PxQ * sizes_Q + (sizes_Px1 - far_points_PxQ) * far_pool_PxQ
    whole_PxQ = near_PxQ & (10 * work_PxQ > 7 * sizes_Px1 * sizes_Q)  # in integers, so alike from both sides
    split_PxQ = near_PxQ & ~whole_PxQ
    if points is pool:  # the matrix of pairs is symmetric: each is taken once and counts for both of its points
        visits = [
            _Visit(points, points, kernel, np.triu(whole_PxQ), np.triu(split_PxQ), np.tril(split_PxQ), (True, True))
        ]
    else:
        none = np.zeros_like
        visits = [
            _Visit(points, pool, kernel, whole_PxQ, split_PxQ, none(split_PxQ), (True, False)),
            _Visit(pool, points, kernel, none(whole_PxQ.T), none(split_PxQ.T), split_PxQ.T, (False, True)),
        ]
    compared = len(points.order_N) * len(pool.order_N)
    if (sizes_Px1 * sizes_Q)[whole_PxQ].sum() > 0.9 * compared and not visits[0].sketched:
        strips = list(row_blocks(len(pool.order_N), 1, _STRIP))  # narrow products for the sake of cells are slower
        jobs = [(visits[0].strip, strips)]
    else:
        jobs = [(visit.column, range(len(visit.q.tiles))) for visit in visits]
    sums_U = np.zeros(len(points.order_N))
    for job, every in jobs:
        mine = every[place[0] :: place[1]]
        for shares in track(threads.map(job, mine), "kernel density", total=len(mine)):
            for rows, values in shares:
                np.add.at(sums_U, rows, np.rint(values / kernel.step))
    return sums_U


class _Visit:
    """The pairs of rows of p with rows of q that have to be compared, one tile of q at a time."""

    def __init__(self, p, q, kernel, whole_PxQ, first_PxQ, second_PxQ, counts_for):
        """whole: all rows of a tile of p. first: its far rows. second: its far rows, with rows of q that are not."""
        self.p, self.q, self.kernel = p, q, kernel
        self.whole_PxQ, self.first_PxQ, self.second_PxQ = whole_PxQ, first_PxQ, second_PxQ
        self.counts_for_p, self.counts_for_q = counts_for
        self.dtype = kernel.dtype
        self.buffers = Buffers()
        self.sketched = p.sketch_NxE.shape[1] > 0 and self._sketch_pays()

    def column(self, j: int) -> _Shares:
        """What the pairs with the rows of tile j of q add to the sums of the points."""
        shares: _Shares = []
        tile = self.q.tiles[j]
        right_RxF = self._right(self.q.rows_NxF[tile])
        for rows, limits_KxR in self._selected(j):
            for start in range(0, len(rows), _ROWS):
                left = rows[start : start + _ROWS]
                if self.sketched:
                    hits_LxR = self._hits(j, left, limits_KxR)
                    found = np.count_nonzero(hits_LxR)
                    busy_L = np.zeros(len(left), bool)
                    if found * _PAIR_COST > hits_LxR.size:
                        busy_L = np.count_nonzero(hits_LxR, axis=1) * _PAIR_COST > hits_LxR.shape[1]
                        hits_LxR[busy_L] = False
                    if found:
                        self._measure_pairs(shares, j, left, hits_LxR)
                    left = left[busy_L]
                if len(left):
                    self._multiply(shares, tile, left, right_RxF, limits_KxR)
        return shares

    def strip(self, columns: slice) -> _Shares:
        """What the pairs of all rows of p with some rows of q add; of p from the same cells, each pair once."""
        shares: _Shares = []
        right_RxF = self._right(self.q.rows_NxF[columns])
        rows = np.arange(columns.stop if self.p is self.q else len(self.p.order_N))
        for start in range(0, len(rows), _ROWS):
            self._multiply(shares, columns, rows[start : start + _ROWS], right_RxF)
        return shares

    def _selected(self, j: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Rows of p to compare with tile j, and limits [cells of p, rows of the tile] that the sketch must reach."""
        p, q, kernel = self.p, self.q, self.kernel
        tile, cell = q.tiles[j], q.cell_T[j]
        far_N = kernel.far(p, cell)
        whole_N, first_N, second_N = (
            np.repeat(tiles_PxQ[:, j], p.sizes_T) for tiles_PxQ in (self.whole_PxQ, self.first_PxQ, self.second_PxQ)
        )
        reach_KxR = q.reach(slice(None), tile)
        limits_KxR = q.squares_N[tile] / 2 - reach_KxR
        # Two far rows meet twice, once from each side: the second time they are out of reach.
        far_KxR = reach_KxR >= kernel.reach_KxK[:, cell, None] / 2
        again_KxR = np.where(far_KxR, np.float32(np.inf), limits_KxR)
        return [
            (np.flatnonzero(whole_N | first_N & far_N), limits_KxR),
            (np.flatnonzero(second_N & far_N), again_KxR),
        ]

    def _hits(self, j: int, left: np.ndarray, limits_KxR: np.ndarray) -> np.ndarray:
        """bool [left, rows of tile j]: which pairs the sketch cannot rule out; in a buffer."""
        p, q, kernel = self.p, self.q, self.kernel
        tile, cell = q.tiles[j], q.cell_T[j]
        shape = len(left), tile.stop - tile.start
        left_LxE = self.buffers.take(p.sketch_NxE, left, "left")
        near_L = kernel.cells.squares_KxK[p.cell_N[left], cell] - kernel.bandwidth**2 - kernel.margin
        left_LxE[:, -1] = p.reach(cell, left) - (p.squares_N[left] + near_L) / 2
        bound_LxR = np.matmul(left_LxE, q.sketch_NxE[tile].T, out=self.buffers.get("product", shape, np.float32))
        limits_LxR = self.buffers.take(limits_KxR, p.cell_N[left], "limits")
        return np.greater_equal(bound_LxR, limits_LxR, out=self.buffers.get("hits", shape, bool))

    def _sketch_pays(self) -> bool:
        """Try it on a few rows of a few tiles: it costs a quarter of the product that it has to save."""
        compared, cost = 1, 0.0
        for j in np.unique(np.linspace(0, len(self.q.tiles) - 1, 16).astype(int)):
            for rows, limits_KxR in self._selected(j):
                hits_LxR = self._hits(j, rows[:: len(rows) // 256 + 1], limits_KxR)
                hits_L = np.count_nonzero(hits_LxR, axis=1)
                cost += np.minimum(_PAIR_COST * hits_L, hits_LxR.shape[1]).sum()
                compared += hits_LxR.size
        return cost < 0.7 * compared

    def _measure_pairs(self, shares: _Shares, j: int, left: np.ndarray, hits_LxR: np.ndarray) -> None:
        """Pairs one by one, in difference form."""
        tile = self.q.tiles[j]
        rows, columns = np.divmod(np.flatnonzero(hits_LxR), hits_LxR.shape[1])
        rows, columns = left[rows], columns + tile.start
        for start in range(0, len(rows), 512):
            x, y = rows[start : start + 512], columns[start : start + 512]
            difference = self.buffers.take(self.p.rows_NxF, x, "left")
            difference -= self.buffers.take(self.q.rows_NxF, y, "right")
            kernel = np.maximum(0, 1 - squares(difference[:, :-4]).astype(np.float64) / self.kernel.bandwidth**2)
            if self.counts_for_p:
                shares.append((x, kernel))
            if self.counts_for_q:
                shares.append((y, kernel * ~self._inside(tile, x)))

    def _multiply(
        self,
        shares: _Shares,
        tile: slice,
        left: np.ndarray,
        right_RxF: np.ndarray,
        limits_KxR: np.ndarray | None = None,
    ) -> None:
        """All pairs of some rows with a tile, but those of infinite limits: max(0, h^2 - |x - y|^2) by one product."""
        h2 = self.kernel.bandwidth**2
        if left[-1] - left[0] == len(left) - 1:
            left_LxF = self.p.rows_NxF[left[0] : left[-1] + 1]
        else:
            left_LxF = self.buffers.take(self.p.rows_NxF, left, "left")
        if self.dtype == np.float64:
            exact_LxF = self.buffers.get("exact", left_LxF.shape, np.float64)
            exact_LxF[:] = left_LxF
            exact_LxF[:, -4] = squares(exact_LxF[:, :-4])
            exact_LxF[:, -3] = 0
            left_LxF = exact_LxF
        out_LxR = self.buffers.get("product", (len(left), len(right_RxF)), self.dtype)
        kernel_LxR = np.matmul(left_LxF, right_RxF.T, out=out_LxR)
        np.clip(kernel_LxR, 0, h2, out=kernel_LxR)
        inside_L = self._inside(tile, left)
        kernel_LxR[inside_L, left[inside_L] - tile.start] = h2  # each point and itself
        if limits_KxR is not None and np.isinf(limits_KxR).any():
            kernel_LxR[np.isinf(self.buffers.take(limits_KxR, self.p.cell_N[left], "limits"))] = 0
        if self.counts_for_p:
            shares.append((left, (kernel_LxR @ np.ones(len(right_RxF), self.dtype)).astype(np.float64) / h2))
        if self.counts_for_q:
            sums_R = (~inside_L).astype(self.dtype) @ kernel_LxR
            shares.append((np.arange(tile.start, tile.stop), sums_R.astype(np.float64) / h2))

    def _right(self, rows_RxF: np.ndarray) -> np.ndarray:
        """Such that (x, |x|^2 in two parts, 1, 1) . right = h^2 - |x - y|^2: the constants are the large terms."""
        exact_RxF = rows_RxF.astype(np.float64)
        rest_R = self.kernel.bandwidth**2 - squares(exact_RxF[:, :-4])
        right_RxF = (2 * exact_RxF).astype(self.dtype)
        right_RxF[:, -4:-2] = -1
        right_RxF[:, -2] = rest_R
        right_RxF[:, -1] = rest_R - right_RxF[:, -2]
        return right_RxF

    def _inside(self, tile: slice, rows: np.ndarray) -> np.ndarray:
        """bool: which rows lie in the tile itself. There both orders of a pair are at hand, and each counts once."""
        return (rows >= tile.start) & (rows < tile.stop) if self.p is self.q else np.zeros(len(rows), bool)


def _on_devices(points: Packed, pool: Packed, kernel: _Kernel, mesh: Mesh | None, place: tuple[int, int]) -> np.ndarray:
    """The same on the accelerators of a process: blocks of one shape, left out where no two tiles in them are near."""
    dtype, devices = kernel.dtype, jax.local_devices()[:1] if mesh is None else list(mesh.local_devices)
    with jax.enable_x64(True):
        blocks_P, holds_PxT = _device_blocks(points, dtype)
        blocks_Q, holds_QxT = (blocks_P, holds_PxT) if points is pool else _device_blocks(pool, dtype)
        near_PxQ = holds_PxT @ kernel.near_tiles(points, pool).astype(np.float32) @ holds_QxT.T > 0
        pairs = np.argwhere(np.triu(near_PxQ) if points is pool else near_PxQ)[place[0] :: place[1]]
        sums_U = np.zeros(len(points.order_N))
        shares = []
        for device in devices:
            left_P = jax.device_put(blocks_P, device)
            right_Q = left_P if points is pool else jax.device_put(blocks_Q, device)
            shares.append((left_P, right_Q, [jnp.zeros(len(x), device=device) for x, _ in blocks_P]))
        for number, (i, j) in enumerate(track(pairs.tolist(), "kernel density")):  # computed while the next is dealt
            left_P, right_Q, sums_P = shares[number % len(devices)]
            row_sums, column_sums = _kernel_sums(*left_P[i], *right_Q[j], kernel.bandwidth, kernel.step)
            sums_P[i] = sums_P[i] + row_sums
            if points is pool and i != j:
                sums_P[j] = sums_P[j] + column_sums
        for *_, sums_P in shares:
            sums_U += np.concatenate([np.asarray(sums) for sums in sums_P])[: len(sums_U)]
        return sums_U


def _device_blocks(packed: Packed, dtype: type) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray]:
    """Blocks of equal size, the last one padded with zero rows, with weights: 1 for a row, 0 for padding. And which
    tiles lie in which block, float32 [blocks, tiles]."""
    n, d = len(packed.order_N), packed.rows_NxF.shape[1] - 4
    size = -(-n // -(-n // _DEVICE_BLOCK))
    blocks, holds_BxT = [], []
    for start in range(0, n, size):
        rows = packed.rows_NxF[start : start + size, :-4]
        x, real = np.zeros((size, d), dtype), np.zeros(size)
        x[: len(rows)], real[: len(rows)] = rows, 1
        blocks.append((x, real))
        holds_BxT.append([tile.start < start + size and tile.stop > start for tile in packed.tiles])
    return blocks, np.array(holds_BxT, np.float32)


@jax.jit
def _kernel_sums(x, x_real, y, y_real, bandwidth, step):
    dot = jnp.einsum("ad,bd->ab", x, y, precision=jax.lax.Precision.HIGHEST)
    squared = jnp.sum(x * x, axis=1)[:, None] - 2 * dot + jnp.sum(y * y, axis=1)[None, :]
    kernel = jnp.maximum(0, 1 - jnp.maximum(squared, 0) / (bandwidth * bandwidth))
    sums = jnp.sum(kernel * y_real, axis=1), jnp.sum(kernel * x_real[:, None], axis=0)
    return jax.tree.map(lambda x: jnp.round(x / step), sums)
