from __future__ import annotations

import tracemalloc
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import brute_density

from deft_tsds.arrays import normalize_rows
from deft_tsds.geometry import cells, density
from deft_tsds.geometry.density import kernel_density


def clustered(n, d, *, seed=0, clusters=6, spread=1.0):
    """Rows about a few far centres, a tenth of them exact copies."""
    rng = np.random.default_rng(seed)
    centers = 4 * rng.normal(size=(clusters, d))
    points = centers[rng.integers(clusters, size=n)] + spread * rng.normal(size=(n, d))
    points[: n // 10] = points[n - n // 10 :]
    return points.astype(np.float32)


@pytest.fixture
def small_cells(monkeypatch):
    """Cells of ten rows, tiles of seven, strips of eleven, sketches from sixteen dimensions on: small inputs go every
    way."""
    monkeypatch.setattr(cells, "_CELL", 10)
    monkeypatch.setattr(cells, "_TILE", 7)
    monkeypatch.setattr(density, "_ROWS", 16)
    monkeypatch.setattr(density, "_STRIP", 11)
    monkeypatch.setattr(density, "_POOL_ROWS", 30)
    monkeypatch.setattr(density, "_DEVICE_BLOCK", 32)
    monkeypatch.setattr(density, "_SKETCH_PAIRS", 0)


@pytest.fixture
def spy(monkeypatch):
    """How many pairs each way of comparing them took."""
    taken = {"sketched": 0, "measured": 0, "multiplied": 0, "strips": 0, "second": 0}
    hits, measure, multiply = density._Visit._hits, density._Visit._measure_pairs, density._Visit._multiply

    def spied_hits(self, j, left, limits_KxR):
        taken["sketched"] += len(left) * limits_KxR.shape[1]
        return hits(self, j, left, limits_KxR)

    def spied_measure(self, shares, j, left, hits_LxR):
        taken["measured"] += int(hits_LxR.sum())
        return measure(self, shares, j, left, hits_LxR)

    def spied_multiply(self, shares, tile, left, right_RxF, limits_KxR=None):
        taken["multiplied"] += len(left) * len(right_RxF)
        taken["strips"] += limits_KxR is None
        taken["second"] += limits_KxR is not None and int(np.isinf(limits_KxR).any())
        return multiply(self, shares, tile, left, right_RxF, limits_KxR)

    monkeypatch.setattr(density._Visit, "_hits", spied_hits)
    monkeypatch.setattr(density._Visit, "_measure_pairs", spied_measure)
    monkeypatch.setattr(density._Visit, "_multiply", spied_multiply)
    return taken


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), shape=st.sampled_from([(1, 1), (15, 1), (40, 3)]), bandwidth=st.floats(0.05, 20))
def test_equals_brute_force(seed, shape, bandwidth):
    rng = np.random.default_rng(seed)
    points = (rng.normal(size=shape) + 5 * rng.normal(size=shape[1])).astype(np.float32)
    found = kernel_density(points, bandwidth=bandwidth)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, brute_density(points, points, bandwidth), rtol=2e-4)


