"""Draws against their laws (chi-square or binomial, level 1e-4, fixed keys), and cases whose answer is known."""

from __future__ import annotations

import itertools
import math
import re

import jax
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, norm

from deft_tsds.apportion import divide_budget, largest_remainder
from deft_tsds.sampling import (
    generator_of,
    inclusion_probabilities,
    sample,
    sample_stratified,
)

KEY = jax.random.key(0)
LEVEL = 1e-4


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def assert_binomial(counts, draws, probabilities):
    """Each count within its two-sided bound at LEVEL / rows: at LEVEL together, however the rows depend."""
    certain = (probabilities == 0) | (probabilities == 1)
    np.testing.assert_array_equal(counts[certain], draws * probabilities[certain])
    p = probabilities[~certain]
    z = (counts[~certain] - draws * p) / np.sqrt(draws * p * (1 - p))
    assert np.abs(z).max() < norm.ppf(1 - LEVEL / (2 * len(p)))


def test_with_replacement_follows_the_probabilities():
    p = np.array([0.5, 0.25, 0.0, 0.2, 0.05])
    rows = sample(p, 40_000, key=KEY, replace=True)
    counts = np.bincount(rows, minlength=5)
    assert rows.dtype == np.int64
    assert counts[2] == 0
    expected = 40_000 * p[p > 0]
    assert ((counts[p > 0] - expected) ** 2 / expected).sum() < chi2.ppf(1 - LEVEL, 3)


@pytest.mark.parametrize(
    ("p", "budget"), [((0.1, 0.2, 0.3, 0.4), 2), ((0.7, 0.1, 0.1, 0.05, 0.05), 3), ((0.25,) * 4, 1)]
)
def test_without_replacement_follows_the_inclusion_probabilities(p, budget):
    draws = 2000
    pi = inclusion_probabilities(p, budget)
    counts = np.zeros(len(p))
    for key in keys(draws):
        rows = sample(p, budget, key=key)
        assert len(set(rows.tolist())) == budget
        counts[rows] += 1
    assert_binomial(counts, draws, pi)


def test_uniform_pairs_are_all_drawn_alike():
    """With equal probabilities, systematic sampling in random order is simple random sampling: all pairs alike."""
    pairs = {pair: 0 for pair in itertools.combinations(range(5), 2)}
    for key in keys(2000, seed=1):
        pairs[tuple(sample(np.full(5, 0.2), 2, key=key).tolist())] += 1
    counts = np.array(list(pairs.values()))
    assert ((counts - 200) ** 2 / 200).sum() < chi2.ppf(1 - LEVEL, 9)


def test_inclusion_probabilities_by_hand():
    np.testing.assert_allclose(inclusion_probabilities([0.1, 0.2, 0.3, 0.4], 2), [0.2, 0.4, 0.6, 0.8])
    # 3 * 0.7 > 1: row 0 is certain, and the two rows left to draw are shared out as 0.1 : 0.1 : 0.05 : 0.05 of 0.3.
    np.testing.assert_allclose(inclusion_probabilities([0.7, 0.1, 0.1, 0.05, 0.05], 3), [1, 2 / 3, 2 / 3, 1 / 3, 1 / 3])
    np.testing.assert_array_equal(inclusion_probabilities([0.5, 0, 0.5], 2), [1, 0, 1])


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(0, 10**6), st.floats(0, 6), st.data())
def test_any_probabilities(n, seed, power, data):
    p = np.random.default_rng(seed).random(n) ** power
    p[np.random.default_rng(seed).random(n) < 0.3] = 0
    p[0] = max(p[0], 1e-3)
    p /= p.sum()
    support = int((p > 0).sum())
    budget = data.draw(st.integers(1, support))
    pi = inclusion_probabilities(p, budget)
    assert pi.sum() == pytest.approx(budget)
    assert (pi <= 1).all()
    assert ((pi > 0) == (p > 0)).all()
    order = np.argsort(p)
    assert (np.diff(pi[order]) >= -1e-12).all()  # a likelier row is never less likely to be chosen
    ratio = pi[(pi > 0) & (pi < 1)] / p[(pi > 0) & (pi < 1)]
    np.testing.assert_allclose(ratio, ratio[:1].repeat(len(ratio)), rtol=1e-9)
    rows = sample(p, budget, key=jax.random.key(seed))
    assert rows.shape == (budget,)
    assert (np.diff(rows) > 0).all()
    assert (p[rows] > 0).all()
    assert set(np.flatnonzero(pi == 1)) <= set(rows)


