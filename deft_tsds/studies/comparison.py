"""Contenders under conditions: what each way to choose is worth as one thing about the pool or the queries changes.

A row of the table is a contender (`studies.targeted`) under a condition (`studies.conditions`), measured by its choice
and by the probe that learns from it. All rows are scored on the same resampled test rows, so that a difference between
any two of them is paired. The same budgets hold under all conditions. Scores have the intervals of
`studies.targeted_table`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deft_tsds.runs import Run, stage_key
from deft_tsds.selectors import Full
from deft_tsds.studies.chooser import Contender
from deft_tsds.studies.comparison_table import OF_COPIES, TITLES, front_figure, markdown, score_figure
from deft_tsds.studies.conditions import Condition, changed
from deft_tsds.studies.costs import measure_costs, on_the_front
from deft_tsds.studies.gradients import GradientsOf
from deft_tsds.studies.labelled_text import LabelledText, read, with_gradients
from deft_tsds.studies.statistics import estimate, holm
from deft_tsds.studies.study import Study
from deft_tsds.studies.targeted import Labelled, Target, measure
from deft_tsds.studies.targeted_table import LEVEL, summarize


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison(Study):
    """Which contenders, under which conditions, on what text."""

    contenders: dict[str, Contender]
    """Ways to choose, by name. `Full` is measured under the first condition alone."""
    conditions: dict[str, Condition] = dataclasses.field(default_factory=lambda: {"as it is": Condition()})
    """Conditions by name; the others are compared with the first."""
    against: str = "Random"
    """The contender that the others are compared with, under each condition."""
    shares: tuple[float, ...] = (0.01,)
    """Budgets, as shares of the candidates that were read."""
    seeds: int = 5
    """How often what is drawn is measured."""
    data: LabelledText = dataclasses.field(default_factory=LabelledText)
    """The texts."""
    gradients: GradientsOf | None = None
    """Gradients of which T5, where a contender sees them."""
    timed: int = 0
    """How often each contender is timed, in a process of its own (`studies.costs`); 0 for not at all."""

    def fill(self) -> dict[str, Any]:
        """Measure every contender under every condition, going on from what an earlier call has finished.

        Returns:
            Plain JSON: the sizes, and for each share under `shares` its `rows`, each with `condition`, `contender`,
            `seeds`, `note` (why it has no choice, or ""), `measures` (of `TITLES`, means over targets with Student's
            interval over seeds), `macro_f1` by target and as "mean", and the differences of the mean `to_against` under
            the same condition and `to_first`, of the same contender under the first condition, each with `p_holm`;
            with `timed`, the `costs` (see `measure_costs`) and whether they lie `on_front`.

        Raises:
            ValueError: no contender of the name `against`, none or no condition, gradients that nobody has named, and
                what `read`, `changed` and `measure` raise.
        """
        if self.against not in self.contenders or not self.conditions:
            raise ValueError(f"against is {self.against!r}: name one of {', '.join(self.contenders)}, and a condition.")
        run = Run(self.workdir, self.seed)
        texts = read(self.data, run)
        if any(contender.sees == "gradients" for contender in self.contenders.values()):
            if self.gradients is None:
                raise ValueError("a contender sees gradients: say of which T5 by `gradients`.")
            texts = with_gradients(texts, self.gradients, run)
        pool, targets = texts.pool, texts.targets
        stages, costs = {}, {}
        for place, (name, condition) in enumerate(self.conditions.items()):
            here = changed(pool, condition, key=stage_key(self.seed, "conditions"), encode=texts.encode)
            contenders = {
                label: contender
                for label, contender in self.contenders.items()
                if place == 0 or not isinstance(contender.selector, Full)
            }
            own_run = Run(self.workdir / "conditions" / name, self.seed)
            found = measure(
                here,
                targets,
                own_run,
                contenders=contenders,
                shares=self.shares,
                seeds=self.seeds,
                shares_of=len(pool.texts),
                queries=condition.queries,
            )
            stages |= {(self._row_name(label, name), target): stage for (label, target), stage in found.items()}
            if self.timed:
                budget = max(1, round(self.shares[0] * len(pool.texts)))
                choosing = {label: each for label, each in contenders.items() if not isinstance(each.selector, Full)}
                timed = measure_costs(here, targets[0], choosing, own_run, budget=budget, rounds=self.timed)
                costs |= {(label, name): cost for label, cost in timed.items()}
        return self._tabulate(pool, targets, stages, costs)

    def _row_name(self, contender: str, condition: str) -> str:
        """A name for the two; under a single condition that of the contender, so that Full is known for what it is."""
        whole = isinstance(self.contenders[contender].selector, Full)
        return "Full" if whole else contender if len(self.conditions) == 1 else f"{contender} ({condition})"

    def _tabulate(self, pool: Labelled, targets: Sequence[Target], stages: Mapping, costs: Mapping) -> dict[str, Any]:
        summary = summarize(pool, targets, stages)
        tables = []
        for table in summary["shares"]:
            by_name = {row["contender"]: row for row in table["rows"]}
            cells = [
                cell for cell in summary["cells"] if cell["share"] == table["share"] or cell["contender"] == "Full"
            ]
            rows = []
            for condition in self.conditions:
                for contender in self.contenders:
                    name = self._row_name(contender, condition)
                    if name not in by_name or any(row["name"] == name for row in rows):
                        continue
                    row = self._row(by_name, name, contender, condition)
                    mine = [] if row["note"] else [cell for cell in cells if cell["contender"] == name]
                    rows.append(
                        {"condition": condition, "contender": contender, "name": name}
                        | row
                        | {"measures": _measures(mine)}
                    )
            for kind in ("to_against", "to_first"):
                _correct([row[kind] for row in rows if row[kind] is not None])
            if costs and table["share"] == self.shares[0]:
                _add_costs(rows, costs)
            tables.append({"share": table["share"], "budget": table["budget"], "rows": rows})
        return {
            **{name: summary[name] for name in ("candidates", "level", "resamples", "targets")},
            "against": self.against,
            "first": next(iter(self.conditions)),
            "shares": tables,
        }

    def _row(self, by_name: Mapping[str, Any], name: str, contender: str, condition: str) -> dict[str, Any]:
        row = by_name[name]
        found: dict[str, Any] = {"to_against": None, "to_first": None, "macro_f1": None}
        others = {"to_against": self._row_name(self.against, condition)}
        others |= {"to_first": self._row_name(contender, next(iter(self.conditions)))}
        if not row["note"]:
            found["macro_f1"] = row["macro_f1"]
            for kind, other in others.items():
                if other != name and other in row["differences"]:
                    found[kind] = dict(row["differences"][other]["mean"])
        return {"seeds": row["seeds"], "note": row["note"], **found}

    def markdown(self, found: Mapping[str, Any]) -> str:
        planted = any(condition.copies is not None for condition in self.conditions.values())
        columns = [name for name in TITLES if planted or name not in OF_COPIES]
        return "\n\n".join(markdown(found, table, columns) for table in found["shares"])

    def figures(self, found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        figures = {f"{table['share']:.1%} of the pool": score_figure(table) for table in found["shares"]}
        if self.timed:
            figures["Quality against cost"] = front_figure(found["shares"][0])
        return figures


def _measures(cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Means over targets with intervals over seeds."""
    by_seed: dict[int, list[Mapping[str, float]]] = {}
    for cell in cells:
        by_seed.setdefault(cell["seed"], []).append({**cell["measures"], **cell.get("plan", {})})
    found = {}
    for name in TITLES:
        values = [
            float(np.mean([each[name] for each in of_seed])) for of_seed in by_seed.values() if name in of_seed[0]
        ]
        if values:
            found[name] = estimate(values, level=LEVEL)._asdict()
    return found


def _correct(differences: Sequence[dict[str, Any]]) -> None:
    """Add to each its p-value, of a normal variable whose interval this is, and the same after Holm's correction."""
    from scipy import stats

    p_values = []
    for each in differences:
        error = (each["high"] - each["low"]) / (2 * stats.norm.ppf((1 + LEVEL) / 2))
        p_values.append(float(2 * stats.norm.sf(abs(each["value"]) / error)) if error else float(each["value"] == 0))
    for each, p, p_holm in zip(differences, p_values, holm(p_values), strict=True):
        each |= {"p": p, "p_holm": p_holm}


def _add_costs(rows: Sequence[dict[str, Any]], costs: Mapping[tuple[str, str], Mapping[str, Any]]) -> None:
    for condition in dict.fromkeys(row["condition"] for row in rows):
        here = [row for row in rows if row["condition"] == condition and not row["note"]]
        here = [row for row in here if (row["contender"], condition) in costs]
        for row in here:
            row["costs"] = costs[row["contender"], condition]
        points = [(row["costs"]["seconds"]["value"], row["macro_f1"]["mean"]["value"]) for row in here]
        for row, on_front in zip(here, on_the_front(points), strict=True):
            row["on_front"] = on_front
