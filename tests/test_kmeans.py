"""k-means against scikit-learn from the same start, and against its own laws."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tracemalloc
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans as SklearnKMeans
from sklearn.cluster import MiniBatchKMeans, kmeans_plusplus

from deft_tsds import kmeans as public_kmeans
from deft_tsds.geometry.kmeans import kmeans
from deft_tsds.sampling import generator_of

# `deft_tsds.geometry.kmeans` as an attribute is the function
KMEANS: Any = importlib.import_module("deft_tsds.geometry.kmeans")
HOST: Any = importlib.import_module("deft_tsds.geometry.kmeans_host")
PROGRAMS: Any = importlib.import_module("deft_tsds.geometry.kmeans_programs")
KEY = jax.random.key(0)


def mixture(n, d, clusters, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    centers = 3 * rng.normal(size=(clusters, d))
    return (centers[rng.integers(clusters, size=n)] + spread * rng.normal(size=(n, d))).astype(np.float32)


def inertia_of(points, labels, centroids):
    points, centroids = np.asarray(points, np.float64), np.asarray(centroids, np.float64)
    return float(((points - centroids[labels]) ** 2).sum())


def sklearn_from(start, points, **options: Any):
    options = {"init": start, "n_init": 1, "algorithm": "lloyd", **options}
    return SklearnKMeans(len(start), **options).fit(points)


@pytest.fixture(params=["host", "device"])
def route(request, monkeypatch):
    """Lloyd's iterations by the host's BLAS, and as the compiled program that accelerators run."""
    if request.param == "device":
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    return request.param


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


def test_public_name():
    assert public_kmeans is kmeans


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("k", [1, 7, 40])
@pytest.mark.parametrize("tolerance", [0.0, 1e-4, 1e-2])
def test_same_as_sklearn_from_the_same_start(k, tolerance):
    points = mixture(5000, 24, 12) + 5  # off the origin, more than one block
    start = points[np.random.default_rng(k).choice(len(points), k, replace=False)]
    ours = kmeans(points, k, key=KEY, init=start, tolerance=tolerance, max_iterations=300)
    theirs = sklearn_from(start, points, tol=tolerance, max_iter=300)
    np.testing.assert_array_equal(ours.labels_N, theirs.labels_)
    np.testing.assert_allclose(ours.centroids_KxD, theirs.cluster_centers_, atol=1e-4)
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-5)
    assert ours.iterations == theirs.n_iter_
    assert ours.converged


@pytest.mark.usefixtures("route")
def test_same_as_sklearn_when_a_cluster_starts_empty():
    points = mixture(600, 5, 4)
    start = points[:4].copy()
    start[2] = 1000  # nearest to nothing
    ours = kmeans(points, 4, key=KEY, init=start)
    theirs = sklearn_from(start, points)
    np.testing.assert_array_equal(ours.labels_N, theirs.labels_)
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-5)
    assert (ours.sizes_K > 0).all()


@pytest.mark.usefixtures("route")
def test_several_empty_clusters_are_all_repaired():
    points = mixture(300, 3, 6, spread=0.1)
    start = np.full((6, 3), 500, np.float32) + np.arange(6)[:, None]
    result = kmeans(points, 6, key=KEY, init=start)
    assert (result.sizes_K > 0).all()
    again = kmeans(points, 6, key=jax.random.key(9), init=start)
    np.testing.assert_array_equal(result.labels_N, again.labels_N)


@pytest.mark.usefixtures("route")
def test_fixed_point():
    points = mixture(1500, 8, 5)
    result = kmeans(points, 5, key=KEY, tolerance=0)
    distances = ((points[:, None].astype(np.float64) - result.centroids_KxD) ** 2).sum(-1)
    np.testing.assert_array_equal(distances.argmin(1), result.labels_N)
    means = np.stack([points[result.labels_N == c].mean(0) for c in range(5)])
    np.testing.assert_allclose(result.centroids_KxD, means, atol=1e-5)
    assert result.inertia == pytest.approx(inertia_of(points, result.labels_N, result.centroids_KxD), rel=1e-5)
    assert result.labels_N.dtype == np.int32
    assert result.centroids_KxD.dtype == np.float32


@pytest.mark.usefixtures("route")
def test_filling_rows_change_nothing(monkeypatch):
    points = mixture(1000, 6, 5)
    whole = kmeans(points, 5, key=KEY, init=points[:5])
    for rows in (300, 7):
        monkeypatch.setattr(PROGRAMS, "BLOCK_ROWS", rows)
        blocks = kmeans(points, 5, key=KEY, init=points[:5])
        np.testing.assert_array_equal(blocks.labels_N, whole.labels_N)
        np.testing.assert_allclose(blocks.centroids_KxD, whole.centroids_KxD, atol=1e-5)
        assert blocks.inertia == pytest.approx(whole.inertia, rel=1e-6)
        assert blocks.iterations == whole.iterations


def test_plus_plus_never_draws_a_filling_row(monkeypatch):
    monkeypatch.setattr(PROGRAMS, "BLOCK_ROWS", 16)
    points = 10 + mixture(17, 4, 3)  # 15 of 32 rows are filling, at the mean of the points
    for seed in range(20):
        result = kmeans(points, 17, key=jax.random.key(seed), max_iterations=1)
        assert (result.sizes_K == 1).all()
        assert result.inertia == pytest.approx(0, abs=1e-6)


def test_plus_plus_is_as_good_as_sklearn():
    points = mixture(4000, 10, 30, spread=0.5)

    def potential(centers):
        return ((points[:, None] - centers) ** 2).sum(-1).min(1).sum()

    ours = [kmeans(points, 30, key=jax.random.key(s), max_iterations=1) for s in range(10)]
    theirs = [potential(kmeans_plusplus(points, 30, random_state=s)[0]) for s in range(10)]
    # One Lloyd step only lowers the potential of the start; a bad start (random rows) is several times worse.
    assert np.median([r.inertia for r in ours]) <= 1.1 * np.median(theirs)


def test_first_center_is_uniform(monkeypatch):
    """k = 1 and one iteration tell nothing of the start, so look at the start itself: chi-square at level 1e-4."""
    starts = []
    monkeypatch.setattr(PROGRAMS, "BLOCK_ROWS", 4)
    lloyd = HOST.lloyd

    def spy(points, centroids, *rest):
        starts.append(centroids)
        return lloyd(points, centroids, *rest)

    monkeypatch.setattr(HOST, "lloyd", spy)
    points = np.arange(10, dtype=np.float32)[:, None]
    for seed in range(600):
        kmeans(points, 1, key=jax.random.key(seed), max_iterations=1)
    counts = np.bincount(np.rint(np.ravel(starts) + 4.5).astype(int), minlength=10)
    assert ((counts - 60) ** 2 / 60).sum() < 33.7


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("spherical", [False, True])
def test_fewer_distinct_points_than_clusters(spherical):
    distinct = mixture(3, 6, 3)
    points = np.repeat(distinct, 20, axis=0)
    result = kmeans(points, 7, key=KEY, spherical=spherical)
    assert result.converged
    assert result.inertia == pytest.approx(0, abs=1e-6)
    assert (result.sizes_K > 0).sum() == 3
    assert np.isfinite(result.centroids_KxD).all()
    assert len(np.unique(result.labels_N.reshape(3, 20))) == 3


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize("value", [0.0, 1.0, 1e-20, 1e10])
def test_all_points_equal(value):
    result = kmeans(np.full((50, 3), value), 4, key=KEY)
    assert result.converged
    assert result.inertia == 0
    np.testing.assert_allclose(result.centroids_KxD, value, rtol=1e-6)


@pytest.mark.usefixtures("route")
def test_spherical_ignores_length():
    points = mixture(500, 8, 4)
    lengths = np.random.default_rng(0).uniform(0.1, 10, size=(500, 1)).astype(np.float32)
    plain = kmeans(points, 4, key=KEY, spherical=True)
    scaled = kmeans(points * lengths, 4, key=KEY, spherical=True)
    np.testing.assert_array_equal(plain.labels_N, scaled.labels_N)
    np.testing.assert_allclose(np.linalg.norm(plain.centroids_KxD, axis=1), 1, rtol=1e-5)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    np.testing.assert_array_equal((unit @ plain.centroids_KxD.T).argmax(1), plain.labels_N)


@pytest.mark.usefixtures("route")
@pytest.mark.parametrize(("n", "d"), [(1, 1), (2, 1), (7, 3)])
def test_as_many_clusters_as_points(n, d):
    points = np.arange(n * d, dtype=np.float32).reshape(n, d) ** 2
    result = kmeans(points, n, key=KEY)
    assert (result.sizes_K == 1).all()
    np.testing.assert_allclose(result.centroids_KxD[result.labels_N], points, atol=1e-4)


def test_same_key_same_result_and_max_iterations():
    points = mixture(2500, 8, 20)
    a, b = (kmeans(points, 20, key=jax.random.key(3)) for _ in range(2))
    np.testing.assert_array_equal(a.labels_N, b.labels_N)
    np.testing.assert_array_equal(a.centroids_KxD, b.centroids_KxD)
    c = kmeans(points, 20, key=jax.random.key(4))
    assert (a.centroids_KxD != c.centroids_KxD).any()
    short = kmeans(points, 20, key=jax.random.key(3), max_iterations=1)
    assert short.iterations == 1
    assert not short.converged


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(9, 16),
    k=st.sampled_from([2, 7]),
    seed=st.integers(0, 10**6),
    grid=st.sampled_from([0.5, 1e-3]),
)
def test_any_small_input(n, k, seed, grid):
    points = np.round(np.random.default_rng(seed).normal(size=(n, 2)) / grid) * grid
    result = kmeans(points, k, key=jax.random.key(seed))
    distinct = len(np.unique(points.astype(np.float32), axis=0))
    assert ((result.labels_N >= 0) & (result.labels_N < k)).all()
    assert (result.sizes_K > 0).sum() <= min(k, distinct)
    assert np.isfinite(result.centroids_KxD).all()
    direct = inertia_of(points, result.labels_N, result.centroids_KxD)
    assert result.inertia == pytest.approx(direct, rel=1e-4, abs=1e-5)
    if distinct >= k and result.converged:
        assert (result.sizes_K > 0).all()


def test_errors():
    points = mixture(10, 3, 2)
    with pytest.raises(ValueError, match="k is 0"):
        kmeans(points, 0, key=KEY)
    with pytest.raises(ValueError, match="k is 11: give an integer between 1 and 10"):
        kmeans(points, 11, key=KEY)
    with pytest.raises(ValueError, match=r"init has shape \(3, 3\)"):
        kmeans(points, 2, key=KEY, init=points[:3])
    with pytest.raises(ValueError, match="init must be"):
        kmeans(points, 2, key=KEY, init="random")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tolerance"):
        kmeans(points, 2, key=KEY, tolerance=-1)
    with pytest.raises(ValueError, match="key must be"):
        kmeans(points, 2, key=0)  # type: ignore[arg-type]
    bad = points.copy()
    bad[4, 1] = np.nan
    with pytest.raises(ValueError, match="points, row 4"):
        kmeans(bad, 2, key=KEY)


def traces():
    programs = (PROGRAMS.plus_plus, PROGRAMS.lloyd, PROGRAMS.label, PROGRAMS.learn, PROGRAMS.revive, PROGRAMS.moments)
    return [program._cache_size() for program in programs]


@pytest.mark.usefixtures("device")
def test_nothing_recompiles_when_numbers_change():
    points = mixture(700, 5, 4)
    options: list[dict[str, Any]] = [{}, {"batch_size": 100}]
    for option in options:
        kmeans(points, 6, key=KEY, **option)
        before = traces()
        for seed, tolerance, iterations in ((1, 1e-4, 100), (2, 0.0, 7), (3, 1.0, 2)):
            kmeans(points, 6, key=jax.random.key(seed), tolerance=tolerance, max_iterations=iterations, **option)
        kmeans(points[:-1], 6, key=KEY, **option)  # as many blocks
        assert traces() == before


@pytest.mark.parametrize("batch_size", [None, 200])
def test_restarts_are_the_best_of_single_runs(batch_size):
    points = mixture(900, 6, 20, spread=0.3)
    options: Any = {"batch_size": batch_size, "max_iterations": 3}
    best = kmeans(points, 9, key=KEY, restarts=4, **options)
    singles = [kmeans(points, 9, key=jax.random.fold_in(KEY, r), **options) for r in range(4)]
    winner = min(singles, key=lambda result: result.inertia)
    assert len({result.inertia for result in singles}) > 1
    assert best.inertia == winner.inertia
    np.testing.assert_array_equal(best.labels_N, winner.labels_N)
    np.testing.assert_array_equal(best.centroids_KxD, winner.centroids_KxD)


@pytest.mark.usefixtures("device")
def test_sums_stay_those_of_the_labels(monkeypatch):
    """Sums that only follow the labels and sums that start afresh each iteration end in the same place."""
    points = 3 + np.random.default_rng(1).normal(size=(3000, 12)).astype(np.float32)  # no clusters: many iterations
    follow = kmeans(points, 15, key=KEY, tolerance=0, max_iterations=1000)
    assert follow.iterations > 40
    means = np.stack([points[follow.labels_N == c].mean(0, dtype=np.float64) for c in range(15)])
    np.testing.assert_allclose(follow.centroids_KxD, means, atol=2e-6)
    monkeypatch.setattr(PROGRAMS, "_FRESH_SUMS_EVERY", 1)
    jax.clear_caches()
    fresh = kmeans(points, 15, key=KEY, tolerance=0, max_iterations=1000)
    jax.clear_caches()
    np.testing.assert_array_equal(fresh.labels_N, follow.labels_N)
    assert fresh.inertia == pytest.approx(follow.inertia, rel=1e-6)


@pytest.mark.usefixtures("device")
def test_distances_by_blocks_change_nothing(monkeypatch):
    points = mixture(5000, 6, 9)
    whole = kmeans(points, 9, key=KEY)
    monkeypatch.setattr(PROGRAMS, "_LARGEST_PRODUCT", 1)
    jax.clear_caches()
    blocks = kmeans(points, 9, key=KEY)
    jax.clear_caches()
    np.testing.assert_array_equal(blocks.labels_N, whole.labels_N)
    np.testing.assert_allclose(blocks.centroids_KxD, whole.centroids_KxD, atol=1e-5)


def test_batches_of_candidates_follow_the_law():
    """Three points on a line, two centroids: which pair comes out, against the law of greedy k-means++ by enumeration.

    From the first (uniform), two draws in proportion to the squared distance; the better one stays. Chi-square with
    two degrees of freedom at level 1e-4.
    """
    points = np.array([[0.0], [1.0], [3.0]], np.float32)
    law: dict[tuple[int, int], float] = {}
    for first in range(3):
        mass = (points[:, 0] - points[first, 0]) ** 2
        mass = mass / mass.sum()
        left = [np.minimum((points - points[first]) ** 2, (points - points[c]) ** 2).sum() for c in range(3)]
        for a in range(3):
            for b in range(3):
                pair = (first, a if left[a] <= left[b] else b)
                pair = (min(pair), max(pair))
                law[pair] = law.get(pair, 0) + mass[a] * mass[b] / 3
    draws, found = 900, dict.fromkeys(law, 0)
    device = jax.numpy.asarray(np.pad(points, ((0, 1), (0, 0))))
    squares, _ = PROGRAMS.moments(device)
    firsts = np.random.default_rng(0).integers(3, size=draws)
    for seed, first in enumerate(firsts):
        start = PROGRAMS.plus_plus(jax.random.key(seed), first, device, squares, 3, 2)
        a, b = (int(np.flatnonzero(points[:, 0] == c)[0]) for c in np.asarray(start)[:, 0])
        found[min(a, b), max(a, b)] += 1
    kept = [pair for pair in law if law[pair] > 0]
    assert all(found[pair] == 0 for pair in law if law[pair] == 0)
    assert sum((found[p] - draws * law[p]) ** 2 / (draws * law[p]) for p in kept) < 18.4


def test_later_centroids_of_one_batch_follow_the_law():
    """Two tight pairs and a far point: once a point is taken, what lies beside it is hardly ever drawn."""
    points = np.array([[0, 0], [0.01, 0], [10, 0], [10.01, 0], [0, 10]], np.float32)
    for seed in range(50):
        result = kmeans(points, 3, key=jax.random.key(seed), max_iterations=1)
        np.testing.assert_array_equal(np.sort(result.sizes_K), [1, 2, 2])


def minibatch_oracle(points, start, batches):
    """Sculley's loop, one point at a time, in float64."""
    centroids, seen = np.array(start, np.float64), np.zeros(len(start))
    for rows in batches:
        nearest = ((points[rows, None].astype(np.float64) - centroids) ** 2).sum(-1).argmin(1)
        for row, c in zip(rows, nearest, strict=True):
            seen[c] += 1
            centroids[c] += (points[row] - centroids[c]) / seen[c]
    return centroids


