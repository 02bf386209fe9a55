"""The best plan as a differentiable function of everything that it depends on.

    min over gamma >= 0, sum_j gamma_ij = w_i     h(gamma; theta)

h is a sum of smooth convex terms; theta are the numbers in it: weights and arguments of terms, and the costs, densities
and query weights of the problem, which `deft_tsds.transport.pairs` makes functions of bandwidth and embeddings. At the
optimum, with g = grad h, multipliers lambda_i of the row sums and nu of the bounds (KKT),

    g_ij = lambda_i + nu_ij,   nu_ij >= 0,   gamma_ij nu_ij = 0.

**The linear system.** Differentiate this along theta and write gamma' = sqrt(gamma) z. Where H is the Hessian,

    (sqrt(gamma) H sqrt(gamma) + nu) z - sqrt(gamma) lambda' = -sqrt(gamma) (dg/dtheta) theta'
    sum_j sqrt(gamma_ij) z_ij = w_i'

is symmetric, and positive semidefinite on the tangent of the row sums: conjugate gradients solve it from products with
H, which `jax.jvp` gives in O(M K) time and memory, however many numbers theta has. An interior optimum, which the term
`entropy` makes sure of, has nu = 0, and this is the implicit function theorem. At an optimum with gamma_ij = 0 and
nu_ij > 0 the same system says gamma_ij' = 0: the support stays as it is, and the derivative is that of the optimum on
it. Where neither is above zero (a candidate about to join the support) the optimum has a kink and one-sided derivatives
differ; that happens at isolated theta.

**The same system finds the optimum**: with -sqrt(gamma) g on the right-hand side, z is a Newton step in the metric of
the entropy. And one such step, taken from an optimum that is held constant, has the derivatives of the optimum in theta
(d/dtheta of gamma - A^-1 F(gamma, theta) is -A^-1 dF/dtheta), forward and backward: the whole differentiation is that
one line. It is right once, and not to be differentiated a second time.

**What is not smooth.** `KINKED` terms put their optima where they have no derivative, and `sinkhorn_divergence` has no
second one. For problem RT with its maxima there is the exact path of `deft_tsds.transport.path` instead.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg

from deft_tsds.arrays import check_count, check_real
from deft_tsds.transport import terms
from deft_tsds.transport.objective import Objective
from deft_tsds.transport.problem import Plan, Problem

_SEARCH_TOLERANCE, _SEARCH_PRODUCTS = 1e-3, 100  # of a Newton step: it is corrected by the next one
_BOUNDARY = 0.25  # a fourth of nu in a Newton step: an entry on its way to zero falls by e^-4, not by e^-1
_ENOUGH_DECREASE = 1e-4
_EASIER, _HARDER = 0.1, 10.0  # what a step that was taken, or was not, makes of the damping
_MOST_GROWTH = 20.0  # of the logarithm of an entry in one step
_LEAST_LOG_SHARE = -69.0  # 1e-30: no entry is lost for good, and none so small has a say
_ROUNDING = 8.0  # in units of the last place: gaps are not asked to be below this part of the sums in them
_MOST_PRODUCTS = 1000
_UNSMOOTH = terms.KINKED | {terms.sinkhorn_divergence}


class Optimum(NamedTuple):
    """What `optimum` found.

    Example:
        >>> candidates, queries = np.array([[0.0], [0.1], [1.0], [9.0]]), np.array([[0.0]])
        >>> objective = dt.Objective.of(near=(1.0, dt.terms.transport_cost), spread=(0.5, dt.terms.entropy))
        >>> found = dt.optimum(dt.Problem.from_embeddings(candidates, queries), objective)
        >>> found.plan.mass_MxK.shape, bool(found.converged)
        ((1, 4), True)
    """

    plan: Plan
    """gamma and p, differentiable."""
    gap: jax.Array
    """How far the objective at the plan may lie above its least value (Frank-Wolfe)."""
    converged: jax.Array
    """Whether the gap is within the tolerance: without that, derivatives mean nothing."""
    steps: jax.Array
    """Newton steps taken."""


class _Point(NamedTuple):
    log_r: jax.Array
    value: jax.Array
    slopes: jax.Array
    gap: jax.Array


class _State(NamedTuple):
    point: _Point
    damping: jax.Array
    count: jax.Array


def optimum(problem: Problem, objective: Objective, *, tolerance: float = 1e-12, max_steps: int = 200) -> Optimum:
    """Find the plan of least objective, differentiably: under `jit`, `grad`, `jacfwd`, `jacrev` and `vmap`.

    `dt.solve` takes more kinds of objectives and certifies the plan to a looser tolerance; this is for derivatives,
    which need a sharp one. Derivatives are those of the optimum with respect to every float in `problem` and
    `objective`: term weights, arguments of terms, costs, densities and query weights, and through
    `Pairs.problem_at` the bandwidth and all embeddings. They are right once (see the module), and NaN where their
    linear system was not solved.

    Args:
        problem: queries and neighbourhoods, M x K.
        objective: smooth convex terms. The optimum should be unique: one of them `entropy`, or strictly convex.
        tolerance: the gap to reach, relative to sum_ij gamma_ij |g_ij|, and not below rounding. Second derivatives of
            the terms enter the derivatives: compute in float64 (`jax.enable_x64(True)`, and float64 arguments) where
            they are to be good to more than two or three figures.
        max_steps: how many Newton steps at most; each takes up to 100 products with the Hessian, O(M K), and
            the derivatives up to 1,000.

    Returns:
        Optimum, in the precision of the costs.

    Raises:
        ValueError: a term with kinks, or `sinkhorn_divergence`, or arguments out of range. Values cannot be checked
            inside of `jit`: look at `converged`.

    Example:
        >>> candidates, queries = np.array([[0.0], [0.1], [1.0], [9.0]]), np.array([[0.0]])
        >>> problem = dt.Problem.from_embeddings(candidates, queries)
        >>> def nearest_share(weight):
        ...     objective = dt.Objective.of(near=(1.0, dt.terms.transport_cost), spread=(weight, dt.terms.entropy))
        ...     return dt.optimum(problem, objective).plan.mass_MxK[0, 0]
        >>> bool(jax.grad(nearest_share)(0.5) < 0)  # the more entropy, the less of it
        True
    """
    tolerance = check_real(tolerance, "tolerance", above=0.0)
    max_steps = check_count(max_steps, "max_steps", 1)
    for name, term in objective.terms.items():
        if term.function in _UNSMOOTH:
            raise ValueError(
                f"term {name!r}, {term.function.__name__}, has no second derivative to differentiate the optimum by: "
                "give a smooth relative (kde_repulsion, entropy, chi_square, mmd), or for problem RT use path_plan."
            )
    costs_MxK = jnp.asarray(problem.costs_MxK)
    weights_M = jnp.asarray(problem.query_weights_M, costs_MxK.dtype)
    frozen = jax.lax.stop_gradient((problem, objective))
    frozen_weights_M = jax.lax.stop_gradient(weights_M)
    point, _, steps = _search(*frozen, frozen_weights_M, tolerance, max_steps)
    found_MxK = frozen_weights_M[:, None] * jnp.exp(point.log_r)

    # Zero, with the derivatives that slopes and row sums have in theta: the value of the step below is 0 as well.
    force_MxK = _moving(_slopes(problem, objective, found_MxK))
    change_M = _moving(weights_M)
    slack_MxK = _slack(found_MxK, point.slopes, frozen_weights_M)
    step_MxK = _newton_step(*frozen, found_MxK, slack_MxK, force_MxK, change_M, certain=True)
    plan = terms.plan_of(found_MxK + step_MxK, problem)
    return Optimum(plan, point.gap, point.gap <= _allowance(found_MxK, point.slopes, tolerance), steps)


def _moving(values: jax.Array) -> jax.Array:
    return values - jax.lax.stop_gradient(values)


def _slopes(problem: Problem, objective: Objective, mass_MxK: jax.Array) -> jax.Array:
    """g, 0 in padding."""
    slopes_MxK = jax.grad(lambda mass: objective(terms.plan_of(mass, problem), problem))(mass_MxK)
    return jnp.where(jnp.asarray(problem.query_weights_M)[:, None] > 0, slopes_MxK, 0)


def _slack(mass_MxK: jax.Array, slopes_MxK: jax.Array, weights_M: jax.Array) -> jax.Array:
    """nu: how far each slope is above the mean slope of its row."""
    mean_M = jnp.sum(mass_MxK * slopes_MxK, axis=1) / jnp.where(weights_M > 0, weights_M, 1)
    return jnp.maximum(slopes_MxK - mean_M[:, None], 0)


def _allowance(mass_MxK: jax.Array, slopes_MxK: jax.Array, tolerance: Any) -> jax.Array:
    least = _ROUNDING * jnp.finfo(mass_MxK.dtype).eps
    return jnp.maximum(tolerance, least) * jnp.sum(mass_MxK * jnp.abs(slopes_MxK))


def _newton_step(
    problem: Problem,
    objective: Objective,
    mass_MxK: jax.Array,
    slack_MxK: jax.Array,
    force_MxK: jax.Array,
    change_M: jax.Array,
    *,
    certain: bool,
) -> jax.Array:
    """gamma' of the system above, linear in the force (dg/dtheta) theta' and in the change w'.

    Solved to rounding, or NaN, where it has to be `certain`.
    """
    root_MxK = jnp.sqrt(mass_MxK)
    length_M = jnp.sqrt(jnp.sum(mass_MxK, axis=1))
    length_M = jnp.where(length_M > 0, length_M, 1)
    unit_MxK = root_MxK / length_M[:, None]
    exact = 16 * float(jnp.finfo(mass_MxK.dtype).eps), _MOST_PRODUCTS
    tolerance, most = exact if certain else (_SEARCH_TOLERANCE, _SEARCH_PRODUCTS)

    def tangent(y):
        return y - unit_MxK * jnp.sum(unit_MxK * y, axis=1, keepdims=True)

    def curvature(y):
        _, change = jax.jvp(lambda mass: _slopes(problem, objective, mass), (mass_MxK,), (root_MxK * y,))
        return root_MxK * change + slack_MxK * y

    def solve(product, b):
        b = tangent(b)  # where nearly all of it was cancelled by the first projection, rounding is left beside it
        y, _ = cg(product, b, tol=tolerance, maxiter=most)
        if not certain:
            return y
        solved = jnp.linalg.norm(product(y) - b) <= 1e-4 * jnp.linalg.norm(b)
        return jnp.where(solved, y, jnp.nan)

    base_MxK = unit_MxK * (change_M / length_M)[:, None]
    b_MxK = -tangent(root_MxK * force_MxK + curvature(base_MxK))
    y_MxK = jax.lax.custom_linear_solve(lambda y: tangent(curvature(tangent(y))), b_MxK, solve, symmetric=True)
    return root_MxK * (base_MxK + tangent(y_MxK))


def _search(problem: Problem, objective: Objective, weights_M: jax.Array, tolerance: Any, max_steps: Any) -> _State:
    """Newton steps in the metric of the entropy; damped, they are the steps of mirror descent."""
    weights_Mx1 = weights_M[:, None]
    still_M = jnp.zeros_like(weights_M)

    def evaluate(log_r):
        mass = weights_Mx1 * jnp.exp(log_r)
        value = objective(terms.plan_of(mass, problem), problem)
        slopes = _slopes(problem, objective, mass)
        gap = jnp.sum(mass * slopes) - jnp.dot(weights_M, jnp.min(slopes, axis=1))
        return _Point(log_r, value, slopes, gap)

    def step(state):
        here = state.point
        mass = weights_Mx1 * jnp.exp(here.log_r)
        slack = _BOUNDARY * _slack(mass, here.slopes, weights_M) + state.damping
        change = _newton_step(problem, objective, mass, slack, here.slopes, still_M, certain=False)
        growth = jnp.clip(change / jnp.where(mass > 0, mass, 1), -_MOST_GROWTH, _MOST_GROWTH)
        there = evaluate(jnp.maximum(jax.nn.log_softmax(here.log_r + growth, axis=1), _LEAST_LOG_SHARE))
        noise = _allowance(mass, here.slopes, 0.0)
        taken = there.value <= here.value + _ENOUGH_DECREASE * jnp.sum(here.slopes * change) + noise
        point = jax.tree.map(lambda new, old: jnp.where(taken, new, old), there, here)
        return _State(point, state.damping * jnp.where(taken, _EASIER, _HARDER), state.count + 1)

    def going(state):
        mass = weights_Mx1 * jnp.exp(state.point.log_r)
        return (state.point.gap > _allowance(mass, state.point.slopes, tolerance)) & (state.count < max_steps)

    shape = jnp.shape(problem.costs_MxK)
    start = evaluate(jnp.full(shape, -jnp.log(shape[1]), weights_M.dtype))
    spread = jnp.dot(weights_M, jnp.max(start.slopes, axis=1) - jnp.min(start.slopes, axis=1))
    return jax.lax.while_loop(going, step, _State(start, spread, jnp.array(0)))