def test_whole_support_is_taken_exactly():
    p = np.array([0.0, 1e-9, 0.4, 0.6 - 1e-9, 0.0])
    np.testing.assert_array_equal(sample(p, 3, key=KEY), [1, 2, 3])


def test_large_and_skewed():
    p = 1 / np.arange(1, 200_001) ** 1.2
    p /= p.sum()
    rows = sample(p, 50_000, key=KEY)
    assert len(np.unique(rows)) == 50_000
    assert inclusion_probabilities(p, 50_000).sum() == pytest.approx(50_000)


@pytest.mark.parametrize("replace", [False, True])
def test_same_key_same_rows(replace):
    p = np.full(100, 0.01)
    a, b = (sample(p, 20, key=jax.random.key(5), replace=replace) for _ in range(2))
    np.testing.assert_array_equal(a, b)
    assert (a != sample(p, 20, key=jax.random.key(6), replace=replace)).any()


def test_float32_probabilities_and_jax_arrays():
    p = np.random.default_rng(0).random(1000).astype(np.float32)
    p /= p.sum()
    np.testing.assert_array_equal(sample(p, 9, key=KEY), sample(jax.numpy.asarray(p), 9, key=KEY))


# Costs


def all_outcomes(pi, costs, budget):
    """Every set that the duels can end in, with its probability: all orders of the rows, both ends of each duel."""
    outcomes: dict[tuple[int, ...], float] = {}

    def go(value, rows, chance):
        rows = [j for j in rows if 1e-9 < value[j] < 1 - 1e-9]
        if len(rows) > 1:
            a, b = rows[0], rows[1]
            gain = min((1 - value[a]) * costs[a], value[b] * costs[b])
            loss = min(value[a] * costs[a], (1 - value[b]) * costs[b])
            for move, share in ((gain, loss / (gain + loss)), (-loss, gain / (gain + loss))):
                moved = dict(value)
                moved[a] += move / costs[a]
                moved[b] -= move / costs[b]
                go(moved, rows, chance * share)
            return
        chosen = tuple(j for j in sorted(value) if value[j] >= 1 - 1e-9)
        assert sum(costs[j] for j in chosen) <= budget + 1e-6
        outcomes[chosen] = outcomes.get(chosen, 0) + chance

    orders = list(itertools.permutations(range(len(pi))))
    for order in orders:  # three rows: the first two meet, and whoever is left meets the third
        go(dict(enumerate(pi)), order, 1 / len(orders))
    return outcomes


def assert_chi_square(seen: dict, law: dict, draws: int) -> None:
    assert set(seen) <= set(law)
    statistic = sum((seen.get(outcome, 0) - draws * p) ** 2 / (draws * p) for outcome, p in law.items())
    assert statistic < chi2.ppf(1 - LEVEL, len(law) - 1)


@pytest.mark.parametrize(("p", "costs", "budget"), [((0.5, 0.3, 0.2), (2, 3, 5), 6), ((0.2, 0.3, 0.5), (4, 7, 2), 8)])
def test_costs_follow_the_law_of_the_duels(p, costs, budget):
    pi = inclusion_probabilities(p, budget, costs=costs)
    assert pi @ costs == pytest.approx(budget)
    law = all_outcomes(pi, costs, budget)
    expected = sum(chance * np.isin(np.arange(3), chosen) for chosen, chance in law.items())
    shares = pi - expected  # what the row that is dropped takes from each
    assert (shares > -1e-9).all()
    assert shares.sum() < 1
    seen: dict[tuple[int, ...], int] = {}
    for key in keys(2000, seed=4):
        chosen = tuple(sample(p, budget, key=key, costs=costs).tolist())
        seen[chosen] = seen.get(chosen, 0) + 1
    assert_chi_square(seen, law, 2000)


