"""Whether a difference is one: intervals, tests and verdicts for arms that were run with several seeds.

Two kinds of chance are in a score: which seeds were run, and which test examples there happen to be. `estimate` and
`compare` know of seeds alone, for measures of a choice. `difference` knows of both, for scores on test sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from deft_tsds.metrics import METRICS, Interval, Metric
from deft_tsds.metrics.bootstrap import resampled_runs

Runs = Mapping[str, np.ndarray]
"""By test set, the sufficient statistics of S runs on its n examples, float64 [S, n, s] (see `metrics.Metric`)."""


class Estimate(NamedTuple):
    """A mean over seeds, its interval, and the p-value of the hypothesis that it is 0; None where one seed was run."""

    value: float
    low: float | None
    high: float | None
    p: float | None


def estimate(values: Sequence[float], *, level: float, resplit: float = 0.0) -> Estimate:
    """The mean of values from several seeds with Student's interval. For a paired difference, give the differences.

    Args:
        values: one value a seed, [S].
        level: coverage asked for, in (0, 1).
        resplit: where each seed leaves out another random part of the same data: the part left out over the part kept.
            Such values are not independent, and the variance of their mean is taken as (1/S + resplit) s^2 instead of
            s^2 / S (Nadeau and Bengio, "Inference for the generalization error", Machine Learning 52, 2003).

    Raises:
        ValueError: no values, one that is not finite, or a level outside (0, 1).
    """
    from scipy import stats  # half a second to import, which a run that compares nothing need not wait for

    values_S = np.asarray(values, dtype=np.float64)
    if values_S.ndim != 1 or len(values_S) == 0 or not np.isfinite(values_S).all():
        raise ValueError(f"values are {values_S.tolist()}: give one finite number for each of one seed or more.")
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: give a coverage between 0 and 1, such as 0.95.")
    mean, count = float(values_S.mean()), len(values_S)
    if count == 1:
        return Estimate(mean, None, None, None)
    error = float(values_S.std(ddof=1)) * np.sqrt(1 / count + resplit)
    half = float(stats.t.ppf((1 + level) / 2, count - 1) * error)
    if error == 0:
        return Estimate(mean, mean, mean, 1.0 if mean == 0 else 0.0)
    return Estimate(mean, mean - half, mean + half, float(2 * stats.t.sf(abs(mean) / error, count - 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number by Holm's step-down method, in the order given."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.tolist()


def compare(
    names: Sequence[str],
    measured: Sequence[Sequence[Mapping[str, float]]],
    *,
    level: float,
    resplit: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Means with intervals, and differences to the first cell, paired by seed and Holm-corrected over the cells.

    Args:
        names: of the C cells, the reference first.
        measured: by cell and seed, the value of each measure that could be taken there.
        level: of the intervals; a verdict is given where the corrected p-value is below 1 - level.
        resplit: by name of a measure, as in `estimate`; 0 where it is not named.

    Returns:
        For each cell `measures` (by name value, low, high, seeds) and `differences` (value, low, high, p, p_holm and
        verdict: "higher", "lower", "no difference shown", or "one seed").
    """
    cells: list[dict[str, Any]] = [{"name": name, "measures": {}, "differences": {}} for name in names]
    for measure in dict.fromkeys(measure for seeds in measured for values in seeds for measure in values):
        variance = {"level": level, "resplit": resplit.get(measure, 0.0)}
        differences = []
        for cell, seeds in zip(cells, measured, strict=True):
            values = [seed[measure] for seed in seeds if measure in seed]
            if values:
                cell["measures"][measure] = {**_interval(estimate(values, **variance)), "seeds": values}
            pairs = zip(seeds, measured[0], strict=True)
            paired = [mine[measure] - base[measure] for mine, base in pairs if measure in mine and measure in base]
            if paired and seeds is not measured[0]:
                differences.append((cell["differences"], estimate(paired, **variance)))
        tested = [found.p for _, found in differences if found.p is not None]
        adjusted = iter(holm(tested))
        for of_cell, found in differences:
            p_holm = None if found.p is None else next(adjusted)
            verdict = _verdict(found.value, p_holm, level)
            of_cell[measure] = {**_interval(found), "p": found.p, "p_holm": p_holm, "verdict": verdict}
    return cells


