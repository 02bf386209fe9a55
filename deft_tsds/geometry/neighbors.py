"""Exact nearest neighbours, streamed over candidates that may be larger than memory.

**What is exact.** The distance of a pair is what `_distances` computes of these two rows alone: in float64, in
difference form, rounded once to float32. Neighbours are ordered by it, ties by lower index. No matrix product is part
of this definition, so that neither blocks nor threads nor the device can change an answer.

**What is fast.** A matrix product gives every pair a score, |x|^2 - 2 q.x (euclidean) or -q.x (cosine, of unit rows,
and dot), with a bound on its error. A pair whose score is too large for the k nearest, error included, is done with;
the few that survive are measured by the definition. In float32 the product costs half of one in float64, but leaves
each survivor to be measured; in float64 the score itself settles all but one in some 10^5 of them, those for which
the error bound leaves the rounding to float32 open. So few neighbours are found in float32 and many in float64; where
float32 cannot tell the candidates of a block apart, float64 does that block again. Where the host multiplies bfloat16
several times as fast, that comes first, unless it leaves so many survivors that float32 costs less.

**How it merges.** A distance and an index become one 64-bit key, distance in the high half, so that the order of
integers is the order asked for, and blocks of any size merge to the same k.

**On a mesh** every process searches its own rows; its devices share the products, each with a part of the candidates at
hand. Then the keys of all processes merge. Since keys are defined by the rows alone, no mesh can change an answer.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any, Literal, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from scipy.special import bdtrik
from threadpoolctl import threadpool_limits

from deft_tsds.arrays import Rows, ahead, as_matrix, check_count, check_same_width, row_blocks, usable_cpus
from deft_tsds.geometry import bfloat16
from deft_tsds.geometry.buffers import Buffers
from deft_tsds.geometry.mesh import (
    AXIS,
    as_shared_matrix,
    candidates_mesh,
    local_part,
    merged,
    mesh_of,
    own_rows,
    per_device,
    processes,
)
from deft_tsds.runs import track

Metric = Literal["euclidean", "cosine", "dot"]

BLOCK_BYTES = 256 * 2**20
"""Default size of the candidates that are looked at together: what is read from disk at once."""

# Queries by candidates of one product: large enough for BLAS, small enough to be ranked while it is in the cache.
_TILE = 512
_LEAST_TILE = 64
_CHUNK = 2048
_DEVICE_CHUNK = 65_536
_WIDEST = 4  # chunks of accelerators are so many times wider at most, however many share one

# To measure one survivor costs about as much as so many pairs of a float64 product cost more than of a float32 one.
_SURVIVOR_COST = 250

# Searches of so many multiplications begin in bfloat16: it takes a compilation.
_HALVED_WORK = 2**33

# How likely the limit guessed for a query leaves out some of its k nearest, so that its tile is visited again.
_MISGUESS = 1e-6

# An accelerator's float32 product is made of several shorter ones: its error is allowed to be some times larger.
_DEVICE_ROUNDING = 4.0

# How many more than k an accelerator returns of a chunk, so that what rounding leaves open is usually among them.
_DEVICE_SPARE = 64


class Neighbors(NamedTuple):
    """The k nearest candidates of each query, nearest first: distances float32 and candidate ids int32, both [M, K].

    Example:
        >>> found = dt.nearest_neighbors(np.zeros((3, 2)), np.eye(5, 2), 4)
        >>> found.distances_MxK.shape, found.indices_MxK.dtype
        ((3, 4), dtype('int32'))
    """

    distances_MxK: np.ndarray
    indices_MxK: np.ndarray


def nearest_neighbors(
    queries: Any,
    candidates: Any,
    k: int,
    *,
    metric: Metric = "euclidean",
    block_bytes: int = BLOCK_BYTES,
    mesh: Mesh | None = None,
) -> Neighbors:
    """Find the k candidates with the smallest d(q_i, x_j) for each query, exactly.

    d is |q - x| (euclidean), 1 - q.x / (|q| |x|) (cosine; 1 for a zero vector) or -q.x (dot). Near-duplicates keep
    their true distance, and equal rows have exactly 0 (euclidean, cosine).

    Args:
        queries: [M, D] real.
        candidates: [N, D] real, N < 2^31; a float32 memory-map, `Shards` or a `Store` are read in blocks, once.
        k: number of neighbours, 1 <= k <= N.
        metric: "euclidean", "cosine" or "dot".
        block_bytes: how much of the candidates is read at once, at least one row. The result takes 8 M k bytes, and as
            much again while it is made.
        mesh: the devices to work on, whatever the axes; all devices of all processes when None. The same answer on
            any, in every process (see `deft_tsds.geometry.mesh`).

    Returns:
        Neighbors(distances_MxK float32 ascending, indices_MxK int32); equal distances by lower index.

    Raises:
        ValueError: bad rows, different widths, k out of range, unknown metric.

    Example:
        >>> candidates = np.array([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]])
        >>> found = dt.nearest_neighbors(np.zeros((1, 2)), candidates, 2)
        >>> found.indices_MxK
        array([[0, 2]], dtype=int32)
        >>> found.distances_MxK
        array([[0., 1.]], dtype=float32)
    """
    if metric not in get_args(Metric):
        raise ValueError(f"metric is {metric!r}: choose one of {', '.join(get_args(Metric))}.")
    mesh = mesh_of(mesh)
    queries_MxD = as_matrix(queries, "queries")
    candidates_NxD = as_shared_matrix(candidates, "candidates", mesh)
    check_same_width(queries_MxD, candidates_NxD, "queries", "candidates")
    k = check_count(k, "k", 1)
    block_bytes = check_count(block_bytes, "block_bytes", 1)
    m, d = queries_MxD.shape
    n = len(candidates_NxD)
    if k > n:
        raise ValueError(f"k is {k} but there are only {n} candidates: ask for at most {n} neighbours.")

    if isinstance(candidates_NxD, Rows) and (known := candidates_NxD.known_neighbors(queries_MxD, k, metric)):
        return known

    accelerated, mine = _on_accelerator(), own_rows(mesh, n)
    devices = candidates_mesh(jax.local_devices()) if accelerated else None
    devices = devices if mesh is None else local_part(mesh)
    precision = np.float32 if accelerated or k * _SURVIVOR_COST <= n else np.float64
    cpus = usable_cpus()
    distances_MxK, indices_MxK = np.empty((m, k), np.float32), np.empty((m, k), np.int32)
    parts = max(-(-m // _TILE), min(cpus, -(-m // _LEAST_TILE)))
    tiles = [_Tile(rows, queries_MxD[rows], metric, k) for rows in row_blocks(m, 1, -(-m // parts))]
    workers = min(cpus, len(tiles))
    blocks = [
        slice(mine.start + rows.start, mine.start + rows.stop)
        for rows in row_blocks(mine.stop - mine.start, 4 * d, block_bytes)
    ]
    largest = max((rows.stop - rows.start for rows in blocks), default=1)
    halved = devices is None and precision == np.float32 and m * n * d >= _HALVED_WORK and bfloat16.is_fast()
    shape = -(-m // parts), d, largest, k
    spaces = [_Survivors(*shape, precision, devices, accelerated, halved) for _ in range(workers)]

    def visit_tiles(worker: int, block: _Block) -> None:
        for tile in tiles[worker::workers]:
            _visit(tile, block, spaces[worker])

    with threadpool_limits(max(1, cpus // workers), user_api="blas"), ThreadPoolExecutor(workers) as threads:
        made = ahead(lambda rows: _Block(candidates_NxD[rows], rows.start, precision), blocks)
        for block in track(made, "nearest neighbours", total=len(blocks)):
            list(threads.map(partial(visit_tiles, block=block), range(workers)))
        if processes(mesh).size > 1:
            keys_MxK = merged(mesh, np.concatenate([tile.best_TxK for tile in tiles]))
            for tile in tiles:
                tile.best_TxK = keys_MxK[tile.place]
        list(threads.map(lambda tile: tile.finish(distances_MxK[tile.place], indices_MxK[tile.place]), tiles))
    return Neighbors(distances_MxK, indices_MxK)


def _on_accelerator() -> bool:
    return jax.default_backend() != "cpu"


class _Block:
    """Consecutive candidates, float32."""

    def __init__(self, rows_BxD: np.ndarray, start: int, precision: Any):
        """`precision` is that of the products in which the rows will be."""
        self.rows_BxD = rows_BxD
        self.start = start
        self._squared_B: dict[Any, np.ndarray] = {}
        d, rounding = rows_BxD.shape[1], np.finfo(precision)
        largest = float(self.squared_B(precision).max())  # which may be too small, by its rounding and by underflow
        self.norm = float(np.sqrt(largest * (1 + d * float(rounding.eps)) + d * float(rounding.tiny)))
        self.placed: dict[int, jax.Array] = {}  # right factors on accelerators, by their first row

    def squared_B(self, precision: Any) -> np.ndarray:
        """|x|^2 of each row, computed in this precision."""
        if precision not in self._squared_B:
            pieces = row_blocks(len(self.rows_BxD), row_bytes=8 * self.rows_BxD.shape[1], budget_bytes=2**20)
            rows = (np.asarray(self.rows_BxD[piece], precision) for piece in pieces)
            self._squared_B[precision] = np.concatenate([np.einsum("rd,rd->r", x_RxD, x_RxD) for x_RxD in rows])
        return self._squared_B[precision]


class _Tile:
    """Some queries, the keys of the k nearest candidates found so far, and the survivors of the block at hand."""

    def __init__(self, place: slice, rows_TxD: np.ndarray, metric: Metric, k: int):
        self.place = place
        self.rows_TxD = rows_TxD
        self.metric: Metric = metric
        self.best_TxK = np.full((len(rows_TxD), k), _NONE)  # the farthest in the last column
        squared_T = _squared_norms(rows_TxD)
        self.norms_T = np.sqrt(squared_T)
        # A distance, or its square if euclidean, is the score plus this.
        self.offset_T = {"euclidean": squared_T, "cosine": np.ones(len(squared_T)), "dot": np.zeros(len(squared_T))}[
            metric
        ]

    def finish(self, distances_TxK: np.ndarray, indices_TxK: np.ndarray) -> None:
        """Write down what was found, nearest first."""
        self.best_TxK.sort(axis=1)
        distances_TxK[:] = _distances_of(self.best_TxK)
        np.bitwise_and(self.best_TxK, 0xFFFFFFFF, out=indices_TxK, casting="unsafe")

    def factor(self) -> np.ndarray:
        """-2 q (euclidean) or -q, float64: its products with the rows `facing` it make the scores."""
        q = np.asarray(self.rows_TxD, np.float64)
        return -2 * q if self.metric == "euclidean" else -(_unit(q) if self.metric == "cosine" else q)

    def facing(self, block: _Block, rows: slice) -> np.ndarray:
        """Some candidates of a block, of unit length for "cosine"."""
        x = block.rows_BxD[rows]
        return _unit(x) if self.metric == "cosine" else x

    def left(self, dtype: Any) -> np.ndarray:
        """The left factor of the product that gives the scores: -2 q, 1 (euclidean) or -q."""
        q = self.factor()
        return (np.hstack([q, np.ones((len(q), 1))]) if self.metric == "euclidean" else q).astype(dtype)

    def right(self, block: _Block, rows: slice, out_CxE: np.ndarray) -> np.ndarray:
        """The right factor [C, E] for some candidates of a block: x, |x|^2 (euclidean) or x; written into a buffer."""
        x = self.facing(block, rows)
        out_CxE = out_CxE[: len(x)]
        out_CxE[:, : x.shape[1]] = x
        if self.metric == "euclidean":
            out_CxE[:, -1] = block.squared_B(out_CxE.dtype.type)[rows]
        return out_CxE

    def error(self, block: _Block, dtype: Any) -> np.ndarray:
        """A bound on |computed score - true score| for each query, float64 [T].

        A product of length D in any order of summation is off by at most D u sum_k |a_k b_k| / (1 - D u) (Higham,
        "Accuracy and Stability of Numerical Algorithms", section 3.1), and the sum is at most |a| |b|.
        """
        precision = np.finfo(dtype)
        scale_T = {
            "euclidean": 2 * self.norms_T * block.norm + 2 * block.norm**2,  # |x|^2 is itself such a sum
            "cosine": np.ones(len(self.norms_T)),
            "dot": self.norms_T * block.norm,
        }[self.metric]
        return (block.rows_BxD.shape[1] + 8) * (float(precision.eps) / 2 * scale_T + float(precision.tiny))

    def distances(self, scores: np.ndarray, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """float32 distances of the queries `rows` at true scores; monotone, so that a bound goes to a bound."""
        value = scores + self.offset_T[rows]
        if self.metric == "dot":
            return value.astype(np.float32) + np.float32(0)  # a negative zero would rank before zero
        value = np.maximum(value, 0)
        return (np.sqrt(value) if self.metric == "euclidean" else value).astype(np.float32)

    def largest_scores(self, distances_T: np.ndarray) -> np.ndarray:
        """The largest true scores, float64 [T], that go with a float32 distance of `distances_T` or less."""
        above_T = np.nextafter(distances_T, np.float32(np.inf)).astype(np.float64)
        return (above_T * above_T if self.metric == "euclidean" else above_T) - self.offset_T

    def settle(self, block: _Block, survivors: _Survivors) -> None:
        """Measure the survivors and take them among the k nearest."""
        k = self.best_TxK.shape[1]
        exact_TxD = self.rows_TxD.astype(np.float64)
        for part in row_blocks(len(self.rows_TxD), row_bytes=32 * (k + survivors.width), budget_bytes=2**23):
            rows, columns, scores = survivors.flat(part)
            distances, open_ = self._rounded(scores, survivors.error_T, rows)
            for piece in row_blocks(len(open_), row_bytes=8 * block.rows_BxD.shape[1], budget_bytes=2**20):
                pairs = open_[piece]
                queries_PxD = survivors.buffers.take(exact_TxD, rows[pairs], "queries")
                candidates_PxD = survivors.buffers.take(block.rows_BxD, columns[pairs], "candidates")
                distances[pairs] = _distances(queries_PxD, candidates_PxD, self.metric)
            both = np.full((part.stop - part.start, k + survivors.width), _NONE)
            both[:, :k] = self.best_TxK[part]
            places = both.shape[1] * (rows - part.start) + k + survivors.places(rows, part)
            both.ravel()[places] = _keys(distances, columns + block.start)
            both.partition(k - 1, axis=1)
            self.best_TxK[part] = both[:, :k]

    def _rounded(self, scores: np.ndarray, error_T: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 distances by scores, and which of them are open, since they may be rounded otherwise."""
        if scores.dtype == np.float32:
            return np.empty(len(scores), np.float32), np.arange(len(scores))
        slack = 3 * error_T[rows]  # the definition, in float64 too, is off by less than another such bound
        distances = self.distances(scores - slack, rows)
        return distances, np.flatnonzero(distances != self.distances(scores + slack, rows))


