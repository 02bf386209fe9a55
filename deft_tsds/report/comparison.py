"""Several runs beside one another: what differs in their configs, their scores on the same tests, their choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deft_tsds.report import results, shell
from deft_tsds.report.difference import Chosen, Difference, chosen_by, difference, overlaps
from deft_tsds.report.settings import flat
from deft_tsds.report.view import RunView, read_run


@dataclass(frozen=True)
class Setting:
    """A field of the config that is not the same in all runs."""

    name: str
    values: tuple[str | None, ...]
    """A run each; None where a run has no such field."""


@dataclass(frozen=True)
class SharedTests:
    """The test sets that all runs have with the same rows, and why others are left out."""

    names: tuple[str, ...]
    mean: bool
    """Whether the mean over the test sets is over the same ones in all runs."""
    left_out: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ScoreRow:
    """An arm of a run."""

    run: str
    """"" for copying, which is the same in all runs."""
    arm: str
    cells: tuple[results.Score | None, ...]


@dataclass(frozen=True)
class ScoreTable:
    """One metric: the arms of all runs down, shared test sets across."""

    label: str
    convention: str
    columns: tuple[str, ...]
    rows: tuple[ScoreRow, ...]


def write_comparison(runs: Sequence[str | Path], path: str | Path, *, command: Sequence[str] = ()) -> Path:
    """Write the page that compares two or more run folders.

    Args:
      runs: the run folders; only their artefacts are read.
      path: where to write.
      command: what made the page.

    Raises:
      ValueError: fewer than two runs, a folder given twice, an artefact that is missing, or runs that share no test
        set with the same rows or no metric.
    """
    folders = [Path(run).resolve() for run in runs]
    if len(folders) < 2 or len(set(folders)) < len(folders):
        raise ValueError("a comparison needs two or more different run folders: give each of them once.")
    return shell.write(render([read_run(run) for run in runs], command=command), path)


def render(views: Sequence[RunView], *, command: Sequence[str] = ()) -> str:
    """The page that compares runs, as HTML."""
    labels = run_labels(views)
    tests = shared_tests(views, labels)
    numbers, total = shared_numbers(views)
    chosen = choices(views, labels, numbers)
    return shell.render(
        "comparison.html",
        filters={"percent": results.percent},
        plots={},
        styles=["style.css"],
        scripts=["page.js", "sortable.js"],
        notices=[_notice(view, label) for view, label in zip(views, labels, strict=True)],
        runs=list(zip(labels, views, strict=True)),
        settings=differing_settings(views),
        equal=len(set.intersection(*(set(flat(view.experiment["config"])) for view in views))),
        tests=tests,
        tables=score_tables(views, labels, tests),
        levels=sorted({results.percent(view.table.get("level", 0.95)) for view in views}),
        total=total,
        common=len(set.intersection(*(set(each.tolist()) for each in numbers))),
        overlapping=[each.label for _, _, each in chosen],
        overlaps=overlaps([each for _, _, each in chosen], total),
        differences=same_arm_differences(chosen),
        command=" ".join(command),
    )


def run_labels(views: Sequence[RunView]) -> tuple[str, ...]:
    """A short name for each run: its number and the name of its experiment."""
    return tuple(f"{number} {view.experiment['name']}" for number, view in enumerate(views, 1))


def differing_settings(views: Sequence[RunView]) -> tuple[Setting, ...]:
    """The fields of the configs that are not the same in all runs, in the order in which the configs have them."""
    configs = [dict(flat(view.experiment["config"])) for view in views]
    names = dict.fromkeys(name for config in configs for name in config)
    settings = (Setting(name, tuple(config.get(name) for config in configs)) for name in names)
    return tuple(setting for setting in settings if len(set(setting.values)) > 1)


def shared_tests(views: Sequence[RunView], labels: Sequence[str]) -> SharedTests:
    """The test sets that may stand beside one another.

    Raises:
      ValueError: there is none.
    """
    rows = [{test["name"]: test["rows"] for test in view.table["tests"]} for view in views]
    names, left_out = [], []
    for name in dict.fromkeys(name for each in rows for name in each):
        lacking = [label for label, each in zip(labels, rows, strict=True) if name not in each]
        if lacking:
            left_out.append((name, f"not in {', '.join(lacking)}"))
        elif len({each[name] for each in rows}) > 1:
            left_out.append((name, f"has {', '.join(str(each[name]) for each in rows)} rows"))
        elif len({_content(view, name) for view in views} - {None}) > 1:
            left_out.append((name, "has other texts under the same name"))
        else:
            names.append(name)
    if not names:
        why = "; ".join(f"{name}: {reason}" for name, reason in left_out)
        raise ValueError(
            f"these runs share no test set with the same rows ({why}), so their scores must not stand beside one "
            "another: compare runs that were evaluated on the same data."
        )
    return SharedTests(tuple(names), not left_out, tuple(left_out))


def score_tables(views: Sequence[RunView], labels: Sequence[str], tests: SharedTests) -> tuple[ScoreTable, ...]:
    """A table for each metric that all runs have, the first run's primary one first.

    Raises:
      ValueError: there is no such metric.
    """
    ordered = [found.metric for found in results.metric_tables(views[0])]
    metrics = [metric for metric in ordered if all(metric in view.table["metrics"] for view in views)]
    if not metrics:
        raise ValueError("these runs share no metric: evaluate them with the same ones.")
    return tuple(_score_table(views, labels, tests, metric) for metric in metrics)


def shared_numbers(views: Sequence[RunView]) -> tuple[list[np.ndarray], int]:
    """One numbering of the examples of all pools: equal numbers for equal id, prompt and target.

    Returns:
      For each run int [N], the number of each row of its pool; and how many examples there are in all.
    """
    known: dict[tuple[str, str, str], int] = {}
    numbers = []
    for view in views:
        keys = zip(view.pool.ids, view.pool.prompts, view.pool.targets, strict=True)
        numbers.append(np.array([known.setdefault(key, len(known)) for key in keys]))
    return numbers, len(known)


def choices(
    views: Sequence[RunView], labels: Sequence[str], numbers: Sequence[np.ndarray]
) -> list[tuple[int, str, Chosen]]:
    """The arms of all runs that leave something out, each with the number of its run and its name."""
    return [
        (place, arm.name, chosen_by(view, arm, f"{label}: {arm.label}", number_N))
        for place, (view, label, number_N) in enumerate(zip(views, labels, numbers, strict=True))
        for arm in view.arms
        if not arm.is_whole(len(view.pool))
    ]


def same_arm_differences(chosen: Sequence[tuple[int, str, Chosen]]) -> list[Difference]:
    """Each arm of the first run that has it, against the arms of the same name in later runs."""
    first: dict[str, Chosen] = {}
    found = []
    for _, name, each in chosen:
        if name in first:
            found.append(difference(first[name], each))
        else:
            first[name] = each
    return found


def _score_table(views: Sequence[RunView], labels: Sequence[str], tests: SharedTests, metric: str) -> ScoreTable:
    tables = [results.metric_table(view, metric) for view in views]
    has_mean = tests.mean and all(results.ALL_TESTS in table.columns for table in tables)
    columns = (results.ALL_TESTS, *tests.names) if has_mean else tests.names
    rows = []
    for table, label in zip(tables, labels, strict=True):
        places = [table.columns.index(name) for name in columns]
        rows += [ScoreRow(label, arm, tuple(cells[place] for place in places)) for arm, cells in table.rows]
    if copying := tables[0].copying:  # the same in all runs, since the test rows are
        places = [tables[0].columns.index(name) for name in columns]
        rows.append(ScoreRow("", results.arm_label((), results.COPY), tuple(copying[place] for place in places)))
    return ScoreTable(tables[0].label, tables[0].convention, columns, tuple(rows))


def _content(view: RunView, test: str) -> tuple[Any, ...] | None:
    """The inputs and references of a test set; None where the run folder lacks its texts."""
    examples = view.tests.get(test)
    return None if examples is None else (examples.inputs, examples.references)


def _notice(view: RunView, label: str) -> str | None:
    notice: Any = view.experiment.get("notice")
    return f"{label}: {notice}" if notice else None