def test_minibatch_is_sculleys_loop():
    points = mixture(500, 4, 3) + 5
    start = points[:3] + 0.1
    result = kmeans(points, 3, key=KEY, init=start, batch_size=64, max_iterations=2, tolerance=0)
    generator = generator_of(KEY)
    list(zip(range(3), KMEANS._batches(500, 64, generator), strict=False))  # the sample takes the generator on
    batches = [rows for _ in range(2) for rows in KMEANS._batches(500, 64, generator)]
    np.testing.assert_allclose(result.centroids_KxD, minibatch_oracle(points, start, batches), atol=1e-4)
    labels = ((points[:, None] - result.centroids_KxD) ** 2).sum(-1).argmin(1)
    np.testing.assert_array_equal(result.labels_N, labels)
    assert result.inertia == pytest.approx(inertia_of(points, labels, result.centroids_KxD), rel=1e-5)


@pytest.mark.parametrize(("n", "size"), [(1, 1), (10, 3), (1000, 64), (1001, 999), (64, 64), (2050, 100)])
def test_batches_hold_every_row_once(n, size):
    batches = list(KMEANS._batches(n, size, np.random.default_rng(0)))
    np.testing.assert_array_equal(np.sort(np.concatenate(batches)), np.arange(n))
    assert all(0 < len(rows) <= size for rows in batches)
    if n == 2050:
        assert all(np.ptp(rows) > n / 3 for rows in batches)  # from all parts, so that sorted pools are mixed


