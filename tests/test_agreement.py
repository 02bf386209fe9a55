"""Kappas, clustered intervals and power: published numbers, scikit-learn, loops, and simulations with known truth."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from deft_tsds.judging.agreement import Kappa, agreement, cohen_kappa, fleiss_kappa
from deft_tsds.judging.clustered import clustered_mean
from deft_tsds.judging.power import items_needed, moments, power

# Fleiss (1971), as it is often reprinted: ten subjects, fourteen raters, five categories.
PUBLISHED = np.array(
    [
        [0, 0, 0, 0, 14],
        [0, 2, 6, 4, 2],
        [0, 0, 3, 5, 6],
        [0, 3, 9, 2, 0],
        [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0],
        [3, 2, 6, 3, 0],
        [2, 5, 3, 2, 2],
        [6, 5, 2, 1, 0],
        [0, 2, 2, 3, 7],
    ]
)


def simulated(rng: np.random.Generator, *, rows: int, raters: int, kappa: float, shares: list[float]) -> np.ndarray:
    """Ratings [rows, raters] whose true kappa is `kappa`: with chance sqrt(kappa) a rater sees the row's category, and
    else says any, by the same shares. Two raters then agree with chance kappa + (1 - kappa) sum of shares^2."""
    truth = rng.choice(len(shares), size=(rows, 1), p=shares)
    guess = rng.choice(len(shares), size=(rows, raters), p=shares)
    return np.where(rng.random((rows, raters)) < np.sqrt(kappa), truth, guess)


def test_fleiss_published_example():
    assert round(float(fleiss_kappa(PUBLISHED)), 3) == 0.210


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_cohen_is_scikit_learns(pairs):
    first, second = np.array(pairs).T
    table = np.zeros((4, 4))
    np.add.at(table, (first, second), 1)
    if len({*first, *second}) == 1:
        assert np.isnan(cohen_kappa(table))
        return
    expected = cohen_kappa_score(first, second, labels=[0, 1, 2, 3])
    np.testing.assert_allclose(cohen_kappa(table), expected, atol=1e-12)


def loop_fleiss(ratings: np.ndarray, categories: int) -> float:
    """By its words: chance that two of a row's raters agree, and that two ratings of all rows would."""
    rows = [[rating for rating in row if rating >= 0] for row in ratings.tolist()]
    rows = [row for row in rows if len(row) >= 2]
    found = float(np.mean([np.mean([a == b for a, b in itertools.combinations(row, 2)]) for row in rows]))
    every = [rating for row in rows for rating in row]
    chance = sum((every.count(category) / len(every)) ** 2 for category in range(categories))
    return (found - chance) / (1 - chance)


def test_fleiss_with_missing_raters_is_the_loop():
    rng = np.random.default_rng(0)
    ratings = simulated(rng, rows=40, raters=4, kappa=0.5, shares=[0.5, 0.3, 0.2])
    ratings[rng.random(ratings.shape) < 0.3] = -1
    found = agreement(ratings, np.arange(40), categories=3, resamples=10, seed=0)
    assert found.fleiss.value == pytest.approx(loop_fleiss(ratings, 3))
    assert found.fleiss.rows == np.sum((ratings >= 0).sum(1) >= 2)
    for (a, b), kappa in found.cohen.items():
        both = (ratings[:, a] >= 0) & (ratings[:, b] >= 0)
        assert kappa.value == pytest.approx(cohen_kappa_score(ratings[both, a], ratings[both, b]))
        assert kappa.rows == both.sum()


def test_kappa_knows_no_order_of_rows_raters_or_categories():
    rng = np.random.default_rng(1)
    ratings = simulated(rng, rows=30, raters=3, kappa=0.4, shares=[0.6, 0.4])
    base = agreement(ratings, np.arange(30), categories=2, resamples=10, seed=0).fleiss.value
    turned = 1 - ratings[rng.permutation(30)][:, [2, 0, 1]]
    assert agreement(turned, np.arange(30), categories=2, resamples=10, seed=0).fleiss.value == pytest.approx(base)


