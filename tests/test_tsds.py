from __future__ import annotations

import dataclasses
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import solve_box_by_events, solve_rt_by_linear_program

from deft_tsds.geometry.density import kernel_density
from deft_tsds.geometry.neighbors import nearest_neighbors
from deft_tsds.transport import closed_form
from deft_tsds.transport.closed_form import Regularizer
from deft_tsds.transport.problem import Problem
from deft_tsds.transport.tsds import objective_rt, tsds, tsds_grown

REGULARIZERS: list[Regularizer] = ["kde", "uniform", "tv"]


def clustered(seed, m, n, d=3):
    """Points around few centres, so that densities differ, with some exact duplicates."""
    rng = np.random.default_rng(seed)
    candidates = 2 * rng.normal(size=(3, d))[rng.integers(3, size=n)] + 0.3 * rng.normal(size=(n, d))
    candidates[n // 2 :: 4] = candidates[0]
    return candidates.astype(np.float32), rng.normal(size=(m, d)).astype(np.float32)


def dense(problem, values_MxK):
    out = np.zeros((len(values_MxK), problem.size))
    np.put_along_axis(out, problem.shortlist_U[problem.index_MxK], values_MxK, axis=1)
    return out


def truncated(problem, k):
    """The same problem with K = k neighbours, and the densities that the candidates have in the whole of it."""
    shortlist, index = np.unique(problem.index_MxK[:, :k], return_inverse=True)
    return dataclasses.replace(
        problem,
        costs_MxK=problem.costs_MxK[:, :k],
        next_cost_M=problem.costs_MxK[:, k] if k < problem.size else problem.next_cost_M,
        index_MxK=index.reshape(-1, k),
        shortlist_U=problem.shortlist_U[shortlist],
        density_U=problem.density_U[shortlist],
    )


def linear_program(problem, **arguments):
    return solve_rt_by_linear_program(
        dense(problem, problem.costs_MxK.astype(np.float64)),
        problem.density_U.astype(np.float64),
        problem.query_weights_M,
        **arguments,
    )


def row_sums_and_probabilities_hold(problem, plan):
    assert (plan.mass_MxK >= 0).all()
    np.testing.assert_allclose(plan.mass_MxK.sum(axis=1), problem.query_weights_M, rtol=1e-12)
    probabilities = plan.probabilities()
    assert probabilities.shape == (problem.size,)
    assert probabilities.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(probabilities, dense(problem, plan.mass_MxK).sum(axis=0), atol=1e-12)


taus = st.floats(-4, 3).map(lambda power: 10**power)
shapes = st.tuples(st.integers(1, 4), st.integers(1, 10))
weights = st.sampled_from([None, [1.0, 3.0, 0.5, 2.0]])


def build(seed, shape, query_weights=None, **arguments):
    candidates, queries = clustered(seed, *shape)
    query_weights = None if query_weights is None else query_weights[: shape[0]]
    return Problem.from_embeddings(candidates, queries, query_weights=query_weights, **arguments)


@pytest.mark.parametrize("regularizer", REGULARIZERS)
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), shape=shapes, tau=taus, query_weights=weights)
def test_reaches_the_linear_program_with_all_neighbors(regularizer, seed, shape, tau, query_weights):
    problem = build(seed, shape, query_weights, bandwidth=1.0)
    arguments = {"alpha": 0.4, "scale": tau * 0.4 / 0.6, "regularizer": regularizer}
    plan = tsds(problem, **arguments)
    value, mass = linear_program(problem, **arguments)
    assert not plan.info["exhausted"]
    assert plan.info["gap"] == 0
    assert plan.info["value"] == pytest.approx(value, abs=1e-9, rel=1e-9)
    assert plan.info["tau"] == pytest.approx(tau)
    row_sums_and_probabilities_hold(problem, plan)
    # The value function agrees with the program's on the program's own plan too.
    own = np.take_along_axis(mass, problem.shortlist_U[problem.index_MxK], axis=1)
    assert objective_rt(problem, own, **arguments) == pytest.approx(value, abs=1e-8, rel=1e-8)


