"""Exact nearest neighbours, streamed over candidates that may be larger than memory.

**What is exact.** The distance of a pair is what `_distances` computes of these two rows alone: in float64, in
difference form, rounded once to float32. Neighbours are ordered by it, ties by lower index. No matrix product is part
of this definition, so that neither blocks nor threads nor the device can change an answer.

**What is fast.** A matrix product gives every pair a score, |x|^2 - 2 q.x (euclidean) or -q.x (cosine, of unit rows,
and dot), with a bound on its error. A pair whose score is too large for the k nearest, error included, is done with;
the few that survive are measured by the definition. In float32 the product costs half of one in float64, but leaves
each survivor to be measured; in float64 the score itself settles all but one in some 10^5 of them, those for which
the error bound leaves the rounding to float32 open. So few neighbours are found in float32 and many in float64; where
float32 cannot tell the candidates of a block apart, float64 does that block again.

**How it merges.** A distance and an index become one 64-bit key, distance in the high half, so that the order of
integers is the order asked for, and blocks of any size merge to the same k.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from threadpoolctl import threadpool_limits

from deft_tsds.arrays import as_matrix, check_count, check_same_width, row_blocks
from deft_tsds.runs import track

Metric = Literal["euclidean", "cosine", "dot"]

BLOCK_BYTES = 256 * 2**20
"""Default size of the temporary blocks: with k = 5,000, larger blocks are no faster."""

_QUERY_TILE = 256

# To measure one survivor costs as much as about so many pairs of a float64 product cost more than of a float32 one.
_SURVIVOR_COST = 50

# float32 scores that let this share of a block survive do not tell its candidates apart.
_TOO_MANY = 1 / 16

# An accelerator's float32 product is made of several shorter ones: its error is allowed to be some times larger.
_DEVICE_ROUNDING = 4.0

# How many more than k an accelerator returns of a block, so that what rounding leaves open is usually among them.
_DEVICE_SPARE = 64


class Neighbors(NamedTuple):
    """The k nearest candidates of each query, nearest first."""

    distances_MxK: np.ndarray
    indices_MxK: np.ndarray


def nearest_neighbors(
    queries: Any, candidates: Any, k: int, *, metric: Metric = "euclidean", block_bytes: int = BLOCK_BYTES
) -> Neighbors:
    """Find the k candidates with the smallest d(q_i, x_j) for each query, exactly.

    d is |q - x| (euclidean), 1 - q.x / (|q| |x|) (cosine; 1 for a zero vector) or -q.x (dot). Near-duplicates keep
    their true distance, and equal rows have exactly 0 (euclidean, cosine).

    Args:
        queries: [M, D] real.
        candidates: [N, D] real, N < 2^31; a float32 memory-map or a `Store` is read in blocks.
        k: number of neighbours, 1 <= k <= N.
        metric: "euclidean", "cosine" or "dot".
        block_bytes: about how much memory the temporary blocks may take, at least one candidate at a time. The result
            takes 8 M k bytes beside it, and as much again while it is made.

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
    n, d = candidates_NxD.shape
    if k > n:
        raise ValueError(f"k is {k} but there are only {n} candidates: ask for at most {n} neighbours.")

    device = _on_accelerator()
    precision = np.float32 if device or k * _SURVIVOR_COST <= n else np.float64
    best_MxK = np.full((len(queries_MxD), k), _NONE)
    tiles = [
        _Tile(queries_MxD[rows], metric, best_MxK[rows])
        for rows in row_blocks(len(queries_MxD), row_bytes=1, budget_bytes=_QUERY_TILE)
    ]
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cpus, len(tiles))
    row_bytes = np.dtype(precision).itemsize * (d + 1 + workers * min(_QUERY_TILE, len(queries_MxD)))
    blocks = list(row_blocks(n, row_bytes, block_bytes))
    with threadpool_limits(limits=max(1, cpus // workers), user_api="blas"), ThreadPoolExecutor(workers) as threads:
        for rows in track(blocks, "nearest neighbours"):
            block = _Block(candidates_NxD[rows], rows.start, blocks[0].stop, metric, precision, threads)
            visit = _visit_on_device if device else _visit
            for _ in threads.map(partial(visit, block=block), tiles):
                pass
        for _ in threads.map(lambda tile: tile.best_TxK.sort(axis=1), tiles):
            pass
    return Neighbors(_distances_of(best_MxK), (best_MxK & 0xFFFFFFFF).astype(np.int32))


def _on_accelerator() -> bool:
    return jax.default_backend() != "cpu"


class _Tile:
    """Some queries, and the keys of the k nearest candidates that were found for each so far."""

    def __init__(self, rows_TxD: np.ndarray, metric: Metric, best_TxK: np.ndarray):
        self.rows_TxD = rows_TxD
        self.metric: Metric = metric
        self.best_TxK = best_TxK
        squared_T = _squared_norms(rows_TxD)
        self.norms_T = np.sqrt(squared_T) if metric != "cosine" else np.ones(len(rows_TxD))
        # A distance, or its square if euclidean, is the score plus this.
        self.offset_T = {"euclidean": squared_T, "cosine": np.ones(len(rows_TxD)), "dot": np.zeros(len(rows_TxD))}[
            metric
        ]

    def side(self, dtype: Any) -> np.ndarray:
        """The left factor of the product that gives the scores."""
        x = np.asarray(self.rows_TxD, np.float64)
        if self.metric == "euclidean":
            return np.hstack([-2 * x, np.ones((len(x), 1))]).astype(dtype)
        return -(_unit(x) if self.metric == "cosine" else x).astype(dtype)

    def ceiling(self, distances_T: np.ndarray, error_T: np.ndarray) -> np.ndarray:
        """The largest score that a pair at a float32 distance of `distances_T` or less can have, float64 [T]."""
        above_T = np.nextafter(distances_T, np.float32(np.inf)).astype(np.float64)
        return (above_T * above_T if self.metric == "euclidean" else above_T) - self.offset_T + error_T

    def distances(self, scores: np.ndarray, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """float32 distances of true scores of the queries `rows`; monotone, so that a bound goes to a bound."""
        value = scores + self.offset_T[rows]
        if self.metric == "dot":
            return value.astype(np.float32) + np.float32(0)  # a negative zero would rank before zero
        value = np.maximum(value, 0)
        return (np.sqrt(value) if self.metric == "euclidean" else value).astype(np.float32)

    def merge(self, keys: np.ndarray, rows: np.ndarray) -> None:
        """Take flat keys, of the queries `rows` in ascending order, among the k smallest."""
        k = self.best_TxK.shape[1]
        new = _table(keys, rows, len(self.best_TxK), _NONE)
        both = np.concatenate([self.best_TxK, new], axis=1)
        both.partition(k - 1, axis=1)
        self.best_TxK[:] = both[:, :k]  # the largest of them in the last column


class _Block:
    """Consecutive candidates, and the right factor of the product that gives their scores."""

    def __init__(
        self,
        rows_BxD: np.ndarray,
        start: int,
        full: int,
        metric: Metric,
        precision: Any,
        threads: ThreadPoolExecutor | None = None,
    ):
        self.rows_BxD = rows_BxD
        self.start = start
        self.full = full  # rows of a full block: the shape that an accelerator compiles for
        self.metric: Metric = metric
        self.precision = precision
        n, d = rows_BxD.shape
        self.side_BxE = np.empty((n, d + (metric == "euclidean")), precision)
        # Pieces that fit a cache, for they are read several times.
        pieces = list(row_blocks(n, row_bytes=8 * d, budget_bytes=2**20))
        self.norm = max((threads.map if threads else map)(self._fill, pieces))

    def _fill(self, rows: slice) -> float:
        x = np.asarray(self.rows_BxD[rows], np.float64)
        if self.metric == "cosine":
            self.side_BxE[rows] = _unit(x)
            return 1.0
        squared = _squared_norms(x)
        self.side_BxE[rows, : x.shape[1]] = x
        if self.metric == "euclidean":
            self.side_BxE[rows, -1] = squared
        return float(np.sqrt(squared.max()))

    def error(self, tile: _Tile) -> np.ndarray:
        """A bound on |computed score - true score| for each query of a tile, float64 [T].

        A product of length E in any order of summation is off by at most (E + 1) u sum_k |a_k b_k| (Higham, "Accuracy
        and Stability of Numerical Algorithms", section 3.1), and the sum is at most (|q| + |x|)^2 or |q| |x|.
        """
        d = self.rows_BxD.shape[1]
        precision = np.finfo(self.precision)
        scale = (tile.norms_T + self.norm) ** 2 if self.metric == "euclidean" else tile.norms_T * self.norm
        return (d + 8) * (float(precision.eps) / 2 * scale + float(precision.tiny))


def _visit(tile: _Tile, block: _Block) -> None:
    """Take the candidates of a block among the nearest of a tile."""
    scores_TxB = tile.side(block.precision) @ block.side_BxE.T
    rows, columns, scores = _survivors(tile, scores_TxB, block.error(tile))
    if block.precision is np.float32 and len(rows) > _TOO_MANY * scores_TxB.size + scores_TxB.shape[0] * _least(tile):
        del scores_TxB, rows, columns, scores
        for part in row_blocks(len(block.rows_BxD), row_bytes=1, budget_bytes=-(-len(block.rows_BxD) // 2)):
            _visit(tile, _Block(block.rows_BxD[part], block.start + part.start, 0, block.metric, np.float64))
        return
    _settle(tile, block, rows, columns, scores)


def _least(tile: _Tile) -> int:
    """How many candidates of a block survive for a query whatever the precision."""
    return 2 * tile.best_TxK.shape[1]


def _settle(tile: _Tile, block: _Block, rows: np.ndarray, columns: np.ndarray, scores: np.ndarray) -> None:
    """Give survivors their exact distances and take them among the nearest."""
    if block.precision is np.float64:
        slack = 3 * block.error(tile)[rows]  # the definition in float64 is itself off by less than another such bound
        distances = tile.distances(scores - slack, rows)
        open_ = np.flatnonzero(distances != tile.distances(scores + slack, rows))
    else:
        distances = np.empty(len(rows), np.float32)
        open_ = np.arange(len(rows))
    for piece in row_blocks(len(open_), row_bytes=8 * block.rows_BxD.shape[1], budget_bytes=2**20):
        pairs = open_[piece]
        distances[pairs] = _distances(tile.rows_TxD[rows[pairs]], block.rows_BxD[columns[pairs]], tile.metric)
    tile.merge(_keys(distances, columns + block.start), rows)


def _survivors(tile: _Tile, scores_TxB: np.ndarray, error_T: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows (ascending), columns and scores of all pairs that may be among the k nearest."""
    t, b = scores_TxB.shape
    k = tile.best_TxK.shape[1]

    def limit(distances_T: np.ndarray) -> np.ndarray:
        ceiling_T = tile.ceiling(distances_T, error_T)
        return np.nextafter(ceiling_T.astype(scores_TxB.dtype), np.array(np.inf, scores_TxB.dtype))

    def limit_by_kth(table: np.ndarray) -> np.ndarray:
        """A limit from k pairs that are there: the k-th nearest of all is no farther than the farthest of them."""
        kth_T = np.partition(table, k - 1, axis=1)[:, k - 1].astype(np.float64)
        return limit(tile.distances(kth_T + error_T))

    limit_T = limit(_distances_of(tile.best_TxK[:, -1]))
    sample = max(4 * k, 4096)  # cheap to rank, and it leaves few: about k / sample of the block
    if b > k and not np.isfinite(limit_T).all():
        limit_T = np.minimum(limit_T, limit_by_kth(scores_TxB[:, :sample]))
    flat = np.flatnonzero(scores_TxB <= limit_T[:, None])
    rows, columns = np.divmod(flat, b)
    scores = scores_TxB.ravel()[flat]
    if len(rows) and np.bincount(rows).max() > k:
        limit_T = np.minimum(limit_T, limit_by_kth(_table(scores, rows, t, np.inf, at_least=k)))
        near = np.flatnonzero(scores <= limit_T[rows])
        rows, columns, scores = rows[near], columns[near], scores[near]
    return rows, columns, scores.astype(np.float64)


def _visit_on_device(tile: _Tile, block: _Block) -> None:
    """As `_visit`, with the product and a first choice from it made by JAX, on whatever it runs on."""
    b = len(block.rows_BxD)
    side_TxE = np.zeros((_QUERY_TILE, block.side_BxE.shape[1]), np.float32)
    side_TxE[: len(tile.rows_TxD)] = tile.side(np.float32)
    side_BxE = np.zeros((block.full, block.side_BxE.shape[1]), np.float32)
    side_BxE[:b] = block.side_BxE
    width = min(tile.best_TxK.shape[1] + _DEVICE_SPARE, block.full)
    found = _lowest_scores(side_TxE, side_BxE, b, width=width)
    scores_TxW, columns_TxW = (np.asarray(x)[: len(tile.rows_TxD)] for x in found)
    error_T = _DEVICE_ROUNDING * block.error(tile)
    rows, places, scores = _survivors(tile, scores_TxW, error_T)
    # If the last of a row survives, so may others that were not returned.
    if width < b and np.any(places == width - 1):
        _visit(tile, block)
        return
    real = np.flatnonzero(np.isfinite(scores))
    rows, places, scores = rows[real], places[real], scores[real]
    _settle(tile, block, rows, columns_TxW[rows, places], scores)


@partial(jax.jit, static_argnames="width")
def _lowest_scores(side_TxE, side_BxE, count, *, width):
    """The `width` lowest scores of each row, ascending, and their columns; only the first `count` columns are real."""
    scores_TxB = jnp.matmul(side_TxE, side_BxE.T, precision=jax.lax.Precision.HIGHEST)
    scores_TxB = jnp.where(jnp.arange(scores_TxB.shape[1]) < count, scores_TxB, jnp.inf)
    lowest_TxW, columns_TxW = jax.lax.top_k(-scores_TxB, width)
    return -lowest_TxW, columns_TxW


def _distances(queries_PxD: np.ndarray, candidates_PxD: np.ndarray, metric: Metric) -> np.ndarray:
    """The definition: the distances of P pairs of rows, float32 [P]."""
    q, x = np.asarray(queries_PxD, np.float64), np.asarray(candidates_PxD, np.float64)
    if metric == "dot":
        return (0.0 - np.einsum("pd,pd->p", q, x)).astype(np.float32)
    if metric == "euclidean":
        return np.sqrt(_squared_norms(q - x)).astype(np.float32)
    zero_P = ~(q.any(axis=1) & x.any(axis=1))
    # 1 - cos = |q - x|^2 / 2 on the sphere
    return np.where(zero_P, 1.0, _squared_norms(_unit(q) - _unit(x)) / 2).astype(np.float32)


def _squared_norms(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    return np.einsum("nd,nd->n", x, x)


def _unit(x: np.ndarray) -> np.ndarray:
    """float64 rows at length 1; zero rows stay zero."""
    norms = np.sqrt(_squared_norms(x))
    return x / np.where(norms > 0, norms, 1.0)[:, None]


def _table(values: np.ndarray, rows: np.ndarray, count: int, fill: Any, at_least: int = 0) -> np.ndarray:
    """Flat values of ascending rows as a matrix [count, most values of a row], each row filled up with `fill`."""
    counts = np.bincount(rows, minlength=count)
    table = np.full((count, max(int(counts.max()), at_least)), fill, values.dtype)
    starts = np.cumsum(counts) - counts
    table[rows, np.arange(len(rows)) - starts[rows]] = values
    return table


def _keys(distances: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Join float32 distances and indices to int64 keys."""
    return (_ordered(distances.view(np.int32)).astype(np.int64) << 32) | indices


def _distances_of(keys: np.ndarray) -> np.ndarray:
    return _ordered((keys >> 32).astype(np.int32)).view(np.float32)


def _ordered(bits: np.ndarray) -> np.ndarray:
    """Map float32 bit patterns to int32 in the order of the numbers: negative ones run backwards. Its own inverse."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


_NONE = _keys(np.array([np.inf], np.float32), np.array([0xFFFFFFFF]))[0]
"""The key of no candidate: infinitely far."""
