"""The selector TSDS against its plan, and the two hybrids of it and DEFT."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pools import KEY, N, pool_of, unequal_pool

import deft_tsds as dt
from deft_tsds.sampling import inclusion_probabilities
from deft_tsds.selectors import DEFT, TSDS, ClusteredTSDS, Random, ShortlistDEFT


def tsds(budget, *, key=KEY, **options):
    candidates, queries, _ = pool_of()
    selection = dt.select(candidates, queries, selector=TSDS(**options), budget=budget, key=key)
    bandwidth = options.get("bandwidth", 0.75)
    problem = dt.Problem.from_embeddings(candidates, queries, neighbors=N, bandwidth=bandwidth)
    plan = dt.tsds(problem, alpha=options.get("alpha", 0.5), scale=options.get("scale", 5.0))
    return candidates, queries, selection, problem, plan


def test_tsds_reasons_against_the_plan():
    candidates, queries, selection, problem, plan = tsds(20, alpha=0.3, bandwidth=2.0)
    probability_N = plan.probabilities()
    inclusion_N = inclusion_probabilities(probability_N, 20)
    gamma_MxN = np.zeros((4, N))
    np.put_along_axis(gamma_MxN, problem.shortlist_U[problem.index_MxK], plan.mass_MxK, axis=1)
    distances_MxN = np.linalg.norm(queries[:, None].astype(np.float64) - candidates, axis=-1)
    difference = candidates[:, None].astype(np.float64) - candidates
    density_N = np.maximum(1 - (difference**2).sum(-1) / 4, 0).sum(1)
    for row, score, reason in zip(selection.indices, selection.scores, selection.reasons, strict=True):
        assert reason["probability"] == pytest.approx(probability_N[row])
        assert score == pytest.approx(probability_N[row])
        assert reason["inclusion"] == pytest.approx(inclusion_N[row])
        assert reason["density"] == pytest.approx(density_N[row], rel=1e-4)
        served = np.flatnonzero(gamma_MxN[:, row])
        assert reason["queries_served"] == len(served)
        assert len(reason["queries"]) == min(3, len(served))
        shares = [named["share"] for named in reason["queries"]]
        best = np.sort(gamma_MxN[:, row] / probability_N[row])[::-1][: len(shares)]
        np.testing.assert_allclose(shares, best, atol=1e-8)
        for named in reason["queries"]:
            query = named["query"]
            assert named["distance"] == pytest.approx(distances_MxN[query, row], abs=1e-5)
            assert named["rank"] == 1 + (distances_MxN[query] < distances_MxN[query, row] - 1e-9).sum()
    np.testing.assert_array_equal(selection.weights, 1)


def test_tsds_names_the_nearest_duplicate():
    candidates, queries, _ = pool_of()
    candidates[41] = candidates[7]  # an exact copy
    candidates[50] = candidates[12] + np.float32(1e-3)
    selection = dt.select(candidates, queries, selector=TSDS(alpha=1e-3), budget=N, key=KEY)
    distances = np.linalg.norm(candidates[:, None].astype(np.float64) - candidates, axis=-1)
    np.fill_diagonal(distances, np.inf)
    for row, reason in zip(selection.indices, selection.reasons, strict=True):
        assert reason["duplicate"]["row"] == distances[row].argmin()
        assert reason["duplicate"]["distance"] == pytest.approx(distances[row].min(), rel=1e-5)
        assert f"nearest other candidate {reason['duplicate']['row']} at distance" in reason["why"]
    assert selection.reasons[41]["duplicate"] == {"row": 7, "distance": 0.0}
    # Among the shortlist alone, and None where it holds no other.
    selection = dt.select(candidates, queries[:1], selector=TSDS(neighbors=1, grow=False), budget=1, key=KEY)
    assert selection.reasons[0]["duplicate"] is None


def test_tsds_fills_up_with_the_nearest():
    candidates, queries, _ = pool_of()
    short = dt.select(candidates, queries, selector=TSDS(alpha=0.9, fill="nearest"), budget=40, key=KEY)
    plan = dt.tsds(dt.Problem.from_embeddings(candidates, queries, bandwidth=0.75), alpha=0.9)
    support = np.flatnonzero(plan.probabilities())
    distances = np.linalg.norm(candidates[:, None].astype(np.float64) - queries, axis=-1)
    rest = np.setdiff1d(np.argsort(distances.min(1), kind="stable"), support, assume_unique=True)
    np.testing.assert_array_equal(short.indices, np.sort(np.concatenate([support, rest[: 40 - len(support)]])))
    assert short.info["filled"] == 40 - len(support)
    for row, reason in zip(short.indices, short.reasons, strict=True):
        if row in support:
            assert "filled" not in reason
        else:
            assert reason["probability"] == 0
            assert reason["queries"][0]["query"] == distances[row].argmin()
            assert reason["queries"][0]["distance"] == pytest.approx(distances[row].min(), rel=1e-5)
            assert reason["why"].startswith("Fills up the budget")
    # Where the support is enough, nothing changes.
    options = {"budget": 2, "key": KEY}
    plain, filled = (
        dt.select(candidates, queries, selector=TSDS(alpha=0.9, fill=f), **options) for f in (None, "nearest")
    )
    np.testing.assert_array_equal(plain.indices, filled.indices)


def test_tsds_quotas_and_caps_by_task():
    candidates, queries, groups = pool_of()
    selector = TSDS(alpha=1e-3, quotas={"task 0": 0.5}, caps={"task 1": 2})
    selection = dt.select(candidates, queries, selector=selector, budget=20, key=KEY, groups=groups)
    assert [(groups[selection.indices] == f"task {i}").sum() for i in range(3)] == [10, 2, 8]
    with pytest.raises(ValueError, match="needs groups"):
        dt.select(candidates, queries, selector=selector, budget=20, key=KEY)


@pytest.mark.parametrize(
    "selector",
    [TSDS(alpha=1e-3), TSDS(alpha=1e-3, replace=True), Random(), ClusteredTSDS(TSDS(alpha=1e-3), clusters=3)],
)
def test_cost_budget(selector):
    candidates, queries, _ = pool_of()
    costs = np.random.default_rng(6).integers(5, 40, N)
    selection = dt.select(candidates, queries, selector=selector, key=KEY, costs=costs, cost_budget=300)
    draws = np.array([reason.get("draws", 1) for reason in selection.reasons])
    spent = int(costs[selection.indices] @ draws)
    parts = 3 if isinstance(selector, ClusteredTSDS) else 1
    assert 300 - 40 * parts < spent <= 300
    assert selection.info["cost_budget"] == 300


def test_tsds_effective_size_and_bandwidth_from_the_data():
    candidates, queries, _ = pool_of()
    selection = dt.select(candidates, queries, selector=TSDS(effective_size=30, bandwidth="auto"), budget=15, key=KEY)
    assert selection.info["plan"]["effective_size"] == pytest.approx(30, rel=0.1)
    assert selection.info["bandwidth"]["h"] > 0
    assert selection.info["bandwidth"]["message"]


# Hybrids


def test_deft_in_the_shortlist_is_deft_of_the_shortlist():
    candidates, queries, groups = pool_of()
    inner = DEFT(clusters=3, base=0.2, easy=0.5, hard=0.5)
    selection = dt.select(
        candidates, queries, selector=ShortlistDEFT(inner, neighbors=24), budget=15, key=KEY, groups=groups
    )
    distances = np.linalg.norm(candidates[:, None].astype(np.float64) - queries, axis=-1)
    shortlist = np.unique(np.argsort(distances, axis=0)[:24])
    alone = dt.select(candidates[shortlist], selector=inner, budget=15, key=KEY, groups=groups[shortlist])
    np.testing.assert_array_equal(selection.indices, shortlist[alone.indices])
    np.testing.assert_array_equal(selection.scores, alone.scores)
    assert selection.info["shortlist"] == len(shortlist) < N
    for row, reason, plain in zip(selection.indices, selection.reasons, alone.reasons, strict=True):
        assert reason.items() >= {**plain, "why": reason["why"]}.items()
        assert reason["query"] == distances[row].argmin()
        assert reason["query_distance"] == pytest.approx(distances[row].min(), rel=1e-5)
    with pytest.raises(ValueError, match="altogether, fewer than the budget of 50: raise neighbors"):
        dt.select(candidates, queries, selector=ShortlistDEFT(inner, neighbors=5), budget=50, key=KEY)


def test_tsds_by_cluster_gives_each_cluster_its_part():
    candidates = unequal_pool()
    queries = candidates[:3]  # all in the cluster of 40
    inner = TSDS(alpha=0.01, regularizer="uniform")
    plain = dt.select(candidates, queries, selector=inner, budget=21, key=KEY)
    selection = dt.select(candidates, queries, selector=ClusteredTSDS(inner, clusters=3), budget=21, key=KEY)
    direction = np.repeat([0, 1, 2], [40, 16, 4])
    # Seven from each; the cluster of 4 lacks 3, which the others share.
    counts = np.bincount(direction[selection.indices], minlength=3)
    assert counts.sum() == 21
    assert counts[2] == 4
    assert abs(counts[0] - counts[1]) == 1
    assert np.bincount(direction[plain.indices], minlength=3)[0] > counts[0]
    size = np.array([40, 16, 4])
    for row, reason in zip(selection.indices, selection.reasons, strict=True):
        assert reason["cluster_size"] == size[direction[row]]
        assert reason["probability"] > 0
    assert sorted(selection.info["cluster_chosen"]) == sorted(counts.tolist())
    with pytest.raises(ValueError, match="ClusteredTSDS gives each cluster its quota"):
        ClusteredTSDS(TSDS(quotas="equal"))


def test_tsds_with_replacement_counts_the_draws():
    _, _, selection, _, plan = tsds(40, replace=True)
    draws = np.array([reason["draws"] for reason in selection.reasons])
    assert draws.sum() == 40
    np.testing.assert_allclose(selection.weights, draws / draws.mean(), rtol=1e-6)
    assert "distinct rows" in selection.info["shortfall"]
    assert (plan.probabilities()[selection.indices] > 0).all()


def test_tsds_budget_above_the_support():
    with pytest.raises(ValueError, match="fewer than the budget of 50") as error:
        tsds(50, alpha=0.9)
    assert "lower alpha" in str(error.value)


def test_tsds_grows_its_neighbourhoods():
    _, _, full, _, _ = tsds(20, alpha=0.05)
    assert not full.info["plan"]["exhausted"]
    _, _, grown, _, _ = tsds(20, alpha=0.05, neighbors=3, regularizer="uniform")
    assert grown.info["neighbors_asked"] == 3
    assert grown.info["neighbors_used"] > 3
    assert not grown.info["plan"]["exhausted"]
    _, _, fixed, _, _ = tsds(4, alpha=0.05, neighbors=3, regularizer="uniform", grow=False)
    assert fixed.info["neighbors_used"] == 3
    assert fixed.info["plan"]["exhausted"]
    assert "Raise neighbors" in fixed.info["plan"]["message"]


def test_tsds_parameters():
    cases: list[tuple[dict[str, Any], str]] = [
        ({"alpha": 0}, "alpha is 0"),
        ({"alpha": 1.1}, "alpha is 1.1"),
        ({"scale": 0}, "scale is 0"),
        ({"bandwidth": -1}, "bandwidth is -1"),
        ({"neighbors": 0}, "neighbors is 0"),
        ({"regularizer": "kl"}, "regularizer is 'kl': choose one of kde, uniform, tv"),
        ({"density_over": "all"}, "density_over is 'all'"),
        ({"fill": "far"}, "fill is 'far'"),
        ({"fill": "nearest", "replace": True}, "fill is for draws without replacement"),
        ({"alpha": 0.5, "effective_size": 9}, "give one of them"),
        ({"effective_size": 0.5}, "effective_size is 0.5"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            TSDS(**options)
