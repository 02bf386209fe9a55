from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import brute_density

from deft_tsds import density
from deft_tsds.density import kernel_density


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


@pytest.mark.parametrize("tile", [1, 7, 32])
def test_tiles_and_their_padding_change_nothing(tile, monkeypatch):
    rng = np.random.default_rng(3)
    points, pool = rng.normal(size=(33, 6)), rng.normal(size=(20, 6))  # padding sits at the centre, where points are
    whole = kernel_density(points, bandwidth=3.0), kernel_density(points, bandwidth=3.0, pool=pool)
    monkeypatch.setattr(density, "_TILE", tile)
    np.testing.assert_allclose(kernel_density(points, bandwidth=3.0), whole[0], rtol=1e-6)
    np.testing.assert_allclose(kernel_density(points, bandwidth=3.0, pool=pool), whole[1], rtol=1e-6)


def test_memory_map_pool(tmp_path):
    pool = np.random.default_rng(4).normal(size=(30, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", pool)
    mapped = kernel_density(pool[:5], bandwidth=1.5, pool=np.load(tmp_path / "x.npy", mmap_mode="r"))
    np.testing.assert_allclose(mapped, brute_density(pool[:5], pool, 1.5), rtol=1e-4)


def test_another_bandwidth_does_not_compile_again(caplog):
    points = np.random.default_rng(5).normal(size=(19, 11))
    kernel_density(points, bandwidth=1.0)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        kernel_density(points, bandwidth=0.9)
    assert not [record for record in caplog.records if "_kernel_sums" in record.getMessage()]


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