@pytest.mark.parametrize("regularizer", REGULARIZERS)
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), tau=taus, k=st.integers(1, 9), query_weights=weights)
def test_with_fewer_neighbors_it_is_optimal_or_says_how_far_it_may_be(regularizer, seed, tau, k, query_weights):
    whole = build(seed, (3, 10), query_weights, bandwidth=1.0)
    problem = truncated(whole, k)
    arguments = {"alpha": 0.4, "scale": tau * 0.4 / 0.6, "regularizer": regularizer}
    plan = tsds(problem, **arguments)
    row_sums_and_probabilities_hold(problem, plan)
    assert (plan.info["gap"] > 0) == plan.info["exhausted"]
    mass = np.zeros_like(whole.costs_MxK, dtype=np.float64)
    mass[:, :k] = plan.mass_MxK  # the same plan, valued among all candidates, whose densities `problem` does not know
    reached = objective_rt(whole, mass, **arguments)
    value, _ = linear_program(whole, **arguments)
    tolerance = 1e-9 * max(1.0, value)
    assert value - tolerance <= reached <= value + plan.info["gap"] + tolerance
    if regularizer != "kde" or len(problem.shortlist_U) == problem.size:
        assert plan.info["value"] == pytest.approx(reached, rel=1e-12)


@pytest.mark.parametrize("regularizer", ["kde", "uniform"])
@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    tau=taus,
    k=st.integers(1, 30),
    query_weights=weights,
    piece=st.sampled_from([1, 3, 16]),
)
def test_equals_the_event_loop(regularizer, seed, tau, k, query_weights, piece):
    problem = truncated(build(seed, (4, 100), query_weights, bandwidth=1.0), k)
    with mock.patch.multiple(closed_form, _PIECE=piece, _FIRST_COLUMNS=piece):
        plan = tsds(problem, alpha=0.4, scale=tau * 0.4 / 0.6, regularizer=regularizer)
    density = problem.density_U[problem.index_MxK].astype(np.float64)
    expected = solve_box_by_events(
        problem.costs_MxK.astype(np.float64),
        problem.next_cost_M.astype(np.float64),
        density if regularizer == "kde" else np.ones_like(density),
        problem.query_weights_M,
        tau,
    )
    half = (np.sum(1 / problem.density_U) if regularizer == "kde" else problem.size) / 2
    if expected is None or expected[0] > half:
        return  # the sweep knows neither of running out nor of the lower deviations: the linear programs judge those
    assert plan.info["gap"] == 0
    assert plan.info["s"] == pytest.approx(expected[0], rel=1e-12)
    np.testing.assert_allclose(plan.mass_MxK, expected[1], atol=1e-14)


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_how_many_columns_and_rows_are_taken_at_once_changes_nothing(regularizer, monkeypatch):
    problem = build(15, (7, 300), bandwidth=1.0, neighbors=200)
    scales = np.geomspace(1e-3, 1e3, 9)
    whole = [tsds(problem, scale=scale, regularizer=regularizer) for scale in scales]
    monkeypatch.setattr(closed_form, "_FIRST_COLUMNS", 1)
    monkeypatch.setattr(closed_form, "_PIECE", 3)
    monkeypatch.setattr(closed_form, "_BLOCK_BYTES", 1)
    for scale, plan in zip(scales, whole, strict=True):
        pieces = tsds(problem, scale=scale, regularizer=regularizer)
        np.testing.assert_array_equal(pieces.mass_MxK, plan.mass_MxK)
        assert pieces.info["s"] == plan.info["s"]
        assert pieces.info["gap"] == pytest.approx(plan.info["gap"], rel=1e-12)
        assert pieces.info["value"] == pytest.approx(plan.info["value"], rel=1e-12)


@pytest.mark.parametrize("regularizer", REGULARIZERS)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), fraction=st.floats(0, 1), k=st.sampled_from([4, 10]), query_weights=weights)
def test_a_wanted_effective_size_is_met_by_an_optimum(regularizer, seed, fraction, k, query_weights):
    whole = build(seed, (3, 10), query_weights, bandwidth=1.0)
    problem = truncated(whole, k)
    least = tsds(problem, alpha=1.0, regularizer=regularizer).info["effective_size"]
    with pytest.raises(ValueError, match="end at") as caught:
        tsds(problem, effective_size=11, regularizer=regularizer)
    most = float(str(caught.value).split("end at ")[1].split(":")[0])
    wanted = least + fraction * (most - least) * (1 - 1e-3)
    if most < least:
        return  # more queries share a candidate at the end of K than at its beginning
    plan = tsds(problem, effective_size=wanted, scale=2.0, regularizer=regularizer)
    row_sums_and_probabilities_hold(problem, plan)
    assert plan.info["effective_size"] >= wanted * (1 - 1e-6)
    if regularizer != "tv":
        assert plan.info["effective_size"] == pytest.approx(wanted, rel=1e-6)
    assert not plan.info["exhausted"]
    assert plan.info["tau"] == pytest.approx(2.0 * (1 - plan.info["alpha"]) / plan.info["alpha"], rel=1e-6, abs=1e-12)
    # It is an optimum for its alpha, among all candidates.
    mass = np.zeros_like(whole.costs_MxK, dtype=np.float64)
    mass[:, :k] = plan.mass_MxK
    arguments = {"alpha": plan.info["alpha"], "scale": 2.0, "regularizer": regularizer}
    value, _ = linear_program(whole, **arguments)
    assert objective_rt(whole, mass, **arguments) == pytest.approx(value, rel=1e-7, abs=1e-8)


