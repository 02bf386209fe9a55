"""Mini-batch k-means against Sculley's loop, scikit-learn, and its promise to hold no more than a batch."""

from __future__ import annotations

import tracemalloc
from typing import Any

import jax
import numpy as np
import pytest
from clouds import KEY, KMEANS, inertia_of, mixture
from sklearn.cluster import MiniBatchKMeans, kmeans_plusplus

from deft_tsds.geometry.kmeans import kmeans
from deft_tsds.sampling import generator_of


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
    options: Any = {"key": KEY, "init": points[:5], "batch_size": 512, "max_iterations": 2}
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
    same = kmeans(np.full((50, 1), 3.0), 4, key=KEY, init=np.full((4, 1), 3.0), batch_size=10)
    assert same.inertia == 0
    line = np.arange(9, dtype=np.float32)[:, None] ** 2
    each = kmeans(line, 9, key=KEY, init=line, batch_size=1000)  # k = N, D = 1, a batch larger than the pool
    assert (each.sizes_K == 1).all()
    assert each.inertia == pytest.approx(0, abs=1e-6)
    one = kmeans(line, 1, key=KEY, init=line[:1], batch_size=1)
    np.testing.assert_allclose(one.centroids_KxD, [[line.mean()]], rtol=1e-5)