class Difference(NamedTuple):
    """How much higher one arm scores than another.

    Attributes:
        value: mean over test sets and seeds.
        low, high: ends of its interval.
        p: of the hypothesis that there is no difference.
        p_worse: of the hypothesis that the arm is worse by the margin, or by more.
        effect: the mean over the standard deviation between seeds (Cohen's d for pairs); None for one seed, or where
            all seeds agree.
        higher: in how many of the seeds the arm scores higher.
        seeds: how many there are. With one, the interval knows of test examples alone.
        error, freedom: standard error of the value, and the degrees of freedom of Student's distribution of it.
    """

    value: float
    low: float
    high: float
    p: float
    p_worse: float
    effect: float | None
    higher: int
    seeds: int
    error: float
    freedom: float

    def p_of_loss(self, margin: float) -> float:
        """p of the hypothesis that the arm is worse by this margin, or by more."""
        return _p_of_loss(self.value, self.error, self.freedom, margin)

    def to_json(self) -> dict[str, Any]:
        """All but what `p_of_loss` alone needs."""
        return {name: found for name, found in self._asdict().items() if name not in ("error", "freedom")}


def difference(
    metric: str | Metric,
    arm: Runs,
    against: Runs,
    *,
    margin: float = 0.0,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int,
) -> Difference:
    """Score of an arm less that of another, paired by seed and by test example; each test set counts once.

    The variance of the difference has two parts, test examples (by a bootstrap, the seeds as they are) and seeds (their
    sample variance over their number); Student's distribution has the degrees of freedom that Satterthwaite gives to
    the sum. A bootstrap of five seeds would take their variance for a fifth too small and its tails for normal ones.

    Args:
        metric: the metric that the statistics belong to, or its name.
        arm, against: runs of the same seeds on the same test examples, in the same order.
        margin: what the arm may lose and still count as no worse, at least 0.
        level: coverage of the interval.
        resamples: of the bootstrap.
        seed: of its numpy Generator.

    Raises:
        ValueError: other test sets, seeds or examples in the two; a negative margin; a level outside (0, 1).
    """
    if not margin >= 0:
        raise ValueError(f"margin is {margin}: give what may be lost, a number of at least 0.")
    arms, metric = _paired(arm, against), _metric(metric)
    by_seed_S = np.mean([metric.score(a.sum(1)) - metric.score(b.sum(1)) for a, b in arms.values()], axis=0)
    drawn = [
        np.subtract(*resampled_runs(metric, pair, resamples=resamples, seed=[seed, place]))
        for place, pair in enumerate(arms.values())
    ]
    error, freedom, by_seeds = _error(by_seed_S, np.mean(drawn, axis=0))
    value, seeds = float(by_seed_S.mean()), len(by_seed_S)
    low, high = _ends(value, error, freedom, level)
    p, p_worse = 2 * _p_of_loss(abs(value), error, freedom, 0), _p_of_loss(value, error, freedom, margin)
    effect = float(value / np.sqrt(by_seeds * seeds)) if by_seeds else None
    return Difference(value, low, high, p, p_worse, effect, int(np.sum(by_seed_S > 0)), seeds, float(error), freedom)


def _p_of_loss(value: float, error: float, freedom: float, margin: float) -> float:
    from scipy import stats

    with np.errstate(divide="ignore", invalid="ignore"):  # no variance: equal arms are no different, others surely are
        return float(stats.t.sf(np.nan_to_num(np.float64(value + margin) / error), freedom))


def mean_score(metric: str | Metric, runs: Runs, *, level: float = 0.95, resamples: int = 1000, seed: int) -> Interval:
    """The mean score of one arm over test sets and seeds, with an interval made as that of `difference`, within 0 and
    100, where all scores lie."""
    arrays, metric = {test: np.asarray(runs_SxNxs, np.float64) for test, runs_SxNxs in runs.items()}, _metric(metric)
    by_seed_S = np.mean([metric.score(array.sum(1)) for array in arrays.values()], axis=0)
    drawn = [
        resampled_runs(metric, [array], resamples=resamples, seed=[seed, place])[0]
        for place, array in enumerate(arrays.values())
    ]
    error, freedom, _ = _error(by_seed_S, np.mean(drawn, axis=0))
    value = float(by_seed_S.mean())
    low, high = np.clip(_ends(value, error, freedom, level), 0, 100)
    return Interval(value, float(low), float(high))


