"""Scores in words and in tables: what beats copying, what differs from random, and what has not been shown to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from deft_tsds.report.view import ArmView, RunView

COPY = "copy"
ALL_TESTS = "all"

_METRIC_LABELS = {
    "sari": "SARI",
    "rouge_l": "ROUGE-L",
    "exact_match": "Exact match",
    "token_f1": "Token F1",
    "bleu": "BLEU",
    "chrf": "chrF",
    "macro_f1": "macro-F1",
}


@dataclass(frozen=True)
class Score:
    """A score with its interval."""

    number: float
    value: str
    interval: str
    seeds: tuple[str, ...]
    beats_copying: bool | None
    """None where there is no copying to compare with; False also where the interval leaves it open."""


@dataclass(frozen=True)
class Difference:
    """A paired difference with its interval and the verdict that the interval allows."""

    number: float
    value: str
    interval: str
    verdict: str
    """"better", "worse", or "no difference shown" (the interval includes 0)."""


@dataclass(frozen=True)
class MetricTable:
    """One metric: arms down, test sets across."""

    metric: str
    label: str
    convention: str
    columns: tuple[str, ...]
    copying: tuple[Score | None, ...] | None
    rows: tuple[tuple[str, tuple[Score | None, ...]], ...]
    against: str | None
    """The arm that `differences` compares with."""
    differences: tuple[tuple[str, tuple[Difference | None, ...]], ...]


def metric_label(name: str) -> str:
    """The usual spelling of a metric."""
    return _METRIC_LABELS.get(name, name)


def arm_label(arms: Iterable[ArmView], name: str) -> str:
    """The label of the arm called `name`; copying is no arm of the experiment and has its own."""
    if name == COPY:
        return "Copy the input"
    return next((arm.label for arm in arms if arm.name == name), name)


def metric_tables(view: RunView) -> tuple[MetricTable, ...]:
    """The score tables, the primary metric first."""
    primary = view.table["primary"]
    ordered = [primary, *(metric for metric in view.table["metrics"] if metric != primary)]
    return tuple(metric_table(view, metric) for metric in ordered)


def columns(table: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the columns: the mean over all test sets first, where there is one."""
    names = tuple(test["name"] for test in table["tests"])
    has_mean = any(cell["test"] == ALL_TESTS for cell in table["cells"])
    return (ALL_TESTS, *names) if has_mean else names


def find(rows: Iterable[Mapping[str, Any]], **wanted: str) -> Mapping[str, Any] | None:
    """The first row with these fields and a value, or None."""
    for row in rows:
        if all(row.get(field) == value for field, value in wanted.items()) and row.get("value") is not None:
            return row
    return None


def decimals(table: Mapping[str, Any], metric: str) -> int:
    """Decimals to print: one on a scale of 100, three on a scale of 1."""
    values = [cell["value"] for cell in table["cells"] if cell["metric"] == metric and cell["value"] is not None]
    return 3 if max((abs(value) for value in values), default=0.0) <= 1.0 else 1


def beats_copying(table: Mapping[str, Any], arm: str, test: str, metric: str) -> bool | None:
    """Whether an arm is shown to beat copying: its whole interval lies above what copying scores.

    A paired difference against copying decides instead, where the table has one.
    """
    if arm == COPY:
        return None
    paired = find(table["differences"], arm=arm, against=COPY, test=test, metric=metric)
    if paired:
        return verdict(paired) == "better"
    cell = find(table["cells"], arm=arm, test=test, metric=metric)
    copying = find(table["cells"], arm=COPY, test=test, metric=metric)
    if not cell or not copying:
        return None
    return _ends(cell)[0] > copying["value"]


def verdict(difference: Mapping[str, Any]) -> str:
    """What a difference's interval allows one to say. An interval that includes or touches 0 shows no difference."""
    low, high = _ends(difference)
    if low > 0:
        return "better"
    if high < 0:
        return "worse"
    return "no difference shown"


