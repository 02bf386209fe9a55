from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from oracles import brute_density, brute_distances

from deft_tsds.arrays import Rows
from deft_tsds.transport.problem import Plan, Problem


def embeddings(m=4, n=30, d=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)).astype(np.float32), rng.normal(size=(m, d)).astype(np.float32)


def test_fields_agree_with_brute_force():
    candidates, queries = embeddings()
    problem = Problem.from_embeddings(candidates, queries, neighbors=6, bandwidth=2.0)
    distances = brute_distances(queries, candidates)
    order = np.argsort(distances, axis=1)
    np.testing.assert_array_equal(problem.shortlist_U[problem.index_MxK], order[:, :6])
    np.testing.assert_array_equal(problem.shortlist_U, np.unique(order[:, :6]))
    np.testing.assert_allclose(problem.costs_MxK, np.sort(distances, axis=1)[:, :6], rtol=1e-6)
    np.testing.assert_allclose(problem.next_cost_M, np.sort(distances, axis=1)[:, 6], rtol=1e-6)
    shortlist = candidates[problem.shortlist_U]
    np.testing.assert_allclose(problem.density_U, brute_density(shortlist, shortlist, 2.0), rtol=1e-4)
    np.testing.assert_array_equal(problem.query_weights_M, np.full(4, 0.25))
    assert problem.size == 30
    dtypes = {"costs_MxK": np.float32, "next_cost_M": np.float32, "density_U": np.float32}
    dtypes |= {"index_MxK": np.int32, "shortlist_U": np.int32, "query_weights_M": np.float64}
    for name, dtype in dtypes.items():
        assert getattr(problem, name).dtype == dtype, name


def test_density_over_the_pool():
    candidates, queries = embeddings()
    problem = Problem.from_embeddings(candidates, queries, neighbors=6, bandwidth=2.0, density_over="pool")
    expected = brute_density(candidates[problem.shortlist_U], candidates, 2.0)
    np.testing.assert_allclose(problem.density_U, expected, rtol=1e-4)


class ReadByRow(Rows):
    """Rows that are nowhere in memory as one array, as far as anyone can tell."""

    def __init__(self, array):
        self._array = array

    @property
    def shape(self):
        return self._array.shape

    def __getitem__(self, rows):
        return self._array[rows].copy()


@pytest.mark.parametrize("neighbors", [6, 30])
@pytest.mark.parametrize("density_over", ["shortlist", "pool"])
def test_a_store_gives_what_the_array_gives(tmp_path, neighbors, density_over):
    candidates, queries = embeddings()
    path = tmp_path / "candidates.npy"
    np.save(path, candidates)
    arguments: dict[str, Any] = {"neighbors": neighbors, "bandwidth": 2.0, "density_over": density_over}
    expected = Problem.from_embeddings(candidates, queries, **arguments)
    for pool in (ReadByRow(candidates), np.load(path, mmap_mode="r")):
        problem = Problem.from_embeddings(pool, queries, **arguments)
        np.testing.assert_array_equal(problem.shortlist_U, expected.shortlist_U)
        np.testing.assert_array_equal(problem.costs_MxK, expected.costs_MxK)
        np.testing.assert_allclose(problem.density_U, expected.density_U, rtol=1e-6)


def test_neighbors_above_the_pool_mean_the_whole_pool():
    problem = Problem.from_embeddings(*embeddings(n=7))
    assert problem.costs_MxK.shape == (4, 7)
    assert np.isinf(problem.next_cost_M).all()
    np.testing.assert_array_equal(problem.density_U, 1)


