"""A matrix in a file of somebody's: .npy, .npz, a column of lists in .parquet, or a raw memory-map."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Literal, cast

import numpy as np

from deft_tsds.arrays import check_count
from deft_tsds.cost import available_memory

Raw = tuple[Literal["float16", "float32", "float64"], int]
"""Dtype and number of columns of a raw memory-map, little-endian, row after row."""


def open_matrix(path: Path, *, name: str, column: str | None = None, raw: Raw | None = None) -> np.ndarray:
    """Open the array of a file, unchecked but for what the file itself says.

    Args:
        path: where it lies.
        name: what it is called in errors.
        column: of a .parquet file.
        raw: what a raw memory-map does not say of itself.

    Returns:
        The array: a memory-map for .npy and raw files, else in memory.

    Raises:
        ValueError: a missing or broken file, another kind of file, several arrays or columns.
    """
    if raw is None and path.suffix not in (".npy", ".npz", ".parquet"):
        raise ValueError(
            f"{name}: {path} is neither .npy nor .npz nor .parquet: save the array with numpy.save, or give `raw` "
            "(dtype and dimension) for a raw memory-map."
        )
    if column is not None and path.suffix != ".parquet":
        raise ValueError(f"{name}: {path} has no columns: leave out column ({column!r}), which is for .parquet.")
    if path.is_dir():
        raise ValueError(f"{name}: {path} is a folder: give the file with the array.")
    if not path.is_file():
        raise ValueError(f"{name}: {path} is missing: check the path.")
    if raw is not None:
        return _raw(path, raw, name)
    if path.suffix == ".parquet":
        return _parquet(path, column, name)
    try:
        return open_npy(path) if path.suffix == ".npy" else _only_array(path)
    except ValueError as error:
        raise ValueError(
            f"{name}: {path} cannot be read ({error}). Save one array of floats with numpy.save."
        ) from error


def open_npy(path: Path) -> np.ndarray:
    """The array of a .npy file as a read-only memory-map: no pickle, and no memory for what the file only promises.

    Raises:
        ValueError: whatever is wrong with the file, without its name.
    """
    try:
        with path.open("rb") as file:
            if file.read(6) != np.lib.format.MAGIC_PREFIX:
                raise ValueError("it does not begin as a .npy file does")
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # the header is parsed as Python is: a spoiled one raises whatever a parser raises
        raise ValueError(_said(error)) from error


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name, in memory; never a pickle, nor more than the machine has memory for.

    Raises:
        ValueError: whatever is wrong with the file, without its name.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        limit = available_memory()
        if limit is not None and size > limit:
            raise ValueError(
                f"unpacked it takes {size / 1e9:.3g} GB and {limit / 1e9:.3g} GB are available; a .npy file need not "
                "be unpacked"
            )
        with np.load(path, allow_pickle=False) as saved:
            return {name: _member(saved, name) for name in saved.files}
    except Exception as error:  # a spoiled archive raises whatever zipfile, zlib and the parser of headers raise
        raise ValueError(_said(error)) from error


def _member(saved: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    """One array of an archive, whose header must promise no more than the archive holds."""
    archive = cast(zipfile.ZipFile, saved.zip)
    file = f"{name}.npy" if f"{name}.npy" in archive.namelist() else name
    with archive.open(file) as member:
        version = np.lib.format.read_magic(member)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read:
            raise ValueError(f"{name!r} is of version {version} of the .npy format, which is not read here")
        shape, _, dtype = read[version](member)
        promised, held = math.prod(shape) * dtype.itemsize, archive.getinfo(file).file_size
    if promised > held:
        raise ValueError(f"{name!r} says that it has {promised} bytes, and there are {held}")
    return saved[name]


def _only_array(path: Path) -> np.ndarray:
    arrays = read_npz(path)
    if len(arrays) != 1:
        raise ValueError(f"it holds {len(arrays)} arrays: keep one")
    return next(iter(arrays.values()))


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def _raw(path: Path, raw: Raw, name: str) -> np.ndarray:
    kind, dimension = raw
    if kind not in ("float16", "float32", "float64"):
        raise ValueError(f"{name}: raw says {kind!r}: give float16, float32 or float64.")
    check_count(dimension, f"{name}: the dimension in raw", 1)
    dtype = np.dtype(kind).newbyteorder("<")
    size, row = path.stat().st_size, dimension * dtype.itemsize
    if size == 0 or size % row:
        raise ValueError(
            f"{name}: {path} has {size} bytes, which is no whole number of {kind} rows of {dimension} ({row} bytes "
            "each): give the dtype and dimension that it was written with."
        )
    return np.memmap(path, dtype, mode="r", shape=(size // row, dimension))


def _parquet(path: Path, column: str | None, name: str) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        lists = [field.name for field in file.schema_arrow if _is_matrix(field.type)]
        if column is None and len(lists) != 1:
            raise ValueError(f"it has {len(lists)} columns of lists of floats ({', '.join(lists)}): name one as column")
        if column is not None and column not in lists:
            raise ValueError(f"{column!r} is no column of lists of floats; there are {', '.join(lists) or 'none'}")
        chunks = file.read(columns=[column or lists[0]]).column(0).combine_chunks()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"{name}: {path} cannot be read ({error}). Check that it is a whole parquet file.") from error
    lengths = pc.call_function("list_value_length", [chunks]).fill_null(-1).to_numpy(zero_copy_only=False)
    if not len(lengths):
        raise ValueError(f"{name}: {path} has no rows.")
    other = np.flatnonzero(lengths != lengths[0])
    row = 0 if lengths[0] < 1 else int(other[0]) if len(other) else None
    if row is not None:
        said = "nothing" if lengths[row] < 1 else f"{lengths[row]} numbers where row 0 has {lengths[0]}"
        raise ValueError(f"{name}: {path}, row {row}, has {said}: give each row a list of one length.")
    numbers = chunks.flatten()
    # A missing number is NaN, which the caller's check of the rows names with its row.
    return numbers.to_numpy(zero_copy_only=False).reshape(len(lengths), int(lengths[0]))


def _is_matrix(kind) -> bool:
    import pyarrow as pa

    is_list = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return is_list and pa.types.is_floating(kind.value_type)
