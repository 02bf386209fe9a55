"""Whole numbers that sum to a budget: the method of the largest remainder, and the quotas and caps of groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from deft_tsds.arrays import check_count, check_real

# Shares that people write in decimals sum to 1 only up to rounding.
_ROUNDING = 1e-9

Quotas = Mapping[Any, int | float] | Literal["equal"]


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


def divide_budget(
    budget: int,
    names: list,
    shares,
    capacity,
    *,
    quotas: Quotas | None = None,
    caps: Mapping[Any, int | float] | None = None,
    holds: str = "rows",
) -> np.ndarray:
    """How much of the budget each group gets: whole numbers that sum to it.

    A group named in `quotas` gets its quota, no more and no less. What the quotas leave goes to the other groups in
    proportion to `shares` by largest remainder, none above its cap or its capacity; what is cut off there goes to the
    groups below theirs.

    Args:
        budget: B >= 1.
        names: [G] the groups.
        shares: [G], >= 0; a group of share 0 gets nothing unless a quota names it.
        capacity: [G], whole numbers: the most that each group can use.
        quotas: for each group named, an int, so many, or a float in [0, 1], that share of the budget, made whole by
            largest remainder. "equal" gives every group of a share above 0 the same.
        caps: for each group named, an int, at most so many, or a float in [0, 1], at most that share of the budget.
        holds: what the capacity counts, for the error messages.

    Returns:
        int64 [G].

    Raises:
        ValueError: a group that does not exist; quotas that add up to more than the budget, or to less where no other
            group can take the rest; a quota above the cap or the capacity of its group.
    """
    place = {name: g for g, name in enumerate(names)}
    share_G = np.array(shares, np.float64)
    limit_G = np.minimum(np.asarray(capacity, np.int64), budget)
    for name, cap in (caps or {}).items():
        g = _place(name, place, "caps")
        limit_G[g] = min(limit_G[g], _cap(cap, name, budget))
    if quotas is None or isinstance(quotas, str):
        if quotas not in (None, "equal"):
            raise ValueError(f"quotas is {quotas!r}: give a dict from group to count or share, or 'equal'.")
        fixed_G = {}
        share_G = share_G if quotas is None else (share_G > 0).astype(np.float64)
    else:
        fixed_G = {_place(name, place, "quotas"): quota for name, quota in quotas.items()}
    budget_G = _quotas(budget, names, fixed_G)
    short = np.flatnonzero(budget_G > limit_G)
    if len(short):
        g = short[0]
        raise ValueError(
            f"quotas asks for {budget_G[g]} {holds} of group {names[g]!r}, which can give {limit_G[g]} at most: lower "
            "the quota, raise the cap, or spread the probabilities over more rows of the group."
        )
    share_G[list(fixed_G)] = 0
    left, room = budget - int(budget_G.sum()), int(limit_G[share_G > 0].sum())
    if left > room:
        named = f"quotas take {budget - left} {holds} of the budget of {budget}, and " if fixed_G else ""
        raise ValueError(
            f"{named}the {'other ' if fixed_G else ''}groups can give only {room} {holds} of the {left} that are left: "
            "lower the budget, raise quotas or caps, or spread the probabilities over more rows (for TSDS: lower "
            "alpha, raise scale, raise neighbors, or give more queries)."
        )
    return budget_G + largest_remainder(share_G, left, limit_G)


def _quotas(budget: int, names: list, quotas: dict[int, int | float]) -> np.ndarray:
    """int64 [G], the quotas in whole numbers; 0 for a group without one."""
    count_G = np.zeros(len(names), np.int64)
    shares: dict[int, float] = {}
    for g, quota in quotas.items():
        if isinstance(quota, float):
            shares[g] = check_real(quota, f"quotas[{names[g]!r}]", at_least=0, at_most=1)
        else:
            count_G[g] = check_count(quota, f"quotas[{names[g]!r}]", 0)
    left = budget - int(count_G.sum())
    unnamed = left / budget - sum(shares.values())
    if unnamed < -_ROUNDING:
        raise ValueError(f"quotas add up to more than the budget of {budget}: lower them.")
    if shares:
        parts = [*shares.values(), unnamed if unnamed > _ROUNDING else 0.0]
        if sum(parts) > 0:
            count_G[list(shares)] = largest_remainder(parts, left, [left] * len(parts))[:-1]
    return count_G


def _cap(cap: int | float, name: Any, budget: int) -> int:
    if isinstance(cap, float):
        return math.floor(check_real(cap, f"caps[{name!r}]", at_least=0, at_most=1) * budget + _ROUNDING)
    return check_count(cap, f"caps[{name!r}]", 0)


def _place(name: Any, place: dict[Any, int], argument: str) -> int:
    if name not in place:
        known = ", ".join(repr(known) for known in list(place)[:20])
        raise ValueError(f"{argument} names the group {name!r}, which no candidate has: there are {known}.")
    return place[name]
