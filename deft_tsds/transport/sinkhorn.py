"""Entropic transport to a given marginal, or under caps: the iterations of Sinkhorn, by ott-jax.

    min over gamma >= 0   sum_ij gamma_ij (c d_ij + eps log r_ij),    sum_j gamma_ij = w_i,   sum_i gamma_ij = p_j,
    where all p_j = q_j, or all p_j <= q_j

The optimum is r_ij = v_j exp(-c d_ij / eps) / sum_k v_k exp(-c d_ik / eps) for some v (Cuturi, 2013), all v_j <= 1
under caps, which are Sinkhorn's iterations with each v_j cut off at 1 (Peyre, "Entropic approximation of Wasserstein
gradient flows", 2015, section 5). Whatever v is, the rows are exact, the slope of the objective at r_ij is eps log v_j
but for a constant a row, and weak duality for the prices -eps log v_j leaves a gap of

    eps sum_j (p_j - q_j) log v_j

**Form.** ott is given the [M, U] of the shortlist, pairs that are not neighbours at an infinite cost. Scalings of the
kernel exp(-c d / eps) take two products with it an iteration, about a twentieth of the time of logarithms of sums.
They are right while kernel and scalings are far from underflow; where they are not, logarithms do it. Where a hundred
iterations are not enough, ott looks at how fast the error falls and relaxes beyond the step by as much as that asks for
(Lehmann et al., 2021), which takes a third of the iterations, or fewer.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ott.geometry.geometry import Geometry
from ott.problems.linear.linear_problem import LinearProblem
from ott.solvers.linear.acceleration import Momentum
from ott.solvers.linear.sinkhorn import Sinkhorn, SinkhornState

from deft_tsds.transport import terms
from deft_tsds.transport.descent import Found, allowance
from deft_tsds.transport.objective import Objective
from deft_tsds.transport.problem import Problem

ITERATIONS = 10  # of Sinkhorn in what counts as a step: the error is looked at once in so many
_ROUND = 1000
_MOMENTUM_AFTER = 100
_LARGEST_LOG = 300.0  # of a scaling, and twice that of the kernel: float64 goes to e^708
_DENSER = 16
_FAR_BELOW = 1e4
_LEAST_ERROR = 1e-14


class Entropic(NamedTuple):
    """The weights of an objective that Sinkhorn minimises."""

    cost: Any
    entropy: Any

    @classmethod
    def of(cls, objective: Objective, problem: Problem) -> Entropic | None:
        """None where there are other terms, no entropy, or [M, U] is many times larger than [M, K]."""
        weights = {terms.transport_cost: 0.0, terms.entropy: 0.0}
        for name, term in objective.terms.items():
            if term.function not in weights:
                return None
            weights[term.function] += float(objective.weights[name])
        dense = len(problem.shortlist_U) <= _DENSER * problem.costs_MxK.shape[1]
        return cls(*weights.values()) if dense and weights[terms.entropy] > 0 else None


def sinkhorn(
    problem: Problem,
    weights: Entropic,
    limit_U: jax.Array,
    scale: float,
    tolerance: float,
    max_iterations: int,
    *,
    at_most: bool,
) -> Found:
    """Find the plan to a relative gap and a violation of the limits within the tolerance, or in so many steps at most.

    Args:
        problem: in float64.
        weights: c and eps.
        limit_U: q, summing to 1, or to 1 at least where p_j may be below it.
        scale, tolerance, max_iterations: as in `descend`; a step is ten iterations.
        at_most: whether p_j may be below q_j.
    """
    threshold, count, lse_mode = tolerance / 10, 0, False
    scaled_MxK, dense_MxU, log_u_M, largest = _prepare(problem, weights)
    if float(largest) > 2 * _LARGEST_LOG:
        lse_mode, dense_MxU = True, _dense(problem, scaled_MxK, True)
    while True:
        most = min(_ROUND, ITERATIONS * (max_iterations - count))
        at = problem.query_weights_M, limit_U, log_u_M, threshold
        log_u_M, log_v_U, within, iterations, largest = _iterate(
            dense_MxU, *at, at_most=at_most, lse_mode=lse_mode, most=most
        )
        count += int(iterations) // ITERATIONS
        if not (lse_mode or float(largest) <= _LARGEST_LOG):  # or it is NaN
            lse_mode, log_u_M = True, at[2]
            dense_MxU = _dense(problem, scaled_MxK, lse_mode)
            continue
        found = _certified(problem, weights, limit_U, scaled_MxK, log_v_U, count, at_most=at_most)
        value = float(found.value)
        allowed = allowance(value, scale, tolerance)
        good = abs(value - float(found.bound)) <= allowed and float(found.violation) <= tolerance
        if good or count >= max_iterations or threshold <= _LEAST_ERROR:
            return found
        if within:
            threshold = max(threshold / 100, _LEAST_ERROR)


@jax.jit
def _prepare(problem: Problem, weights: Entropic) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """c d / eps from 0 in each row, its kernel [M, U], the first log u, and the largest c d / eps."""
    scaled_MxK = weights.cost / weights.entropy * problem.costs_MxK
    scaled_MxK -= jnp.min(scaled_MxK, axis=1, keepdims=True)
    log_u_M = jnp.where(problem.query_weights_M > 0, 0.0, -jnp.inf)
    return scaled_MxK, _dense(problem, scaled_MxK, False), log_u_M, jnp.max(scaled_MxK)


@partial(jax.jit, static_argnames="lse_mode")
def _dense(problem: Problem, scaled_MxK: jax.Array, lse_mode: bool) -> jax.Array:
    """Costs, or their kernel."""
    empty_U = jnp.full(len(problem.shortlist_U), jnp.inf if lse_mode else 0.0, scaled_MxK.dtype)
    values_MxK = scaled_MxK if lse_mode else jnp.exp(-scaled_MxK)
    # One row after another stays in the cache, which on a CPU takes half the time of all at once.
    return jax.lax.map(lambda row: empty_U.at[row[0]].set(row[1]), (problem.index_MxK, values_MxK))


@jax.tree_util.register_pytree_node_class
class _Kernel(Geometry):
    """ott's own product raises all entries to epsilon over itself, each time, and on a CPU turns the matrix around."""

    def apply_kernel(self, vec, eps=None, axis=0):
        return self.kernel_matrix @ vec if axis == 1 else vec @ self.kernel_matrix


