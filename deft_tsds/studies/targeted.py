"""Targeted selection on labelled text: what each selector chooses for a target, and what a small probe learns from it.

The pool holds the rows of several data sets, the target's among them. A few examples of the target, without their
labels, choose from it. Of each choice are measured

- **own**: the share of rows that come from the target's own data set;
- **distinct**: the share that is left when rows with the same words, case and punctuation aside, count once;
- **near_duplicates**: the share of rows with another chosen row at a cosine of 0.95 or more;
- **classes**: exp of the entropy of the labels of the rows from the own data set, over the number of labels;
- **originals** and **repeated**, where rows are known to be copies of others: how many rows are left when copies of the
  same row count once, and the share of the choice that this leaves out;
- **macro_f1** of a logistic probe on the embeddings of these rows and their labels, on the target's test rows.

Each selector on each target is a stage of a run folder (`deft_tsds.runs`): a study that was killed goes on where it
stopped. `deft_tsds.studies.targeted_table` makes the tables.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deft_tsds import config as cfg
from deft_tsds.data.ngrams import NgramCounts, words_of
from deft_tsds.report.composition import near_duplicate_share
from deft_tsds.runs import Run, Stage, atomic_write, plain, stage_key, track
from deft_tsds.selection import Pool
from deft_tsds.selectors import (
    DSIR,
    LESS,
    TSDS,
    ClusteredTSDS,
    Full,
    Herding,
    Nearest,
    Random,
    RoundRobin,
    ShortlistDEFT,
    UnbalancedTransport,
)
from deft_tsds.studies.chooser import Chooser, Contender
from deft_tsds.studies.probe import predict

SHARES = (0.005, 0.01, 0.05)


@dataclasses.dataclass(frozen=True, eq=False)
class Labelled:
    """Rows of text. Selectors see texts and embeddings, never groups, and labels only by their gradients.

    Attributes:
        texts: N texts.
        labels: [N] text.
        groups: [N] text, the data set of each row.
        embeddings_NxD: float32, rows of unit length.
        gradients_NxG: float32, what a step on each text with its label would do to a model (`deft_tsds.gradients`);
            None where no contender sees it.
        origins_N: int64, rows of the same number are copies of one another; None where nobody knows of copies.
    """

    texts: tuple[str, ...]
    labels: np.ndarray
    groups: np.ndarray
    embeddings_NxD: np.ndarray
    gradients_NxG: np.ndarray | None = None
    origins_N: np.ndarray | None = None

    def __post_init__(self) -> None:
        columns = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        sizes = {name: len(column) for name, column in columns.items() if column is not None}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"texts, labels, groups and embeddings must have the same number of rows, not {sizes}.")

    def take(self, rows: np.ndarray) -> Labelled:
        """Some rows, by a mask or by numbers."""
        numbers = np.arange(len(self.texts))[rows]
        texts = tuple(self.texts[row] for row in numbers.tolist())
        gradients = None if self.gradients_NxG is None else self.gradients_NxG[numbers]
        origins = None if self.origins_N is None else self.origins_N[numbers]
        embeddings_NxD = self.embeddings_NxD[numbers]
        return Labelled(texts, self.labels[numbers], self.groups[numbers], embeddings_NxD, gradients, origins)

    def fingerprint(self) -> str:
        """SHA-256 of everything in it but the gradients."""
        digest = hashlib.sha256(np.ascontiguousarray(self.embeddings_NxD).data)
        for column in (self.texts, self.labels.tolist(), self.groups.tolist()):
            digest.update("\0".join(column).encode("utf-8", "surrogatepass"))
        if self.origins_N is not None:
            digest.update(np.ascontiguousarray(self.origins_N).data)
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """A target: a few examples that choose, and test rows that judge. `name` is the group of its rows in the pool."""

    name: str
    queries: Labelled
    test: Labelled


OBJECTIVE = {"align": cfg.Weighted(1.0, "transport_cost"), "kde": cfg.Weighted(0.5, "kde_repulsion")}

CONTENDERS: dict[str, Contender] = {
    "Random": Contender(Random()),
    "Full": Contender(Full()),
    "TSDS-KDE": Contender(TSDS()),
    "TSDS-KDE, h auto": Contender(TSDS(bandwidth="auto")),
    "TSDS-KDE, alpha and h auto": Contender(TSDS(alpha="auto", bandwidth="auto")),
    "TSDS-uniform": Contender(TSDS(regularizer="uniform")),
    "TSDS-TV, size 2B": Contender(TSDS(regularizer="tv", neighbors=1_000_000), size=2),
    "ClusteredTSDS": Contender(ClusteredTSDS(), seeds=1),
    "ShortlistDEFT": Contender(ShortlistDEFT()),
    "Transport": Contender(cfg.Transport(OBJECTIVE, bandwidth=0.75)),
    "UnbalancedTransport": Contender(UnbalancedTransport()),
    "Nearest": Contender(Nearest()),
    "RoundRobin": Contender(RoundRobin()),
    "DSIR": Contender(DSIR(), sees="counts"),
    "Herding": Contender(Herding("queries")),
    "LESS": Contender(LESS(), sees="gradients"),
    "TSDS-KDE, gradients": Contender(TSDS(), sees="gradients"),
}
"""The rows of the table, each with its defaults. Two things are not there, or not as they are: `RDSPlus` is
`RoundRobin` on representations of its own, and so the same choice on the same embeddings; and TSDS-TV with its defaults
is a uniform draw on embeddings of unit length (C = 5 is above every distance), so that it gets the plan with an
effective size of twice the budget, where a row is drawn with a chance of about 1/2. `ClusteredTSDS` clusters the whole
pool in each call, and is measured in one seed. Those that see gradients know more than the others: the labels of the
pool and of the queries."""


def measure(
    pool: Labelled,
    targets: Sequence[Target],
    run: Run,
    *,
    contenders: Mapping[str, Contender] = CONTENDERS,
    shares: Sequence[float] = SHARES,
    seeds: int = 5,
    shares_of: int | None = None,
    queries: int | None = None,
) -> dict[tuple[str, str], Stage]:
    """Measure every contender on every target, going on from whatever an earlier call has finished.

    A contender that draws is measured in each seed, the others once. The stages hold the predictions of the probe on
    the test rows (`predictions.npy`, [cells, T]), and `results["cells"]` says for each cell its share, budget, seed,
    the number of rows that the probe was trained on, its `measures`, and of a transport plan under `plan` how many
    candidates a query reaches on average and how many equally likely ones it is as diverse as; or, where the selector
    cannot meet the budget, its own words for that as a `note`.

    Args:
        pool, targets: what there is to choose from, and for whom.
        run: where the stages are kept.
        contenders: the rows of the table.
        shares: the budgets, as parts of `shares_of` rows.
        seeds: how often a contender that draws is measured.
        shares_of: by default the size of the pool.
        queries: each seed sees so many of the queries, drawn at random, and every contender is measured in each seed;
            None shows all of them.

    Returns:
        The stages by (contender, target).

    Raises:
        ValueError: a share outside (0, 1], no seeds, a target without rows in the pool or with fewer than `queries`
            queries, or a contender that sees gradients where there are none.
    """
    if seeds < 1:
        raise ValueError(f"seeds is {seeds}; it must be at least 1.")
    for share in shares:
        if not 0 < share <= 1:
            raise ValueError(f"shares has {share}: give parts of the pool, in (0, 1].")
    for target in targets:
        if target.name not in pool.groups:
            raise ValueError(f"the pool has no row of the target {target.name!r}: give its rows that group.")
        if queries is not None and not 1 <= queries <= len(target.queries.texts):
            raise ValueError(f"queries is {queries}, and {target.name!r} has {len(target.queries.texts)} of them.")
    blind = [name for name, contender in contenders.items() if contender.sees == "gradients"]
    if blind and any(rows.gradients_NxG is None for rows in (pool, *(target.queries for target in targets))):
        raise ValueError(f"{', '.join(blind)} see gradients: give pool and queries some, or leave these out.")
    features = Features(pool)
    found = {}
    budgets = {share: max(1, round(share * (shares_of or len(pool.texts)))) for share in shares}
    steps = [(target, name) for target in targets for name in contenders]
    for target, name in track(steps, "targets x selectors"):
        found[name, target.name] = _stage(run, features, target, name, contenders[name], budgets, seeds, queries)
    return found


class Features:
    """What selectors see of the pool; n-grams are counted when the first selector asks for them."""

    def __init__(self, pool: Labelled):
        self.pool = pool

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the pool."""
        return self.pool.fingerprint()

    @functools.cached_property
    def _counts(self) -> NgramCounts:
        return NgramCounts(self.pool.texts)

    @functools.cached_property
    def gradients(self) -> str:
        """SHA-256 of the gradients of the pool."""
        return array_hash(self.pool.gradients_NxG)

    def of(self, target: Target, sees: str) -> Pool:
        """The pool and the target's queries, as a contender sees them."""
        if sees == "embeddings":
            return Pool.of(self.pool.embeddings_NxD, target.queries.embeddings_NxD)
        if sees == "counts":
            return Pool.of(self._counts, NgramCounts(target.queries.texts))
        labels = target.queries.labels
        return Pool.of(self.pool.gradients_NxG, target.queries.gradients_NxG, query_groups=labels)