@pytest.mark.parametrize("bandwidth", [0.75, 0.1, 1e-3, 1e-5])
def test_small_bandwidths_are_not_lost_in_rounding(bandwidth):
    """Near-duplicates of unit vectors, closer than h: float32 alone errs by 1e-6 / h^2."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(20, 256))
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    points = (np.repeat(base, 5, axis=0) + rng.normal(size=(100, 256)) * bandwidth / 64).astype(np.float32)
    np.testing.assert_allclose(
        kernel_density(points, bandwidth=bandwidth), brute_density(points, points, bandwidth), rtol=1e-3
    )


def test_far_from_the_origin():
    points = np.random.default_rng(1).normal(size=(30, 4)).astype(np.float32) + 300
    np.testing.assert_allclose(kernel_density(points, bandwidth=1.0), brute_density(points, points, 1.0), rtol=1e-4)


def test_pool_density_sums_over_the_pool():
    rng = np.random.default_rng(2)
    pool = rng.normal(size=(80, 5)).astype(np.float32)
    expected = brute_density(pool[10:30], pool, 2.0)
    np.testing.assert_allclose(kernel_density(pool[10:30], bandwidth=2.0, pool=pool), expected, rtol=1e-4)
    own = kernel_density(pool, bandwidth=2.0)
    np.testing.assert_allclose(kernel_density(pool, bandwidth=2.0, pool=pool), own, rtol=1e-6)


def test_equal_points_count_each_other_and_isolated_points_count_themselves():
    np.testing.assert_allclose(kernel_density(np.ones((50, 3)), bandwidth=0.5), 50, rtol=1e-6)
    np.testing.assert_allclose(kernel_density(10 * np.eye(6), bandwidth=0.5), 1, rtol=1e-6)
    np.testing.assert_allclose(kernel_density(np.zeros((4, 2)), bandwidth=0.5), 4, rtol=1e-6)


@pytest.mark.parametrize("d", [1, 3, 32])
@pytest.mark.parametrize("pair_cost", [1, 40, 10**9])  # every hit by itself, the usual choice, none
@pytest.mark.usefixtures("small_cells")
def test_small_cells_equal_brute_force(d, pair_cost, monkeypatch):
    monkeypatch.setattr(density, "_PAIR_COST", pair_cost)
    points, pool = clustered(200, d), clustered(90, d, seed=1)
    for bandwidth in (1e-3, 1.0, 3.0, 8.0, 1e3):
        own, over_pool = brute_density(points, points, bandwidth), brute_density(points, pool, bandwidth)
        np.testing.assert_allclose(kernel_density(points, bandwidth=bandwidth), own, rtol=1e-4)
        np.testing.assert_allclose(kernel_density(points, bandwidth=bandwidth, pool=pool), over_pool, 1e-4, 1e-4)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    shape=st.sampled_from([(1, 4), (30, 1), (90, 2), (120, 20)]),
    spread=st.sampled_from([0.0, 1e-3, 0.3, 2.0]),
    share=st.floats(0.01, 2),
)
def test_any_cells_equal_brute_force(seed, shape, spread, share):
    """The bandwidth is a share of the mean distance, so that every kind of bound is on its edge."""
    points = clustered(*shape, seed=seed, clusters=4, spread=spread)
    bandwidth = max(share * float(np.mean(np.linalg.norm(points - points[:1], axis=1))), 1e-3)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"_CELL": 10, "_TILE": 7}.items():
            patch.setattr(cells, name, value)
        for name, value in {"_ROWS": 16, "_SKETCH_PAIRS": 0}.items():
            patch.setattr(density, name, value)
        found = kernel_density(points, bandwidth=bandwidth)
        over_pool = kernel_density(points[::3], bandwidth=bandwidth, pool=points)
        scaled = kernel_density(4 * points, bandwidth=4 * bandwidth)
        order = np.random.default_rng(seed).permutation(len(points))
        permuted = kernel_density(points[order], bandwidth=bandwidth)
        shifted = kernel_density(points + np.float32(8), bandwidth=bandwidth)
        wider = kernel_density(points, bandwidth=1.1 * bandwidth)
    other_cells = kernel_density(points, bandwidth=bandwidth)
    expected = brute_density(points, points, bandwidth)
    np.testing.assert_allclose(found, expected, rtol=2e-4)
    np.testing.assert_allclose(over_pool, expected[::3], rtol=2e-4)
    np.testing.assert_array_equal(scaled, found)  # a power of two changes no bit
    np.testing.assert_allclose(other_cells, found, rtol=1e-6)
    np.testing.assert_allclose(permuted, found[order], rtol=1e-6)
    shifted_points = (points + np.float32(8)).astype(np.float64)  # the shift rounds the points themselves
    np.testing.assert_allclose(shifted, brute_density(shifted_points, shifted_points, bandwidth), rtol=2e-4)
    assert np.all(wider >= found * (1 - 2e-4))


@pytest.mark.usefixtures("small_cells")
def test_most_pairs_are_never_compared(spy):
    points = clustered(600, 32)
    pairs = 600 * 601 / 2
    np.testing.assert_allclose(kernel_density(points, bandwidth=3.0), brute_density(points, points, 3.0), rtol=1e-4)
    assert spy["sketched"] + spy["multiplied"] < pairs / 2  # six clusters far from one another
    spy.update(dict.fromkeys(spy, 0))
    kernel_density(points, bandwidth=3.0, pool=points[::2])
    assert spy["sketched"] + spy["multiplied"] < 600 * 300 / 2


@pytest.mark.usefixtures("small_cells")
def test_the_sketch_rules_out_most_of_what_the_slabs_let_through(spy):
    """One Gaussian with a falling spectrum: cells overlap, and the first dimensions tell points apart."""
    points = np.random.default_rng(0).normal(size=(400, 64)).astype(np.float32) * np.geomspace(4, 0.1, 64)
    np.testing.assert_allclose(kernel_density(points, bandwidth=4.0), brute_density(points, points, 4.0), rtol=1e-4)
    assert spy["sketched"] > 5 * (spy["measured"] + spy["multiplied"]) > 0


@pytest.mark.usefixtures("small_cells")
def test_both_halves_of_a_split_pair_of_tiles_are_multiplied(spy, monkeypatch):
    monkeypatch.setattr(density, "_SKETCH_PAIRS", 10**9)
    points = clustered(300, 8, spread=1.5)
    for pool in (None, points[:100]):
        spy.update(dict.fromkeys(spy, 0))
        expected = brute_density(points, points if pool is None else pool, 6.0)
        np.testing.assert_allclose(kernel_density(points, bandwidth=6.0, pool=pool), expected, 1e-4, 1e-5)
        assert spy["second"] > 0


@pytest.mark.parametrize("bandwidth", [7.0, 30.0])
@pytest.mark.parametrize("d", [8, 32])
@pytest.mark.usefixtures("small_cells")
def test_where_cells_rule_nothing_out_every_pair_is_multiplied_once(spy, d, bandwidth):
    points = clustered(200, d, clusters=1)
    for pool in (None, points[:90]):
        spy.update(dict.fromkeys(spy, 0))
        expected = brute_density(points, points if pool is None else pool, bandwidth)
        np.testing.assert_allclose(kernel_density(points, bandwidth=bandwidth, pool=pool), expected, 1e-5, 1e-6)
        assert spy["strips"] > 0
        assert spy["measured"] == 0
        assert spy["multiplied"] <= (200 * 201 / 2 + 200 * 11 / 2 if pool is None else 200 * 90)


@pytest.mark.usefixtures("small_cells")
def test_no_pair_within_the_bandwidth_is_ruled_out():
    """Pairs a hair closer than h, along the line between two cells: a bound without a margin would lose some."""
    rng = np.random.default_rng(0)
    line = np.sort(rng.uniform(0, 100, size=300)).astype(np.float32)
    points = line[:, None] * rng.normal(size=(1, 24)).astype(np.float32)
    width = float(np.linalg.norm(points[40].astype(np.float64) - points[90]))
    for bandwidth in (width, width * (1 + 1e-6), width * (1 - 1e-6)):
        expected = brute_density(points, points, bandwidth)
        np.testing.assert_allclose(kernel_density(points, bandwidth=bandwidth), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("bandwidth", "tolerance"),
    [(0.7, 1e-6), (0.4, 2e-7), (0.1, 2e-7)],  # float32 products, whose rounding depends on the cells; float64 ones
)
def test_cells_blocks_and_threads_change_nothing(monkeypatch, bandwidth, tolerance):
    points, pool = normalize_rows(clustered(300, 32)), normalize_rows(clustered(150, 32, seed=2))
    whole = kernel_density(points, bandwidth=bandwidth), kernel_density(points, bandwidth=bandwidth, pool=pool)
    for cell, tile, rows, block, sketch_pairs in ((300, 512, 7, 16, 0), (11, 5, 64, 50, 10**9), (20, 64, 10, 1000, 0)):
        monkeypatch.setattr(cells, "_CELL", cell)
        monkeypatch.setattr(cells, "_TILE", tile)
        monkeypatch.setattr(density, "_ROWS", rows)
        monkeypatch.setattr(density, "_POOL_ROWS", block)
        monkeypatch.setattr(density, "_SKETCH_PAIRS", sketch_pairs)
        own = kernel_density(points, bandwidth=bandwidth)
        np.testing.assert_allclose(own, whole[0], rtol=tolerance)
        np.testing.assert_allclose(
            kernel_density(points, bandwidth=bandwidth, pool=pool), whole[1], rtol=tolerance, atol=tolerance
        )
        with monkeypatch.context() as alone:
            alone.setattr(density, "usable_cpus", lambda: 1)
            np.testing.assert_array_equal(kernel_density(points, bandwidth=bandwidth), own)


@pytest.mark.usefixtures("small_cells", "device")
@pytest.mark.parametrize("bandwidth", [1e-3, 3.0, 1e3])
def test_the_route_of_accelerators_equals_brute_force(bandwidth):
    points, pool = clustered(150, 5), clustered(64, 5, seed=3)  # the last block of 32 is padded, at the centre
    own, over_pool = brute_density(points, points, bandwidth), brute_density(points, pool, bandwidth)
    np.testing.assert_allclose(kernel_density(points, bandwidth=bandwidth), own, rtol=1e-4)
    np.testing.assert_allclose(kernel_density(points, bandwidth=bandwidth, pool=pool), over_pool, 1e-4, 1e-4)


@pytest.mark.usefixtures("small_cells", "device")
def test_accelerators_skip_blocks_that_are_apart(monkeypatch):
    calls = []
    sums = density._kernel_sums
    monkeypatch.setattr(density, "_kernel_sums", lambda *inputs: calls.append(1) or sums(*inputs))
    points = clustered(320, 8)
    np.testing.assert_allclose(kernel_density(points, bandwidth=1.0), brute_density(points, points, 1.0), rtol=1e-4)
    assert 10 <= len(calls) < 10 * 11 / 2 * 0.7


def test_memory_map_pool(tmp_path):
    pool = np.random.default_rng(4).normal(size=(30, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", pool)
    mapped = kernel_density(pool[:5], bandwidth=1.5, pool=np.load(tmp_path / "x.npy", mmap_mode="r"))
    np.testing.assert_allclose(mapped, brute_density(pool[:5], pool, 1.5), rtol=1e-4)


@pytest.mark.usefixtures("device")
def test_another_bandwidth_does_not_compile_again():
    points = np.random.default_rng(5).normal(size=(19, 11))
    compiled: Any = density._kernel_sums
    before = compiled._cache_size()
    for bandwidth in (1.0, 0.9, 2.5):
        found = kernel_density(points, bandwidth=bandwidth)
        np.testing.assert_allclose(found, brute_density(points, points, bandwidth), rtol=1e-4)
        assert compiled._cache_size() == before + 1


@pytest.mark.usefixtures("small_cells")
def test_some_rows_are_those_rows_copied(tmp_path):
    matrix = clustered(200, 24)
    rows = np.random.default_rng(6).permutation(200)[:90]
    np.save(tmp_path / "x.npy", matrix)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for pool in (None, matrix):
        expected = kernel_density(matrix[rows], bandwidth=4.0, pool=pool)
        for points in (matrix, mapped):
            np.testing.assert_array_equal(kernel_density(points, rows=rows, bandwidth=4.0, pool=pool), expected)


def test_some_rows_are_never_copied_at_once():
    matrix = clustered(20_000, 64)
    rows = np.arange(1, 20_000)
    kernel_density(matrix[:500], bandwidth=0.5)  # what a first call loads

    def peak(**arguments):
        tracemalloc.start()
        kernel_density(bandwidth=0.5, **arguments)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    # A copy would add all of matrix.nbytes; the row numbers, and the blocks of some threads at once, are a part of it.
    assert peak(points=matrix, rows=rows) < peak(points=matrix) + matrix.nbytes / 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([0.0], r"^rows has shape \(1,\) and dtype float64: give a list of row numbers"),
        ([], "^rows has shape"),
        ([[0]], "^rows has shape"),
        ([0, 3], "^rows, entry 1, is 3: points has the rows 0 to 2"),
        ([-1], "^rows, entry 0, is -1"),
    ],
)
def test_bad_row_numbers(rows, message):
    with pytest.raises(ValueError, match=message):
        kernel_density(np.ones((3, 2)), bandwidth=1.0, rows=rows)


@pytest.mark.parametrize("bandwidth", [0, -1.0, np.nan, "wide"])
def test_bandwidth_must_be_above_zero(bandwidth):
    with pytest.raises(ValueError, match=r"^bandwidth is .*: give a .*number"):
        kernel_density(np.ones((2, 2)), bandwidth=bandwidth)


def test_bad_rows_and_widths():
    with pytest.raises(ValueError, match=r"^points, row 1, has a NaN"):
        kernel_density([[1.0], [np.nan]], bandwidth=1.0)
    with pytest.raises(ValueError, match=r"^pool, row 0, has a NaN"):
        kernel_density([[1.0]], bandwidth=1.0, pool=[[np.inf]])
    with pytest.raises(ValueError, match=r"^points has 1 dimensions but pool has 2"):
        kernel_density([[1.0]], bandwidth=1.0, pool=[[1.0, 2.0]])
