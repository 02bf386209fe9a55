from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import brute_distances

from deft_tsds.geometry import bfloat16, neighbors
from deft_tsds.geometry.mesh import candidates_mesh
from deft_tsds.geometry.neighbors import nearest_neighbors

METRICS = ["euclidean", "cosine", "dot"]


def brute_neighbors(queries, candidates, k, metric):
    """The definition: sort by float32 distance, then by index."""
    distances = (brute_distances(queries, candidates, metric) + 0.0).astype(np.float32)
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, order, axis=1), order


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("m", "n", "d", "k"), [(1, 1, 1, 1), (7, 300, 16, 25), (300, 50, 4, 50), (3, 20, 1, 5)])
def test_equals_brute_force(metric, m, n, d, k):
    rng = np.random.default_rng(0)
    queries, candidates = rng.normal(size=(m, d)).astype(np.float32), rng.normal(size=(n, d)).astype(np.float32)
    found = nearest_neighbors(queries, candidates, k, metric=metric)
    distances, indices = brute_neighbors(queries, candidates, k, metric)
    assert found.distances_MxK.dtype == np.float32
    assert found.indices_MxK.dtype == np.int32
    if d > 1 or metric != "cosine":  # in one dimension every cosine is 1 or -1 up to rounding
        np.testing.assert_array_equal(found.indices_MxK, indices)
    np.testing.assert_allclose(found.distances_MxK, distances, rtol=1e-6, atol=1e-7)


# Quarters have exact squares: equal distances are equal in every arithmetic, so ties are really ties.
lattice = st.integers(-4, 4).map(lambda i: i / 4)


@settings(deadline=None, max_examples=40)
@given(data=st.data(), metric=st.sampled_from(["euclidean", "dot"]), block_bytes=st.sampled_from([1, 300, 2**20]))
def test_ties_go_to_the_lower_index_in_every_block_size(data, metric, block_bytes):
    m, n, d = data.draw(st.sampled_from([(1, 12, 1), (3, 12, 2), (2, 5, 3)]))
    rows = lambda count: st.lists(st.lists(lattice, min_size=d, max_size=d), min_size=count, max_size=count)  # noqa: E731
    queries, candidates = np.array(data.draw(rows(m))), np.array(data.draw(rows(n)))
    k = data.draw(st.integers(1, n))
    found = nearest_neighbors(queries, candidates, k, metric=metric, block_bytes=block_bytes)
    distances, indices = brute_neighbors(queries, candidates, k, metric)
    np.testing.assert_array_equal(found.indices_MxK, indices)
    np.testing.assert_array_equal(found.distances_MxK, distances)


@pytest.mark.parametrize("metric", METRICS)
def test_block_size_changes_nothing(metric):
    rng = np.random.default_rng(1)
    queries, candidates = rng.normal(size=(40, 24)), rng.normal(size=(500, 24))
    candidates[10] = queries[3]
    candidates[250:] = candidates[:250]  # every neighbour is tied with its copy
    found = [nearest_neighbors(queries, candidates, 60, metric=metric, block_bytes=b) for b in (2**14, 2**16, 2**24)]
    for other in found[1:]:
        np.testing.assert_array_equal(found[0].indices_MxK, other.indices_MxK)
        np.testing.assert_array_equal(found[0].distances_MxK, other.distances_MxK)
    assert (found[0].distances_MxK[:, 0::2] == found[0].distances_MxK[:, 1::2]).all()
    assert (found[0].indices_MxK[:, 0::2] + 250 == found[0].indices_MxK[:, 1::2]).all()


