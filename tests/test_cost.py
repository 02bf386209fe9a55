"""What the plan says against what NumPy really allocates, and the numbers of one plan by hand."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import jax
import numpy as np
import pytest

import deft_tsds as dt
from deft_tsds.cost import PlanCost, StageCost, available_memory
from deft_tsds.sampling import inclusion_probabilities, sample
from deft_tsds.selectors.reasons import plan_reasons

KEY = jax.random.key(0)


def peak(work):
    """The result of some work, and the most bytes that it held at a time."""
    tracemalloc.start()
    try:
        return work(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def assert_within(allocated: int, planned: int) -> None:
    assert allocated <= 1.05 * planned
    assert planned <= 4 * allocated


def stages(plan: PlanCost) -> dict[str, StageCost]:
    return {stage.name: stage for stage in plan.stages}


@pytest.mark.parametrize(("n", "m", "d", "k"), [(5000, 600, 64, 500), (12_000, 260, 32, 1000)])
def test_bytes_against_what_is_allocated(n, m, d, k):
    rng = np.random.default_rng(0)
    candidates = rng.normal(size=(n, d)).astype(np.float32)
    queries = rng.normal(size=(m, d)).astype(np.float32)
    problem, found = peak(lambda: dt.Problem.from_embeddings(candidates, queries, neighbors=k))
    points = candidates[problem.shortlist_U]
    _, dense = peak(lambda: dt.kernel_density(points, bandwidth=3.0))
    plan, solved = peak(lambda: dt.tsds(problem, alpha=0.01))  # low, so that all K columns are looked at
    pool = dt.Pool.of(candidates, queries)

    def draw():
        probability_N = plan.probabilities()
        rows = sample(probability_N, 500, key=KEY)
        inclusion_N = inclusion_probabilities(probability_N, 500)
        return plan_reasons(pool, problem, plan, rows, [{"inclusion": inclusion_N[j]} for j in rows], density=True)

    _, drawn = peak(draw)
    planned = stages(dt.plan_cost(n, m, d, k, budget=500, shortlist=len(points)))
    kept = 8 * m * k  # costs_MxK and index_MxK, which live on
    assert problem.costs_MxK.nbytes + problem.index_MxK.nbytes == kept
    assert plan.mass_MxK.nbytes == kept
    assert_within(found, planned["neighbours"].bytes)
    assert_within(kept + points.nbytes + dense, planned["density"].bytes)
    assert_within(kept + solved, planned["closed form"].bytes)
    assert_within(2 * kept + drawn, planned["draw, reasons"].bytes)


def test_bytes_of_the_clustering():
    candidates = np.random.default_rng(0).normal(size=(20_000, 64)).astype(np.float32)
    selector = dt.selectors.DEFT(clusters=3, base=0.0)
    dt.select(candidates, selector=selector, budget=10, key=KEY)  # what compilation allocates does not count
    _, allocated = peak(lambda: dt.select(candidates, selector=selector, budget=10, key=KEY))
    pool = dt.Pool.of(candidates)
    assert_within(allocated, selector.cost(pool, 10).bytes)


def test_a_plan_by_hand():
    plan = dt.plan_cost(1_000_000, 1000, 384, 5000, shortlist=200_000, density_over="pool", clusters=7)
    by_name = stages(plan)
    assert list(by_name) == ["k-means", "neighbours", "density", "closed form", "draw, reasons"]
    assert by_name["neighbours"].operations == 2 * 1_000_000 * 1000 * 384
    assert by_name["density"].operations == 2 * 200_000 * 1_000_000 * 384
    assert by_name["k-means"].operations == 100 * 4 * 1_000_000 * 7 * 384 + 4 * 1_000_000 * 7 * 3 * 384
    assert by_name["k-means"].bytes == 8 * 1_000_000 * 384 + 4 * 1_000_000 * (7 + 16 * 3)
    assert by_name["closed form"].bytes == 25 * 5_000_000 + 8 * 2**20
    assert plan.bytes == max(stage.bytes for stage in plan.stages)
    assert plan.operations == sum(stage.operations for stage in plan.stages)
    # The shortlist is at most all candidates, and at most all neighbours; K is at most N.
    assert dt.plan_cost(50, 10, 3, 1000) == dt.plan_cost(50, 10, 3, 50, shortlist=50)
    assert dt.plan_cost(1000, 2, 3, 5) == dt.plan_cost(1000, 2, 3, 5, shortlist=10)
    assert "density" not in stages(dt.plan_cost(50, 10, 3, 5, density_over=None))


def test_a_million_candidates_stay_within_the_target():
    """N = 1,000,000, M = 1,000, K = 5,000 from a memory-map: neighbours under 3 GB beyond the file."""
    assert stages(dt.plan_cost(10**6, 1000, 384, 5000))["neighbours"].bytes < 3e9


def test_the_table():
    plan = PlanCost((StageCost("one", 1_500_000_000, 10**12), StageCost("two", 2_000_000, 3 * 10**9)))
    assert str(plan).splitlines() == [
        "stage                   GB         GFLOP",
        "one                  1.500       1,000.0",
        "two                  0.002           3.0",
        "peak, and sum        1.500       1,003.0",
    ]
    assert (plan + plan).stages == plan.stages * 2


def test_selectors_tell_their_cost():
    rng = np.random.default_rng(0)
    pool = dt.Pool.of(rng.normal(size=(300, 4)), rng.normal(size=(5, 4)))
    tsds = dt.selectors.TSDS(neighbors=20)
    assert tsds.cost(pool, 30) == dt.plan_cost(300, 5, 4, 20, budget=30)
    uniform = dt.selectors.TSDS(neighbors=20, regularizer="uniform")
    assert uniform.cost(pool, 30) == dt.plan_cost(300, 5, 4, 20, budget=30, density_over=None)
    clustered = dt.selectors.ClusteredTSDS(tsds, clusters=3)
    assert clustered.cost(pool, 30) == dt.plan_cost(300, 5, 4, 20, budget=30, clusters=3)
    near = dt.selectors.ShortlistDEFT(dt.selectors.DEFT(clusters="silhouette", most_clusters=9, base=0), neighbors=20)
    both = near.cost(pool, 30)
    assert both.stages[0] == dt.plan_cost(300, 5, 4, 20).stages[0]
    assert both.stages[1] == dt.plan_cost(100, 5, 4, 20, clusters=9).stages[0]
    for selector in (tsds, clustered, near):
        with pytest.raises(ValueError, match="would need about"):
            dt.select(pool.embeddings_NxD, pool.queries_MxD, selector=selector, budget=30, key=KEY, memory_budget=1000)


def test_available_memory():
    available = available_memory()
    if not Path("/proc/meminfo").exists():
        pytest.skip("what other systems report is theirs to say")
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert available is not None
    assert 0 < available <= total


def test_errors():
    for sizes in ((0, 1, 1, 1), (1, 0, 1, 1), (1, 1, 0, 1), (1, 1, 1, 0)):
        with pytest.raises(ValueError, match="is 0: give an integer at least 1"):
            dt.plan_cost(*sizes)
    with pytest.raises(ValueError, match="shortlist is 11"):
        dt.plan_cost(10, 1, 1, 1, shortlist=11)
    with pytest.raises(ValueError, match="budget is 11"):
        dt.plan_cost(10, 1, 1, 1, budget=11)
    with pytest.raises(ValueError, match="density_over is 'all'"):
        dt.plan_cost(10, 1, 1, 1, density_over="all")
