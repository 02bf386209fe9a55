"""One contract for all terms, over one table; and what each is by itself, against plain NumPy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deft_tsds as dt
from deft_tsds.transport import terms
from deft_tsds.transport.tsds import objective_rt

N, M, K, D = 14, 4, 6, 3
RNG = np.random.default_rng(0)
CANDIDATES, QUERIES = RNG.normal(size=(N, D)), RNG.normal(size=(M, D))
CANDIDATES[1] = CANDIDATES[0] + 0.01
COSTS, REFERENCE = RNG.normal(size=N), RNG.random(N) + 0.1
GROUPS, FEATURES = np.arange(N) % 3, RNG.random((N, 5))
SHARES = np.array([0.2, 0.3, 0.5])


def make_problem():
    return dt.Problem.from_embeddings(
        CANDIDATES, QUERIES, neighbors=K, bandwidth=1.5, query_weights=[1.0, 2.0, 0.5, 1.0]
    )


PROBLEM = make_problem()
X = CANDIDATES[PROBLEM.shortlist_U]

TABLE = {
    "transport_cost": dt.Term(terms.transport_cost),
    "linear": dt.Term(terms.linear, {"costs_N": COSTS}),
    "uniform_deviation": dt.Term(terms.uniform_deviation),
    "kde_deviation": dt.Term(terms.kde_deviation),
    "tv_deviation": dt.Term(terms.tv_deviation),
    "entropy": dt.Term(terms.entropy),
    "kl": dt.Term(terms.kl),
    "kl to a reference": dt.Term(terms.kl, {"reference_N": REFERENCE / REFERENCE.sum()}),
    "chi_square": dt.Term(terms.chi_square),
    "chi_square to a reference": dt.Term(terms.chi_square, {"reference_N": REFERENCE / REFERENCE.sum()}),
    "kde_repulsion": dt.Term(terms.kde_repulsion),
    "coverage": dt.Term(terms.coverage, {"budget": 8.0}),
    "coverage of features": dt.Term(terms.coverage, {"budget": 8.0, "features_NxF": FEATURES}),
    "group_balance": dt.Term(terms.group_balance, {"groups_N": GROUPS, "shares_G": SHARES}),
    "pool_drift": dt.Term(terms.pool_drift, {"candidates_UxD": X, "pool_mean_D": CANDIDATES.mean(axis=0)}),
    "redundancy": dt.Term(terms.redundancy, {"candidates_UxD": X}),
    "mmd": dt.Term(terms.mmd, {"candidates_UxD": X, "queries_MxD": QUERIES, "bandwidth": 1.0}),
    "sinkhorn_divergence": dt.Term(
        terms.sinkhorn_divergence, {"candidates_UxD": X, "queries_MxD": QUERIES, "epsilon": 0.5}
    ),
}
EVERY = pytest.mark.parametrize("name", TABLE)
IN_JIT = jax.jit(lambda term, mass, problem: term(terms.plan_of(mass, problem), problem))


def random_mass(seed=0):
    rows = np.random.default_rng(seed).random((M, K)) + 0.05
    return PROBLEM.query_weights_M[:, None] * rows / rows.sum(axis=1, keepdims=True)


def value(term, mass, problem=PROBLEM):
    with jax.enable_x64(True):
        return float(IN_JIT(term, jnp.asarray(mass, jnp.float64), problem))


def test_the_table_has_every_term():
    assert {term.function for term in TABLE.values()} == set(terms.CONVEX)


@EVERY
def test_a_scalar_in_both_precisions_and_the_same_outside_of_jit(name):
    term, mass = TABLE[name], random_mass()
    with jax.enable_x64(True):
        outside = term(terms.plan_of(jnp.asarray(mass), PROBLEM), PROBLEM)
    assert np.shape(outside) == ()
    assert float(outside) == pytest.approx(value(term, mass), rel=1e-10, abs=1e-12)
    single = term(terms.plan_of(jnp.asarray(mass, jnp.float32), PROBLEM), PROBLEM)
    assert float(single) == pytest.approx(float(outside), rel=1e-3, abs=1e-4)


@EVERY
def test_gradient_is_that_of_finite_differences(name):
    term, mass = TABLE[name], random_mass()
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        gradient = np.asarray(jax.grad(IN_JIT, argnums=1)(term, jnp.asarray(mass), PROBLEM))
    for _ in range(3):
        direction = rng.normal(size=mass.shape)
        direction -= direction.mean(axis=1, keepdims=True)  # plans keep their row sums
        # The value of a Sinkhorn iteration is good to 1e-9: it takes a wider difference.
        h, off = (5e-4, 2e-5) if name == "sinkhorn_divergence" else (1e-5, 1e-6)
        near, far = (value(term, mass + t * direction) - value(term, mass - t * direction) for t in (h, 2 * h))
        slope = (8 * near - far) / (12 * h)  # the error is of the order h^4
        assert float(np.sum(gradient * direction)) == pytest.approx(slope, rel=1e-5, abs=off)


@EVERY
def test_convex_along_a_line_and_linear_where_it_says_so(name):
    term = TABLE[name]
    one, two = random_mass(1), random_mass(2)
    one[:, 0] += one[:, 1]
    one[:, 1] = 0  # mass of zero is a plan too
    ends, middle = (value(term, one) + value(term, two)) / 2, value(term, (one + two) / 2)
    assert np.isfinite(ends)
    assert middle <= ends + 1e-9
    if term.function in terms.LINEAR:
        assert middle == pytest.approx(ends, rel=1e-12)


@EVERY
def test_padding_changes_nothing(name):
    """A row of weight zero, and a place of the shortlist that no row names."""
    term, mass = TABLE[name], random_mass()
    padded = dataclasses.replace(
        PROBLEM,
        costs_MxK=np.vstack([PROBLEM.costs_MxK, np.zeros((1, K), np.float32)]),
        next_cost_M=np.append(PROBLEM.next_cost_M, np.float32(0)),
        index_MxK=np.vstack([PROBLEM.index_MxK, np.full((1, K), len(X), np.int32)]),
        shortlist_U=np.append(PROBLEM.shortlist_U, np.int32(0)),
        density_U=np.append(PROBLEM.density_U, np.float32(1)),
        query_weights_M=np.append(PROBLEM.query_weights_M, 0.0),
    )
    arguments = dict(term.arguments)
    for key in ("candidates_UxD", "queries_MxD"):
        if key in arguments:
            arguments[key] = np.vstack([arguments[key], np.zeros((1, D))])
    more = dt.Term(term.function, arguments)
    padded_mass = np.vstack([mass, np.zeros((1, K))])
    assert value(more, padded_mass, padded) == pytest.approx(value(term, mass), rel=1e-9, abs=1e-9)
    with jax.enable_x64(True):
        gradient = np.asarray(jax.grad(IN_JIT, argnums=1)(more, jnp.asarray(padded_mass), padded))
    assert np.isfinite(gradient).all()


@EVERY
def test_the_order_of_queries_and_neighbors_does_not_matter(name):
    term, mass = TABLE[name], random_mass()
    rows, columns = np.array([2, 0, 3, 1]), np.random.default_rng(3).permutation(K)
    moved = dataclasses.replace(
        PROBLEM,
        costs_MxK=PROBLEM.costs_MxK[rows][:, columns],
        next_cost_M=PROBLEM.next_cost_M[rows],
        index_MxK=PROBLEM.index_MxK[rows][:, columns],
        query_weights_M=PROBLEM.query_weights_M[rows],
    )
    arguments = dict(term.arguments)
    if "queries_MxD" in arguments:
        arguments["queries_MxD"] = QUERIES[rows]
    again = value(dt.Term(term.function, arguments), mass[rows][:, columns], moved)
    assert again == pytest.approx(value(term, mass), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("regularizer", ["uniform", "kde", "tv"])
def test_deviations_and_cost_make_up_problem_rt(regularizer):
    mass = random_mass()
    expected = objective_rt(PROBLEM, mass, alpha=0.3, scale=2.0, regularizer=regularizer)
    found = 0.15 * value(TABLE["transport_cost"], mass) + 0.7 * value(TABLE[f"{regularizer}_deviation"], mass)
    assert found == pytest.approx(expected, rel=1e-6)


def test_smooth_terms_against_plain_loops():
    mass, w = random_mass(), PROBLEM.query_weights_M
    p = np.zeros(N)
    for i in range(M):
        for k in range(K):
            p[PROBLEM.shortlist_U[PROBLEM.index_MxK[i, k]]] += mass[i, k]
    q = REFERENCE / REFERENCE.sum()
    shares = mass / w[:, None]
    density = PROBLEM.density_U[PROBLEM.index_MxK].astype(np.float64)
    positive = p > 0
    unit = CANDIDATES / np.linalg.norm(CANDIDATES, axis=1, keepdims=True)

    def kernel(x, y):
        return np.exp(-(((x[:, None] - y[None]) ** 2).sum(axis=2)) / 2)

    expected = {
        "linear": p @ COSTS,
        "entropy": sum(w[i] * shares[i] @ np.log(shares[i]) for i in range(M)),
        "kl": np.sum(p[positive] * np.log(N * p[positive])),
        "kl to a reference": np.sum(p[positive] * np.log(p[positive] / q[positive])),
        "chi_square": np.sum((p - 1 / N) ** 2 * N),
        "chi_square to a reference": np.sum((p - q) ** 2 / q),
        "kde_repulsion": np.sum(w[:, None] * density * shares**2),
        "coverage": np.mean(np.exp(-8 * p)),
        "coverage of features": np.mean(np.exp(-8 * p @ FEATURES)),
        "group_balance": sum((p[g == GROUPS].sum() - SHARES[g]) ** 2 for g in range(3)),
        "pool_drift": np.sum((p @ CANDIDATES - CANDIDATES.mean(axis=0)) ** 2),
        "redundancy": p @ (unit @ unit.T) ** 2 @ p,
        "mmd": p @ kernel(CANDIDATES, CANDIDATES) @ p
        + w @ kernel(QUERIES, QUERIES) @ w
        - 2 * p @ kernel(CANDIDATES, QUERIES) @ w,
    }
    for name, number in expected.items():
        assert value(TABLE[name], mass) == pytest.approx(number, rel=1e-6), name


def test_sinkhorn_divergence_against_plain_sinkhorn():
    mass, w, epsilon = random_mass(), PROBLEM.query_weights_M, 0.5
    p = np.zeros(len(X))
    np.add.at(p, PROBLEM.index_MxK.ravel(), mass.ravel())

    def cost(a, x, b, y):
        distances = ((x[:, None] - y[None]) ** 2).sum(axis=2)
        kernel = np.exp(-distances / epsilon) * a[:, None] * b
        u, v = np.ones(len(a)), np.ones(len(b))
        for _ in range(5000):
            v = b / (kernel.T @ u)
            u = a / (kernel @ v)
        plan = u[:, None] * kernel * v
        return np.sum(plan * distances) + epsilon * np.sum(plan * np.log(plan / (a[:, None] * b)))

    expected = cost(p, X, w, QUERIES) - cost(p, X, p, X) / 2 - cost(w, QUERIES, w, QUERIES) / 2
    assert value(TABLE["sinkhorn_divergence"], mass) == pytest.approx(expected, rel=1e-6)
    assert expected > 0


def test_a_repelled_plan_shares_the_place_of_near_duplicates():
    problem = dt.Problem.from_embeddings(CANDIDATES, QUERIES, neighbors=N, bandwidth=1.5)
    inverse = 1 / problem.density_U[problem.index_MxK].astype(np.float64)
    best = inverse / inverse.sum(axis=1, keepdims=True) / M
    total = np.sum(1 / problem.density_U.astype(np.float64))
    assert value(TABLE["kde_repulsion"], best, problem) == pytest.approx(1 / total, rel=1e-6)
    assert value(TABLE["kde_deviation"], best, problem) == pytest.approx(0, abs=1e-7)