def test_repeated_draws_stop_before_the_budget_is_passed():
    """Exact law over sequences: row 0 costs 1, row 1 costs 2, the budget is 3; row 2 costs too much."""
    p, q = 0.4 / 0.9, 0.5 / 0.9
    law = {(0, 0, 0): p**3, (0, 0): p * p * q, (0, 1): 2 * p * q, (1,): q * q}
    seen: dict[tuple[int, ...], int] = {}
    for key in keys(2000, seed=5):
        rows = tuple(sample([0.4, 0.5, 0.1], 3, key=key, costs=[1, 2, 4], replace=True).tolist())
        seen[rows] = seen.get(rows, 0) + 1
    assert_chi_square(seen, law, 2000)


def test_equal_costs_are_a_budget_of_rows():
    p = np.random.default_rng(2).dirichlet(np.ones(40))
    for key in keys(20, seed=6):
        rows = sample(p, 12, key=key)
        np.testing.assert_array_equal(sample(p, 12, key=key, costs=np.ones(40)), rows)
        np.testing.assert_array_equal(sample(p, 84, key=key, costs=np.full(40, 7.0)), rows)
    np.testing.assert_allclose(
        inclusion_probabilities(p, 84, costs=np.full(40, 7.0)), inclusion_probabilities(p, 12), rtol=1e-12
    )


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 50), st.integers(0, 10**6), st.booleans(), st.booleans(), st.data())
def test_any_costs(n, seed, whole, replace, data):
    rng = np.random.default_rng(seed)
    p = rng.random(n) ** rng.integers(1, 6) * (rng.random(n) < 0.8)
    p[0] += 1e-3
    p /= p.sum()
    costs = rng.integers(1, 60, n) if whole else rng.random(n) * 60 + 1e-3
    support = p > 0
    least, most = math.ceil(costs[support].min()), math.floor(costs[support].sum())
    assume(least <= most)
    budget = data.draw(st.integers(least, most))
    rows = sample(p, budget, key=jax.random.key(seed), costs=costs, replace=replace)
    spent = costs[rows].sum()
    assert 0 < spent <= budget * (1 if whole else 1 + 1e-12)
    assert support[rows].all()
    out = support if replace else support & ~np.isin(np.arange(n), rows)
    assert not out.any() or budget - spent < costs[out].max() + 1e-6
    if not replace:
        assert (np.diff(rows) > 0).all()
        pi = inclusion_probabilities(p, budget, costs=costs)
        assert ((pi >= 0) & (pi <= 1)).all()
        assert (pi[costs > budget] == 0).all()
        if costs[support & (costs <= budget)].sum() > budget:
            assert pi @ costs == pytest.approx(budget)
            share = (pi > 0) & (pi < 1)
            np.testing.assert_allclose(pi[share] / p[share], (pi[share] / p[share])[:1].repeat(share.sum()), rtol=1e-9)


def test_costs_at_the_edges():
    # A row that costs more than the budget is left out, and then the others are all that can be had.
    np.testing.assert_array_equal(sample([0.5, 0.4, 0.1], 5, key=KEY, costs=[9, 1, 2]), [1, 2])
    np.testing.assert_array_equal(sample([0.5, 0.5], 3, key=KEY, costs=[1, 2]), [0, 1])
    with pytest.raises(ValueError, match="no row with a probability above 0 costs as little as its part of 1"):
        sample([0.5, 0.5, 0], 1, key=KEY, costs=[2, 3, 1])
    with pytest.raises(ValueError, match="cost 3 together, 7 less than the budget of 10: lower the budget"):
        sample([0.5, 0.5, 0], 10, key=KEY, costs=[1, 2, 50])
    with pytest.raises(ValueError, match="costs, row 1, is 0"):
        sample([0.5, 0.5], 1, key=KEY, costs=[1, 0])


# Groups

TASKS = np.array(["a"] * 6 + ["b"] * 3 + ["c"] * 3)
TASK_P = np.array([0.05] * 6 + [0.1] * 3 + [0.4, 0, 0])


