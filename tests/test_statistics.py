"""Statistics of studies: SciPy's own tests, and coverage and error rates on data whose truth is known."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from deft_tsds.metrics import METRICS
from deft_tsds.studies.statistics import (
    Estimate,
    compare,
    difference,
    estimate,
    holm,
    permutation_p,
    sentence,
)

METRIC = "exact_match"  # a plain mean of what each example scores, times 100
SEEDS, EXAMPLES = 5, 120


def ends(found: Estimate) -> tuple[float, float]:
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8), st.floats(0.5, 0.99))
def test_the_interval_is_students(values, level):
    found = estimate(values, level=level)
    if np.std(values) < 1e-9:
        return
    expected: Any = stats.ttest_1samp(values, 0.0)
    interval = expected.confidence_interval(level)
    oracle = (np.mean(values), interval.low, interval.high, expected.pvalue)
    np.testing.assert_allclose(np.array(found, float), oracle, rtol=1e-9, atol=1e-12)


def test_resplits_widen_the_interval():
    values = [1.0, 2.0, 4.0, 3.0, 2.5]
    plain, wide = estimate(values, level=0.9), estimate(values, level=0.9, resplit=0.25)
    assert np.ptp(ends(wide)) / np.ptp(ends(plain)) == pytest.approx(np.sqrt((1 / 5 + 0.25) * 5))


def test_one_seed_has_no_interval_and_equal_seeds_have_no_width():
    assert estimate([3.0], level=0.95) == (3.0, None, None, None)
    assert estimate([3.0, 3.0], level=0.95) == (3.0, 3.0, 3.0, 0.0)
    assert estimate([0.0, 0.0], level=0.95) == (0.0, 0.0, 0.0, 1.0)


def test_intervals_cover_at_their_level():
    rng = np.random.default_rng(0)
    draws = rng.normal(5.0, 2.0, size=(3000, 5))
    covered = [low <= 5.0 <= high for low, high in (ends(estimate(row, level=0.95)) for row in draws)]
    assert 0.94 < np.mean(covered) < 0.96


def test_resplit_intervals_cover_where_seeds_share_their_data():
    """Means over the kept part of one sample of 50, five random re-splits of a fifth each: Student's own interval is
    far too narrow for the mean of the population, the corrected one is about right."""
    rng = np.random.default_rng(1)
    hits = np.zeros(2)
    for _ in range(1000):
        sample = rng.normal(size=50)
        values = [rng.permutation(sample)[:10].mean() for _ in range(5)]  # what the left-out part says
        for place, resplit in enumerate((0.0, 0.25)):
            low, high = ends(estimate(values, level=0.95, resplit=resplit))
            hits[place] += low <= 0.0 <= high
    naive, corrected = hits / 1000
    assert naive < 0.9
    assert 0.93 < corrected < 0.985


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_holm_by_its_definition(p_values):
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    expected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, (len(p_values) - rank) * p_values[place])
        expected[place] = min(1.0, largest)
    np.testing.assert_allclose(holm(p_values), expected)


def test_holm_keeps_the_familywise_error():
    p_values = np.random.default_rng(0).uniform(size=(2000, 6))
    assert np.mean([min(holm(row)) < 0.05 for row in p_values]) == pytest.approx(0.05, abs=0.015)


def test_differences_are_paired_by_seed():
    base = [{"a": 1.0}, {"a": 10.0}, {"a": 100.0}]
    more = [{"a": 1.5}, {"a": 10.51}, {"a": 100.49}]
    cells = compare(["base", "more"], [base, more], level=0.95, resplit={})
    difference = cells[1]["differences"]["a"]
    assert difference["verdict"] == "higher"
    assert difference["value"] == pytest.approx(0.5)
    assert difference["p"] == pytest.approx(stats.ttest_rel([1.5, 10.51, 100.49], [1.0, 10.0, 100.0]).pvalue)
    assert cells[0]["differences"] == {}
    assert cells[0]["measures"]["a"]["low"] < 0 < cells[0]["measures"]["a"]["high"]  # unpaired, nothing would show


def test_verdicts_are_corrected_for_the_number_of_cells():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(8, 6))
    shifted = noise - noise.mean(1, keepdims=True) + 1.05 * noise.std(1, ddof=1, keepdims=True) * 2.571 / np.sqrt(6)
    base = [{"a": 0.0}] * 6
    one = compare(["base", "x"], [base, [{"a": v} for v in shifted[0]]], level=0.95, resplit={})
    many = compare(
        ["base", *map(str, range(8))], [base, *([{"a": v} for v in row] for row in shifted)], level=0.95, resplit={}
    )
    assert one[1]["differences"]["a"]["verdict"] == "higher"  # p just below 0.05
    assert {cell["differences"]["a"]["verdict"] for cell in many[1:]} == {"no difference shown"}


def test_what_could_not_be_measured_is_left_out():
    cells = compare(["base", "x", "y"], [[{"a": 1.0}, {}], [{"a": 2.0}, {"a": 5.0}], [{}, {}]], level=0.95, resplit={})
    assert cells[1]["measures"]["a"]["seeds"] == [2.0, 5.0]
    assert cells[1]["differences"]["a"] == {
        "value": 1.0,
        "low": None,
        "high": None,
        "p": None,
        "p_holm": None,
        "verdict": "one seed",
    }
    assert cells[2]["measures"] == {}


@pytest.mark.parametrize(("values", "level"), [([], 0.95), ([1.0, np.nan], 0.95), ([1.0, 2.0], 1.0)])
def test_estimates_refuse_what_has_no_meaning(values, level):
    with pytest.raises(ValueError, match=r"values are|level is"):
        estimate(values, level=level)


def runs(values_SxN: np.ndarray) -> dict[str, np.ndarray]:
    """One test set whose examples score these values / 100."""
    return {"a": np.stack([values_SxN / 100, np.ones_like(values_SxN)], axis=-1)}


def simulated(rng: np.random.Generator, shift: float) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Two arms apart by `shift` in truth: chance of seeds, of examples (shared), and of both."""
    examples_N, own_N = rng.normal(size=(2, EXAMPLES)) * [[20.0], [8.0]]
    arms = []
    for place in (0, 1):
        seeds_Sx1 = rng.normal(size=(SEEDS, 1))
        noise = 10 * rng.normal(size=(SEEDS, EXAMPLES))
        arms.append(runs(50 + examples_N + place * (shift + own_N) + seeds_Sx1 + noise))
    return arms[1], arms[0]


