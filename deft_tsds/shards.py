"""Embeddings in many files, on a disk or in an object store, read in blocks: a pool larger than memory.

    pool = dt.open_shards("gs://bucket/pool")
    selection = dt.select(pool, queries, selector=dt.selectors.TSDS(), budget=1000, key=key)

Files are .npy, float16, float32 or float64, and stay as they are: what is read becomes float32 block by block. What
lies on a disk is read through memory-maps, whose pages the system takes back when it needs them; what lies elsewhere,
through fsspec ("gs://" needs gcsfs, "s3://" s3fs), several ranges at once.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import re
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deft_tsds.arrays import Rows, bad_row, row_blocks

_DTYPES = ("<f2", "<f4", "<f8")
# Enough for any header that numpy.save writes of a matrix; a longer one is refused.
_HEADER_BYTES = 4096
# A store far away answers late and then fast: rows closer together than this are read with what lies between them.
_GAP_BYTES = 2**20
_RANGE_BYTES = 2**24
_REQUEST_BYTES = 2**27

# Rows of one step of a conversion, which then stays in the cache.
_CONVERTED = 2**17


@dataclass(frozen=True)
class ShardFile:
    """One file of a pool: where it lies, what it holds, and by what it would be seen to have changed."""

    path: str
    rows: int
    dimension: int
    dtype: str
    offset: int
    """Bytes before the first row."""
    stamp: str
    """Its hash where one is at hand (a store's, an object store's), else size and time of change."""

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def row_bytes(self) -> int:
        return self.dimension * np.dtype(self.dtype).itemsize


class Shards(Rows):
    """A float32 matrix [N, D] in files, row after row in their order. Made by `open_shards`.

    Indexing reads: a slice, or row numbers >= 0 in any order. A row that is NaN, infinite or too long is an error that
    names its file. In memory is only what was asked for.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/part-0.npy", np.eye(3, 4, dtype=np.float16))
        ...     [file.name for file in dt.open_shards(folder).files]
        ['part-0.npy']
    """

    checked = True

    def __init__(self, files: Sequence[ShardFile], filesystem: Any = None):
        """`filesystem` is fsspec's; None for files on this machine."""
        self.files = tuple(files)
        self._filesystem = filesystem
        self._ends = np.cumsum([file.rows for file in self.files])

    @property
    def shape(self) -> tuple[int, int]:
        return int(self._ends[-1]), self.files[0].dimension

    @property
    def row_bytes(self) -> int:
        """What a row takes where it is kept."""
        return max(file.row_bytes for file in self.files)

    def fingerprints(self) -> list[str]:
        """What each file is told by: its name, its rows and its `stamp`. No row is read for them."""
        return [json.dumps([file.name, file.rows, file.dimension, file.dtype, file.stamp]) for file in self.files]

    def since(self, file: int) -> Shards:
        """The rows from a file on, by its number: those that are new where the first files are known."""
        return Shards(self.files[file:], self._filesystem)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        if not isinstance(rows, slice):
            return self._gathered(np.asarray(rows), np.dtype(np.float32))
        start, stop, step = rows.indices(len(self))
        if step != 1:
            return self._gathered(np.arange(start, stop, step), np.dtype(np.float32))
        pieces = list(self._pieces(start, stop)) if start < stop else []
        if len(pieces) == 1:
            number, part = pieces[0]
            stored = self._read(number, part)
            if stored.dtype == np.float32:
                self._check(stored, number, part.start)
                return stored
        out_RxD = np.empty((max(0, stop - start), self.shape[1]), np.float32)
        done = 0
        for number, part in pieces:
            size = part.stop - part.start
            self._convert(self._read(number, part), out_RxD[done : done + size], number, part.start)
            done += size
        return out_RxD

    def held(self, rows: slice | np.ndarray) -> np.ndarray | Rows:
        """Some rows in memory, float16 where all files are that: half of what indexing would give."""
        if any(file.dtype != "<f2" for file in self.files):
            return self[rows]
        numbers = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else np.asarray(rows)
        return _Half(self._gathered(numbers, np.dtype(np.float16)))

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield each file in order, float32 [rows, D]: as a memory-map where it is one."""
        for end, file in zip(self._ends, self.files, strict=True):
            yield self[int(end) - file.rows : int(end)]

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, slice]]:
        """The files that hold a range of rows, and which of their own rows."""
        first = int(np.searchsorted(self._ends, start, side="right"))
        for number in range(first, len(self.files)):
            before = int(self._ends[number]) - self.files[number].rows
            if before >= stop:
                return
            yield number, slice(max(start - before, 0), min(stop - before, self.files[number].rows))

    def _gathered(self, rows: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Rows by their numbers, converted; files are read in their order, whatever the order of the numbers."""
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            where = os.path.dirname(self.files[0].path)
            raise IndexError(f"{where} has rows 0 to {len(self) - 1}, not {rows.min()} to {rows.max()}.")
        gathered = np.empty((len(rows), self.shape[1]), dtype)
        ascending = bool(np.all(rows[:-1] <= rows[1:]))
        order = np.arange(len(rows)) if ascending else np.argsort(rows, kind="stable")
        bounds = np.searchsorted(rows if ascending else rows[order], np.concatenate([[0], self._ends]))
        for number, (low, high) in enumerate(itertools.pairwise(bounds)):
            before = int(self._ends[number]) - self.files[number].rows
            # By steps: what is read of a file far away, and what is converted, stays small.
            for part in row_blocks(int(high - low), row_bytes=self.files[number].row_bytes):
                places = order[low + part.start : low + part.stop]
                wanted = rows[places] - before
                stored = self._take(number, wanted)
                if dtype == np.float16:
                    self._check(stored, number, wanted)
                    gathered[places] = stored
                elif ascending:
                    first = int(low) + part.start
                    self._convert(stored, gathered[first : first + len(stored)], number, wanted)
                else:
                    converted = np.empty(stored.shape, dtype)
                    self._convert(stored, converted, number, wanted)
                    gathered[places] = converted
        return gathered

    def _convert(self, stored: np.ndarray, out_RxD: np.ndarray, number: int, where: int | np.ndarray) -> None:
        """Write checked float32 rows of one file, which begin at a row of it or are its rows of these numbers."""
        if stored.dtype == np.float16:
            self._check(stored, number, where)
            float16_to_float32(stored, out_RxD)
            return
        with np.errstate(over="ignore"):  # a float64 too large for float32 becomes infinite and is reported below
            out_RxD[:] = stored
        self._check(out_RxD, number, where)

    def _check(self, rows_RxD: np.ndarray, number: int, where: int | np.ndarray) -> None:
        if rows_RxD.dtype == np.float16:
            if finite(rows_RxD):
                return
            rows_RxD = np.asarray(rows_RxD, np.float32)
        found = bad_row(rows_RxD)
        if found is not None:
            row, problem = found
            inside = int(where + row if isinstance(where, int) else where[row])
            before = int(self._ends[number]) - self.files[number].rows
            raise ValueError(f"{self.files[number].path}, row {inside} ({before + inside} of the pool), {problem}")

    def _read(self, number: int, part: slice) -> np.ndarray:
        """Consecutive rows of one file, as they are kept."""
        file = self.files[number]
        if self._filesystem is None:
            return self._map(file)[part]
        start, stop = (file.offset + row * file.row_bytes for row in (part.start, part.stop))
        ends = [*range(start, stop, _RANGE_BYTES), stop]
        data = b"".join(self._ranges(file, list(itertools.pairwise(ends))))
        return np.frombuffer(data, file.dtype).reshape(-1, file.dimension)

    def _take(self, number: int, wanted: np.ndarray) -> np.ndarray:
        """Some rows of one file, ascending, as they are kept."""
        file = self.files[number]
        if self._filesystem is None:
            return self._map(file)[wanted]
        taken = np.empty((len(wanted), file.dimension), file.dtype)
        # Runs of rows with small gaps, cut where they grow long, and as many at once as memory may hold.
        far = np.diff(wanted) * file.row_bytes > _GAP_BYTES
        windows = wanted * file.row_bytes // _RANGE_BYTES
        starts = [0, *(np.flatnonzero(far | (np.diff(windows) > 0)) + 1).tolist(), len(wanted)]
        runs = list(itertools.pairwise(starts))
        for few in row_blocks(len(runs), row_bytes=_RANGE_BYTES + _GAP_BYTES, budget_bytes=_REQUEST_BYTES):
            spans = [(int(wanted[low]), int(wanted[high - 1]) + 1) for low, high in runs[few]]
            ranges = [(file.offset + low * file.row_bytes, file.offset + high * file.row_bytes) for low, high in spans]
            for (low, high), data in zip(runs[few], self._ranges(file, ranges), strict=True):
                rows = np.frombuffer(data, file.dtype).reshape(-1, file.dimension)
                taken[low:high] = rows[wanted[low:high] - wanted[low]]
        return taken

    def _ranges(self, file: ShardFile, ranges: list[tuple[int, int]]) -> list[bytes]:
        starts, ends = [start for start, _ in ranges], [end for _, end in ranges]
        found = self._filesystem.cat_ranges([file.path] * len(ranges), starts, ends, on_error="return")
        for (start, end), data in zip(ranges, found, strict=True):
            if isinstance(data, Exception):
                raise ValueError(f"{file.path} cannot be read ({data}).") from data
            if len(data) != end - start:
                raise ValueError(f"{file.path} ends before byte {end}: it has changed since it was opened.")
        return found

    def _map(self, file: ShardFile) -> np.ndarray:
        try:
            return np.memmap(file.path, file.dtype, mode="r", offset=file.offset, shape=(file.rows, file.dimension))
        except (OSError, ValueError) as error:
            raise ValueError(f"{file.path} cannot be read ({error}): it has changed since it was opened.") from error


