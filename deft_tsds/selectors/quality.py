"""Quality: the rows of the highest score, each less what the rows chosen before it already show."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import rankdata

from deft_tsds.arrays import check_real
from deft_tsds.cost import PlanCost
from deft_tsds.selection import Pool, Selection
from deft_tsds.selectors.greedy import choose_greedily, greedy_cost, unit_rows
from deft_tsds.selectors.spread import in_order


@dataclass(frozen=True, eq=False)
class Quality:
    """Maximal marginal relevance over any score: each time the row of the highest

        (1 - diversity) r_j - diversity max_{s chosen} cos(x_j, x_s),

    r_j the rank of the row's score, from 0 for the lowest to 1 for the highest (equal scores share their mean rank), so
    that any column serves: a reward, a perplexity with its sign turned, a length, a rating. Ties go to the lower row.

    Reference: Carbonell and Goldstein, "The use of MMR, diversity-based reranking for reordering documents and
    producing summaries", 1998.
    """

    scores: np.ndarray
    """[N], one number a candidate, in the order of the pool; higher is better."""

    diversity: float = 0.5
    """Weight of being unlike the rows chosen so far, in [0, 1]; 0 takes the highest scores."""

    def __post_init__(self) -> None:
        check_real(self.diversity, "diversity", at_least=0, at_most=1)
        scores_N = np.array(self.scores, np.float64)
        if scores_N.ndim != 1:
            raise ValueError(f"scores has shape {scores_N.shape}: give one number a candidate.")
        if not np.isfinite(scores_N).all():
            row = int(np.argmin(np.isfinite(scores_N)))
            raise ValueError(f"scores, row {row}, is {scores_N[row]}: give finite numbers, or drop that row.")
        scores_N.flags.writeable = False
        object.__setattr__(self, "scores", scores_N)

    def cost(self, pool: Pool, budget: int) -> PlanCost:
        """One pass over the pool a row (see `greedy`)."""
        n, d = pool.embeddings_NxD.shape
        return greedy_cost(n, d, budget)

    def __call__(self, pool: Pool, *, budget: int, key: jax.Array) -> Selection:
        n = len(pool)
        if len(self.scores) != n:
            raise ValueError(f"Quality has {len(self.scores)} scores for {n} candidates: give one a candidate.")
        rank_N = (rankdata(self.scores) - 1) / max(n - 1, 1)
        found = choose_greedily(
            unit_rows(pool.embeddings_NxD),
            budget,
            start_N=np.full(n, -1, np.float32),
            fold=_fold_most_similar,
            value=_marginal,
            parameters=(jnp.asarray(rank_N, jnp.float32), jnp.float32(self.diversity)),
            what="rows by quality",
        )
        reasons = []
        for step, (row, worth) in enumerate(zip(found.rows_B.tolist(), found.values_B.tolist(), strict=True), 1):
            quality, rank = float(self.scores[row]), float(rank_N[row])
            similar = None
            why = f"Number {step}: score {quality:.4g}, above {rank:.1%} of the pool"
            if step > 1 and self.diversity > 0:
                similar = ((1 - self.diversity) * rank - worth) / self.diversity
                why += f"; cosine {similar:.3f} with the most similar row chosen before it"
            reasons.append({"why": why + ".", "quality": quality, "rank": rank, "step": step, "similarity": similar})
        return in_order(found, found.values_B, reasons, {})


def _fold_most_similar(similar_N, squared_N, step, parameters):
    return jnp.maximum(similar_N, 1 - squared_N / 2)


def _marginal(similar_N, step, parameters):
    rank_N, diversity = parameters
    return (1 - diversity) * rank_N - diversity * similar_N
