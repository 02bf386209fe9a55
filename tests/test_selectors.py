"""One contract suite for every selector, then what is particular to each. A new selector adds a row to SELECTORS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pytest
from sklearn.metrics import silhouette_score

import deft_tsds as dt
from deft_tsds import Selection
from deft_tsds.config import load
from deft_tsds.sampling import inclusion_probabilities
from deft_tsds.selectors import (
    DEFT,
    DSIR,
    LESS,
    TSDS,
    ClusteredTSDS,
    Diverse,
    FacilityLocation,
    Foreign,
    Full,
    Herding,
    KCenter,
    Nearest,
    Quality,
    Random,
    RDSPlus,
    RoundRobin,
    SemDeDup,
    ShortlistDEFT,
    Transport,
    UnbalancedTransport,
)
from deft_tsds.selectors.clusters import choose_clusters

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
    counts: bool = False
    """Reads counts, not embeddings."""

    def make(self, candidates: np.ndarray) -> Any:
        """The selector for a pool: Quality carries a score a candidate."""
        return Quality(candidates[:, 0], diversity=self.selector) if isinstance(self.selector, float) else self.selector


SELECTORS = {
    "deft": Row(DEFT(clusters=3), any_budget=False),
    "deft without a base": Row(DEFT(clusters=3, base=0)),
    "deft mixed": Row(DEFT(clusters=3, base=0, easy=0.4, hard=0.4, random=0.2)),
    "deft silhouette": Row(DEFT(clusters="silhouette", most_clusters=4, base=0, hard=0.5, random=0.5)),
    # Low alpha spreads the plan over every row, so that no budget is above its support.
    "tsds": Row(TSDS(alpha=1e-3)),
    "tsds few neighbours": Row(TSDS(alpha=1e-3, neighbors=2)),
    "tsds uniform": Row(TSDS(alpha=1e-3, regularizer="uniform")),
    "tsds tv": Row(TSDS(alpha=1e-3, regularizer="tv")),
    "tsds pool": Row(TSDS(alpha=1e-3, density_over="pool")),
    "tsds filled": Row(TSDS(alpha=0.9, fill="nearest"), stochastic=False),  # at budgets above the support
    "tsds equal quotas": Row(TSDS(alpha=1e-3, quotas="equal"), needs_groups=True),
    "deft in the shortlist": Row(ShortlistDEFT(DEFT(clusters=3, base=0), neighbors=60)),
    "tsds by cluster": Row(ClusteredTSDS(TSDS(alpha=1e-3), clusters=3)),
    "random": Row(Random()),
    "random stratified": Row(Random(stratified=True), needs_groups=True),
    "full": Row(Full(), stochastic=False, whole_pool=True),
    "nearest": Row(Nearest(), stochastic=False),
    "nearest euclidean": Row(Nearest("euclidean"), stochastic=False),
    "round robin": Row(RoundRobin(), stochastic=False),
    "rds+": Row(RDSPlus(), stochastic=False),
    "less": Row(LESS(), stochastic=False),
    "dsir": Row(DSIR(), counts=True),
    "dsir top": Row(DSIR(draw=False), stochastic=False, counts=True),
    "unbalanced transport": Row(UnbalancedTransport(), stochastic=False),
    "diverse": Row(Diverse()),
    "k-center": Row(KCenter(), stochastic=False),
    "facility location": Row(FacilityLocation(), stochastic=False),
    "facility location on a sample": Row(FacilityLocation(sample=8)),
    "herding": Row(Herding(), stochastic=False),
    "herding toward the queries": Row(Herding("queries"), stochastic=False),
    "herding on a sample": Row(Herding(sample=8)),
    "semdedup": Row(SemDeDup(clusters=3)),
    "semdedup random": Row(SemDeDup(clusters=3, keep="random")),
    "quality": Row(0.0, stochastic=False),
    "quality and diversity": Row(0.5, stochastic=False),
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
    if row.counts:
        candidates, queries = (np.floor(np.abs(4 * rows)) for rows in (candidates, queries))
    return dt.select(candidates, queries, selector=row.make(candidates), budget=budget, key=key, groups=given)


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


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["candidates", "queries"])
def test_bad_rows_are_named(row, where, bad):
    candidates, queries, groups = pool_of()
    number = 2 if where == "queries" else 17
    (queries if where == "queries" else candidates)[number, 1] = bad
    selector = SELECTORS["tsds"].selector if isinstance(row.selector, float) else row.selector
    with pytest.raises(ValueError, match=f"{where}, row {number}, has a NaN or infinite value"):
        dt.select(candidates, queries, selector=selector, budget=30, key=KEY, groups=groups)


def test_memory_maps(row, tmp_path):
    """A pool on disk is read, not changed, and the choice is the same."""
    candidates, queries, groups = pool_of()
    np.save(tmp_path / "pool.npy", candidates)
    mapped = np.load(tmp_path / "pool.npy", mmap_mode="r")
    plain, read = run(row, 30), run(row, 30, pool=(mapped, queries, groups))
    assert plain.reasons == read.reasons
    np.testing.assert_array_equal(plain.indices, read.indices)


def test_the_cost_is_known_before(row):
    candidates, queries, groups = pool_of()
    selector = row.make(candidates)
    if not hasattr(selector, "cost"):
        pytest.skip("this selector needs next to nothing")
    plan = selector.cost(dt.Pool.of(candidates, queries, groups=groups), 30)
    assert 0 < plan.bytes < 2**30
    assert plan.operations > 0
    with pytest.raises(ValueError, match=f"{type(selector).__name__} would need about"):
        dt.select(candidates, queries, selector=selector, budget=30, key=KEY, groups=groups, memory_budget=1)


def test_the_table_says_what_the_suite_sees():
    entries = {entry.selector: entry for entry in dt.selectors.table()}
    classes = {value for value in vars(dt.selectors).values() if isinstance(value, type)}
    assert set(entries) == classes
    assert len(entries) == len(dt.selectors.table())
    tested = {Quality if isinstance(row.selector, float) else type(row.selector) for row in SELECTORS.values()}
    assert tested == classes - {Transport, Foreign}  # these are tested with objectives, and with files
    for name in (
        "nearest",
        "round robin",
        "rds+",
        "less",
        "dsir",
        "unbalanced transport",
        "diverse",
        "k-center",
        "facility location",
        "herding",
        "semdedup",
        "quality",
        "tsds",
        "deft",
        "random",
        "full",
    ):
        row = SELECTORS[name]
        entry = entries[Quality if isinstance(row.selector, float) else type(row.selector)]
        assert entry.deterministic == (not row.stochastic), name
        if entry.target != "may":
            assert (entry.target == "yes") == bool(getattr(entry.selector, "needs_queries", False)), name
    lines = str(dt.selectors.table()).splitlines()
    assert len(lines) == 2 + len(entries)
    assert lines[2].startswith("| `TSDS` | yes | no | N M D")


def test_missing_queries_name_the_selector():
    for selector in (row.selector for row in SELECTORS.values() if getattr(row.selector, "needs_queries", False)):
        with pytest.raises(ValueError, match=f"{type(selector).__name__} needs queries"):
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


# From a config


def test_every_selector_can_be_set_from_the_command_line(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        """
from deft_tsds.config import Arm, Experiment, Synthetic
from deft_tsds.selectors import DEFT, TSDS, ClusteredTSDS, ShortlistDEFT