@pytest.mark.parametrize("spread", [0.5, 2.0])
def test_minibatch_is_as_good_as_sklearn(spread):
    points = mixture(3000, 10, 30, spread=spread)
    points = points[np.argsort(points[:, 0])]  # rows in an order that a plain run of rows would suffer from
    starts = [kmeans_plusplus(points, 15, random_state=s)[0] for s in range(3)]  # the same for both
    ours = [kmeans(points, 15, key=KEY, init=start, batch_size=512).inertia for start in starts]
    options: Any = {"n_init": 1, "batch_size": 512, "random_state": 0}
    theirs = [MiniBatchKMeans(15, **{"init": start, **options}).fit(points).inertia_ for start in starts]
    assert np.median(ours) <= 1.03 * np.median(theirs)


def test_minibatch_never_holds_the_pool(tmp_path):
    points = mixture(40_000, 64, 5)
    np.save(tmp_path / "pool.npy", points)
    pool = np.load(tmp_path / "pool.npy", mmap_mode="r")
    options: Any = {"key": KEY, "batch_size": 512, "max_iterations": 2}
    in_memory = kmeans(points, 5, **options)
    tracemalloc.start()
    mapped = kmeans(pool, 5, **options)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(mapped.labels_N, in_memory.labels_N)
    assert mapped.inertia == in_memory.inertia
    assert peak < points.nbytes / 2
    assert max((array.nbytes for array in jax.live_arrays()), default=0) < points.nbytes / 2


