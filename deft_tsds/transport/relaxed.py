"""A differentiable draw: the B rows that `dt.sample` takes, relaxed to weights between 0 and 1.

**The law.** Row j scores v_j = logit(pi_j) + e_j with independent logistic e_j, and the B highest scores are drawn:
Pareto sampling (Rosen, 1997), where pi_j = min(1, c p_j), sum_j pi_j = B are the probabilities with which `dt.sample`
takes each row. Both draws have size B; the inclusion probabilities of Pareto sampling come close to pi (within 0.02 at
B = 2 of 6 in the tests, closer for larger budgets). With law="gumbel" the scores are log p_j + Gumbel noise: drawing
one row after another in proportion to what is left of p (Plackett-Luce), which flattens p as B grows.

**The relaxation.** The B highest scores maximise sum_j u_j v_j over 0 <= u_j <= 1, sum_j u_j = B. With the entropy of u
at temperature T added, the maximum is

    u_j = sigmoid((v_j - t) / T),   t such that sum_j u_j = B

(the transport of the scores to two points, as in a soft top-k by Sinkhorn, with its one potential found by bisection).
u has derivatives in p for fixed noise, and goes to the hard draw as T falls.

**Bias.** For an objective f of the drawn set, E f(u) is not E f(draw), unless f is linear and T small; and the gradient
of the one is not that of the other. Both differences fall with T. On a quadratic f of 2 rows out of 6, small enough to
enumerate (tests), the gradient was off by 60%, 24% and 6% of its length at T = 2, 0.5 and 0.1. `hard=True` gives the
drawn rows themselves on the way forward and the derivative of u on the way back (straight-through): no bias of the
value, and no better gradient (28% off at T = 0.5). It is for an f that was never meant for rows in part.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from deft_tsds.arrays import check_count
from deft_tsds.sampling import check_key

Law = Literal["pareto", "gumbel"]

_HALVINGS = 100
_FAR = 60.0  # a logit: the row is in, or out, whatever the noise


def relaxed_sample(
    probabilities: Any, budget: int, *, key: jax.Array, temperature: Any, law: Law = "pareto", hard: bool = False
) -> jax.Array:
    """Draw B rows, relaxed: weights that are differentiable in the probabilities. Runs under `jit`, `grad` and `vmap`.

    The same key gives the same noise: differences of two calls, and gradients, are those of common random numbers.

    Args:
        probabilities: [N] real, >= 0, made to sum to 1; at least B above 0. Such as `plan.weights_U`.
        budget: B, 1 <= B < N.
        key: `jax.random.key(seed)`.
        temperature: T > 0, in units of a logit.
        law: "pareto", whose inclusion probabilities are those of `dt.sample`, or "gumbel", sequential.
        hard: B ones and N - B zeros in the place of the weights, with the same derivatives.

    Returns:
        [N] in the dtype of the probabilities, between 0 and 1, summing to B. A row with p_j = 0 has 0, and stays at it.

    Raises:
        ValueError: probabilities that are no vector, budget or law out of range, a bad key.

    Example:
        >>> weights = dt.relaxed_sample(np.array([0.4, 0.3, 0.2, 0.1]), 2, key=jax.random.key(0), temperature=0.1)
        >>> weights.shape, round(float(weights.sum()), 3)
        ((4,), 2.0)
    """
    if law not in get_args(Law):
        raise ValueError(f"law is {law!r}: choose one of {', '.join(get_args(Law))}.")
    p_N = jnp.asarray(probabilities)
    if p_N.ndim != 1 or not jnp.issubdtype(p_N.dtype, jnp.floating):
        raise ValueError(f"probabilities is {p_N.dtype} {p_N.shape}: give a vector of real numbers, one entry a row.")
    budget = check_count(budget, "budget", 1, len(p_N) - 1)
    key = check_key(key)
    possible_N = p_N > 0
    p_N = jnp.where(possible_N, p_N, 0)
    p_N = p_N / jnp.sum(p_N)
    if law == "gumbel":
        score_N = jnp.log(jnp.where(possible_N, p_N, 1)) + jax.random.gumbel(key, p_N.shape, p_N.dtype)
        certain_N = jnp.zeros_like(possible_N)
    else:
        pi_N = relaxed_inclusion(p_N, budget)
        certain_N = pi_N >= 1
        inside_N = jnp.where(possible_N & ~certain_N, pi_N, 0.5)
        score_N = jnp.log(inside_N) - jnp.log1p(-inside_N) + jax.random.logistic(key, p_N.shape, p_N.dtype)
    soft_N = _soft_top(score_N, possible_N & ~certain_N, budget - jnp.sum(certain_N), temperature)
    soft_N = jnp.where(certain_N, 1, soft_N)
    if not hard:
        return soft_N
    ranked_N = jnp.where(certain_N, jnp.inf, jnp.where(possible_N, score_N, -jnp.inf))
    _, drawn_B = jax.lax.top_k(ranked_N, budget)
    drawn_N = jnp.zeros_like(soft_N).at[drawn_B].set(1)
    return drawn_N + soft_N - jax.lax.stop_gradient(soft_N)


def relaxed_inclusion(probabilities: Any, budget: int) -> jax.Array:
    """pi_j = min(1, c p_j) with sum_j pi_j = B, as `dt.sampling.inclusion_probabilities`, differentiable in p.

    Args:
        probabilities: [N] >= 0, at least B above 0; their scale does not matter.
        budget: B.

    Returns:
        [N] in the dtype of the probabilities. Rows with pi_j = 1 have derivative 0.
    """
    p_N = jnp.asarray(probabilities)
    # In descending order row r is certain when p_r times what is left of the budget is at least what is left of p.
    descending_N = -jnp.sort(-jax.lax.stop_gradient(p_N))
    left_N = jnp.cumsum(descending_N[::-1])[::-1]
    certain = jnp.sum(jnp.cumprod(descending_N * (budget - jnp.arange(len(p_N))) >= left_N))
    certain_N = p_N >= jnp.where(certain > 0, descending_N[jnp.maximum(certain - 1, 0)], jnp.inf)
    rest = jnp.sum(jnp.where(certain_N, 0, p_N))
    scale = (budget - jnp.sum(certain_N)) / jnp.where(rest > 0, rest, 1)
    return jnp.where(certain_N, 1, jnp.minimum(p_N * scale, 1))


def _soft_top(score_N: jax.Array, eligible_N: jax.Array, budget: Any, temperature: Any) -> jax.Array:
    """sigmoid((v - t) / T) of the eligible rows, summing to the budget."""
    frozen_N, frozen_t = jax.lax.stop_gradient((score_N, temperature))

    def weights(score, t, temperature):
        return jnp.where(eligible_N, jax.nn.sigmoid((score - t) / temperature), 0)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        above = jnp.sum(weights(frozen_N, middle, frozen_t)) > budget
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    least = jnp.min(jnp.where(eligible_N, frozen_N, jnp.inf))
    most = jnp.max(jnp.where(eligible_N, frozen_N, -jnp.inf))
    reach = _FAR * frozen_t
    low, high = jax.lax.fori_loop(0, _HALVINGS, halve, (least - reach, most + reach))
    t = (low + high) / 2
    # One Newton step from there has the derivatives of t.
    sum_u = jnp.sum(weights(score_N, t, temperature))
    u_N = weights(frozen_N, t, frozen_t)
    slope = jnp.sum(u_N * (1 - u_N)) / frozen_t
    t = t + (sum_u - jax.lax.stop_gradient(sum_u)) / jnp.where(slope > 0, slope, 1)
    return weights(score_N, t, temperature)