config = Experiment(
    data=Synthetic(),
    arms={
        "tsds": Arm(TSDS(), count=9),
        "deft": Arm(DEFT(), count=9),
        "near": Arm(ShortlistDEFT(), count=9),
        "clustered": Arm(ClusteredTSDS(), count=9),
    },
)
"""
    )
    arguments = {
        "tsds": "--fill nearest --bandwidth auto --alpha 0.3 --quotas a 5 b 0.25 --caps c 3",
        "deft": "--clusters silhouette --most-clusters 9",
        "near": "--deft.clusters 3 --neighbors 50",
        "clustered": "--clusters silhouette --tsds.effective-size 40",
    }
    prefixed = [
        word.replace("--", f"--arms.{arm}.selector.") for arm, words in arguments.items() for word in words.split()
    ]
    arms = load(path, prefixed)[0].arms
    assert arms["tsds"].selector == TSDS(
        fill="nearest", bandwidth="auto", alpha=0.3, quotas={"a": 5, "b": 0.25}, caps={"c": 3}
    )
    assert arms["deft"].selector == DEFT(clusters="silhouette", most_clusters=9)
    assert arms["near"].selector == ShortlistDEFT(DEFT(clusters=3, base=0.0), neighbors=50)
    assert arms["clustered"].selector == ClusteredTSDS(TSDS(effective_size=40), clusters="silhouette")
