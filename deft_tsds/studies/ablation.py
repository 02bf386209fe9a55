"""Ablation: what each part of one way to choose is worth, cell by cell, seed by seed, with intervals.

A cell is a variant of the experiment (`deft_tsds.studies.variants`). Each is measured at one of two depths:

- **select**: what is chosen. In each seed a random part of the target examples is left out of the choice; how near the
  chosen examples come to these is the one measure that nothing in an objective has seen.
- **table**: also what fine-tuning on the choice scores, through the stages of the `Pipeline`, with all target examples.

Each cell in each seed is a stage of its own: a study that was killed goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from deft_tsds import build
from deft_tsds import config as cfg
from deft_tsds.geometry.neighbors import nearest_neighbors
from deft_tsds.metrics import METRICS
from deft_tsds.pipeline import COPY, Pipeline
from deft_tsds.report.composition import near_duplicate_share
from deft_tsds.runs import Stage, console, plain, read_json, stage_key, track, write_json, write_jsonl
from deft_tsds.sampling import sample
from deft_tsds.selection import select
from deft_tsds.studies.side_by_side import SideBySide
from deft_tsds.studies.statistics import compare
from deft_tsds.studies.variants import Shelf, Variant, variants
from deft_tsds.transport.objective import Objective

Until = Literal["select", "table"]

Row = dict[str, Any]
"""One cell in one seed: cell, seed, values, notes, measures, groups, chosen, folder."""

OVERLAP = "overlap"
"""Jaccard index of the chosen examples with those of the reference, drawn by another chance: also of the reference
itself, which says how alike two draws by the same plan are."""

_BEYOND_SELECTION = ("train.", "evaluate.", "scratch.", "model")


def studied_arm(experiment: cfg.Experiment, paths: Sequence[str], arm: str | None = None) -> str:
    """The arm that a study is about: the one asked for, the one that the paths name, or the only transport arm.

    Raises:
        ValueError: there is no such arm, or nothing says which.
    """
    known = ", ".join(experiment.arms)
    named = {path.split(".")[1] for path in paths if path.startswith("arms.") and path.count(".") > 1}
    named |= {arm} if arm else set()
    named = named or {name for name, each in experiment.arms.items() if isinstance(each.selector, cfg.Transport)}
    if len(named) != 1:
        found = f"several arms are meant ({', '.join(sorted(named))})" if named else "there is no transport arm"
        raise ValueError(f"{found}: say --arm NAME, one of {known}.")
    (name,) = named
    if name not in experiment.arms:
        raise ValueError(f"there is no arm {name!r}, but {known}.")
    return name


def cells(
    experiment: cfg.Experiment,
    *,
    sweeps: Mapping[str, Sequence[str]],
    drops: Sequence[str] = (),
    arm: str | None = None,
    until: Until = "select",
) -> tuple[str, list[Variant]]:
    """The studied arm, and the cells of a study: each with that arm alone, the reference first.

    Args:
        experiment: the config.
        sweeps: by path of a field, the values to give it; `objective` begins a path in the studied arm's objective.
        drops: "objective", or the same as a whole path: each of its terms is left out in turn.
        arm: the arm, where neither the paths nor the config say which.
        until: the depth.

    Raises:
        ValueError: nothing to vary, a path that the depth does not reach, and what `studied_arm` and `variants` raise.
        SystemExit: there is no such field (tyro prints the nearest), or a value is none for it.
    """
    if not sweeps and not drops:
        raise ValueError("there is nothing to vary: give --sweep PATH=v1,v2,... or --drop-each objective.")
    name = studied_arm(experiment, [*sweeps, *drops], arm)
    prefix = f"arms.{name}.selector."

    def whole_path(path: str) -> str:
        return prefix + path if path.split(".")[0] == "objective" else path

    sweeps = {whole_path(path): values for path, values in sweeps.items()}
    drops = [whole_path(path) for path in drops]
    has_objective = isinstance(experiment.arms[name].selector, cfg.Transport)
    for path in (*sweeps, *drops):
        if path.startswith(f"{prefix}objective") and not has_objective:
            kind = type(experiment.arms[name].selector).__name__
            raise ValueError(f"{path}: the selector of this arm is {kind}; only a Transport arm has an objective.")
        if path in drops and path != f"{prefix}objective":
            raise ValueError(f"--drop-each {path}: only terms can be left out, by --drop-each objective.")
        if until == "select" and path.startswith(_BEYOND_SELECTION) and path != "train.validation":
            raise ValueError(f"{path} changes nothing before fine-tuning: add --until table.")
    alone = dataclasses.replace(experiment, arms={name: experiment.arms[name]})
    found = variants(
        alone, sweeps=sweeps, drops=drops, short=lambda path: path.removeprefix(prefix).removeprefix("objective.")
    )
    if len(found) == 1:
        raise ValueError("every value is the one that is configured: there is nothing to compare.")
    for variant in found:
        if (encoder := variant.experiment.arms[name].encoder) is not None:
            raise ValueError(
                f"arms.{name} sees encoders.{encoder}, and the study measures by `encoder`: make that the experiment's "
                "encoder, or set the arm's to None."
            )
    return name, found


def ablate(
    found: Sequence[Variant],
    *,
    arm: str,
    seeds: int = 5,
    until: Until = "select",
    held_out: float = 0.2,
    level: float = 0.95,
) -> dict[str, Any]:
    """Measure every cell and compare it with the first, going on from whatever an earlier call has finished.

    Writes `ablation/table.jsonl` (a row for each cell and seed) and `ablation/table.json` in the run folder.

    Args:
        found: the cells, the reference first.
        arm: the arm that is measured.
        seeds: how often, with keys folded out of the experiment's seed; the same in every cell.
        until: the depth.
        held_out: the share of the target examples that each seed leaves out of the choice.
        level: of the intervals.

    Returns:
        The table as plain JSON. `cells` come in the order given, each with its `values` by swept path, the name of the
        term that was `dropped`, its `measures` and `differences` (see `studies.compare`), the share of each group, and
        under `notes` what could not be done.

    Raises:
        ValueError: seeds < 1, a held-out share that leaves one side without queries, a cell whose config is wrong, a
            reference that cannot be measured. Where another cell cannot be, a note in its rows says why.
    """
    if seeds < 1:
        raise ValueError(f"seeds is {seeds}; it must be at least 1.")
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is {held_out}: give a share between 0 and 1.")
    pipelines = [
        Pipeline(cell.experiment, run=Shelf(cell.experiment.workdir, cell.experiment.seed))
        for cell in track(found, "checking the cells")
    ]
    first = pipelines[0]
    queries = first.data.results["queries"]
    left_out = len(_left_out(queries, held_out, key=jax.random.key(0)))
    rows: list[list[Row]] = [
        [
            {"cell": cell.name, "seed": seed, "values": plain(cell.values), "notes": [], "measures": {}}
            for seed in range(seeds)
        ]
        for cell in found
    ]
    _choose(rows, pipelines, arm, held_out)
    copied = _score(rows, pipelines, arm) if until == "table" else {}

    measures = {measure for of_cell in rows for row in of_cell for measure in row["measures"]}
    compared = compare(
        [cell.name for cell in found],
        [[row["measures"] for row in of_cell] for of_cell in rows],
        level=level,
        resplit={measure: left_out / max(queries - left_out, 1) for measure in measures - set(copied)},
    )
    for cell, variant, of_cell in zip(compared, found, rows, strict=True):
        drawn = [row["groups"] for row in of_cell if row.get("groups")]
        names = dict.fromkeys(group for shares in drawn for group in shares)
        cell |= {
            "values": plain(variant.values),
            "dropped": variant.dropped,
            "notes": list(dict.fromkeys(note for row in of_cell for note in row["notes"])),
            "groups": {group: float(np.mean([shares.get(group, 0.0) for shares in drawn])) for group in names},
        }
    pool = first.examples("pool")
    table = {
        "arm": arm,
        "paths": list(found[0].values),
        "seeds": seeds,
        "until": until,
        "level": level,
        "queries": queries,
        "left_out": left_out,
        "budget": build.budget(found[0].experiment.arms[arm], first.clean.results["pool"], name=arm),
        "notice": first.notice,
        "pool": {"size": len(pool), "groups": _shares(pool.groups)},
        "copy": copied,
        "cells": compared,
    }
    folder = first.run.folder / "ablation"
    write_jsonl(folder / "table.jsonl", [row for of_cell in rows for row in of_cell])
    write_json(folder / "table.json", table)
    return table


def _choose(rows: Sequence[Sequence[Row]], pipelines: Sequence[Pipeline], arm: str, held_out: float) -> None:
    """Fill in what each cell chooses in each seed, and how far it agrees with the reference."""
    drawn: dict[int, set[str]] = {}  # by the reference, by seed
    for members in _equal_but_for_weights(pipelines, arm):
        batch = _Batch(arm, [pipelines[place] for place in members], pipelines[0].experiment.arms[arm].selector)
        steps = [(seed, number) for seed in range(len(rows[0])) for number in range(len(members))]
        for seed, number in track(steps, "choosing"):
            place = members[number]
            pipeline, row = pipelines[place], rows[place][seed]
            with _noted(row, is_reference=place == 0):
                stage = batch.choose(number, seed, held_out)
                row |= stage.results
                row["folder"] = str(stage.folder.relative_to(pipeline.run.folder))
                if place == 0 and not row["chosen"]:
                    raise ValueError(f"The reference cannot be drawn. {row['notes'][-1]}")
                if place == 0:
                    drawn[seed] = _ids(batch.choose(number, seed, held_out, redraw=True))
                if row["chosen"]:
                    both, either = drawn[seed] & _ids(stage), drawn[seed] | _ids(stage)
                    row["measures"] = {OVERLAP: len(both) / len(either), **row["measures"]}


def _ids(stage: Stage) -> set[str]:
    return set(read_json(stage.folder / "chosen.json"))


def _equal_but_for_weights(pipelines: Sequence[Pipeline], arm: str) -> list[list[int]]:
    """The places of the cells whose transport problems are the same but for weights; other cells are by themselves."""
    groups: dict[str, list[int]] = {}
    for place, pipeline in enumerate(pipelines):
        section, mark = pipeline.experiment.arms[arm].selector, str(place)
        if isinstance(section, cfg.Transport):
            bare = {name: dataclasses.replace(term, weight=0.0) for name, term in section.objective.items()}
            mark = json.dumps([pipeline.embed.fingerprint, plain(dataclasses.replace(section, objective=bare))])
        groups.setdefault(mark, []).append(place)
    return list(groups.values())


class _Batch:
    """Cells that choose from the same problem."""

    def __init__(self, arm: str, pipelines: Sequence[Pipeline], reference: Any):
        """Take the cells, and the reference's selector, the terms of which are looked at in each of them."""
        self._arm, self._pipelines = arm, pipelines
        first, self._plans = pipelines[0], None
        self._observed: dict[str, Any] = {}
        if isinstance(reference, cfg.Transport):
            terms = {name: {"term": each.term, "options": each.options} for name, each in reference.objective.items()}
            self._observed = {"terms": terms, "files": build.selector_identity(reference)}
            selectors: list[Any] = [pipeline.selectors[arm] for pipeline in pipelines]
            self._plans = SideBySide(first.embeddings("pool"), first.embeddings("queries"), selectors)
            self._objective: Objective = build.objective(
                reference.objective, where=f"arms.{arm}.selector.objective", pool=lambda: first.examples("pool")
            )

    def choose(self, number: int, seed: int, held_out: float, *, redraw: bool = False) -> Stage:
        """Choose in one cell and seed without some of the queries, and measure the choice: a stage.

        measure/<arm>/seed-<r>/.../chosen.json holds the ids of the chosen. With `redraw`, only chance is another.
        """
        pipeline = self._pipelines[number]
        section, sizes = pipeline.experiment.arms[self._arm], pipeline.data.results
        budget = build.budget(section, pipeline.clean.results["pool"], name=self._arm)
        # These keys know of no cell: all cells leave out the same queries, and draw by the same chances.
        key = stage_key(pipeline.experiment.seed, "ablation", str(seed))
        left_out = _left_out(sizes["queries"], held_out, key=jax.random.fold_in(key, 0))

        def work(folder: Path) -> Row:
            pool, embeddings_NxD = pipeline.examples("pool"), pipeline.embeddings("pool")
            queries_MxD = pipeline.embeddings("queries") if sizes["queries"] else None
            draw_key = jax.random.fold_in(key, 2 if redraw else 1)
            notes: list[str] = []
            if self._plans is not None:
                plan, info = self._plans.plan(number, left_out)
                p_N = plan.probabilities()
                measures = {"effective_size": 1 / float(np.sum(p_N**2))}
                terms = self._plans.values(plan, left_out, self._objective)
                measures |= {f"term.{name}": value for name, value in terms.items()}
                notes += [] if info["converged"] else [info["message"]]
                reached, indices = np.count_nonzero(p_N), np.empty(0, np.int64)
                if reached >= budget:
                    indices = sample(p_N, budget, key=draw_key)
                else:
                    notes.append(f"No draw: {reached} candidates have a probability, and the budget is {budget}.")
            else:
                query_groups = pipeline.query_groups
                selection = select(
                    embeddings_NxD,
                    None if queries_MxD is None else np.delete(queries_MxD, left_out, axis=0),
                    selector=pipeline.selectors[self._arm],
                    budget=budget,
                    key=draw_key,
                    groups=pool.groups,
                    query_groups=None if query_groups is None else np.delete(query_groups, left_out),
                )
                indices, found = selection.indices, selection.info.get("plan", {})
                measures = {"effective_size": found["effective_size"]} if "effective_size" in found else {}
            if len(indices):
                held_out_HxD = None if queries_MxD is None else np.asarray(queries_MxD[left_out])
                chosen_BxD = np.asarray(embeddings_NxD[np.sort(indices)])
                measures = _measures(chosen_BxD, held_out_HxD, key=jax.random.fold_in(key, 3)) | measures
            write_json(folder / "chosen.json", [pool.ids[row] for row in np.sort(indices)])
            shares = _shares([pool.groups[row] for row in indices])
            return {"measures": measures, "groups": shares, "chosen": len(indices), "notes": notes}

        settings = {
            "selector": section.selector,
            "files": build.selector_identity(section.selector),
            "budget": budget,
            "replicate": seed,
            "redraw": redraw,
            "left_out": left_out.tolist(),
            "observed": self._observed,
        }
        name = f"measure/{self._arm}/seed-{seed}"
        return pipeline.run.do(name, work, settings=settings, upstream=[pipeline.embed])