class _CappedState(SinkhornState):
    """ott's own error takes every limit for a marginal."""

    def solution_error(self, ot_prob, norm_error, *, lse_mode, **_):
        u_or_f, v_or_g = self.potentials
        marginal = ot_prob.geom.marginal_from_potentials if lse_mode else ot_prob.geom.marginal_from_scalings
        return jnp.sum(_beyond(marginal(u_or_f, v_or_g, axis=0), ot_prob.b, v_or_g < (0 if lse_mode else 1)))[None]


@jax.tree_util.register_pytree_node_class
class _Capped(Sinkhorn):
    """p_j at most b_j: no potential of a candidate is above 0, no scaling above 1."""

    def init_state(self, ot_prob, init):
        return _CappedState(*super().init_state(ot_prob, init))

    def lse_step(self, ot_prob, state, iteration):
        weight, (f, g), update = self.momentum.weight(state, iteration), state.potentials, ot_prob.geom.update_potential
        g = jnp.minimum(self.momentum(weight, g, update(f, g, jnp.log(ot_prob.b), iteration, axis=0)), 0)
        f = self.momentum(weight, f, update(f, g, jnp.log(ot_prob.a), iteration, axis=1))
        return state.set(potentials=(f, g))

    def kernel_step(self, ot_prob, state, iteration):
        weight, (u, v), update = self.momentum.weight(state, iteration), state.potentials, ot_prob.geom.update_scaling
        v = jnp.minimum(self.momentum(weight, v, update(u, ot_prob.b, iteration, axis=0), False), 1)
        u = self.momentum(weight, u, update(v, ot_prob.a, iteration, axis=1), False)
        return state.set(potentials=(u, v))


def _beyond(p_U, limit_U, bound_U):
    """How far p_j is from its limit; where none holds it there (v_j = 1), only by how much it is above."""
    return jnp.where(bound_U, jnp.abs(p_U - limit_U), jnp.maximum(p_U - limit_U, 0))


@partial(jax.jit, static_argnames=("at_most", "lse_mode", "most"))
def _iterate(dense_MxU, weights_M, limit_U, log_u_M, threshold, *, at_most: bool, lse_mode: bool, most: int):
    """log u and log v after up to `most` iterations, whether they are within the threshold, and the largest."""
    if lse_mode:
        geometry, start_M = Geometry(cost_matrix=dense_MxU, epsilon=1.0), log_u_M
    else:
        geometry, start_M = _Kernel(kernel_matrix=dense_MxU, epsilon=1.0), jnp.exp(log_u_M)
    solver = (_Capped if at_most else Sinkhorn)(
        lse_mode=lse_mode,
        threshold=threshold,
        inner_iterations=ITERATIONS,
        max_iterations=most,
        momentum=Momentum(start=_MOMENTUM_AFTER),
    )
    found = solver(LinearProblem(geometry, weights_M, limit_U), init=(start_M, jnp.zeros_like(limit_U)))
    logs = jnp.concatenate([jnp.where(weights_M > 0, found.f, 0), jnp.where(limit_U > 0, found.g, 0)])
    return found.f, found.g, found.converged, found.n_iters, jnp.max(jnp.abs(logs))


@partial(jax.jit, static_argnames="at_most")
def _certified(problem: Problem, weights: Entropic, limit_U, scaled_MxK, log_v_U, count, *, at_most: bool) -> Found:
    """The plan of log v, its value and its gap."""
    # Candidates that shall have no mass get none that a number shows, and a price that is one.
    least = jnp.min(jnp.where(limit_U > 0, log_v_U, jnp.inf)) - _FAR_BELOW
    log_v_U = jnp.where(limit_U > 0, log_v_U, least)
    logits_MxK = log_v_U[problem.index_MxK] - scaled_MxK
    log_r_MxK = jax.nn.log_softmax(logits_MxK, axis=1)
    mass_MxK = problem.query_weights_M[:, None] * jnp.exp(log_r_MxK)
    value = jnp.sum(mass_MxK * (weights.cost * problem.costs_MxK + weights.entropy * log_r_MxK))
    off_U = terms.over_candidates(mass_MxK, problem) - limit_U
    gap = weights.entropy * jnp.dot(off_U, log_v_U)
    violation = jnp.sum(jnp.maximum(off_U, 0) if at_most else jnp.abs(off_U))
    return Found(log_r_MxK, value, value - gap, jnp.zeros(()), count, violation)
