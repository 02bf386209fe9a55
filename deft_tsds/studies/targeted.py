"""Targeted selection on labelled text: what each selector chooses for a target, and what a small probe learns from it.

The pool holds the rows of several data sets, the target's among them. A few examples of the target, without their
labels, choose from it. Of each choice are measured

- **own**: the share of rows that come from the target's own data set;
- **distinct**: the share that is left when rows with the same words, case and punctuation aside, count once;
- **near_duplicates**: the share of rows with another chosen row at a cosine of 0.95 or more;
- **classes**: exp of the entropy of the labels of the rows from the own data set, over the number of labels;
- **macro_f1** of a logistic probe on the embeddings of these rows and their labels, on the target's test rows.

Each selector on each target is a stage of a run folder (`deft_tsds.runs`): a study that was killed goes on where it
stopped. `deft_tsds.studies.targeted_table` makes the tables.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from deft_tsds import config as cfg
from deft_tsds.build import selector as build_selector
from deft_tsds.data.ngrams import NgramCounts, words_of
from deft_tsds.report.composition import near_duplicate_share
from deft_tsds.runs import Run, Stage, atomic_write, plain, stage_key, track
from deft_tsds.sampling import sample
from deft_tsds.selection import Pool, Selection, select
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
    Transport,
    UnbalancedTransport,
    table,
)
from deft_tsds.selectors.dsir import gumbel_top_k
from deft_tsds.studies.probe import predict
from deft_tsds.studies.side_by_side import SideBySide
from deft_tsds.transport.problem import Plan

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
    """

    texts: tuple[str, ...]
    labels: np.ndarray
    groups: np.ndarray
    embeddings_NxD: np.ndarray
    gradients_NxG: np.ndarray | None = None

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
        return Labelled(texts, self.labels[numbers], self.groups[numbers], self.embeddings_NxD[numbers], gradients)

    def fingerprint(self) -> str:
        """SHA-256 of everything in it but the gradients."""
        digest = hashlib.sha256(np.ascontiguousarray(self.embeddings_NxD).data)
        for column in (self.texts, self.labels.tolist(), self.groups.tolist()):
            digest.update("\0".join(column).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """A target: a few examples that choose, and test rows that judge. `name` is the group of its rows in the pool."""

    name: str
    queries: Labelled
    test: Labelled


@dataclasses.dataclass(frozen=True)
class Contender:
    """A selector as it enters the table."""

    selector: Any
    """A selector, or the section of a config that describes one."""
    size: float | None = None
    """TSDS only: the effective size of the plan, in budgets."""
    sees: Literal["embeddings", "counts", "gradients"] = "embeddings"
    """What it sees of the texts; "counts" are those of n-grams. With "gradients" it sees the labels of the queries as
    their subtasks too."""
    seeds: int | None = None
    """How often it is measured, where that is not all seeds."""

    @property
    def drawn(self) -> bool:
        """Whether the key decides anything."""
        deterministic = {entry.selector.__name__ for entry in table() if entry.deterministic}
        return type(self.selector).__name__ not in deterministic


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
) -> dict[tuple[str, str], Stage]:
    """Measure every contender on every target, going on from whatever an earlier call has finished.

    A contender that draws is measured in each seed, the others once. The stages hold the predictions of the probe on
    the test rows (`predictions.npy`, [cells, T]), and `results["cells"]` says for each cell its share, budget, seed,
    the number of rows that the probe was trained on, and its `measures`; or, where the selector cannot meet the
    budget, its own words for that as a `note`.

    Returns:
        The stages by (contender, target).

    Raises:
        ValueError: a share outside (0, 1], no seeds, a target without rows in the pool, or a contender that sees
            gradients where there are none.
    """
    if seeds < 1:
        raise ValueError(f"seeds is {seeds}; it must be at least 1.")
    for share in shares:
        if not 0 < share <= 1:
            raise ValueError(f"shares has {share}: give parts of the pool, in (0, 1].")
    for target in targets:
        if target.name not in pool.groups:
            raise ValueError(f"the pool has no row of the target {target.name!r}: give its rows that group.")
    blind = [name for name, contender in contenders.items() if contender.sees == "gradients"]
    if blind and any(rows.gradients_NxG is None for rows in (pool, *(target.queries for target in targets))):
        raise ValueError(f"{', '.join(blind)} see gradients: give pool and queries some, or leave these out.")
    features = _Features(pool)
    found = {}
    steps = [(target, name) for target in targets for name in contenders]
    for target, name in track(steps, "targets x selectors"):
        found[name, target.name] = _stage(run, features, target, name, contenders[name], shares, seeds)
    return found


