from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from deft_tsds import arrays
from deft_tsds.arrays import as_matrix, check_count, check_real, check_same_width, normalize_rows, row_blocks


@pytest.mark.parametrize("make", [np.asarray, jnp.asarray, np.ndarray.tolist, lambda x: x.astype(np.int16)])
def test_as_matrix_takes_numpy_jax_lists_and_integers(make):
    x = np.array([[1.0, 2.0], [3.0, 4.0]])
    matrix = as_matrix(make(x), "x")
    assert isinstance(matrix, np.ndarray)
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix, x)


def test_float32_memory_map_is_not_copied(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((5, 3), dtype=np.float32))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert as_matrix(x, "x") is x


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[1.0], [1.0, 2.0]], "x is not a rectangular array: give every row the same length."),
        ([["a"]], "x has dtype <U1: give an array of real numbers."),
        (np.ones((2, 2), dtype=complex), "x has dtype complex128: give an array of real numbers."),
        (np.ones((2, 2), dtype=bool), "x has dtype bool: give an array of real numbers."),
        (np.ones(3), "x has shape (3,): give a matrix [rows, dimensions]."),
        (np.ones((0, 3)), "x is empty: give at least one row."),
        (np.ones((3, 0)), "x has no columns: give at least one dimension."),
    ],
)
def test_as_matrix_refuses(x, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        as_matrix(x, "x")
    assert str(caught.value) == message


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_first_bad_row_is_named_across_blocks(bad, monkeypatch):
    monkeypatch.setattr(arrays.row_blocks, "__defaults__", (3 * 4 * 2,))  # three rows a block
    x = np.ones((10, 2), dtype=np.float32)
    x[7, 1] = x[9, 0] = bad
    with pytest.raises(ValueError, match=r"^queries, row 7, has a NaN or infinite value: repair or drop that row\.$"):
        as_matrix(x, "queries")


@pytest.mark.parametrize("large", [2e18, 1e30, 1e200])
def test_rows_whose_squared_distances_overflow_are_named(large):
    x = np.ones((3, 2))
    x[1, 0] = large
    message = "a NaN or infinite value" if large == 1e200 else "a norm above 1e\\+18: scale the rows down"
    with pytest.raises(ValueError, match=f"x, row 1, has {message}"):
        as_matrix(x, "x")


def test_widths_must_agree():
    check_same_width(np.ones((2, 3)), np.ones((4, 3)), "a", "b")
    with pytest.raises(ValueError, match=r"^a has 3 dimensions but b has 2: embed both with the same encoder\.$"):
        check_same_width(np.ones((2, 3)), np.ones((4, 2)), "a", "b")


def test_check_count_accepts_integers():
    assert check_count(np.int32(3), "k", 1, 3) == 3
    assert type(check_count(np.int32(3), "k", 1)) is int


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (True, "k is True: give an integer."),
        (2.0, "k is 2.0: give an integer."),
        ("2", "k is '2': give an integer."),
        (np.array([1, 2]), "k is array([1, 2]): give an integer."),
        (0, "k is 0: give an integer between 1 and 5."),
        (6, "k is 6: give an integer between 1 and 5."),
    ],
)
def test_check_count_refuses(value, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        check_count(value, "k", 1, 5)
    assert str(caught.value) == message


def test_check_count_without_upper_bound():
    with pytest.raises(ValueError, match=r"^k is -1: give an integer at least 0\.$"):
        check_count(-1, "k", 0)


@pytest.mark.parametrize(
    ("value", "bounds", "message"),
    [
        ("a", {}, "h is 'a': give a number."),
        (None, {}, "h is None: give a number."),
        (np.nan, {}, "h is nan: give a finite number."),
        (0, {"above": 0.0}, "h is 0: give a number above 0."),
        (2, {"above": 0.0, "at_most": 1.0}, "h is 2: give a number above 0 and at most 1."),
    ],
)
def test_check_real_refuses(value, bounds, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        check_real(value, "h", **bounds)
    assert str(caught.value) == message


def test_normalize_rows_keeps_zero_rows_and_equal_rows():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 7)).astype(np.float32)
    x[3] = 0
    x[40] = x[1]
    x[5] *= 1e-25  # squares underflow in float32
    unit = normalize_rows(x)
    norms = np.linalg.norm(unit.astype(np.float64), axis=1)
    np.testing.assert_allclose(np.delete(norms, 3), 1, atol=1e-6)
    assert not unit[3].any()
    np.testing.assert_array_equal(unit[40], unit[1])


def test_row_blocks_cover_every_row_once():
    assert list(row_blocks(7, row_bytes=10, budget_bytes=35)) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert list(row_blocks(2, row_bytes=100, budget_bytes=1)) == [slice(0, 1), slice(1, 2)]
    assert list(row_blocks(0, row_bytes=1)) == []
