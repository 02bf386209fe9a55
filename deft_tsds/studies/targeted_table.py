"""The tables of a study of targeted selection: means, intervals, and differences to random and to every other row.

The intervals of macro-F1 know of test rows and, for selectors that draw, of seeds
(`deft_tsds.metrics.bootstrap`): every row of the table gets the same kind, whether its selector draws or not, and a
difference compares both sides on the same resampled test rows. Means over targets resample each test set by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deft_tsds.metrics.bootstrap import interval, resampled_scores
from deft_tsds.runs import Stage, atomic_write, write_json, write_jsonl
from deft_tsds.studies.probe import macro_f1, outcomes
from deft_tsds.studies.targeted import Labelled, Target

RESAMPLES = 1000
LEVEL = 0.95
MEASURES = {"own": "own data set", "distinct": "distinct", "near_duplicates": "near-duplicates", "classes": "classes"}
REFERENCE, WHOLE = "Random", "Full"
SUBJECT = "TSDS-KDE"
"""The row that a column of the tables compares with every other, where there is one."""


def summarize(
    pool: Labelled, targets: Sequence[Target], stages: Mapping[tuple[str, str], Stage], *, seed: int = 0
) -> dict[str, Any]:
    """Everything that the tables say, as plain JSON.

    Args:
        pool, targets: as `measure` had them.
        stages: what `measure` returned; the row "Random" is what the others are compared with.
        seed: of the resamples.

    Returns:
        `cells`, one for each contender, target, share and seed; and for each share under `shares` the `rows` of its
        table: by contender the `measures` (means over targets and seeds), `macro_f1` by target and, as "mean", over
        all of them, each with low and high, and `differences` by the name of another contender: the same for the
        difference in macro-F1 to it. A contender that could not meet a budget has a `note` there.
    """
    cells = [
        {"contender": name, "target": target, **cell}
        for (name, target), stage in stages.items()
        for cell in stage.results["cells"]
    ]
    names = list(dict.fromkeys(name for name, _ in stages))
    shares = sorted({cell["share"] for cell in cells if cell["contender"] != WHOLE})
    tables = []
    for share in shares:
        scored = {target.name: _resampled(pool, target, stages, names, share, seed) for target in targets}
        rows = [_row(name, share, cells, scored, names) for name in names]
        budget = next(cell["budget"] for cell in cells if cell["share"] == share)
        tables.append({"share": share, "budget": budget, "rows": rows})
    return {
        "candidates": len(pool.texts),
        "level": LEVEL,
        "resamples": RESAMPLES,
        "targets": {
            target.name: {
                "queries": len(target.queries.texts),
                "test": len(target.test.texts),
                "classes": len(scored_classes(pool, target)),
                "in_pool": int((pool.groups == target.name).sum()),
            }
            for target in targets
        },
        "shares": tables,
        "cells": cells,
    }


def scored_classes(pool: Labelled, target: Target) -> list[str]:
    """The labels that are scored: those of the test rows that the pool has too, since no choice can teach another."""
    known = np.unique(pool.labels[pool.groups == target.name])
    return np.intersect1d(known, target.test.labels).tolist()


Draws = tuple[float, np.ndarray]
"""A score, and its resamples [R]."""


def _resampled(
    pool: Labelled,
    target: Target,
    stages: Mapping[tuple[str, str], Stage],
    names: Sequence[str],
    share: float,
    seed: int,
) -> dict[str, Draws]:
    """macro-F1 on one target by contender, resampled together; without the contenders that have no choice there."""
    classes = scored_classes(pool, target)
    metric, arms = macro_f1(classes), {}
    for name in names:
        stage = stages[name, target.name]
        predicted_RxT = np.load(stage.folder / "predictions.npy", allow_pickle=False)
        measured = [cell for cell in stage.results["cells"] if "measures" in cell]
        of_share = [number for number, cell in enumerate(measured) if cell["share"] == share or name == WHOLE]
        if of_share:
            arms[name] = np.stack([outcomes(predicted_RxT[r], target.test.labels, classes) for r in of_share])
    draws = resampled_scores(metric, list(arms.values()), resamples=RESAMPLES, seed=seed)
    values = (float(metric.score(arm.sum(axis=1)).mean()) for arm in arms.values())
    return dict(zip(arms, zip(values, draws, strict=True), strict=True))


def _row(
    name: str,
    share: float,
    cells: Sequence[Mapping[str, Any]],
    scored: Mapping[str, Mapping[str, Draws]],
    names: Sequence[str],
) -> dict[str, Any]:
    mine = [cell for cell in cells if cell["contender"] == name and (cell["share"] == share or name == WHOLE)]
    notes = {cell["note"]: None for cell in mine if "note" in cell}
    row: dict[str, Any] = {"contender": name, "seeds": len({cell["seed"] for cell in mine}), "note": " ".join(notes)}
    if notes:
        return row
    of_target = [[cell for cell in mine if cell["target"] == target] for target in scored]
    row["measures"] = {
        measure: float(np.mean([np.mean([cell["measures"][measure] for cell in some]) for some in of_target]))
        for measure in MEASURES
    }
    found = {target: by_name[name] for target, by_name in scored.items()}
    row["macro_f1"] = {target: _interval(*draws) for target, draws in found.items()} | {"mean": _mean(found.values())}
    row["differences"] = {}
    for other in names:
        if other != name and all(other in by_name for by_name in scored.values()):
            apart = {
                target: (value - scored[target][other][0], draws - scored[target][other][1])
                for target, (value, draws) in found.items()
            }
            by_target = {target: _interval(*draws) for target, draws in apart.items()}
            row["differences"][other] = by_target | {"mean": _mean(apart.values())}
    return row


def _mean(found) -> dict[str, float]:
    values, draws = zip(*found, strict=True)
    return _interval(float(np.mean(values)), np.mean(draws, axis=0))


def _interval(value: float, draws: np.ndarray) -> dict[str, float]:
    return interval(value, draws, LEVEL)._asdict()


def write_tables(summary: Mapping[str, Any], folder: Path) -> str:
    """Write `table.md`, `table.json` and `cells.jsonl`; return the Markdown."""
    text = "\n\n".join(markdown(summary, table) for table in summary["shares"]) + "\n"
    with atomic_write(folder / "table.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    write_json(folder / "table.json", {key: value for key, value in summary.items() if key != "cells"})
    write_jsonl(folder / "cells.jsonl", summary["cells"])
    return text


def markdown(summary: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    """The table of one share. Bold are the highest mean and those that no interval of a difference sets apart from it;
    the whole pool, which is another budget, has no part in that."""
    targets = list(summary["targets"])
    rows = {row["contender"]: row for row in table["rows"]}
    running = [row for name, row in rows.items() if name != WHOLE and not row["note"]]
    best = max(running, key=lambda row: row["macro_f1"]["mean"]["value"])
    compared = {REFERENCE: f"less {REFERENCE}", SUBJECT: f"less {SUBJECT}"}
    columns = {name: title for name, title in compared.items() if name in rows and not rows[name]["note"]}
    titles = ["selector", *MEASURES.values(), *targets, "mean macro-F1", *columns.values()]
    lines = [
        f"**{table['share']:.1%} of the pool: {table['budget']:,} of {summary['candidates']:,} rows**",
        "",
        "| " + " | ".join(titles) + " |",
        "|---|" + "--:|" * (len(titles) - 1),
    ]
    for name, row in rows.items():
        cells = ["–"] * (len(titles) - 1)
        if not row["note"]:
            tied = row is best or (name != WHOLE and row["differences"][best["contender"]]["mean"]["high"] >= 0)
            mean = _plain(row["macro_f1"]["mean"])
            cells = [f"{row['measures'][measure]:.2f}" for measure in MEASURES]
            cells += [f"{row['macro_f1'][target]['value']:.1f}" for target in targets]
            cells.append(f"**{mean}**" if tied else mean)
            cells += ["–" if name == other else _signed(row["differences"][other]["mean"]) for other in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    if SUBJECT in columns and REFERENCE in columns:
        apart = rows[SUBJECT]["differences"][REFERENCE]
        by_target = ", ".join(f"{target} {_signed(apart[target])}" for target in targets)
        lines += ["", f"{SUBJECT} less {REFERENCE}, by target: {by_target}."]
    lines += [f"\n{name}: {row['note']}" for name, row in rows.items() if row["note"]]
    return "\n".join(lines)


def _plain(found: Mapping[str, float]) -> str:
    return f"{found['value']:.1f} [{found['low']:.1f}, {found['high']:.1f}]"


def _signed(found: Mapping[str, float]) -> str:
    return f"{found['value']:+.1f} [{found['low']:+.1f}, {found['high']:+.1f}]"