def drawn_by_task(budget, p=TASK_P, **options):
    rows = sample(p, budget, key=KEY, groups=TASKS, **options)
    return [int((TASKS[rows] == task).sum()) for task in "abc"]


def test_groups_by_hand():
    # Masses 0.3, 0.3, 0.4; "c" has one row with a probability above 0, so that the rest goes to the other two.
    assert drawn_by_task(7) == [3, 3, 1]
    assert drawn_by_task(7, quotas={"a": 5}) == [5, 1, 1]
    assert drawn_by_task(
        7, quotas={"a": 0, "c": 1}, p=np.array([0.05] * 6 + [0.1] * 3 + [0.2, 0.1, 0.1]), replace=True
    )[::2] == [0, 1]
    assert drawn_by_task(6, quotas={"a": 0.5, "b": 1 / 3}) == [3, 2, 1]
    assert drawn_by_task(6, caps={"b": 1}) == [4, 1, 1]
    assert drawn_by_task(6, caps={"b": 0.2}) == [4, 1, 1]
    assert drawn_by_task(6, quotas="equal") == [3, 2, 1]  # c lacks one, which goes to the first
    assert drawn_by_task(6, quotas="equal", caps={"a": 2}) == [2, 3, 1]
    assert drawn_by_task(60, quotas="equal", replace=True) == [20, 20, 20]
    assert drawn_by_task(30, quotas={"c": 0.8}, caps={"a": 4}, replace=True) == [3, 3, 24]


def test_the_draw_within_a_group_keeps_its_law():
    draws = 1000
    pi = inclusion_probabilities(TASK_P, 6, groups=TASKS, quotas={"b": 2}, caps={"a": 3})
    np.testing.assert_allclose(pi, [0.5] * 6 + [2 / 3] * 3 + [1, 0, 0])
    counts = np.zeros(12)
    for key in keys(draws, seed=7):
        counts[sample(TASK_P, 6, key=key, groups=TASKS, quotas={"b": 2}, caps={"a": 3})] += 1
    assert_binomial(counts, draws, pi)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 40), st.floats(0, 0.4), st.integers(0, 8), st.booleans())
def test_any_quotas_and_caps(seed, budget, share, cap, costly):
    rng = np.random.default_rng(seed)
    n = 120
    groups = rng.integers(0, 4, n)
    p = rng.dirichlet(np.ones(n))
    costs = rng.integers(1, 3, n) if costly else None
    rows = sample(p, budget, key=jax.random.key(seed), groups=groups, quotas={2: share}, caps={0: cap}, costs=costs)
    spent = np.bincount(groups[rows], None if costs is None else costs[rows], minlength=4)
    wanted = share * budget
    assert spent[0] <= cap
    assert spent.sum() <= budget
    slack = 2 if costly else 0  # a row that does not fit costs at most 2, in each group
    assert spent.sum() >= budget - 4 * slack
    assert wanted - 1 - slack <= spent[2] <= wanted + 1
    order = rng.permutation(n)
    moved = inclusion_probabilities(p[order], budget, groups=groups[order], quotas={2: share}, caps={0: cap})
    np.testing.assert_allclose(
        moved, inclusion_probabilities(p, budget, groups=groups, quotas={2: share}, caps={0: cap})[order], atol=1e-12
    )


