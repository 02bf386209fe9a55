"""Exact nearest neighbours, streamed over candidates that may be larger than memory.

Each (query, candidate) pair becomes one 64-bit integer, the float32 distance in the high half and the candidate's
index in the low half. The order of these keys is the order asked for, ties by lower index included; so partitioning
and sorting plain integers is all the selection there is, and blocks of any size merge to the same answer.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from deft_tsds.arrays import BLOCK_BYTES, as_matrix, check_count, check_same_width, row_blocks
from deft_tsds.runs import track

Metric = Literal["euclidean", "cosine", "dot"]

_QUERY_TILE = 256

# Rounding in |q|^2 - 2 q.x + |x|^2 is at most about 1e-16 D (|q|^2 + |x|^2). Below 1e-6 D of the same scale fewer than
# ten digits are left, and exact duplicates do not come out as 0: such pairs are computed again as |q - x|^2.
_CANCELLATION = 1e-6


class Neighbors(NamedTuple):
    """The k nearest candidates of each query, nearest first."""

    distances_MxK: np.ndarray
    indices_MxK: np.ndarray


def nearest_neighbors(
    queries: Any, candidates: Any, k: int, *, metric: Metric = "euclidean", block_bytes: int = BLOCK_BYTES
) -> Neighbors:
    """Find the k candidates with the smallest d(q_i, x_j) for each query, exactly.

    d is |q - x| (euclidean), 1 - q.x / (|q| |x|) (cosine; 1 for a zero vector) or -q.x (dot). Distances are computed
    in float64 and rounded once to float32, so that neither the block size nor the number of threads changes an
    answer; Euclidean and cosine distances of near-duplicates are taken in difference form (equal rows give exactly 0).

    Args:
        queries: [M, D] real.
        candidates: [N, D] real, N < 2^31; a float32 memory-map is read once, in blocks.
        k: number of neighbours, 1 <= k <= N.
        metric: "euclidean", "cosine" or "dot".
        block_bytes: about how much memory the temporary blocks may take, at least one candidate at a time.

    Returns:
        Neighbors(distances_MxK float32 ascending, indices_MxK int32); equal distances by lower index.

    Raises:
        ValueError: bad rows, different widths, k out of range, unknown metric.
    """
    if metric not in get_args(Metric):
        raise ValueError(f"metric is {metric!r}: choose one of {', '.join(get_args(Metric))}.")
    queries_MxD = as_matrix(queries, "queries")
    candidates_NxD = as_matrix(candidates, "candidates")
    check_same_width(queries_MxD, candidates_NxD, "queries", "candidates")
    k = check_count(k, "k", 1)
    block_bytes = check_count(block_bytes, "block_bytes", 1)
    m, d = queries_MxD.shape
    n = len(candidates_NxD)
    if k > n:
        raise ValueError(f"k is {k} but there are only {n} candidates: ask for at most {n} neighbours.")

    tile = -(-m // -(-m // _QUERY_TILE))  # tiles of equal size, so that one compiled shape serves all
    tiles = [slice(start, min(start + tile, m)) for start in range(0, m, tile)]
    blocks = list(row_blocks(n, row_bytes=8 * (tile + d), budget_bytes=block_bytes))
    block_rows = blocks[0].stop
    unit = metric == "cosine"
    queries_f64 = [_rows_f64(queries_MxD, rows, tile, unit) for rows in tiles]
    best = [np.empty((rows.stop - rows.start, 0), dtype=np.int64) for rows in tiles]
    for block in track(blocks, "nearest neighbours"):
        candidates_f64 = _rows_f64(candidates_NxD, block, block_rows, unit)
        for t, rows in enumerate(tiles):
            keys = _block_keys(queries_f64[t], candidates_f64, block.start, metric)
            keys = keys[: rows.stop - rows.start, : block.stop - block.start]
            best[t] = _smallest(np.concatenate([best[t], keys], axis=1), k)
    return _decode(np.sort(np.concatenate(best), axis=1))


def _rows_f64(matrix: np.ndarray, rows: slice, padded: int, unit: bool) -> np.ndarray:
    """Some rows in float64, scaled to length 1 if `unit` (zero stays zero), padded with zero rows."""
    block = np.zeros((padded, matrix.shape[1]))
    block[: rows.stop - rows.start] = matrix[rows]
    if unit:
        norms = np.sqrt(np.sum(block * block, axis=1, keepdims=True))
        block /= np.where(norms > 0, norms, 1.0)
    return block


def _block_keys(queries_MxD: np.ndarray, candidates_BxD: np.ndarray, offset: int, metric: Metric) -> np.ndarray:
    """Keys int64 [M, B] of all pairs of a query tile and a candidate block whose first index is `offset`."""
    with jax.enable_x64(True):
        expanded = _expanded_keys(queries_MxD, candidates_BxD, offset, metric=metric)
    keys, cancelled = (np.asarray(x) for x in expanded)
    i, j = np.nonzero(cancelled)
    if len(i) == 0:
        return keys
    keys = keys.copy()  # what JAX hands out is read-only
    for pairs in row_blocks(len(i), row_bytes=16 * queries_MxD.shape[1]):
        rows, columns = i[pairs], j[pairs]
        difference = queries_MxD[rows] - candidates_BxD[columns]
        squared = np.sum(difference * difference, axis=1)
        distances = np.sqrt(squared) if metric == "euclidean" else squared / 2  # 1 - cos = |q - x|^2 / 2 on the sphere
        keys[rows, columns] = _keys_of_bits(distances.astype(np.float32).view(np.int32), columns + offset)
    return keys


@partial(jax.jit, static_argnames="metric")
def _expanded_keys(queries_MxD, candidates_BxD, offset, *, metric):
    dot = jnp.einsum("md,bd->mb", queries_MxD, candidates_BxD, precision=jax.lax.Precision.HIGHEST)
    if metric == "euclidean":
        scale = jnp.sum(queries_MxD**2, axis=1)[:, None] + jnp.sum(candidates_BxD**2, axis=1)[None, :]
        squared = jnp.maximum(scale - 2 * dot, 0)
        distances = jnp.sqrt(squared)
        cancelled = squared <= _CANCELLATION * queries_MxD.shape[1] * scale
    elif metric == "cosine":
        distances = jnp.maximum(1 - dot, 0)
        cancelled = distances <= _CANCELLATION * queries_MxD.shape[1]
    else:
        distances = 0.0 - dot  # not -dot: a negative zero would rank before zero
        cancelled = jnp.zeros(dot.shape, dtype=bool)
    bits = jax.lax.bitcast_convert_type(distances.astype(jnp.float32), jnp.int32)
    return _keys_of_bits(bits, jnp.arange(len(candidates_BxD)) + offset), cancelled


def _keys_of_bits(bits, indices):
    """Join int32 bit patterns of float32 distances and candidate indices to int64 keys (NumPy and JAX alike)."""
    return (_ordered(bits).astype("int64") << 32) | indices


def _ordered(bits):
    """Map float32 bit patterns to int32 in the order of the numbers: negative ones run backwards. Its own inverse."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _smallest(keys: np.ndarray, k: int) -> np.ndarray:
    if keys.shape[1] <= k:
        return keys
    return np.partition(keys, k - 1, axis=1)[:, :k].copy()  # the copy lets go of the wide block


def _decode(keys: np.ndarray) -> Neighbors:
    distances = _ordered((keys >> 32).astype(np.int32)).view(np.float32)
    return Neighbors(distances, (keys & 0xFFFFFFFF).astype(np.int32))