def test_minibatch_revives_centroids_that_meet_no_point():
    points = mixture(800, 3, 6, spread=0.1)
    start = np.full((6, 3), 500, np.float32) + np.arange(6)[:, None]
    result = kmeans(points, 6, key=KEY, init=start, batch_size=100)
    assert (result.sizes_K > 0).all()
    assert result.converged


def test_minibatch_of_unit_rows():
    points = mixture(2000, 8, 4)
    full = kmeans(points, 4, key=KEY, spherical=True, restarts=3)
    batches = kmeans(points * 7, 4, key=KEY, spherical=True, restarts=3, batch_size=256)
    np.testing.assert_allclose(np.linalg.norm(batches.centroids_KxD, axis=1), 1, rtol=1e-5)
    assert batches.inertia <= 1.03 * full.inertia
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    np.testing.assert_array_equal((unit @ batches.centroids_KxD.T).argmax(1), batches.labels_N)


@pytest.mark.parametrize("spherical", [False, True])
def test_minibatch_with_fewer_distinct_points_than_clusters(spherical):
    points = np.repeat(mixture(3, 6, 3), 20, axis=0)
    result = kmeans(points, 7, key=KEY, spherical=spherical, batch_size=16)
    assert result.inertia == pytest.approx(0, abs=1e-5)
    assert result.converged
    assert (result.sizes_K > 0).sum() == 3