def _measures(chosen_BxD: np.ndarray, held_out_HxD: np.ndarray | None, *, key: jax.Array) -> dict[str, float]:
    """What can be said of chosen embeddings by themselves, and against target examples that had no say."""
    found = {}
    if held_out_HxD is not None:
        nearest = nearest_neighbors(held_out_HxD, chosen_BxD, 1)
        found["held_out_distance"] = float(np.mean(nearest.distances_MxK, dtype=np.float64))
    count = len(chosen_BxD)
    unit_BxD = chosen_BxD / np.maximum(np.linalg.norm(chosen_BxD, axis=1, keepdims=True), 1e-12)
    if count > 1:
        # The squared length of the sum is the sum of all cosines, `count` of which are those of rows with themselves.
        cosines = float(np.sum(np.sum(unit_BxD, axis=0, dtype=np.float64) ** 2))
        found["diversity"] = 1 - (cosines - count) / (count * (count - 1))
    found["near_duplicates"] = near_duplicate_share(unit_BxD, np.arange(count), key=key)
    return found


def _shares(groups: Sequence[str]) -> dict[str, float]:
    """The share of each group, the largest first."""
    return {name or "(no group)": count / len(groups) for name, count in Counter(groups).most_common()}


def _left_out(queries: int, share: float, *, key: jax.Array) -> np.ndarray:
    """The rows of a random share of the queries, at least one, int64 ascending; none where there are no queries."""
    if not queries:
        return np.empty(0, np.int64)
    count = max(1, round(share * queries))
    if count >= queries:
        raise ValueError(f"{queries} target examples are too few to leave {count} out: give more, or lower held_out.")
    return np.sort(np.asarray(jax.random.permutation(key, queries))[:count]).astype(np.int64)


