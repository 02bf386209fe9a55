"""Where a plan may lie: KL-proximal maps on the rows of a plan, each with a lower bound.

A `Region` stands for a convex set of plans and a convex function g >= 0 on it. For rows r_i (distributions over K
neighbours, weights w_i) it knows two things:

    project   the r that minimises  sum_i w_i KL(r_i | a_i) + step * g(r)  in the region, and multipliers of its
              constraints; a is given as logarithms, up to a constant a row
    bound     from costs c_ij of gamma_ij and multipliers, a number that no  <c, gamma> + g(gamma)  of the region is
              below. By weak duality any multipliers give one; those of the optimum give the least value itself.

`deft_tsds.transport.descent` steps by the first and proves by the second how near it is to the optimum.

    Free        rows that sum to 1, g = 0: a softmax
    Marginal    column sums p_j equal to, or at most, a limit_j: the scaling of Sinkhorn, or of Dykstra with prices >= 0
    Both        two regions at once, g the sum of theirs: Dykstra's alternation of their maps
    Box, Tv     the kinks of problem RT, in `deft_tsds.transport.kinks`

The logarithms stay as they are where r_ij itself is below the smallest number: a later step may raise it again.
"""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

_SCALINGS = 1000
_ALTERNATIONS = 100
_AGREEMENT = 1e-6


class Region(abc.ABC):
    """A set of plans and a function g on it. Subclasses are frozen pytrees, all of whose numbers are traced."""

    momentum: ClassVar[bool] = True
    """Whether any rows that sum to 1 belong to it, so that a plan may be moved beyond what `project` gives."""

    weights_M: Any

    def enter(self, log_a_MxK: jax.Array) -> tuple[jax.Array, Any]:
        """Rows of the region near a, and multipliers to begin with."""
        return jax.nn.log_softmax(log_a_MxK, axis=1), jnp.zeros_like(self.weights_M)

    @abc.abstractmethod
    def project(self, log_a_MxK: jax.Array, step: jax.Array, multipliers: Any) -> tuple[jax.Array, Any]:
        """log r and multipliers, in units of the costs; the multipliers of the step before are a first guess."""

    def growth(self, multipliers: Any) -> Any:
        """By how much the next step may exceed the one that gave these multipliers."""
        return 100.0

    @abc.abstractmethod
    def bound(self, costs_MxK: jax.Array, multipliers: Any, room: jax.Array) -> jax.Array:
        """A lower bound of <c, gamma> + g where that is at most `room`."""

    def penalty(self, shares_MxK: jax.Array) -> jax.Array:
        """g."""
        return jnp.zeros((), shares_MxK.dtype)

    def violation(self, shares_MxK: jax.Array) -> jax.Array:
        """Sum over candidates of how far p_j is from where it may lie; rows are exact."""
        return jnp.zeros((), shares_MxK.dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Free(Region):
    """Rows that sum to 1, and nothing else."""

    weights_M: Any

    def enter(self, log_a_MxK):
        return jax.nn.log_softmax(log_a_MxK, axis=1), ()

    def project(self, log_a_MxK, step, multipliers):
        return jax.nn.log_softmax(log_a_MxK, axis=1), multipliers

    def bound(self, costs_MxK, multipliers, room):
        return jnp.dot(self.weights_M, jnp.min(costs_MxK, axis=1))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Marginal(Region):
    """Column sums p_j that equal limit_j, or are at most that; prices y_j are the multipliers.

    sum_i w_i min_j (c_ij + y_j) - sum_j limit_j y_j bounds <c, gamma> from below, for any y, or any y >= 0.
    """

    weights_M: Any
    index_MxK: Any
    limit_U: Any
    at_most: Any
    """Whether p_j may be below its limit, a bool array."""

    momentum: ClassVar[bool] = False

    def enter(self, log_a_MxK):
        return self.project(log_a_MxK, jnp.ones(()), jnp.zeros_like(self.limit_U))

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

    def growth(self, multipliers):
        return 2.0  # scaling is slow where the prices of the step before are no near guess

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
class Both(Region):
    """Two regions at once, g the sum of theirs. The result is one of `last`, which may be a `Marginal` or a `Both`.

    The map is Dykstra's alternation, whose proximal form for the relative entropy converges for any convex g (Peyre,
    "Entropic approximation of Wasserstein gradient flows", 2015, section 4): in logarithms

        y = P_first(log a - q),   x = P_last(y + q),   q <- q + y - x,      until x = y

    -q / step is the part u of the costs c that `last` has to bear. Any u splits the problem into two:
    <c, gamma> + g >= min (<c - u, .> + g_first) + min (<u, .> + g_last), which is the bound.
    """

    first: Region
    last: Region

    momentum: ClassVar[bool] = False

    @property
    def weights_M(self):
        return self.first.weights_M

    def enter(self, log_a_MxK):
        _, of_first = self.first.enter(log_a_MxK)
        log_r_MxK, of_last = self.last.enter(log_a_MxK)
        return log_r_MxK, (jnp.zeros_like(log_r_MxK), of_first, of_last, jnp.array(True))

    def project(self, log_a_MxK, step, multipliers):
        borne, of_first, of_last, _ = multipliers

        def alternate(state):
            _, q, of_first, of_last, _, count = state
            log_y, of_first = self.first.project(log_a_MxK - q, step, of_first)
            log_x, of_last = self.last.project(log_y + q, step, of_last)
            off = jnp.sum(self.weights_M[:, None] * jnp.abs(jnp.exp(log_x) - jnp.exp(log_y)))
            return log_x, q + log_y - log_x, of_first, of_last, off, count + 1

        state = (log_a_MxK, -step * borne, of_first, of_last, jnp.array(jnp.inf, log_a_MxK.dtype), 0)
        log_r_MxK, q, of_first, of_last, off, _ = jax.lax.while_loop(
            lambda state: (state[4] > _AGREEMENT) & (state[5] < _ALTERNATIONS), alternate, state
        )
        return log_r_MxK, (-q / step, of_first, of_last, off <= _AGREEMENT)

    def growth(self, multipliers):
        return jnp.where(multipliers[3], 2.0, 0.25)  # where they do not come to agree, a shorter step is easier

    def bound(self, costs_MxK, multipliers, room):
        borne, of_first, of_last, _ = multipliers
        rest = costs_MxK - borne
        # What one of the two can come to at most, where the other is as small as rows that sum to 1 allow, and g >= 0.
        room_first = room - jnp.dot(self.weights_M, jnp.min(borne, axis=1))
        room_last = room - jnp.dot(self.weights_M, jnp.min(rest, axis=1))
        return self.first.bound(rest, of_first, room_first) + self.last.bound(borne, of_last, room_last)

    def penalty(self, shares_MxK):
        return self.first.penalty(shares_MxK) + self.last.penalty(shares_MxK)

    def violation(self, shares_MxK):
        return self.first.violation(shares_MxK) + self.last.violation(shares_MxK)
