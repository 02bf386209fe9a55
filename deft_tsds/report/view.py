"""What a report shows: everything that a run folder holds, read once, checked, and frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deft_tsds.arrays import normalize_rows
from deft_tsds.data.examples import Examples
from deft_tsds.embed.store import open_store
from deft_tsds.runs import read_json, read_jsonl
from deft_tsds.selection import Selection


@dataclass(frozen=True)
class Absent:
    """An optional artefact that the run folder lacks."""

    path: str
    """Where it would be, relative to the run folder."""
    stage: str
    """The stage that writes it."""
    consequence: str
    """What the page cannot show without it."""


@dataclass(frozen=True)
class ArmView:
    """One arm: how it chose, what it chose for each seed, how it trained, what it wrote."""

    name: str
    selector: str
    options: Mapping[str, Any]
    budget: int
    share: float
    steps: int | None
    selections: Mapping[int, Selection]
    """By seed, the first seed first."""
    metrics: Mapping[int, list[dict[str, Any]]]
    """Rows of metrics.jsonl by seed; a seed that has not been trained is left out."""
    predictions: Mapping[str, Mapping[str, str]]
    """Output by example id, by test set; first seed."""

    @property
    def label(self) -> str:
        """The selector's own spelling where the arm is named after it ("deft" is "DEFT"), else the arm's name."""
        return self.selector if self.selector.lower() == self.name.lower() else self.name

    @property
    def first(self) -> Selection:
        """The selection of the first seed."""
        return next(iter(self.selections.values()))

    def is_whole(self, pool_size: int) -> bool:
        """Whether this arm takes every example of the pool."""
        return all(np.unique(selection.indices).size == pool_size for selection in self.selections.values())


@dataclass(frozen=True)
class RunView:
    """A run folder in memory."""

    folder: Path
    experiment: Mapping[str, Any]
    pool: Examples
    queries: Examples | None
    tests: Mapping[str, Examples]
    embeddings_NxD: np.ndarray | None
    query_embeddings_MxD: np.ndarray | None
    arms: tuple[ArmView, ...]
    table: Mapping[str, Any]
    hygiene: Mapping[str, Any] | None
    """What was dropped from the pool before any selection; None where nothing was asked for."""
    manifests: tuple[dict[str, Any], ...]
    absent: tuple[Absent, ...]


def read_run(path: str | Path) -> RunView:
    """Read the artefacts of a run folder.

    Mandatory are `experiment.json`, `data/pool.jsonl` (or, with hygiene, `hygiene/pool.jsonl` and its report),
    `table/table.json` and the selection of every arm and seed.
    Anything else that is missing is listed in `RunView.absent`.

    Args:
      path: the run folder.

    Raises:
      ValueError: a mandatory file is missing (the message names it and the stage that writes it), or two artefacts
        disagree about the pool.
    """
    folder = Path(path)
    experiment = read_json(_mandatory(folder, "experiment.json", "run"))
    stage = "data" if experiment["config"].get("hygiene") is None else "hygiene"
    pool = Examples.load(_mandatory(folder, f"{stage}/pool.jsonl", stage))
    hygiene = read_json(_mandatory(folder, "hygiene/report.json", stage)) if stage == "hygiene" else None
    table = read_json(_mandatory(folder, "table/table.json", "evaluate"))
    if not len(pool):
        raise ValueError(f"{folder / stage / 'pool.jsonl'} holds no example. Run the stage `{stage}` again.")

    absent: list[Absent] = []

    def present(relative: str, stage: str, consequence: str) -> Path | None:
        target = folder / relative
        if target.exists():
            return target
        absent.append(Absent(relative, stage, consequence))
        return None

    queries_file = present("data/queries.jsonl", "data", "the target examples are not on the map")
    tests = {}
    for test in table["tests"]:
        relative = f"data/tests/{test['name']}.jsonl"
        if file := present(relative, "data", f"outputs on {test['name']} are not shown"):
            tests[test["name"]] = Examples.load(file)

    embeddings_NxD = None
    if present("embed/pool/store.json", "embed", "no map, no typicality, no near-duplicates measured"):
        embeddings_NxD = _unit_rows(folder / "embed/pool")
        if len(embeddings_NxD) != len(pool):
            raise ValueError(
                f"{folder / 'embed/pool'} holds {len(embeddings_NxD)} rows and {stage}/pool.jsonl {len(pool)}. "
                "They are of different pools: run the stage `embed` again."
            )
    query_embeddings_MxD = None
    if queries_file and present("embed/queries/store.json", "embed", "the target examples are not on the map"):
        query_embeddings_MxD = _unit_rows(folder / "embed/queries")

    trained = "finetune/{}/side-by-side" if experiment["config"]["train"].get("side_by_side") else "finetune/{}"
    arms = []
    for name, arm in experiment["arms"].items():
        selections, metrics = {}, {}
        for seed in experiment["seeds"]:
            relative = f"select/{name}/seed-{seed}/selection"
            selections[seed] = Selection.load(_mandatory(folder, relative, "select"))
            _check_indices(folder / relative, np.asarray(selections[seed].indices), len(pool))
            log = f"{trained.format(name)}/seed-{seed}/metrics.jsonl"
            if file := present(log, "finetune", f"no loss curve of {name}, seed {seed}"):
                metrics[seed] = read_jsonl(file)
        predictions = {}
        for test in table["tests"]:
            relative = f"evaluate/{name}/seed-{experiment['seeds'][0]}/predictions_{test['name']}.jsonl"
            if file := present(relative, "evaluate", f"outputs of {name} on {test['name']} are not shown"):
                predictions[test["name"]] = {str(row["id"]): str(row["prediction"]) for row in read_jsonl(file)}
        arms.append(
            ArmView(
                name=name,
                selector=arm["selector"],
                options=arm.get("options", {}) | _decided(selections),
                budget=arm["budget"],
                share=arm["share"],
                steps=experiment.get("train_steps", {}).get(name),
                selections=selections,
                metrics=metrics,
                predictions=predictions,
            )
        )

    return RunView(
        folder=folder,
        experiment=experiment,
        pool=pool,
        queries=Examples.load(queries_file) if queries_file else None,
        tests=tests,
        embeddings_NxD=embeddings_NxD,
        query_embeddings_MxD=query_embeddings_MxD,
        arms=tuple(arms),
        table=table,
        hygiene=hygiene,
        manifests=_read_manifests(folder),
        absent=tuple(absent),
    )


def _decided(selections: Mapping[int, Selection]) -> dict[str, str]:
    """By knob, why it was set as it was, where the data decided (the first seed's)."""
    decisions = next(iter(selections.values())).info.get("auto", {})
    return {knob: f"auto: {decision['why']}" for knob, decision in decisions.items()}


def _mandatory(folder: Path, relative: str, stage: str) -> Path:
    path = folder / relative
    if not path.exists():
        raise ValueError(f"{path} is missing, and a report needs it. Run the stage `{stage}` of this run first.")
    return path


def _unit_rows(path: Path) -> np.ndarray:
    """The vectors of a store, of unit length: everything that the report measures on them is a cosine."""
    store = open_store(path)
    return store.array() if store.normalized else normalize_rows(store.array())


def _check_indices(path: Path, indices: np.ndarray, pool_size: int) -> None:
    if not indices.size:
        raise ValueError(f"{path} chooses no example. Run the stage `select` again.")
    wrong = np.flatnonzero((indices < 0) | (indices >= pool_size))
    if wrong.size:
        raise ValueError(
            f"{path}: entry {wrong[0]} is example {indices[wrong[0]]}, and the pool has {pool_size}. "
            "The selection was made for another pool: run the stage `select` again."
        )


def _read_manifests(folder: Path) -> tuple[dict[str, Any], ...]:
    """The manifests of all finished stages, in the order in which they finished."""
    manifests = []
    for path in sorted(folder.rglob("manifest.json")):
        manifests.append({"folder": path.parent.relative_to(folder).as_posix(), **read_json(path)})
    return tuple(sorted(manifests, key=lambda manifest: str(manifest.get("finished", ""))))
