"""Problem RT in closed form: the optimum for any tau, and how far it reaches with K neighbours a query.

With query weights w_i (the paper's 1/M) write gamma_ij = w_i r_ij, so that each row r_i is a distribution:

    min over r   (alpha/C) sum_i w_i sum_j r_ij d_ij + (1 - alpha) G(r)
    G_kde = max_ij rho_j |r_ij - (1/rho_j) / Z|,  Z = sum_j 1/rho_j        G_uniform: the same with rho = 1, Z = N
    G_tv  = 1/2 sum_ij w_i |r_ij - 1/N|

A query of weight 2/M is then the same as two equal queries of weight 1/M. Only tau = C (1 - alpha) / alpha decides.

**KDE and uniform.** Write G = 1/s - 1/Z. Then r_ij <= 1 / (s rho_j), and each query pours this much on successive
neighbours until its unit is spent: it fills k_i(s) of them, those with W_i(k) = sum_{k'<=k} 1/rho_(k') <= s. The
objective is convex in 1/s, and its slope is (alpha/C) (tau - F(s)), where

    F(s) = sum_i w_i sum_{k <= k_i(s)} (d_i(k_i+1) - d_i(k)) / rho_(k)

is a step function that rises at the levels W_i(k). So s* is the smallest level with F(s) >= tau. F is a cumulative
sum along each row, since filling neighbour k adds W_i(k) (d_i(k+1) - d_i(k)): bisection finds s* without a walk over
the events. Most optima fill far fewer than K neighbours, so the sums begin with a few columns and take more as needed.

**Where the lower side of |.| binds.** G = 1/s - 1/Z also asks for r_ij >= (2/Z - 1/s) / rho_j, which is above zero
from s = Z/2 on. There the filled neighbours are the half of Z nearest to the query, whatever s, and the slope is
(alpha/C) (tau - A) with A = sum_i w_i sum_j (1/rho_j) |d_ij - median of d_i under the weights 1/rho|. So either
tau <= A and s* = Z/2, or s* = Z and the plan is r_ij = (1/rho_j) / Z, in which distances no longer count.

The Z of "kde" needs the densities of all N candidates, and a problem knows those of its shortlist. No rho exceeds N,
so that Z >= sum over the shortlist of 1/rho + (N - U) / N; an s* up to half of this bound is optimal whatever Z is.

**TV.** Rows and candidates decouple: moving mass from j to the nearest candidate saves (alpha/C) (d_ij - d_i(1)) and
costs 1 - alpha a unit. So 1/N stays where d_ij - d_i(1) <= tau, and the rest goes to the nearest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, get_args

import numpy as np

from deft_tsds.arrays import check_real, row_blocks

if TYPE_CHECKING:
    from deft_tsds.transport.problem import Problem

Regularizer = Literal["kde", "uniform", "tv"]

_FIRST_COLUMNS = 128
_PIECE = 16  # columns; the sums of every one would take as much memory again as the levels, and more time
_BLOCK_BYTES = 2**20  # rows are taken in blocks whose temporaries stay in the cache: fresh memory costs more than sums


class Optimum(NamedTuple):
    """The optimum for one tau. Its rows are the `a` of M queries that carry weight."""

    s: float | None
    """s*, or the largest s within the K neighbours where these are too few; None for "tv"."""
    width: int
    """The largest number of neighbours with mass that a query has."""
    diversity: float
    """G of the plan."""
    shortfall: float
    """Bound on (value - optimum) C / alpha; above 0 when K neighbours are too few to reach or to prove the optimum."""
    reached: float
    """A tau that the K neighbours are enough for; at least tau itself where nothing but the proof is missing."""
    shares: Callable[[slice], np.ndarray]
    """Some of the rows -> their r, float64 [rows, width]; each row sums to 1."""


class Optima(Protocol):
    """The optima of one problem and one regularizer for all tau, as a path along t: s, or tau itself for "tv"."""

    rows: ActiveRows

    def at(self, tau: float) -> Optimum:
        """The optimum for tau; if K neighbours are too few, the best plan that keeps to them."""
        ...

    def end(self) -> float:
        """The largest t whose optimum is proven within the K neighbours."""
        ...

    def along(self, t: float) -> tuple[float, Optimum]:
        """A tau and an optimum for it, 0 < t <= end(). Where s is between two levels it is one of many for that tau."""
        ...


def check_trade(alpha: Any, scale: Any, regularizer: Any) -> tuple[float, float]:
    """Return alpha and scale as floats; ValueError where one of the three is out of range."""
    if regularizer not in get_args(Regularizer):
        raise ValueError(f"regularizer is {regularizer!r}: choose one of {', '.join(get_args(Regularizer))}.")
    if alpha == 0:
        raise ValueError("alpha is 0, which ignores every distance: use the Random selector, or give alpha above 0.")
    alpha = check_real(alpha, "alpha", above=0.0, at_most=1.0)
    return alpha, check_real(scale, "scale", above=0.0)


def optima(problem: Problem, regularizer: Regularizer) -> Optima:
    """Prepare the optima of a problem for one of the three regularizers."""
    return _TvOptima(problem) if regularizer == "tv" else _BoxOptima(problem, regularizer)


def inverse_densities(problem: Problem, regularizer: Regularizer) -> tuple[np.ndarray, float, bool]:
    """1/rho [U] in float64, Z, and whether Z is known; where densities beyond the shortlist enter it, a lower bound."""
    n, u = problem.size, len(problem.shortlist_U)
    if regularizer == "uniform":
        return np.ones(u), float(n), True
    inverse_U = 1 / np.asarray(problem.density_U, dtype=np.float64)
    return inverse_U, float(np.sum(inverse_U)) + (n - u) / n, u == n


def widened(columns: int, reached: float, tau: float, limit: int, *, most: int) -> int:
    """How many columns to try next when `columns` are enough for `reached`: at the most `most` times as many.

    F grows at least about in proportion to the number of neighbours; a quarter more makes up for "about". Twice as many
    where nothing but the proof is missing (reached >= tau), and all where that is nearly all of them.
    """
    times = 2.0 if reached >= tau else min(1.25 * tau / reached, most) if reached > 0 else most
    return limit if 1.5 * times * columns >= limit else math.ceil(times * columns)


class ActiveRows:
    """The rows of a problem that carry weight, on the host."""

    def __init__(self, problem: Problem):
        weights_M = np.asarray(problem.query_weights_M, dtype=np.float64)
        self.active = np.flatnonzero(weights_M > 0)
        self._all = len(self.active) == len(weights_M)
        self.weights = weights_M[self.active]
        self._costs_MxK = np.asarray(problem.costs_MxK)
        self._index_MxK = np.asarray(problem.index_MxK)
        self.next_cost = np.asarray(problem.next_cost_M, dtype=np.float64)[self.active]
        self.nearest, self.last = (self._costs_MxK[self.active, k].astype(np.float64) for k in (0, -1))
        self.k = self._costs_MxK.shape[1]
        self.complete = not np.isfinite(self.next_cost).any()

    def __len__(self) -> int:
        return len(self.active)

    def blocks(self, columns: int) -> Iterator[slice]:
        return row_blocks(len(self), row_bytes=8 * columns, budget_bytes=_BLOCK_BYTES)

    def of(self, rows: slice) -> slice | np.ndarray:
        """Which rows of the problem these are."""
        return rows if self._all else self.active[rows]

    def costs(self, rows: slice, columns: int, first: int = 0) -> np.ndarray:
        """d_i(first + 1) .. d_i(columns) of some rows in float64."""
        return self._costs_MxK[self.of(rows), first:columns].astype(np.float64)

    def steps(self, rows: slice, columns: int, first: int = 0) -> np.ndarray:
        """d_i(k+1) - d_i(k) for k = first + 1 .. columns."""
        costs = self.costs(rows, columns + 1, first)
        steps = np.empty((len(costs), columns - first))
        np.subtract(costs[:, 1:], costs[:, :-1], out=steps[:, : costs.shape[1] - 1])
        if columns == self.k:
            steps[:, -1] = self.next_cost[rows] - costs[:, -1]
        return steps

    def step_at(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """d_i(k+1) - d_i(k) of single entries; k = column + 1."""
        problem_rows, last = self.active[rows], columns == self.k - 1
        after = self._costs_MxK[problem_rows, np.where(last, columns, columns + 1)].astype(np.float64)
        after[last] = self.next_cost[rows[last]]
        return after - self._costs_MxK[problem_rows, columns]

    def index(self, rows: slice, columns: int, first: int = 0) -> np.ndarray:
        """The places of the neighbours first + 1 .. columns of some rows in the shortlist."""
        return self._index_MxK[self.of(rows), first:columns]


class _BoxOptima:
    """The optima of "kde" and "uniform": each query fills a box, r_ij <= 1 / (s rho_j)."""

    def __init__(self, problem: Problem, regularizer: Regularizer):
        self.rows = ActiveRows(problem)
        self._inverse_U, self._total, self._total_known = inverse_densities(problem, regularizer)
        self._columns, self._levels, self._sums = 0, np.empty((len(self.rows), 0)), np.empty((len(self.rows), 0))
        self._take(min(_FIRST_COLUMNS, self.rows.k))

    def at(self, tau: float) -> Optimum:
        while True:
            limit = min(self._in_reach, self._total / 2) if self._total_known else self._in_reach
            reached = self._sum_at(self._filled(limit))
            if reached >= tau or self._columns == self.rows.k:
                break
            self._take(widened(self._columns, reached, tau, self.rows.k, most=8))

        if reached >= tau or limit == self._in_reach:
            s = self._smallest_level(tau, limit) if reached >= tau else limit
            # 1/s could fall by less than 1/s, at the slope tau - reached; and if Z is as small as it may be, the
            # candidates without mass deviate by 1/Z and not by 1/s - 1/Z or less.
            shortfall = max(tau - reached, 0.0) / s + tau * max(2 / self._total - 1 / s, 0.0)
            return self._optimum(s, shortfall, reached)
        reached = self._spread(limit)
        if tau <= reached:
            return self._optimum(limit, 0.0, reached)
        if self.rows.complete:
            return self._optimum(self._total, 0.0, math.inf)
        return self._optimum(limit, (tau - reached) / self._total, reached)

    def end(self) -> float:
        if self._columns < self.rows.k:
            self._take(self.rows.k)
        return self._total if self.rows.complete else min(self._in_reach, self._total / 2)

    def along(self, t: float) -> tuple[float, Optimum]:
        half = self._total / 2
        if t <= half:
            tau = self._sum_at(self._filled(t))
            return tau, self._optimum(t, 0.0, tau)
        # From Z/2 to Z, which are both optimal for tau = A, the plan is linear in 1/s.
        tau = self._spread(half)
        near, far = self._optimum(half, 0.0, tau), self._optimum(self._total, 0.0, tau)
        share_near = self._total / t - 1

        def shares(rows: slice) -> np.ndarray:
            r = (1 - share_near) * far.shares(rows)
            r[:, : near.width] += share_near * near.shares(rows)
            return r

        return tau, far._replace(s=t, diversity=1 / t - 1 / self._total, shares=shares)

    def _optimum(self, s: float, shortfall: float, reached: float) -> Optimum:
        filled = self._filled(s)
        width = int((filled + (_entries(self._levels, filled - 1) < s)).max())
        width = min(width, self._columns)  # of Z itself, the last sum may fall short by rounding

        def shares(rows: slice) -> np.ndarray:
            filled = np.minimum(self._levels[rows, :width], s)
            poured = np.empty_like(filled)
            poured[:, 0] = filled[:, 0]
            np.subtract(filled[:, 1:], filled[:, :-1], out=poured[:, 1:])
            return np.divide(poured, s, out=poured)

        diversity = 0.0 if s == self._total else max(1 / s - 1 / self._total, 1 / self._total)
        return Optimum(s, width, diversity, shortfall, reached, shares)

    def _take(self, columns: int) -> None:
        """Compute W_i(k) for k = 1 .. columns or some more, and F_i after every piece of them, from what is there."""
        known, levels, sums = self._columns, self._levels, self._sums
        columns = self._columns = min(_PIECE * -(-columns // _PIECE), self.rows.k)
        pieces = np.arange(0, columns - known, _PIECE)
        self._levels = np.empty((len(self.rows), columns))
        self._sums = np.empty((len(self.rows), sums.shape[1] + len(pieces)))
        for rows in self.rows.blocks(columns):
            inverse = self._inverse_U.take(self.rows.index(rows, columns, known))
            if known:
                self._levels[rows, :known] = levels[rows]
                inverse[:, 0] += levels[rows, -1]
            filled = np.cumsum(inverse, axis=1, out=self._levels[rows, known:])
            gains = self.rows.steps(rows, columns, known)
            gains *= filled
            self._sums[rows, : sums.shape[1]] = sums[rows]
            self._sums[rows, sums.shape[1] :] = np.add.reduceat(gains, pieces, axis=1)
        from_last = self._sums[:, max(sums.shape[1] - 1, 0) :]
        np.cumsum(from_last, axis=1, out=from_last)
        self._in_reach = float(self._levels[:, -1].min())  # beyond it some query would need one more column

    def _filled(self, s: float) -> np.ndarray:
        """k_i(s) [a], by bisection in all rows at once."""
        filled = np.zeros(len(self.rows), dtype=np.intp)
        step = 1 << (self._columns.bit_length() - 1)
        while step:
            more = np.minimum(filled + step, self._columns)
            filled = np.where(_entries(self._levels, more - 1) <= s, more, filled)
            step //= 2
        return filled

    def _sum_at(self, filled: np.ndarray) -> float:
        """F of so many filled neighbours [a]: of whole pieces, and of the first ones in the next."""
        whole = filled // _PIECE
        row, column = _ranges(_PIECE * whole, filled)
        begun = np.bincount(row, self._levels[row, column] * self.rows.step_at(row, column), len(self.rows))
        return float(self.rows.weights @ (_entries(self._sums, whole - 1) + begun))

    def _smallest_level(self, tau: float, high: float) -> float:
        """The smallest s among the levels with F(s) >= tau, given that F(high) >= tau; `high` if no level is below."""
        low, low_filled, high_filled = 0.0, np.zeros(len(self.rows), dtype=np.intp), self._filled(high)
        while np.sum(high_filled - low_filled) > 8 * len(self.rows):
            middle = (low + high) / 2
            if not low < middle < high:
                break
            filled = self._filled(middle)
            if self._sum_at(filled) >= tau:
                high, high_filled = middle, filled
            else:
                low, low_filled = middle, filled
        # Few levels are left: fill one after another.
        row, column = _ranges(low_filled, high_filled)
        if len(row) == 0:
            return high
        levels = self._levels[row, column]
        gains = self.rows.weights[row] * levels * self.rows.step_at(row, column)
        order = np.argsort(levels, kind="stable")
        enough = self._sum_at(low_filled) + np.cumsum(gains[order]) >= tau
        return float(levels[order][np.argmax(enough) if enough.any() else -1])

    def _spread(self, half: float) -> float:
        """A, or with candidates beyond the K, which are at least as far as the next one, a lower bound of it."""
        filled = np.minimum(self._filled(half), self.rows.k - 1)
        spread = np.empty(len(self.rows))
        for rows in self.rows.blocks(self.rows.k):
            costs = self.rows.costs(rows, self.rows.k)
            median = np.take_along_axis(costs, filled[rows, None], axis=1)
            inverse = self._inverse_U.take(self.rows.index(rows, self.rows.k))
            spread[rows] = np.sum(np.abs(costs - median) * inverse, axis=1)
            if not self.rows.complete:
                beyond = np.maximum(self._total - self._levels[rows, -1], 0)
                spread[rows] += beyond * (self.rows.next_cost[rows] - median[:, 0])
        return float(self.rows.weights @ spread)


class _TvOptima:
    """The optima of "tv": each query keeps 1/N where that is cheap and gives the rest to the nearest."""

    def __init__(self, problem: Problem):
        self.rows = ActiveRows(problem)
        self._n = problem.size

    def at(self, tau: float) -> Optimum:
        kept = np.empty(len(self.rows), dtype=np.intp)
        for rows in self.rows.blocks(self.rows.k):
            costs = self.rows.costs(rows, self.rows.k)
            kept[rows] = np.count_nonzero(costs - costs[:, :1] <= tau, axis=1)
        width = int(kept.max())

        def shares(rows: slice) -> np.ndarray:
            r = (np.arange(width) < kept[rows, None]) / self._n
            r[:, 0] += (self._n - kept[rows]) / self._n
            return r

        shortfall = 0.0
        if not self.rows.complete:
            # A candidate beyond the K and within tau should have kept its 1/N; moving that costs the difference.
            missed = np.maximum(tau - (self.rows.next_cost - self.rows.nearest), 0.0)
            shortfall = float(self.rows.weights @ missed) * (self._n - self.rows.k) / self._n
        diversity = float(self.rows.weights @ (self._n - kept)) / self._n
        return Optimum(None, width, diversity, shortfall, self.end(), shares)

    def end(self) -> float:
        if self.rows.complete:
            return float((self.rows.last - self.rows.nearest).max())
        return float((self.rows.next_cost - self.rows.nearest).min())

    def along(self, t: float) -> tuple[float, Optimum]:
        return t, self.at(t)


def _entries(values: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """One entry of each row; 0 for column -1."""
    return np.where(columns >= 0, values[np.arange(len(values)), columns], 0.0)


def _ranges(first: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the entries from first[i] to before stop[i] of each row i."""
    counts = stop - first
    row = np.repeat(np.arange(len(counts)), counts)
    return row, np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts - first, counts)