def test_query_weights_are_normalised():
    candidates, queries = embeddings(m=3)
    problem = Problem.from_embeddings(candidates, queries, query_weights=[1, 2, 5])
    np.testing.assert_allclose(problem.query_weights_M, [0.125, 0.25, 0.625])
    problem = Problem.from_embeddings(candidates, queries, query_weights=[1e308, 1e308, 1e308])
    np.testing.assert_allclose(problem.query_weights_M, 1 / 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"density_over": "all"}, "density_over is 'all': choose one of shortlist, pool."),
        ({"neighbors": 0}, "neighbors is 0: give an integer at least 1."),
        ({"neighbors": 2.5}, "neighbors is 2.5: give an integer."),
        ({"bandwidth": 0}, "bandwidth is 0: give a number above 0."),
        ({"bandwidth": "wide"}, "bandwidth is 'wide': give a number above 0, \"auto\" or None."),
        ({"alpha": 0.0}, "alpha is 0, which ignores every distance: use the Random selector, or give alpha above 0."),
        ({"scale": -1, "grow": True}, "scale is -1: give a number above 0."),
        ({"regularizer": "l2"}, "regularizer is 'l2': choose one of kde, uniform, tv."),
        ({"query_weights": [1.0, 1.0]}, "query_weights has shape (2,): give one weight for each of the 4 queries."),
        (
            {"query_weights": [1.0, 1.0, 0.0, 1.0]},
            "query_weights, row 2, is 0.0: give a finite weight above 0, or drop the query.",
        ),
        (
            {"query_weights": [1.0, np.inf, 0.0, 1.0]},
            "query_weights, row 1, is inf: give a finite weight above 0, or drop the query.",
        ),
        (
            {"queries": np.ones((4, 2))},
            "queries has 2 dimensions but candidates has 5: embed both with the same encoder.",
        ),
        ({"queries": np.ones((0, 5))}, "queries is empty: give at least one row."),
        ({"candidates": [[np.nan] * 5]}, "candidates, row 0, has a NaN or infinite value: repair or drop that row."),
    ],
)
def test_errors(arguments, message):
    candidates, queries = embeddings()
    arguments = {"candidates": candidates, "queries": queries} | arguments
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Problem.from_embeddings(**arguments)
    assert str(caught.value) == message


def test_info_says_how_it_came_about():
    candidates, queries = embeddings()
    problem = Problem.from_embeddings(candidates, queries, neighbors=6)
    assert problem.info == {
        "neighbors": 6,
        "searches": [6],
        "shortlist": len(problem.shortlist_U),
        "bandwidth": None,
    }
    problem = Problem.from_embeddings(candidates, queries, neighbors=6, bandwidth=2)
    assert problem.info["bandwidth"] == 2.0
    assert "bandwidth_found" not in problem.info


def test_a_proposed_bandwidth_is_the_one_given_by_hand():
    candidates, queries = embeddings(n=40)
    candidates = np.concatenate([candidates, candidates[:10] + np.float32(0.001)])
    proposed = Problem.from_embeddings(candidates, queries, bandwidth="auto")
    assert 0.001 * 5**0.5 < proposed.info["bandwidth"] < 0.5
    assert proposed.info["bandwidth_found"]["rule"] == "valley"
    by_hand = Problem.from_embeddings(candidates, queries, bandwidth=proposed.info["bandwidth"])
    np.testing.assert_array_equal(proposed.density_U, by_hand.density_U)
    assert ((proposed.density_U > 1.9) == (np.arange(50) < 10) | (np.arange(50) >= 40)).all()


def test_problem_and_plan_pass_through_jit_and_vmap():
    problem = Problem.from_embeddings(*embeddings(), neighbors=6)
    assert jax.jit(lambda p: p)(problem).info == {}
    assert jax.jit(lambda p: p.costs_MxK.sum() * p.size)(problem) == pytest.approx(problem.costs_MxK.sum() * 30)
    plan = Plan(
        np.ones((4, 6)) / 24, np.ones(3) / 3, np.array([0, 2, 5], dtype=np.int32), 6, {"message": "kept outside"}
    )
    moved = jax.jit(lambda p: p)(plan)
    assert moved.info == {}
    assert moved.size == 6
    np.testing.assert_allclose(moved.probabilities(), [1 / 3, 0, 1 / 3, 0, 0, 1 / 3], rtol=1e-6)


def test_probabilities_cover_all_candidates_and_sum_to_one():
    plan = Plan(np.array([[0.25, 0.75]]), np.array([0.25, 0.75]), np.array([1, 3], dtype=np.int32), 4)
    probabilities = plan.probabilities()
    assert probabilities.dtype == np.float64
    np.testing.assert_array_equal(probabilities, [0, 0.25, 0, 0.75])