def test_tv_takes_the_first_step_of_the_wanted_size():
    problem = build(16, (3, 60))
    plan = tsds(problem, effective_size=20, regularizer="tv")
    tau = plan.info["tau"]
    before = tsds(problem, alpha=0.5, scale=tau * (1 - 1e-6), regularizer="tv")
    assert before.info["effective_size"] < 20 <= plan.info["effective_size"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"alpha": 0.5, "effective_size": 5},
            r"^alpha and effective_size both decide how far the mass spreads: give one of them\.$",
        ),
        ({"effective_size": 0.5}, r"^effective_size is 0\.5: give a number at least 1\.$"),
        (
            {"effective_size": 1.5},
            r"^effective_size is 1\.5, but the nearest candidates of the queries alone have 4 \(alpha = 1\): give at "
            r"least that, or fewer queries\.$",
        ),
        (
            {"effective_size": 39},
            r"^effective_size is 39, but the optima that are proven within 3 neighbours a query end at 12: lower "
            r"effective_size, or raise neighbors\.$",
        ),
    ],
)
def test_effective_sizes_that_cannot_be(arguments, message):
    rng = np.random.default_rng(17)
    queries = 10 * np.eye(4, 5)
    candidates = np.repeat(queries, 10, axis=0) + rng.normal(size=(40, 5))
    with pytest.raises(ValueError, match=message):
        tsds(Problem.from_embeddings(candidates, queries, neighbors=3), **arguments)


def test_nothing_is_traced_when_only_real_parameters_change():
    traces = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: traces.append(event) if "trace" in event else None
    )
    candidates, queries = clustered(18, 3, 40)

    def run(alpha, scale, bandwidth, query_weights):
        problem = Problem.from_embeddings(candidates, queries, bandwidth=bandwidth, query_weights=query_weights)
        for regularizer in REGULARIZERS:
            tsds(problem, alpha=alpha, scale=scale, regularizer=regularizer)
        tsds(problem, effective_size=10 * scale)

    run(0.5, 1.0, 1.0, None)
    traces.clear()
    run(0.3, 1.5, 1.1, [1.0, 2.0, 0.5])
    assert traces == []
    jax.jit(lambda x: x + 1)(1.0)
    assert traces  # the listener hears


def test_masses_equal_the_linear_program_where_the_optimum_is_unique():
    rng = np.random.default_rng(0)
    problem = Problem.from_embeddings(rng.normal(size=(9, 3)), rng.normal(size=(3, 3)), bandwidth=1.5)
    for regularizer in REGULARIZERS:
        arguments = {"alpha": 0.5, "scale": 0.7, "regularizer": regularizer}
        _, mass = linear_program(problem, **arguments)
        np.testing.assert_allclose(dense(problem, tsds(problem, **arguments).mass_MxK), mass, atol=1e-8)


def test_uniform_takes_the_smallest_sufficient_number_of_neighbors():
    problem = build(3, (4, 50))
    m, tau = 4, 2.0
    distances = problem.costs_MxK.astype(np.float64)
    for k_star in range(1, 50):
        if np.sum(distances[:, k_star][:, None] - distances[:, :k_star]) >= m * tau:
            break
    plan = tsds(problem, alpha=0.5, scale=tau, regularizer="uniform")
    assert plan.info["s"] == plan.info["neighbors"] == k_star
    np.testing.assert_allclose(plan.mass_MxK[:, :k_star], 1 / (m * k_star), rtol=1e-12)
    assert not plan.mass_MxK[:, k_star:].any()


