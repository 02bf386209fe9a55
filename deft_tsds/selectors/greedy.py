"""One row after another, each by what the rows before it left: the loop on the device that several selectors share.

Every step takes the row of the highest value and measures all rows against it. What is known of a row is one number, a
statistic of its squared distances to the rows chosen so far; a selector says how a new distance is folded into it
(`fold`) and what it makes the row worth (`value`). The rows are brought to unit length first, so that |x - y|^2 is
2 - 2 cos: only directions count, as in DEFT.

Distances are in difference form, each row by itself, so that equal rows have equal values and a copy has distance 0;
ties go to the lower row. A step reads the pool once, N D numbers. One copy of the unit rows is held on the device.

The distances to a row are folded in by the step after it. The end of a step is a wall that XLA does not fuse across:
on a CPU a sum over D with the exponential of `Herding` fused behind it took ten times as long.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from deft_tsds.arrays import BLOCK_BYTES, normalize_rows
from deft_tsds.cost import PlanCost, StageCost
from deft_tsds.runs import track

_STEPS = 32


class Greedy(NamedTuple):
    """The rows in the order in which they were chosen, the value of each at its time, and all statistics at the end."""

    rows_B: np.ndarray
    values_B: np.ndarray
    statistic_N: np.ndarray


def unit_rows(rows_NxD: np.ndarray) -> jax.Array:
    """float32 [N, D] at unit length, on the device; zero rows stay zero."""
    return jnp.asarray(normalize_rows(rows_NxD))


def choose_greedily(
    unit_NxD: jax.Array,
    budget: int,
    *,
    start_N: np.ndarray,
    fold: Callable[..., jax.Array],
    value: Callable[..., jax.Array],
    parameters: Any = (),
    among_N: np.ndarray | None = None,
    what: str,
) -> Greedy:
    """Take `budget` rows, each time the one of the highest value among those that are left.

    Args:
        unit_NxD: `unit_rows`.
        budget: at most the number of rows to choose among.
        start_N: float32 [N], the statistic before anything is chosen.
        fold: `fold(statistic_N, squared_N, step, parameters) -> statistic_N`, squared_N the squared distances to the
            row chosen in this step. A module-level function: it is compiled once.
        value: `value(statistic_N, step, parameters) -> [N]`; likewise.
        parameters: arrays or numbers for both, traced.
        among_N: bool [N], which rows may be chosen; all by default.
        what: for the progress bar.
    """
    left_N = jnp.ones(len(start_N), bool) if among_N is None else jnp.array(among_N)
    state = (jnp.array(start_N, jnp.float32), left_N, jnp.zeros(len(start_N), jnp.float32))
    rows, values = [], []
    for first in track(range(0, budget, _STEPS), what):
        count = min(_STEPS, budget - first)
        state, rows_S, values_S = _steps(unit_NxD, state, first, count, parameters, fold=fold, value=value)
        rows.append(np.asarray(rows_S)[:count])
        values.append(np.asarray(values_S)[:count])
    statistic_N, _, squared_N = state
    statistic_N = jax.jit(fold)(statistic_N, squared_N, budget - 1, parameters)
    return Greedy(np.concatenate(rows), np.concatenate(values), np.asarray(statistic_N))


@jax.jit
def squared_distances(unit_NxD: jax.Array, point_D: Any) -> jax.Array:
    """|x - point|^2 of every row, float32 [N]."""
    return jnp.sum(jnp.square(unit_NxD - point_D), axis=1)


def greedy_cost(n: int, d: int, budget: int) -> PlanCost:
    """What the loop needs: the rows twice, blocks to make them, the statistics; a pass over the pool a chosen row."""
    size = 8 * n * d + min(24 * n * d, 3 * BLOCK_BYTES) + 32 * n
    return PlanCost((StageCost("greedy", size, 3 * n * d * budget),))


@partial(jax.jit, static_argnames=("fold", "value"))
def _steps(unit_NxD, state, first, count, parameters, *, fold, value):
    """`count` steps, at most _STEPS, of which `first` is the number of the first."""

    def step(t, carry):
        (statistic_N, left_N, squared_N), rows_S, values_S = carry
        number = first + t
        folded_N = fold(statistic_N, squared_N, number - 1, parameters)
        statistic_N = jnp.where(number > 0, folded_N, statistic_N)  # before the first row there is nothing to fold in
        value_N = jnp.where(left_N, value(statistic_N, number, parameters), -jnp.inf)
        row = jnp.argmax(value_N)
        squared_N = squared_distances(unit_NxD, unit_NxD[row])
        state = (statistic_N, left_N.at[row].set(False), squared_N)
        return state, rows_S.at[t].set(row), values_S.at[t].set(value_N[row])

    empty = (jnp.zeros(_STEPS, jnp.int32), jnp.zeros(_STEPS, jnp.float32))
    return jax.lax.fori_loop(0, count, step, (state, *empty))