def test_minibatch_corners():
    same = kmeans(np.full((50, 1), 3.0), 4, key=KEY, batch_size=10)
    assert same.inertia == 0
    line = np.arange(9, dtype=np.float32)[:, None] ** 2
    each = kmeans(line, 9, key=KEY, batch_size=1000)  # k = N, D = 1, a batch larger than the pool
    assert (each.sizes_K == 1).all()
    assert each.inertia == pytest.approx(0, abs=1e-6)
    one = kmeans(line, 1, key=KEY, batch_size=1)
    np.testing.assert_allclose(one.centroids_KxD, [[line.mean()]], rtol=1e-5)


def test_errors_of_the_new_options():
    points = mixture(10, 3, 2)
    with pytest.raises(ValueError, match="restarts is 0"):
        kmeans(points, 2, key=KEY, restarts=0)
    with pytest.raises(ValueError, match="all would end alike"):
        kmeans(points, 2, key=KEY, restarts=2, init=points[:2])
    with pytest.raises(ValueError, match="batch_size is 1: give an integer at least 2"):
        kmeans(points, 2, key=KEY, batch_size=1)


def overlapping(n, d, seed=0):
    """One round cloud of falling spectrum: labels go on changing for a hundred iterations."""
    return (np.random.default_rng(seed).normal(size=(n, d)) * np.geomspace(1, 0.1, d) + 1).astype(np.float32)


