"""Laws of the public names that hold for any input, for those whose own tests try chosen inputs alone."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deft_tsds as dt

# One shape for all, so that nothing is compiled twice.
N, M, D, K = 12, 3, 2, 6

seeds = st.integers(0, 2**32 - 1)
few = settings(deadline=None, max_examples=12)


def cloud(seed: int, *, grid: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Candidates [N, D] and queries [M, D]; on a grid there are ties and duplicates."""
    rng = np.random.default_rng(seed)
    draw = (lambda n: rng.integers(0, 3, (n, D))) if grid else (lambda n: rng.normal(size=(n, D)))
    return draw(N).astype(np.float32), draw(M).astype(np.float32)


def problem_of(seed: int, *, grid: bool = False, **options: Any) -> dt.Problem:
    return dt.Problem.from_embeddings(*cloud(seed, grid=grid), neighbors=K, **options)


@few
@given(seeds, st.booleans())
def test_a_problem_is_its_neighbours(seed, grid):
    x, q = cloud(seed, grid=grid)
    problem = dt.Problem.from_embeddings(x, q, neighbors=K, bandwidth=1.0)
    found = dt.nearest_neighbors(q, x, K)
    np.testing.assert_array_equal(np.asarray(problem.costs_MxK), found.distances_MxK)
    np.testing.assert_array_equal(np.asarray(problem.shortlist_U)[np.asarray(problem.index_MxK)], found.indices_MxK)
    shortlist = np.asarray(problem.shortlist_U)
    assert sorted(set(shortlist.tolist())) == shortlist.tolist() == np.unique(found.indices_MxK).tolist()
    assert np.isclose(np.sum(problem.query_weights_M), 1)
    assert (np.diff(problem.costs_MxK, axis=1) >= 0).all()
    assert problem.size == N
    # Every row is its own neighbour, so that no density is below 1, nor above the number of rows.
    assert (np.asarray(problem.density_U) >= 1 - 1e-6).all()
    assert (np.asarray(problem.density_U) <= N + 1e-4).all()


@few
@given(seeds, st.floats(0.25, 8))
def test_a_problem_grows_with_its_units(seed, factor):
    factor = np.float32(2.0 ** round(float(np.log2(factor))))  # a power of two loses no digit
    x, q = cloud(seed)
    one = dt.Problem.from_embeddings(x, q, neighbors=K, bandwidth=1.0)
    other = dt.Problem.from_embeddings(factor * x, factor * q, neighbors=K, bandwidth=float(factor))
    np.testing.assert_array_equal(np.asarray(one.index_MxK), np.asarray(other.index_MxK))
    np.testing.assert_allclose(factor * np.asarray(one.costs_MxK), other.costs_MxK, rtol=1e-5)
    np.testing.assert_allclose(one.density_U, other.density_U, rtol=1e-4)


@few
@given(seeds, st.booleans(), st.sampled_from(["kde", "uniform"]), st.floats(0.05, 0.95))
def test_a_plan_spends_the_mass_of_every_query(seed, grid, regularizer, alpha):
    problem = problem_of(seed, grid=grid, bandwidth=1.0)
    plan = dt.tsds(problem, alpha=alpha, scale=0.5, regularizer=regularizer)
    np.testing.assert_allclose(np.sum(plan.mass_MxK, axis=1), problem.query_weights_M, rtol=1e-5)
    assert (np.asarray(plan.mass_MxK) >= 0).all()
    probabilities_N = plan.probabilities()
    assert np.isclose(probabilities_N.sum(), 1, atol=1e-5)
    assert set(np.flatnonzero(probabilities_N)) <= set(np.asarray(problem.shortlist_U).tolist())


@few
@given(seeds, st.integers(1, N - 1), st.sampled_from(["pareto", "gumbel"]), st.floats(0.05, 2))
def test_a_relaxed_draw_spends_its_budget(seed, budget, law, temperature):
    probabilities_N = np.random.default_rng(seed).dirichlet(np.ones(N)).astype(np.float32) + np.float32(1e-4)
    options: dict[str, Any] = {"key": jax.random.key(seed % 1000), "temperature": temperature, "law": law}
    soft_N = np.asarray(dt.relaxed_sample(probabilities_N, budget, **options))
    assert soft_N.min() >= 0
    assert soft_N.max() <= 1 + 1e-6
    assert np.isclose(soft_N.sum(), budget, rtol=1e-3)
    hard_N = np.asarray(dt.relaxed_sample(probabilities_N, budget, hard=True, **options))
    assert np.isclose(np.sort(hard_N), np.sort((np.arange(N) < budget).astype(np.float32)), atol=1e-5).all()
    assert soft_N[hard_N > 0.5].min() >= soft_N[hard_N < 0.5].max() - 1e-5


