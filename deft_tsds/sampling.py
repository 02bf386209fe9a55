"""From probabilities to a budget: draws with and without replacement, and the apportionment of whole numbers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deft_tsds.arrays import check_count

# Probabilities summed in float32 over many millions of rows still lie this close to 1.
_SUM_TOLERANCE = 1e-3


def sample(probabilities, budget: int, *, key: jax.Array, replace: bool = False) -> np.ndarray:
    """Draw `budget` row numbers by their probabilities.

    With replacement (`replace=True`, the TSDS paper) the draws are independent and row j is expected B p_j times.

    Without replacement, exactly B distinct rows come out, and row j is among them with probability

        pi_j = min(1, c p_j),   c such that sum_j pi_j = B

    (`inclusion_probabilities`). So as long as no B p_j exceeds 1, each row keeps the expectation that the paper's
    draw gives it; where one does, its surplus goes to the other rows in proportion. The scheme is systematic sampling
    in random order: the rows are shuffled, laid end to end with lengths pi_j, and read off at unit steps from a
    uniform start. It is chosen over drawing until B differ (Gumbel top-k) because that one has no closed form for
    pi_j and flattens p towards uniform as B grows, and over conditional Poisson sampling because it is exact in one
    pass over N.

    Args:
        probabilities: [N], >= 0, sum 1.
        budget: B >= 1; without replacement at most the number of rows with p_j > 0.
        key: `jax.random.key(seed)`.
        replace: whether a row may come more than once.

    Returns:
        int64 [B], ascending (rows repeat next to each other).

    Raises:
        ValueError: probabilities that are negative, not finite, or do not sum to 1; a support smaller than the budget.

    References:
        Hartley and Rao, "Sampling with unequal probabilities and without replacement", 1962.
    """
    probability_N = _check_probabilities(probabilities)
    budget = check_count(budget, "budget", 1)
    generator = generator_of(key)
    if replace:
        return np.sort(generator.choice(len(probability_N), size=budget, p=probability_N))

    inclusion_N = inclusion_probabilities(probability_N, budget)
    certain = np.flatnonzero(inclusion_N == 1)
    rest = generator.permutation(np.flatnonzero((inclusion_N > 0) & (inclusion_N < 1)))
    draws = budget - len(certain)
    if draws == 0:
        return certain
    edges = np.cumsum(inclusion_N[rest])
    edges *= draws / edges[-1]  # takes out the rounding of the sum, so that every step falls on a row
    edges[-1] = draws
    marks = np.minimum(generator.random() + np.arange(draws), np.nextafter(draws, 0))
    chosen = rest[np.searchsorted(edges, marks, side="right")]
    return np.sort(np.concatenate([certain, chosen]))


def inclusion_probabilities(probabilities, budget: int) -> np.ndarray:
    """The probability pi_j = min(1, c p_j), sum_j pi_j = B, with which `sample` without replacement takes each row.

    Args:
        probabilities: [N], >= 0, sum 1.
        budget: B, 1 <= B <= number of rows with p_j > 0.

    Returns:
        float64 [N].

    Raises:
        ValueError: as `sample`.
    """
    probability_N = _check_probabilities(probabilities)
    budget = check_count(budget, "budget", 1)
    support = np.flatnonzero(probability_N)
    if len(support) < budget:
        raise ValueError(
            f"only {len(support)} of {len(probability_N)} rows have a probability above 0, {budget - len(support)} "
            f"fewer than the budget of {budget}: lower the budget, draw with replace=True, or spread the probabilities "
            "over more rows (for TSDS: lower alpha, raise scale, raise neighbors, or give more queries)."
        )
    # In descending order the certain rows (pi_j = 1) come first: row r is certain when p_r times what is left of the
    # budget is at least what is left of the mass. Ties with equal p are decided alike, so the order among them is free.
    order = support[np.argsort(-probability_N[support], kind="stable")]
    descending = probability_N[order]
    mass_left = np.cumsum(descending[::-1])[::-1]
    budget_left = budget - np.arange(len(order))
    uncertain = descending * budget_left < mass_left * (1 - 1e-12)
    first = int(np.argmax(uncertain[:budget])) if uncertain[:budget].any() else budget
    inclusion_N = np.zeros(len(probability_N))
    inclusion_N[order[:first]] = 1
    if first < budget:
        inclusion_N[order[first:]] = descending[first:] * (budget_left[first] / mass_left[first])
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


def largest_remainder(shares, total: int, capacity) -> np.ndarray:
    """Whole numbers in proportion to `shares` that sum to `total`, none above its capacity.

    What is cut off at a capacity goes to the parts below theirs, again in proportion to their shares. Each part gets
    the whole part of its quota; the units left go one each to the largest remainders, ties to the lower index. A
    share of 0 gets 0.

    Args:
        shares: [P], finite, >= 0.
        total: >= 0.
        capacity: [P], whole numbers >= 0.

    Returns:
        int64 [P].

    Raises:
        ValueError: lengths that differ, a negative entry, or a total above the capacities of the parts with a share.

    References:
        Hamilton's method of apportionment.
    """
    share_P = np.asarray(shares, np.float64)
    capacity_P = np.asarray(capacity, np.int64)
    total = check_count(total, "total", 0)
    if share_P.ndim != 1 or share_P.shape != capacity_P.shape:
        raise ValueError(f"shares {share_P.shape} and capacity {capacity_P.shape} must be vectors of one length.")
    if not (np.isfinite(share_P).all() and (share_P >= 0).all() and (capacity_P >= 0).all()):
        raise ValueError("shares must be finite and >= 0, capacity must be >= 0.")
    room = int(capacity_P[share_P > 0].sum())
    if total > room:
        raise ValueError(f"total is {total}, but the parts with a share above 0 hold only {room}: lower the total.")

    counts_P = np.zeros(len(share_P), np.int64)
    open_P = (share_P > 0) & (capacity_P > 0)
    left = total
    while left > 0:
        relative_P = np.where(open_P, share_P, 0.0)
        relative_P /= relative_P.max()  # so that the sum can neither overflow nor vanish
        quota_P = left * (relative_P / relative_P.sum())
        full_P = open_P & (quota_P >= capacity_P)
        if not full_P.any():
            whole_P = np.floor(quota_P).astype(np.int64)
            order = np.argsort(-np.where(open_P, quota_P - whole_P, -1.0), kind="stable")
            whole_P[order[: left - int(whole_P.sum())]] += 1
            return counts_P + whole_P
        counts_P[full_P] = capacity_P[full_P]
        left = total - int(counts_P.sum())
        open_P &= ~full_P
    return counts_P


def check_key(key: Any) -> jax.Array:
    """Return `key`; ValueError unless it is one key made by `jax.random.key(seed)`."""
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ()):
        raise ValueError("key must be a single JAX random key: give jax.random.key(seed).")
    return key


def generator_of(key: jax.Array) -> np.random.Generator:
    """The NumPy generator that a JAX key stands for: same key, same stream."""
    return np.random.default_rng(np.asarray(jax.random.key_data(check_key(key))))


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
