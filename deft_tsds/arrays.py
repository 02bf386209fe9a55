"""Input checks and iteration over arrays that may be larger than memory.

Every public function passes its arrays through `as_matrix` once, so that nothing below it needs to check again. A
float32 memory-map goes through unchanged: it is read block by block, here for the checks and later by its users.
"""

from __future__ import annotations

import abc
import math
import operator
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar, cast

import jax.numpy as jnp
import numpy as np

BLOCK_BYTES = 64 * 2**20
"""Default size of a temporary block: large enough for full BLAS speed, small enough for any laptop."""

Item = TypeVar("Item")
Made = TypeVar("Made")

# Squared distances between two rows stay below 4 * LARGEST_NORM**2, which float32 can still hold.
LARGEST_NORM = 1e18


class Rows(abc.ABC):
    """A float32 matrix that is read by rows and need not be in memory: what a memory-map is to one file."""

    checked = False
    """Whether reading a row that `as_matrix` would refuse raises its error, so that no pass is needed to look first."""

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, int]: ...

    def __len__(self) -> int:
        return self.shape[0]

    @abc.abstractmethod
    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Some rows, float32, by a slice or by row numbers in any order."""

    def held(self, rows: slice | np.ndarray) -> np.ndarray | Rows:
        """Some rows in memory, in no more bytes than they are kept in: to be read again and again."""
        return self[rows]

    def known_neighbors(self, queries_MxD: np.ndarray, k: int, metric: str) -> Any:
        """The k nearest of these rows to each query, where they are known without a search; else None."""
        del queries_MxD, k, metric
        return None


def as_matrix(x: Any, name: str) -> np.ndarray:
    """Check an [N, D] array of real numbers and return it as float32 on the host.

    Args:
        x: NumPy array, memory-map, JAX array or nested list, [N, D], real numbers; or `Rows`, such as a `Store`. A
            float32 memory-map and `Rows` are not copied; a float16 one is (`open_shards` reads it in blocks).
        name: the caller's name of the argument, for the error messages.

    Returns:
        float32 [N, D]; the very same memory when `x` is already float32 on the host. `Rows` come back as they
            are: what reads them by slices or row numbers, and asks for their shape, need not know.

    Raises:
        ValueError: wrong rank, no rows, no columns, not real numbers, or a row that is NaN, infinite, or longer than
            `LARGEST_NORM`.
    """
    if isinstance(x, Rows):
        if not x.checked:
            _check_rows(cast(np.ndarray, x), name)
        return cast(np.ndarray, x)
    try:
        array = x if isinstance(x, np.ndarray) else np.asarray(x)
    except ValueError as error:
        raise ValueError(f"{name} is not a rectangular array: give every row the same length.") from error
    if not (jnp.issubdtype(array.dtype, jnp.floating) or jnp.issubdtype(array.dtype, jnp.integer)):
        raise ValueError(f"{name} has dtype {array.dtype}: give an array of real numbers.")
    if array.ndim != 2:
        raise ValueError(f"{name} has shape {array.shape}: give a matrix [rows, dimensions].")
    if array.shape[0] == 0:
        raise ValueError(f"{name} is empty: give at least one row.")
    if array.shape[1] == 0:
        raise ValueError(f"{name} has no columns: give at least one dimension.")
    if array.dtype != np.float32:
        with np.errstate(over="ignore"):  # a float64 too large for float32 becomes infinite and is reported below
            array = np.asarray(array, dtype=np.float32)
    _check_rows(array, name)
    return array


def _check_rows(array: np.ndarray, name: str) -> None:
    for rows in row_blocks(len(array), row_bytes=4 * array.shape[1]):
        found = bad_row(np.asarray(array[rows]))
        if found is not None:
            row, problem = found
            raise ValueError(f"{name}, row {rows.start + row}, {problem}")


def bad_row(block: np.ndarray) -> tuple[int, str] | None:
    """The first row that no distance can be taken to, and what is wrong and to be done; None if all are good."""
    # A row's sum of squares is finite only if every entry is, so one pass finds both kinds of bad row.
    with np.errstate(over="ignore", invalid="ignore"):
        good = np.einsum("nd,nd->n", block, block) <= LARGEST_NORM**2
    if good.all():
        return None
    row = int(np.argmin(good))
    if not np.isfinite(block[row]).all():
        return row, "has a NaN or infinite value: repair or drop that row."
    return row, f"has a norm above {LARGEST_NORM:.0e}: scale the rows down."


def check_same_width(a: np.ndarray, b: np.ndarray, name_a: str, name_b: str) -> None:
    """Raise ValueError unless two checked matrices have the same number of columns."""
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"{name_a} has {a.shape[1]} dimensions but {name_b} has {b.shape[1]}: embed both with the same encoder."
        )


def check_count(value: Any, name: str, low: int, high: int | None = None) -> int:
    """Return `value` as int; ValueError unless it is an integer with low <= value <= high (bool is refused)."""
    try:
        count = operator.index(value)
    except TypeError as error:
        raise ValueError(f"{name} is {value!r}: give an integer.") from error
    if isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} is {value!r}: give an integer.")
    if count < low or (high is not None and count > high):
        span = f"at least {low}" if high is None else f"between {low} and {high}"
        raise ValueError(f"{name} is {count}: give an integer {span}.")
    return count


def check_real(
    value: Any, name: str, *, above: float = -math.inf, at_most: float = math.inf, at_least: float = -math.inf
) -> float:
    """Return `value` as float; ValueError unless it is finite, > above, >= at_least and <= at_most."""
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is {value!r}: give a number.") from error
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}: give a finite number.")
    if not (above < number <= at_most and number >= at_least):
        bounds = [
            text
            for text, limit in (
                (f"above {above:g}", above),
                (f"at least {at_least:g}", at_least),
                (f"at most {at_most:g}", at_most),
            )
            if math.isfinite(limit)
        ]
        raise ValueError(f"{name} is {number:g}: give a number {' and '.join(bounds)}.")
    return number


def normalize_rows(x: np.ndarray) -> np.ndarray:
    """Divide each row of a checked matrix by its L2 norm; zero rows stay zero.

    Norms are taken in float64, each row by itself, so that equal rows stay equal bit for bit.

    Args:
        x: float32 [N, D].

    Returns:
        float32 [N, D], a new array.
    """
    unit = np.empty(x.shape, dtype=np.float32)
    for rows in row_blocks(len(x), row_bytes=8 * x.shape[1]):
        block = np.asarray(x[rows], dtype=np.float64)
        norms = np.sqrt(np.sum(block * block, axis=1, keepdims=True))
        unit[rows] = block / np.where(norms > 0, norms, 1.0)
    return unit


def usable_cpus() -> int:
    """How many processors this process may run on: the threads worth starting for work on blocks."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def row_blocks(n_rows: int, row_bytes: int, budget_bytes: int = BLOCK_BYTES) -> Iterator[slice]:
    """Split range(n_rows) into consecutive slices of at most `budget_bytes`, one row at the least."""
    step = max(1, budget_bytes // max(1, row_bytes))
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """Yield make(item) of each item in order; while the caller works with one, the next is made in a thread.

    So a disk or a network is read while the processors compute, and two results are held at a time.
    """
    with ThreadPoolExecutor(1) as thread:
        coming: Future[Made] | None = None
        for item in items:
            following = thread.submit(make, item)
            if coming is not None:
                yield coming.result()
            coming = following
        if coming is not None:
            yield coming.result()
