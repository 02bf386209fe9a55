"""Embeddings that the user has made, brought into a store like any others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from deft_tsds.embed.files import Raw
from deft_tsds.embed.store import read_embeddings


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