class _Half(Rows):
    """A float16 matrix in memory that reads as float32."""

    checked = True

    def __init__(self, matrix_NxD: np.ndarray):
        self._matrix_NxD = matrix_NxD

    @property
    def shape(self) -> tuple[int, int]:
        return self._matrix_NxD.shape[0], self._matrix_NxD.shape[1]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        chosen = self._matrix_NxD[rows]
        out = np.empty(chosen.shape, np.float32)
        float16_to_float32(chosen, out)
        return out


def open_shards(path: str | os.PathLike[str], **options: Any) -> Shards:
    """Open a pool that is one .npy file, a folder of them, or an embedding store (`write_store`), without reading it.

    The files of a folder come in the order of their names, numbers in them by value ("part-2.npy" before
    "part-10.npy"): row 0 is the first row of the first file. Those of a store come as `store.json` lists them.

    Args:
        path: a path on this machine, or a URL of fsspec, say "gs://bucket/pool" or "s3://bucket/pool".
        options: for the file system of a URL (say, `token=...`).

    Returns:
        `Shards` [N, D], float32 as they are read, which stand wherever candidates or points are asked for.

    Raises:
        ValueError: nothing there; a file that is no .npy of a float matrix in C order, is cut off, or has no rows or
            another width than the first; no package for the kind of URL.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/part-0.npy", np.eye(3, 4, dtype=np.float16))
        ...     np.save(f"{folder}/part-1.npy", np.eye(2, 4, dtype=np.float16))
        ...     pool = dt.open_shards(folder)
        ...     pool.shape, pool[np.array([3])]
        ((5, 4), array([[1., 0., 0., 0.]], dtype=float32))
    """
    path, filesystem = os.fspath(path), None
    if "://" in path:
        filesystem, path = _filesystem(path, options)
    elif options:
        raise ValueError(f"{path} is a path on this machine: leave out {', '.join(options)}.")
    return shards_of(_list_files(path, filesystem), filesystem)


