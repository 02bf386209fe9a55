"""Mirror descent on the rows of a plan, one compiled program for every weight, start and tolerance.

    min over gamma >= 0, sum_j gamma_ij = w_i     h(gamma) + g(gamma)

h is smooth and g belongs to a region (`deft_tsds.transport.projections`, `deft_tsds.transport.kinks`). A step is

    y = argmin  <grad h(x), z> + g(z) + KL(z | x) / step       over all z of the region

which the region computes exactly: without kinks and limits it is a softmax of each row. The naive gradient of a
maximum moves one entry at a time and comes to no end; here g is never differentiated. A step is taken when h turns out
to be below its quadratic-like model, h(y) <= h(x) + <grad h(x), y - x> + KL(y | x)/step, so that the objective falls.
The next step follows the curvature just seen: where h is linear it grows a hundredfold each time, and problem RT is
solved in a few.

**Momentum.** Where h is curved, the next x is not y but log y + k/(k+3) (log y - log y_before), Nesterov's point taken
in logarithms: a plan too, since rows are made to sum to 1. Entries that leave the support fall exponentially, which is
a straight line there. Where the value rises, k goes back to 0, and the step without momentum is taken instead; else
twice the excess is let pass, since it is the value that decides.

**The certificate.** h is convex, so that h(z) >= h(x) + <grad h(x), z - x> everywhere. The least value of the
right-hand side plus g, over all z of the region, is below the optimum; for a free marginal without kinks, it is what
the Frank-Wolfe gap is made of, the minimum of each row of the gradient. Otherwise it is bounded by weak duality from
the multipliers of the step. The best of these bounds is returned. It holds wherever the descent began.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from deft_tsds.transport import terms
from deft_tsds.transport.objective import Objective
from deft_tsds.transport.problem import Problem
from deft_tsds.transport.projections import Region

_SHRINKAGE, _SAFETY = 0.1, 0.9
_MOMENTUM_GROWTH = 1.1
_LONGEST = 1e9
_ROUNDING = 1e-13
NEAR_ZERO = 1e-3


class Start(NamedTuple):
    """Where to begin."""

    log_r_MxK: jax.Array
    """Up to a constant a row."""
    step: jax.Array
    """0 for a step from the slopes there."""


class Found(NamedTuple):
    """Where the descent ended."""

    log_r_MxK: jax.Array
    value: jax.Array
    bound: jax.Array
    """No plan has a value below it, if h is convex."""
    step: jax.Array
    count: jax.Array
    """Steps tried."""
    violation: jax.Array


_Point = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]
"""log r, r, value of the smooth terms, their slopes, value of all: the first five fields of a `_State`."""


class _State(NamedTuple):
    log_r: jax.Array
    r: jax.Array
    smooth: jax.Array
    slopes: jax.Array
    value: jax.Array
    log_y: jax.Array
    """Where a step from r leads."""
    behind: jax.Array
    """Where the step before led."""
    run: jax.Array
    """k, the steps with momentum since it was last given up."""
    bound: jax.Array
    step: jax.Array
    multipliers: Any
    count: jax.Array


def even_start(problem: Problem) -> Start:
    """Every query spreads its mass evenly."""
    return Start(jnp.zeros(problem.costs_MxK.shape), jnp.zeros(()))


def allowance(value: Any, scale: Any, tolerance: Any) -> Any:
    """The gap that counts as none: relative to the value, or to a thousandth of `scale` near zero."""
    maximum = jnp.maximum if isinstance(value, jax.Array) else max
    return tolerance * maximum(abs(value), NEAR_ZERO * scale)


@jax.jit
def descend(
    problem: Problem,
    smooth: Objective,
    region: Region,
    start: Start,
    scale: Any,
    tolerance: Any,
    max_iterations: Any,
) -> Found:
    """Go down from `start` until the gap is within the allowance, or for max_iterations steps."""
    weights_M = problem.query_weights_M

    def evaluate(r):
        mass = weights_M[:, None] * r
        value, slopes = jax.value_and_grad(lambda mass: smooth(terms.plan_of(mass, problem), problem))(mass)
        slopes = jnp.where(weights_M[:, None] > 0, slopes, 0)  # padding has no say
        return value, slopes, value + region.penalty(r)

    def over_mass(r, values):
        return jnp.dot(weights_M, jnp.sum(r * values, axis=1))

    def propose(log_r, r, smooth, slopes, value, step, multipliers):
        """Where a step leads, its multipliers, and the bound that they prove."""
        log_y, multipliers = region.project(log_r - step * slopes, step, multipliers)
        base = smooth - over_mass(r, slopes)
        return log_y, multipliers, base + region.bound(slopes, multipliers, value - base)

    def step(state):
        log_x = state.log_y
        if region.momentum:
            push = state.run / (state.run + 3)
            log_x = jax.nn.log_softmax(log_x + push * (log_x - state.behind), axis=1)
        x = jnp.exp(log_x)
        smooth_x, slopes_x, value_x = evaluate(x)

        here, linear = over_mass(state.r, state.slopes), over_mass(x, state.slopes)
        excess = smooth_x - state.smooth - (linear - here)
        divergence = over_mass(x, jnp.where(x > 0, log_x - state.log_r, 0))
        noise = _ROUNDING * (jnp.abs(state.smooth) + jnp.abs(linear) + jnp.abs(here))
        plain = state.run == 0
        modelled = excess <= jnp.where(plain, 1, 2) * divergence / state.step + noise  # not, where it is NaN
        taken = modelled & (plain | (value_x <= state.value + noise))

        ratio = divergence / (state.step * jnp.maximum(excess, noise))
        # An excess that is rounding alone says nothing against the step, and momentum that failed says little.
        lowest = jnp.where(jnp.abs(excess) <= noise, 1.0, jnp.where(taken | plain, _SHRINKAGE, 0.5))
        highest = jnp.where(plain, region.growth(state.multipliers), _MOMENTUM_GROWTH)
        growth = jnp.where(jnp.isfinite(ratio), jnp.clip(_SAFETY * ratio, lowest, highest), lowest)
        growth = jnp.where(modelled & ~taken, 1.0, growth)
        new_step = jnp.minimum(state.step * growth, longest)

        kept = (state.log_r, state.r, state.smooth, state.slopes, state.value)
        found = (log_x, x, smooth_x, slopes_x, value_x)
        point: _Point = jax.tree.map(partial(jnp.where, taken), found, kept)
        behind = jnp.where(taken, state.log_y, state.log_r)
        run = jnp.where(taken & (excess > noise) & region.momentum, state.run + 1, 0)
        log_y, multipliers, bound = propose(*point, new_step, state.multipliers)
        bound = jnp.fmax(state.bound, bound)
        return _State(*point, log_y, behind, run, bound, new_step, multipliers, state.count + 1)

    def going(state):
        gap = state.value - state.bound
        return ~(gap <= allowance(state.value, scale, tolerance)) & (state.count < max_iterations)

    log_r, multipliers = region.enter(start.log_r_MxK)
    r = jnp.exp(log_r)
    smooth_r, slopes, value = evaluate(r)
    spread = jnp.dot(weights_M, jnp.max(slopes, axis=1) - jnp.min(slopes, axis=1))
    own_step = 1 / jnp.where(spread > 0, spread, 1)
    longest = _LONGEST * own_step
    point: _Point = (log_r, r, smooth_r, slopes, value)
    first_step = jnp.where(start.step > 0, jnp.minimum(start.step, longest), own_step)
    log_y, multipliers, bound = propose(*point, first_step, multipliers)
    none = jnp.array(0)
    state = _State(*point, log_y, log_r, none, bound, first_step, multipliers, none)
    state = jax.lax.while_loop(going, step, state)
    return Found(state.log_r, state.value, state.bound, state.step, state.count, region.violation(state.r))
