"""The budget curve: what so many examples are worth, and the smallest budget that loses nothing against all of them.

A point is one arm at one budget with every seed. How it is scored is for `Cells` to say: by fine-tuning
(`studies.finetuned`) or by a probe (`studies.probed`). Its verdict is a test of non-inferiority: that the arm is worse
than the full data by the margin, or by more, is refuted where the p-value of `statistics.difference`, corrected by
Holm's method for the number of budgets, is below 1 - level. The smallest such budget is the answer to "how few are
enough", and the data that it leaves out are the data saved.

Each cell is kept as soon as it is done: a study that was killed goes on where it stopped.
"""

from __future__ import annotations

import abc
import bisect
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deft_tsds.metrics import Metric
from deft_tsds.runs import atomic_write, console, track, write_json
from deft_tsds.studies.statistics import Runs, difference, holm, mean_score, sentence
from deft_tsds.studies.study import markdown_table, shown

FULL = "full"
BASELINE = "random"
"""The arm that the others are also compared with, at the same budget."""


@dataclass(frozen=True)
class Facts:
    """What is known of the cells of a curve beside their scores."""

    metric: Metric
    """Of the statistics."""
    arms: tuple[str, ...]
    """Ways to choose, by name; the full data is none of them."""
    seeds: int
    """How often each is run, at least 2."""
    level: float
    """Coverage of the intervals."""
    resamples: int
    """Of each bootstrap."""
    seed: int
    """The one seed of the run."""
    workdir: Path
    """The run folder."""
    pool: int
    """How many examples the full data are."""
    how: str
    """A sentence on how a cell is scored."""
    notice: str | None = None
    """What must be said wherever the scores are shown."""


class Cells(abc.ABC):
    """What a curve is made of: arms that can be scored at any budget. All in which two kinds of curve differ."""

    @abc.abstractmethod
    def facts(self) -> Facts:
        """What is known of them."""

    @abc.abstractmethod
    def full(self) -> Runs:
        """The runs on the full data."""

    def copy(self) -> Runs | None:
        """A run that learns nothing, where there is such a thing."""
        return None

    @abc.abstractmethod
    def runs(self, arm: str, budget: float) -> Runs:
        """The runs of an arm at a budget, a share of the pool, paired by seed with those of `full`.

        Raises:
            ValueError: the arm cannot have this budget.
        """