def test_the_interval_of_a_difference_covers_and_its_verdict_keeps_its_level():
    """1,000 pairs of arms: the interval holds the truth 93 to 97 times of 100, and at the edge of the margin an arm is
    called no worse five times of 100."""
    rng, covered, not_worse = np.random.default_rng(0), 0, 0
    for round_ in range(1000):
        arm, against = simulated(rng, -1.0)
        found = difference(METRIC, arm, against, margin=1.0, resamples=100, seed=round_)
        covered += found.low <= -1.0 <= found.high
        not_worse += found.p_worse < 0.05
    assert 930 <= covered <= 970
    assert 30 <= not_worse <= 65


def test_over_budgets_the_verdict_keeps_its_level():
    """Four budgets that all lose just the margin: Holm's correction lets one of them pass 5 times of 100 at most."""
    rng, passed = np.random.default_rng(1), 0
    for round_ in range(400):
        examples_N = 20 * rng.normal(size=EXAMPLES)
        full = runs(50 + examples_N + rng.normal(size=(SEEDS, 1)) + 10 * rng.normal(size=(SEEDS, EXAMPLES)))
        p_values = []
        for _ in range(4):
            noise = (
                rng.normal(size=(SEEDS, 1)) + 8 * rng.normal(size=EXAMPLES) + 10 * rng.normal(size=(SEEDS, EXAMPLES))
            )
            found = difference(METRIC, runs(49 + examples_N + noise), full, margin=1.0, resamples=100, seed=round_)
            p_values.append(found.p_worse)
        passed += min(holm(p_values)) < 0.05
    assert passed <= 0.075 * 400


