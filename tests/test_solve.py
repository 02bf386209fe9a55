from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.special import logsumexp

import deft_tsds as dt
from deft_tsds.transport.kinks import _descending, _log_tails
from deft_tsds.transport.tsds import objective_rt, tsds

KINKS = {
    "uniform": dt.terms.uniform_deviation,
    "tv": dt.terms.tv_deviation,
    "kde": dt.terms.kde_deviation,
}


def build(seed, m=4, n=24, k=24, bandwidth=1.0, query_weights=None):
    """Points around few centres, so that densities differ, with some exact duplicates."""
    rng = np.random.default_rng(seed)
    candidates = 2 * rng.normal(size=(3, 3))[rng.integers(3, size=n)] + 0.3 * rng.normal(size=(n, 3))
    candidates[n // 2 :: 4] = candidates[0]
    return dt.Problem.from_embeddings(
        candidates, rng.normal(size=(m, 3)), neighbors=k, bandwidth=bandwidth, query_weights=query_weights
    )


def rt(alpha, scale, regularizer):
    return dt.Objective.of(align=(alpha / scale, dt.terms.transport_cost), far=(1 - alpha, KINKS[regularizer]))


@pytest.mark.parametrize("regularizer", KINKS)
@settings(deadline=None, max_examples=70)
@given(seed=st.integers(0, 10**6), alpha=st.floats(0.02, 0.98), scale=st.floats(0.2, 20.0), even=st.booleans())
def test_problem_rt_comes_to_the_value_of_the_closed_form_and_never_below(regularizer, seed, alpha, scale, even):
    problem = build(seed, query_weights=None if even else [1.0, 3.0, 0.5, 2.0])
    plan, info = dt.solve(problem, rt(alpha, scale, regularizer))
    best = tsds(problem, alpha=alpha, scale=scale, regularizer=regularizer).info["value"]
    assert info["converged"]
    assert best * (1 - 1e-6) <= info["value"] <= best * (1 + 1e-4)
    assert info["value"] - info["gap"] <= best * (1 + 1e-6)  # the bound is one
    arguments = {"alpha": alpha, "scale": scale, "regularizer": regularizer}
    assert objective_rt(problem, plan.mass_MxK, **arguments) == pytest.approx(info["value"], rel=1e-6)


@pytest.mark.parametrize("regularizer", KINKS)
def test_problem_rt_with_fewer_neighbors_than_candidates(regularizer):
    problem = build(7, m=30, n=400, k=200)
    plan, info = dt.solve(problem, rt(0.8, 5.0, regularizer))
    best = tsds(problem, alpha=0.8, scale=5.0, regularizer=regularizer)
    assert info["converged"]
    assert info["value"] <= best.info["value"] * (1 + 1e-4)
    np.testing.assert_allclose(plan.mass_MxK.sum(axis=1), problem.query_weights_M, rtol=1e-12)
    np.testing.assert_allclose(plan.probabilities().sum(), 1, rtol=1e-12)


@pytest.mark.parametrize("epsilon", [0.05, 0.5, 3.0])
def test_entropic_plan_is_the_softmax_of_its_rows(epsilon):
    problem = build(1)
    objective = dt.Objective.of(a=(1.0, dt.terms.transport_cost), h=(epsilon, dt.terms.entropy))
    plan, info = dt.solve(problem, objective, tolerance=1e-10)
    weights = np.exp(-problem.costs_MxK.astype(np.float64) / epsilon)
    expected = problem.query_weights_M[:, None] * weights / weights.sum(axis=1, keepdims=True)
    assert info["converged"]
    np.testing.assert_allclose(plan.mass_MxK, expected, rtol=1e-6, atol=1e-12)
    value = float(np.sum(expected * problem.costs_MxK) + epsilon * np.sum(expected * np.log(4 * expected)))
    assert info["value"] == pytest.approx(value, rel=1e-8)


@pytest.mark.parametrize("regularizer", [None, "uniform", "tv", "kde"])
def test_smooth_terms_beside_a_kink_are_certified(regularizer):
    problem = build(3)
    objective = dt.Objective.of(
        align=(0.3, dt.terms.transport_cost), spread=(0.2, dt.terms.chi_square), kl=(0.1, dt.terms.kl)
    )
    if regularizer is not None:
        objective = dt.Objective(
            objective.weights | {"far": 0.7}, objective.terms | {"far": dt.Term(KINKS[regularizer])}
        )
    plan, info = dt.solve(problem, objective)
    assert info["converged"]
    assert sum(info["parts"].values()) == pytest.approx(info["value"], rel=1e-9)
    # Nothing else that we can think of is below the bound: not plans nearby, and not those of problem RT.
    rng = np.random.default_rng(0)
    others = [tsds(problem, alpha=alpha).mass_MxK for alpha in (0.2, 0.5, 0.8, 0.95)]
    for size in (1e-3, 1e-2, 0.1, 1.0):
        rows = plan.mass_MxK * np.exp(size * rng.normal(size=plan.mass_MxK.shape))
        others.append(rows / rows.sum(axis=1, keepdims=True) * problem.query_weights_M[:, None])
    with jax.enable_x64(True):
        values = [float(objective(dt.terms.plan_of(jnp.asarray(mass), problem), problem)) for mass in others]
    assert min(values) >= info["value"] - info["gap"] - 1e-9


def dense_costs(problem):
    costs = np.zeros((len(problem.costs_MxK), len(problem.shortlist_U)))
    np.put_along_axis(costs, problem.index_MxK, problem.costs_MxK.astype(np.float64), axis=1)
    return costs


@pytest.mark.parametrize("cap", [1 / 20, 1 / 8, 1 / 3])
def test_capped_plan_is_that_of_the_linear_program(cap):
    problem = build(4)
    costs = dense_costs(problem)
    m, u = costs.shape
    rows, columns = np.kron(np.eye(m), np.ones(u)), np.kron(np.ones(m), np.eye(u))
    best = linprog(
        costs.ravel(), A_ub=columns, b_ub=np.full(u, cap), A_eq=rows, b_eq=problem.query_weights_M, method="highs"
    ).fun
    plan, info = dt.solve(problem, dt.Objective.of(a=(1.0, dt.terms.transport_cost)), cap=cap)
    assert info["converged"]
    assert info["value"] == pytest.approx(best, rel=2e-4)
    assert info["value"] - info["gap"] <= best * (1 + 1e-9)
    assert plan.weights_U.max() <= cap + 1e-4


def test_fixed_marginal_is_that_of_a_plain_sinkhorn():
    problem = build(5)
    epsilon = 0.3
    rng = np.random.default_rng(0)
    marginal = rng.random(problem.size)
    marginal /= marginal.sum()
    objective = dt.Objective.of(a=(1.0, dt.terms.transport_cost), h=(epsilon, dt.terms.entropy))
    plan, info = dt.solve(problem, objective, marginal=marginal, tolerance=1e-8)
    kernel = np.exp(-dense_costs(problem) / epsilon)
    u, limit = np.ones(len(kernel)), marginal[problem.shortlist_U]
    for _ in range(5000):
        v = limit / (kernel.T @ u)
        u = problem.query_weights_M / (kernel @ v)
    expected = u[:, None] * kernel * v
    found = np.zeros_like(kernel)
    np.put_along_axis(found, problem.index_MxK, plan.mass_MxK, axis=1)
    assert info["converged"]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(plan.weights_U, limit, atol=1e-8)


def test_rows_of_no_weight_and_unnamed_candidates_change_nothing():
    problem = build(6)
    padded = dataclasses.replace(
        problem,
        costs_MxK=np.vstack([problem.costs_MxK, problem.costs_MxK[:1]]),
        next_cost_M=np.append(problem.next_cost_M, problem.next_cost_M[0]),
        index_MxK=np.vstack([problem.index_MxK, problem.index_MxK[:1]]),
        query_weights_M=np.append(problem.query_weights_M, 0.0),
    )
    for regularizer in KINKS:
        objective = rt(0.6, 2.0, regularizer)
        plan, info = dt.solve(problem, objective)
        more, info_more = dt.solve(padded, objective)
        assert info_more["value"] == pytest.approx(info["value"], rel=1e-9)
        np.testing.assert_allclose(more.mass_MxK[:4], plan.mass_MxK, atol=1e-9)
        assert not more.mass_MxK[4].any()


def test_other_weights_and_tolerances_do_not_compile_again():
    traced = []

    def counted(plan, problem):
        traced.append(1)
        return jnp.sum(plan.weights_U**2)

    problem = build(0)
    objective = dt.Objective.of(a=(1.0, dt.terms.transport_cost), mine=(0.5, counted))
    dt.solve(problem, objective)
    first = len(traced)
    traced.clear()
    plan, _ = dt.solve(build(1), objective.with_weights(mine=0.2, a=2.0), tolerance=1e-3, max_iterations=50)
    eager = len(traced)
    assert eager < first  # what is left are the plain calls that check and report
    traced.clear()
    again = dt.Objective.of(a=(3.0, dt.terms.transport_cost), mine=(0.1, counted))
    dt.solve(problem, again)
    assert len(traced) == eager
    assert isinstance(plan.mass_MxK, np.ndarray)


@pytest.mark.parametrize("kink", [None, "kde"])
@pytest.mark.parametrize("lanes", [1, 3])
def test_a_sweep_is_its_separate_solves_in_one_compilation(kink, lanes):
    traced = []

    def counted(plan, problem):
        traced.append(1)
        return jnp.sum(plan.weights_U**2)

    problem = build(2)
    objective = dt.Objective.of(a=(1.0, dt.terms.transport_cost), mine=(0.5, counted))
    if kink:
        objective = dt.Objective.of(a=(1.0, dt.terms.transport_cost), mine=(0.5, counted), far=(0.5, KINKS[kink]))
    weights = [0.01, 0.1, 1.0, 10.0]
    swept = dt.sweep(problem, objective, lanes=lanes, mine=weights)
    first = len(traced)
    traced.clear()
    dt.sweep(problem, objective, lanes=lanes, mine=[0.02, 0.2, 2.0, 20.0])
    assert len(traced) < first
    for weight, (_, info) in zip(weights, swept, strict=True):
        _, alone = dt.solve(problem, objective.with_weights(mine=weight))
        assert info["converged"]
        assert abs(info["value"] - alone["value"]) <= info["gap"] + alone["gap"] + 1e-9


def test_a_sweep_in_any_order_and_over_several_weights_and_from_spread_to_sparse():
    problem = build(3, m=6, n=60, k=60)
    objective = dt.Objective.of(a=(1.0, dt.terms.transport_cost), r=(1.0, dt.terms.kde_repulsion))
    weights = np.geomspace(0.01, 10, 24)
    mixed = np.random.default_rng(0).permutation(24)
    swept = dt.sweep(problem, objective, r=weights[mixed])
    alone = [dt.solve(problem, objective.with_weights(r=weight))[1] for weight in weights[mixed]]
    for (_, info), other in zip(swept, alone, strict=True):
        assert info["converged"]
        assert abs(info["value"] - other["value"]) <= info["gap"] + other["gap"] + 1e-9
    assert sum(info["steps"] for _, info in swept) < 0.6 * sum(info["steps"] for info in alone)
    # Backwards in the other weight, and a grid of both, where the neighbours are not always near.
    grids: list[dict[str, Any]] = [
        {"a": weights[::4]},
        {"a": [1.0, 1.0, 5.0, 5.0], "r": [0.1, 1.0, 0.1, 1.0]},
        {"r": [0.3]},
    ]
    for several in grids:
        for i, (_, info) in enumerate(dt.sweep(problem, objective, **several)):
            _, other = dt.solve(problem, objective.with_weights(**{name: several[name][i] for name in several}))
            assert info["converged"]
            assert abs(info["value"] - other["value"]) <= info["gap"] + other["gap"] + 1e-9


@pytest.mark.parametrize(
    ("moving", "weights"),
    [("h", np.geomspace(0.2, 2, 8)), ("a", np.linspace(0.5, 2, 8)), ("h", [0.2, 0.3, 0.5, 0.9, 1.5])],
)
def test_a_sweep_finds_its_lines(moving, weights):
    """With an entropy the logarithms of shares are lines in its inverse weight, or in the weight of the costs."""
    objective = dt.Objective.of(a=(1.0, dt.terms.transport_cost), h=(1.0, dt.terms.entropy))
    swept = dt.sweep(build(1), objective, **{moving: weights})
    steps = [info["steps"] for _, info in swept]
    assert all(info["converged"] for _, info in swept)
    in_order = steps if moving == "a" else steps[::-1]  # from spread out to not
    assert sum(in_order[3:-1]) <= 3


def test_not_converged_is_a_warning_and_a_field():
    objective = dt.Objective.of(a=(1.0, dt.terms.transport_cost), r=(0.1, dt.terms.chi_square))
    with pytest.warns(UserWarning, match="^Not converged: after 1 steps the value, .* above the optimum. Raise"):
        _, info = dt.solve(build(0), objective, max_iterations=1)
    assert not info["converged"]
    assert "limits" not in info["message"]
    assert info["gap"] > 0


def test_a_term_that_is_not_convex_is_found_out():
    def hill(plan, problem):
        return -jnp.sum(plan.mass_MxK**2)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, info = dt.solve(build(0), dt.Objective.of(mine=(1.0, hill), a=(0.01, dt.terms.transport_cost)))
    assert not info["converged"]
    assert any("is not convex (look at mine)" in str(each.message) for each in caught)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tolerance": 0}, "tolerance is 0: give a number above 0"),
        ({"max_iterations": 0}, "max_iterations is 0"),
        ({"cap": 0.01}, "cap is 0.01, but 24 candidates can then hold only 0.24 of 1"),
        ({"cap": 0.1, "marginal": np.ones(24) / 24}, "give one of them"),
        ({"marginal": np.ones(3)}, r"marginal has shape \(3,\)"),
        ({"marginal": np.ones(24)}, "marginal sums to 24"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        dt.solve(build(0), dt.Objective.of(a=(1.0, dt.terms.transport_cost)), **arguments)


def least_by_linear_program(problem, *, align, tv=0.0, kde=0.0, cap=None):
    """min align <d, gamma> + tv G_tv + kde G_kde, p_j <= cap, by HiGHS; all candidates are neighbours."""
    costs, w = dense_costs(problem), problem.query_weights_M
    m, u = costs.shape
    size = m * u
    rows, columns = np.kron(np.eye(m), np.ones(u)), np.kron(np.ones(m), np.eye(u))
    reference = np.repeat(w / u, u)
    density = np.tile(problem.density_U.astype(np.float64), m) / np.repeat(w, u)  # of gamma, not of r
    z = 1 / np.sum(1 / problem.density_U.astype(np.float64))
    identity, none, column = np.eye(size), np.zeros((size, 1)), np.ones((size, 1))
    # Variables: gamma, one slack an entry for G_tv, one t for G_kde.
    c = np.concatenate([align * costs.ravel(), np.full(size, tv / 2), [kde]])
    upper: list[Any] = [np.hstack([sign * identity, -identity, none]) for sign in (1, -1)]
    upper += [np.hstack([sign * density[:, None] * identity, 0 * identity, -column]) for sign in (1, -1)]
    limit: list[Any] = [reference, -reference, np.full(size, z), np.full(size, -z)]
    if cap is not None:
        upper.append(np.hstack([columns, np.zeros((u, size + 1))]))
        limit.append(np.full(u, cap))
    equal = np.hstack([rows, np.zeros((m, size + 1))])
    found = linprog(c, A_ub=np.vstack(upper), b_ub=np.concatenate(limit), A_eq=equal, b_eq=w, method="highs")
    assert found.status == 0, found.message
    return found.fun


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "case",
    [
        {"kde": 0.5, "cap": 0.2},
        {"tv": 0.5, "cap": 0.2},
        {"tv": 0.3, "kde": 0.5},
        {"tv": 0.5, "kde": 0.05},
        {"tv": 0.3, "kde": 0.5, "cap": 0.2},
    ],
)
def test_several_kinks_and_limits_at_once_are_proven_to_be_near_the_linear_program(case, seed):
    problem = build(seed)
    chosen = {"align": (0.5, dt.terms.transport_cost)}
    chosen |= {name: (case[name], KINKS[name]) for name in KINKS if name in case}
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        plan, info = dt.solve(problem, dt.Objective.of(**chosen), cap=case.get("cap"), max_iterations=200)
    best = least_by_linear_program(problem, align=0.5, **case)
    assert info["value"] - info["gap"] <= best * (1 + 1e-7)
    assert best * (1 - 1e-7) <= info["value"] <= best * (1 + 1e-4)
    assert info["converged"]
    assert plan.weights_U.max() <= case.get("cap", 1.0) + 1e-4


def test_bad_sweeps():
    objective = dt.Objective.of(a=(1.0, dt.terms.transport_cost), b=(1.0, dt.terms.entropy))
    with pytest.raises(ValueError, match="sweep needs weights"):
        dt.sweep(build(0), objective)
    with pytest.raises(ValueError, match="give vectors of one length"):
        dt.sweep(build(0), objective, a=[1.0, 2.0], b=[1.0])
    with pytest.raises(ValueError, match="lanes is 0"):
        dt.sweep(build(0), objective, lanes=0, a=[1.0, 2.0])


def test_two_kinks_of_one_function_are_one_of_both_weights():
    terms = {"a": (0.5, dt.terms.transport_cost), "b": (0.2, KINKS["kde"]), "c": (0.4, KINKS["kde"])}
    _, info = dt.solve(build(0), dt.Objective.of(**terms))
    _, alone = dt.solve(build(0), dt.Objective.of(a=terms["a"], b=(0.6, KINKS["kde"])))
    assert info["value"] == pytest.approx(alone["value"], rel=1e-9)
    assert set(info["parts"]) == set(terms)


def test_a_box_of_keys_far_apart_is_sorted_and_summed_in_logarithms():
    rng = np.random.default_rng(0)
    keys = 10.0 ** rng.uniform(-3, 5, size=(5, 37)) * rng.choice([-1, 1], size=(5, 37))
    inverse = rng.random((5, 37)) + 0.1
    with jax.enable_x64(True):
        order = np.asarray(_descending(jnp.asarray(keys)))
        np.testing.assert_array_equal(order, np.argsort(-keys, axis=1))
        ordered, inverse = np.take_along_axis(keys, order, axis=1), np.take_along_axis(inverse, order, axis=1)
        tails = np.asarray(_log_tails(jnp.asarray(ordered), jnp.asarray(inverse)))
    for j in range(37):
        expected: Any = logsumexp(ordered[:, j:], axis=1, b=inverse[:, j:])
        np.testing.assert_allclose(tails[:, j], expected, rtol=1e-12)


def test_transport_selects_by_an_objective_and_binds_embeddings():
    rng = np.random.default_rng(0)
    candidates, queries = rng.normal(size=(60, 4)), rng.normal(size=(5, 4))
    objective = dt.Objective.of(align=(1.0, dt.terms.transport_cost), alike=(0.5, dt.terms.redundancy),
                                drift=(0.1, dt.terms.pool_drift), h=(0.2, dt.terms.entropy))  # fmt: skip
    selector = dt.selectors.Transport(objective, neighbors=20)
    chosen = dt.select(candidates, queries, selector=selector, budget=10, key=jax.random.key(0))
    again = dt.select(candidates, queries, selector=selector, budget=10, key=jax.random.key(0))
    assert len(chosen) == 10
    np.testing.assert_array_equal(chosen.indices, again.indices)
    assert chosen.info["plan"]["converged"]
    assert chosen.reasons[0]["queries_served"] > 0
    with pytest.raises(ValueError, match="objective is"):
        dt.selectors.Transport(dt.terms.entropy)  # type: ignore[arg-type]
