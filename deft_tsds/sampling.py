"""From probabilities to a budget: draws with and without replacement, in rows or in costs, with quotas by group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deft_tsds.apportion import Quotas, divide_budget, largest_remainder
from deft_tsds.arrays import check_count

# Probabilities summed in float32 over many millions of rows still lie this close to 1.
_SUM_TOLERANCE = 1e-3

_ROUNDING = 1e-12

# Held back from the probabilities that enter the duels: more than all their rounding, so that no sum of costs can pass
# the budget, and less than one row of a budget counted in rows.
_MARGIN = 1e-9


def sample(
    probabilities,
    budget: int,
    *,
    key: jax.Array,
    replace: bool = False,
    costs=None,
    groups=None,
    quotas: Quotas | None = None,
    caps: Mapping[Any, int | float] | None = None,
    fill=None,
) -> np.ndarray:
    """Draw row numbers by their probabilities, as many as the budget allows.

    **With replacement** (`replace=True`, the TSDS paper) the draws are independent and row j is expected B p_j times.

    **Without replacement**, exactly B distinct rows come out, and row j is among them with probability

        pi_j = min(1, c p_j),   c such that sum_j pi_j = B

    (`inclusion_probabilities`). So as long as no B p_j exceeds 1, each row keeps the expectation that the paper's
    draw gives it; where one does, its surplus goes to the other rows in proportion. The scheme is the pivotal method:
    rows meet in random pairs, and in each duel one row takes from the other until it is certain or the other is out,
    by a fair chance that leaves both expectations as they were. It is chosen over drawing until B differ (Gumbel
    top-k) because that one has no closed form for pi_j and flattens p towards uniform as B grows, and over conditional
    Poisson sampling because it is exact in one pass and carries over to costs.

    **With `costs`** the budget is in units of cost, and no selection costs more. Rows that cost more than the budget
    are left out. With replacement, rows are drawn until the next one would pass the budget. Without, pi_j is as above
    with c such that sum_j pi_j cost_j = B, and a duel moves cost, not probability, from row to row: what is spent
    stays B and the expectations stay pi_j, until one row at most is undecided, and that one is dropped. So row j is
    chosen with probability pi_j less its share of that drop, and these shares sum to less than one row. What is left
    of the budget is always less than the cost of some row with p_j > 0 that was not chosen.

    **With `groups`** the budget is first divided among the groups, and each group is drawn by itself: those named in
    `quotas` get theirs exactly, the others the rest in proportion to their probabilities, by largest remainder, none
    above its `caps` or what its rows can use. With costs, quotas and caps are in units of cost too.

    Args:
        probabilities: [N], >= 0, sum 1.
        budget: B >= 1; without replacement at most what the rows with p_j > 0 (and those of `fill`) hold.
        key: `jax.random.key(seed)`.
        replace: whether a row may come more than once.
        costs: [N] > 0, say tokens; the budget then counts them and not rows.
        groups: [N] labels, for quotas and caps.
        quotas: {group: an int, so many; or a float in [0, 1], that share of the budget}, or "equal" for the same from
            each group (what a small one lacks goes to the others).
        caps: {group: an int, at most so many; or a float in [0, 1], at most that share of the budget}.
        fill: row numbers, most wanted first. When the rows with p_j > 0 are fewer than the budget, all of them are
            taken, and then these in order, as many as fit. Without it that is an error.

    Returns:
        int64 [B], ascending (rows repeat next to each other); with `costs` as many as the budget allows.

    Raises:
        ValueError: probabilities that are negative, not finite, or do not sum to 1; a support smaller than the budget;
            quotas or caps that cannot be kept.

    References:
        Deville and Tillé, "Unequal probability sampling without replacement through a splitting method", 1998 (the
        pivotal method); Deville and Tillé, "Efficient balanced sampling: the cube method", 2004 (the case of costs).

    Example:
        >>> dt.sample(np.array([0.4, 0.4, 0.2, 0.0]), 3, key=jax.random.key(0))
        array([0, 1, 2])
    """
    if replace and fill is not None:
        raise ValueError("fill is for draws without replacement: with replace=True no draw falls short.")
    draw = _Draw.of(probabilities, budget, costs, groups, quotas, caps, fill, replace)
    generator = generator_of(key)
    chosen = []
    for rows, part in draw.parts:
        probability_n, cost_n = draw.probability_N[rows], draw.costs_N[rows]
        if replace and costs is None:
            drawn = generator.choice(len(rows), size=part, p=probability_n / probability_n.sum())
        elif replace:
            drawn = _repeat_until(probability_n, cost_n, part, generator)
        else:
            drawn = _duels(_inclusion(draw, rows, part), cost_n, part, generator)
        chosen.append(rows[drawn])
    drawn = np.sort(np.concatenate(chosen))
    if len(drawn) == 0:
        raise ValueError(
            f"no row with a probability above 0 costs as little as its part of {budget}: raise the budget."
        )
    return drawn


def inclusion_probabilities(
    probabilities,
    budget: int,
    *,
    costs=None,
    groups=None,
    quotas: Quotas | None = None,
    caps: Mapping[Any, int | float] | None = None,
    fill=None,
) -> np.ndarray:
    """The probability pi_j = min(1, c p_j) with which `sample` without replacement takes each row.

    Args:
        probabilities, budget, costs, groups, quotas, caps, fill: as in `sample`; c is found for each group apart, and
            rows that fill up have 1.

    Returns:
        float64 [N], with sum_j pi_j = B, or sum_j pi_j cost_j <= B with costs.

    Raises:
        ValueError: as `sample`.
    """
    draw = _Draw.of(probabilities, budget, costs, groups, quotas, caps, fill, replace=False)
    inclusion_N = np.zeros(len(draw.probability_N))
    for rows, part in draw.parts:
        inclusion_N[rows] = _inclusion(draw, rows, part)
    return inclusion_N


def sample_stratified(groups, budget: int, *, key: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Draw `budget` distinct rows, from each group as many as its share of the rows says (largest remainder),
    uniformly.

    Args:
        groups: [N] labels; all equal for a uniform draw over all rows.
        budget: 0 <= budget <= N.
        key: `jax.random.key(seed)`.

    Returns:
        int64 [budget] rows, ascending, and float64 [N], the probability with which each row was to be drawn.
    """
    _, group_N = np.unique(groups, return_inverse=True)
    sizes_G = np.bincount(group_N)
    counts_G = largest_remainder(sizes_G, budget, sizes_G)
    generator = generator_of(key)
    drawn = [generator.choice(np.flatnonzero(group_N == g), count, replace=False) for g, count in enumerate(counts_G)]
    return np.sort(np.concatenate(drawn)), (counts_G / sizes_G)[group_N]