def curve(cells: Cells, *, budgets: Sequence[float], margin: float = 1.0, adaptive: bool = False) -> dict[str, Any]:
    """Score every arm at every budget, from the smallest on, and judge each against the full data.

    Writes `curve/table.json` in the run folder.

    Args:
        cells: the arms, and how they are scored. An arm `random` is compared with as well.
        budgets: shares of the pool, ascending, in (0, 1).
        margin: how much of the metric may be lost and still count as nothing.
        adaptive: look for the crossing by halving, arm by arm, and leave out the budgets that this does not come to. It
            takes the score to rise with the budget; the verdict is corrected for all budgets all the same.

    Returns:
        The table as plain JSON: `arms`, by name `points` (see `judge`), `verdict` in words, `smallest` budget or None,
        the share of the data `saved`, and `savings` at other margins; under `notes` the budgets that the arm cannot
        have; the scores of `full` and, where there is such a thing, `copy`; and what is needed to read them.

    Raises:
        ValueError: budgets that are no ascending shares, a margin that is not above 0, and what the cells raise.
    """
    shares = [float(budget) for budget in budgets]
    if not shares or any(not 0 < share < 1 for share in shares) or sorted(set(shares)) != shares:
        raise ValueError(f"budgets are {shares}: give shares of the pool between 0 and 1, ascending.")
    if not margin > 0:
        raise ValueError(f"margin is {margin}: give what may be lost, a number above 0.")

    facts, full = cells.facts(), cells.full()
    settings: dict[str, Any] = {"level": facts.level, "resamples": facts.resamples, "seed": facts.seed}
    measured: dict[str, dict[float, Runs]] = {name: {} for name in facts.arms}
    notes: dict[str, list[str]] = {name: [] for name in facts.arms}

    def score(name: str, share: float) -> bool:
        try:
            measured[name][share] = cells.runs(name, share)
        except ValueError as error:  # such as a core-set whose base set alone is larger than this budget
            notes[name].append(f"{share:g}: {error}")
            console.print(f"{name} at {notes[name][-1]}", soft_wrap=True, markup=False)
            return False
        return True

    def is_enough(name: str, share: float) -> bool:
        if not score(name, share):
            return False
        found = difference(facts.metric, measured[name][share], full, margin=margin, **settings)
        return found.p_worse < 1 - facts.level

    if adaptive:
        for name in track(facts.arms, "arms"):
            bisect.bisect_left(shares, True, key=functools.partial(is_enough, name))
    else:
        for share, name in track([(share, name) for share in shares for name in facts.arms], "budgets x arms"):
            score(name, share)
    copy = cells.copy()
    table = {
        "metric": facts.metric.name,
        "level": facts.level,
        "margin": margin,
        "seeds": facts.seeds,
        "budgets": shares,
        "pool": facts.pool,
        "tests": list(full),
        "notice": facts.notice,
        "how": facts.how,
        FULL: _score(facts.metric, full, **settings),
        "copy": None if copy is None else _score(facts.metric, copy, **settings),
        "arms": {
            name: judge(
                facts.metric,
                runs,
                full,
                baseline=measured[BASELINE] if name != BASELINE and BASELINE in measured else {},
                pool=facts.pool,
                tested=len(shares),
                margin=margin,
                **settings,
            )
            | {"notes": notes[name]}
            for name, runs in track(list(measured.items()), "verdicts")
        },
    }
    write_json(facts.workdir / "curve" / "table.json", table)
    return table