def plain_lloyd(points, start, iterations):
    """Lloyd's iterations in float64, all distances each time; and how often the labels changed."""
    x, centroids, labels, changes = points.astype(np.float64), start.astype(np.float32), None, 0
    for _ in range(iterations):
        squares = ((x[:, None] - centroids.astype(np.float64)) ** 2).sum(-1)
        changes += labels is not None and np.any(squares.argmin(1) != labels)
        labels = squares.argmin(1)
        # float32 as ours, so that no label is decided by another rounding
        centroids = np.stack([x[labels == c].mean(0) for c in range(len(start))]).astype(np.float32)
    labels = ((x[:, None] - centroids.astype(np.float64)) ** 2).sum(-1).argmin(1)
    return centroids, labels, changes


@pytest.mark.parametrize("history", [3, 32])
def test_points_that_are_left_out_keep_the_right_label(monkeypatch, history):
    monkeypatch.setattr(HOST, "_HISTORY", history)
    looked_at = []
    measure = HOST._Clusters._measure
    monkeypatch.setattr(
        HOST._Clusters, "_measure", lambda self, rows: looked_at.append(len(rows)) or measure(self, rows)
    )
    points = overlapping(1500, 6) - np.float32(1)
    centered = points - points.mean(0, dtype=np.float64).astype(np.float32)
    start = centered[:8].copy()
    for iterations in (1, 5, 40):
        looked_at.clear()
        centroids_KxD, labels_N, errors_N, *_ = HOST.lloyd(centered, start, iterations, 0.0, 0.0, False)
        expected_KxD, expected_N, changes = plain_lloyd(centered, start, iterations)
        np.testing.assert_array_equal(labels_N, expected_N)
        np.testing.assert_array_equal(centroids_KxD, expected_KxD)
        difference = centered.astype(np.float64) - centroids_KxD[labels_N]
        np.testing.assert_allclose(errors_N, (difference**2).sum(1), rtol=1e-5)
    assert changes > 30
    assert looked_at[0] == 1500
    assert sum(looked_at) < 41 * 1500 * (0.5 if history == 32 else 0.8)