class _Features:
    """What selectors see of the pool; n-grams are counted when the first selector asks for them."""

    def __init__(self, pool: Labelled):
        self.pool, self.fingerprint = pool, pool.fingerprint()

    @cached_property
    def _counts(self) -> NgramCounts:
        return NgramCounts(self.pool.texts)

    @cached_property
    def gradients(self) -> str:
        """SHA-256 of the gradients of the pool."""
        return _array_hash(self.pool.gradients_NxG)

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
    features: _Features,
    target: Target,
    name: str,
    contender: Contender,
    shares: Sequence[float],
    seeds: int,
) -> Stage:
    pool = features.pool
    wanted = 1 if not contender.drawn else min(seeds, contender.seeds or seeds)
    if isinstance(contender.selector, Full):  # it has one budget
        shares = (1.0,)
    budgets = {share: max(1, round(share * len(pool.texts))) for share in shares}

    def work(folder: Path) -> Mapping[str, Any]:
        chooser = _Chooser(contender, features.of(target, contender.sees))
        cells, predictions = [], []
        for share, budget in budgets.items():
            for seed in range(wanted):
                cell: dict[str, Any] = {"share": share, "budget": budget, "seed": seed}
                # A key knows of no contender: all draw by the same chances.
                key = stage_key(run.seed, "targeted", target.name, str(seed))
                try:
                    rows = chooser(budget, key)
                except ValueError as error:
                    cells.append(cell | {"note": str(error)})
                    continue
                own = rows[pool.groups[rows] == target.name]
                predictions.append(predict(pool.embeddings_NxD[own], pool.labels[own], target.test.embeddings_NxD))
                measures = _measures(pool, target.name, rows, own, key)
                cells.append(cell | {"trained_on": len(own), "measures": measures})
        with atomic_write(folder / "predictions.npy") as temporary, temporary.open("wb") as file:
            np.save(file, np.array(predictions, dtype=np.str_), allow_pickle=False)
        return {"cells": cells}

    settings: dict[str, Any] = {
        "selector": plain(contender.selector),
        "size": contender.size,
        "sees": contender.sees,
        "shares": shares,
        "seeds": wanted,
        "pool": features.fingerprint,
        "queries": target.queries.fingerprint(),
        "test": target.test.fingerprint(),
    }
    if contender.sees == "gradients":
        settings["gradients"] = [features.gradients, _array_hash(target.queries.gradients_NxG)]
    return run.do(f"cells/{target.name}/{name}", work, settings=settings)


class _Chooser:
    """Rows by budget and key. What knows neither is made once, and then drawn from as the selectors themselves do: the
    plans of TSDS and Transport, and the weights of DSIR."""

    def __init__(self, contender: Contender, pool: Pool):
        self._pool, self._size = pool, contender.size
        self._selector = build_selector(contender.selector, name="targeted", pool=_no_columns)
        self._plans: dict[int | None, Plan] = {}
        self._log_weights_N: np.ndarray | None = None

    def __call__(self, budget: int, key: jax.Array) -> np.ndarray:
        """int64 [budget], ascending."""
        selector = self._selector
        if isinstance(selector, (TSDS, Transport)):
            of_budget = self._size is not None or getattr(selector, "alpha", None) == "auto"
            planned = budget if of_budget else None
            if planned not in self._plans:
                self._plans[planned] = self._plan(selector, planned)
            return np.sort(sample(self._plans[planned].probabilities(), budget, key=key))
        if isinstance(selector, DSIR) and selector.draw:
            if self._log_weights_N is None:
                everything = self._select(dataclasses.replace(selector, draw=False), len(self._pool), key)
                self._log_weights_N = np.array([reason["log_weight"] for reason in everything.reasons])
            return gumbel_top_k(self._log_weights_N, budget, key)
        return self._select(selector, budget, key).indices

    def _select(self, selector: Any, budget: int, key: jax.Array) -> Selection:
        pool = self._pool
        return select(
            pool.embeddings_NxD,
            pool.queries_MxD,
            selector=selector,
            budget=budget,
            key=key,
            query_groups=pool.query_groups_M,
        )

    def _plan(self, selector: TSDS | Transport, budget: int | None) -> Plan:
        if isinstance(selector, Transport):
            embeddings_NxD, queries_MxD = self._pool.embeddings_NxD, np.asarray(self._pool.queries_MxD)
            return SideBySide(embeddings_NxD, queries_MxD, [selector]).plan(0, np.empty(0, np.int64))[0]
        if self._size is not None and budget is not None:
            selector = dataclasses.replace(selector, effective_size=self._size * budget)
        return selector.plan(self._pool, budget)[1]


def _array_hash(array: np.ndarray | None) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def _no_columns() -> Any:
    raise ValueError("objectives of this table know no columns of the examples: leave such terms out.")


def _measures(pool: Labelled, name: str, rows: np.ndarray, own: np.ndarray, key: jax.Array) -> dict[str, float]:
    """What can be said of a choice before anything is trained on it."""
    counts = np.unique(pool.labels[own], return_counts=True)[1]
    shares = counts / max(counts.sum(), 1)
    return {
        "own": len(own) / len(rows),
        "distinct": len({words_of(pool.texts[row]) for row in rows.tolist()}) / len(rows),
        "near_duplicates": near_duplicate_share(pool.embeddings_NxD, rows, key=key),
        "classes": float(np.exp(-(shares * np.log(shares)).sum())) / len(np.unique(pool.labels[pool.groups == name]))
        if len(own)
        else 0.0,
    }
