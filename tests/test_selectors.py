"""One contract suite for every selector. A new selector adds a row to SELECTORS.

The checks themselves are `deft_tsds.studies.contract`, which the matrix of selectors and representations runs too."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pytest
from pools import KEY, N, pool_of

import deft_tsds as dt
from deft_tsds import Selection
from deft_tsds.config import load
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
from deft_tsds.studies.contract import ContractError, check_selection, check_selector


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


def arguments(row: Row, pool=None, groups=True):
    """Candidates, queries and groups as the row's selector takes them."""
    candidates, queries, labels = pool_of() if pool is None else pool
    if row.counts:
        candidates, queries = (np.floor(np.abs(4 * rows)) for rows in (candidates, queries))
    return candidates, queries, labels if groups or row.needs_groups else None


def run(row: Row, budget: int, *, key=KEY, pool=None, groups=True) -> Selection:
    selector = row.make((pool_of() if pool is None else pool)[0])
    candidates, queries, labels = arguments(row, pool, groups)
    budget = len(candidates) if row.whole_pool else budget
    return dt.select(candidates, queries, selector=selector, budget=budget, key=key, groups=labels)


def check(selection: Selection, budget: int, n: int) -> None:
    check_selection(selection, budget=budget, candidates=n)


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
    candidates, queries, groups = arguments(row)
    budget = N if row.whole_pool else 30
    options = {"selector": row.make(pool_of()[0]), "budget": budget, "groups": groups}
    check_selector(candidates, queries, key=jax.random.key(7), **options)
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


# The checks of the contract: each can fail


def broken(**changes):
    """A good selection of four rows of ten with something wrong about it."""
    good = Selection.of(np.array([1, 3, 4, 8]), reasons=[{"why": "It is a row of four."}] * 4, info={"seconds": 0.1})
    return dataclasses.replace(good, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indices": np.array([1, 3, 4])}, r"indices has shape \(3,\) for a budget of 4"),
        ({"indices": np.array([1, 3, 4, 8], np.int32)}, "indices are int32"),
        ({"indices": np.array([1, 3, 3, 8])}, "rows are not distinct"),
        ({"indices": np.array([1, 4, 3, 8])}, "not in the order of the pool"),
        ({"indices": np.array([1, 3, 4, 10])}, "rows 1 to 10 are not all among 10"),
        ({"indices": np.array([-1, 3, 4, 8])}, "rows -1 to 8 are not all among 10"),
        ({"weights": np.full(4, 2, np.float32)}, "weights of mean 2"),
        ({"scores": np.array([0, np.nan, 0, 0], np.float32)}, "scores that are not finite"),
        ({"reasons": ({"why": "It is a row of four."},) * 3}, "3 reasons for 4 rows"),
        ({"reasons": ({"why": "Because"},) * 4}, "row 1: 'Because' is no sentence"),
        ({"reasons": ({"why": "It is a row of four.", "probability": 1.5},) * 4}, "row 1: probability is 1.5"),
        ({"reasons": ({"why": "It is a row of four.", "inclusion": 0.0},) * 4}, "row 1 had no chance"),
    ],
)
def test_what_breaks_the_contract_is_named(changes, message):
    check_selection(broken(), budget=4, candidates=10)
    with pytest.raises(ContractError, match=message):
        check_selection(broken(**changes), budget=4, candidates=10)


def test_a_selector_that_ignores_its_key_is_named():
    calls = iter(range(9))

    def moody(pool, *, budget, key):
        return Selection.of(next(calls) + np.arange(budget), reasons=[{"why": "It was its turn."}] * budget)

    with pytest.raises(ContractError, match="the same key gave other indices"):
        check_selector(pool_of()[0], None, selector=moody, budget=3, key=KEY)


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
