"""Draws against their laws (chi-square or binomial, level 1e-4, fixed keys), and cases whose answer is known."""

from __future__ import annotations

import itertools
import re

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2, norm

from deft_tsds.sampling import (
    generator_of,
    inclusion_probabilities,
    largest_remainder,
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
