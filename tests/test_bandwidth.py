from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deft_tsds.geometry import bandwidth
from deft_tsds.geometry.bandwidth import propose_bandwidth
from deft_tsds.transport.problem import Problem


def ordinary(seed, n=150, d=8):
    return np.random.default_rng(seed).normal(size=(n, d))


def with_copies(seed, near=15, exact=10):
    """Points about 1 apart and more, with near-copies about 0.01 away and exact copies."""
    points, rng = ordinary(seed), np.random.default_rng([seed, 1])
    moved = points[:near] + 0.01 * rng.normal(size=(near, 8)) / np.sqrt(8)
    return np.concatenate([points, moved, points[near : near + exact]])


def propose(points):
    points = np.asarray(points, dtype=np.float32)
    return propose_bandwidth(points, np.linalg.norm(points.astype(np.float64), axis=1))


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6))
def test_planted_copies_put_h_between_them_and_ordinary_neighbors(seed):
    points = with_copies(seed)
    h, found = propose(points)
    apart = np.linalg.norm(points[:, None] - points[None], axis=2)
    copies = apart[np.arange(15), 150 + np.arange(15)]
    ordinary_pairs = np.sort(apart[np.triu_indices(150, 1)])
    assert found["rule"] == "valley"
    assert copies.max() < h < ordinary_pairs[0] + 0.5 * (ordinary_pairs[len(ordinary_pairs) // 20] - ordinary_pairs[0])
    assert found["exact_copies"] == pytest.approx(20 / 175)
    # A few ordinary points may come close by chance, as stragglers do.
    assert 30 / 175 - 1e-9 <= found["near_copies"] <= 36 / 175
    assert found["message"].startswith("Of 175 points looked at, 11.4% have an exact copy and ")


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), d=st.sampled_from([1, 2, 8, 64]))
def test_without_copies_h_is_a_small_quantile(seed, d):
    points = ordinary(seed, 200, d)
    h, found = propose(points)
    if d > 1:  # on a line, points lie so irregularly that a valley by chance is no surprise
        assert found["rule"] == "quantile"
        assert found["valley"] is None
        apart = np.linalg.norm(points[:, None] - points[None], axis=2) + np.diag(np.full(200, np.inf))
        assert np.mean(apart.min(axis=1) < h) == pytest.approx(0.05, abs=0.011)
    assert h > 0


@pytest.mark.parametrize("times", [2, 5, 60])
def test_when_every_point_is_copied_h_lies_between_copies_and_points(times):
    points, rng = ordinary(7, 60), np.random.default_rng(8)
    copied = np.concatenate([points + 0.01 * rng.normal(size=points.shape) / np.sqrt(8) for _ in range(times)])
    h, found = propose(copied)
    apart = np.linalg.norm(points[:, None] - points[None], axis=2) + np.diag(np.full(60, np.inf))
    assert found["rule"] == "valley"
    assert found["near_copies"] == 1
    assert 0.02 < h < np.quantile(apart.min(axis=1), 0.05)


def test_exact_copies_alone_are_no_valley():
    points = ordinary(3)
    h, found = propose(np.concatenate([points, points]))
    assert found["rule"] == "quantile"
    assert found["exact_copies"] == 1
    assert h == pytest.approx(propose(points)[0], rel=0.1)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), power=st.integers(-10, 10), copies=st.booleans())
def test_h_moves_with_the_scale_and_not_with_the_order(seed, power, copies):
    rng = np.random.default_rng(seed)
    points = (with_copies(seed) if copies else ordinary(seed, 175)).astype(np.float32)
    queries = rng.normal(size=(3, 8)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bandwidth, "_PROBES", 60)  # so that only every third point is looked at
        plain = Problem.from_embeddings(points, queries, bandwidth="auto").info
        assert plain["bandwidth_found"]["probes"] == 59
        scaled = Problem.from_embeddings(2.0**power * points, 2.0**power * queries, bandwidth="auto").info
        permuted = Problem.from_embeddings(points[rng.permutation(175)], queries, bandwidth="auto").info
    assert scaled["bandwidth"] == pytest.approx(2.0**power * plain["bandwidth"], rel=1e-5)
    assert permuted["bandwidth"] == pytest.approx(plain["bandwidth"], rel=1e-6)
    assert permuted["bandwidth_found"] | {"message": "", "valley": 0} == (
        plain["bandwidth_found"] | {"message": "", "valley": 0}
    )


def test_a_lone_outlier_is_no_ordinary_neighbor():
    points = np.concatenate([ordinary(4, 99, 16), np.full((1, 16), 1e3)])
    assert propose(points)[1]["rule"] == "quantile"


@pytest.mark.parametrize("points", [np.ones((5, 3)), np.zeros((1, 2))])
def test_nothing_but_exact_copies(points):
    with pytest.raises(
        ValueError, match=r'^bandwidth="auto" found nothing but exact copies among the \d nearest points'
    ):
        propose(points)