class _Survivors:
    """The candidates of one block that may be among the k nearest of a tile's queries, by their scores.

    A row of the tables holds the survivors of one query, in the order of the block, then infinities. The tables, and
    the buffers of the products, are used again and again: fresh memory costs more than the work in it.
    """

    def __init__(
        self,
        t: int,
        d: int,
        b: int,
        k: int,
        dtype: Any,
        devices: Mesh | None = None,
        accelerated: bool = False,
        halved: bool = False,
    ):
        """`devices` make the products, if any; accelerators also find the lowest scores. `halved`: in bfloat16."""
        self.k = k
        self.dtype = dtype
        self.devices, self.accelerated, self.halved = devices, accelerated, halved
        parts = 1 if devices is None else devices.size
        chunk = _DEVICE_CHUNK * min(parts, _WIDEST) if accelerated else _CHUNK
        self.step = -(-min(chunk, b) // parts) * parts
        self.spare = b // _SURVIVOR_COST if halved else 0  # to measure more would cost more than float32 products
        self.all_scores_TxW = np.full((t, 2 * k + self.spare + self.step), np.inf, dtype)
        self.all_columns_TxW = np.zeros(self.all_scores_TxW.shape, np.int32)
        self.buffers = Buffers()
        self.product = np.empty(t * self.step, dtype)
        self.right = np.empty(self.step * (d + 1), dtype)

    def begin(self, tile: _Tile, block: _Block) -> None:
        """Forget what there is, for a new tile or a new block."""
        t = len(tile.rows_TxD)
        self.tile, self.block = tile, block
        self.error_T = tile.error(block, self.dtype) * (_DEVICE_ROUNDING if self.accelerated else 1.0)
        self.scores_TxW, self.columns_TxW = self.all_scores_TxW[:t], self.all_columns_TxW[:t]
        self.scores_TxW.fill(np.inf)
        self.counts_T = np.zeros(t, np.int64)
        self.left_TxE = tile.left(self.dtype)
        if self.devices is not None:
            with jax.enable_x64(self.dtype == np.float64):
                self.placed_left = self._left(_TILE if self.accelerated else len(self.all_scores_TxW))
        self.right_CxE = self.right[: self.step * self.left_TxE.shape[1]].reshape(self.step, -1)
        if self.halved:
            factor_TxD = tile.factor()
            self.halved_left_TxD = jax.device_put(bfloat16.rounded(factor_TxD))
            norm = 1.0 if tile.metric == "cosine" else block.norm
            self.error_T = bfloat16.error(factor_TxD, norm) + 2 * self.error_T
        self.limit_T = self._limit(_distances_of(tile.best_TxK[:, -1]))

    @property
    def width(self) -> int:
        """The most survivors that a query has."""
        return int(self.counts_T.max())

    def room(self) -> int:
        """How many more every query can take."""
        return self.scores_TxW.shape[1] - self.width

    def places(self, rows: np.ndarray, part: slice = slice(None)) -> np.ndarray:
        """Places in their rows of one survivor after another, of the queries `part`."""
        counts = self.counts_T[part]
        return np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)

    def scores(self, rows: slice) -> np.ndarray:
        """Scores [T, C] of some candidates of the block: by the host's BLAS in a buffer, in bfloat16, or by the
        devices of a mesh."""
        if self.halved:
            return self._halved_scores(rows)
        right_CxE = self.tile.right(self.block, rows, self.right_CxE)
        if self.devices is None or self.accelerated:
            scores_TxC = self.product[: len(self.left_TxE) * len(right_CxE)].reshape(-1, len(right_CxE))
            return np.matmul(self.left_TxE, right_CxE.T, out=scores_TxC)
        with jax.enable_x64(self.dtype == np.float64):
            scores_TxC = np.asarray(_products(self.devices)(self.placed_left, self._split(self.right_CxE)))
        return scores_TxC[: len(self.left_TxE), : len(right_CxE)]

    def _halved_scores(self, rows: slice) -> np.ndarray:
        """Of chunks of one shape, filled up."""
        x_CxD = np.asarray(self.tile.facing(self.block, rows), np.float32)
        count, added_C = len(x_CxD), np.zeros(self.step, np.float32)
        if self.tile.metric == "euclidean":
            added_C[:count] = self.block.squared_B(np.float32)[rows]
        if count < self.step:
            x_CxD = np.pad(x_CxD, ((0, self.step - count), (0, 0)))
        return np.asarray(bfloat16.scores(self.halved_left_TxD, x_CxD, added_C))[:, :count]

    def _left(self, rows: int) -> jax.Array:
        """The left factor on every device, filled up: one shape for all tiles."""
        left_TxE = np.zeros((rows, self.left_TxE.shape[1]), self.dtype)
        left_TxE[: len(self.left_TxE)] = self.left_TxE
        return jax.device_put(left_TxE, NamedSharding(cast(Mesh, self.devices), P()))

    def _split(self, right_CxE: np.ndarray) -> jax.Array:
        """A right factor, a part of its rows on each device. On a CPU it may be the same memory (whatever `may_alias`
        is), so that nothing may be written there as long as the device's is in use."""
        return jax.device_put(right_CxE, NamedSharding(cast(Mesh, self.devices), P(AXIS)))

    def take(self, scores_TxC: np.ndarray, first: int, columns_TxC: np.ndarray | None = None) -> None:
        """Add those of a chunk, which begins at `first` in the block, whose scores are within the limit; `columns_TxC`
        says where in the chunk each score belongs, None that they are in order."""
        t, c = scores_TxC.shape
        if c > self.k and not np.isfinite(self.limit_T).all():
            self.limit_T = np.minimum(self.limit_T, self._limit_by_kth(scores_TxC))
        # Flat, by positions: boolean masks and pairs of indices take several times as long.
        flat = np.flatnonzero(scores_TxC <= self.limit_T[:, None])
        hits_T = np.diff(np.searchsorted(flat, c * np.arange(t + 1)))
        shift_T = self.scores_TxW.shape[1] * np.arange(t) + self.counts_T - (np.cumsum(hits_T) - hits_T)
        places = np.arange(len(flat)) + np.repeat(shift_T, hits_T)
        columns = flat - np.repeat(c * np.arange(t), hits_T) if columns_TxC is None else columns_TxC.ravel()[flat]
        self.scores_TxW.ravel()[places] = scores_TxC.ravel()[flat]
        self.columns_TxW.ravel()[places] = first + columns
        self.counts_T += hits_T

    def take_from_devices(self, chunk: slice) -> bool:
        """`take` the lowest scores of a chunk, as each device finds them in its part; False, and nothing taken, if
        they may not be all."""
        if chunk.start not in self.block.placed:
            right_CxE = np.zeros_like(self.right_CxE)
            self.tile.right(self.block, chunk, right_CxE)
            self.block.placed[chunk.start] = self._split(right_CxE).block_until_ready()
        devices = cast(Mesh, self.devices)
        part = self.step // devices.size
        width = min(self.k + _DEVICE_SPARE, part)
        count = chunk.stop - chunk.start
        lowest = _lowest_scores(devices, width)(self.placed_left, self.block.placed[chunk.start], count)
        scores_TxW, columns_TxW = (np.asarray(table)[: len(self.left_TxE)] for table in lowest)
        if scores_TxW.shape[1] >= self.k:
            self.limit_T = np.minimum(self.limit_T, self._limit_by_kth(scores_TxW))
        self.limit_T = np.minimum(self.limit_T, np.finfo(np.float32).max)  # which the filling is beyond
        if width < part and np.any(scores_TxW[:, width - 1 :: width] <= self.limit_T[:, None]):
            return False
        self.take(scores_TxW, chunk.start, columns_TxW)
        return True

    def own_limit(self) -> np.ndarray:
        """The limit that the survivors set; infinite where there are fewer than k."""
        if self.width < self.k:
            return np.full(len(self.counts_T), np.inf, self.dtype)
        return self._limit_by_kth(self.scores_TxW[:, : self.width])

    def tighten(self, limit_T: np.ndarray) -> None:
        """Drop the survivors above a limit."""
        if self.width > self.k:
            scores_TxW, columns_TxW = self.scores_TxW[:, : self.width].copy(), self.columns_TxW[:, : self.width].copy()
            self.limit_T = np.minimum(self.limit_T, limit_T)
            self.scores_TxW[:, : self.width] = np.inf
            self.counts_T[:] = 0
            self.take(scores_TxW, 0, columns_TxW)

    def guess(self, start: int) -> np.ndarray | None:
        """A limit that most likely leaves k candidates of the block, from `start` on, and few more: by a sample of
        them at equal steps. None where there is a limit already, or the guess would be no better than what the
        first chunk says."""
        rest = len(self.block.rows_BxD) - start
        if np.isfinite(self.limit_T).any() or rest < 4 * self.step or self.accelerated:
            return None
        sample = slice(start, None, -(-rest // self.step))
        rank = int(np.ceil(bdtrik(1 - _MISGUESS, self.k, self.step / rest)))  # binomial: so many of the k in the sample
        if rank >= min(self.k, self.step // 2):  # the first chunk sets a limit as low as that
            return None
        guess_T = np.partition(self.scores(sample), rank, axis=1)[:, rank]
        return (guess_T + 2 * self.error_T).astype(self.dtype)  # as the survivors' own limit has it

    def flat(self, part: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Queries (ascending), columns and scores of all survivors of the queries `part`."""
        rows = np.repeat(np.arange(part.start, part.stop), self.counts_T[part])
        flat = self.scores_TxW.shape[1] * rows + self.places(rows, part)
        return rows, self.columns_TxW.ravel()[flat], self.scores_TxW.ravel()[flat]

    def _limit_by_kth(self, scores_TxC: np.ndarray) -> np.ndarray:
        """The limit that any k or more candidates set: the k-th nearest of all is no farther than their farthest."""
        kth_T = np.partition(scores_TxC, self.k - 1, axis=1)[:, self.k - 1].astype(np.float64)
        return self._limit(self.tile.distances(kth_T + self.error_T))

    def _limit(self, distances_T: np.ndarray) -> np.ndarray:
        """The largest computed score that can go with a distance of `distances_T` or less."""
        limit_T = (self.tile.largest_scores(distances_T) + self.error_T).astype(self.dtype)
        return np.nextafter(limit_T, np.array(np.inf, self.dtype))


def _visit(tile: _Tile, block: _Block, survivors: _Survivors, start: int = 0, guess: bool = True) -> None:
    """Take the candidates of a block, from `start` on, among the k nearest of a tile."""
    b = len(block.rows_BxD)
    survivors.begin(tile, block)
    guess_T = survivors.guess(start) if guess else None
    if guess_T is not None:
        survivors.limit_T = guess_T
    for first in range(start, b, survivors.step):
        chunk = slice(first, min(first + survivors.step, b))
        if survivors.room() < chunk.stop - chunk.start:
            survivors.tighten(survivors.own_limit())
        if survivors.room() < chunk.stop - chunk.start:  # the scores do not tell these candidates apart
            if survivors.halved:
                survivors.halved = False  # for the rest of the search
                _visit(tile, block, survivors, start)
                return
            if guess_T is not None:
                _visit(tile, block, survivors, start, guess=False)
                return
            tile.settle(block, survivors)
            if survivors.dtype == np.float32:
                t, d = tile.rows_TxD.shape
                _visit(tile, block, _Survivors(t, d, b - first, survivors.k, np.float64), first)
                return
            survivors.begin(tile, block)
        if not (survivors.accelerated and survivors.take_from_devices(chunk)):
            survivors.take(survivors.scores(chunk), first)
    float32 = survivors.dtype == np.float32
    if float32 or guess_T is not None:
        limit_T = survivors.own_limit()
        if guess_T is not None and np.any(limit_T > guess_T):  # what the guess left out may be among the k nearest
            _visit(tile, block, survivors, start, guess=False)
            return
        if float32:  # float64 scores settle most survivors: to drop some first would cost more
            survivors.tighten(limit_T)
    if survivors.halved and survivors.counts_T.mean() > survivors.k + survivors.spare:
        survivors.halved = False  # as above
        _visit(tile, block, survivors, start)
        return
    tile.settle(block, survivors)


@cache
def _products(devices: Mesh) -> Any:
    """left right', whose columns lie where the rows of `right` do."""
    product = partial(jnp.einsum, "te,ce->tc", precision=lax.Precision.HIGHEST)
    return jax.jit(per_device(devices, product, inputs=(P(), P(AXIS)), outputs=P(None, AXIS)))


@cache
def _lowest_scores(devices: Mesh, width: int) -> Any:
    """The `width` lowest scores of each row in each part of the columns, ascending, and their columns, of which only
    the first `count` count; infinite where there are fewer."""

    def lowest(left_TxE, right_CxE, count):
        scores_TxC = jnp.matmul(left_TxE, right_CxE.T, precision=lax.Precision.HIGHEST)
        column_C = lax.axis_index(AXIS) * scores_TxC.shape[1] + jnp.arange(scores_TxC.shape[1])
        lowest_TxW, places_TxW = lax.top_k(-jnp.where(column_C < count, scores_TxC, jnp.inf), width)
        return -lowest_TxW, column_C[places_TxW]

    parts = P(None, AXIS)
    return jax.jit(per_device(devices, lowest, inputs=(P(), P(AXIS), P()), outputs=(parts, parts)))


def _distances(queries_PxD: np.ndarray, candidates_PxD: np.ndarray, metric: Metric) -> np.ndarray:
    """The definition: the distances of P pairs of rows, float32 [P]; the queries are float64 and are overwritten."""
    q, x = queries_PxD, candidates_PxD
    if metric == "euclidean":
        return np.sqrt(_squared_norms(np.subtract(q, x, out=q))).astype(np.float32)
    if metric == "dot":
        return (0.0 - np.einsum("pd,pd->p", q, x.astype(np.float64))).astype(np.float32)
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
