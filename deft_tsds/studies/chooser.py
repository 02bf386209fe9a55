"""A way to choose as a study sees it, and the rows that it chooses, budget by budget and key by key."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import jax
import numpy as np

from deft_tsds.build import selector as build_selector
from deft_tsds.sampling import sample
from deft_tsds.selection import Pool, Selection, select
from deft_tsds.selectors import DSIR, TSDS, Herding, Transport, table
from deft_tsds.selectors.dsir import gumbel_top_k
from deft_tsds.selectors.nearest import nearest_query
from deft_tsds.studies.side_by_side import SideBySide
from deft_tsds.transport.problem import Plan


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


class Chooser:
    """Rows by budget and key. What knows neither is made once, and then drawn from as the selectors themselves do: the
    plans of TSDS and Transport, the weights of DSIR, and the order in which Herding takes the rows.

    Args:
        contender: the way to choose.
        pool: what it sees.
        most: the largest budget that will be asked for; by default nobody knows.
    """

    def __init__(self, contender: Contender, pool: Pool, *, most: int | None = None):
        self._pool, self._size, self._most = pool, contender.size, most
        self._selector = build_selector(contender.selector, name="targeted", pool=_no_columns)
        self._plans: dict[int | None, Plan] = {}
        self._log_weights_N: np.ndarray | None = None
        self._order = np.empty(0, np.int64)

    def __call__(self, budget: int, key: jax.Array) -> np.ndarray:
        """int64 [budget], ascending."""
        selector = self._selector
        if isinstance(selector, (TSDS, Transport)):
            fill = self._nearest_first if getattr(selector, "fill", None) == "nearest" else None
            return np.sort(sample(self._plan_for(selector, budget).probabilities(), budget, key=key, fill=fill))
        if isinstance(selector, DSIR) and selector.draw:
            if self._log_weights_N is None:
                everything = self._select(dataclasses.replace(selector, draw=False), len(self._pool), key)
                self._log_weights_N = np.array([reason["log_weight"] for reason in everything.reasons])
            return gumbel_top_k(self._log_weights_N, budget, key)
        if isinstance(selector, Herding) and selector.toward == "queries":
            if len(self._order) < budget:
                longest = self._select(selector, max(budget, self._most or 0), key)
                steps = [reason["step"] for reason in longest.reasons]
                self._order = longest.indices[np.argsort(steps)]
            return np.sort(self._order[:budget])
        return self._select(selector, budget, key).indices

    def select(self, budget: int, key: jax.Array) -> Selection:
        """What the selector itself answers, with its reasons, and with nothing kept from an earlier call."""
        selector: Any = self._selector
        if self._size is not None:
            selector = dataclasses.replace(selector, effective_size=self._size * budget)
        return self._select(selector, budget, key)

    def plan_facts(self, budget: int) -> dict[str, float]:
        """Of the plan that a budget is drawn from, where there is one: `neighborhood`, the mean number of candidates
        that a query's mass goes to, and `effective_size`."""
        if not isinstance(self._selector, (TSDS, Transport)):
            return {}
        plan = self._plan_for(self._selector, budget)
        reached_M = np.count_nonzero(np.asarray(plan.mass_MxK) > 0, axis=1)
        return {"neighborhood": float(reached_M.mean()), "effective_size": 1 / float(np.sum(plan.probabilities() ** 2))}

    def _plan_for(self, selector: TSDS | Transport, budget: int) -> Plan:
        of_budget = self._size is not None or getattr(selector, "alpha", None) == "auto"
        planned = budget if of_budget else None
        if planned not in self._plans:
            self._plans[planned] = self._plan(selector, planned)
        return self._plans[planned]

    @functools.cached_property
    def _nearest_first(self) -> np.ndarray:
        """All rows, by their distance to the nearest query: what `TSDS(fill="nearest")` goes on with."""
        return np.argsort(nearest_query(self._pool, "euclidean").distances_MxK[:, 0], kind="stable")

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


def _no_columns() -> Any:
    raise ValueError("objectives of this table know no columns of the examples: leave such terms out.")
