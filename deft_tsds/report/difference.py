"""Two selections beside one another: what the second gained and lost against the first, by group, and with texts."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deft_tsds.data.examples import Examples
from deft_tsds.report.view import ArmView, RunView

_MOST_PAIRS = 15
_MOST_TEXTS = 8
_MOST_GROUPS = 24


@dataclass(frozen=True)
class Chosen:
    """What an arm chose, in a numbering of examples that all that is compared shares."""

    label: str
    pool: Examples
    numbers: np.ndarray
    """int [n], ascending and distinct: the chosen examples in the shared numbering."""
    rows: np.ndarray
    """int [n]: the same as rows of `pool`."""
    other_seeds: tuple[np.ndarray, ...]
    """The same choice under the run's other seeds, in the shared numbering."""


@dataclass(frozen=True)
class Text:
    """An example as it is shown."""

    id: str
    group: str
    input: str
    target: str


@dataclass(frozen=True)
class GroupChange:
    """What became of one group."""

    name: str
    before: int
    after: int
    gained: int
    lost: int


@dataclass(frozen=True)
class Difference:
    """The way from one selection to another."""

    before: str
    after: str
    kept: int
    gained: int
    lost: int
    overlap: float
    """Jaccard index: the common ones as a share of all that either chose."""
    groups: tuple[GroupChange, ...]
    """Those that changed most first; beyond 24 the others are left out."""
    more_groups: int
    gained_texts: tuple[Text, ...]
    lost_texts: tuple[Text, ...]


@dataclass(frozen=True)
class Overlap:
    """A cell of the table of overlaps."""

    value: float | None
    """Jaccard index; on the diagonal the mean over the other seeds of the same arm, None where there are none."""
    chance: float | None
    """What two independent random choices of these sizes come to; None on the diagonal."""


def chosen_by(view: RunView, arm: ArmView, label: str, number_N: np.ndarray) -> Chosen:
    """What an arm chose.

    Args:
      view, arm: the run and one of its arms.
      label: what it is called on the page.
      number_N: int [N], the number of each row of the pool in the shared numbering.
    """
    rows = np.unique(arm.first.indices)
    order = np.argsort(number_N[rows], kind="stable")
    others = [selection for selection in arm.selections.values() if selection is not arm.first]
    seeds = tuple(np.unique(number_N[np.asarray(selection.indices)]) for selection in others)
    return Chosen(label, view.pool, number_N[rows][order], rows[order], seeds)


def difference(before: Chosen, after: Chosen) -> Difference:
    """What `after` gained and lost against `before`. The texts lie at even distances through the gained and the lost
    ones, picked by nobody."""
    gained = np.flatnonzero(~np.isin(after.numbers, before.numbers))
    lost = np.flatnonzero(~np.isin(before.numbers, after.numbers))
    kept = after.numbers.size - gained.size
    changes = _group_changes(before, after, gained, lost)
    return Difference(
        before=before.label,
        after=after.label,
        kept=kept,
        gained=gained.size,
        lost=lost.size,
        overlap=jaccard(before.numbers, after.numbers),
        groups=changes[:_MOST_GROUPS],
        more_groups=max(0, len(changes) - _MOST_GROUPS),
        gained_texts=_texts(after, gained),
        lost_texts=_texts(before, lost),
    )


def pairs(chosen: Sequence[Chosen], opening: int) -> list[tuple[Chosen, Chosen]]:
    """Every two, or, where these are more than fifteen, each against the one at `opening`."""
    every = list(itertools.combinations(chosen, 2))
    if len(every) <= _MOST_PAIRS:
        return every
    return [(chosen[opening], other) for place, other in enumerate(chosen) if place != opening]


def overlaps(chosen: Sequence[Chosen], total: int) -> tuple[tuple[Overlap, ...], ...]:
    """The overlap of every choice with every other; `total` is how many examples there were to choose from."""
    return tuple(tuple(_overlap(one, other, total) for other in chosen) for one in chosen)


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """|A and B| / |A or B| of two arrays of distinct numbers, not both empty."""
    common = np.intersect1d(one, other, assume_unique=True).size
    return common / (one.size + other.size - common)


def _overlap(one: Chosen, other: Chosen, total: int) -> Overlap:
    if one is other:
        again = [jaccard(one.numbers, numbers) for numbers in one.other_seeds]
        return Overlap(float(np.mean(again)) if again else None, None)
    common = one.numbers.size * other.numbers.size / total
    chance = common / (one.numbers.size + other.numbers.size - common)
    return Overlap(jaccard(one.numbers, other.numbers), chance)


def _texts(chosen: Chosen, places: np.ndarray) -> tuple[Text, ...]:
    if not places.size:
        return ()
    picks = np.unique(np.linspace(0, places.size - 1, min(_MOST_TEXTS, places.size)).round().astype(int))
    rows = chosen.rows[places[picks]].tolist()
    pool = chosen.pool
    return tuple(Text(pool.ids[row], pool.groups[row], pool.inputs[row], pool.targets[row]) for row in rows)


def _group_changes(before: Chosen, after: Chosen, gained: np.ndarray, lost: np.ndarray) -> tuple[GroupChange, ...]:
    def counts(chosen: Chosen, rows: np.ndarray) -> Counter[str]:
        return Counter(chosen.pool.groups[row] for row in rows.tolist())

    of_before, of_after = counts(before, before.rows), counts(after, after.rows)
    of_gained, of_lost = counts(after, after.rows[gained]), counts(before, before.rows[lost])
    changes = [
        GroupChange(name, of_before[name], of_after[name], of_gained[name], of_lost[name])
        for name in of_before | of_after
    ]
    return tuple(sorted(changes, key=lambda change: (-(change.gained + change.lost), change.name)))
