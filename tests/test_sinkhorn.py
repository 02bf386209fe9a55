"""`solve` with a given marginal and an entropy, which is Sinkhorn by ott-jax, against plain loops in float64 NumPy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.special import logsumexp

import deft_tsds as dt
from deft_tsds.transport import sinkhorn

M, K, N = 5, 8, 14
RNG = np.random.default_rng(0)
PROBLEM = dt.Problem.from_embeddings(
    RNG.normal(size=(N, 3)), RNG.normal(size=(M, 3)), neighbors=K, query_weights=RNG.random(M) + 0.5
)
U = len(PROBLEM.shortlist_U)
# What some plan on the neighbourhoods has, so that there is one.
SHARES = RNG.dirichlet(np.ones(K), size=M)
LIMIT_U = np.bincount(PROBLEM.index_MxK.ravel(), (PROBLEM.query_weights_M[:, None] * SHARES).ravel(), minlength=U)


def over_all(values_U, problem=PROBLEM):
    values_N = np.zeros(problem.size)
    values_N[problem.shortlist_U[: len(values_U)]] = values_U
    return values_N / values_N.sum()


def objective(cost, epsilon):
    return dt.Objective.of(
        a=(cost, dt.terms.transport_cost), h=(epsilon / 2, dt.terms.entropy), more=(epsilon / 2, dt.terms.entropy)
    )


def plain(problem, cost, epsilon, limit_U, iterations, highest=np.inf):
    """Sinkhorn in logarithms, all candidates and all queries in turn; under caps no potential g is above 0."""
    m, u = len(problem.costs_MxK), len(limit_U)
    logits = np.full((m, u), -np.inf)
    np.put_along_axis(logits, problem.index_MxK, -cost / epsilon * problem.costs_MxK.astype(np.float64), axis=1)
    f, g = np.zeros(m), np.zeros(u)
    wanted = limit_U > 0
    with np.errstate(divide="ignore"):
        for _ in range(iterations):
            g[wanted] = np.log(limit_U[wanted]) - logsumexp(logits[:, wanted] + f[:, None], axis=0)
            g = np.minimum(g, highest)
            f = np.log(problem.query_weights_M) - logsumexp(logits[:, wanted] + g[wanted], axis=1)
    dense = np.where(wanted, np.exp(logits + f[:, None] + g), 0)
    return np.take_along_axis(dense, problem.index_MxK, axis=1)


@pytest.mark.parametrize(("cost", "epsilon"), [(1.0, 0.3), (0.5, 2.0), (0.0, 1.0), (-0.5, 0.3)])
def test_plan_is_that_of_plain_sinkhorn(cost, epsilon):
    plan, info = dt.solve(PROBLEM, objective(cost, epsilon), marginal=over_all(LIMIT_U), tolerance=1e-9)
    assert info["converged"]
    np.testing.assert_allclose(plan.mass_MxK, plain(PROBLEM, cost, epsilon, LIMIT_U, 2000), atol=1e-9)
    np.testing.assert_allclose(plan.weights_U, LIMIT_U, atol=1e-9)
    np.testing.assert_allclose(plan.mass_MxK.sum(axis=1), PROBLEM.query_weights_M, rtol=1e-12)
    assert info["value"] == pytest.approx(sum(info["parts"].values()), rel=1e-12)


@pytest.mark.parametrize(("cost", "epsilon"), [(1.0, 0.3), (0.5, 2.0), (-0.5, 0.3), (1.0, 0.05)])
@pytest.mark.parametrize("cap", [0.09, 0.12, 0.3, 1.0])
def test_capped_plan_is_that_of_plain_sinkhorn(cost, epsilon, cap):
    plan, info = dt.solve(PROBLEM, objective(cost, epsilon), cap=cap, tolerance=1e-9)
    assert info["converged"]
    expected = plain(PROBLEM, cost, epsilon, np.full(U, cap), 2000, highest=0.0)
    np.testing.assert_allclose(plan.mass_MxK, expected, atol=1e-8)
    assert plan.weights_U.max() <= cap + 1e-9
    free, _ = dt.solve(PROBLEM, objective(cost, epsilon), tolerance=1e-9)
    assert (info["value"] > free.info["value"] + 1e-6) == (free.weights_U.max() > cap)


def test_capped_plan_is_that_of_the_descent(monkeypatch):
    plan, _ = dt.solve(PROBLEM, objective(1.0, 0.3), cap=0.1, tolerance=1e-8)
    monkeypatch.setattr(sinkhorn, "_DENSER", 1)
    descended, info = dt.solve(PROBLEM, objective(1.0, 0.3), cap=0.1, tolerance=1e-8)
    assert info["converged"]
    np.testing.assert_allclose(descended.mass_MxK, plan.mass_MxK, atol=1e-6)


def test_as_the_entropy_falls_a_capped_plan_costs_what_the_linear_program_does():
    m, k = PROBLEM.costs_MxK.shape
    columns = np.zeros((U, m * k))
    columns[PROBLEM.index_MxK.ravel(), np.arange(m * k)] = 1
    costs = PROBLEM.costs_MxK.astype(np.float64).ravel()
    best = linprog(
        costs,
        A_ub=columns,
        b_ub=np.full(U, 0.1),
        A_eq=np.repeat(np.eye(m), k, axis=1),
        b_eq=PROBLEM.query_weights_M,
    )
    _, info = dt.solve(PROBLEM, objective(1.0, 2e-4), cap=0.1, tolerance=1e-7)
    assert info["converged"]
    assert best.fun <= info["parts"]["a"] + 1e-9
    assert info["parts"]["a"] == pytest.approx(best.fun, rel=1e-4)


def test_a_kernel_that_underflows_is_done_in_logarithms():
    epsilon = 0.001
    assert np.ptp(PROBLEM.costs_MxK, axis=1).max() / epsilon > 710
    _, info = dt.solve(PROBLEM, objective(1.0, epsilon), marginal=over_all(LIMIT_U), tolerance=1e-6)
    assert info["converged"]
    expected = plain(PROBLEM, 1.0, epsilon, LIMIT_U, 5000)
    assert info["parts"]["a"] == pytest.approx(np.sum(expected * PROBLEM.costs_MxK), rel=1e-5)


def test_scalings_that_do_not_fit_are_done_in_logarithms(monkeypatch):
    arguments = {"marginal": over_all(LIMIT_U), "tolerance": 1e-9}
    plan, _ = dt.solve(PROBLEM, objective(1.0, 0.05), **arguments)
    monkeypatch.setattr(sinkhorn, "_LARGEST_LOG", 20.0)  # the kernel's go to 1 / 0.05
    again, info = dt.solve(PROBLEM, objective(1.0, 0.05), **arguments)
    assert info["converged"]
    np.testing.assert_allclose(again.mass_MxK, plan.mass_MxK, atol=1e-9)


def test_shortlists_too_large_for_a_dense_plan_take_the_descent_to_the_same(monkeypatch):
    arguments = {"marginal": over_all(LIMIT_U), "tolerance": 1e-8}
    plan, _ = dt.solve(PROBLEM, objective(1.0, 0.3), **arguments)
    monkeypatch.setattr(sinkhorn, "_DENSER", 1)
    descended, info = dt.solve(PROBLEM, objective(1.0, 0.3), **arguments)
    assert info["converged"]
    np.testing.assert_allclose(descended.mass_MxK, plan.mass_MxK, atol=1e-6)


def test_candidates_of_no_mass_and_padding():
    padded = dataclasses.replace(
        PROBLEM,
        costs_MxK=np.vstack([PROBLEM.costs_MxK, np.zeros((1, K), np.float32)]),
        next_cost_M=np.append(PROBLEM.next_cost_M, 0.0),
        index_MxK=np.vstack([PROBLEM.index_MxK, np.arange(K, dtype=np.int32)[None]]),
        query_weights_M=np.append(PROBLEM.query_weights_M, 0.0),
    )
    shares = np.where(PROBLEM.index_MxK % 3 == 0, 0, SHARES)
    shares /= shares.sum(axis=1, keepdims=True)
    limit_U = np.bincount(PROBLEM.index_MxK.ravel(), (PROBLEM.query_weights_M[:, None] * shares).ravel(), minlength=U)
    assert (limit_U == 0).any()
    expected = plain(PROBLEM, 1.0, 0.3, limit_U, 2000)
    for problem in (PROBLEM, padded):
        plan, info = dt.solve(problem, objective(1.0, 0.3), marginal=over_all(limit_U), tolerance=1e-8)
        assert info["converged"]
        np.testing.assert_allclose(plan.mass_MxK[:M], expected, atol=1e-8)
        assert not plan.mass_MxK[M:].any()
        assert not plan.weights_U[limit_U == 0].any()


def test_a_marginal_that_no_plan_has_is_said():
    limit_U = np.full(U, 1e-3)
    limit_U[np.setdiff1d(PROBLEM.index_MxK[0], PROBLEM.index_MxK[1])[0]] = 1.0  # where one of the queries cannot go
    with pytest.warns(UserWarning, match=r"^Not converged.*p is off its limits by .* in sum.*neighbors"):
        _, info = dt.solve(PROBLEM, objective(1.0, 0.3), marginal=over_all(limit_U), max_iterations=30)
    assert info["steps"] == 30
    assert info["violation"] > 0.01


def test_other_weights_and_tolerances_do_not_compile_again(monkeypatch):
    traced, peer = [], sinkhorn.Sinkhorn

    def counted(**arguments):
        traced.append(1)
        return peer(**arguments)

    monkeypatch.setattr(sinkhorn, "Sinkhorn", counted)
    arguments = {"marginal": over_all(LIMIT_U), "max_iterations": 41}  # which no other test has compiled for
    dt.solve(PROBLEM, objective(1.0, 0.3), **arguments)
    assert traced == [1]
    dt.solve(PROBLEM, objective(0.7, 0.4), tolerance=1e-5, **arguments)
    assert traced == [1]
