"""Derivatives of the optimum against central differences, a closed form, unrolled descent, and `solve`; float64."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deft_tsds as dt
from deft_tsds.transport import terms
from deft_tsds.transport.closed_form import optima
from deft_tsds.transport.implicit import optimum
from deft_tsds.transport.pairs import Pairs
from deft_tsds.transport.path import path_ends, path_plan
from deft_tsds.transport.tsds import objective_rt

N, M, K, D = 40, 5, 12, 4
RNG = np.random.default_rng(0)
X, Q = RNG.normal(size=(N, D)), RNG.normal(size=(M, D))
X[1] = X[0] + 0.01
PROBLEM = dt.Problem.from_embeddings(X, Q, neighbors=K, bandwidth=1.5)
PAIRS = Pairs.of(PROBLEM, X, Q, reach=3.0)
SHORT = X[PROBLEM.shortlist_U]
DIRECTION = RNG.normal(size=len(SHORT))
ARGUMENTS = {"candidates_UxD": SHORT, "queries_MxD": Q, "bandwidth": 1.0}

OBJECTIVES = {
    "interior": dt.Objective.of(
        align=(1.0, terms.transport_cost),
        spread=(0.1, terms.entropy),
        kde=(0.5, terms.kde_repulsion),
        drift=(0.3, terms.kl),
    ),
    "interior, of embeddings": dt.Objective.of(
        align=(1.0, terms.transport_cost),
        spread=(0.02, terms.entropy),
        mmd=(3.0, dt.Term(terms.mmd, ARGUMENTS)),
    ),
    "on the boundary": dt.Objective.of(align=(1.0, terms.transport_cost), kde=(0.5, terms.kde_repulsion)),
    "of the marginal alone": dt.Objective.of(align=(1.0, terms.transport_cost), drift=(0.05, terms.chi_square)),
}
THETA = {
    "bandwidth": 1.5,
    "query_weights": RNG.random(M) + 0.5,
    "candidates_UxD": SHORT,
    "queries_MxD": Q,
}


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@jax.jit
@partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
def along(theta, objective):
    """A linear function of p, with all of its slopes: one program an objective."""
    result = optimum(PAIRS.problem_at(**theta), objective)
    return jnp.dot(DIRECTION, result.plan.weights_U), result


def as_float64(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), tree)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_are_those_of_central_differences(name):
    """In bandwidth, query weights, candidates, queries, term weights and the arguments of terms, each by itself."""
    at = as_float64((THETA, OBJECTIVES[name]))
    (_, result), slopes = along(*at)
    assert result.converged
    slopes, structure = jax.tree.flatten(slopes)
    leaves = jax.tree.leaves(at)
    rng = np.random.default_rng(2)
    moved = 0
    for i, leaf in enumerate(leaves):
        step = rng.normal(size=leaf.shape) * 1e-5

        def shifted(sign, i=i, leaf=leaf, step=step):
            (value, _), _ = along(*jax.tree.unflatten(structure, [*leaves[:i], leaf + sign * step, *leaves[i + 1 :]]))
            return float(value)

        slope = (shifted(1) - shifted(-1)) / 2
        assert float(jnp.sum(slopes[i] * step)) == pytest.approx(slope, rel=2e-5, abs=2e-11)
        moved += abs(slope) > 1e-9
    assert moved >= 5


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_optimum_is_that_of_solve(name):
    problem = PAIRS.problem_at(**THETA)
    (_, result), _ = along(*as_float64((THETA, OBJECTIVES[name])))
    plan, info = dt.solve(problem, OBJECTIVES[name], tolerance=1e-7)
    value = float(OBJECTIVES[name](result.plan, problem))
    assert value <= info["value"] + 1e-9
    assert value >= info["value"] - info["gap"] - 1e-9
    np.testing.assert_allclose(result.plan.weights_U, plan.weights_U, atol=2e-3)
    np.testing.assert_allclose(result.plan.mass_MxK.sum(axis=1), problem.query_weights_M, rtol=1e-12)


def test_softmax_in_closed_form_with_its_derivatives():
    """transport_cost + eps entropy: r_i = softmax(-d_i / eps), so that forward and reverse Jacobians are known."""
    objective = dt.Objective.of(align=(1.0, terms.transport_cost), spread=(0.3, terms.entropy))

    def implicit(q, eps):
        problem = PAIRS.problem_at(queries_MxD=q)
        return optimum(problem, objective.with_weights(spread=eps)).plan.weights_U

    def closed(q, eps):
        problem = PAIRS.problem_at(queries_MxD=q)
        return terms.over_candidates(jax.nn.softmax(-problem.costs_MxK / eps, axis=1) / M, problem)

    at = jnp.asarray(Q), jnp.asarray(0.3)
    np.testing.assert_allclose(implicit(*at), closed(*at), atol=1e-12)
    expected = jax.jacrev(closed, argnums=(0, 1))(*at)
    for jacobian in (jax.jacrev, jax.jacfwd):
        for one, other in zip(jax.jit(jacobian(implicit, argnums=(0, 1)))(*at), expected, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-9)


def test_gradients_are_those_of_unrolled_mirror_descent():
    objective = OBJECTIVES["interior"]

    def unrolled(theta, objective):
        problem = PAIRS.problem_at(**theta)
        weights = problem.query_weights_M[:, None]

        def step(log_r, _):
            slopes = jax.grad(lambda mass: objective(terms.plan_of(mass, problem), problem))(weights * jnp.exp(log_r))
            return jax.nn.log_softmax(log_r - 0.2 * slopes, axis=1), None

        log_r, _ = jax.lax.scan(step, jnp.full((M, K), -jnp.log(K)), None, length=2000)
        return jnp.dot(DIRECTION, terms.plan_of(weights * jnp.exp(log_r), problem).weights_U)

    at = as_float64((THETA, objective))
    _, slopes = along(*at)
    expected = jax.jit(jax.grad(unrolled, argnums=(0, 1)))(*at)
    for one, other in zip(jax.tree.leaves(slopes), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-7)


def test_padding_changes_no_derivative():
    objective = OBJECTIVES["interior"]
    padded = dt.Problem(
        costs_MxK=np.vstack([PROBLEM.costs_MxK, np.zeros((1, K))]).astype(np.float64),
        next_cost_M=np.append(PROBLEM.next_cost_M, 0.0),
        index_MxK=np.vstack([PROBLEM.index_MxK, np.full((1, K), len(SHORT), np.int32)]),
        shortlist_U=np.append(PROBLEM.shortlist_U, np.int32(0)),
        density_U=np.append(PROBLEM.density_U, 1.0),
        query_weights_M=np.append(PROBLEM.query_weights_M, 0.0),
        size=N,
    )
    direction = jnp.append(jnp.asarray(DIRECTION), 3.0)

    def gradient(problem):
        def value(costs):
            plan = optimum(dataclasses.replace(problem, costs_MxK=costs), objective).plan
            return plan.weights_U @ direction[: len(plan.weights_U)]

        return np.asarray(jax.grad(value)(jnp.asarray(problem.costs_MxK, jnp.float64)))

    plain, more = gradient(PROBLEM), gradient(padded)
    np.testing.assert_allclose(more[:-1], plain, atol=1e-9)
    np.testing.assert_array_equal(more[-1], 0)


def test_vmap_over_weights_is_one_after_another():
    problem = PAIRS.problem_at(bandwidth=1.5)
    at = jnp.array([0.05, 0.3])

    def weights_U(spread):
        return optimum(problem, OBJECTIVES["interior"].with_weights(spread=spread)).plan.weights_U

    np.testing.assert_allclose(jax.vmap(weights_U)(at), [weights_U(each) for each in at], atol=1e-7)


def test_too_few_steps_are_said():
    result = optimum(PAIRS.problem_at(bandwidth=1.5), OBJECTIVES["interior"], max_steps=1)
    assert not result.converged
    assert result.gap > 1e-6
    assert result.steps == 1


@pytest.mark.parametrize("term", [terms.kde_deviation, terms.tv_deviation, terms.sinkhorn_divergence])
def test_terms_without_a_second_derivative_are_refused(term):
    objective = dt.Objective.of(align=(1.0, terms.transport_cost), mine=(1.0, term))
    with pytest.raises(ValueError, match=f"'mine', {term.__name__}"):
        optimum(PROBLEM, objective)


# Pairs


def test_problem_at_is_the_problem():
    h = 1.5
    problem = dt.Problem.from_embeddings(X, Q, neighbors=K, bandwidth=h)
    for arguments in ({}, {"candidates_UxD": SHORT}, {"queries_MxD": Q}):
        again = PAIRS.problem_at(bandwidth=h, **arguments)
        np.testing.assert_allclose(again.costs_MxK, problem.costs_MxK, rtol=1e-6)
        np.testing.assert_allclose(again.density_U, problem.density_U, rtol=1e-5)
    weighted = PAIRS.problem_at(query_weights=np.arange(1.0, M + 1))
    np.testing.assert_allclose(weighted.query_weights_M, np.arange(1.0, M + 1) / 15)
    np.testing.assert_array_equal(weighted.density_U, 1)


def test_exact_copies_have_a_finite_gradient():
    points = np.vstack([X, Q[:1]])
    problem = dt.Problem.from_embeddings(points, Q, neighbors=3)
    pairs = Pairs.of(problem, points, Q, reach=1.0)
    slopes = jax.grad(lambda q: jnp.sum(pairs.problem_at(queries_MxD=q).costs_MxK))(jnp.asarray(Q))
    assert np.isfinite(slopes).all()


def test_a_bandwidth_above_the_reach():
    with pytest.raises(ValueError, match="above the reach"):
        PAIRS.problem_at(bandwidth=3.1)
    assert np.isnan(jax.jit(lambda h: PAIRS.problem_at(bandwidth=h).density_U)(3.1)).all()
    with pytest.raises(ValueError, match="40 candidates and 4 queries"):
        Pairs.of(PROBLEM, X, Q[:4], reach=1.0)


# The path of problem RT


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_every_point_of_the_path_is_an_optimum(share):
    problem = PAIRS.problem_at(bandwidth=1.5)
    first, last = (float(end) for end in path_ends(problem))
    s = first * (last / first) ** share
    plan = path_plan(problem, s)
    tau, _ = optima(problem, "kde").along(s)
    alpha = 5 / (5 + tau)
    best = dt.tsds(problem, alpha=alpha, scale=5.0)
    assert objective_rt(problem, plan.mass_MxK, alpha=alpha, scale=5.0) == pytest.approx(best.info["value"], rel=1e-6)


@pytest.mark.parametrize("blur", [0.0, 0.4])
def test_the_path_has_the_slopes_of_central_differences(blur):
    first, last = (float(end) for end in path_ends(PAIRS.problem_at(bandwidth=1.5)))

    @jax.jit
    def value(s, h, weights):
        plan = path_plan(PAIRS.problem_at(bandwidth=h, query_weights=weights), s, blur=blur)
        return jnp.dot(DIRECTION, plan.weights_U)

    at = as_float64((first * (last / first) ** 0.6, 1.5, THETA["query_weights"]))  # a Python float would follow float32
    slopes = jax.grad(value, argnums=(0, 1, 2))(*at)
    for i, (leaf, slope) in enumerate(zip(at, slopes, strict=True)):
        step = np.random.default_rng(4).normal(size=leaf.shape) * 1e-6
        ends = [float(value(*at[:i], leaf + sign * step, *at[i + 1 :])) for sign in (1, -1)]
        assert float(jnp.sum(slope * step)) == pytest.approx((ends[0] - ends[1]) / 2, rel=1e-5, abs=1e-12)
        assert abs(ends[0] - ends[1]) > 1e-9


def test_a_blurred_plan_is_the_mean_of_its_neighbors_on_the_path():
    problem = PAIRS.problem_at(bandwidth=jnp.asarray(1.5, jnp.float64))
    first, last = path_ends(problem)
    s, blur, parts = jnp.sqrt(first * last), 0.3, 4000
    middles = s * jnp.exp(blur * (2 * jnp.arange(parts) + 1 - parts) / parts)
    mean = jnp.mean(jax.vmap(lambda s: path_plan(problem, s).mass_MxK)(middles), axis=0)
    np.testing.assert_allclose(path_plan(problem, s, blur=blur).mass_MxK, mean, atol=1e-7)
