"""Embeddings that the user has made, brought into a store like any others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from deft_tsds.arrays import as_matrix
from deft_tsds.embed.files import Raw, open_matrix


class Given:
    """An encoder that looks rows up. Its texts are row numbers: "0", "1", ...

    Args:
      path: a file that `read_embeddings` knows, [N, D].
      rows: N, the number of examples.
      name: what the embeddings are called in errors.
      column, raw: as `read_embeddings`.

    Raises:
      ValueError: as `read_embeddings`.
    """

    name = "given"

    def __init__(self, path: str | Path, *, rows: int, name: str, column: str | None = None, raw: Raw | None = None):
        self._array_NxD = read_embeddings(path, rows=rows, name=name, column=column, raw=raw)

    @property
    def texts(self) -> list[str]:
        """What to embed: all the rows, in order."""
        return [str(row) for row in range(len(self._array_NxD))]

    def settings(self) -> dict[str, Any]:
        return {"sha256": self._hash}

    @cached_property
    def _hash(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self._array_NxD).data).hexdigest()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 [n, D], the rows of these numbers."""
        return np.asarray(self._array_NxD[[int(text) for text in texts]], np.float32)


def read_embeddings(
    path: str | Path, *, rows: int, name: str = "embeddings", column: str | None = None, raw: Raw | None = None
) -> np.ndarray:
    """Read the user's own embeddings, one row an example, in the order of the examples.

    Args:
        path: a .npy file, a .npz file with one array, a .parquet file with a column of lists, or a raw memory-map.
            Floats of 16, 32 or 64 bits, [N, D].
        rows: N, the number of examples.
        name: what the embeddings are called in errors.
        column: of a .parquet file; not needed where it has one column of lists of floats.
        raw: dtype and D of a raw memory-map, which is numbers row after row and says neither.

    Returns:
        float32 [N, D]: the memory-map itself for float32 in a .npy file or a raw one, else a copy in memory.

    Raises:
        ValueError: a missing or broken file, another kind of file, several arrays or columns, a wrong dtype, rank,
            size or number of rows, or a row with a NaN or infinite value.
    """
    path = Path(path)
    array = open_matrix(path, name=name, column=column, raw=raw)
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise ValueError(f"{name}: {path} is {array.dtype}: give float16, float32 or float64.")
    if array.ndim != 2:
        raise ValueError(f"{name}: {path} has shape {array.shape}: give a matrix [rows, dimensions].")
    if len(array) != rows:
        raise ValueError(
            f"{name}: {path} has {len(array)} rows for {rows} examples: give one row an example, in order."
        )
    return as_matrix(array, f"{name} ({path})")