@few
@given(seeds, st.booleans(), st.floats(0, 1), st.sampled_from([0.0, 0.3]))
def test_the_path_runs_through_plans_from_near_to_far(seed, grid, part, blur):
    problem = problem_of(seed, grid=grid, bandwidth=1.0)
    first, last = (float(end) for end in dt.path_ends(problem))
    assert first > 0
    low, high = min(first, last), max(first, last)
    s = low * (high / low) ** part
    plan = dt.path_plan(problem, s, blur=blur)
    np.testing.assert_allclose(np.sum(plan.mass_MxK, axis=1), problem.query_weights_M, rtol=1e-4)
    assert (np.asarray(plan.mass_MxK) >= -1e-7).all()
    near = dt.path_plan(problem, low, blur=blur)
    costs_MxK = np.asarray(problem.costs_MxK)
    assert np.sum(costs_MxK * np.asarray(near.mass_MxK)) <= np.sum(costs_MxK * np.asarray(plan.mass_MxK)) + 1e-5


@few
@given(seeds, st.floats(0.2, 1.5))
def test_pairs_give_the_densities_of_any_bandwidth_within_their_reach(seed, bandwidth):
    x, q = cloud(seed)
    problem = dt.Problem.from_embeddings(x, q, neighbors=K, bandwidth=1.0)
    pairs = dt.Pairs.of(problem, x, q, reach=1.5)
    by_hand = dt.kernel_density(x[np.asarray(problem.shortlist_U)], bandwidth=bandwidth)
    np.testing.assert_allclose(pairs.problem_at(bandwidth=bandwidth).density_U, by_hand, rtol=1e-4, atol=1e-5)


@few
@given(seeds, st.floats(0, 3), st.floats(0, 3))
def test_an_objective_is_the_weighted_sum_of_its_parts(seed, one, two):
    problem = problem_of(seed, bandwidth=1.0)
    plan = dt.tsds(problem, alpha=0.5, scale=0.5)
    objective = dt.Objective.of(align=(one, dt.terms.transport_cost), kde=(two, dt.terms.kde_repulsion))
    parts = objective.parts(plan, problem)
    again = objective.with_weights(align=1.0, kde=1.0).parts(plan, problem)
    assert set(parts) == {"align", "kde"}
    for name, value in parts.items():
        weight = float(objective.weights[name])
        np.testing.assert_allclose(float(value), weight * float(again[name]), rtol=1e-5, atol=1e-12)
    left = objective.without("kde")
    assert set(left.parts(plan, problem)) == {"align"}
    assert left.weights == {"align": objective.weights["align"]}
    assert isinstance(objective.terms["align"], dt.Term)


@settings(deadline=None, max_examples=3)
@given(seeds, st.floats(0.1, 2))
def test_the_two_solvers_agree_and_the_certificate_holds(seed, weight):
    problem = problem_of(seed, bandwidth=1.0)
    objective = dt.Objective.of(align=(1.0, dt.terms.transport_cost), spread=(weight, dt.terms.kde_repulsion))
    plan, info = dt.solve(problem, objective, tolerance=1e-4)

    def value(plan: dt.Plan) -> float:
        return sum(float(part) for part in objective.parts(plan, problem).values())

    found = dt.optimum(problem, objective, tolerance=1e-6)
    assert isinstance(found, dt.Optimum)
    np.testing.assert_allclose(np.sum(found.plan.mass_MxK, axis=1), problem.query_weights_M, rtol=1e-4)
    assert abs(value(plan) - value(found.plan)) <= float(info["gap"]) + float(found.gap) + 1e-4


@settings(deadline=None, max_examples=4)
@given(seeds, st.lists(st.floats(0.1, 2), min_size=3, max_size=3))
def test_a_sweep_is_its_single_solutions(seed, weights):
    problem = problem_of(seed, bandwidth=1.0)
    objective = dt.Objective.of(align=(1.0, dt.terms.transport_cost), spread=(1.0, dt.terms.kde_repulsion))
    for weight, (plan, info) in zip(weights, dt.sweep(problem, objective, spread=weights), strict=True):
        alone, single = dt.solve(problem, objective.with_weights(spread=weight))
        room = float(info["gap"]) + float(single["gap"]) + 1e-4
        assert abs(float(info["value"]) - float(single["value"])) <= room
        np.testing.assert_allclose(np.sum(plan.mass_MxK, axis=1), np.sum(alone.mass_MxK, axis=1), rtol=1e-3)


@few
@given(seeds, st.integers(0, 3))
def test_the_probe_does_not_see_rows_without_weight(seed, row):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(N, D)), rng.normal(size=(N, 2))
    held_out = rng.normal(size=(M, D)), rng.normal(size=(M, 2))
    weights_N = rng.dirichlet(np.ones(N)).astype(np.float32)
    weights_N[row] = 0
    changed = x.copy()
    changed[row] += 5
    losses = [
        float(dt.RidgeProbe.of(given, y, *held_out)(np.arange(N))(jnp.asarray(weights_N))) for given in (x, changed)
    ]
    assert losses[0] >= 0
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)


