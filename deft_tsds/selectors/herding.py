"""Kernel herding: rows whose mean in the space of a kernel follows the mean of the pool, or of the queries.

References:
    Chen, Welling and Smola, "Super-samples from kernel herding", arXiv 1203.3472, equation 8.
    Gretton et al., "A kernel two-sample test", 2012 (the MMD).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from deft_tsds.arrays import check_count, check_real
from deft_tsds.cost import PlanCost
from deft_tsds.selection import Pool, Selection
from deft_tsds.selectors.greedy import choose_greedily, greedy_cost, unit_rows
from deft_tsds.selectors.nearest import queries_of
from deft_tsds.selectors.pairs import pair_cost, pair_means, stand_ins, unit_float64
from deft_tsds.selectors.spread import in_order

Toward = Literal["pool", "queries"]


@dataclass(frozen=True)
class Herding:
    """With t rows chosen, the next is the one of the highest E_y k(x, y) - (1 / (t + 1)) sum_{s <= t} k(x, x_s).

    y is a row of what is followed and k(x, y) = exp(-|x - y|^2 / 2 h^2) on rows of unit length; each step lowers the
    maximum mean discrepancy (MMD) between the chosen rows and what they follow as far as one row can, up to terms that
    no row changes. No row is taken twice; ties go to the lower row. info has the square of the MMD at the end.
    """

    toward: Toward = "pool"
    """What the chosen rows follow: the "pool", or the "queries" (the examples of the target task)."""

    bandwidth: float = 0.5
    """h of the kernel."""

    sample: int = 16_384
    """A larger pool is stood for by a uniform sample of so many rows; info has Hoeffding's bound on what that does to
    an expectation."""

    def __post_init__(self) -> None:
        if self.toward not in get_args(Toward):
            raise ValueError(f"toward is {self.toward!r}: choose one of {', '.join(get_args(Toward))}.")
        check_real(self.bandwidth, "bandwidth", above=0)
        check_count(self.sample, "sample", 1)

    @property
    def needs_queries(self) -> bool:
        return self.toward == "queries"

    def cost(self, pool: Pool, budget: int) -> PlanCost:
        """The expectations (see `pairs`), and one pass over the pool a row (see `greedy`)."""
        n, d = pool.embeddings_NxD.shape
        followed = len(queries_of(pool)) if self.needs_queries else self.sample
        return pair_cost(n, d, followed) + greedy_cost(n, d, budget)

    def __call__(self, pool: Pool, *, budget: int, key: jax.Array) -> Selection:
        if self.toward == "queries":
            followed_PxD, compared = unit_float64(queries_of(pool)[:]), {}
        else:
            followed_PxD, compared = stand_ins(pool.embeddings_NxD, self.sample, key)

        def kernel(cosines: np.ndarray, _: slice) -> np.ndarray:
            return np.exp((cosines - 1) / self.bandwidth**2)

        expected_N = pair_means(pool.embeddings_NxD, followed_PxD, kernel, what="expectations of the kernel")
        found = choose_greedily(
            unit_rows(pool.embeddings_NxD),
            budget,
            start_N=np.zeros(len(pool), np.float32),
            fold=_fold_kernel,
            value=_herded,
            parameters=(jnp.asarray(expected_N), jnp.float32(self.bandwidth)),
            what="herding",
        )
        name = "pool" if self.toward == "pool" else "queries"
        reasons = []
        for step, (row, value) in enumerate(zip(found.rows_B.tolist(), found.values_B.tolist(), strict=True), 1):
            expected = float(expected_N[row])
            numbers: dict[str, Any] = {"step": step, "expected": expected, "shown_already": expected - value}
            why = (
                f"Number {step}: mean kernel {expected:.4f} with the {name}, less {expected - value:.4f} for what the "
                "rows chosen before it show already."
            )
            reasons.append({"why": why, **numbers})
        rows = found.rows_B
        within = float(found.statistic_N[rows].mean(dtype=np.float64)) / budget
        between = float(expected_N[rows].mean(dtype=np.float64))
        among = float(pair_means(followed_PxD, followed_PxD, kernel).mean(dtype=np.float64))
        info = {"mmd_squared": max(within - 2 * between + among, 0.0), **compared}
        return in_order(found, found.values_B, reasons, info)


def _fold_kernel(sum_N, squared_N, step, parameters):
    _, bandwidth = parameters
    return sum_N + jnp.exp(-squared_N / (2 * jnp.square(bandwidth)))


def _herded(sum_N, step, parameters):
    expected_N, _ = parameters
    return expected_N - sum_N / (step + 1)
