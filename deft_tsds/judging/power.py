"""How many items a human evaluation needs, before anyone is asked."""

from __future__ import annotations

import numpy as np


def moments(preference: float, ties: float) -> tuple[float, float]:
    """Mean and variance of one judgment's score: 1 for the better system, 1/2 for a tie, 0 for the other.

    Args:
        preference: share of the judgments that are no tie which go to the better system.
        ties: share of ties among all judgments.
    """
    mean = ties / 2 + (1 - ties) * preference
    return mean, ties / 4 + (1 - ties) * preference - mean**2


def power(
    items: int, preference: float, *, ties: float = 0.0, judges: int = 1, kappa: float = 0.4, level: float = 0.95
) -> float:
    """The chance that an interval over items leaves 1/2 out, by the noncentral t distribution.

    The score of an item is the mean over its judges. Two judges of one item agree as far as `kappa` says, so that the
    variance of an item's score is v (1 + (judges - 1) kappa) / judges, with v that of one judgment: beyond some number
    more judges help little, more items always do.

    Args:
        items: at least 2.
        preference: as in `moments`, in (0, 1).
        ties: in [0, 1).
        judges: of each item.
        kappa: agreement of two judges beyond chance, in [0, 1].
        level: of the interval, in (0, 1).

    Raises:
        ValueError: anything outside these bounds.
    """
    from scipy import stats

    for name, value, good, bounds in (
        ("items", items, items >= 2, "2 or more"),
        ("preference", preference, 0 < preference < 1, "a share between 0 and 1"),
        ("ties", ties, 0 <= ties < 1, "a share from 0 to below 1"),
        ("judges", judges, judges >= 1, "1 or more"),
        ("kappa", kappa, 0 <= kappa <= 1, "0 (agree by chance) to 1 (always agree)"),
        ("level", level, 0 < level < 1, "a coverage between 0 and 1, such as 0.95"),
    ):
        if not good:
            raise ValueError(f"{name} is {value}: give {bounds}.")
    mean, variance = moments(preference, ties)
    error = np.sqrt(variance * (1 + (judges - 1) * kappa) / judges / items)
    beyond, shift = stats.t.ppf((1 + level) / 2, items - 1), (mean - 0.5) / error
    return float(stats.nct.sf(beyond, items - 1, shift) + stats.nct.cdf(-beyond, items - 1, shift))


def items_needed(
    preference: float,
    *,
    ties: float = 0.0,
    judges: int = 1,
    kappa: float = 0.4,
    level: float = 0.95,
    wanted: float = 0.8,
) -> int:
    """The smallest number of items whose `power` is at least `wanted`.

    Raises:
        ValueError: as `power`; no preference (1/2), which no number shows; or a wanted power outside (0, 1).
    """
    if preference == 0.5:
        raise ValueError("preference is 0.5: no number of items shows a difference that is not there.")
    if not 0 < wanted < 1:
        raise ValueError(f"power is {wanted}: give a chance between 0 and 1, such as 0.8.")

    def enough(items: int) -> bool:
        return power(items, preference, ties=ties, judges=judges, kappa=kappa, level=level) >= wanted

    high = 2
    while not enough(high):
        high *= 2
    low = high // 2  # too few, unless it is below 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
