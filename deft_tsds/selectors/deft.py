"""DEFT-UCS: a stratified base set, and a core-set of the easy and hard examples of k-means clusters.

Reference: "DEFT-UCS: Data Efficient Fine-Tuning for Pre-Trained Language Models via Unsupervised Core-Set Selection for
Text-Editing", arXiv 2310.16776.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import numpy as np

from deft_tsds.apportion import largest_remainder
from deft_tsds.arrays import check_count, check_real, normalize_rows
from deft_tsds.cost import PlanCost, clustering_cost
from deft_tsds.sampling import generator_of, sample_stratified
from deft_tsds.selection import Pool, Selection
from deft_tsds.selectors.auto import base_share
from deft_tsds.selectors.clusters import (
    Clusters,
    check_clusters,
    cluster_rows,
    cosine_distances,
    largest_k,
    number_of_clusters,
    unit_rows,
)


@dataclass(frozen=True)
class DEFT:
    """Base set D_base, drawn by task, and core-set D_c from clusters of the rest; the selection is both together.

    The rest is L2-normalised and clustered by k-means. In each cluster the rows are ranked by cosine distance to the
    centroid; of the A rows that a cluster gives, a share `easy` are the nearest, a share `hard` the farthest, and a
    share `random` is drawn from those between. The three numbers are made whole by largest remainder, so that they
    sum to A.
    """

    clusters: Clusters = 7
    """K, the number of clusters; at most the number of rows outside the base set is used. "silhouette" chooses the K
    whose clusters are best told apart on a sample, from 2 to `most_clusters`; info has the score of each. "auto" takes
    only those that come again in another half of the data (see `clusters.stable_clusters`), and info says why."""

    base: float | Literal["auto"] = 0.3
    """Share that is drawn as the base set: by group in proportion to the groups' sizes, uniformly where there are no
    groups. "auto" gives the core-set as many rows as are hard, half of the budget at most, and the base set the rest
    (see `auto.base_share`); info says why."""

    base_of: Literal["pool", "budget"] = "pool"
    """What `base` is a share of. The paper's is of the pool; a share of the budget goes with any budget."""

    easy: float = 0.0
    """alpha, the share of a cluster's rows that are taken nearest to the centroid. easy + hard + random = 1."""

    hard: float = 1.0
    """beta, the share of a cluster's rows that are taken farthest from the centroid."""

    random: float = 0.0
    """Share of a cluster's rows that are drawn at random from the cluster."""

    per_cluster: int | None = None
    """A, the number of rows from each cluster: a smaller cluster gives all it has, and the selection holds at most
    the budget. None divides the budget that the base set leaves evenly, hands on what small clusters lack, and meets
    the budget exactly."""

    most_clusters: int = 12
    """The largest K that "silhouette" and "auto" try."""

    def __post_init__(self) -> None:
        check_clusters(self.clusters, self.most_clusters)
        for name in ("base", "easy", "hard", "random"):
            if name != "base" or self.base != "auto":
                check_real(getattr(self, name), name, at_least=0, at_most=1)
        if not math.isclose(self.easy + self.hard + self.random, 1, abs_tol=1e-6):
            raise ValueError(
                f"easy + hard + random is {self.easy:g} + {self.hard:g} + {self.random:g}: "
                "the three shares must sum to 1."
            )
        if self.per_cluster is not None:
            check_count(self.per_cluster, "per_cluster", 1)
        if self.base_of not in ("pool", "budget"):
            raise ValueError(f'base_of must be "pool" or "budget", not {self.base_of!r}.')

    def check_budget(self, budget: int, candidates: int) -> None:
        """Raise ValueError when the base set leaves nothing of the budget; known before anything is embedded."""
        if isinstance(self.base, str):
            return
        base_count = self._base_count(self.base, budget, candidates)
        if base_count >= budget:
            whole, what = (candidates, "candidates") if self.base_of == "pool" else (budget, "chosen")
            raise ValueError(
                f"base = {self.base:g} of {whole} {what} is {base_count} rows, which leaves nothing of the "
                f"budget of {budget} for the core-set: lower base below {budget / whole:.4g}, raise the budget "
                f"above {base_count}, or use Random(stratified=True) for a base set alone."
            )

    def _base_count(self, base: float, budget: int, candidates: int) -> int:
        return round(base * (candidates if self.base_of == "pool" else budget))

    def cost(self, pool: Pool, budget: int) -> PlanCost:
        """What the clustering will need (see `deft_tsds.cost`)."""
        n, d = pool.embeddings_NxD.shape
        return clustering_cost(n, d, largest_k(self.clusters, self.most_clusters))

    def decided(self, pool: Pool, *, budget: int, key: jax.Array) -> tuple[DEFT, dict[str, Any]]:
        """This selector with numbers in place of "auto" (and "silhouette"), and what info says of how they came about:
        under "auto", by knob, `value`, the `paper`'s, and `why`."""
        key_clusters, key_base = jax.random.split(key)
        unit_NxD = normalize_rows(pool.embeddings_NxD)
        clusters, info = number_of_clusters(unit_NxD, self.clusters, most_clusters=self.most_clusters, key=key_clusters)
        base, base_of = self.base, self.base_of
        if base == "auto":
            base, decision = base_share(unit_NxD, budget, clusters, key=key_base)
            base_of = "pool"
            info["auto"] = info.get("auto", {}) | {"base": decision}
        return replace(self, clusters=clusters, base=base, base_of=base_of), info

    def __call__(self, pool: Pool, *, budget: int, key: jax.Array) -> Selection:
        if isinstance(self.base, str) or self.clusters == "auto":
            key_decision, key = jax.random.split(key)
            selector, decisions = self.decided(pool, budget=budget, key=key_decision)
            selection = selector(pool, budget=budget, key=key)
            return replace(selection, info={**selection.info, **decisions})
        n = len(pool)
        self.check_budget(budget, n)
        base_count = self._base_count(self.base, budget, n)
        key_base, key_clusters, key_random = jax.random.split(key, 3)
        chosen, base_rows = self._base(pool, base_count, key_base)

        rest = np.setdiff1d(np.arange(n), base_rows)
        unit_RxD = unit_rows(pool.embeddings_NxD, rest)
        clustering, clustering_info = cluster_rows(
            unit_RxD, self.clusters, most_clusters=self.most_clusters, key=key_clusters
        )
        distance_R = cosine_distances(unit_RxD, clustering.centroids_KxD, clustering.labels_N)
        counts_K = self._counts(clustering.sizes_K, budget - base_count)
        generator = generator_of(key_random)
        for cluster, count in enumerate(counts_K):
            members = np.flatnonzero(clustering.labels_N == cluster)
            chosen += self._core(cluster, int(count), rest[members], distance_R[members], generator)

        chosen.sort(key=lambda item: item[0])
        info: dict[str, Any] = {
            "base": base_count,
            "cluster_sizes": clustering.sizes_K.tolist(),
            "cluster_chosen": counts_K.tolist(),
            "kmeans": clustering_info,
        }
        if len(chosen) < budget:
            info["shortfall"] = (
                f"per_cluster = {self.per_cluster} with {len(counts_K)} clusters gives {int(counts_K.sum())} rows "
                f"beside the base set of {base_count}, of a budget of {budget}."
            )
        rows, scores, reasons = zip(*chosen, strict=True)
        return Selection.of(np.array(rows), scores=scores, reasons=reasons, info=info)

    def _base(self, pool: Pool, count: int, key: jax.Array) -> tuple[list[tuple[int, float, dict]], np.ndarray]:
        """Rows of D_base with score and reason, and the rows alone. What is drawn has no rank: its score is 0."""
        groups_N = np.zeros(len(pool), np.int8) if pool.groups_N is None else pool.groups_N
        rows, probability_N = sample_stratified(groups_N, count, key=key)
        chosen = []
        for row in rows.tolist():
            probability = float(probability_N[row])
            reason: dict[str, Any] = {"part": "base", "probability": probability}
            whom = "every candidate"
            if pool.groups_N is not None:
                reason["group"] = pool.groups_N[row].item()
                whom = f"every candidate of group {reason['group']!r}"
            why = f"Base set: drawn at random, {whom} with probability {probability:.4g}."
            chosen.append((row, 0.0, {"why": why, **reason}))
        return chosen, rows

    def _counts(self, sizes_K: np.ndarray, room: int) -> np.ndarray:
        """How many rows each cluster gives, so that all together are at most `room`; exactly that without
        per_cluster."""
        if self.per_cluster is None:
            return largest_remainder(np.ones(len(sizes_K)), room, sizes_K)
        wanted_K = np.minimum(self.per_cluster, sizes_K)
        return largest_remainder(wanted_K, min(room, int(wanted_K.sum())), wanted_K)

    def _core(
        self, cluster: int, count: int, rows: np.ndarray, distances: np.ndarray, generator: np.random.Generator
    ) -> list[tuple[int, float, dict]]:
        """Rows that one cluster gives, each with score and reason. Ties in distance go to the lower row."""
        easy, hard, random = largest_remainder([self.easy, self.hard, self.random], count, [count] * 3)
        ascending = np.argsort(distances, kind="stable")
        left = ascending[easy:]
        left = left[np.argsort(-distances[left], kind="stable")]
        sides = {
            "easy": ascending[:easy],
            "hard": left[:hard],
            "random": generator.choice(left[hard:], random, replace=False),
        }
        rank = np.empty(len(rows), np.int64)
        rank[ascending] = np.arange(1, len(rows) + 1)
        chosen = []
        for side, members in sides.items():
            for member in members.tolist():
                distance, nearness = float(distances[member]), int(rank[member])
                place = (
                    f"rank {nearness} of {len(rows)} from the centroid of cluster {cluster} "
                    f"(cosine distance {distance:.3f})"
                )
                why, score = {
                    "easy": (f"Easy: near the middle of its cluster, {place}.", 1 - distance),
                    "hard": (f"Hard: far from the middle of its cluster, {place}.", distance),
                    "random": (f"Drawn at random within its cluster, {place}.", 0.0),
                }[side]
                reason = {
                    "why": why,
                    "part": side,
                    "cluster": cluster,
                    "cluster_size": len(rows),
                    "rank": nearness,
                    "distance": distance,
                }
                chosen.append((int(rows[member]), score, reason))
        return chosen