def test_quotas_that_cannot_be_kept():
    cases = [
        ({"quotas": {"z": 1}}, "quotas names the group 'z', which no candidate has: there are 'a', 'b', 'c'"),
        ({"caps": {"z": 1}}, "caps names the group 'z'"),
        ({"quotas": {"a": 5, "b": 3}}, "quotas add up to more than the budget of 7"),
        ({"quotas": {"a": 0.8, "b": 0.4}}, "quotas add up to more than the budget of 7"),
        ({"quotas": {"b": 4}}, "quotas asks for 4 rows of group 'b', which can give 3 at most"),
        ({"quotas": {"b": 2}, "caps": {"b": 1}}, "quotas asks for 2 rows of group 'b', which can give 1 at most"),
        ({"quotas": {"a": 2, "b": 2, "c": 1}}, "quotas take 5 rows of the budget of 7, and the other groups can give"),
        ({"quotas": {"a": 2, "b": 2}}, "the other groups can give only 1 rows of the 3 that are left"),
        ({"caps": {"a": 2}}, "the groups can give only 6 rows of the 7 that are left"),
        ({"quotas": {"a": 1.5}}, r"quotas\['a'\] is 1.5: give a number at least 0 and at most 1"),
        ({"quotas": {"a": -1}}, r"quotas\['a'\] is -1"),
        ({"caps": {"a": True}}, r"caps\['a'\] is True"),
        ({"quotas": "all"}, "quotas is 'all'"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            drawn_by_task(7, **options)
    with pytest.raises(ValueError, match="quotas and caps need groups"):
        sample([1.0], 1, key=KEY, caps={"a": 1})
    with pytest.raises(ValueError, match=r"groups has shape \(2,\)"):
        sample([1.0], 1, key=KEY, groups=["a", "b"])


def test_shares_are_made_whole_together():
    names, mass, room = ["a", "b", "c"], [1, 1, 1], [99, 99, 99]
    assert divide_budget(10, names, mass, room, quotas={"a": 0.25, "b": 0.25, "c": 0.5}).tolist() == [3, 2, 5]
    assert divide_budget(10, names, mass, room, quotas={"a": 0.47, "b": 0.33, "c": 0.2}).tolist() == [5, 3, 2]
    assert divide_budget(10, names, mass, room, quotas={"a": 4, "b": 0.25}).tolist() == [4, 3, 3]
    assert divide_budget(10, names, mass, room, quotas={"a": 10, "b": 0.0}).tolist() == [10, 0, 0]
    assert divide_budget(10, names, [0, 1, 1], room, quotas={"a": 1}).tolist() == [1, 5, 4]


# Filling up


def test_fill_by_hand():
    p = [0.5, 0.5, 0, 0, 0, 0]
    np.testing.assert_array_equal(sample(p, 4, key=KEY, fill=[5, 0, 3, 2]), [0, 1, 3, 5])
    np.testing.assert_array_equal(inclusion_probabilities(p, 4, fill=[5, 0, 3, 2]), [1, 1, 0, 1, 0, 1])
    # Where the support is large enough, fill changes nothing.
    np.testing.assert_array_equal(sample(p, 1, key=KEY, fill=[5, 4]), sample(p, 1, key=KEY))
    costs = [1, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal(sample(p, 11, key=KEY, fill=[3, 2, 4], costs=costs), [0, 1, 2, 3])
    np.testing.assert_array_equal(sample(p, 8, key=KEY, fill=[3, 2, 4], costs=costs), [0, 1, 3])  # row 2 does not fit
    groups = ["a", "b", "a", "b", "a", "b"]
    rows = sample(p, 4, key=KEY, fill=[5, 4, 3, 2], groups=groups, quotas="equal")
    np.testing.assert_array_equal(rows, [0, 1, 4, 5])


def test_fill_errors():
    p = [0.5, 0.5, 0, 0]
    with pytest.raises(ValueError, match="those of fill hold 3 together, less than the budget of 4"):
        sample(p, 4, key=KEY, fill=[1, 2])
    for bad in ([2, 2], [4], [-1]):
        with pytest.raises(ValueError, match="fill must name rows from 0 to 3, each once"):
            sample(p, 3, key=KEY, fill=bad)
    with pytest.raises(ValueError, match="fill must be a vector of row numbers"):
        sample(p, 3, key=KEY, fill=[0.5])
    with pytest.raises(ValueError, match="fill is for draws without replacement"):
        sample(p, 3, key=KEY, fill=[2], replace=True)


def test_errors():
    with pytest.raises(
        ValueError, match=re.escape("only 2 of 4 rows have a probability above 0, 1 fewer than")
    ) as error:
        sample([0.5, 0.5, 0, 0], 3, key=KEY)
    for way_out in ("lower alpha", "raise neighbors", "replace=True"):
        assert way_out in str(error.value)
    with pytest.raises(ValueError, match=r"probabilities, row 1, is -0\.5"):
        sample([1.5, -0.5], 1, key=KEY)
    with pytest.raises(ValueError, match="probabilities, row 0, is nan"):
        sample([np.nan, 1], 1, key=KEY)
    with pytest.raises(ValueError, match="sum to 3, not 1"):
        sample([1, 2], 1, key=KEY)
    with pytest.raises(ValueError, match="give a vector"):
        sample([[1.0]], 1, key=KEY)
    with pytest.raises(ValueError, match="budget is 0"):
        sample([1.0], 0, key=KEY)
    for bad in (0, keys(2), np.zeros(2, np.uint32)):
        with pytest.raises(ValueError, match=re.escape("give jax.random.key(seed)")):
            sample([1.0], 1, key=bad)  # type: ignore[arg-type]


def test_stratified_counts_and_law():
    pi = np.zeros(10)
    groups = np.array(["a"] * 6 + ["b"] * 3 + ["c"])
    counts = np.zeros(10)
    for key in keys(1000, seed=3):
        rows, pi = sample_stratified(groups, 5, key=key)
        assert "".join(groups[rows]) == "aaabb"
        counts[rows] += 1
    # 5 of 10: shares 3, 1.5, 0.5; the unit left goes to the lower of the two equal remainders, b.
    np.testing.assert_allclose(pi, [0.5] * 6 + [2 / 3] * 3 + [0])
    assert_binomial(counts, 1000, pi)
    assert len(sample_stratified(groups, 0, key=KEY)[0]) == 0
    np.testing.assert_array_equal(sample_stratified(groups, 10, key=KEY)[0], np.arange(10))


def test_largest_remainder_by_hand():
    assert largest_remainder([47, 16, 15.8, 12, 6.1, 3.1], 10, [10] * 6).tolist() == [5, 2, 1, 1, 1, 0]
    assert largest_remainder([1, 1, 1], 10, [9, 9, 9]).tolist() == [4, 3, 3]  # ties to the lower index
    assert largest_remainder([1, 1, 1], 10, [1, 9, 9]).tolist() == [1, 5, 4]
    assert largest_remainder([1, 1, 1], 10, [1, 2, 9]).tolist() == [1, 2, 7]
    assert largest_remainder([0.5, 0.5], 7, [7, 7]).tolist() == [4, 3]
    assert largest_remainder([0, 1], 3, [5, 3]).tolist() == [0, 3]
    assert largest_remainder([], 0, []).tolist() == []
    assert largest_remainder([1e308, 1e308, 1e300], 4, [9, 9, 9]).tolist() == [2, 2, 0]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 50)), min_size=1, max_size=12), st.data())