def _score(rows: Sequence[Sequence[Row]], pipelines: Sequence[Pipeline], arm: str) -> dict[str, float]:
    """Fill in what a model fine-tuned on each choice scores: the primary metric on each test set, and its mean.

    Returns:
        The same for copying the input.
    """
    for place, pipeline in enumerate(pipelines):
        for seed, row in enumerate(rows[place]):
            with _noted(row, is_reference=place == 0):
                row["measures"] = {**row["measures"], **_scores(pipeline, pipeline.evaluate(arm, seed))}
    return _scores(pipelines[0], pipelines[0].evaluate(COPY, 0))


def _scores(pipeline: Pipeline, evaluated: Stage) -> dict[str, float]:
    metric, found = pipeline.experiment.evaluate.metrics[0], {}
    for test in pipeline.data.results["tests"]:
        statistics_NxS = np.load(evaluated.folder / f"statistics_{test}.{metric}.npy", allow_pickle=False)
        found[f"{metric}.{test}"] = float(METRICS[metric].score(statistics_NxS.sum(0, keepdims=True))[0])
    return {f"{metric}.all": float(np.mean(list(found.values()))), **found}


@contextlib.contextmanager
def _noted(row: Row, *, is_reference: bool) -> Iterator[None]:
    """Keep what is wrong with a cell in its row, and go on with the others; without the reference there is no study."""
    try:
        yield
    except ValueError as error:
        if is_reference:
            raise
        row["notes"] = [*row["notes"], str(error)]
    if row["notes"]:
        console.print(f"{row['cell']}, seed {row['seed']}: {row['notes'][-1]}", soft_wrap=True, markup=False)