def test_kappa_intervals_cover_the_truth():
    """1,000 simulated studies of 60 items and three raters: the intervals hold the true kappa 93 to 97 times of 100."""
    rng, covered = np.random.default_rng(2), np.zeros(2)
    for round_ in range(1000):
        ratings = simulated(rng, rows=60, raters=3, kappa=0.5, shares=[0.45, 0.2, 0.35])
        found = agreement(ratings, np.arange(60), categories=3, resamples=200, seed=round_)
        for place, kappa in enumerate((found.fleiss, found.cohen[0, 1])):
            assert kappa.low is not None
            assert kappa.high is not None
            covered[place] += kappa.low <= 0.5 <= kappa.high
    assert (covered >= 930).all(), covered
    assert (covered <= 970).all(), covered


def test_rows_of_a_cluster_are_drawn_together():
    """Every row twice, as a cluster, says no more than every row once; as rows of their own they seem to."""
    ratings = simulated(np.random.default_rng(3), rows=80, raters=2, kappa=0.5, shares=[0.5, 0.5])
    doubled, clusters = np.repeat(ratings, 2, axis=0), np.repeat(np.arange(80), 2)
    options = {"categories": 2, "resamples": 2000, "seed": 0}
    once = agreement(ratings, np.arange(80), **options).fleiss
    together = agreement(doubled, clusters, **options).fleiss
    apart = agreement(doubled, np.arange(160), **options).fleiss
    np.testing.assert_allclose(np.array(together[:3], float), np.array(once[:3], float), atol=1e-12)
    assert np.diff(np.array(apart[1:3], float)) < 0.8 * np.diff(np.array(once[1:3], float))


def test_kappas_at_the_edge():
    same = np.zeros((10, 3), int)
    found = agreement(same, np.arange(10), categories=2, seed=0)
    assert found.fleiss == Kappa(None, None, None, 10)  # one category: nothing beyond chance can be seen
    same[:5] = 1
    perfect = agreement(same, np.arange(10), categories=2, seed=0).fleiss
    assert (perfect.value, perfect.high) == (1, 1)
    bound = stats.binomtest(10, 10).proportion_ci(0.95).low  # of a row on which all agree; by chance half do
    assert perfect.low == pytest.approx((bound - 0.5) / 0.5)
    never = agreement(np.array([[0, 1]] * 5 + [[1, 0]] * 5), np.arange(10), categories=2, seed=0).cohen[0, 1]
    assert (never.value, never.low, never.high) == (-1, -1, pytest.approx((1 - bound - 0.5) / 0.5))
    alone = agreement(np.array([[0, -1], [-1, 1]]), [0, 1], categories=2, seed=0)
    assert alone.fleiss == Kappa(None, None, None, 0)
    assert alone.cohen == {}
    one = agreement(np.array([[0, 1]]), [0], categories=2, seed=0).fleiss
    assert (one.value, one.low, one.rows) == (-1, None, 1)


@pytest.mark.parametrize(
    ("ratings", "clusters", "message"),
    [([[0, 3]], [0], "other than -1 to 2"), ([[0, 1]], [0, 1], "give"), ([0, 1], [0, 1], "give")],
)
def test_agreement_refuses(ratings, clusters, message):
    with pytest.raises(ValueError, match=message):
        agreement(np.array(ratings), np.array(clusters), categories=3, seed=0)


def test_clustered_intervals_cover_the_truth():
    """Items with three judgments each that agree at kappa 0.5, ties as halves: 93 to 97 of 100 hold the true mean."""
    shares = [0.5, 0.2, 0.3]
    truth = 0.5 * 1 + 0.2 * 0.5
    rng, hits = np.random.default_rng(4), np.zeros(2)
    for round_ in range(1000):
        ratings = simulated(rng, rows=50, raters=3, kappa=0.5, shares=shares)
        values = np.array([1.0, 0.5, 0.0])[ratings].ravel()
        for place, clusters in enumerate((np.repeat(np.arange(50), 3), np.arange(150))):
            found = clustered_mean(values, clusters, resamples=200, seed=round_)
            hits[place] += found.low <= truth <= found.high
    assert 930 <= hits[0] <= 970
    assert hits[1] < 900  # judgments taken for items: too sure


