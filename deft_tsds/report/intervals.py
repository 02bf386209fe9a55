"""The primary metric at a glance, as numbers for the template's SVG: arms down; scores and paired differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from deft_tsds.report.results import ALL_TESTS, COPY, arm_label, columns, decimals, find, format_number, metric_label
from deft_tsds.report.view import RunView


@dataclass(frozen=True)
class Mark:
    """A value with its interval and its seeds, in percent of the width of its panel."""

    value: float
    low: float
    high: float
    seeds: tuple[float, ...]


@dataclass(frozen=True)
class IntervalPanel:
    """One scale shared by all arms, with a line to compare with."""

    title: str
    marks: Mapping[str, Mark]
    """By arm name; an arm without a value has none."""
    line: float | None
    line_label: str
    reference: str
    """The arm that the others are compared with here, which therefore has no mark; "" for none."""
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class IntervalPlot:
    """The primary metric at a glance: arms down; scores on the left, paired differences on the right."""

    arms: tuple[tuple[str, str], ...]
    """(name, label), copying left out: it is the line of the first panel."""
    panels: tuple[IntervalPanel, ...]


def interval_plot(view: RunView) -> IntervalPlot | None:
    """Lay out the primary metric on all tests (or on the only one); None without any score."""
    table, metric = view.table, view.table["primary"]
    test = columns(table)[0]
    digits = decimals(table, metric)
    names = [name for name in table["arms"] if name != COPY]
    where = {"test": test, "metric": metric}
    scores = {name: cell for name in names if (cell := find(table["cells"], arm=name, **where))}
    if not scores:
        return None
    copying = find(table["cells"], arm=COPY, **where)
    scope = "mean over the test sets" if test == ALL_TESTS else f"test set {test}"
    line = copying["value"] if copying else None
    label = f"copying {format_number(line, digits)}" if line is not None else ""
    panels = [_panel(f"{metric_label(metric)}, {scope}", scores, line, label, "")]
    against = next((row["against"] for row in table["differences"] if row["against"] != COPY), None)
    if against:
        found = {name: find(table["differences"], arm=name, against=against, **where) for name in names}
        differences = {name: row for name, row in found.items() if row}
        if differences:
            panels.append(_panel(f"paired difference against {against}", differences, 0.0, "no difference", against))
    return IntervalPlot(tuple((name, arm_label(view.arms, name)) for name in names), tuple(panels))


def _panel(
    title: str, rows: Mapping[str, Mapping[str, Any]], line: float | None, line_label: str, reference: str
) -> IntervalPanel:
    numbers = [number for row in rows.values() for number in (row["value"], *_ends(row), *(row.get("seeds") or ()))]
    numbers += [line] if line is not None else []
    ticks = nice_ticks(min(numbers), max(numbers))
    least, most = ticks[0], ticks[-1]

    def at(number: float) -> float:
        return round(100 * (number - least) / (most - least), 3)

    marks = {}
    for name, row in rows.items():
        low, high = _ends(row)
        marks[name] = Mark(at(row["value"]), at(low), at(high), tuple(at(seed) for seed in row.get("seeds") or ()))
    step = ticks[1] - ticks[0]
    places = next(places for places in range(8) if abs(round(step, places) - step) < step / 1000)
    labels = tuple((at(tick), format_number(tick, places)) for tick in ticks)
    return IntervalPanel(title, marks, None if line is None else at(line), line_label, reference, labels)


def nice_ticks(least: float, most: float) -> tuple[float, ...]:
    """Three to seven round numbers, evenly spaced, that enclose the range."""
    span = max(most - least, 1e-3 * max(abs(least), abs(most)), 1e-6)
    power = 10.0 ** np.floor(np.log10(span))
    step = next(float(power * unit) for unit in (0.2, 0.5, 1, 2) if span / (power * unit) <= 5)
    first, last = int(np.floor(least / step)), int(np.ceil(most / step))
    last = max(last, first + 2)
    return tuple(round(number * step, 10) for number in range(first, last + 1))


def _ends(cell: Mapping[str, Any]) -> tuple[float, float]:
    low, high = cell.get("low"), cell.get("high")
    return (cell["value"] if low is None else low), (cell["value"] if high is None else high)
