"""`solve` with a given marginal against POT: entropic plans and values, and the unregularised cost as epsilon falls."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import deft_tsds as dt

ot = pytest.importorskip("ot", reason="POT is not installed (the test extra has it)")

M, N = 5, 12
RNG = np.random.default_rng(0)
PROBLEM = dt.Problem.from_embeddings(
    RNG.normal(size=(N, 3)), RNG.normal(size=(M, 3)), neighbors=N, query_weights=RNG.random(M) + 0.5
)
MARGINAL = (lambda x: x / x.sum())(RNG.random(N) + 0.2)
COSTS = np.zeros((M, N))
np.put_along_axis(COSTS, PROBLEM.index_MxK, PROBLEM.costs_MxK.astype(np.float64), axis=1)
ALIGN = (1.0, dt.terms.transport_cost)


def dense(plan):
    mass = np.zeros((M, N))
    np.put_along_axis(mass, PROBLEM.index_MxK, plan.mass_MxK, axis=1)
    return mass


@pytest.mark.parametrize("epsilon", [0.05, 0.3, 2.0])
def test_entropic_plan_and_cost_are_those_of_sinkhorn(epsilon):
    objective = dt.Objective.of(align=ALIGN, spread=(epsilon, dt.terms.entropy))
    plan, info = dt.solve(PROBLEM, objective, marginal=MARGINAL, tolerance=1e-8)
    peer = ot.sinkhorn(PROBLEM.query_weights_M, MARGINAL, COSTS, epsilon, stopThr=1e-12, numItermax=100_000)
    assert info["converged"]
    np.testing.assert_allclose(dense(plan), peer, atol=1e-6)
    assert info["parts"]["align"] == pytest.approx(float(np.sum(peer * COSTS)), rel=1e-4)


def test_cost_comes_to_that_of_unregularised_transport_as_epsilon_falls():
    best = ot.emd2(PROBLEM.query_weights_M, MARGINAL, COSTS)
    above = []
    for epsilon in (0.3, 0.1, 0.03, 0.01, 0.003):
        objective = dt.Objective.of(align=ALIGN, spread=(epsilon, dt.terms.entropy))
        _, info = dt.solve(PROBLEM, objective, marginal=MARGINAL, tolerance=1e-6)
        above.append(info["parts"]["align"] / best - 1)
    assert all(later < earlier for earlier, later in itertools.pairwise(above))
    assert -1e-6 <= above[-1] <= 1e-4
    _, info = dt.solve(PROBLEM, dt.Objective.of(align=ALIGN), marginal=MARGINAL)  # and without any entropy
    assert info["converged"]
    assert info["value"] == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("epsilon", [0.05, 0.5])
def test_semi_relaxed_plan_is_the_softmax_of_its_rows(epsilon):
    plan, _ = dt.solve(PROBLEM, dt.Objective.of(align=ALIGN, spread=(epsilon, dt.terms.entropy)), tolerance=1e-10)
    weights = np.exp(-COSTS / epsilon)
    expected = PROBLEM.query_weights_M[:, None] * weights / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(dense(plan), expected, rtol=1e-6, atol=1e-12)
