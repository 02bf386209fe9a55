"""Percentile intervals for any metric, from resampled test examples and, if there are several, training seeds.

A bootstrap of S seeds would take their part of the variance for (S - 1) / S of what it is, and its tails for normal
ones. So seeds get random weights instead, under which their mean varies as Student's distribution says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from deft_tsds.metrics.metric import Metric

_BLOCK_ELEMENTS = 2**23  # counts held at once, 64 MiB


class Interval(NamedTuple):
    """A score (or a difference of scores) and the ends of its bootstrap interval."""

    value: float
    low: float
    high: float


def bootstrap(
    metric: Metric, statistics: np.ndarray, *, resamples: int = 1000, level: float = 0.95, seed: int
) -> Interval:
    """The score of a test set, averaged over seeds, with a percentile bootstrap interval.

    Args:
        metric: the metric that the statistics belong to.
        statistics: float64 [n, s] of one run, or [S, n, s] of S runs (seeds) on the same test examples.
        resamples: number of resamples.
        level: coverage asked for, in (0, 1).
        seed: of the numpy Generator that draws the resamples.

    Returns:
        The interval; `value` is the score itself, not the mean of the resamples.

    Raises:
        ValueError: wrong rank, no example, a level outside (0, 1), fewer than one resample.
    """
    (draws,) = resampled_scores(metric, [statistics], resamples=resamples, seed=seed)
    return interval(_value(metric, statistics), draws, level)


def bootstrap_difference(
    metric: Metric,
    statistics_a: np.ndarray,
    statistics_b: np.ndarray,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int,
) -> Interval:
    """score(a) - score(b) with a paired bootstrap interval: both arms see the same resampled test examples.

    Args and Raises as in `bootstrap`; the arms may have different numbers of seeds (a copy baseline has one).

    Returns:
        The interval of the difference; the arms differ at this level when it leaves out 0.
    """
    draws_a, draws_b = resampled_scores(metric, [statistics_a, statistics_b], resamples=resamples, seed=seed)
    return interval(_value(metric, statistics_a) - _value(metric, statistics_b), draws_a - draws_b, level)


def resampled_scores(
    metric: Metric, arms: Sequence[np.ndarray], *, resamples: int = 1000, seed: int
) -> list[np.ndarray]:
    """Bootstrap resamples of the score of each arm, paired: resample r draws the same test examples for all arms.

    One resample draws the n test examples with replacement, the same ones for every arm and seed. Its score is the
    weighted mean over an arm's S seeds of score(c @ statistics_s), c_i the number of times that example i was drawn.
    Seed s has the weight 1/S + t_s - mean(t), t_s = z_s / sqrt(S chi2), z_s normal and chi2 of S - 1 degrees: so
    weighted, the mean of S numbers is off their plain mean by Student's t times its standard error. Arms of as many
    seeds have the same weights, which pairs them by seed, and they are the same for every test set.

    Args:
        metric: the metric that the statistics belong to.
        arms: for each arm float64 [n, s], or [S, n, s] of S runs (seeds).
        resamples: number of resamples R.
        seed: of the numpy Generator that draws the resamples.

    Returns:
        float64 [R] for each arm.

    Raises:
        ValueError: wrong rank, no example, arms with different numbers of examples, fewer than one resample.
    """
    runs, rng = _together(arms, resamples), np.random.default_rng(seed)
    weights = {seeds: _seed_weights(rng, resamples, seeds) for seeds in dict.fromkeys(map(len, runs))}
    scores = _scores(metric, runs, resamples, rng)
    means = [np.sum(weights[len(arm_runs)] * of_arm, axis=1) for arm_runs, of_arm in zip(runs, scores, strict=True)]
    return [np.clip(mean_R, 0, 100) for mean_R in means]  # no score lies outside, however little two seeds may tell


def _seed_weights(rng: np.random.Generator, resamples: int, seeds: int) -> np.ndarray:
    """As `resampled_scores` describes them, float64 [R, S]."""
    if seeds == 1:
        return np.ones((resamples, 1))
    t_RxS = rng.standard_normal((resamples, seeds)) / np.sqrt(seeds * rng.chisquare(seeds - 1, (resamples, 1)))
    return 1 / seeds + t_RxS - t_RxS.mean(axis=1, keepdims=True)


def resampled_runs(
    metric: Metric, arms: Sequence[np.ndarray], *, resamples: int = 1000, seed: int | Sequence[int]
) -> list[np.ndarray]:
    """As `resampled_scores`, but of each run by itself, float64 [R, S] for each arm: test examples alone are drawn."""
    return _scores(metric, _together(arms, resamples), resamples, np.random.default_rng(seed))


def interval(value: float, draws: np.ndarray, level: float) -> Interval:
    """The percentile interval of a value from its resamples.

    Raises:
        ValueError: a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: give a coverage between 0 and 1, such as 0.95.")
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def _runs(statistics: np.ndarray) -> np.ndarray:
    """Statistics as float64 [S, n, s]."""
    runs = np.asarray(statistics, dtype=np.float64)
    if runs.ndim == 2:
        runs = runs[None]
    if runs.ndim != 3:
        raise ValueError(f"statistics has shape {runs.shape}: give [examples, s], or [seeds, examples, s].")
    if runs.shape[0] == 0 or runs.shape[1] == 0:
        raise ValueError(f"statistics has shape {runs.shape}: at least one seed and one test example are needed.")
    return runs


def _together(arms: Sequence[np.ndarray], resamples: int) -> list[np.ndarray]:
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}: at least 1 is needed, and 1000 for a 95% interval.")
    runs = [_runs(statistics) for statistics in arms]
    counts_of_examples = {arm_runs.shape[1] for arm_runs in runs}
    if len(counts_of_examples) != 1:
        raise ValueError(
            f"the arms have {sorted(counts_of_examples)} test examples: "
            "a paired difference needs the same test examples in the same order."
        )
    return runs


def _scores(metric: Metric, runs: Sequence[np.ndarray], resamples: int, rng: np.random.Generator) -> list[np.ndarray]:
    scores = [np.empty((resamples, len(arm_runs))) for arm_runs in runs]
    for block, counts in _draws(rng, runs[0].shape[1], resamples):
        for arm_scores, arm_runs in zip(scores, runs, strict=True):
            arm_scores[block] = metric.score(np.einsum("rn,kns->rks", counts, arm_runs, optimize=True))
    return scores


def _value(metric: Metric, statistics: np.ndarray) -> float:
    return float(metric.score(_runs(statistics).sum(1)).mean())


def _draws(rng: np.random.Generator, num_examples: int, resamples: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield, in blocks of resamples, how often each example was drawn: float64 [block, n]."""
    block = max(1, _BLOCK_ELEMENTS // num_examples)
    for start in range(0, resamples, block):
        stop = min(start + block, resamples)
        drawn = rng.integers(num_examples, size=(stop - start, num_examples))
        offsets = np.arange(stop - start)[:, None] * num_examples
        counts = np.bincount((drawn + offsets).ravel(), minlength=drawn.size).reshape(drawn.shape)
        yield slice(start, stop), counts.astype(np.float64)