@dataclass(frozen=True, eq=False)
class _Draw:
    """The checked arguments of a draw."""

    probability_N: np.ndarray
    costs_N: np.ndarray  # 1 a row when the budget counts rows
    counts_rows: bool
    fill: np.ndarray | None
    parts: list[tuple[np.ndarray, int]]  # rows of a group, and the budget for them

    @classmethod
    def of(cls, probabilities, budget, costs, groups, quotas, caps, fill, replace: bool) -> _Draw:
        probability_N = _check_probabilities(probabilities)
        n = len(probability_N)
        budget = check_count(budget, "budget", 1)
        costs_N = np.ones(n) if costs is None else check_costs(costs, n)
        fill = None if fill is None else _check_fill(fill, n)
        if groups is None:
            if quotas is not None or caps is not None:
                raise ValueError("quotas and caps need groups: give one label a row.")
            return cls(probability_N, costs_N, costs is None, fill, [(np.arange(n), budget)])

        labels = np.asarray(groups)
        if labels.shape != (n,):
            raise ValueError(f"groups has shape {labels.shape}: give one label for each of the {n} rows.")
        names, group_N = np.unique(labels, return_inverse=True)
        usable_N = probability_N > 0
        if fill is not None:
            usable_N[fill] = True
        mass_G = np.bincount(group_N, probability_N)
        capacity_G = np.floor(np.bincount(group_N, costs_N * usable_N) + _ROUNDING)
        if replace:
            capacity_G = np.where(mass_G > 0, budget, 0)
        budget_G = divide_budget(
            budget,
            names.tolist(),
            mass_G,
            capacity_G,
            quotas=quotas,
            caps=caps,
            holds="rows" if costs is None else "units of cost",
        )
        parts = [(np.flatnonzero(group_N == g), int(part)) for g, part in enumerate(budget_G) if part > 0]
        return cls(probability_N, costs_N, costs is None, fill, parts)


