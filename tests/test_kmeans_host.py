"""Lloyd's iterations on a CPU: points that are left out keep the right labels, whatever blocks and threads."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from clouds import BOUNDS, HOST, KEY, mixture, overlapping, plain_lloyd
from hypothesis import given, settings
from hypothesis import strategies as st

from deft_tsds.geometry.kmeans import kmeans


@pytest.mark.parametrize(("d", "most"), [(6, 0.5), (160, 0.5)])  # eight clusters: gaps, and a sketch
def test_points_that_are_left_out_keep_the_right_label(monkeypatch, d, most):
    looked_at = []
    measure = HOST._Clusters._measure
    monkeypatch.setattr(
        HOST._Clusters, "_measure", lambda self, rows: looked_at.append(len(rows)) or measure(self, rows)
    )
    points = overlapping(1500, d) - np.float32(1)
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
    assert changes > 20
    assert sum(looked_at) < 41 * 1500 * most


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])  # steps whose squares float32 cannot hold, and others
def test_gaps_of_a_short_history(monkeypatch, scale):
    monkeypatch.setattr(BOUNDS, "_HISTORY", 3)
    points = overlapping(1500, 6) * np.float32(scale)
    centroids_KxD, labels_N, *_ = HOST.lloyd(points, points[:8], 40, 0.0, 0.0, False)
    expected_KxD, expected_N, _ = plain_lloyd(points, points[:8], 40)
    np.testing.assert_array_equal(labels_N, expected_N)
    np.testing.assert_array_equal(centroids_KxD, expected_KxD)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    scale=st.sampled_from([1e-15, 1e-3, 1.0, 1e15]),
    off=st.sampled_from([0.0, 1.0, 1e3]),
    steps=st.lists(st.sampled_from([0.0, 1e-7, 1e-3, 0.1, 10.0]), min_size=1, max_size=5),
    grid=st.booleans(),
)
def test_a_sketch_tells_no_wrong_label(seed, scale, off, steps, grid):
    """Centroids that move as they like; on a grid there are ties, equal points and equal centroids."""
    rng = np.random.default_rng(seed)
    points = off + rng.integers(-1, 2, size=(60, 72)) if grid else off + rng.normal(size=(60, 72))
    points = (scale * points).astype(np.float32)
    centroids = points[rng.integers(60, size=4)]
    with HOST.ThreadPoolExecutor(1) as threads:
        sketch = BOUNDS.Sketch(points, BOUNDS.squares(points).astype(np.float64), threads)
        for step in steps:
            labels = np.full(60, -1, np.int32)
            open_rows = sketch.open_rows(centroids, labels)
            squares = ((points[:, None].astype(np.float64) - centroids.astype(np.float64)) ** 2).sum(-1)
            certain = np.setdiff1d(np.arange(60), open_rows)
            np.testing.assert_array_equal(labels[certain], squares.argmin(1)[certain])
            moved = centroids + scale * step * rng.normal(size=centroids.shape)
            centroids = moved.astype(np.float32)


@pytest.mark.parametrize(("k", "d"), [(9, 10), (4, 80)])
def test_blocks_change_no_bit(monkeypatch, k, d):
    points, start = overlapping(1200, d), overlapping(k, d, seed=1)
    whole = kmeans(points, k, key=KEY, init=start, tolerance=0, max_iterations=60)
    for rows, most in ((7, 0.0), (100, 1.0)):
        for module in (HOST, BOUNDS):
            monkeypatch.setattr(module, "_ROWS", rows)
        monkeypatch.setattr(HOST, "_MOVED_ROWS", rows)
        monkeypatch.setattr(BOUNDS, "_SCORES", 5 * rows)
        monkeypatch.setattr(BOUNDS, "_MOST", most)
        blocks = kmeans(points, k, key=KEY, init=start, tolerance=0, max_iterations=60)
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


def test_threads_change_no_label(tmp_path):
    """The same clustering in a process that may use one core only."""
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system cannot bind a process to a core")
    points = mixture(3000, 72, 12)
    np.save(tmp_path / "points.npy", points)
    script = f"""
import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
import jax, numpy as np
from deft_tsds.geometry.kmeans import kmeans
result = kmeans(np.load({str(tmp_path / "points.npy")!r}), 4, key=jax.random.key(0))
np.savez({str(tmp_path / "one.npz")!r}, labels=result.labels_N, centroids=result.centroids_KxD)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    one = np.load(tmp_path / "one.npz")
    here = kmeans(points, 4, key=KEY)
    np.testing.assert_array_equal(here.labels_N, one["labels"])
    np.testing.assert_array_equal(here.centroids_KxD, one["centroids"])
