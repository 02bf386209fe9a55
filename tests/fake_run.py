"""A run folder that is complete and made up: every artefact that a report reads, with numbers drawn from a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deft_tsds.data.examples import Examples
from deft_tsds.embed.store import write_store
from deft_tsds.runs import write_json, write_jsonl
from deft_tsds.selection import Selection

METRICS = ("sari", "rouge_l", "exact_match")
GROUPS = ("grammar", "simplification", "clarity", "coherence", "neutralisation", "formality")
SHARES = {"full": 1.0, "random": 0.325, "deft": 0.325, "tsds": 0.1}
SELECTORS = {"full": "Full", "random": "Random", "deft": "DEFT", "tsds": "TSDS"}


@dataclass(frozen=True)
class GivenVectors:
    """An encoder that looks its vectors up."""

    vectors: Mapping[str, np.ndarray]
    name: str = "given"

    def settings(self) -> dict[str, Any]:
        return {"given": len(self.vectors)}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        return np.stack([self.vectors[text] for text in texts]).astype(np.float32)


def fake_examples(size: int, *, seed: int = 0, prefix: str = "pool") -> Examples:
    """Editing pairs in six groups, about a fifth of them flagged."""
    rng = np.random.default_rng(seed)
    groups = tuple(GROUPS[number] for number in rng.integers(len(GROUPS), size=size))
    things = ("the harbour", "an old bridge", "her second letter", "the committee", "a narrow road", "the orchestra")
    inputs = tuple(
        f"{things[first].capitalize()} have been {times} time seen near {things[second]}"
        for first, second, times in rng.integers((6, 6, 1000), size=(size, 3))
    )
    targets = tuple(text.replace("have been", "has been").replace("time", "times") + "." for text in inputs)
    return Examples(
        ids=tuple(f"{prefix}-{row:05d}" for row in range(size)),
        inputs=inputs,
        prompts=tuple(f"Improve this ({prefix}-{row}): {text}" for row, text in enumerate(inputs)),
        targets=targets,
        references=tuple((target, target.replace(" near ", " close to ")) for target in targets),
        groups=groups,
        flags={
            "near_duplicate": rng.random(size) < 0.12,
            "wrong_target": rng.random(size) < 0.08,
            "off_task": rng.random(size) < 0.05,
        },
    )


def fake_embeddings(examples: Examples, *, seed: int = 0, dimension: int = 16) -> np.ndarray:
    """Unit vectors around a centre a group; a flagged near-duplicate lies beside the row before it."""
    rng = np.random.default_rng(seed)
    centres = {group: rng.standard_normal(dimension) for group in sorted(set(examples.groups))}
    points = np.stack([centres[group] for group in examples.groups])
    points = points + 0.9 * rng.standard_normal(points.shape)
    for row in np.flatnonzero(examples.flags.get("near_duplicate", np.zeros(len(examples), dtype=bool))):
        points[row] = points[row - 1] + 0.02 * rng.standard_normal(dimension)
    return (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)


def fake_table(tests: Mapping[str, int], arms: Sequence[str], *, seeds: int, seed: int = 0) -> dict[str, Any]:
    """Scores in which DEFT beats random, TSDS does not, and on the last test set no arm beats copying."""
    rng = np.random.default_rng(seed)
    cells, differences = [], []
    gain = {"full": 1.6, "random": 0.0, "deft": 1.1, "tsds": -0.3}
    for metric in METRICS:
        scale = 0.01 if metric == "exact_match" else 1.0
        for number, test in enumerate([*tests, "all"]):
            last = number == len(tests) - 1
            copying = (62.0 if last else 21.0) * scale
            cells.append(_row("copy", test, metric, copying, 0.6 * scale, [copying]))
            for arm in arms:
                runs = [scale * (60 + gain[arm] + 0.4 * rng.standard_normal()) for _ in range(seeds)]
                cells.append(_row(arm, test, metric, float(np.mean(runs)), 1.4 * scale, runs))
                if arm != "random":
                    half = scale * (0.6 if arm == "deft" else 0.9)
                    row = _row(arm, test, metric, scale * gain[arm], half, [])
                    differences.append({**row, "against": "random"})
    return {
        "primary": "sari",
        "metrics": list(METRICS),
        "conventions": {"sari": "sentence-averaged, 0 to 100", "rouge_l": "F-measure, stemmed, 0 to 100"},
        "tests": [{"name": name, "rows": rows} for name, rows in tests.items()],
        "arms": ["copy", *arms],
        "level": 0.95,
        "cells": cells,
        "differences": differences,
    }


def write_fake_run(
    folder: Path,
    *,
    pool: Examples | None = None,
    queries: Examples | None = None,
    tests: Mapping[str, Examples] | None = None,
    embeddings_NxD: np.ndarray | None = None,
    seeds: Sequence[int] = (0, 1),
    notice: str | None = "The text of this run is synthetic: a seeded generator wrote every pair.",
    seed: int = 0,
) -> Path:
    """Write a complete run folder and return it."""
    rng = np.random.default_rng(seed)
    pool = fake_examples(240) if pool is None else pool
    queries = fake_examples(12, seed=1, prefix="query") if queries is None else queries
    if tests is None:
        tests = {name: fake_examples(20, seed=2, prefix=name) for name in ("jfleg", "asset", "wnc")}
    vectors = fake_embeddings(pool) if embeddings_NxD is None else embeddings_NxD
    # Near to rows of the pool, and equal to none.
    query_vectors = vectors[rng.choice(len(pool), len(queries))]
    query_vectors = query_vectors + 0.1 * np.random.default_rng(seed + 1).standard_normal(query_vectors.shape)
    query_vectors /= np.linalg.norm(query_vectors, axis=1, keepdims=True)

    pool.save(folder / "data/pool.jsonl")
    queries.save(folder / "data/queries.jsonl")
    for name, test in tests.items():
        test.save(folder / f"data/tests/{name}.jsonl")
    write_store(folder / "embed/pool", pool.prompts, GivenVectors(dict(zip(pool.prompts, vectors, strict=True))))
    write_store(
        folder / "embed/queries", queries.prompts, GivenVectors(dict(zip(queries.prompts, query_vectors, strict=True)))
    )
    _manifest(folder / "data", "data", 3.2)
    _manifest(folder / "embed", "embed", 41.0)

    arms = {}
    for arm, share in SHARES.items():
        budget = max(2, round(share * len(pool)))
        options = {"clusters": 7, "base": 0.3, "easy": 0.0, "hard": 1.0} if arm == "deft" else {}
        arms[arm] = {"selector": SELECTORS[arm], "options": options, "budget": budget, "share": budget / len(pool)}
        for number in seeds:
            chosen = np.sort(rng.choice(len(pool), budget, replace=False)).astype(np.int64)
            reasons = [{"why": f"Farthest from the centre of cluster {row % 7}, cosine 0.31."} for row in chosen]
            if arm == "tsds":
                reasons = _plan_reasons(vectors[chosen], query_vectors)
            if arm in ("full", "random"):
                reasons = [{"why": f"Drawn at random: {budget} of {len(pool)} candidates."} for _ in chosen]
            where = folder / f"select/{arm}/seed-{number}"
            Selection.of(chosen, reasons=reasons).save(where / "selection")
            _manifest(where, f"select/{arm}/seed-{number}", 2.5)
            where = folder / f"finetune/{arm}/seed-{number}"
            steps = np.arange(10, 510, 10)
            losses = 0.7 + 2.4 * np.exp(-steps / 120) + 0.05 * rng.standard_normal(steps.size)
            rows = [
                {"step": int(step), "loss": float(loss), "learning_rate": 1e-3, "seconds": float(step) / 9}
                for step, loss in zip(steps, losses, strict=True)
            ]
            for row in rows[9::10]:
                row["validation_loss"] = row["loss"] + 0.15
            write_jsonl(where / "metrics.jsonl", rows)
            _manifest(where, f"finetune/{arm}/seed-{number}", 55.0)
            where = folder / f"evaluate/{arm}/seed-{number}"
            for name, test in tests.items():
                outputs = [_edit(rng, *pair) for pair in zip(test.inputs, test.targets, strict=True)]
                predictions = [{"id": i, "prediction": p} for i, p in zip(test.ids, outputs, strict=True)]
                write_jsonl(where / f"predictions_{name}.jsonl", predictions)
            _manifest(where, f"evaluate/{arm}/seed-{number}", 21.0)
    table = fake_table({name: len(test) for name, test in tests.items()}, list(SHARES), seeds=len(seeds))
    write_json(folder / "table/table.json", table)
    write_json(
        folder / "experiment.json",
        {
            "name": folder.name,
            "description": "Choose by DEFT and TSDS.\n\nCommand: python scripts/run.py configs/demo.py",
            "notice": notice,
            "command": "python scripts/run.py configs/demo.py --workdir runs/demo --train.steps 500",
            "config": {
                "seed": 0,
                "replicates": len(seeds),
                "train": {"steps": 500, "epochs": None},
                "model": "scratch",
            },
            "seeds": list(seeds),
            "arms": arms,
            "pool_size": len(pool),
            "match": "steps",
            "train_steps": dict.fromkeys(SHARES, 500),
        },
    )
    return folder


def _plan_reasons(chosen_nxD: np.ndarray, queries_MxD: np.ndarray) -> list[dict[str, Any]]:
    """What a transport plan might say of each row: up to three queries, the nearest first."""
    distance_nxM = np.linalg.norm(chosen_nxD[:, None] - queries_MxD[None], axis=2)
    rank_nxM = 1 + distance_nxM.argsort(axis=0).argsort(axis=0)
    reasons = []
    for row, near in enumerate(distance_nxM.argsort(axis=1)[:, :3].tolist()):
        queries = [
            {
                "query": query,
                "share": (0.6, 0.3, 0.1)[place],
                "distance": float(distance_nxM[row, query]),
                "rank": int(rank_nxM[row, query]),
            }
            for place, query in enumerate(near)
        ]
        why = f"Serves {len(near)} queries, first of all query {near[0]}."
        reasons.append({"why": why, "probability": 1 / len(chosen_nxD), "queries": queries})
    return reasons


def _row(arm: str, test: str, metric: str, value: float, half: float, seeds: list[float]) -> dict[str, Any]:
    where = {"arm": arm, "test": test, "metric": metric}
    return {**where, "value": value, "low": value - half, "high": value + half, "seeds": seeds}


def _edit(rng: np.random.Generator, source: str, target: str) -> str:
    """What a model might write: the input, the target, or the target with a word lost."""
    kind = rng.random()
    if kind < 0.3:
        return source
    words = target.split()
    if kind < 0.6 or len(words) < 3:
        return target
    words.pop(int(rng.integers(len(words))))
    return " ".join(words)


def _manifest(folder: Path, stage: str, seconds: float) -> None:
    write_json(
        folder / "manifest.json",
        {
            "stage": stage,
            "fingerprint": hashlib.sha256(stage.encode()).hexdigest(),
            "settings": {},
            "upstream": {},
            "seed": 0,
            "versions": {"jax": "0.10.2", "flax": "0.12.8", "numpy": "2.4.6", "python": "3.11.9"},
            "seconds": seconds,
            "peak_memory_bytes": 812_000_000,
            "finished": "2026-01-02T03:04:05+0000",
        },
    )
