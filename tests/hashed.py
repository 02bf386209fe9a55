"""An encoder without a model, for tests of the store: vectors from hashes, and a death where a test wants one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

TEXTS = [f"text number {n}" for n in range(23)]


class Killed(Exception):
    """Stands for the end of the process in the middle of a batch."""


@dataclass
class Hashed:
    """A deterministic encoder: vectors from the hash of the text; it dies at call number `dies_at`."""

    seed: int = 0
    dimension: int = 6
    dies_at: int | None = None
    seen: list[str] = field(default_factory=list)
    calls: int = 0

    name = "hashed"

    def settings(self) -> dict[str, Any]:
        return {"seed": self.seed, "dimension": self.dimension, "range": (1, 2)}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        self.calls += 1
        if self.calls == self.dies_at:
            raise Killed
        self.seen.extend(texts)
        digests = [hashlib.sha256(f"{self.seed} {text}".encode()).digest()[: self.dimension] for text in texts]
        return np.array([list(digest) for digest in digests], dtype=np.float32)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