def test_tv_keeps_what_is_within_tau_of_the_nearest():
    problem = build(4, (3, 20))
    plan = tsds(problem, alpha=0.5, scale=1.0, regularizer="tv")
    kept = problem.costs_MxK - problem.costs_MxK[:, :1] <= 1.0
    np.testing.assert_allclose(plan.mass_MxK[:, 1:], kept[:, 1:] / 60)
    few = tsds(truncated(problem, 2), alpha=0.5, scale=1.0, regularizer="tv")
    assert few.info["exhausted"]
    assert few.info["s"] is None


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_alpha_one_takes_the_nearest(regularizer):
    problem = Problem.from_embeddings(*clustered(5, 4, 30), bandwidth=1.0)
    problem = dataclasses.replace(problem, costs_MxK=problem.costs_MxK + np.arange(30, dtype=np.float32))  # no ties
    plan = tsds(problem, alpha=1.0, regularizer=regularizer)
    np.testing.assert_allclose(plan.mass_MxK[:, 0], 0.25, rtol=1e-12)


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_an_immense_tau_gives_the_reference_plan(regularizer):
    problem = build(6, (3, 12), bandwidth=1.0)
    plan = tsds(problem, alpha=1e-9, scale=1.0, regularizer=regularizer)
    inverse = 1 / problem.density_U.astype(np.float64) if regularizer == "kde" else np.ones(12)
    np.testing.assert_allclose(plan.probabilities(), inverse / inverse.sum(), rtol=1e-9)


@pytest.mark.parametrize("regularizer", ["kde", "uniform"])
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 60))
def test_s_does_not_fall_as_tau_rises(regularizer, seed, k):
    problem = truncated(build(seed, (5, 60), bandwidth=1.0), k)
    scales = np.geomspace(1e-4, 1e4, 60)
    s = [tsds(problem, scale=scale, regularizer=regularizer).info["s"] for scale in scales]
    assert (np.diff(s) >= 0).all()
    assert s[0] < s[-1] or k == 1


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), regularizer=st.sampled_from(REGULARIZERS))
def test_permuting_and_rotating_the_embeddings(seed, regularizer):
    rng = np.random.default_rng(seed)
    candidates, queries = rng.normal(size=(25, 3)), rng.normal(size=(3, 3))
    order = rng.permutation(25)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]

    def p(x, y):
        problem = Problem.from_embeddings(x, y, bandwidth=1.0)
        return tsds(problem, scale=0.5, regularizer=regularizer).probabilities()

    plain = p(candidates, queries)
    np.testing.assert_allclose(p(candidates[order], queries), plain[order], atol=1e-5)
    np.testing.assert_allclose(p(candidates @ rotation, queries @ rotation), plain, atol=1e-3)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), power=st.integers(-8, 8), regularizer=st.sampled_from(REGULARIZERS))
def test_scaling_distances_and_c_and_h_together_changes_nothing(seed, power, regularizer):
    candidates, queries = clustered(seed, 3, 25)
    factor = 2.0**power

    def p(f):
        problem = Problem.from_embeddings(f * candidates, f * queries, bandwidth=f)
        return tsds(problem, scale=0.5 * f, regularizer=regularizer).probabilities()

    np.testing.assert_allclose(p(factor), p(1.0), atol=1e-6)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6))
def test_near_copies_take_a_tenth_of_what_they_take_without_density(seed):
    """50 near-copies of the nearest candidate count about once with KDE and 51 times with uniform."""
    rng = np.random.default_rng(seed)
    query = rng.normal(size=(1, 16))
    candidates = query + rng.normal(size=(300, 16))
    nearest = candidates[np.argmin(np.linalg.norm(candidates - query, axis=1))]
    copies = nearest + 1e-3 * rng.normal(size=(50, 16)) / 4
    problem = Problem.from_embeddings(np.concatenate([candidates, copies]), query, bandwidth=0.3)
    with_density = tsds(problem, scale=50.0, regularizer="kde").probabilities()[300:].sum()
    without = tsds(problem, scale=50.0, regularizer="uniform").probabilities()[300:].sum()
    assert with_density < without / 10


def test_a_query_of_double_weight_is_two_queries():
    candidates, queries = clustered(8, 3, 40)
    doubled = np.concatenate([queries, queries[:1]])
    for regularizer in REGULARIZERS:
        weighted = Problem.from_embeddings(candidates, queries, bandwidth=1.0, query_weights=[2, 1, 1])
        repeated = Problem.from_embeddings(candidates, doubled, bandwidth=1.0)
        a, b = (tsds(problem, scale=1.0, regularizer=regularizer) for problem in (weighted, repeated))
        np.testing.assert_allclose(a.probabilities(), b.probabilities(), atol=1e-12)
        assert a.info["value"] == pytest.approx(b.info["value"], rel=1e-12)


