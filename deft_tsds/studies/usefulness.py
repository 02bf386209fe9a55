"""Whether examples far from the middle of their cluster are the useful ones, which is what DEFT's hard sampling takes.

How useful an example is for the rest of the data is measured by LESS (`deft_tsds.gradients`): the mean over held-out
rows z' of

    Inf(z, z') = sum_i eta_i cos(grad l(z'; theta_i), Gamma(z; theta_i)) / sum_i eta_i

at the checkpoints of a short run, to first order the share of a step's length by which Adam's step on z takes the
held-out loss down. How far an example is from the middle is DEFT's own cosine distance. The two are compared by
Spearman's rank correlation: over all rows, and inside the clusters, each cluster with the weight of its size. Intervals
are percentiles of a bootstrap over rows, the same ones for every start of k-means, and over these starts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from deft_tsds import config as cfg
from deft_tsds.arrays import check_count
from deft_tsds.embed.store import open_store
from deft_tsds.metrics.bootstrap import interval
from deft_tsds.runs import Run, stage_key, track
from deft_tsds.selectors.clusters import cluster_rows, cosine_distances
from deft_tsds.studies.gradients import GradientsOf, make_gradients
from deft_tsds.studies.purity import LEVEL, drawn, embedded
from deft_tsds.studies.study import Study, markdown_table, shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Usefulness(Study):
    """Which distances, and the gradients of which model."""

    pool: cfg.Source
    """The examples, with targets."""
    encoders: dict[str, cfg.AnyEncoder]
    """The representations whose clusters and distances are looked at, by name."""
    gradients: GradientsOf
    """Of which T5, and how."""
    clusters: int = 7
    """K."""
    rows: int = 2000
    """Examples whose usefulness is measured, drawn at random."""
    held_out: int = 200
    """Other examples of the same pool, for which they may be useful."""
    seeds: int = 5
    """Starts of k-means."""
    resamples: int = 1000
    """Of the bootstrap."""

    def fill(self) -> dict[str, Any]:
        """Measure usefulness once, and distances in each representation.

        Returns:
            Plain JSON: `rows`, `held_out`, the mean `usefulness`, and by representation under `encoders` the rank
            correlations `overall` and `within` with `value`, `low`, `high`, and `by_cluster`, those of each cluster of
            the first start with its `rows`.

        Raises:
            ValueError: a number below 1, fewer examples than asked for, and what `make_gradients` and encoders raise.
        """
        for name in ("clusters", "rows", "held_out", "seeds", "resamples"):
            check_count(getattr(self, name), name, 1)
        run = Run(self.workdir, self.seed)
        examples = drawn(self.pool, self.rows + self.held_out, key=stage_key(self.seed, "rows"))
        if len(examples) < self.rows + self.held_out:
            raise ValueError(f"rows + held_out is {self.rows + self.held_out}, and the pool has {len(examples)} rows.")
        order = np.random.default_rng(self.seed).permutation(len(examples))
        candidates = examples.take(np.sort(order[self.held_out :]))
        held_out = {"held_out": examples.take(np.sort(order[: self.held_out]))}
        folder = make_gradients(self.gradients, candidates, held_out, run=run, stage="gradients").folder
        useful_N = usefulness(open_store(folder / "pool").array(), open_store(folder / "held_out").array())
        encoders = {}
        for name, encoder in track(list(self.encoders.items()), "representations"):
            unit_NxD = embedded(run, name, encoder, candidates)
            clusterings = []
            for start in range(self.seeds):
                key = stage_key(self.seed, "clusters", str(start))
                found, _ = cluster_rows(unit_NxD, self.clusters, most_clusters=2, key=key)
                clusterings.append((found.labels_N, cosine_distances(unit_NxD, found.centroids_KxD, found.labels_N)))
            encoders[name] = self._correlated(clusterings, useful_N)
        return {
            "rows": len(candidates),
            "held_out": self.held_out,
            "clusters": self.clusters,
            "usefulness": float(useful_N.mean()),
            "encoders": encoders,
        }

    def _correlated(self, clusterings: list[tuple[np.ndarray, np.ndarray]], useful_N: np.ndarray) -> dict[str, Any]:
        n, rng = len(useful_N), np.random.default_rng(self.seed)
        rows_RxN = rng.integers(n, size=(self.resamples, n))  # the same for every start
        starts_RxS = rng.integers(len(clusterings), size=(self.resamples, len(clusterings)))
        values, draws = {"overall": [], "within": []}, {"overall": [], "within": []}
        for labels_N, distance_N in clusterings:
            values["overall"].append(spearman(distance_N[None], useful_N[None])[0])
            values["within"].append(within_clusters(labels_N, distance_N, useful_N))
            draws["overall"].append(spearman(distance_N[rows_RxN], useful_N[rows_RxN]))
            draws["within"].append(
                [within_clusters(labels_N[rows], distance_N[rows], useful_N[rows]) for rows in rows_RxN]
            )
        judged = {
            kind: interval(
                float(np.mean(values[kind])),
                np.take_along_axis(np.stack(draws[kind], axis=1), starts_RxS, axis=1).mean(axis=1),
                LEVEL,
            )._asdict()
            for kind in values
        }
        labels_N, distance_N = clusterings[0]
        parts = [np.flatnonzero(labels_N == cluster) for cluster in np.unique(labels_N)]
        by_cluster = [
            {"rows": len(rows), "correlation": float(spearman(distance_N[None, rows], useful_N[None, rows])[0])}
            for rows in parts
        ]
        return {**judged, "by_cluster": by_cluster}

    def markdown(self, found: Mapping[str, Any]) -> str:
        titles = ["distances in", "all rows", "inside clusters", "clusters (rows: correlation), first start"]
        rows = []
        for name, each in found["encoders"].items():
            parts = ", ".join(f"{part['rows']}: {part['correlation']:+.2f}" for part in each["by_cluster"])
            rows.append([name, shown(each["overall"], 3, "+"), shown(each["within"], 3, "+"), parts])
        title = (
            f"**Rank correlation of the distance to the centroid with usefulness: {found['rows']:,} rows, "
            f"{found['held_out']} held out, K = {found['clusters']}; mean usefulness {found['usefulness']:.3f}**"
        )
        return "\n".join([title, "", markdown_table(titles, rows)])


def usefulness(pool_NxG: np.ndarray, held_out_MxG: np.ndarray) -> np.ndarray:
    """The mean influence of each row of the pool on the held-out rows, float64 [N], from features of unit length."""
    return pool_NxG.astype(np.float64) @ held_out_MxG.mean(axis=0, dtype=np.float64)


def within_clusters(labels_N: np.ndarray, x_N: np.ndarray, y_N: np.ndarray) -> float:
    """The mean over clusters of the rank correlation inside them, each with the weight of its rows."""
    parts = [np.flatnonzero(labels_N == cluster) for cluster in np.unique(labels_N)]
    return float(sum(len(rows) * spearman(x_N[None, rows], y_N[None, rows])[0] for rows in parts) / len(labels_N))


def spearman(x_RxN: np.ndarray, y_RxN: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of each row of x with that of y, ties ranked by their mean; 0 where one is constant.
    float64 [R]."""
    from scipy.stats import rankdata

    x, y = (rankdata(each, axis=1) for each in (x_RxN, y_RxN))
    x, y = (each - each.mean(axis=1, keepdims=True) for each in (x, y))
    lengths = np.sqrt(np.sum(x**2, axis=1) * np.sum(y**2, axis=1))
    return np.divide(np.sum(x * y, axis=1), lengths, out=np.zeros_like(lengths), where=lengths > 0)
