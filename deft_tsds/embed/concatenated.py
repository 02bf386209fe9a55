"""Several encoders as one: their vectors side by side, weighted so that squared distances and cosines add."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deft_tsds.arrays import check_real, normalize_rows
from deft_tsds.embed import Encoder


@dataclass(frozen=True)
class Concatenated:
    """Unit vectors x_1 ... x_P with weights that sum to one, as one vector (sqrt(w_1) x_1, ..., sqrt(w_P) x_P).

    By the square roots, what adds up with the weights is the squared distance of two texts, and their cosine:

        |x - y|^2 = sum_p w_p |x_p - y_p|^2,    <x, y> = sum_p w_p <x_p, y_p>.

    Each part is scaled to unit length here, whatever the encoder gives, so that a weight means the same for each; so
    the whole has unit length too. Where a part is zero (a text with no known n-gram), the whole is that much shorter.

    Args:
        parts: encoders, at least one.
        weights: one a part, above 0; only their ratios matter. None gives each the same.

    Raises:
        ValueError: no part, another number of weights, or a weight that is not above 0.
    """

    parts: Sequence[Encoder]
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("parts is empty: give at least one encoder.")
        if self.weights is not None:
            if len(self.weights) != len(self.parts):
                raise ValueError(f"weights has {len(self.weights)} entries for {len(self.parts)} parts: give one each.")
            for place, weight in enumerate(self.weights):
                check_real(weight, f"weights[{place}]", above=0)

    @property
    def name(self) -> str:
        return " + ".join(part.name for part in self.parts)

    @property
    def shares(self) -> list[float]:
        """The weights, scaled to sum to one."""
        weights = [1.0] * len(self.parts) if self.weights is None else self.weights
        return [weight / math.fsum(weights) for weight in weights]

    def settings(self) -> dict[str, Any]:
        """The parts in order, each with its share, name and settings."""
        return {
            "parts": [
                {"share": share, "encoder": part.name, "settings": part.settings()}
                for part, share in zip(self.parts, self.shares, strict=True)
            ]
        }

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts by each part: float32 [n, D_1 + D_2 + ...]."""
        return np.concatenate(
            [
                np.float32(math.sqrt(share)) * normalize_rows(part.encode(texts))
                for part, share in zip(self.parts, self.shares, strict=True)
            ],
            axis=1,
        )
