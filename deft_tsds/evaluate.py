"""Scores of what fine-tuned models write: predictions, sufficient statistics, and the table of arms with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deft_tsds.data.examples import Examples
from deft_tsds.metrics import METRICS, Interval, interval, resampled_scores

BASELINE = "random"
"""Differences are reported against the arm of this name, where there is one."""


def statistics_of(predictions: Sequence[str], test: Examples, metrics: Sequence[str]) -> dict[str, np.ndarray]:
    """Sufficient statistics of each metric for each test example, {metric: float64 [n, s]}."""
    return {name: METRICS[name].statistics(predictions, test.inputs, test.references) for name in metrics}


def tabulate(
    statistics: Mapping[str, Mapping[tuple[str, str], Sequence[np.ndarray]]],
    *,
    tests: Sequence[str],
    metrics: Sequence[str],
    resamples: int,
    level: float,
    seed: int,
) -> dict[str, Any]:
    """The table of arms: every score with its bootstrap interval, and every difference to the random arm.

    All arms see the same resampled test examples, so that differences are paired. "all" is the mean over the test sets,
    each counted once.

    Args:
      statistics: {arm: {(test, metric): one float64 [n, s] for each replicate}}.
      tests: names of the test sets.
      metrics: names of the metrics; the first is the primary one.
      resamples: bootstrap resamples.
      level: level of the intervals.
      seed: seeds the resamples.

    Returns:
      JSON: `cells` (arm, test, metric, value, low, high, seeds), `differences` (arm, against, test, metric, value, low,
      high), and what is needed to read them.
    """
    cells, differences = [], []
    for metric in metrics:
        scores: dict[str, dict[str, np.ndarray]] = {}  # [replicates] by arm and test
        draws: dict[str, dict[str, np.ndarray]] = {}  # [resamples] by arm and test
        for test in tests:
            runs = {arm: np.stack(found[test, metric]) for arm, found in statistics.items()}
            resampled = resampled_scores(METRICS[metric], list(runs.values()), resamples=resamples, seed=seed)
            for (arm, runs_RxNxS), drawn in zip(runs.items(), resampled, strict=True):
                scores.setdefault(arm, {})[test] = METRICS[metric].score(runs_RxNxS.sum(1))
                draws.setdefault(arm, {})[test] = drawn
        for arm in statistics:
            scores[arm]["all"] = np.mean([scores[arm][test] for test in tests], axis=0)
            draws[arm]["all"] = np.mean([draws[arm][test] for test in tests], axis=0)
        for arm in statistics:
            for test in (*tests, "all"):
                where = {"arm": arm, "test": test, "metric": metric}
                found = interval(float(scores[arm][test].mean()), draws[arm][test], level)
                cells.append({**where, **found._asdict(), "seeds": scores[arm][test].tolist()})
                if BASELINE in statistics and arm != BASELINE:
                    value = float(scores[arm][test].mean() - scores[BASELINE][test].mean())
                    found = interval(value, draws[arm][test] - draws[BASELINE][test], level)
                    differences.append({**where, "against": BASELINE, **found._asdict()})
    return {
        "primary": metrics[0],
        "metrics": list(metrics),
        "conventions": {name: METRICS[name].convention for name in metrics},
        "tests": [{"name": test, "rows": _rows(statistics, test, metrics[0])} for test in tests],
        "arms": list(statistics),
        "level": level,
        "resamples": resamples,
        "cells": cells,
        "differences": differences,
    }


def _rows(statistics: Mapping[str, Mapping[tuple[str, str], Sequence[np.ndarray]]], test: str, metric: str) -> int:
    return len(next(iter(statistics.values()))[test, metric][0])


def cell(table: Mapping[str, Any], arm: str, test: str, metric: str) -> Interval:
    """One score of the table."""
    for row in table["cells"]:
        if (row["arm"], row["test"], row["metric"]) == (arm, test, metric):
            return Interval(row["value"], row["low"], row["high"])
    raise ValueError(f"The table has no {metric} of {arm} on {test}.")