@given(st.integers(1, 50), st.floats(0, 1), st.floats(0.5, 0.99))
def test_where_all_agree_the_interval_is_the_exact_binomial_one(count, value, level):
    found = clustered_mean([value] * count, list(range(count)), level=level, seed=0)
    exact = stats.binomtest(count, count).proportion_ci(level).low
    np.testing.assert_allclose(found, [value, value * exact, 1 - (1 - value) * exact], atol=1e-12)


@pytest.mark.parametrize(
    ("values", "clusters", "level", "message"),
    [
        ([], [], 0.95, "1 value or more"),
        ([1.0], [0, 1], 0.95, "one cluster for each"),
        ([1.5], [0], 0.95, r"outside \[0, 1\]"),
        ([float("nan")], [0], 0.95, r"outside \[0, 1\]"),
        ([1.0, 0.0], [0, 1], 1.0, "level is 1.0"),
    ],
)
def test_means_refuse(values, clusters, level, message):
    with pytest.raises(ValueError, match=message):
        clustered_mean(values, clusters, level=level, seed=0)


@pytest.mark.parametrize(
    ("preference", "ties", "judges", "kappa"), [(0.65, 0.0, 1, 0.0), (0.62, 0.25, 3, 0.4), (0.3, 0.5, 2, 0.8)]
)
def test_the_number_of_items_gives_the_power_that_was_asked_for(preference, ties, judges, kappa):
    """2,000 studies of so many items, read as `collect` reads them: 80 of 100 leave a half out of their interval."""
    items = items_needed(preference, ties=ties, judges=judges, kappa=kappa)
    shares = [(1 - ties) * preference, ties, (1 - ties) * (1 - preference)]
    rng, shown = np.random.default_rng(5), 0
    for round_ in range(2000):
        ratings = simulated(rng, rows=items, raters=judges, kappa=kappa, shares=shares)
        scores = np.array([1.0, 0.5, 0.0])[ratings].mean(1)
        found = clustered_mean(scores, np.arange(items), resamples=200, seed=round_)
        shown += found.low > 0.5 or found.high < 0.5
    assert 0.77 <= shown / 2000 <= 0.83


def test_power_without_ties_is_near_the_exact_sign_test():
    items = 2000  # with fewer, the exact test is far below its level
    last = stats.binom.ppf(0.025, items, 0.5) - 1  # as many wins or fewer are too few
    exact = stats.binom.cdf(last, items, 0.53) + stats.binom.sf(items - last - 1, items, 0.53)
    assert power(items, 0.53) == pytest.approx(exact, abs=0.015)


def test_power_of_no_preference_is_its_level_and_more_of_everything_helps():
    assert power(50, 0.5) == pytest.approx(0.05)
    assert moments(0.5, 0.3)[0] == 0.5
    needed = [items_needed(p, ties=0.2, judges=3) for p in (0.55, 0.6, 0.7, 0.9)]
    assert needed == sorted(needed, reverse=True)
    assert items_needed(0.6, judges=5) < items_needed(0.6, judges=1)
    assert items_needed(0.4) == items_needed(0.6)
    assert items_needed(0.6, judges=5, kappa=1.0) == items_needed(0.6, judges=1)  # who always agrees is one judge
    exact = items_needed(0.6)
    assert power(exact, 0.6) >= 0.8 > power(exact - 1, 0.6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preference": 0.5}, "not there"),
        ({"preference": 1.0}, "preference is 1.0"),
        ({"preference": 0.6, "ties": 1.0}, "ties is 1.0"),
        ({"preference": 0.6, "judges": 0}, "judges is 0"),
        ({"preference": 0.6, "kappa": -0.1}, "kappa is -0.1"),
        ({"preference": 0.6, "level": 0.0}, "level is 0.0"),
        ({"preference": 0.6, "wanted": 1.0}, "power is 1.0"),
    ],
)
def test_power_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        items_needed(**arguments)