def unit_rows(rng, n, d):
    x = rng.normal(size=(n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def crowded():
    """5,000 unit rows in tight clusters, 600 of them twice, so that float32 scores leave much open."""
    rng = np.random.default_rng(7)
    candidates = unit_rows(rng, 40, 48)[rng.integers(40, size=5000)] + 1e-3 * rng.normal(size=(5000, 48))
    candidates[4000:4600] = candidates[:600]
    return unit_rows(rng, 70, 48), candidates.astype(np.float32)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("k", [3, 300])
def test_float32_and_float64_scores_lead_to_the_same(crowded, monkeypatch, metric, k):
    found = []
    for cost in (0, 10**9):
        monkeypatch.setattr(neighbors, "_SURVIVOR_COST", cost)
        found.append(nearest_neighbors(crowded[0], crowded[1], k, metric=metric))
    np.testing.assert_array_equal(found[0].indices_MxK, found[1].indices_MxK)
    np.testing.assert_array_equal(found[0].distances_MxK, found[1].distances_MxK)
    queries, candidates = crowded
    distances, indices = brute_neighbors(queries[:2], candidates, k, metric)
    np.testing.assert_array_equal(found[0].distances_MxK[:2], distances)
    np.testing.assert_array_equal(found[0].indices_MxK[:2], indices)


def test_scores_that_lie_within_their_error_bound_are_harmless(crowded, monkeypatch):
    """The worst that rounding may do: scores that are off by almost all of the bound, at random."""
    exact = neighbors._Survivors.scores
    rng = np.random.default_rng(0)

    def off(survivors, rows):
        scores = exact(survivors, rows)
        return scores + (0.9 * survivors.error_T[:, None] * rng.uniform(-1, 1, scores.shape)).astype(scores.dtype)

    found = nearest_neighbors(crowded[0], crowded[1], 20)
    monkeypatch.setattr(neighbors._Survivors, "scores", off)
    disturbed = nearest_neighbors(crowded[0], crowded[1], 20)
    np.testing.assert_array_equal(found.indices_MxK, disturbed.indices_MxK)
    np.testing.assert_array_equal(found.distances_MxK, disturbed.distances_MxK)


@pytest.mark.parametrize(("of_queries", "of_candidates"), [(1e-24, 1e-24), (1e-21, 3e-20), (1.0, 1e-21), (1e17, 1e17)])
@pytest.mark.parametrize(("k", "in_bfloat16"), [(5, False), (5, True), (500, False)])
def test_at_the_ends_of_float32(of_queries, of_candidates, k, in_bfloat16, request):
    """Where squares underflow, or nearly overflow: with k = 5 the scores are float32, with k = 500 float64."""
    if in_bfloat16:
        request.getfixturevalue("halved")
    rng = np.random.default_rng(12)
    queries = (of_queries * rng.normal(size=(4, 6))).astype(np.float32)
    candidates = (of_candidates * rng.normal(size=(3000, 6))).astype(np.float32)
    found = nearest_neighbors(queries, candidates, k)
    distances, indices = brute_neighbors(queries, candidates, k, "euclidean")
    np.testing.assert_array_equal(found.distances_MxK, distances)
    np.testing.assert_array_equal(found.indices_MxK, indices)


@pytest.fixture
def halved(monkeypatch):
    """Searches begin in bfloat16, however small they are and whatever the processor. What they were settled by."""
    monkeypatch.setattr(neighbors, "_HALVED_WORK", 0)
    monkeypatch.setattr(bfloat16, "is_fast", lambda: True)
    settle, settled_by = neighbors._Tile.settle, []

    def spied(tile, block, survivors):
        settled_by.append(survivors.halved)
        settle(tile, block, survivors)

    monkeypatch.setattr(neighbors._Tile, "settle", spied)
    return settled_by


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("k", "block_bytes"), [(1, 2**20), (9, 2**20), (9, 70_000)])
def test_bfloat16_rules_out_and_never_ranks(halved, metric, k, block_bytes):
    rng = np.random.default_rng(13)
    queries, candidates = rng.normal(size=(70, 6)).astype(np.float32), rng.normal(size=(9000, 6)).astype(np.float32)
    candidates[8990:] = queries[:10]
    found = nearest_neighbors(queries, candidates, k, metric=metric, block_bytes=block_bytes)
    distances, indices = brute_neighbors(queries, candidates, k, metric)
    np.testing.assert_array_equal(found.indices_MxK, indices)
    np.testing.assert_allclose(found.distances_MxK, distances, rtol=1e-6, atol=1e-7)
    assert any(halved)


def test_where_bfloat16_leaves_too_much_float32_does_it(halved, crowded):
    """Rows far from the origin and close together: their bfloat16 products are all alike."""
    queries, candidates = crowded[0] + 30, crowded[1] + 30
    found = nearest_neighbors(queries, candidates, 10)
    distances, indices = brute_neighbors(queries, candidates, 10, "euclidean")
    np.testing.assert_array_equal(found.indices_MxK, indices)
    np.testing.assert_array_equal(found.distances_MxK, distances)
    assert not any(halved)


@pytest.mark.parametrize("of_left", [1e-42, 1e-24, 1.0, 1e18])
@pytest.mark.parametrize("of_right", [1e-42, 1e-20, 1.0, 1e18])
def test_the_error_bound_of_bfloat16_holds(of_left, of_right):
    rng = np.random.default_rng(14)
    left_TxD = of_left * rng.normal(size=(40, 33)) / 33
    right_CxD = (of_right * rng.normal(size=(60, 33)) / 33).astype(np.float32)
    norm = float(np.linalg.norm(right_CxD.astype(np.float64), axis=1).max())
    scores_TxC = bfloat16.scores(bfloat16.rounded(left_TxD), right_CxD, np.zeros(60, np.float32))
    off_T = np.abs(np.asarray(scores_TxC, np.float64) - left_TxD @ right_CxD.T.astype(np.float64)).max(axis=1)
    summation_T = (33 + 8) * (2.0**-23 * np.linalg.norm(left_TxD, axis=1) * norm + 2.0**-126)
    bound_T = bfloat16.error(left_TxD, norm) + summation_T
    assert (off_T <= bound_T).all()
    if of_left == of_right == 1.0:
        assert (off_T > 0.1 * bound_T).any()  # the bound is of the size of what it bounds


@pytest.mark.parametrize("order", [1, -1])
def test_a_pool_sorted_by_distance_defeats_no_guess(monkeypatch, order):
    rng = np.random.default_rng(8)
    candidates = np.sort(rng.normal(size=(3000, 1)), axis=0)[::order]
    monkeypatch.setattr(neighbors, "_CHUNK", 64)
    queries = [[-9.0], [0.3], [9.0]]
    for k in (1, 30, 2000):
        found = nearest_neighbors(queries, candidates, k)
        distances, indices = brute_neighbors(
            np.array(queries, np.float32), candidates.astype(np.float32), k, "euclidean"
        )
        np.testing.assert_array_equal(found.distances_MxK, distances)
        np.testing.assert_array_equal(found.indices_MxK, indices)


def test_a_wrong_guess_is_taken_back(crowded, monkeypatch):
    monkeypatch.setattr(neighbors, "_CHUNK", 64)
    expected = nearest_neighbors(crowded[0], crowded[1], 200)
    guessed = []

    def too_low(survivors, start):
        guessed.append(start)
        return np.full(len(survivors.limit_T), -1.99, survivors.dtype)  # no row is as near as that

    monkeypatch.setattr(neighbors._Survivors, "guess", too_low)
    found = nearest_neighbors(crowded[0], crowded[1], 200)
    assert guessed
    np.testing.assert_array_equal(found.indices_MxK, expected.indices_MxK)


def test_more_ties_than_room(monkeypatch):
    """Copies fill the tables: what is left of the block is done in float64, and ties still go to the lower index."""
    monkeypatch.setattr(neighbors, "_CHUNK", 64)
    x = np.random.default_rng(9).normal(size=(2, 5)).astype(np.float32)
    candidates = np.concatenate([np.repeat(x[:1], 900, axis=0), x[1:], np.repeat(x[:1], 900, axis=0)])
    found = nearest_neighbors(x, candidates, 3)
    np.testing.assert_array_equal(found.indices_MxK, [[0, 1, 2], [900, 0, 1]])


@pytest.mark.parametrize("metric", METRICS)
def test_the_way_of_an_accelerator_finds_the_same(crowded, monkeypatch, metric):
    expected = nearest_neighbors(crowded[0], crowded[1], 40, metric=metric)
    monkeypatch.setattr(neighbors, "_on_accelerator", lambda: True)
    monkeypatch.setattr(neighbors, "_DEVICE_CHUNK", 1024)
    found = nearest_neighbors(crowded[0], crowded[1], 40, metric=metric, block_bytes=3000 * 4 * 48)
    np.testing.assert_array_equal(found.indices_MxK, expected.indices_MxK)
    np.testing.assert_array_equal(found.distances_MxK, expected.distances_MxK)


def test_an_accelerator_compiles_once(crowded, monkeypatch):
    monkeypatch.setattr(neighbors, "_on_accelerator", lambda: True)
    monkeypatch.setattr(neighbors, "_DEVICE_CHUNK", 1024)
    queries, candidates = crowded
    nearest_neighbors(queries, candidates, 40)
    compiled = neighbors._lowest_scores(candidates_mesh(), 104)._cache_size()
    nearest_neighbors(queries[:9], candidates[:4321], 40)  # other numbers of rows, the same shapes
    assert neighbors._lowest_scores(candidates_mesh(), 104)._cache_size() == compiled


def test_threads_change_nothing(crowded, monkeypatch):
    expected = nearest_neighbors(crowded[0], crowded[1], 50)
    monkeypatch.setattr(neighbors, "_LEAST_TILE", 7)
    for cpus in (1, 3):
        monkeypatch.setattr(neighbors, "usable_cpus", lambda cpus=cpus: cpus)
        found = nearest_neighbors(crowded[0], crowded[1], 50)
        np.testing.assert_array_equal(found.indices_MxK, expected.indices_MxK)
        np.testing.assert_array_equal(found.distances_MxK, expected.distances_MxK)


def test_near_duplicates_keep_their_distance_and_order():
    rng = np.random.default_rng(2)
    queries = rng.normal(size=(5, 384))
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    queries = queries.astype(np.float32)
    offsets = np.array([3e-4, 1e-4, 0.0, 2e-4, 0.0])
    direction = np.zeros(384)
    direction[0] = 1
    near = (queries[:, None] + offsets[None, :, None] * direction).astype(np.float32).reshape(-1, 384)
    candidates = np.concatenate([rng.normal(size=(50, 384)), near])
    found = nearest_neighbors(queries, candidates, 5)
    np.testing.assert_array_equal(found.indices_MxK, 50 + 5 * np.arange(5)[:, None] + [2, 4, 1, 3, 0])
    np.testing.assert_array_equal(found.distances_MxK[:, :2], 0)
    np.testing.assert_allclose(found.distances_MxK[:, 2:], np.tile([1e-4, 2e-4, 3e-4], (5, 1)), rtol=0.01)


def test_near_duplicates_far_from_the_origin():
    queries = np.array([[1000.0, 1000.0]], dtype=np.float32)
    candidates = np.array([[1000.0, 1000.0625], [1000.0, 1000.0], [0.0, 0.0]], dtype=np.float32)
    found = nearest_neighbors(queries, candidates, 3)
    np.testing.assert_array_equal(found.indices_MxK, [[1, 0, 2]])
    np.testing.assert_array_equal(found.distances_MxK[0, :2], [0, 0.0625])


def test_cosine_of_equal_rows_is_exactly_zero_and_of_zero_rows_is_one():
    x = np.random.default_rng(3).normal(size=(6, 33)).astype(np.float32)
    x[2] = 0
    found = nearest_neighbors(x, x, 1, metric="cosine")
    np.testing.assert_array_equal(np.delete(found.distances_MxK, 2), 0)
    np.testing.assert_array_equal(np.delete(found.indices_MxK, 2), [0, 1, 3, 4, 5])
    assert found.distances_MxK[2] == 1
    assert found.indices_MxK[2] == 0


@pytest.mark.parametrize("metric", METRICS)
def test_all_points_equal(metric):
    found = nearest_neighbors(np.ones((3, 4)), np.ones((30, 4)), 10, metric=metric, block_bytes=200)
    np.testing.assert_array_equal(found.indices_MxK, np.tile(np.arange(10), (3, 1)))
    np.testing.assert_array_equal(found.distances_MxK, -4 if metric == "dot" else 0)


def test_dot_ranks_zero_and_negative_zero_alike():
    found = nearest_neighbors([[1.0]], [[-0.0], [0.0], [-0.0], [2.0], [-1.0]], 5, metric="dot")
    np.testing.assert_array_equal(found.indices_MxK, [[3, 0, 1, 2, 4]])
    np.testing.assert_array_equal(found.distances_MxK, [[-2, 0, 0, 0, 1]])


def test_memory_map_gives_the_same(tmp_path):
    rng = np.random.default_rng(4)
    queries, candidates = rng.normal(size=(4, 8)), rng.normal(size=(200, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", candidates)
    mapped = nearest_neighbors(queries, np.load(tmp_path / "x.npy", mmap_mode="r"), 20, block_bytes=2**12)
    np.testing.assert_array_equal(mapped.indices_MxK, nearest_neighbors(queries, candidates, 20).indices_MxK)


def test_permuted_candidates_give_permuted_indices():
    rng = np.random.default_rng(5)
    queries, candidates = rng.normal(size=(6, 12)), rng.normal(size=(100, 12))
    order = rng.permutation(100)
    plain, permuted = nearest_neighbors(queries, candidates, 30), nearest_neighbors(queries, candidates[order], 30)
    np.testing.assert_array_equal(order[permuted.indices_MxK], plain.indices_MxK)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 4}, "k is 4 but there are only 3 candidates: ask for at most 3 neighbours."),
        ({"k": 0}, "k is 0: give an integer at least 1."),
        ({"k": 2, "metric": "l1"}, "metric is 'l1': choose one of euclidean, cosine, dot."),
        ({"k": 2, "block_bytes": 0}, "block_bytes is 0: give an integer at least 1."),
        ({"k": 2, "queries": np.ones((1, 3))}, "queries has 3 dimensions but candidates has 2: embed both"),
        ({"k": 2, "queries": [[np.nan, 1.0]]}, "queries, row 0, has a NaN or infinite value"),
        ({"k": 2, "candidates": np.ones((0, 2))}, "candidates is empty"),
    ],
)
def test_errors(arguments, message):
    arguments = {"queries": np.ones((1, 2)), "candidates": np.ones((3, 2))} | arguments
    with pytest.raises(ValueError, match="^" + message.replace(".", r"\.")):
        nearest_neighbors(**arguments)