def _inclusion(draw: _Draw, rows: np.ndarray, budget: int) -> np.ndarray:
    """pi of the rows of one group."""
    probability_n, cost_n = draw.probability_N[rows], draw.costs_N[rows]
    inclusion_n = np.zeros(len(rows))
    support = np.flatnonzero(probability_n)
    too_dear = cost_n[support] > budget
    support = support[~too_dear]
    held = cost_n[support].sum()
    if held <= budget:
        inclusion_n[support] = 1
        if held < budget and not too_dear.any():
            inclusion_n[_filling(draw, rows, inclusion_n, budget)] = 1
        return inclusion_n

    # In descending order the certain rows (pi_j = 1) come first: row r is certain when p_r times what is left of the
    # budget is at least what is left of the mass. Ties with equal p are decided alike, so the order among them is free.
    order = support[np.argsort(-probability_n[support], kind="stable")]
    descending = probability_n[order]
    mass_left = np.cumsum((descending * cost_n[order])[::-1])[::-1]
    budget_left = budget - np.concatenate([[0.0], np.cumsum(cost_n[order])[:-1]])
    uncertain = descending * budget_left < mass_left * (1 - _ROUNDING)
    uncertain[-1] = True  # the rows hold more than the budget, if only by rounding
    first = int(np.argmax(uncertain))
    inclusion_n[order[:first]] = 1
    scale = max(budget_left[first], 0.0) / mass_left[first]
    inclusion_n[order[first:]] = np.minimum(descending[first:] * scale, 1)
    return inclusion_n


def _filling(draw: _Draw, rows: np.ndarray, taken_n: np.ndarray, budget: int) -> np.ndarray:
    """The rows of `fill` that go on top of those taken, as places in `rows`."""
    cost_n = draw.costs_N[rows]
    held = float(cost_n[taken_n == 1].sum())
    if draw.fill is None:
        ways = (
            "lower the budget, draw with replace=True, spread the probabilities over more rows (for TSDS: lower alpha, "
            'raise scale, raise neighbors, or give more queries), or fill up (sample: fill=rows; TSDS: fill="nearest").'
        )
        if draw.counts_rows:
            raise ValueError(
                f"only {held:.0f} of {len(rows)} rows have a probability above 0, {budget - held:.0f} fewer than the "
                f"budget of {budget}: {ways}"
            )
        raise ValueError(
            f"the rows with a probability above 0 cost {held:g} together, {budget - held:g} less than the budget of "
            f"{budget}: {ways}"
        )
    offered = np.searchsorted(rows, draw.fill[np.isin(draw.fill, rows)])
    offered = offered[taken_n[offered] == 0]
    total = np.cumsum(cost_n[offered])
    if held + total[-1:].sum() < budget:
        raise ValueError(
            f"the rows with a probability above 0 and those of fill hold {held + total[-1:].sum():g} together, less "
            f"than the budget of {budget}: lower the budget, or give fill more rows."
        )
    return offered[total <= budget - held]


