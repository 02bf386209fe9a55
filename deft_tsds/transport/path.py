"""The optima of problem RT, "kde" and "uniform", as a differentiable path.

At the optimum each query fills its neighbours in order, r_ij <= 1 / (s rho_j) (`deft_tsds.transport.closed_form`).
What is differentiable here, and what is not:

- **In tau = C (1 - alpha) / alpha the optimum is a staircase.** s*(tau) is the smallest level W_i(k) with
  F(s) >= tau, one of finitely many, so that dp/dtau = 0 but where it jumps. The same holds for distances: they decide
  the order of the neighbours and which level is chosen, nothing else. A gradient in alpha is zero, and useless.
- **In s it is continuous**: r_ij = (min(W_i(k), s) - min(W_i(k-1), s)) / s, with a kink where s meets a level. Every s
  up to Z/2 is an optimum of RT, for tau = F(s). So s runs through the path of optima, and alpha is read off at the end.
- **In the bandwidth**, through rho, and in the query weights it is differentiable at fixed s as well.

**Blur.** The slope of p in s is right but says little: all mass that moves goes to the one neighbour of each query that
is just being filled, and the next is another. The mean of the plans from s e^-b to s e^b, uniform in log s, moves with
all that lie between. It has a closed form too: min(W, s)/s = min(e^x, 1) with x = log(W/s) becomes

    phi(x) = e^x sinh(b) / b  for x < -b,   (x + b + 1 - e^(x - b)) / (2 b)  for |x| <= b,   1  for x > b

whose derivative is continuous. Blurred, the plan is no optimum, but as near to one as its neighbours on the path.

s is also the better knob to look at: with rho = 1 it is the number of neighbours that a query spreads over, and with
near-duplicates the number of distinct ones.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from deft_tsds.arrays import check_real
from deft_tsds.transport import terms
from deft_tsds.transport.problem import Plan, Problem


def path_plan(problem: Problem, s: Any, *, blur: float = 0.0) -> Plan:
    """The optimum of problem RT at s, differentiable in s, in the densities and in the query weights.

    Args:
        problem: queries and neighbourhoods, named from near to far; densities of 1 make "kde" the same as "uniform".
            Costs are not read.
        s: between `path_ends(problem)`. Below the first, each query keeps to its nearest candidate; above the last,
            what does not fit into the K neighbours of a row is shared out among them.
        blur: b >= 0, a Python float; 0 gives the optimum itself.

    Returns:
        Plan, in the precision of the densities; O(M K) operations and memory.

    Raises:
        ValueError: blur below 0.

    Example:
        >>> candidates, queries = np.array([[0.0], [0.1], [1.0], [9.0]]), np.array([[0.0]])
        >>> dt.path_plan(dt.Problem.from_embeddings(candidates, queries), 2.0).mass_MxK
        Array([[0.5, 0.5, 0. , 0. ]], dtype=float32)
    """
    blur = check_real(blur, "blur", at_least=0.0)
    levels_MxK = _levels(problem)
    if blur == 0:
        poured_MxK = jnp.minimum(levels_MxK / s, 1)
    else:
        x = jnp.log(levels_MxK) - jnp.log(s)
        below = jnp.exp(jnp.minimum(x, -blur)) * (jnp.sinh(blur) / blur)
        within = jnp.clip(x, -blur, blur)
        poured_MxK = jnp.where(x < -blur, below, (within + blur - jnp.expm1(within - blur)) / (2 * blur))
    shares_MxK = jnp.diff(poured_MxK, axis=1, prepend=0) / poured_MxK[:, -1:]
    weights_M = jnp.asarray(problem.query_weights_M, levels_MxK.dtype)
    return terms.plan_of(weights_M[:, None] * shares_MxK, problem)


def path_ends(problem: Problem) -> tuple[jax.Array, jax.Array]:
    """The least s that spreads any mass, and the largest one that is an optimum within K neighbours for certain.

    The last is the smaller of min_i W_i(K) and Z/2, Z at its lower bound as in `deft_tsds.transport.closed_form`.

    Example:
        >>> candidates, queries = np.array([[0.0], [0.1], [1.0], [9.0]]), np.array([[0.0]])
        >>> low, high = dt.path_ends(dt.Problem.from_embeddings(candidates, queries))
        >>> float(low) <= float(high)
        True
    """
    levels_MxK = _levels(problem)
    carries_M = jnp.asarray(problem.query_weights_M) > 0
    _, total = terms.inverse_densities(problem, terms.kde_deviation)
    first = jnp.min(jnp.where(carries_M, levels_MxK[:, 0], jnp.inf))
    return first, jnp.minimum(jnp.min(jnp.where(carries_M, levels_MxK[:, -1], jnp.inf)), total / 2)


def _levels(problem: Problem) -> jax.Array:
    """W_i(k)."""
    return jnp.cumsum(1 / jnp.asarray(problem.density_U)[jnp.asarray(problem.index_MxK)], axis=1)
