"""Texts to vectors: the contract that every encoder keeps, one file an encoder, and the store that they write to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np


@runtime_checkable
class Encoder(Protocol):
    """What turns texts into vectors. Equal settings mean equal vectors: they go into the fingerprint of a store."""

    @property
    def name(self) -> str:
        """What kind of encoder it is, for people."""
        ...

    def settings(self) -> dict[str, Any]:
        """Everything that decides its vectors, as JSON, with a hash of whatever it has learned."""
        ...

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 [n, D], row i for texts[i]; the same texts in the same call give the same bits."""
        ...


@runtime_checkable
class Fittable(Protocol):
    """The recipe of an encoder that learns from the pool. Save what `fit` returns: the queries need the same one."""

    def fit(self, texts: Sequence[str], *, key: jax.Array) -> Encoder:
        """Learn from the texts of the pool and return the encoder, which changes no more."""
        ...
