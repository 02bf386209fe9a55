"""Kernel density with compact support: how crowded the place of each point is."""

from __future__ import annotations

import math
from itertools import combinations_with_replacement, product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deft_tsds.arrays import as_matrix, check_real, check_same_width, row_blocks
from deft_tsds.runs import track

_TILE = 2048

# The kernel is linear in the squared distance, so near-duplicates need no difference form: an error e in |x - y|^2
# moves a kernel value, which is near 1 for them, by e / h^2 and no more. In float32 |x|^2 - 2 x.y + |y|^2 has e of
# about sqrt(D) 2^-24 (|x|^2 + |y|^2), harmless until h is small beside the norms. Where e / h^2 could exceed this
# tolerance the products are taken in float64. Sums are float64 always.
_KERNEL_TOLERANCE = 1e-4


def kernel_density(points: Any, *, bandwidth: float, pool: Any = None) -> np.ndarray:
    """Compute rho_j = sum_x max(0, 1 - |x_j - x|^2 / h^2) over all rows x of the pool (TSDS, kernel of its G_KDE).

    Args:
        points: [U, D] real.
        bandwidth: h > 0, in the units of the L2 distance.
        pool: [N, D] real, may be a memory-map; the points themselves when None (each then counts itself: rho_j >= 1).

    Returns:
        density_U float32.

    Raises:
        ValueError: bad rows, different widths, bandwidth not above 0.
    """
    points_UxD = as_matrix(points, "points")
    pool_NxD = points_UxD if pool is None else as_matrix(pool, "pool")
    check_same_width(points_UxD, pool_NxD, "points", "pool")
    bandwidth = check_real(bandwidth, "bandwidth", above=0.0)

    d = points_UxD.shape[1]
    # A shift changes no distance, but it shrinks the norms and with them the rounding.
    center_D = np.asarray(np.mean(points_UxD, axis=0, dtype=np.float64))
    radius = max(_largest_norm(points_UxD, center_D), _largest_norm(pool_NxD, center_D))
    rounding = math.sqrt(d) * 2.0**-24 * 2 * radius**2
    dtype = np.float32 if rounding <= _KERNEL_TOLERANCE * bandwidth**2 else np.float64

    density_U = np.zeros(len(points_UxD))
    point_tiles, pool_tiles = _tiles(len(points_UxD)), _tiles(len(pool_NxD))
    # Over the points themselves the kernel matrix is symmetric: one tile serves its rows and its columns.
    pairs = list(combinations_with_replacement(point_tiles, 2) if pool is None else product(point_tiles, pool_tiles))
    for rows, columns in track(pairs, "kernel density"):
        x, x_real = _centered(points_UxD, rows, point_tiles[0].stop, center_D, dtype)
        y, y_real = _centered(pool_NxD, columns, pool_tiles[0].stop, center_D, dtype)
        with jax.enable_x64(True):
            row_sums, column_sums = _kernel_sums(x, x_real, y, y_real, bandwidth)
        density_U[rows] += np.asarray(row_sums)[: rows.stop - rows.start]
        if pool is None and rows != columns:
            density_U[columns] += np.asarray(column_sums)[: columns.stop - columns.start]
    return density_U.astype(np.float32)


@jax.jit
def _kernel_sums(x, x_real, y, y_real, bandwidth):
    dot = jnp.einsum("ad,bd->ab", x, y, precision=jax.lax.Precision.HIGHEST)
    squared = jnp.sum(x * x, axis=1)[:, None] - 2 * dot + jnp.sum(y * y, axis=1)[None, :]
    kernel = jnp.maximum(0, 1 - jnp.maximum(squared, 0) / (bandwidth * bandwidth))
    return jnp.sum(kernel * y_real, axis=1), jnp.sum(kernel * x_real[:, None], axis=0)


def _tiles(n: int) -> list[slice]:
    tile = -(-n // -(-n // _TILE))  # equal sizes, so that one compiled shape serves all
    return [slice(start, min(start + tile, n)) for start in range(0, n, tile)]


def _centered(
    matrix: np.ndarray, rows: slice, padded: int, center_D: np.ndarray, dtype: type
) -> tuple[np.ndarray, np.ndarray]:
    """Some rows minus the centre, padded with zero rows, and float64 weights: 1 for a row, 0 for padding."""
    n = rows.stop - rows.start
    block = np.zeros((padded, matrix.shape[1]), dtype=dtype)
    block[:n] = matrix[rows] - center_D
    real = np.zeros(padded)
    real[:n] = 1.0
    return block, real


def _largest_norm(matrix: np.ndarray, center_D: np.ndarray) -> float:
    largest = 0.0
    for rows in row_blocks(len(matrix), row_bytes=8 * matrix.shape[1]):
        difference = matrix[rows] - center_D
        largest = max(largest, float(np.sqrt(np.sum(difference * difference, axis=1).max())))
    return largest