def _stage(
    run: Run,
    features: Features,
    target: Target,
    name: str,
    contender: Contender,
    budgets: Mapping[float, int],
    seeds: int,
    queries: int | None,
) -> Stage:
    pool = features.pool
    wanted = min(seeds, contender.seeds or seeds) if contender.drawn or queries is not None else 1
    if isinstance(contender.selector, Full):  # it has one budget
        budgets = {1.0: len(pool.texts)}

    @functools.cache
    def chooser_for(draw: int) -> Chooser:
        if queries is None:
            return Chooser(contender, features.of(target, contender.sees))
        key = stage_key(run.seed, "queries", target.name, str(draw))
        seen = np.sort(np.asarray(jax.random.permutation(key, len(target.queries.texts)))[:queries])
        few = dataclasses.replace(target, queries=target.queries.take(seen))
        return Chooser(contender, features.of(few, contender.sees))

    def work(folder: Path) -> Mapping[str, Any]:
        cells, predictions = [], []
        for share, budget in budgets.items():
            for seed in range(wanted):
                cell: dict[str, Any] = {"share": share, "budget": budget, "seed": seed}
                # A key knows of no contender: all draw by the same chances.
                key = stage_key(run.seed, "targeted", target.name, str(seed))
                chooser = chooser_for(0 if queries is None else seed)
                try:
                    rows = chooser(budget, key)
                except ValueError as error:
                    cells.append(cell | {"note": str(error)})
                    continue
                own = rows[pool.groups[rows] == target.name]
                predictions.append(predict(pool.embeddings_NxD[own], pool.labels[own], target.test.embeddings_NxD))
                measures = _measures(pool, target.name, rows, own, key)
                plan = chooser.plan_facts(budget)
                cells.append(cell | {"trained_on": len(own), "measures": measures} | ({"plan": plan} if plan else {}))
        with atomic_write(folder / "predictions.npy") as temporary, temporary.open("wb") as file:
            np.save(file, np.array(predictions, dtype=np.str_), allow_pickle=False)
        return {"cells": cells}

    settings: dict[str, Any] = {
        "selector": plain(contender.selector),
        "size": contender.size,
        "sees": contender.sees,
        "budgets": {str(share): budget for share, budget in budgets.items()},
        "seeds": wanted,
        "queries_seen": queries,
        "pool": features.fingerprint,
        "queries": target.queries.fingerprint(),
        "test": target.test.fingerprint(),
    }
    if contender.sees == "gradients":
        settings["gradients"] = [features.gradients, array_hash(target.queries.gradients_NxG)]
    return run.do(f"cells/{target.name}/{name}", work, settings=settings)


def array_hash(array: np.ndarray | None) -> str:
    """SHA-256 of the values."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _measures(pool: Labelled, name: str, rows: np.ndarray, own: np.ndarray, key: jax.Array) -> dict[str, float]:
    """What can be said of a choice before anything is trained on it."""
    counts = np.unique(pool.labels[own], return_counts=True)[1]
    shares = counts / max(counts.sum(), 1)
    found = {
        "own": len(own) / len(rows),
        "distinct": len({words_of(pool.texts[row]) for row in rows.tolist()}) / len(rows),
        "near_duplicates": near_duplicate_share(pool.embeddings_NxD, rows, key=key),
        "classes": float(np.exp(-(shares * np.log(shares)).sum())) / len(np.unique(pool.labels[pool.groups == name]))
        if len(own)
        else 0.0,
    }
    if pool.origins_N is not None:
        originals = len(np.unique(pool.origins_N[rows]))
        found |= {"originals": originals, "repeated": 1 - originals / len(rows)}
    return found
