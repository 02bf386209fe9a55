"""Memory that the threads of one computation use again and again."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np


class Buffers(threading.local):
    """Memory of each thread: fresh pages from the system can cost more than the work that fills them."""

    def __init__(self):
        self._flat: dict[tuple[str, Any], np.ndarray] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array of this shape with old contents, the same memory at every call of one thread."""
        key, size = (name, np.dtype(dtype)), math.prod(shape)
        if key not in self._flat or self._flat[key].size < size:
            self._flat[key] = np.empty(size, dtype)
        return self._flat[key][:size].reshape(shape)

    def take(self, matrix: np.ndarray, rows: np.ndarray, name: str) -> np.ndarray:
        """Some rows of a matrix in a buffer."""
        out = self.get(name, (len(rows), matrix.shape[1]), matrix.dtype)
        return np.take(matrix, rows, axis=0, out=out, mode="clip")  # the mode that writes to `out` directly