@pytest.mark.parametrize("regularizer", REGULARIZERS)
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 10**6), tau=taus, before=st.integers(0, 2), after=st.integers(0, 2), query_weights=weights)
def test_padding_rows_of_weight_zero_change_nothing(regularizer, seed, tau, before, after, query_weights):
    problem = build(seed, (3, 40), query_weights, bandwidth=1.0, neighbors=20)

    def pad(array):
        return np.pad(array, [(before, after)] + [(0, 0)] * (array.ndim - 1))

    names = ("costs_MxK", "next_cost_M", "index_MxK", "query_weights_M")
    padded = dataclasses.replace(problem, **{name: pad(getattr(problem, name)) for name in names})
    a, b = (tsds(p, scale=tau, regularizer=regularizer) for p in (problem, padded))
    np.testing.assert_array_equal(b.mass_MxK, pad(a.mass_MxK))
    np.testing.assert_array_equal(b.weights_U, a.weights_U)
    assert a.info == b.info


@pytest.mark.parametrize("regularizer", REGULARIZERS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 19, 1), (5, 2, 1), (1, 7, 3)])
@pytest.mark.parametrize("points", ["random", "equal", "zero"])
def test_small_and_degenerate_pools(regularizer, shape, points):
    m, n, d = shape
    rng = np.random.default_rng(10)
    candidates = {"random": rng.normal(size=(n, d)), "equal": np.ones((n, d)), "zero": np.zeros((n, d))}[points]
    problem = Problem.from_embeddings(candidates, rng.normal(size=(m, d)), bandwidth=0.5)
    arguments = {"alpha": 0.5, "scale": 1.0, "regularizer": regularizer}
    plan = tsds(problem, **arguments)
    row_sums_and_probabilities_hold(problem, plan)
    assert plan.info["value"] == pytest.approx(linear_program(problem, **arguments)[0], abs=1e-9)
    if points != "random":
        np.testing.assert_allclose(problem.density_U, n, rtol=1e-6)
        np.testing.assert_allclose(plan.probabilities(), 1 / n, rtol=1e-6)


def test_a_single_query_may_spend_more_than_half_of_its_own_shortlist():
    """Its shortlist is its neighbourhood, which says nothing of the Z of a large pool: pour on, but admit the doubt."""
    whole = build(14, (1, 400), bandwidth=0.5)
    k = 40
    levels = np.cumsum(1 / whole.density_U[whole.index_MxK[0]].astype(np.float64))
    costs = whole.costs_MxK[0].astype(np.float64)
    enough = np.sum((costs[30] - costs[:30]) / whole.density_U[whole.index_MxK[0, :30]])
    plan = tsds(truncated(whole, k), scale=enough * (1 - 1e-6))
    assert levels[k - 1] / 2 < plan.info["s"] == pytest.approx(levels[29])
    least_total = levels[k - 1] + (400 - k) / 400
    assert plan.info["s"] > least_total / 2
    assert plan.info["exhausted"]
    assert plan.info["gap"] == pytest.approx(0.5 * (2 / least_total - 1 / plan.info["s"]))
    np.testing.assert_allclose(plan.probabilities(), tsds(whole, scale=enough * (1 - 1e-6)).probabilities(), atol=1e-12)


@pytest.mark.parametrize("regularizer", REGULARIZERS)
def test_grown_neighborhoods_reach_the_optimum(regularizer):
    candidates, queries = clustered(11, 3, 200)
    arguments = {"alpha": 0.5, "scale": 2.0, "regularizer": regularizer}
    few = tsds(Problem.from_embeddings(candidates, queries, neighbors=2), **arguments)
    assert few.info["exhausted"]
    assert few.info["gap"] > 0
    assert few.info["message"].startswith(
        "Not proven optimal: 2 neighbours a query are too few for tau = 2; the objective may"
    )
    problem, plan = tsds_grown(candidates, queries, neighbors=2, **arguments)
    whole = tsds(Problem.from_embeddings(candidates, queries), **arguments)
    assert 2 < problem.costs_MxK.shape[1] <= 200
    assert not plan.info["exhausted"]
    np.testing.assert_allclose(plan.probabilities(), whole.probabilities(), atol=1e-12)


