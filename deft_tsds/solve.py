"""The best plan for an objective, and a proof of how near to the best it is.

    min over gamma >= 0, sum_j gamma_ij = w_i     h(gamma) + g(gamma)

h is the sum of the smooth terms and g the one kinked term, if there is one; the candidates' marginal is free, capped or
given. The method is mirror descent with the entropy of the rows, in its proximal form:

    gamma' = argmin  <grad h(gamma), x> + g(x) + KL(x | gamma) / step       over all x that are allowed

which `deft_tsds.projections` computes exactly: for a free marginal without kinks it is a softmax of each row. The naive
gradient of a maximum moves one entry at a time and comes to no end; here g is never differentiated. A step is taken
when h turns out to be below its quadratic-like model, h(gamma') <= h(gamma) + <grad h, gamma' - gamma> + KL(gamma' |
gamma)/step, so that the objective falls with each one. The next step follows the curvature just seen: where h is linear
it grows a hundredfold each time, and problem RT is solved in a few.

**The certificate.** h is convex, so that h(x) >= h(gamma) + <grad h(gamma), x - gamma> everywhere. The least value of
the right-hand side plus g, over all x that are allowed, is below the optimum; for a free marginal without kinks, it is
what the Frank-Wolfe gap is made of, the minimum of each row of the gradient. Otherwise it is bounded by weak duality
from the multipliers of the proximal step. `gap` is the value minus the best of these bounds.

All of it is one float64 program: a relative gap of 1e-4 is a difference of sums over M K entries that agree to four
figures more than that, which float32 does not have.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deft_tsds import terms
from deft_tsds.arrays import check_count, check_real
from deft_tsds.objective import Objective
from deft_tsds.problem import Plan, Problem
from deft_tsds.projections import Box, Free, Marginal, Region, Tv

_SHRINKAGE, _SAFETY = 0.1, 0.9
_LONGEST = 1e9
_ROUNDING = 1e-13
_NEAR_ZERO = 1e-3


class _State(NamedTuple):
    log_r: jax.Array
    smooth: jax.Array
    slopes: jax.Array
    value: jax.Array
    bound: jax.Array
    step: jax.Array
    multipliers: Any
    count: jax.Array


def solve(
    problem: Problem,
    objective: Objective,
    *,
    tolerance: float = 1e-4,
    max_iterations: int = 2000,
    cap: float | None = None,
    marginal: Any = None,
) -> tuple[Plan, dict[str, Any]]:
    """Find the plan of least objective on the neighbourhoods of a problem.

    Args:
        problem: queries and neighbourhoods.
        objective: what to minimise; at most one term may be kinked (`terms.KINKED`), and none with cap or marginal.
        tolerance: the gap to reach, relative to the value (to a thousandth of the value at the start, where the value
            itself comes closer to zero than that).
        max_iterations: how many steps to try at most.
        cap: the most that any p_j may be, such as 1/B: then B rows drawn without repeats can follow p.
        marginal: [N], what every p_j has to be; summing to 1, and 0 beyond the shortlist.

    Returns:
        Plan in float64, and its info, which holds
            value: the objective at the plan;
            parts: by name, weight times term;
            gap: how far the value may lie above the optimum, if all terms are convex (those of this package are);
            steps: how many steps were tried;
            violation: with cap or marginal, the sum over candidates of how far p_j is from where it may lie;
            converged: whether the gap, and the violation, are within the tolerance;
            message: one sentence for people.

    Raises:
        ValueError: a term that is no finite scalar at the start (see `Objective.check`), two kinked terms, arguments
            out of range, a cap that leaves no room, a marginal of the wrong shape or sum.

    Warns:
        UserWarning: not converged; the message says how far.
    """
    tolerance, max_iterations = _check_effort(tolerance, max_iterations)
    with jax.enable_x64(True):
        problem = jax.tree.map(_as_float64, problem)
        objective = jax.tree.map(_as_float64, objective)
        objective.check(_even_plan(problem), problem)
        smooth, region = _split(problem, objective, cap, marginal)
        found = _descend(problem, smooth, region, tolerance, max_iterations)
        return _answer(problem, objective, tolerance, *found)


def sweep(
    problem: Problem,
    objective: Objective,
    *,
    tolerance: float = 1e-4,
    max_iterations: int = 2000,
    **weights: Any,
) -> list[tuple[Plan, dict[str, Any]]]:
    """Solve one objective for many weights, side by side in one compiled program (free marginals).

    Args:
        problem, objective, tolerance, max_iterations: as in `solve`.
        weights: by name of a term, a vector of S weights; all of the same length.

    Returns:
        S pairs of Plan and info, as `solve` gives them. Memory grows with S M K.

    Raises:
        ValueError: as `solve`; no weights, or vectors of different lengths.
    """
    tolerance, max_iterations = _check_effort(tolerance, max_iterations)
    if not weights:
        raise ValueError("sweep needs weights: sweep(problem, objective, kde=[0.1, 1.0]).")
    lengths = {name: np.shape(values) for name, values in weights.items()}
    if len(set(lengths.values())) > 1 or any(len(shape) != 1 or shape == (0,) for shape in lengths.values()):
        raise ValueError(f"the weights have shapes {lengths}: give vectors of one length.")
    objective.with_weights(**weights)  # checks them
    with jax.enable_x64(True):
        problem = jax.tree.map(_as_float64, problem)
        objective = jax.tree.map(_as_float64, objective)
        objective.check(_even_plan(problem), problem)
        chosen = {name: jnp.asarray(values, jnp.float64) for name, values in weights.items()}
        found = _descend_all(problem, objective, chosen, tolerance, max_iterations)
        answers = []
        for i, each in enumerate(zip(*found, strict=True)):
            one = objective.with_weights(**{name: float(values[i]) for name, values in chosen.items()})
            answers.append(_answer(problem, one, tolerance, *each))
        return answers


def _check_effort(tolerance: Any, max_iterations: Any) -> tuple[float, int]:
    return check_real(tolerance, "tolerance", above=0.0), check_count(max_iterations, "max_iterations", 1)


def _as_float64(leaf: Any) -> jax.Array:
    leaf = jnp.asarray(leaf)
    return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _even_plan(problem: Problem) -> Plan:
    weights_M = problem.query_weights_M
    k = problem.costs_MxK.shape[1]
    return terms.plan_of(jnp.broadcast_to(weights_M[:, None] / k, (len(weights_M), k)), problem)


def _split(problem: Problem, objective: Objective, cap: Any, marginal: Any) -> tuple[Objective, Region]:
    """The smooth terms, and the region that stands for the rest."""
    weights_M = problem.query_weights_M
    kinked = [name for name, term in objective.terms.items() if term.function in terms.KINKED]
    if len(kinked) > 1:
        raise ValueError(f"terms {', '.join(kinked)} all have kinks, and solve takes one such term: leave one of them.")
    if cap is not None or marginal is not None:
        if kinked:
            raise ValueError(f"term {kinked[0]!r} has kinks, which solve does not take with cap or marginal: leave it.")
        return objective, Marginal(weights_M, problem.index_MxK, *_check_limit(problem, cap, marginal))
    if not kinked:
        return objective, Free(weights_M)
    name = kinked[0]
    rest = [other for other in objective.terms if other != name]
    smooth = Objective({key: objective.weights[key] for key in rest}, {key: objective.terms[key] for key in rest})
    weight = objective.weights[name]
    k, n = problem.costs_MxK.shape[1], problem.size
    if objective.terms[name].function is terms.tv_deviation:
        return smooth, Tv(weights_M, jnp.array(1 / n), jnp.array((n - k) / n), weight)
    inverse_U, total = terms.inverse_densities(problem, objective.terms[name].function)
    reference = jnp.asarray(1 / total)
    least = reference if k < n else jnp.zeros_like(reference)
    return smooth, Box(weights_M, inverse_U[problem.index_MxK], reference, least, weight)


def _check_limit(problem: Problem, cap: Any, marginal: Any) -> tuple[jax.Array, jax.Array]:
    u = len(problem.shortlist_U)
    if cap is not None and marginal is not None:
        raise ValueError("cap and marginal both decide what p_j may be: give one of them.")
    if cap is not None:
        cap = check_real(cap, "cap", above=0.0)
        if cap * u < 1:
            raise ValueError(f"cap is {cap:g}, but {u} candidates can then hold only {cap * u:g} of 1: raise it.")
        return jnp.full(u, cap), jnp.array(True)
    marginal_N = np.asarray(marginal, dtype=np.float64)
    if marginal_N.shape != (problem.size,):
        raise ValueError(
            f"marginal has shape {marginal_N.shape}: give one number for each of {problem.size} candidates."
        )
    if not (np.isfinite(marginal_N).all() and (marginal_N >= 0).all() and abs(marginal_N.sum() - 1) <= 1e-9):
        raise ValueError(f"marginal sums to {marginal_N.sum():g}: give finite numbers of at least 0 that sum to 1.")
    marginal_U = marginal_N[np.asarray(problem.shortlist_U)]
    if abs(marginal_U.sum() - 1) > 1e-9:
        raise ValueError(
            f"marginal gives {1 - marginal_U.sum():.3g} to candidates in no neighbourhood: raise "
            "neighbors, or give them 0."
        )
    return jnp.asarray(marginal_U), jnp.array(False)


@jax.jit
def _descend(
    problem: Problem, smooth: Objective, region: Region, tolerance: Any, max_iterations: Any
) -> tuple[jax.Array, ...]:
    """Rows r of the best plan, its value, the best lower bound, the number of steps, and the violation."""
    weights_M = problem.query_weights_M

    def evaluate(log_r):
        mass = weights_M[:, None] * jnp.exp(log_r)
        value, slopes = jax.value_and_grad(lambda mass: smooth(terms.plan_of(mass, problem), problem))(mass)
        slopes = jnp.where(weights_M[:, None] > 0, slopes, 0)  # padding has no say
        return value, slopes, value + region.penalty(jnp.exp(log_r))

    def allowance(value):
        return tolerance * jnp.maximum(jnp.abs(value), _NEAR_ZERO * jnp.abs(first_value))

    def step(state):
        mass = weights_M[:, None] * jnp.exp(state.log_r)
        log_y, multipliers = region.project(state.log_r - state.step * state.slopes, state.step, state.multipliers)
        here = jnp.vdot(state.slopes, mass)
        base = state.smooth - here
        bound = jnp.fmax(state.bound, base + region.bound(state.slopes, multipliers, state.value - base))

        smooth_y, slopes_y, value_y = evaluate(log_y)
        mass_y = weights_M[:, None] * jnp.exp(log_y)
        linear = jnp.vdot(state.slopes, mass_y)
        excess = smooth_y - state.smooth - (linear - here)
        divergence = jnp.sum(jnp.where(mass_y > 0, mass_y * (log_y - state.log_r), 0))
        noise = _ROUNDING * (jnp.abs(state.smooth) + jnp.abs(linear) + jnp.abs(here))
        taken = excess <= divergence / state.step + noise  # not, where it is NaN
        ratio = divergence / (state.step * jnp.maximum(excess, noise))
        # An excess that is rounding alone says nothing against the step.
        lowest = jnp.where(jnp.abs(excess) <= noise, 1.0, _SHRINKAGE)
        growth = jnp.where(jnp.isfinite(ratio), jnp.clip(_SAFETY * ratio, lowest, region.growth), lowest)
        new_step = jnp.minimum(state.step * growth, _LONGEST * first_step)
        kept = (state.log_r, state.smooth, state.slopes, state.value)
        found = (log_y, smooth_y, slopes_y, value_y)
        log_r, smooth_r, slopes_r, value_r = jax.tree.map(partial(jnp.where, taken), found, kept)
        return _State(log_r, smooth_r, slopes_r, value_r, bound, new_step, multipliers, state.count + 1)

    def going(state):
        return (state.value - state.bound > allowance(state.value)) & (state.count < max_iterations)

    log_r, multipliers = region.project(jnp.zeros(problem.costs_MxK.shape), jnp.ones(()), region.start())
    first_smooth, slopes, first_value = evaluate(log_r)
    spread = jnp.dot(weights_M, jnp.max(slopes, axis=1) - jnp.min(slopes, axis=1))
    first_step = 1 / jnp.where(spread > 0, spread, 1)
    none = jnp.array(-jnp.inf, log_r.dtype)
    state = _State(log_r, first_smooth, slopes, first_value, none, first_step, multipliers, jnp.array(0))
    state = jax.lax.while_loop(going, step, state)
    shares = jnp.exp(state.log_r)
    return shares, state.value, state.bound, state.count, region.violation(shares)


@jax.jit
def _descend_all(
    problem: Problem, objective: Objective, weights: dict[str, jax.Array], tolerance: Any, max_iterations: Any
) -> tuple[jax.Array, ...]:
    def one(chosen):
        smooth, region = _split(problem, objective.with_weights(**chosen), None, None)
        return _descend(problem, smooth, region, tolerance, max_iterations)

    return jax.vmap(one)(weights)


def _answer(
    problem: Problem,
    objective: Objective,
    tolerance: float,
    shares: Any,
    value: Any,
    bound: Any,
    steps: Any,
    violation: Any,
) -> tuple[Plan, dict[str, Any]]:
    """What is handed out, on the host, and the warning where it is not what was asked for."""
    plan = terms.plan_of(problem.query_weights_M[:, None] * shares, problem)
    value, gap = float(value), float(value - bound)
    first = abs(float(objective(_even_plan(problem), problem)))
    allowed = tolerance * max(abs(value), _NEAR_ZERO * first)
    info: dict[str, Any] = {
        "value": value,
        "parts": {name: float(part) for name, part in objective.parts(plan, problem).items()},
        "gap": gap,
        "steps": int(steps),
        "violation": float(violation),
        "converged": bool(gap <= allowed and violation <= tolerance and gap >= -allowed),
    }
    own = [name for name, term in objective.terms.items() if term.function not in terms.CONVEX]
    if info["converged"]:
        info["message"] = f"Within {max(gap, 0.0):.3g} of the optimum after {info['steps']} steps"
        info["message"] += f", if {', '.join(own)} is convex." if own else "."
    elif gap < -allowed and violation <= tolerance:
        info["message"] = (
            f"Not proven: a value {-gap:.3g} below its lower bound was found, so that the objective is not convex"
            f"{' (look at ' + ', '.join(own) + ')' if own else ''}, and the gap means nothing."
        )
    else:
        info["message"] = (
            f"Not converged: after {info['steps']} steps the value, {value:.6g}, may lie up to {gap:.3g} above the "
            f"optimum, and p is off its limits by {info['violation']:.3g} in sum. Raise max_iterations or tolerance"
            f"{'; with cap or marginal, raise neighbors' if violation > tolerance else ''}."
        )
    if not info["converged"]:
        warnings.warn(info["message"], stacklevel=3)
    mass_MxK, weights_U, shortlist_U = (np.asarray(x) for x in (plan.mass_MxK, plan.weights_U, plan.shortlist_U))
    return Plan(mass_MxK, weights_U, shortlist_U, plan.size, info), info
