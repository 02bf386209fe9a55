"""The kinked terms of problem RT as regions: where their proximal maps cut rows off.

    Box     g = W t, t >= max_ij rho_j |r_ij - (1/rho_j)/Z|: r_ij = a_ij e^(v_i) cut off to the box
            [(1/Z - t)/rho_j, (1/Z + t)/rho_j]. Sorted by rho_j a_ij, the upper sides bind in a prefix of each row
            and the lower sides in a suffix, so that cumulative sums give v_i for any t; W step equals the multipliers
            of all sides at the best t, which are monotone in t
    Tv      g = W/2 sum_ij w_i |r_ij - 1/N|: r_ij is 1/N cut off to [a_ij e^(v_i - W step/2), a_ij e^(v_i + W step/2)]
    TvBox   both at once, by Dykstra's alternation, with a bound of its own

All follow `deft_tsds.transport.projections.Region`; their multipliers are the thresholds v_i / step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from deft_tsds.transport.projections import Both, Region

_HALVINGS = 100
_BRACKETS = 50
_EXACT = 1e-14


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Box(Region):
    """g = W max(t_least, max_ij rho_j |r_ij - (1/rho_j)/Z|)."""

    weights_M: Any
    inverse_MxK: Any
    """1/rho of each entry."""
    reference: Any
    """1/Z."""
    least: Any
    """1/Z where candidates lie beyond the K, since those deviate by that much; else 0."""
    weight: Any

    def penalty(self, shares_MxK):
        deviations = jnp.abs(shares_MxK / self.inverse_MxK - self.reference)
        real = self.weights_M[:, None] > 0
        return self.weight * jnp.maximum(jnp.max(jnp.where(real, deviations, 0)), self.least)

    def _range(self):
        """The smallest t with room for all rows, and the largest that any row of distributions has."""
        poured = jnp.where(self.weights_M > 0, jnp.sum(self.inverse_MxK, axis=1), jnp.inf)
        needed = jnp.max(1 / poured) * (1 + 1e-10) - self.reference
        return jnp.maximum(needed, self.least), jnp.maximum(jnp.max(1 / self.inverse_MxK), self.reference)

    def project(self, log_a_MxK, step, multipliers):
        m, k = log_a_MxK.shape
        highest_M = jnp.max(log_a_MxK, axis=1)
        log_a_MxK = log_a_MxK - highest_M[:, None]
        keys_MxK = log_a_MxK - jnp.log(self.inverse_MxK)  # log of rho a
        order = _descending(keys_MxK)
        keys = jnp.take_along_axis(keys_MxK, order, axis=1)
        inverse = jnp.take_along_axis(self.inverse_MxK, order, axis=1)
        none = jnp.zeros((m, 1), keys.dtype)
        volume = jnp.concatenate([none, jnp.cumsum(inverse, axis=1)], axis=1)
        height = jnp.concatenate([none, jnp.cumsum(inverse * keys, axis=1)], axis=1)
        tail = jnp.concatenate([_log_tails(keys, inverse), none - jnp.inf], axis=1)

        def at(t):
            """v_i of all rows for this t, and by how much more t the multipliers ask for."""
            upper = jnp.log(self.reference + t)
            lower = jnp.log(jnp.maximum(self.reference - t, 0))
            filled = _entry(volume, k)

            def mass(v, high, low):
                """Of rows with `high` entries at their upper sides, and all but `low` at their lower ones."""
                between = jnp.exp(v + _entry(tail, high)) - jnp.exp(v + _entry(tail, low))
                at_lower = jnp.where(low < k, jnp.exp(lower) * (filled - _entry(volume, low)), 0)
                return jnp.exp(upper) * _entry(volume, high) + between + at_lower

            def is_upper(count):
                # Where v puts the last of them on the edge of its upper side, and the mass is still too small.
                v = upper - _entry(keys, count - 1)
                low = _count(k, lambda low: _entry(keys, low - 1) + v > lower, m)
                return mass(v, count, jnp.maximum(low, count)) <= 1

            high = _count(k, is_upper, m)
            low = _count(k, lambda low: mass(lower - _entry(keys, low - 1), high, jnp.maximum(low, high)) < 1, m)
            low = jnp.where(jnp.isneginf(lower), k, jnp.maximum(low, high))
            start, stop = _entry(tail, high), _entry(tail, low)
            free = start + jnp.log1p(-jnp.exp(jnp.minimum(stop - start, 0)))
            left = 1 - mass(-jnp.inf, high, low)
            inside = (low > high) & (left > 0) & jnp.isfinite(free)
            edge = upper - _entry(keys, jnp.maximum(high - 1, 0))
            v = jnp.where(inside, jnp.log(jnp.where(left > 0, left, 1)) - free, edge)
            pressed = _entry(height, high) + (v - upper) * _entry(volume, high)
            lifted = (lower - v) * (filled - _entry(volume, low)) - (_entry(height, k) - _entry(height, low))
            pressure = pressed + jnp.where(low < k, lifted, 0)
            return v, jnp.dot(self.weights_M, pressure) - self.weight * step

        def halve(state):
            low, high, count = state
            middle = (low + high) / 2
            more = at(middle)[1] > 0  # the wish for more t falls with t
            return jnp.where(more, middle, low), jnp.where(more, high, middle), count + 1

        def open_(state):
            low, high, count = state
            return (high - low > _EXACT * high) & (count < _HALVINGS)

        low, high, _ = jax.lax.while_loop(open_, halve, (*self._range(), 0))
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
class Tv(Region):
    """g = W/2 sum_ij w_i |r_ij - 1/N| over all N candidates."""

    weights_M: Any
    share: Any
    """1/N."""
    beyond: Any
    """(N - K) / N, what candidates beyond the K of a query are short of."""
    weight: Any

    def penalty(self, shares_MxK):
        missed_M = jnp.sum(jnp.abs(shares_MxK - self.share), axis=1) + self.beyond
        return self.weight / 2 * jnp.dot(self.weights_M, missed_M)

    def project(self, log_a_MxK, step, multipliers):
        half, kept = self.weight * step / 2, jnp.log(self.share)
        highest_M = jnp.max(log_a_MxK, axis=1)
        log_a_MxK = log_a_MxK - highest_M[:, None]

        def shares(v_M):
            free = log_a_MxK + v_M[:, None]
            return jnp.clip(kept, free - half, free + half)

        def narrow(state):
            """A step of Newton on the logarithm of the mass, or a halving where that leaves the bracket."""
            low, high, v_M, _, count = state
            log_r = shares(v_M)
            r = jnp.exp(log_r)
            mass_M, moving_M = jnp.sum(r, axis=1), jnp.sum(jnp.where(log_r == kept, 0, r), axis=1)
            off_M = jnp.log(mass_M)
            low, high = jnp.where(off_M < 0, v_M, low), jnp.where(off_M < 0, high, v_M)
            newton = v_M - off_M * mass_M / jnp.where(moving_M > 0, moving_M, 1)
            inside = (moving_M > 0) & (newton > low) & (newton < high) & (count % 4 < 3)
            done = (jnp.abs(off_M) <= _EXACT * k) | (high - low <= _EXACT * (jnp.abs(low) + jnp.abs(high)))
            next_M = jnp.where(inside, newton, (low + high) / 2)
            return low, high, jnp.where(done, v_M, next_M), jnp.all(done), count + 1

        k = log_a_MxK.shape[1]
        total_M = jax.nn.logsumexp(log_a_MxK, axis=1)
        low, high = -total_M - half, -total_M + half  # every entry at its upper end, every entry at its lower end
        _, _, v_M, _, _ = jax.lax.while_loop(
            lambda state: ~state[3] & (state[4] < _HALVINGS), narrow, (low, high, -total_M, jnp.array(False), 0)
        )
        return jax.nn.log_softmax(shares(v_M), axis=1), (v_M - highest_M) / step

    def bound(self, costs_MxK, multipliers, room):
        # Below min_j c_ij + W/2 a threshold leaves no entry that would gain by growing without end; then each is best
        # at 0 or at 1/N.
        v_M = jnp.minimum(multipliers, jnp.min(costs_MxK, axis=1) + self.weight / 2)
        kept_M = jnp.sum(jnp.minimum(self.weight / 2, costs_MxK - v_M[:, None]), axis=1) * self.share
        return jnp.dot(self.weights_M, v_M + kept_M + self.weight / 2 * self.beyond)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TvBox(Both):
    """A `Tv` and a `Box`.

    The bound of `Both` is as good as the parts of the costs that each is to bear. Here the best parts are known: for
    the sum v of both thresholds each entry takes the r that is best for c - v and |r - 1/N| in the box of t. What is
    left is convex in t, and lies above two of its tangents, one that falls and one that rises.
    """

    first: Tv
    last: Box

    def bound(self, costs_MxK, multipliers, room):
        tv, box = self.first, self.last
        _, of_tv, of_box, _ = multipliers
        v_M = of_tv + of_box
        excess_MxK, half = costs_MxK - v_M[:, None], tv.weight / 2
        least, most = box._range()
        cheapest = jnp.dot(self.weights_M, jnp.min(costs_MxK, axis=1))
        most = jnp.clip(jnp.where(box.weight > 0, (room - cheapest) / box.weight, most), least, most)

        def at(t):
            wanted = jnp.where(excess_MxK > half, 0.0, jnp.where(excess_MxK < -half, jnp.inf, tv.share))
            lower, upper = jnp.maximum(box.reference - t, 0) * box.inverse_MxK, (box.reference + t) * box.inverse_MxK
            r_MxK = jnp.clip(wanted, lower, upper)
            entries_MxK = excess_MxK * r_MxK + half * jnp.abs(r_MxK - tv.share)
            return box.weight * t + jnp.dot(self.weights_M, jnp.sum(entries_MxK, axis=1))

        def halve(_, bracket):
            low, high = bracket
            middle = (low + high) / 2
            falls = jax.grad(at)(middle) < 0
            return jnp.where(falls, middle, low), jnp.where(falls, high, middle)

        low, high = jax.lax.fori_loop(0, _BRACKETS, halve, (least, most))
        (at_low, fall), (at_high, rise) = jax.value_and_grad(at)(low), jax.value_and_grad(at)(high)
        crossing = (fall * at_high - rise * at_low + fall * rise * (low - high)) / jnp.where(
            fall < rise, fall - rise, 1
        )
        lowest = jnp.where(fall >= 0, at_low, jnp.where(rise <= 0, at_high, crossing))
        joint = jnp.dot(self.weights_M, v_M + half * tv.beyond) + lowest
        return jnp.maximum(super().bound(costs_MxK, multipliers, room), joint)


def _descending(keys_MxK: jax.Array) -> jax.Array:
    """The order of each row from large to small, to some 12 digits (K = 5,000).

    XLA sorts one array of integers five to ten times faster on a CPU than floats that take others along. So the place
    of an entry is written over the last bits of its key: floats seen as integers are in order, negative ones once
    their other bits are turned.
    """
    k = keys_MxK.shape[1]
    bits = max(k - 1, 1).bit_length()
    whole = jax.lax.bitcast_convert_type(-keys_MxK, jnp.int64)
    whole = whole ^ (jnp.right_shift(whole, 63) & jnp.iinfo(jnp.int64).max)
    place = jax.lax.broadcasted_iota(jnp.int64, keys_MxK.shape, 1)
    packed = jnp.left_shift(jnp.right_shift(whole, bits), bits) | place
    return (jax.lax.sort(packed, dimension=1) & ((1 << bits) - 1)).astype(jnp.int32)


def _log_tails(keys_MxK: jax.Array, inverse_MxK: jax.Array) -> jax.Array:
    """log sum_{l >= j} inverse_l exp(keys_l), keys falling: in units of exp(keys_j), so that nothing is too small."""
    ratios = jnp.exp(jnp.diff(keys_MxK, axis=1, append=keys_MxK[:, -1:]))

    def add(tail_M, entry):
        inverse_M, ratio_M = entry
        tail_M = inverse_M + ratio_M * tail_M
        return tail_M, tail_M

    none = jnp.zeros_like(keys_MxK[:, 0])
    _, tails_KxM = jax.lax.scan(add, none, (inverse_MxK.T, ratios.T), reverse=True)
    return keys_MxK + jnp.log(tails_KxM.T)


def _entry(values: jax.Array, columns: jax.Array | int) -> jax.Array:
    """One entry of each row."""
    return jnp.take_along_axis(values, jnp.broadcast_to(columns, values.shape[:1])[:, None], axis=1)[:, 0]


def _count(k: int, holds: Callable[[jax.Array], jax.Array], m: int) -> jax.Array:
    """For each of m rows the largest count up to k that holds, when all smaller ones hold too: bisection."""
    first = 1 << (k.bit_length() - 1)

    def refine(i, count_M):
        more_M = jnp.minimum(count_M + jnp.right_shift(first, i), k)
        return jnp.where(holds(more_M), more_M, count_M)

    return jax.lax.fori_loop(0, k.bit_length(), refine, jnp.zeros(m, jnp.int32))