def test_blocks_change_no_bit(monkeypatch):
    points, start = overlapping(1200, 10), overlapping(9, 10, seed=1)
    whole = kmeans(points, 9, key=KEY, init=start, tolerance=0, max_iterations=60)
    for rows, most in ((7, 0.0), (100, 1.0)):
        monkeypatch.setattr(HOST, "_ROWS", rows)
        monkeypatch.setattr(HOST, "_MOST", most)
        blocks = kmeans(points, 9, key=KEY, init=start, tolerance=0, max_iterations=60)
        np.testing.assert_array_equal(blocks.labels_N, whole.labels_N)
        np.testing.assert_array_equal(blocks.centroids_KxD, whole.centroids_KxD)
        assert blocks.inertia == whole.inertia
        assert blocks.iterations == whole.iterations


def test_labels_that_float32_cannot_decide():
    """Points beside the plane between two centroids, nearer to it than the rounding of a float32 product; and on it."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(400, 64)).astype(np.float32)
    base[:, 0] = 2.0 ** -rng.integers(20, 44, size=400) * rng.integers(-1, 2, size=400)
    start = np.zeros((2, 64), np.float32)
    start[:, 0] = 1, -1
    clusters = HOST._Clusters(base, start, HOST.ThreadPoolExecutor(1))
    clusters.assign()
    np.testing.assert_array_equal(clusters.labels_N, (base[:, 0] < 0).astype(np.int32))  # the lower index of two


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-15, 1.0, 1e15]))
def test_both_routes_end_alike(seed, scale):
    points = (scale * np.random.default_rng(seed).normal(size=(64, 2))).astype(np.float32)
    ours = kmeans(points, 3, key=KEY, init=points[:3])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "gpu")
        theirs = kmeans(points, 3, key=KEY, init=points[:3])
    np.testing.assert_array_equal(ours.labels_N, theirs.labels_N)
    np.testing.assert_allclose(ours.centroids_KxD, theirs.centroids_KxD, rtol=1e-5, atol=1e-6 * scale)
    assert ours.inertia == pytest.approx(theirs.inertia, rel=1e-5)
    assert ours.iterations == theirs.iterations


def test_threads_change_no_label(tmp_path):
    """The same clustering in a process that may use one core only."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system cannot bind a process to a core")
    points = mixture(5000, 40, 12)
    np.save(tmp_path / "points.npy", points)
    script = f"""
import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
import jax, numpy as np
from deft_tsds.geometry.kmeans import kmeans
result = kmeans(np.load({str(tmp_path / "points.npy")!r}), 12, key=jax.random.key(0))
np.savez({str(tmp_path / "one.npz")!r}, labels=result.labels_N, centroids=result.centroids_KxD)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    one = np.load(tmp_path / "one.npz")
    here = kmeans(points, 12, key=KEY)
    np.testing.assert_array_equal(here.labels_N, one["labels"])
    np.testing.assert_array_equal(here.centroids_KxD, one["centroids"])
