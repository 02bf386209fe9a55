"""The starts of k-means: greedy k-means++ against its law, and the best of several starts."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest
from clouds import HOST, KEY, MESH, PROGRAMS, mixture
from sklearn.cluster import kmeans_plusplus

from deft_tsds.geometry.kmeans import kmeans
from deft_tsds.geometry.mesh import candidates_mesh


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
    for seed in range(200):
        kmeans(points, 1, key=jax.random.key(seed), max_iterations=1)
    counts = np.bincount(np.rint(np.ravel(starts) + 4.5).astype(int), minlength=10)
    assert ((counts - 20) ** 2 / 20).sum() < 33.7


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
    mesh = candidates_mesh()
    firsts = np.random.default_rng(0).integers(3, size=draws)
    for seed, first in enumerate(firsts):
        _, uniform = MESH.draws(np.random.default_rng(seed), 3, 2)
        with jax.enable_x64(True):
            squares, *_, largest = MESH.moments(device, mesh=mesh)
            start = MESH.plus_plus(first, uniform, device, squares, largest, 3, 2, mesh=mesh)
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