def headline(view: RunView) -> tuple[str, ...]:
    """The findings: a sentence an arm that is compared with random, then what they are measured against.

    Only the primary metric, on all tests (or on the only one). A difference is claimed only where its interval excludes
    0. Arms that leave something out come before those that take the whole pool.
    """
    table, metric = view.table, view.table["primary"]
    test = columns(table)[0]
    digits = decimals(table, metric)
    sentences, yardsticks = [], []
    for arm in sorted(view.arms, key=lambda arm: arm.is_whole(len(view.pool))):
        cell = find(table["cells"], arm=arm.name, test=test, metric=metric)
        if not cell:
            continue
        score = f"{format_number(cell['value'], digits)} {_interval(cell, digits)}"
        row = next((row for row in table["differences"] if _compares(row, arm.name, test, metric)), None)
        if not row:
            yardsticks.append(f"{arm.label} on {percent(arm.share)} of the pool {score}")
            continue
        shown = _difference(row, digits)
        sentence = f"{arm.label} on {percent(arm.share)} of the pool: {metric_label(metric)} {score}, "
        sentence += f"{shown.value} {shown.interval} against {row['against']}: {shown.verdict}"
        if beats_copying(table, arm.name, test, metric) is False:
            sentence += ", and not shown to beat copying"
        sentences.append(f"{sentence}.")
    copying = find(table["cells"], arm=COPY, test=test, metric=metric)
    if copying:
        yardsticks.append(f"copying the input {format_number(copying['value'], digits)}")
    if yardsticks:
        scope = "mean over the test sets" if test == ALL_TESTS else f"test set {test}"
        sentences.append(f"For comparison ({metric_label(metric)}, {scope}): {'; '.join(yardsticks)}.")
    return tuple(sentences)


def percent(share: float) -> str:
    """A share as a percentage, with no more decimals than it needs: 32.5%, 10%, 0.25%."""
    text = f"{100 * share:.{1 if share >= 0.01 else 2}f}"
    return f"{text.rstrip('0').rstrip('.')}%"


def _compares(row: Mapping[str, Any], arm: str, test: str, metric: str) -> bool:
    named = (row["arm"], row["test"], row["metric"]) == (arm, test, metric)
    return named and row["against"] != COPY and row.get("value") is not None


def metric_table(view: RunView, metric: str) -> MetricTable:
    """The table of one metric."""
    table = view.table
    names = columns(table)
    digits = decimals(table, metric)

    def scores(arm: str) -> tuple[Score | None, ...]:
        found = []
        for test in names:
            cell = find(table["cells"], arm=arm, test=test, metric=metric)
            found.append(_score(cell, digits, beats_copying(table, arm, test, metric)) if cell else None)
        return tuple(found)

    against = next((row["against"] for row in table["differences"] if row["against"] != COPY), None)
    differences = []
    for arm in (name for name in table["arms"] if name != COPY):
        found = [find(table["differences"], arm=arm, against=against or "", test=test, metric=metric) for test in names]
        if any(found):
            shown = tuple(_difference(row, digits) if row else None for row in found)
            differences.append((arm_label(view.arms, arm), shown))
    return MetricTable(
        metric=metric,
        label=metric_label(metric),
        convention=table.get("conventions", {}).get(metric, ""),
        columns=names,
        copying=scores(COPY) if COPY in table["arms"] else None,
        rows=tuple((arm_label(view.arms, arm), scores(arm)) for arm in table["arms"] if arm != COPY),
        against=against,
        differences=tuple(differences),
    )


def _score(cell: Mapping[str, Any], digits: int, beats: bool | None) -> Score:
    return Score(
        number=cell["value"],
        value=format_number(cell["value"], digits),
        interval=_interval(cell, digits),
        seeds=tuple(format_number(value, digits) for value in cell.get("seeds") or ()),
        beats_copying=beats,
    )


def _difference(row: Mapping[str, Any], digits: int) -> Difference:
    claim = verdict(row)
    low, high = _ends(row)
    if claim != "no difference shown":
        # An interval that excludes 0 must not be printed as if it touched it.
        nearest = min(abs(low), abs(high))
        while digits < 6 and round(nearest, digits) == 0:
            digits += 1
    return Difference(
        number=row["value"],
        value=format_number(row["value"], digits, sign=True),
        interval=_interval(row, digits),
        verdict=claim,
    )


def _ends(row: Mapping[str, Any]) -> tuple[float, float]:
    """The ends of an interval; a missing end leaves everything open."""
    low, high = row.get("low"), row.get("high")
    return (-math.inf if low is None else low), (math.inf if high is None else high)


def _interval(row: Mapping[str, Any], digits: int) -> str:
    if row.get("low") is None or row.get("high") is None:
        return "[no interval]"
    return f"[{format_number(row['low'], digits)}, {format_number(row['high'], digits)}]"


def format_number(value: float, digits: int, *, sign: bool = False) -> str:
    """A number with a true minus sign, and without a sign when it rounds to 0."""
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "\N{MINUS SIGN}")
