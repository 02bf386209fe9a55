"""DEFT: what it ranks, how it divides the budget, and how it finds the number of clusters."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from pools import KEY, N, pool_of, unequal_pool
from sklearn.metrics import silhouette_score

import deft_tsds as dt
from deft_tsds.selectors import DEFT
from deft_tsds.selectors.clusters import choose_clusters


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


def test_deft_base_is_a_share_of_the_budget_where_asked():
    _, selection = deft(10, base=0.3, base_of="budget")
    assert selection.info["base"] == len(parts(selection, "base")) == 3
    assert len(selection) == 10
    with pytest.raises(ValueError, match=r"base = 1 of 10 chosen is 10 rows.*lower base below 1,"):
        deft(10, base=1.0, base_of="budget")
    with pytest.raises(ValueError, match='base_of must be "pool" or "budget"'):
        DEFT(base_of="all")  # pyright: ignore[reportArgumentType]


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


def test_deft_defaults_are_those_of_the_paper():
    assert (DEFT().clusters, DEFT().base, DEFT().easy, DEFT().hard) == (7, 0.3, 0.0, 1.0)


def test_deft_sees_directions_alone():
    candidates, _, _ = pool_of()
    # Powers of two, so that the unit rows are equal bit for bit.
    scale = 2.0 ** np.random.default_rng(5).integers(-3, 4, size=(N, 1))
    for selector in (DEFT(clusters=3), DEFT(clusters=3, base=0, easy=0.5, hard=0.5)):
        plain, scaled = (dt.select(x, selector=selector, budget=30, key=KEY) for x in (candidates, candidates * scale))
        np.testing.assert_array_equal(plain.indices, scaled.indices)
        assert plain.reasons == scaled.reasons


def test_deft_base_and_core_share_no_row():
    """The clusters are those of the rest: none of their rows is in the base set, and together they are all the rest."""
    for key in jax.random.split(KEY, 3):
        _, selection = deft(42, clusters=3, base=0.3, key=key)
        base = {row for row, _ in parts(selection, "base")}
        core = {row for row, _ in parts(selection, "hard")}
        assert not base & core
        assert (len(base), len(core)) == (18, 24)
        assert sum(selection.info["cluster_sizes"]) == N - 18


def test_deft_takes_whole_alpha_and_beta():
    """alpha A and beta A where both are whole, from every cluster that has A rows."""
    selection = dt.select(
        unequal_pool(), selector=DEFT(clusters=3, base=0, easy=0.25, hard=0.75, per_cluster=12), budget=60, key=KEY
    )
    for cluster, size in enumerate(selection.info["cluster_sizes"]):
        taken = {part: [r for _, r in parts(selection, part) if r["cluster"] == cluster] for part in ("easy", "hard")}
        if size >= 12:
            assert {part: len(reasons) for part, reasons in taken.items()} == {"easy": 3, "hard": 9}
            assert sorted(r["rank"] for r in taken["easy"]) == [1, 2, 3]
            assert sorted(r["rank"] for r in taken["hard"]) == list(range(size - 8, size + 1))
        else:  # all it has, each once
            assert sorted(r["rank"] for reasons in taken.values() for r in reasons) == list(range(1, size + 1))


def test_deft_random_arm_is_uniform_within_the_cluster():
    counts = np.zeros(N)
    selector = DEFT(clusters=1, base=0, hard=0, random=1)
    for key in jax.random.split(KEY, 150):
        counts[dt.select(pool_of()[0], selector=selector, budget=20, key=key).indices] += 1
    z = (counts - 50) / np.sqrt(150 * (1 / 3) * (2 / 3))
    assert np.abs(z).max() < 4.8  # 60 binomial counts: level 1e-4


def test_deft_mixed_arm_draws_between_the_ends():
    selector = DEFT(clusters=1, base=0, easy=0.25, hard=0.25, random=0.5)
    drawn = set()
    for key in jax.random.split(KEY, 5):
        selection = dt.select(pool_of()[0], selector=selector, budget=40, key=key)
        ranks = {part: sorted(r["rank"] for _, r in parts(selection, part)) for part in ("easy", "hard", "random")}
        assert ranks["easy"] == list(range(1, 11))
        assert ranks["hard"] == list(range(N - 9, N + 1))
        assert len(ranks["random"]) == 20
        assert ranks["random"][0] > 10
        assert ranks["random"][-1] < N - 9
        drawn.add(tuple(ranks["random"]))
    assert len(drawn) == 5


def test_silhouette_finds_the_clusters_that_are_there():
    rng = np.random.default_rng(0)
    for wanted in (2, 4):
        labels = np.arange(80) % wanted
        points = 5 * np.eye(6)[labels] + 0.3 * rng.normal(size=(80, 6))
        unit = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
        best, tried = choose_clusters(unit, 6, key=KEY)
        assert [item["clusters"] for item in tried] == [2, 3, 4, 5, 6]
        assert best == wanted
        # The clusters are so well apart that the best score is that of the true labels.
        assert max(item["score"] for item in tried) == pytest.approx(silhouette_score(unit, labels), abs=1e-5)
        assert (best, tried) == choose_clusters(unit, 6, key=KEY)


def test_silhouette_looks_at_a_sample():
    # 3,000 rows, of which 2,000 are looked at.
    unit = np.eye(3, dtype=np.float32)[np.random.default_rng(0).integers(3, size=3000)]
    assert choose_clusters(unit, 12, key=KEY) == (
        3,
        [{"clusters": 2, "score": pytest.approx(0.67, abs=0.05)}, {"clusters": 3, "score": 1.0}],
    )


def test_silhouette_without_clusters():
    for rows in (np.ones((9, 3)), np.zeros((9, 3)), np.eye(2), np.eye(1)):
        assert choose_clusters(rows.astype(np.float32), 12, key=KEY) == (1, [])


def test_deft_with_the_silhouette():
    _, selection = deft(20, clusters="silhouette", most_clusters=3, base=0)
    tried = {item["clusters"]: item["score"] for item in selection.info["kmeans"]["silhouette"]}
    assert set(tried) == {2, 3}
    assert selection.info["kmeans"]["clusters"] == max(tried, key=lambda k: tried[k])


def test_deft_parameters():
    cases: list[tuple[dict[str, Any], str]] = [
        ({"clusters": 0}, "clusters is 0"),
        ({"base": 1.5}, "base is 1.5"),
        ({"base": float("nan")}, "base is nan"),
        ({"easy": 0.5}, "the three shares must sum to 1"),
        ({"hard": -0.5, "easy": 1}, "hard is -0.5"),
        ({"per_cluster": 0}, "per_cluster is 0"),
        ({"clusters": "elbow"}, "clusters is 'elbow': give a number, or 'silhouette'"),
        ({"most_clusters": 1}, "most_clusters is 1"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            DEFT(**options)