def test_largest_remainder_laws(parts, data):
    shares, capacity = np.array([p[0] for p in parts]), np.array([p[1] for p in parts])
    total = data.draw(st.integers(0, int(capacity[shares > 0].sum())))
    counts = largest_remainder(shares, total, capacity)
    assert counts.sum() == total
    assert (counts <= capacity).all()
    assert (counts[shares == 0] == 0).all()
    # Among parts below their capacity, a larger share never gets less.
    free = np.flatnonzero((counts < capacity) & (shares > 0))
    for i, j in itertools.permutations(free, 2):
        if shares[i] > shares[j]:
            assert counts[i] >= counts[j]


def test_largest_remainder_errors():
    with pytest.raises(ValueError, match="hold only 5"):
        largest_remainder([1, 0, 1], 6, [2, 9, 3])
    with pytest.raises(ValueError, match="one length"):
        largest_remainder([1, 1], 1, [1])
    with pytest.raises(ValueError, match="finite and >= 0"):
        largest_remainder([1, -1], 1, [1, 1])
    with pytest.raises(ValueError, match="total is -1"):
        largest_remainder([1], -1, [1])


def test_generator_depends_on_the_key_alone():
    assert generator_of(jax.random.key(1)).random() == generator_of(jax.random.key(1)).random()
    assert generator_of(jax.random.key(1)).random() != generator_of(jax.random.key(2)).random()
