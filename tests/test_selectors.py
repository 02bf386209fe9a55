"""One contract suite for every selector, then what is particular to each. A new selector adds a row to SELECTORS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pytest

import deft_tsds as dt
from deft_tsds import Selection
from deft_tsds.sampling import inclusion_probabilities
from deft_tsds.selectors import DEFT, TSDS, Full, Random

KEY = jax.random.key(0)
N, D = 60, 5


@dataclass(frozen=True)
class Row:
    """A selector, and which parts of the contract are different for it."""

    selector: Any
    stochastic: bool = True
    whole_pool: bool = False
    """Takes budget = N only."""
    needs_groups: bool = False
    any_budget: bool = True
    """Answers budget = 1 and budget = N on any pool."""


SELECTORS = {
    "deft": Row(DEFT(clusters=3), any_budget=False),
    "deft without a base": Row(DEFT(clusters=3, base=0)),
    "deft mixed": Row(DEFT(clusters=3, base=0, easy=0.4, hard=0.4, random=0.2)),
    # Low alpha spreads the plan over every row, so that no budget is above its support.
    "tsds": Row(TSDS(alpha=1e-3)),
    "tsds few neighbours": Row(TSDS(alpha=1e-3, neighbors=2)),
    "tsds uniform": Row(TSDS(alpha=1e-3, regularizer="uniform")),
    "tsds tv": Row(TSDS(alpha=1e-3, regularizer="tv")),
    "tsds pool": Row(TSDS(alpha=1e-3, density_over="pool")),
    "random": Row(Random()),
    "random stratified": Row(Random(stratified=True), needs_groups=True),
    "full": Row(Full(), stochastic=False, whole_pool=True),
}


@pytest.fixture(params=SELECTORS, name="row")
def _row(request):
    return SELECTORS[request.param]


def pool_of(n=N, seed=0, d=D):
    rng = np.random.default_rng(seed)
    centers = 2 * rng.normal(size=(3, d))
    candidates = (centers[rng.integers(3, size=n)] + rng.normal(size=(n, d))).astype(np.float32)
    queries = (candidates[:4] + 0.1 * rng.normal(size=(min(4, n), d))).astype(np.float32)
    return candidates, queries, np.array([f"task {i}" for i in rng.integers(3, size=n)])


def run(row: Row, budget: int, *, key=KEY, pool=None, groups=True) -> Selection:
    candidates, queries, labels = pool_of() if pool is None else pool
    budget = len(candidates) if row.whole_pool else budget
    given = labels if groups or row.needs_groups else None
    return dt.select(candidates, queries, selector=row.selector, budget=budget, key=key, groups=given)


def check(selection: Selection, budget: int, n: int) -> None:
    assert selection.indices.dtype == np.int64
    assert selection.indices.shape == selection.weights.shape == selection.scores.shape == (budget,)
    assert (np.diff(selection.indices) > 0).all()  # distinct, and in the order of the pool
    assert 0 <= selection.indices[0] <= selection.indices[-1] < n
    assert selection.weights.mean() == pytest.approx(1)
    assert len(selection.reasons) == budget
    for reason in selection.reasons:
        assert len(reason["why"]) > 10
        assert reason["why"].endswith(".")
    assert selection.info["seconds"] >= 0


@pytest.mark.parametrize("groups", [True, False])
def test_exactly_the_budget(row, groups):
    selection = run(row, 30, groups=groups)
    check(selection, N if row.whole_pool else 30, N)


def test_budget_of_one_and_of_all(row):
    if not row.any_budget:
        pytest.skip("this configuration refuses such budgets; its own test says how")
    check(run(row, 1), N if row.whole_pool else 1, N)
    np.testing.assert_array_equal(run(row, N).indices, np.arange(N))


def test_the_key_decides(row):
    a, b = (run(row, 30, key=jax.random.key(7)) for _ in range(2))
    for name in ("indices", "weights", "scores"):
        assert getattr(a, name).tobytes() == getattr(b, name).tobytes()
    assert a.reasons == b.reasons
    others = [run(row, 30, key=jax.random.key(seed)).indices.tolist() for seed in range(3)]
    assert (len({tuple(rows) for rows in others}) > 1) == row.stochastic


def test_order_of_the_pool(row):
    candidates, queries, groups = pool_of()
    order = np.random.default_rng(1).permutation(N)
    plain = run(row, 30)
    moved = run(row, 30, pool=(candidates[order], queries, groups[order]))
    check(moved, len(plain), N)
    if not row.stochastic:
        np.testing.assert_array_equal(np.sort(order[moved.indices]), plain.indices)


def test_saved_and_loaded(row, tmp_path):
    selection = run(row, 30)
    selection.save(tmp_path)
    loaded = Selection.load(tmp_path)
    for name in ("indices", "weights", "scores"):
        assert getattr(loaded, name).tobytes() == getattr(selection, name).tobytes()
    assert loaded.reasons == selection.reasons
    assert loaded.info == selection.info


@pytest.mark.parametrize("kind", ["some copies", "all equal", "all zero"])
def test_duplicates(row, kind):
    candidates, queries, groups = pool_of()
    if kind == "some copies":
        candidates[20:50] = candidates[3]
    else:
        candidates[:] = 0 if kind == "all zero" else candidates[3]
    check(run(row, 30, pool=(candidates, queries, groups)), N if row.whole_pool else 30, N)


@pytest.mark.parametrize("n", [2, 9])
def test_small_pools(row, n):
    if row.any_budget:
        check(run(row, 1, pool=pool_of(n)), n if row.whole_pool else 1, n)
    check(run(row, n, pool=pool_of(n)), n, n)


def test_input_stays_as_it_is(row):
    candidates, queries, groups = pool_of()
    before = candidates.copy(), queries.copy(), groups.copy()
    run(row, 30, pool=(candidates, queries, groups))
    for array, copy in zip((candidates, queries, groups), before, strict=True):
        np.testing.assert_array_equal(array, copy)
        assert array.flags.writeable


def test_missing_queries_name_the_selector():
    for selector in (row.selector for row in SELECTORS.values() if getattr(row.selector, "needs_queries", False)):
        with pytest.raises(ValueError, match="TSDS needs queries"):
            dt.select(pool_of()[0], selector=selector, budget=3, key=KEY)


# Random and Full


def test_random_inclusion():
    counts = np.zeros(N)
    for key in jax.random.split(KEY, 400):
        counts[run(Row(Random()), 15, key=key).indices] += 1
    z = (counts - 100) / np.sqrt(400 * 0.25 * 0.75)
    assert np.abs(z).max() < 5  # 60 binomial counts: level 4e-5
    assert run(Row(Random()), 15).reasons[0]["probability"] == 0.25


def test_random_stratified():
    candidates, _, _ = pool_of()
    groups = np.array([0] * 30 + [1] * 20 + [2] * 10)
    selection = dt.select(candidates, selector=Random(stratified=True), budget=12, key=KEY, groups=groups)
    assert np.bincount(groups[selection.indices]).tolist() == [6, 4, 2]
    assert selection.reasons[0] == {
        "why": "Drawn at random: each candidate of group 0 had probability 0.2.",
        "probability": 0.2,
        "group": 0,
    }
    with pytest.raises(ValueError, match="needs groups"):
        dt.select(candidates, selector=Random(stratified=True), budget=12, key=KEY)


def test_full_takes_all_or_says_so():
    with pytest.raises(ValueError, match="Full takes all 60 candidates, not 12: give budget=60"):
        dt.select(pool_of()[0], selector=Full(), budget=12, key=KEY)


# DEFT


def deft(budget, *, n=N, key=KEY, groups=None, seed=0, **options):
    candidates = pool_of(n, seed)[0]
    return candidates, dt.select(candidates, selector=DEFT(**options), budget=budget, key=key, groups=groups)


def parts(selection, part):
    return [(int(i), r) for i, r in zip(selection.indices, selection.reasons, strict=True) if r["part"] == part]


def oracle_distances(candidates, clustering_rows):
    """Cosine distance of each row to the mean of the unit rows of its cluster, in float64."""
    unit = candidates[clustering_rows].astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    mean = unit.mean(0)
    return 1 - unit @ mean / np.linalg.norm(mean)


@pytest.mark.parametrize(("easy", "hard", "random"), [(0, 1, 0), (1, 0, 0), (0.5, 0.5, 0), (0.3, 0.3, 0.4), (0, 0, 1)])
def test_deft_ranking_against_brute_force(easy, hard, random):
    """With base = 0 and budget = N every row names its cluster; a smaller budget of the same key must take its ends."""
    options = {"clusters": 3, "base": 0, "easy": easy, "hard": hard, "random": random}
    candidates, everything = deft(N, **options)
    cluster = np.array([reason["cluster"] for reason in everything.reasons])
    _, selection = deft(21, **options)
    for c in range(3):
        rows = np.flatnonzero(cluster == c)
        distances = oracle_distances(candidates, rows)
        order = rows[np.argsort(distances, kind="stable")]
        taken = {
            part: [i for i, r in parts(selection, part) if r["cluster"] == c] for part in ("easy", "hard", "random")
        }
        assert sum(map(len, taken.values())) == 7
        for part, share in (("easy", easy), ("hard", hard), ("random", random)):
            assert abs(len(taken[part]) - 7 * share) < 1
        assert set(taken["easy"]) == set(order[: len(taken["easy"])])
        assert set(taken["hard"]) == set(order[len(order) - len(taken["hard"]) :])
        for i, reason in parts(selection, "hard") + parts(selection, "easy") + parts(selection, "random"):
            if reason["cluster"] == c:
                assert reason["distance"] == pytest.approx(distances[rows == i][0], abs=1e-5)
                assert reason["rank"] == 1 + order.tolist().index(i)
                assert reason["cluster_size"] == len(rows)


def test_deft_clusters_are_those_of_kmeans():
    candidates, everything = deft(N, clusters=3, base=0)
    unit = candidates / np.linalg.norm(candidates, axis=1, keepdims=True)
    labels = np.array([reason["cluster"] for reason in everything.reasons])
    means = np.stack([unit[labels == c].mean(0) for c in range(3)])
    nearest = ((unit[:, None] - means) ** 2).sum(-1).argmin(1)
    assert (nearest == labels).mean() > 0.95  # Lloyd stops within its tolerance
    assert everything.info["cluster_sizes"] == np.bincount(labels).tolist()


def test_deft_base_is_a_share_of_the_pool_by_task():
    groups = ["a"] * 30 + ["b"] * 20 + ["c"] * 10
    _, selection = deft(30, base=0.3, groups=groups)
    base = [i for i, _ in parts(selection, "base")]
    assert [groups[i] for i in base] == ["a"] * 9 + ["b"] * 6 + ["c"] * 3
    assert selection.info["base"] == 18
    assert parts(selection, "base")[0][1]["probability"] == pytest.approx(0.3)
    _, uniform = deft(30, base=0.3)
    assert len(parts(uniform, "base")) == 18
    assert "group" not in parts(uniform, "base")[0][1]


def test_deft_base_counts():
    _, selection = deft(10, base=0, clusters=2)
    assert not parts(selection, "base")
    for base, budget in ((1.0, 60), (1.0, 30), (0.5, 30), (0.3, 1)):
        with pytest.raises(ValueError, match="leaves nothing of the budget") as error:
            deft(budget, base=base)
        assert "lower base below" in str(error.value)
        assert "Random(stratified=True)" in str(error.value)


def test_deft_one_cluster():
    candidates, selection = deft(10, clusters=1, base=0)
    farthest = np.argsort(-oracle_distances(candidates, np.arange(N)))[:10]
    np.testing.assert_array_equal(selection.indices, np.sort(farthest))


def test_deft_more_clusters_than_rows():
    _, selection = deft(9, n=10, clusters=50, base=0.2)
    assert len(selection) == 9
    assert selection.info["kmeans"]["clusters"] == 8
    assert sum(selection.info["cluster_chosen"]) == 7


@pytest.mark.parametrize("per_cluster", [1, 3, 5])
def test_deft_odd_numbers_halved_never_exceed(per_cluster):
    _, selection = deft(N, clusters=3, base=0, easy=0.5, hard=0.5, per_cluster=per_cluster)
    assert selection.info["cluster_chosen"] == [min(per_cluster, size) for size in selection.info["cluster_sizes"]]
    assert len(selection) == 3 * per_cluster
    assert len(parts(selection, "easy")) == 3 * (per_cluster + 1) // 2  # the odd one goes to the first share
    assert "per_cluster" in selection.info["shortfall"]


def unequal_pool():
    """Three directions with 40, 16 and 4 rows."""
    rng = np.random.default_rng(3)
    directions = np.repeat(np.eye(3), [40, 16, 4], axis=0)
    return (directions + 0.05 * rng.normal(size=(60, 3))).astype(np.float32)


def test_deft_small_cluster_gives_all_it_has():
    # 30 rows from 3 clusters are 10 each; the cluster of 4 lacks 6, which the others share.
    selection = dt.select(unequal_pool(), selector=DEFT(clusters=3, base=0), budget=30, key=KEY)
    size, chosen = selection.info["cluster_sizes"], selection.info["cluster_chosen"]
    assert dict(zip(size, chosen, strict=True)) == {40: 13, 16: 13, 4: 4}
    assert len(selection) == 30
    # A = 10 hands nothing on.
    selection = dt.select(unequal_pool(), selector=DEFT(clusters=3, base=0, per_cluster=10), budget=30, key=KEY)
    assert dict(zip(size, selection.info["cluster_chosen"], strict=True)) == {40: 10, 16: 10, 4: 4}
    assert "gives 24 rows" in selection.info["shortfall"]


def test_deft_per_cluster_stays_within_the_budget():
    selection = dt.select(unequal_pool(), selector=DEFT(clusters=3, base=0, per_cluster=10), budget=12, key=KEY)
    assert len(selection) == 12
    assert "shortfall" not in selection.info


def test_deft_parameters():
    cases: list[tuple[dict[str, Any], str]] = [
        ({"clusters": 0}, "clusters is 0"),
        ({"base": 1.5}, "base is 1.5"),
        ({"base": float("nan")}, "base is nan"),
        ({"easy": 0.5}, "the three shares must sum to 1"),
        ({"hard": -0.5, "easy": 1}, "hard is -0.5"),
        ({"per_cluster": 0}, "per_cluster is 0"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            DEFT(**options)


# TSDS


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
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            TSDS(**options)