def shards_of(listed: Sequence[tuple[str, dict[str, Any]]], filesystem: Any = None) -> Shards:
    """`Shards` of listed files, each with its "size" and its "stamp"; errors as `open_shards`."""
    heads = _heads([name for name, _ in listed], filesystem)
    files = [_shard_file(name, info, head) for (name, info), head in zip(listed, heads, strict=True)]
    for file in files:
        if file.dimension != files[0].dimension:
            raise ValueError(
                f"{file.path} has {file.dimension} dimensions and {files[0].path} {files[0].dimension}: embed all with "
                "the same encoder."
            )
    return Shards(files, filesystem)


def _filesystem(url: str, options: dict[str, Any]) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it."""
    try:
        import fsspec  # only those who name a URL need it
    except ImportError as error:
        raise ValueError(f"{url} needs fsspec: pip install fsspec.") from error
    try:
        filesystem, path = fsspec.url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{url} cannot be opened ({error}).") from error
    return filesystem, path.rstrip("/")


def _list_files(path: str, filesystem: Any) -> list[tuple[str, dict[str, Any]]]:
    """The .npy files in order, each with its size and its stamp."""
    if filesystem is None:
        if os.path.isdir(path):
            found = {entry.path: entry.stat() for entry in os.scandir(path) if entry.is_file()}
        else:
            found = {path: os.stat(path)} if os.path.isfile(path) else {}
        infos = {name: {"size": at.st_size, "stamp": f"{at.st_size}-{at.st_mtime_ns}"} for name, at in found.items()}
    else:
        try:
            details = filesystem.ls(path, detail=True)
        except FileNotFoundError:
            details = []
        # Whatever the store says of an object (its hash, its time): another object says something else.
        infos = {
            detail["name"]: {
                "size": detail["size"],
                "stamp": hashlib.sha256(str(sorted(detail.items(), key=str)).encode()).hexdigest(),
            }
            for detail in details
            if detail["type"] == "file"
        }
    header = f"{path.rstrip('/')}/store.json"
    if header in infos:
        return _listed_in_store(header, infos, filesystem)
    files = sorted((name for name in infos if name.endswith(".npy")), key=_by_number)
    if not files:
        raise ValueError(f"{path} has no .npy files: give a folder of shards, a store, or one such file.")
    return [(name, infos[name]) for name in files]


def _listed_in_store(
    header: str, infos: dict[str, dict[str, Any]], filesystem: Any
) -> list[tuple[str, dict[str, Any]]]:
    text = Path(header).read_bytes() if filesystem is None else filesystem.cat_file(header)
    try:
        content = json.loads(text)
        shards, wanted = content["shards"], content["request"]["rows"]
        names = [(f"{header.rpartition('/')[0]}/{os.path.basename(shard['file'])}", shard) for shard in shards]
        done = sum(shard["rows"] for shard in shards)
        listed = [(name, shard["bytes"], shard["sha256"]) for name, shard in names]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{header} is no header of an embedding store ({error!r}).") from error
    if done != wanted or not listed:
        raise ValueError(f"{header}: the store is unfinished, {done} of {wanted} rows. Run write_store again to go on.")
    for name, size, _ in listed:
        if name not in infos:
            raise ValueError(f"{name} is missing, but {header} lists it. Run write_store again: it makes it anew.")
        if infos[name]["size"] != size:
            raise ValueError(f"{name} has {infos[name]['size']} bytes instead of {size}: copy or make it anew.")
    return [(name, {"size": size, "stamp": sha256}) for name, size, sha256 in listed]


def _by_number(path: str) -> tuple[list[tuple[int, str]], str]:
    """ "part-2" before "part-10"; what is equal but for zeros in front, by name."""
    parts = re.split(r"(\d+)", path)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], path


def _heads(paths: list[str], filesystem: Any) -> list[bytes]:
    """The first bytes of each file."""
    if filesystem is not None:
        found = filesystem.cat_ranges(paths, [0] * len(paths), [_HEADER_BYTES] * len(paths), on_error="return")
        for path, data in zip(paths, found, strict=True):
            if isinstance(data, Exception):
                raise ValueError(f"{path} cannot be read ({data}).") from data
        return found
    heads = []
    for path in paths:
        try:
            with open(path, "rb") as file:
                heads.append(file.read(_HEADER_BYTES))
        except OSError as error:
            raise ValueError(f"{path} cannot be read ({error}).") from error
    return heads


def _shard_file(path: str, info: dict[str, Any], head: bytes) -> ShardFile:
    """What the header of a .npy file says, held to its size."""
    stream = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, by_columns, dtype = read(stream, max_header_size=_HEADER_BYTES)
    except (ValueError, TypeError, SyntaxError, RecursionError, tokenize.TokenError) as error:
        raise ValueError(f"{path} is no .npy file ({error}): save the shard with numpy.save.") from error
    if dtype.str not in _DTYPES:
        raise ValueError(f"{path} has dtype {dtype}: give float16, float32 or float64, little-endian.")
    if len(shape) != 2 or shape[0] < 1 or shape[1] < 1:
        raise ValueError(f"{path} has shape {shape}: give a matrix [rows, dimensions] with rows, or delete the file.")
    if by_columns and min(shape) > 1:
        raise ValueError(f"{path} is saved column by column: save numpy.ascontiguousarray(...) of it.")
    offset = stream.tell()
    wanted = offset + shape[0] * shape[1] * dtype.itemsize
    if info["size"] != wanted:
        raise ValueError(
            f"{path} has {info['size']} bytes where its header ({shape[0]} rows of {shape[1]}, {dtype}) makes "
            f"{wanted}: it is cut off or damaged; copy or make it anew."
        )
    return ShardFile(path, shape[0], shape[1], dtype.str, offset, info["stamp"])


def finite(half: np.ndarray) -> bool:
    """Whether a float16 array holds no NaN and no infinity: the largest bit patterns of either sign."""
    if half.size == 0:
        return True
    return bool(half.view(np.int16).max() < 0x7C00 and half.view(np.uint16).max() < 0xFC00)


def float16_to_float32(half_RxD: np.ndarray, out_RxD: np.ndarray) -> None:
    """Convert finite float16 numbers exactly, six times as fast as NumPy does.

    Exponent and mantissa move to their places in a float32 by a shift; what is left is a factor of 2^(127 - 15), which
    also makes the subnormal numbers right. (NaN and infinity, which have an exponent of their own, would become large.)
    """
    for rows in row_blocks(len(half_RxD), row_bytes=half_RxD.shape[1], budget_bytes=_CONVERTED):
        bits = out_RxD[rows].view(np.int32)
        np.copyto(bits, half_RxD[rows].view(np.int16))  # the sign fills the upper half
        np.left_shift(bits, 13, out=bits)
        np.bitwise_and(bits, np.int32(-0x70002000), out=bits)  # 0x8FFFE000: the sign once, and the other 15
        np.multiply(out_RxD[rows], np.float32(2.0**112), out=out_RxD[rows])