@pytest.mark.parametrize(("regularizer", "densities"), [("kde", 1), ("uniform", 1), ("tv", 1)])
def test_growth_searches_no_k_twice_and_measures_density_where_it_matters(regularizer, densities, monkeypatch):
    searched, measured = [], []

    def search(queries, candidates, k):
        searched.append(k - 1)
        return nearest_neighbors(queries, candidates, k)

    def measure(points, **arguments):
        measured.append(len(points))
        return kernel_density(points, **arguments)

    monkeypatch.setattr("deft_tsds.transport.problem.nearest_neighbors", search)
    monkeypatch.setattr("deft_tsds.transport.problem.kernel_density", measure)
    candidates, queries = clustered(11, 3, 400)
    optimum = {"alpha": 0.4, "scale": 2.0, "regularizer": regularizer}
    problem = Problem.from_embeddings(candidates, queries, neighbors=2, bandwidth=0.05, grow=True, **optimum)
    k = problem.info["neighbors"]
    assert problem.costs_MxK.shape[1] == k
    assert problem.info["searches"][0] == 2
    assert problem.info["searches"][-1] == k
    assert searched[:-1] == problem.info["searches"][:-1]
    assert len(searched) == len(problem.info["searches"])
    assert all(a < b <= 4 * a or b == 400 for a, b in zip(searched, problem.info["searches"][1:], strict=False))
    assert len(measured) == densities
    assert not tsds(problem, **optimum).info["exhausted"]
    before = Problem.from_embeddings(candidates, queries, neighbors=problem.info["searches"][-2], bandwidth=0.05)
    assert tsds(before, **optimum).info["exhausted"]


def test_growth_that_only_the_densities_ask_for():
    """Copies crowd the neighbourhoods: each rho is about 50, so K must be about 50 times what rho = 1 needs."""
    rng = np.random.default_rng(20)
    candidates = np.repeat(rng.normal(size=(40, 4)), 50, axis=0)
    queries = rng.normal(size=(2, 4))
    optimum: dict[str, Any] = {"alpha": 0.5, "scale": 1.0}
    plain = Problem.from_embeddings(candidates, queries, neighbors=60, grow=True, **optimum)
    crowded = Problem.from_embeddings(candidates, queries, neighbors=60, bandwidth=0.01, grow=True, **optimum)
    assert plain.info["searches"] == [60]
    assert len(crowded.info["searches"]) > 1
    assert not tsds(crowded, **optimum).info["exhausted"]


def test_growth_stops_at_the_whole_pool():
    problem, plan = tsds_grown(*clustered(12, 2, 30), neighbors=1, alpha=1e-6, bandwidth=1.0)
    assert problem.costs_MxK.shape == (2, 30)
    assert not plan.info["exhausted"]


def test_info_describes_the_plan():
    problem = build(13, (3, 40), bandwidth=1.0)
    plan = tsds(problem, scale=0.5)
    p = plan.probabilities()
    assert plan.info["effective_size"] == pytest.approx(1 / np.sum(p**2))
    assert plan.info["support"] == np.count_nonzero(p)
    assert plan.info["neighbors"] == (plan.mass_MxK > 0).sum(axis=1).max()
    assert plan.info["message"].startswith(f"Optimal: {plan.info['support']} candidates, as diverse as ")
    np.testing.assert_allclose(plan.weights_U, p[problem.shortlist_U], rtol=1e-12)
    assert "kde equals uniform" in tsds(build(13, (3, 40))).info["message"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 0}, "alpha is 0, which ignores every distance: use the Random selector, or give alpha above 0."),
        ({"alpha": -0.1}, "alpha is -0.1: give a number above 0 and at most 1."),
        ({"alpha": 1.1}, "alpha is 1.1: give a number above 0 and at most 1."),
        ({"alpha": np.nan}, "alpha is nan: give a finite number."),
        ({"scale": 0.0}, "scale is 0: give a number above 0."),
        ({"regularizer": "l2"}, "regularizer is 'l2': choose one of kde, uniform, tv."),
    ],
)
def test_errors(arguments, message):
    problem = build(0, (2, 5))
    calls = [
        lambda: tsds(problem, **arguments),
        lambda: objective_rt(problem, problem.costs_MxK, **arguments),
        lambda: tsds_grown(np.ones((3, 2)), np.ones((1, 2)), **arguments),
    ]
    for call in calls:
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            call()
        assert str(caught.value) == message


def test_objective_of_a_plan_of_the_wrong_shape():
    with pytest.raises(
        ValueError, match=r"^mass_MxK has shape \(2, 4\): give one entry for each of problem.costs_MxK\.$"
    ):
        objective_rt(build(0, (2, 5)), np.ones((2, 4)))