def _duels(inclusion_n: np.ndarray, cost_n: np.ndarray, budget: int, generator: np.random.Generator) -> np.ndarray:
    """Places drawn with the given inclusion probabilities, of a cost of at most `budget` (the pivotal method).

    All duels of a round are fought at once, and each settles at least one of its two rows: log2(n) rounds.
    """
    value_n = inclusion_n.copy()
    open_rows = generator.permutation(np.flatnonzero((value_n > 0) & (value_n < 1)))
    value_n[open_rows] *= 1 - _MARGIN
    while len(open_rows) > 1:
        pairs = len(open_rows) // 2
        a, b = open_rows[:pairs], open_rows[pairs : 2 * pairs]
        # What a row can give and take, in units of cost.
        give_a, take_a = value_n[a] * cost_n[a], (1 - value_n[a]) * cost_n[a]
        give_b, take_b = value_n[b] * cost_n[b], (1 - value_n[b]) * cost_n[b]
        to_a, to_b = np.minimum(give_b, take_a), np.minimum(give_a, take_b)
        a_takes = generator.random(pairs) * (to_a + to_b) < to_b  # to_a P(a takes) = to_b P(b takes): a fair game
        value_a = np.where(a_takes, value_n[a] + to_a / cost_n[a], value_n[a] - to_b / cost_n[a])
        value_b = np.where(a_takes, value_n[b] - to_a / cost_n[b], value_n[b] + to_b / cost_n[b])
        # Settled rows are 0 or 1 without rounding.
        value_a = np.where(a_takes & (take_a <= give_b), 1, np.where(~a_takes & (give_a <= take_b), 0, value_a))
        value_b = np.where(~a_takes & (take_b <= give_a), 1, np.where(a_takes & (give_b <= take_a), 0, value_b))
        value_n[a], value_n[b] = np.clip(value_a, 0, 1), np.clip(value_b, 0, 1)
        open_rows = open_rows[(value_n[open_rows] > 0) & (value_n[open_rows] < 1)]
    chosen = np.flatnonzero(value_n == 1)
    if len(open_rows) and cost_n[open_rows].sum() <= budget - cost_n[chosen].sum():
        # It lacks the margin only: in a budget of rows, the last one always does.
        chosen = np.append(chosen, open_rows)
    return chosen


def _repeat_until(
    probability_n: np.ndarray, cost_n: np.ndarray, budget: int, generator: np.random.Generator
) -> np.ndarray:
    """Independent draws among the rows that do not cost more than the budget, until the next one would pass it."""
    probability_n = np.where(cost_n <= budget, probability_n, 0)
    if not probability_n.any():
        return np.empty(0, np.int64)
    probability_n /= probability_n.sum()
    batch = 16 + int(budget / (probability_n @ cost_n))
    drawn, left = [], float(budget)
    while True:
        rows = generator.choice(len(probability_n), size=batch, p=probability_n)
        spent = np.cumsum(cost_n[rows])
        drawn.append(rows[spent <= left])
        if spent[-1] > left:
            return np.concatenate(drawn)
        left -= spent[-1]


def check_key(key: Any) -> jax.Array:
    """Return `key`; ValueError unless it is one key made by `jax.random.key(seed)`."""
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ()):
        raise ValueError("key must be a single JAX random key: give jax.random.key(seed).")
    return key


def generator_of(key: jax.Array) -> np.random.Generator:
    """The NumPy generator that a JAX key stands for: same key, same stream."""
    return np.random.default_rng(np.asarray(jax.random.key_data(check_key(key))))


def check_costs(costs, n: int) -> np.ndarray:
    """float64 [N]; ValueError unless there is one finite number above 0 a row."""
    costs_N = np.asarray(costs, np.float64)
    if costs_N.shape != (n,):
        raise ValueError(f"costs has shape {costs_N.shape}: give one number for each of the {n} rows.")
    bad = ~(np.isfinite(costs_N) & (costs_N > 0))
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(f"costs, row {row}, is {costs_N[row]}: it must be finite and above 0.")
    return costs_N


def _check_fill(fill, n: int) -> np.ndarray:
    rows = np.asarray(fill)
    if rows.ndim != 1 or (rows.size and not np.issubdtype(rows.dtype, np.integer)):
        raise ValueError("fill must be a vector of row numbers, most wanted first.")
    rows = rows.astype(np.int64)
    if rows.size and (rows.min() < 0 or rows.max() >= n or len(np.unique(rows)) < len(rows)):
        raise ValueError(f"fill must name rows from 0 to {n - 1}, each once.")
    return rows


def _check_probabilities(probabilities) -> np.ndarray:
    probability_N = np.asarray(probabilities, np.float64)
    if probability_N.ndim != 1 or len(probability_N) == 0:
        raise ValueError(f"probabilities has shape {probability_N.shape}: give a vector with one entry a row.")
    bad = ~(np.isfinite(probability_N) & (probability_N >= 0))
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(f"probabilities, row {row}, is {probability_N[row]}: it must be finite and >= 0.")
    total = float(probability_N.sum())
    if abs(total - 1) > _SUM_TOLERANCE:
        raise ValueError(f"probabilities sum to {total:.6g}, not 1: divide them by their sum.")
    return probability_N / total