@settings(deadline=None, max_examples=2)
@given(st.integers(0, 1000))
def test_learned_knobs_stay_within_what_was_given(seed):
    rng = np.random.default_rng(seed)
    x, q = cloud(seed)
    probe = dt.RidgeProbe.of(x, rng.normal(size=(N, 1)), q, rng.normal(size=(M, 1)))
    found = dt.learn_knobs(
        x, q, probe, key=jax.random.key(seed), bandwidths=(0.5, 1.5), neighbors=K, starts=1, max_evaluations=4
    )
    assert isinstance(found, dt.Learned)
    assert found.bandwidth * (1 + 1e-5) >= 0.5
    assert found.bandwidth <= 1.5 * (1 + 1e-5)
    assert 0 < found.alpha < 1
    assert found.s > 0
    assert np.isfinite(found.loss)
    assert found.history
    assert np.isclose(found.plan.probabilities().sum(), 1, atol=1e-4)


@few
@given(*(st.integers(1, 10**6) for _ in range(3)), st.integers(1, 1000), st.data())
def test_a_plan_costs_more_where_there_is_more_of_anything(n, m, d, k, data):
    k = min(k, n)
    cost = dt.plan_cost(n, m, d, k)
    assert isinstance(cost, dt.PlanCost)
    assert cost.bytes > 0
    assert cost.operations > 0
    assert cost.operations == sum(stage.operations for stage in cost.stages)
    for stage in cost.stages:
        assert stage.name in str(cost)
    sizes = {"n": n, "m": m, "d": d, "k": k}
    name = data.draw(st.sampled_from(["n", "m", "d"]))
    more = dt.plan_cost(**(sizes | {name: 2 * sizes[name]}))
    assert more.operations >= cost.operations


SELECTORS = {
    "Random": dt.selectors.Random(),
    "Nearest": dt.selectors.Nearest(),
    "RoundRobin": dt.selectors.RoundRobin(),
    "KCenter": dt.selectors.KCenter(),
    "Diverse": dt.selectors.Diverse(),
}


@pytest.mark.parametrize("name", SELECTORS)
@settings(deadline=None, max_examples=6)
@given(seeds, st.booleans(), st.integers(1, N))
def test_a_selection_is_so_many_rows_each_with_its_reason(name, seed, grid, budget):
    x, q = cloud(seed, grid=grid)
    x[~x.any(axis=1)] = 1  # a row of zeros has no direction
    q[~q.any(axis=1)] = 1
    choose = functools.partial(
        dt.select, x, q, selector=SELECTORS[name], budget=budget, key=jax.random.key(seed % 1000)
    )
    selection = choose()
    assert len(set(selection.indices.tolist())) == len(selection) == budget
    assert set(selection.indices.tolist()) <= set(range(N))
    assert np.isclose(selection.weights.mean(), 1, atol=1e-3)
    assert all(reason["why"] for reason in selection.reasons)
    assert selection.info["candidates"] == N
    np.testing.assert_array_equal(choose().indices, selection.indices)


@few
@given(seeds, st.integers(1, N), st.lists(st.sampled_from("abc"), min_size=N, max_size=N))
def test_a_stratified_draw_does_not_care_what_groups_are_called(seed, budget, groups):
    x, _ = cloud(seed)
    renamed = [{"a": "x1", "b": "x2", "c": "x3"}[group] for group in groups]
    chosen = [
        dt.select(
            x,
            selector=dt.selectors.Random(stratified=True),
            budget=budget,
            key=jax.random.key(seed % 1000),
            groups=labels,
        )
        for labels in (groups, renamed)
    ]
    np.testing.assert_array_equal(chosen[0].indices, chosen[1].indices)


@few
@given(seeds, st.integers(1, N))
def test_a_pool_is_read_only_and_the_callers_arrays_are_not(seed, budget):
    x, q = cloud(seed)
    pool = dt.Pool.of(x, q, costs=np.ones(N))
    for field in dataclasses.fields(pool):
        value = getattr(pool, field.name)
        if isinstance(value, np.ndarray):
            assert not value.flags.writeable
    assert x.flags.writeable
    assert pool.draw_budget(budget) == {"budget": budget}


def test_every_public_name_has_a_law_of_its_own():
    """Held here or in the file that is named: the names that a user calls, each under hypothesis."""
    here = Path(__file__).read_text(encoding="utf-8")
    elsewhere = {"kmeans": "test_kmeans", "KMeans": "test_kmeans", "kernel_density": "test_density"}
    elsewhere |= {"nearest_neighbors": "test_neighbors", "Neighbors": "test_neighbors", "sample": "test_sampling"}
    elsewhere |= {"Selection": "test_selection", "Shards": "test_incremental"}
    elsewhere |= {"open_shards": "test_incremental", "reselect": "test_incremental"}
    names = set(dt.__all__) - {"__version__", "selectors", "terms", *elsewhere}
    missing = sorted(name for name in names if f"dt.{name}" not in here)
    assert not missing