def judge(
    metric: str | Metric,
    runs: Mapping[float, Runs],
    full: Runs,
    *,
    baseline: Mapping[float, Runs],
    pool: int,
    tested: int,
    margin: float,
    level: float,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """The points of one arm and its verdict.

    Args:
        metric: what the runs are the statistics of.
        runs: by budget, the runs of the arm.
        full: those of the full data, with the same seeds.
        baseline: by budget, the runs of the arm to compare with as well, where it was run.
        pool: size of the pool.
        tested: how many budgets might have been looked at, for Holm's correction.

    Returns:
        `points`, one for each budget: `budget`, `count`, `score` (with `by_test`) and `to_full` with their intervals,
        `p_worse`, `p_holm`, `enough`, and against the baseline `to_random` with its `p_holm` and the `sentence`, or
        None; `smallest`, `saved` and `verdict`; under `savings` the share that would be saved at other margins, pairs
        of margin and share, from 0 to four times the margin.
    """
    name = metric if isinstance(metric, str) else metric.name
    settings: dict[str, Any] = {"level": level, "resamples": resamples, "seed": seed}
    shares = sorted(runs)
    found = [difference(metric, runs[share], full, margin=margin, **settings) for share in shares]
    adjusted = _holm([each.p_worse for each in found], tested)
    points = []
    for share, each, p_holm in zip(shares, found, adjusted, strict=True):
        points.append(
            {
                "budget": share,
                "count": max(1, round(share * pool)),
                "score": _score(metric, runs[share], **settings),
                "to_full": each.to_json(),
                "p_worse": each.p_worse,
                "p_holm": p_holm,
                "enough": p_holm < 1 - level,
                "to_random": None,
                "sentence": None,
            }
        )
    compared = [point for point in points if point["budget"] in baseline]
    against = [difference(metric, runs[p["budget"]], baseline[p["budget"]], **settings) for p in compared]
    for point, each, p_holm in zip(compared, against, _holm([each.p for each in against], tested), strict=True):
        point["to_random"] = {**each.to_json(), "p_holm": p_holm}
        point["sentence"] = sentence(each._replace(p=p_holm), against=BASELINE, unit=name, level=level)
    enough = [point for point in points if point["enough"]]
    smallest = enough[0]["budget"] if enough else None
    verdict = f"no budget qualifies: none is shown to lose less than {margin:g} {name} against all of the data"
    if not points:
        verdict = "no budget was measured"
    if enough:
        verdict = (
            f"{smallest:.3g} of the data ({enough[0]['count']} examples) is enough: "
            f"{shown(enough[0]['to_full'], 1, '+')} {name} against all of it, p = {enough[0]['p_holm']:.2g} for a loss "
            f"of {margin:g} or more"
        )
    savings = []
    for other in np.linspace(0, 4, 41) * margin if points else ():
        p_values = _holm([each.p_of_loss(other) for each in found], tested)
        at_least = [share for share, p in zip(shares, p_values, strict=True) if p < 1 - level]
        savings.append([float(other), 1 - at_least[0] if at_least else 0.0])
    saved = smallest and 1 - smallest
    return {"points": points, "smallest": smallest, "saved": saved, "savings": savings, "verdict": verdict}


def markdown(table: Mapping[str, Any]) -> str:
    """The table for a text: arms by budgets, over all test sets and on each, then the verdicts."""
    budgets = table["budgets"]
    titles = ["", *(f"{100 * budget:.3g}% ({max(1, round(budget * table['pool'])):,})" for budget in budgets), "100%"]

    def rows(test: str | None) -> list[list[str]]:
        lines = []
        for name, arm in table["arms"].items():
            points = {point["budget"]: _marked(point, test, table["level"]) for point in arm["points"]}
            lines.append([name, *(points.get(budget, "–") for budget in budgets), ""])
        for name in (FULL, "copy"):
            if table[name]:
                lines.append(
                    [name, *("" for _ in budgets), shown(table[name]["by_test"][test] if test else table[name])]
                )
        return lines

    level = f"{100 * table['level']:g}%"
    parts = [
        f"**Mean {table['metric']} over {', '.join(table['tests'])}; {table['seeds']} seeds, {level} intervals.** `*`: "
        f"shown to lose less than {table['margin']:g} against full data; `+`, `-`: shown to be above, below "
        f"{BASELINE} (each by Holm over the budgets).",
        markdown_table(titles, rows(None)),
        "\n".join(f"- {name}: {arm['verdict']}." for name, arm in table["arms"].items()),
    ]
    for test in table["tests"] if len(table["tests"]) > 1 else ():
        parts += [f"**{test}**", markdown_table(titles, rows(test))]
    notes = [f"- {name} at {note}" for name, arm in table["arms"].items() for note in arm["notes"]]
    return "\n\n".join([*parts, *(["\n".join(notes)] if notes else [])]) + "\n"


def write_markdown(table: Mapping[str, Any], path: Path) -> Path:
    """Write `markdown`, and return the path."""
    with atomic_write(path) as temporary:
        temporary.write_text(markdown(table), encoding="utf-8")
    return path


def _marked(point: Mapping[str, Any], test: str | None, level: float) -> str:
    """A score of a point, with what is shown of it; a single test set has no verdict of its own."""
    if test is not None:
        return shown(point["score"]["by_test"][test])
    marks = "*" if point["enough"] else ""
    apart = point["to_random"]
    if apart and apart["p_holm"] < 1 - level:
        marks += "+" if apart["value"] > 0 else "-"
    return shown(point["score"]) + marks


def _holm(p_values: Sequence[float], tested: int) -> list[float]:
    """Corrected for all that might have been tested, of which some was not."""
    return holm([*p_values, *[1.0] * (tested - len(p_values))])[: len(p_values)]


def _score(metric: str | Metric, runs: Runs, **settings: Any) -> dict[str, Any]:
    by_test = {test: mean_score(metric, {test: of_test}, **settings)._asdict() for test, of_test in runs.items()}
    return {**mean_score(metric, runs, **settings)._asdict(), "by_test": by_test}