def test_with_one_example_a_set_the_difference_is_students_over_seeds():
    a, b = np.random.default_rng(0).normal(size=(2, 6, 1))
    found = difference(METRIC, runs(a), runs(b), seed=0)
    expected: Any = stats.ttest_rel(a[:, 0], b[:, 0])
    interval = expected.confidence_interval()
    np.testing.assert_allclose([found.p, found.low, found.high], [expected.pvalue, *interval], rtol=1e-9)
    assert found.effect == pytest.approx(np.mean(a - b) / np.std(a - b, ddof=1))
    assert (found.higher, found.seeds) == (np.sum(a > b), 6)


def test_with_equal_seeds_the_difference_is_the_normal_one_over_examples():
    a, b = np.random.default_rng(0).normal(size=(2, 1, 400)) * 10
    found = difference(METRIC, runs(np.repeat(a, 3, 0)), runs(np.repeat(b, 3, 0)), resamples=4000, seed=0)
    half = 1.96 * np.std(a - b) / 20
    np.testing.assert_allclose(
        [found.low, found.high], np.mean(a - b) + np.array([-half, half]), atol=float(0.06 * half)
    )
    assert found.effect is None


def test_each_test_set_counts_once():
    rng = np.random.default_rng(0)
    few, many = rng.normal(size=(2, 3, 10)), rng.normal(size=(2, 3, 200))
    arm, against = ({"few": runs(few[i])["a"], "many": runs(many[i])["a"]} for i in (0, 1))
    found = difference(METRIC, arm, against, seed=0)
    assert found.value == pytest.approx((np.mean(few[0] - few[1]) + np.mean(many[0] - many[1])) / 2)


def test_equal_arms_do_not_differ_and_shifted_ones_surely_do():
    a = np.random.default_rng(0).normal(size=(1, 30)).repeat(2, axis=0)
    same = difference(METRIC, runs(a), runs(a), margin=0.5, seed=0)
    assert (same.value, same.p) == (0, 1)
    assert same.p_worse == 0
    assert difference(METRIC, runs(a + 1), runs(a), seed=0).p < 1e-9


def test_permutations_agree_with_scipy():
    a, b = 10 * np.random.default_rng(3).normal(size=(2, 1, 40)) + [[[2.5]], [[0.0]]]
    expected = stats.permutation_test(
        (a[0], b[0]), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=20_000, rng=0
    )
    assert permutation_p(METRIC, runs(a), runs(b), resamples=20_000, seed=0) == pytest.approx(expected.pvalue, abs=0.01)
    assert permutation_p(METRIC, runs(a), runs(a), resamples=100, seed=0) == 1


def test_permutations_exchange_whole_corpora():
    """SARI of a corpus is no mean of rows: exchanging all answers is exchanging the arms."""
    rows = [
        METRICS["sari"].statistics([answer, answer], ["a b c", "a c"], [["a b"], ["a b"]]) for answer in ("a b", "c")
    ]
    arm, against = ({"a": np.stack([row] * 2)} for row in rows)
    p = permutation_p("sari", arm, against, resamples=400, seed=0)
    assert 0.4 < p < 0.6  # two examples: of four exchanges two are as large


@pytest.mark.parametrize(
    ("shift", "said"),
    [(3.0, "better than random: yes, +"), (-3.0, "better than random: no, worse, -"), (0.0, "random: not shown, ")],
)
def test_sentences(shift, said):
    arm, against = simulated(np.random.default_rng(4), 4 * shift)
    text = sentence(difference(METRIC, arm, against, seed=0), against="random", unit="SARI", level=0.95)
    assert said in text
    assert "of 5 seeds" in text
    single = difference(METRIC, {"a": arm["a"][:1]}, {"a": against["a"][:1]}, seed=0)
    assert "one seed cannot say" in sentence(single, against="random", unit="SARI", level=0.95)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"margin": -1.0}, "margin is -1.0"),
        ({"level": 1.0}, "level is 1.0"),
        ({"against": {"b": np.zeros((2, 3, 2))}}, "give the same ones"),
        ({"against": {"a": np.zeros((2, 4, 2))}}, r"a: runs have shapes \(2, 3, 2\) and \(2, 4, 2\)"),
    ],
)
def test_differences_refuse_what_has_no_meaning(arguments, message):
    good = runs(np.ones((2, 3)))
    with pytest.raises(ValueError, match=message):
        difference(METRIC, **{"arm": good, "against": good, "seed": 0} | arguments)
