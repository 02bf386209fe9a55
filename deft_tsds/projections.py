"""Where a plan may lie and what its kinks are: KL-proximal maps on the rows of a plan, each with a lower bound.

A `Region` stands for a convex set of plans and a convex function g >= 0 on it. For rows r_i (distributions over K
neighbours, weights w_i) it knows two things:

    project   the r that minimises  sum_i w_i KL(r_i | a_i) + step * g(r)  in the region, and multipliers of its
              constraints; a is given as logarithms, up to a constant a row
    bound     from costs c_ij of gamma_ij and multipliers, a number that no  <c, gamma> + g(gamma)  of the region is
              below. By weak duality any multipliers give one; those of the optimum give the least value itself.

`solve` takes mirror steps with the first and proves with the second how near it is to the optimum.

    Free        rows that sum to 1, g = 0: a softmax
    Marginal    column sums p_j equal to, or at most, a limit_j: the scaling of Sinkhorn, or of Dykstra with prices >= 0
    Box         g = W t, t >= max_ij rho_j |r_ij - (1/rho_j)/Z|: r_ij = a_ij e^(v_i) cut off to the box
                [(1/Z - t)/rho_j, (1/Z + t)/rho_j]. Sorted by rho_j a_ij, the upper sides bind in a prefix of each row
                and the lower sides in a suffix, so that cumulative sums give v_i for any t; W step equals the
                multipliers of all sides at the best t, which are monotone in t
    Tv          g = W/2 sum_ij w_i |r_ij - 1/N|: r_ij is 1/N cut off to [a_ij e^(v_i - W step/2), a_ij e^(v_i + W
    step/2)]

The logarithms stay as they are where r_ij itself is below the smallest number: a later step may raise it again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp

_HALVINGS = 64
_SCALINGS = 1000
_CUTS, _ROUNDS = 15, 12  # 16^12 = 2^48 parts of the interval of t


class Region(Protocol):
    """A set of plans and a function g on it. A pytree, all of whose numbers are traced."""

    growth: ClassVar[float]
    """By how much one step may exceed the one before."""

    def start(self) -> Any:
        """Multipliers to begin with."""
        ...

    def project(self, log_a_MxK: jax.Array, step: jax.Array, multipliers: Any) -> tuple[jax.Array, Any]:
        """log r and multipliers, in units of the costs; the multipliers of the step before are a first guess."""
        ...

    def penalty(self, shares_MxK: jax.Array) -> jax.Array:
        """g."""
        ...

    def bound(self, costs_MxK: jax.Array, multipliers: Any, room: jax.Array) -> jax.Array:
        """A lower bound of <c, gamma> + g where that is at most `room`."""
        ...

    def violation(self, shares_MxK: jax.Array) -> jax.Array:
        """Sum over candidates of how far p_j is from where it may lie; rows are exact."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Free:
    """Rows that sum to 1, and nothing else."""

    weights_M: Any

    growth: ClassVar[float] = 100.0

    def start(self):
        return ()

    def project(self, log_a_MxK, step, multipliers):
        return jax.nn.log_softmax(log_a_MxK, axis=1), multipliers

    def penalty(self, shares_MxK):
        return jnp.zeros((), shares_MxK.dtype)

    def bound(self, costs_MxK, multipliers, room):
        return jnp.dot(self.weights_M, jnp.min(costs_MxK, axis=1))

    def violation(self, shares_MxK):
        return jnp.zeros((), shares_MxK.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Marginal:
    """Column sums p_j that equal limit_j, or are at most that; prices y_j are the multipliers.

    sum_i w_i min_j (c_ij + y_j) - sum_j limit_j y_j bounds <c, gamma> from below, for any y, or any y >= 0.
    """

    weights_M: Any
    index_MxK: Any
    limit_U: Any
    at_most: Any
    """Whether p_j may be below its limit, a bool array."""

    growth: ClassVar[float] = 2.0  # scaling is slow where the prices of the step before are no near guess

    def start(self):
        return jnp.zeros_like(self.limit_U)

    def project(self, log_a_MxK, step, multipliers):
        tolerance = 1e-10

        def rows(y_U):
            return jax.nn.log_softmax(log_a_MxK - step * y_U[self.index_MxK], axis=1)

        def scale(state):
            y_U, log_r_MxK, _, count = state
            p_U = self._marginal(jnp.exp(log_r_MxK))
            tiny = jnp.finfo(p_U.dtype).tiny
            raised_U = y_U + jnp.log(jnp.maximum(p_U, tiny) / jnp.maximum(self.limit_U, tiny)) / step
            raised_U = jnp.where(self.at_most, jnp.maximum(raised_U, 0), raised_U)
            moved = jnp.sum(jnp.maximum(p_U, self.limit_U) * -jnp.expm1(-step * jnp.abs(raised_U - y_U)))
            return raised_U, rows(raised_U), moved, count + 1

        state = (multipliers, rows(multipliers), jnp.array(jnp.inf, log_a_MxK.dtype), 0)
        y_U, log_r_MxK, _, _ = jax.lax.while_loop(
            lambda state: (state[2] > tolerance) & (state[3] < _SCALINGS), scale, state
        )
        return log_r_MxK, y_U

    def penalty(self, shares_MxK):
        return jnp.zeros((), shares_MxK.dtype)

    def bound(self, costs_MxK, multipliers, room):
        least_M = jnp.min(costs_MxK + multipliers[self.index_MxK], axis=1)
        return jnp.dot(self.weights_M, least_M) - jnp.dot(self.limit_U, multipliers)

    def violation(self, shares_MxK):
        beyond_U = self._marginal(shares_MxK) - self.limit_U
        return jnp.sum(jnp.where(self.at_most, jnp.maximum(beyond_U, 0), jnp.abs(beyond_U)))

    def _marginal(self, shares_MxK):
        mass = (self.weights_M[:, None] * shares_MxK).ravel()
        return jax.ops.segment_sum(mass, self.index_MxK.ravel(), num_segments=len(self.limit_U))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Box:
    """g = W max(t_least, max_ij rho_j |r_ij - (1/rho_j)/Z|); thresholds v_i / step are the multipliers."""

    weights_M: Any
    inverse_MxK: Any
    """1/rho of each entry."""
    reference: Any
    """1/Z."""
    least: Any
    """1/Z where candidates lie beyond the K, since those deviate by that much; else 0."""
    weight: Any

    growth: ClassVar[float] = 100.0

    def start(self):
        return jnp.zeros_like(self.weights_M)

    def penalty(self, shares_MxK):
        deviations = jnp.abs(shares_MxK / self.inverse_MxK - self.reference)
        real = self.weights_M[:, None] > 0
        return self.weight * jnp.maximum(jnp.max(jnp.where(real, deviations, 0)), self.least)

    def violation(self, shares_MxK):
        return jnp.zeros((), shares_MxK.dtype)

    def _range(self):
        """The smallest t with room for all rows, and the largest that any row of distributions has."""
        poured = jnp.where(self.weights_M > 0, jnp.sum(self.inverse_MxK, axis=1), jnp.inf)
        needed = jnp.max(1 / poured) * (1 + 1e-10) - self.reference
        return jnp.maximum(needed, self.least), jnp.maximum(jnp.max(1 / self.inverse_MxK), self.reference)

    def project(self, log_a_MxK, step, multipliers):
        m, k = log_a_MxK.shape
        highest_M = jnp.max(log_a_MxK, axis=1)
        log_a_MxK = log_a_MxK - highest_M[:, None]
        keys = jnp.log(self.inverse_MxK) - log_a_MxK  # minus log of rho a, ascending
        keys, log_a, inverse = jax.lax.sort((keys, log_a_MxK, self.inverse_MxK), dimension=1, num_keys=1)
        none = jnp.zeros((m, 1), keys.dtype)
        keys = -keys
        volume = jnp.concatenate([none, jnp.cumsum(inverse, axis=1)], axis=1)
        height = jnp.concatenate([none, jnp.cumsum(inverse * keys, axis=1)], axis=1)
        tail = jnp.concatenate([jax.lax.cumlogsumexp(log_a, axis=1, reverse=True), none - jnp.inf], axis=1)

        def at(t):
            """v_i of all rows for this t, and by how much more t the multipliers ask for."""
            upper = jnp.log(self.reference + t)
            lower = jnp.log(jnp.maximum(self.reference - t, 0))

            def pieces(v):
                high = _count(k, lambda count: _entry(keys, count - 1) + v > upper, m)
                low = _count(k, lambda count: _entry(keys, count - 1) + v > lower, m)
                return high, low

            def sides(high, low):
                """What entries at the upper and at the lower sides hold together."""
                at_lower = jnp.where(low < k, jnp.exp(lower) * (_entry(volume, k) - _entry(volume, low)), 0)
                return jnp.exp(upper) * _entry(volume, high) + at_lower

            def mass(v):
                high, low = pieces(v)
                between = jnp.exp(v + _entry(tail, high)) - jnp.exp(v + _entry(tail, low))
                return sides(high, low) + between

            # Where v puts entry k on the edge of its upper side, or lower side, and the mass is still too small, or
            # already enough, there the entry is at that side.
            high = _count(k, lambda count: mass(upper - _entry(keys, count - 1)) <= 1, m)
            low = _count(k, lambda count: mass(lower - _entry(keys, count - 1)) < 1, m)
            low = jnp.where(jnp.isneginf(lower), k, jnp.maximum(low, high))
            start, stop = _entry(tail, high), _entry(tail, low)
            free = start + jnp.log1p(-jnp.exp(jnp.minimum(stop - start, 0)))
            left = 1 - sides(high, low)
            inside = (low > high) & (left > 0) & jnp.isfinite(free)
            edge = upper - _entry(keys, jnp.maximum(high - 1, 0))
            v = jnp.where(inside, jnp.log(jnp.where(left > 0, left, 1)) - free, edge)
            pressed = _entry(height, high) + (v - upper) * _entry(volume, high)
            lifted = (lower - v) * (_entry(volume, k) - _entry(volume, low))
            lifted -= _entry(height, k) - _entry(height, low)
            pressure = pressed + jnp.where(low < k, lifted, 0)
            return v, jnp.dot(self.weights_M, pressure) - self.weight * step

        least, most = self._range()

        def narrow(_, bracket):
            low, high = bracket
            cuts = low + (high - low) * jnp.arange(1, _CUTS + 1) / (_CUTS + 1)
            wanted = jax.vmap(lambda t: at(t)[1])(cuts) > 0
            edges = jnp.concatenate([low[None], cuts, high[None]])
            count = jnp.sum(wanted)  # the wish for more t falls with t: true, then false
            return edges[count], edges[count + 1]

        low, high = jax.lax.fori_loop(0, _ROUNDS, narrow, (least, most))
        (v_low, more), (v_high, less) = at(low), at(high)
        t = jnp.where(more <= 0, low, high)
        v = jnp.where(more <= 0, v_low, v_high)
        # Rows that are full have no free entry to tell v, and the pressure jumps from `more` to `less` within them:
        # what meets the wish for t is between, where it is linear in v.
        share = jnp.where(more > less, jnp.clip(less / (less - more), 0, 1), 0)
        threshold = jnp.where((more > 0) & jnp.isfinite(more), v_high + share * (v_low - v_high), v)
        log_inverse = jnp.log(self.inverse_MxK)
        lowest = jnp.log(jnp.maximum(self.reference - t, 0)) + log_inverse
        log_r = jnp.clip(log_a_MxK + v[:, None], lowest, jnp.log(self.reference + t) + log_inverse)
        return jax.nn.log_softmax(log_r, axis=1), (threshold - highest_M) / step

    def bound(self, costs_MxK, multipliers, room):
        # For row thresholds v, each entry goes to the side of its box that c - v asks for. What remains is piecewise
        # linear and convex in t, with a kink at 1/Z where the lower sides reach zero.
        cheapest = jnp.dot(self.weights_M, jnp.min(costs_MxK, axis=1))
        least, most = self._range()
        most = jnp.clip(jnp.where(self.weight > 0, (room - cheapest) / self.weight, most), least, most)
        excess = costs_MxK - multipliers[:, None]
        above = jnp.dot(self.weights_M, jnp.sum(jnp.maximum(excess, 0) * self.inverse_MxK, axis=1))
        below = jnp.dot(self.weights_M, jnp.sum(jnp.maximum(-excess, 0) * self.inverse_MxK, axis=1))
        t = jnp.stack([least, jnp.clip(self.reference, least, most), most])
        values = self.weight * t + above * jnp.maximum(self.reference - t, 0) - below * (self.reference + t)
        dual = jnp.dot(self.weights_M, multipliers) + jnp.min(values)
        return jnp.maximum(dual, cheapest + self.weight * least)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tv:
    """g = W/2 sum_ij w_i |r_ij - 1/N| over all N candidates; thresholds v_i / step are the multipliers."""

    weights_M: Any
    share: Any
    """1/N."""
    beyond: Any
    """(N - K) / N, what candidates beyond the K of a query are short of."""
    weight: Any

    growth: ClassVar[float] = 100.0

    def start(self):
        return jnp.zeros_like(self.weights_M)

    def penalty(self, shares_MxK):
        missed_M = jnp.sum(jnp.abs(shares_MxK - self.share), axis=1) + self.beyond
        return self.weight / 2 * jnp.dot(self.weights_M, missed_M)

    def violation(self, shares_MxK):
        return jnp.zeros((), shares_MxK.dtype)

    def project(self, log_a_MxK, step, multipliers):
        half, kept = self.weight * step / 2, jnp.log(self.share)
        highest_M = jnp.max(log_a_MxK, axis=1)
        log_a_MxK = log_a_MxK - highest_M[:, None]

        def shares(v_M):
            free = log_a_MxK + v_M[:, None]
            return jnp.clip(kept, free - half, free + half)

        def halve(_, bracket):
            low, high = bracket
            middle = (low + high) / 2
            short = jax.nn.logsumexp(shares(middle), axis=1) < 0
            return jnp.where(short, middle, low), jnp.where(short, high, middle)

        total_M = jax.nn.logsumexp(log_a_MxK, axis=1)
        bracket = (-total_M - half, -total_M + half)  # every entry at its upper end, every entry at its lower end
        low, high = jax.lax.fori_loop(0, _HALVINGS, halve, bracket)
        v_M = (low + high) / 2
        return jax.nn.log_softmax(shares(v_M), axis=1), (v_M - highest_M) / step

    def bound(self, costs_MxK, multipliers, room):
        # Below min_j c_ij + W/2 a threshold leaves no entry that would gain by growing without end; then each is best
        # at 0 or at 1/N.
        v_M = jnp.minimum(multipliers, jnp.min(costs_MxK, axis=1) + self.weight / 2)
        kept_M = jnp.sum(jnp.minimum(self.weight / 2, costs_MxK - v_M[:, None]), axis=1) * self.share
        return jnp.dot(self.weights_M, v_M + kept_M + self.weight / 2 * self.beyond)


def _entry(values: jax.Array, columns: jax.Array) -> jax.Array:
    """One entry of each row."""
    return jnp.take_along_axis(values, jnp.broadcast_to(columns, values.shape[:1])[:, None], axis=1)[:, 0]


def _count(k: int, holds: Callable[[jax.Array], jax.Array], m: int) -> jax.Array:
    """For each of m rows the largest count up to k that holds, when all smaller ones hold too: bisection."""
    first = 1 << (k.bit_length() - 1)

    def refine(i, count_M):
        more_M = jnp.minimum(count_M + jnp.right_shift(first, i), k)
        return jnp.where(holds(more_M), more_M, count_M)

    return jax.lax.fori_loop(0, k.bit_length(), refine, jnp.zeros(m, jnp.int32))
