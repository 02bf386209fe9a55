"""The user's own embeddings: .npy, .npz, parquet and raw files, read as they are or refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deft_tsds.embed.given import read_embeddings

ROWS = np.random.default_rng(0).normal(size=(5, 3))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_own_embeddings_of_any_float_type(dtype: Any, tmp_path: Path) -> None:
    rows = ROWS.astype(dtype)
    np.save(tmp_path / "a.npy", rows)
    np.savez(tmp_path / "a.npz", rows)
    for path in (tmp_path / "a.npy", tmp_path / "a.npz"):
        read = read_embeddings(path, rows=5)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, rows.astype(np.float32))


def test_own_float32_embeddings_stay_on_disk(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS.astype(np.float32))
    assert isinstance(read_embeddings(tmp_path / "a.npy", rows=5), np.memmap)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("kind", ["fixed", "list"])
def test_own_embeddings_in_a_column_of_parquet(dtype: Any, kind: str, tmp_path: Path) -> None:
    rows = ROWS.astype(dtype)
    width = 3 if kind == "fixed" else -1
    column = pa.array(rows.tolist(), pa.list_(pa.from_numpy_dtype(rows.dtype), width))
    table = pa.table({"id": [str(n) for n in range(5)], "words": [[1]] * 5, "embedding": column})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    for name in (None, "embedding"):
        read = read_embeddings(tmp_path / "a.parquet", rows=5, column=name)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, rows.astype(np.float32))


@pytest.mark.parametrize(
    ("columns", "asked", "rows", "message"),
    [
        ({"a": ROWS.tolist(), "b": ROWS.tolist()}, None, 5, r"has 2 columns of lists of floats \(a, b\): name one"),
        ({"a": [1.0] * 5}, None, 5, "has 0 columns of lists of floats"),
        ({"a": ROWS.tolist()}, "c", 5, "'c' is no column of lists of floats; there are a"),
        ({"a": [[1.0, 2.0]] * 3 + [[1.0]]}, None, 4, "row 3, has 1 numbers where row 0 has 2"),
        ({"a": [[1.0, 2.0], None]}, None, 2, "row 1, has nothing"),
        ({"a": [[], []]}, None, 2, "cannot be read|has nothing"),
        ({"a": [[1.0, 2.0], [None, 1.0]]}, None, 2, "row 1, has a NaN"),
        ({"a": ROWS.tolist()}, None, 4, "has 5 rows for 4 examples"),
    ],
)
def test_parquet_that_cannot_be_used(columns: Any, asked: Any, rows: int, message: str, tmp_path: Path) -> None:
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=message):
        read_embeddings(tmp_path / "a.parquet", rows=rows, column=asked)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_own_embeddings_in_a_raw_memory_map(dtype: Any, tmp_path: Path) -> None:
    ROWS.astype(dtype).tofile(tmp_path / "a.dat")
    read = read_embeddings(tmp_path / "a.dat", rows=5, raw=(dtype, 3))
    np.testing.assert_array_equal(read, ROWS.astype(dtype).astype(np.float32))
    assert isinstance(read, np.memmap) == (dtype == "float32")


@pytest.mark.parametrize(
    ("raw", "rows", "message"),
    [
        (("float32", 4), 5, "60 bytes, which is no whole number of float32 rows of 4"),
        (("float32", 5), 5, "has 3 rows for 5 examples"),
        (("int8", 3), 5, "raw says 'int8'"),
        (("float32", 0), 5, "the dimension in raw is 0"),
        (None, 5, "give `raw`"),
    ],
)
def test_raw_memory_maps_that_cannot_be_used(raw: Any, rows: int, message: str, tmp_path: Path) -> None:
    ROWS.astype(np.float32).tofile(tmp_path / "a.dat")
    with pytest.raises(ValueError, match=message):
        read_embeddings(tmp_path / "a.dat", rows=rows, raw=raw)


def test_a_column_is_for_parquet(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS)
    with pytest.raises(ValueError, match="has no columns"):
        read_embeddings(tmp_path / "a.npy", rows=5, column="a")


def spoiled(value: float) -> np.ndarray:
    rows = ROWS.copy()
    rows[3, 1] = value
    return rows


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (spoiled(np.nan), "row 3, has a NaN or infinite value"),
        (spoiled(np.inf), "row 3, has a NaN or infinite value"),
        (spoiled(1e300), "row 3, has a NaN or infinite value"),
        (ROWS[:4], "has 4 rows for 5 examples"),
        (ROWS[0], r"has shape \(3,\): give a matrix"),
        (np.ones((5, 3), np.int64), "is int64: give float16, float32 or float64"),
        (np.array([["a"]] * 5, dtype=object), "cannot be read .*Python objects"),
    ],
)
def test_own_embeddings_that_cannot_be_used(array: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=message) as caught:
        read_embeddings(tmp_path / "a.npy", rows=5, name="embed.pool")
    assert "embed.pool" in str(caught.value)
    assert "a.npy" in str(caught.value)


def test_own_embeddings_in_broken_or_foreign_files(tmp_path: Path) -> None:
    np.save(tmp_path / "cut.npy", ROWS)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-8])
    np.savez(tmp_path / "two.npz", a=ROWS, b=ROWS)
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "a.pt").write_bytes(b"x")
    for file, message in (
        ("cut.npy", "cannot be read"),
        ("two.npz", "holds 2 arrays: keep one"),
        ("text.npz", "cannot be read"),
        ("a.pt", r"neither \.npy nor \.npz"),
        ("none.npy", "is missing"),
    ):
        with pytest.raises(ValueError, match=message):
            read_embeddings(tmp_path / file, rows=5)
