"""k-means against scikit-learn from the same start, and against its own laws."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest
from clouds import KEY, MESH, PROGRAMS, inertia_of, mixture
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans as SklearnKMeans

from deft_tsds import kmeans as public_kmeans
from deft_tsds.geometry.kmeans import kmeans


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
    monkeypatch.setattr(PROGRAMS, "BLOCK_ROWS", 7)
    blocks = kmeans(points, 5, key=KEY, init=points[:5])
    np.testing.assert_array_equal(blocks.labels_N, whole.labels_N)
    np.testing.assert_allclose(blocks.centroids_KxD, whole.centroids_KxD, atol=1e-5)
    assert blocks.inertia == pytest.approx(whole.inertia, rel=1e-6)
    assert blocks.iterations == whole.iterations


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
    points = mixture(900, 8, 20)
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


def test_errors_of_the_new_options():
    points = mixture(10, 3, 2)
    with pytest.raises(ValueError, match="restarts is 0"):
        kmeans(points, 2, key=KEY, restarts=0)
    with pytest.raises(ValueError, match="all would end alike"):
        kmeans(points, 2, key=KEY, restarts=2, init=points[:2])
    with pytest.raises(ValueError, match="batch_size is 1: give an integer at least 2"):
        kmeans(points, 2, key=KEY, batch_size=1)


def traces():
    programs = (MESH.plus_plus, MESH.lloyd, MESH.moments, PROGRAMS.label, PROGRAMS.learn, PROGRAMS.revive)
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


def traced_anew(program, **options):
    """Compiled with the module's present settings, whatever was compiled before."""
    return jax.jit(functools.wraps(program)(lambda *args: program(*args)), **options)


@pytest.mark.usefixtures("device")
def test_sums_stay_those_of_the_labels():
    """Sums follow the labels for many iterations and never start afresh."""
    points = 3 + np.random.default_rng(1).normal(size=(3000, 12)).astype(np.float32)  # no clusters: many iterations
    follow = kmeans(points, 15, key=KEY, init=points[:15], tolerance=0, max_iterations=1000)
    assert follow.iterations > 40
    means = np.stack([points[follow.labels_N == c].mean(0, dtype=np.float64) for c in range(15)])
    np.testing.assert_allclose(follow.centroids_KxD, means, atol=2e-6)


def test_distances_by_blocks_change_nothing(monkeypatch):
    points, n = jax.numpy.asarray(mixture(4096, 6, 9)), 4000
    whole_N = traced_anew(PROGRAMS._nearest)(points, n, points[:9])
    monkeypatch.setattr(PROGRAMS, "_LARGEST_PRODUCT", 1)
    np.testing.assert_array_equal(traced_anew(PROGRAMS._nearest)(points, n, points[:9]), whole_N)