def _error(by_seed_S: np.ndarray, drawn_RxS: np.ndarray) -> tuple[np.float64, float, float]:
    """The standard error of the mean over seeds, its degrees of freedom, and the part of its square due to seeds."""
    seeds = len(by_seed_S)
    by_examples = float(np.var(drawn_RxS.mean(axis=1), ddof=1))
    by_seeds = float(np.var(by_seed_S, ddof=1)) / seeds if seeds > 1 else 0.0
    freedom = (by_examples + by_seeds) ** 2 * (seeds - 1) / by_seeds**2 if by_seeds else np.inf
    return np.sqrt(by_examples + by_seeds), freedom, by_seeds


def _ends(value: float, error: np.float64, freedom: float, level: float) -> tuple[float, float]:
    from scipy import stats

    if not 0 < level < 1:
        raise ValueError(f"level is {level}: give a coverage between 0 and 1, such as 0.95.")
    half = float(stats.t.ppf((1 + level) / 2, freedom) * error)
    return value - half, value + half


def permutation_p(metric: str | Metric, arm: Runs, against: Runs, *, resamples: int = 10_000, seed: int) -> float:
    """The p-value of no difference between two arms, by exchanging their answers to random test examples.

    An exchange is the same in all seeds, and tests nothing but the answers of these runs (Yeh, "More accurate tests for
    the statistical significance of result differences", COLING 2000).

    Args and Raises: as `difference`.
    """
    rng, score = np.random.default_rng(seed), _metric(metric).score
    found, exchanged = 0.0, np.zeros(resamples)
    arms = _paired(arm, against)
    for a_SxNxs, b_SxNxs in arms.values():
        total_S1xs, apart_SxNxs = (a_SxNxs + b_SxNxs).sum(1), a_SxNxs - b_SxNxs
        found += float(np.mean(score(a_SxNxs.sum(1)) - score(b_SxNxs.sum(1))))
        signs_RxN = rng.choice([-1.0, 1.0], size=(resamples, a_SxNxs.shape[1]))
        half_RxSxs = np.einsum("rn,kns->rks", signs_RxN, apart_SxNxs, optimize=True) / 2
        exchanged += np.mean(score(total_S1xs / 2 + half_RxSxs) - score(total_S1xs / 2 - half_RxSxs), axis=1)
    as_large = np.abs(exchanged) >= abs(found) * (1 - 1e-9)
    return float((1 + np.count_nonzero(as_large)) / (1 + resamples))


def sentence(found: Difference, *, against: str, unit: str, level: float) -> str:
    """The difference in words: "better than random: yes, +1.8 SARI [0.9, 2.7], 5 of 5 seeds"."""
    answer = "not shown" if found.p >= 1 - level else "yes" if found.value > 0 else "no, worse"
    answer = "one seed cannot say" if found.seeds == 1 else answer
    return (
        f"better than {against}: {answer}, {found.value:+.1f} {unit} [{found.low:.1f}, {found.high:.1f}], "
        f"{found.higher} of {found.seeds} seeds"
    )


def _metric(metric: str | Metric) -> Metric:
    return METRICS[metric] if isinstance(metric, str) else metric


def _paired(arm: Runs, against: Runs) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    if set(arm) != set(against) or not arm:
        raise ValueError(f"the arms have the test sets {sorted(arm)} and {sorted(against)}: give the same ones.")
    pairs = {test: (np.asarray(arm[test], np.float64), np.asarray(against[test], np.float64)) for test in arm}
    for test, (a, b) in pairs.items():
        if a.ndim != 3 or a.shape != b.shape or not a.size:
            raise ValueError(f"{test}: runs have shapes {a.shape} and {b.shape}, and need one [seeds, examples, s].")
    if len({len(a) for a, _ in pairs.values()}) > 1:
        raise ValueError(
            f"test sets have { {test: len(a) for test, (a, _) in pairs.items()} } seeds: give as many each."
        )
    return pairs


def _verdict(value: float, p_holm: float | None, level: float) -> str:
    if p_holm is None:
        return "one seed"
    if p_holm >= 1 - level:
        return "no difference shown"
    return "higher" if value > 0 else "lower"


def _interval(found: Estimate) -> dict[str, float | None]:
    return {"value": found.value, "low": found.low, "high": found.high}
