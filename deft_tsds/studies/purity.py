"""How far the clusters that DEFT would use agree with the tasks, representation by representation.

The clusters are DEFT's own (`selectors.clusters`): k-means on rows of unit length. Two numbers say how far they agree
with labels that they have not seen,

    purity   the share of rows with the commonest label of their cluster
    NMI      2 I(cluster; label) / (H(cluster) + H(label)), 0 where independent, 1 where the same

Both are functions of the table of counts [K, L]. Intervals are percentiles of a bootstrap that draws the rows anew, the
same ones for every representation, with the clusters as they are, and the starts of k-means. They are shifted to the
value by the mean of the resamples: rows that come twice agree with themselves, and raise both numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deft_tsds import build
from deft_tsds import config as cfg
from deft_tsds.arrays import check_count
from deft_tsds.data.examples import Examples
from deft_tsds.embed.folders import untrained
from deft_tsds.embed.store import open_store, write_store
from deft_tsds.metrics.bootstrap import interval
from deft_tsds.runs import Run, stage_key, track
from deft_tsds.selectors.clusters import cluster_rows
from deft_tsds.studies.study import Study, markdown_table, shown

LEVEL = 0.95
MEASURES = {"purity": "purity", "nmi": "NMI"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Purity(Study):
    """Which representations, of what text."""

    pool: cfg.Source
    """The examples, whose `group_field` is the label that judges."""
    encoders: dict[str, cfg.AnyEncoder]
    """The representations by name; the others are compared with the first."""
    clusters: int = 7
    """K."""
    rows: int = 2000
    """Rows to look at, drawn at random."""
    seeds: int = 5
    """Starts of k-means."""
    resamples: int = 1000
    """Of the bootstrap."""

    def fill(self) -> dict[str, Any]:
        """Embed, cluster and judge.

        Returns:
            Plain JSON: `rows`, `labels` with their shares, and for each representation under `encoders` its
            `dimension`, what of its model is `untrained` (or None), and `purity` and `nmi`, each with `value`, `low`,
            `high`, and the same `to_first`.

        Raises:
            ValueError: no encoders, rows without labels, a number below 1, data that cannot be read, or an encoder that
                cannot be made.
        """
        for name, low in (("clusters", 2), ("rows", 2), ("seeds", 1), ("resamples", 1)):
            check_count(getattr(self, name), name, low)
        if not self.encoders:
            raise ValueError("encoders is empty: name at least one representation.")
        run = Run(self.workdir, self.seed)
        examples = drawn(self.pool, self.rows, key=stage_key(self.seed, "rows"))
        names, label_N = np.unique(np.array(examples.groups), return_inverse=True)
        if len(names) < 2:
            raise ValueError(f"pool.group_field names {len(names)} label, {names.tolist()}: give rows of at least two.")
        found, draws = {}, {}
        for name, encoder in track(list(self.encoders.items()), "representations"):
            unit_NxD = embedded(run, name, encoder, examples)
            starts = [stage_key(self.seed, "clusters", str(start)) for start in range(self.seeds)]
            clusters_SxN = np.stack(
                [cluster_rows(unit_NxD, self.clusters, most_clusters=2, key=key)[0].labels_N for key in starts]
            )
            values = agreement(contingency(clusters_SxN, label_N, np.ones((1, len(label_N)))))
            draws[name] = self._resampled(clusters_SxN, label_N)
            folder = getattr(encoder, "model", None)
            found[name] = {
                "dimension": unit_NxD.shape[1],
                "untrained": None if folder is None else untrained(folder),
                **{measure: float(values[measure].mean()) for measure in MEASURES},
            }
        first = next(iter(found))
        encoders = {}
        for name, each in found.items():
            judged: dict[str, Any] = {m: _shifted(each[m], draws[name][m]) for m in MEASURES}
            if name != first:
                for m in MEASURES:
                    judged[m]["to_first"] = _shifted(each[m] - found[first][m], draws[name][m] - draws[first][m])
            encoders[name] = {**each, **judged}
        shares = np.bincount(label_N) / len(label_N)
        labels = dict(zip(names.tolist(), shares.tolist(), strict=True))
        return {"rows": len(examples), "clusters": self.clusters, "labels": labels, "encoders": encoders}

    def _resampled(self, clusters_SxN: np.ndarray, label_N: np.ndarray) -> dict[str, np.ndarray]:
        """[R] of each measure; the rows that a resample draws are the same whatever the clusters."""
        rng, n = np.random.default_rng(self.seed), len(label_N)
        weights_RxN = rng.multinomial(n, np.full(n, 1 / n), size=self.resamples).astype(np.float64)
        values = agreement(contingency(clusters_SxN, label_N, weights_RxN))
        starts_RxS = rng.integers(len(clusters_SxN), size=(self.resamples, len(clusters_SxN)))
        return {
            measure: np.take_along_axis(value_RxS, starts_RxS, axis=1).mean(axis=1)
            for measure, value_RxS in values.items()
        }

    def markdown(self, found: Mapping[str, Any]) -> str:
        first = next(iter(found["encoders"]))
        labels = ", ".join(f"{name} {share:.2f}" for name, share in found["labels"].items())
        titles = ["representation", "D"]
        for title in MEASURES.values():
            titles += [title, f"less {first}"]
        rows = []
        for name, each in found["encoders"].items():
            line = [name + ("*" if each["untrained"] else ""), str(each["dimension"])]
            for measure in MEASURES:
                line += [shown(each[measure], 3), shown(each[measure].get("to_first"), 3, "+")]
            rows.append(line)
        notes = [f"- {name}*: {each['untrained']}" for name, each in found["encoders"].items() if each["untrained"]]
        title = f"**{found['rows']:,} rows, K = {found['clusters']}; labels: {labels}**"
        return "\n".join([title, "", markdown_table(titles, rows), *([""] if notes else []), *notes])


def _shifted(value: float, draws_R: np.ndarray) -> dict[str, float]:
    return interval(value, draws_R - draws_R.mean() + value, LEVEL)._asdict()


def drawn(source: cfg.Source, rows: int, *, key: jax.Array) -> Examples:
    """Some rows of a source, drawn at random, in their order; all where there are no more."""
    examples = build.read(source, "pool")
    order = np.asarray(jax.random.permutation(key, len(examples)))
    return examples.take(np.sort(order[:rows]))


def embedded(run: Run, name: str, encoder: cfg.AnyEncoder, examples: Examples) -> np.ndarray:
    """float32 [N, D] of unit length, from the store in the run folder where it has been made."""

    def work(folder: Path) -> None:
        made = build.encoder(encoder, examples, path=folder / "encoder.npz", key=stage_key(run.seed, "encoder"))
        write_store(folder / "rows", examples.prompts, made, ids=examples.ids)

    files = build.encoder_identity(encoder)
    settings = {"encoder": encoder, "files": files, "texts": examples.fingerprint()}
    return open_store(run.do(f"embeddings/{name}", work, settings=settings).folder / "rows").array()


def contingency(clusters_SxN: np.ndarray, label_N: np.ndarray, weights_RxN: np.ndarray) -> np.ndarray:
    """The weight of each pair of cluster and label, float64 [R, S, K, L]."""
    labels, clusters = label_N.max() + 1, clusters_SxN.max() + 1
    tables = []
    for cluster_N in clusters_SxN:
        pairs_NxP = np.zeros((len(label_N), clusters * labels))
        pairs_NxP[np.arange(len(label_N)), cluster_N * labels + label_N] = 1
        tables.append((weights_RxN @ pairs_NxP).reshape(-1, clusters, labels))
    return np.stack(tables, axis=1)


def agreement(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Purity and NMI of tables of counts [..., K, L], each of shape [...]."""
    total = counts.sum(axis=(-2, -1))
    joint = counts / total[..., None, None]
    of_clusters, of_labels = _entropy(joint.sum(axis=-1)), _entropy(joint.sum(axis=-2))
    mutual = of_clusters + of_labels - _entropy(joint.reshape(*joint.shape[:-2], -1))
    mean = (of_clusters + of_labels) / 2
    nmi = np.divide(mutual, mean, out=np.zeros_like(mean), where=mean > 0)
    return {"purity": counts.max(axis=-1).sum(axis=-1) / total, "nmi": nmi}


def _entropy(shares: np.ndarray) -> np.ndarray:
    return -np.sum(shares * np.log(np.where(shares > 0, shares, 1)), axis=-1)
