"""Selectors that cover, spread or clean, each against a plain loop or brute force."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import numpy as np
import pytest
from oracles import brute_distances

import deft_tsds as dt
from deft_tsds.selectors import Diverse, FacilityLocation, Herding, KCenter, Quality, SemDeDup
from deft_tsds.selectors.greedy import squared_distances
from deft_tsds.selectors.pairs import pair_means
from deft_tsds.selectors.semdedup import most_similar_before

KEY = jax.random.key(0)


def rows_of(n=60, d=5, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) + 2 * rng.normal(size=(3, d))[rng.integers(3, size=n)]
    return x.astype(np.float32)


def unit(x):
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def chosen(selector, budget, candidates, key=KEY, **options):
    return dt.select(candidates, selector=selector, budget=budget, key=key, **options)


def by_step(selection):
    """The rows in the order in which they were chosen."""
    return selection.indices[np.argsort([reason["step"] for reason in selection.reasons])].tolist()


def test_equal_rows_have_equal_distances_wherever_they_are():
    rng = np.random.default_rng(0)
    for n, d in ((97, 384), (1000, 33)):
        x = rng.normal(size=(n, d)).astype(np.float32)
        x[rng.choice(n, 9, replace=False)] = x[2]
        copies = np.flatnonzero((x == x[2]).all(axis=1))
        found = np.asarray(jax.jit(squared_distances)(x, x[5]))
        assert len(set(found[copies].tolist())) == 1
        assert (np.asarray(jax.jit(squared_distances)(x, x[2]))[copies] == 0).all()


# KCenter


def test_k_center_against_a_plain_loop():
    x = unit(rows_of())
    taken = [int(np.linalg.norm(x - x.mean(axis=0), axis=1).argmin())]
    distances = [2.0]
    while len(taken) < 20:
        nearest = brute_distances(x, x[taken]).min(axis=1)
        taken.append(int(nearest.argmax()))
        distances.append(nearest.max())
    selection = chosen(KCenter(), 20, rows_of())
    assert by_step(selection) == taken
    np.testing.assert_allclose(np.sort(selection.scores)[::-1], distances, rtol=1e-5)
    assert selection.info["radius"] == pytest.approx(brute_distances(x, x[taken]).min(axis=1).max(), rel=1e-5)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("budget", [1, 2, 4])
def test_k_center_is_within_twice_the_optimum(seed, budget):
    x = rows_of(12, 3, seed)
    distance = brute_distances(unit(x), unit(x))
    best = min(distance[:, list(some)].min(axis=1).max() for some in itertools.combinations(range(12), budget))
    info = chosen(KCenter(), budget, x).info
    assert best <= info["radius"] + 1e-6 <= 2 * best + 2e-6
    assert info["least_radius_at_least"] <= best + 1e-6


# Diverse


def test_diverse_takes_equal_parts_of_the_groups():
    groups = np.array(["a"] * 40 + ["b"] * 15 + ["c"] * 5)
    selection = chosen(Diverse(), 30, rows_of(), groups=groups)
    assert selection.info["groups"] == {"a": 13, "b": 12, "c": 5}  # the 5 that c lacks go to the others
    assert [reason["group"] for reason in selection.reasons] == ["a"] * 13 + ["b"] * 12 + ["c"] * 5


def test_diverse_draws_by_squared_distance():
    """The pair frequencies of the first two of four rows: 1/4 sum of d^2 / total, both ways."""
    x = np.array([[1, 0], [0.9, 0.5], [0, 1], [-1, 0.2]], np.float32)
    squared = brute_distances(unit(x), unit(x)) ** 2
    share = squared / squared.sum(axis=1, keepdims=True)
    draws = 600
    seen = np.zeros((4, 4))
    for key in jax.random.split(KEY, draws):
        i, j = chosen(Diverse(), 2, x, key=key).indices
        seen[i, j] += 1
    for i, j in itertools.combinations(range(4), 2):
        chance = (share[i, j] + share[j, i]) / 4
        assert abs(seen[i, j] / draws - chance) < 5 * np.sqrt(chance / draws)


def test_diverse_takes_copies_last():
    x = rows_of()
    x[10:40] = x[3]
    distinct = 60 - 30
    selection = chosen(Diverse(), distinct, x)
    assert len(np.unique(x[selection.indices], axis=0)) == distinct


# FacilityLocation


def value_of(similarity, some):
    return similarity[:, list(some)].max(axis=1).mean()


def plain_greedy(similarity, budget):
    taken, gains = [], []
    for _ in range(budget):
        base = value_of(similarity, taken) if taken else 0.0
        gain = [value_of(similarity, [*taken, j]) - base if j not in taken else -1 for j in range(len(similarity))]
        taken.append(int(np.argmax(np.array(gain, np.float32))))
        gains.append(max(gain))
    return taken, gains


def test_facility_location_is_the_plain_greedy():
    similarity = (1 + unit(rows_of()) @ unit(rows_of()).T) / 2
    taken, gains = plain_greedy(similarity, 25)
    selection = chosen(FacilityLocation(), 25, rows_of())
    assert by_step(selection) == taken
    np.testing.assert_allclose(np.sort(selection.scores)[::-1], gains, rtol=1e-4, atol=1e-7)
    assert selection.info["value"] == pytest.approx(value_of(similarity, taken), rel=1e-6)
    assert selection.info["updates"] < 60 * 25  # fewer than the plain greedy works out


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("budget", [1, 3])
def test_facility_location_within_its_bound_of_brute_force(seed, budget):
    x = rows_of(12, 3, seed)
    similarity = (1 + unit(x) @ unit(x).T) / 2
    best = max(value_of(similarity, some) for some in itertools.combinations(range(12), budget))
    info = chosen(FacilityLocation(), budget, x).info
    assert (1 - 1 / np.e) * best <= info["value"] <= best + 1e-6
    assert best <= info["best_at_most"] + 1e-6
    assert info["certified"] * best <= info["value"] + 1e-6
    if budget == 1:
        assert info["value"] == pytest.approx(best)


def test_facility_location_of_copies_takes_the_lower_row():
    x = rows_of()
    x[40:] = x[:20]
    taken = by_step(chosen(FacilityLocation(), 10, x))
    assert max(taken) < 40


def test_facility_location_on_a_sample_says_how_far_off_it_may_be():
    x = rows_of(400)
    similarity = (1 + unit(x) @ unit(x).T) / 2
    for seed in range(5):
        selection = chosen(FacilityLocation(sample=100), 20, x, key=jax.random.key(seed))
        info = selection.info
        assert (info["compared_with"], info["with_certainty"]) == (100, 0.99)
        assert info["error_of_a_mean_at_most"] == pytest.approx(np.sqrt(np.log(200) / 200))
        assert abs(value_of(similarity, selection.indices) - info["value"]) < info["error_of_a_mean_at_most"]
    assert "error_of_a_mean_at_most" not in chosen(FacilityLocation(sample=400), 3, x).info


def test_pair_means_do_not_depend_on_blocks(monkeypatch):
    x = rows_of(300)
    plain = pair_means(x, unit(x), lambda c, _: np.maximum(c, 0))
    np.testing.assert_allclose(plain, np.maximum(unit(x) @ unit(x).T, 0).mean(axis=1), rtol=1e-6)
    monkeypatch.setattr("deft_tsds.selectors.pairs._LEFT", 7)
    monkeypatch.setattr("deft_tsds.selectors.pairs._RIGHT", 13)
    np.testing.assert_array_equal(pair_means(x, unit(x), lambda c, _: np.maximum(c, 0)), plain)


# Herding


def plain_herding(x, followed, h, budget):
    def kernel(a, b):
        return np.exp(-(brute_distances(a, b) ** 2) / (2 * h * h))

    expected = kernel(x, followed).mean(axis=1)
    taken = []
    for t in range(budget):
        value = expected - kernel(x, x[taken]).sum(axis=1) / (t + 1) if taken else expected.copy()
        value[taken] = -np.inf
        taken.append(int(value.argmax()))
    chosen_rows = x[taken]
    mmd = kernel(chosen_rows, chosen_rows).mean() - 2 * kernel(chosen_rows, followed).mean()
    return taken, mmd + kernel(followed, followed).mean()


@pytest.mark.parametrize("h", [0.3, 1.0])
def test_herding_against_a_plain_loop(h):
    taken, mmd = plain_herding(unit(rows_of()), unit(rows_of()), h, 30)
    selection = chosen(Herding(bandwidth=h), 30, rows_of())
    assert by_step(selection) == taken
    assert selection.info["mmd_squared"] == pytest.approx(mmd, abs=1e-6)
    queries = rows_of(5, seed=1)
    taken, mmd = plain_herding(unit(rows_of()), unit(queries), h, 12)
    selection = dt.select(rows_of(), queries, selector=Herding("queries", bandwidth=h), budget=12, key=KEY)
    assert by_step(selection) == taken
    assert selection.info["mmd_squared"] == pytest.approx(mmd, abs=1e-6)


def test_herding_follows_the_pool_better_than_chance():
    herded = chosen(Herding(), 15, rows_of()).info["mmd_squared"]
    x = unit(rows_of())
    kernel = np.exp(-(brute_distances(x, x) ** 2) / 0.5)
    rng = np.random.default_rng(0)
    drawn = [rng.choice(60, 15, replace=False) for _ in range(50)]
    assert herded < min(kernel[np.ix_(r, r)].mean() - 2 * kernel[r].mean() + kernel.mean() for r in drawn)


def test_parameters_that_are_real_do_not_recompile():
    from deft_tsds.selectors.greedy import _steps

    x = rows_of()
    chosen(Herding(bandwidth=0.4), 5, x)
    chosen(Quality(x[:, 0], diversity=0.2), 5, x)
    compiled: Any = _steps
    before = compiled._cache_size()
    chosen(Herding(bandwidth=0.7), 40, x)
    chosen(Quality(x[:, 1], diversity=0.9), 33, x)
    assert compiled._cache_size() == before


# Quality


def test_quality_against_a_plain_loop():
    x = rows_of()
    scores = np.round(np.random.default_rng(3).normal(size=60), 1)  # with ties
    rank = np.array([((scores < s).sum() + ((scores == s).sum() - 1) / 2) / 59 for s in scores])
    cosine = unit(x) @ unit(x).T
    for diversity in (0.3, 0.8, 1.0):
        taken = []
        for _ in range(20):
            similar = cosine[:, taken].max(axis=1) if taken else np.full(60, -1.0)
            worth = (1 - diversity) * rank - diversity * similar
            worth[taken] = -np.inf
            taken.append(int(worth.argmax()))
        selection = chosen(Quality(scores, diversity=diversity), 20, x)
        assert by_step(selection) == taken
        for row, reason in zip(selection.indices.tolist(), selection.reasons, strict=True):
            assert reason["quality"] == scores[row]
            earlier = taken[: reason["step"] - 1]
            if earlier:
                assert reason["similarity"] == pytest.approx(cosine[row, earlier].max(), abs=1e-5)


def test_quality_without_diversity_is_the_highest_scores():
    scores = np.random.default_rng(3).integers(5, size=60)
    selection = chosen(Quality(scores, diversity=0), 20, rows_of())
    np.testing.assert_array_equal(selection.indices, np.sort(np.argsort(-scores, kind="stable")[:20]))


def test_quality_refuses():
    x = rows_of()
    with pytest.raises(ValueError, match="scores, row 4, is nan"):
        Quality(np.where(np.arange(60) == 4, np.nan, 1.0))
    with pytest.raises(ValueError, match=r"scores has shape \(60, 5\)"):
        Quality(x)
    with pytest.raises(ValueError, match="diversity is 2"):
        Quality(x[:, 0], diversity=2)
    with pytest.raises(ValueError, match="Quality has 59 scores for 60 candidates"):
        chosen(Quality(x[:-1, 0]), 3, x)


# SemDeDup


def test_most_similar_before_against_brute_force(monkeypatch):
    x = rows_of(130)
    x[70:90] = x[:20]
    units = unit(x).astype(np.float32)
    cosine = np.tril(units.astype(np.float64) @ units.T.astype(np.float64), -1).astype(np.float32)
    cosine[np.triu_indices(130)] = -np.inf
    for block in (512, 16):
        monkeypatch.setattr("deft_tsds.selectors.semdedup._BLOCK", block)
        found, places = most_similar_before(units)
        np.testing.assert_array_equal(found[1:], cosine.max(axis=1)[1:])
        np.testing.assert_array_equal(places[1:], cosine.argmax(axis=1)[1:])
        assert (found[0], places[0]) == (-1, -1)


@pytest.mark.parametrize("keep", ["hard", "easy"])
def test_semdedup_against_brute_pairs(keep):
    """Clusters and orders by the reasons of a choice of everything; duplicates by all pairs."""
    x = rows_of()
    x[40:50] = x[:10] + 0.01 * np.random.default_rng(5).normal(size=(10, 5)).astype(np.float32)
    everything = chosen(SemDeDup(clusters=3, keep=keep), 60, x)
    cluster = np.array([reason["cluster"] for reason in everything.reasons])
    cosine = unit(x) @ unit(x).T
    stays, most = [], np.full(60, -1.0)
    for c in range(3):
        rows = np.flatnonzero(cluster == c)
        mean = unit(x)[rows].mean(axis=0)
        distance = 1 - unit(x)[rows] @ mean / np.linalg.norm(mean)
        order = rows[np.argsort(distance if keep == "easy" else -distance, kind="stable")]
        for place, row in enumerate(order):
            if place:
                most[row] = cosine[row, order[:place]].max()
            if most[row] <= 1 - 0.001:
                stays.append(int(row))
    selection = chosen(SemDeDup(epsilon=0.001, clusters=3, keep=keep), 60, x)
    assert selection.indices.tolist() == sorted(stays)
    assert 40 < len(stays) < 60
    assert f"leaves {len(stays)} of 60 candidates" in selection.info["shortfall"]
    # Without epsilon: the rows with the least cosine to any before them.
    selection = chosen(SemDeDup(clusters=3, keep=keep), 30, x)
    np.testing.assert_array_equal(selection.indices, np.sort(np.argsort(most, kind="stable")[:30]))
    assert selection.info["epsilon"] == pytest.approx(1 - np.sort(most)[29], abs=1e-6)


def test_semdedup_draws_from_what_stays():
    x = rows_of()
    x[40:50] = x[:10]
    stays = chosen(SemDeDup(epsilon=1e-4, clusters=3), 60, x).indices
    assert len(np.unique(x[stays], axis=0)) == len(stays) == 50
    seen = set()
    for seed in range(3):
        some = chosen(SemDeDup(epsilon=1e-4, clusters=1), 20, x, key=jax.random.key(seed))
        assert len(np.unique(x[some.indices], axis=0)) == 20
        seen.add(tuple(some.indices.tolist()))
    assert len(seen) == 3


def test_refused_parameters():
    cases = [
        (FacilityLocation, {"sample": 0}, "sample is 0"),
        (Herding, {"toward": "test"}, "toward is 'test': choose one of pool, queries"),
        (Herding, {"bandwidth": 0}, "bandwidth is 0"),
        (Herding, {"sample": 0}, "sample is 0"),
        (SemDeDup, {"epsilon": 3}, "epsilon is 3"),
        (SemDeDup, {"clusters": 0}, "clusters is 0"),
        (SemDeDup, {"keep": "any"}, "keep is 'any': choose one of hard, easy, random"),
    ]
    for selector, options, message in cases:
        with pytest.raises(ValueError, match=message):
            selector(**options)


@pytest.mark.parametrize(
    "selector",
    [KCenter(), Diverse(), FacilityLocation(), Herding(), SemDeDup(clusters=3)],
    ids=lambda s: type(s).__name__,
)
def test_only_directions_count(selector):
    x = rows_of()
    scale = 2.0 ** np.random.default_rng(5).integers(-3, 4, size=(60, 1))  # powers of two: the unit rows stay the same
    plain, scaled = chosen(selector, 20, x), chosen(selector, 20, x * scale)
    np.testing.assert_array_equal(plain.indices, scaled.indices)
    assert plain.reasons == scaled.reasons
