"""What a selector has to beat: a random choice, and everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import numpy as np

from deft_tsds.sampling import inclusion_probabilities, sample, sample_stratified
from deft_tsds.selection import Pool, Selection


@dataclass(frozen=True)
class Random:
    """Rows drawn uniformly, without replacement."""

    stratified: bool = False
    """Draw from each group (task) its share of the budget, in whole numbers by largest remainder. Needs groups."""

    takes_cost_budget: ClassVar[bool] = True

    def __call__(self, pool: Pool, *, budget: int, key: jax.Array) -> Selection:
        n = len(pool)
        if self.stratified and pool.groups_N is None:
            raise ValueError("Random(stratified=True) needs groups: give one label a candidate, or use Random().")
        groups_N = np.zeros(n, np.int8) if pool.groups_N is None or not self.stratified else pool.groups_N
        if pool.cost_budget is None:
            rows, probability_N = sample_stratified(groups_N, budget, key=key)
        else:
            uniform_N = np.full(n, 1 / n)
            rows = sample(uniform_N, **pool.draw_budget(budget), groups=groups_N, key=key)
            probability_N = inclusion_probabilities(uniform_N, **pool.draw_budget(budget), groups=groups_N)
        reasons = []
        for row in rows:
            probability = float(probability_N[row])
            if self.stratified:
                group = groups_N[row].item()
                why = f"Drawn at random: each candidate of group {group!r} had probability {probability:.4g}."
                reasons.append({"why": why, "probability": probability, "group": group})
            else:
                why = f"Drawn at random: {len(rows)} of {n} candidates, each with probability {probability:.4g}."
                reasons.append({"why": why, "probability": probability})
        return Selection.of(rows, reasons=reasons)


@dataclass(frozen=True)
class Full:
    """Every row of the pool."""

    def __call__(self, pool: Pool, *, budget: int, key: jax.Array) -> Selection:
        n = len(pool)
        if budget != n:
            raise ValueError(f"Full takes all {n} candidates, not {budget}: give budget={n}, or use Random().")
        return Selection.of(np.arange(n), reasons=[{"why": "Every candidate is used."}] * n)
