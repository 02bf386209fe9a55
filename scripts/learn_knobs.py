"""Learn alpha and the bandwidth by gradient on real text, beside a grid search and the defaults.

    python scripts/learn_knobs.py --data ../shared/data/domain --out runs/knobs.jsonl

The data are a pool of several domains and targets with labels (JSON lines: text, label, dataset, split). A seed draws
the part of the pool that there is to choose from, and divides a target's `query` rows into examples that the selection
sees and held-out ones that decide on the knobs. The target's `test` rows, which neither the grid nor the gradient sees,
are for the table. The loss is that of `RidgeProbe`: one class a label of the target, candidates weighted by p.

Each seed of each target is a line of `--out`; lines that are there are not computed again.
"""

from __future__ import annotations

import gzip
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.table import Table

import deft_tsds as dt
from deft_tsds.embed.lexical import Lexical
from deft_tsds.runs import console, read_jsonl, stage_key, track, write_jsonl
from deft_tsds.transport.knobs import RidgeProbe, fit_probe, learn_knobs
from deft_tsds.transport.pairs import Pairs

NEAR = 0.005  # so much above the grid's best is as good, in a column of the table


@dataclass(frozen=True)
class Settings:
    """What to compare."""

    data: Path
    """Folder with domain_pool.jsonl.gz and domain_target_NAME.jsonl.gz."""
    out: Path
    """JSON lines to write, and to go on from."""
    embeddings: Path | None = None
    """Folder with a float32 .npy for each file, domain_pool.npy and so on; None embeds lexically."""
    targets: tuple[str, ...] = ("banking77", "chemprot", "sciie", "stackoverflow")
    """Names of targets."""
    seeds: int = 5
    """How often to draw pool and queries."""
    first_seed: int = 0
    """The seeds are this one and those that follow."""
    pool_rows: int = 8000
    """Rows of the pool to choose from."""
    queries: int = 50
    """Query rows that the selection sees; the others are held out."""
    neighbors: int = 1000
    """K."""
    dimension: int = 128
    """Of the lexical embeddings."""
    alphas: tuple[float, ...] = (0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)
    """Of the grid."""
    bandwidths: int = 8
    """How many bandwidths the grid has, in equal ratios between the lowest and the highest."""
    bandwidth_range: tuple[float, float] = (0.1, 0.9)
    """Lowest and highest bandwidth, of the grid and of the gradient."""
    evaluations: int = 32
    """Of the loss, at most, by gradient."""


@dataclass(frozen=True, eq=False)
class Texts:
    """The rows of one file."""

    rows: list[dict[str, Any]]
    embeddings_NxD: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        return np.array([f"{row['dataset']}/{row['label']}" for row in self.rows])

    def split(self, name: str) -> np.ndarray:
        return np.flatnonzero([row["split"] == name for row in self.rows])


def read(settings: Settings) -> dict[str, Texts]:
    """Pool and targets with their embeddings."""
    names = {"pool": "domain_pool", **{target: f"domain_target_{target}" for target in settings.targets}}
    rows = {}
    for name, stem in names.items():
        with gzip.open(settings.data / f"{stem}.jsonl.gz", "rt", encoding="utf-8") as file:
            rows[name] = [json.loads(line) for line in file]
    if settings.embeddings is not None:
        return {
            name: Texts(rows[name], np.load(settings.embeddings / f"{stem}.npy", allow_pickle=False))
            for name, stem in names.items()
        }
    console.print(f"embedding {sum(map(len, rows.values())):,} texts")
    texts = {name: [row["text"] for row in each] for name, each in rows.items()}
    encoder = Lexical(dimension=settings.dimension).fit(texts["pool"], key=stage_key(0, "encoder"))
    return {name: Texts(rows[name], encoder.encode(texts[name])) for name in names}


def compare(pool: Texts, target: Texts, settings: Settings, name: str, seed: int) -> dict[str, Any]:
    """One row of the table: the grid, the gradient and the defaults on one draw."""
    generator = np.random.default_rng([seed, len(name)])
    rows = np.sort(generator.choice(len(pool.rows), min(settings.pool_rows, len(pool.rows)), replace=False))
    seen, held_out = np.split(generator.permutation(target.split("query")), [settings.queries])
    test = target.split("test")
    x, y = pool.embeddings_NxD[rows], pool.labels[rows]
    at, labels = target.embeddings_NxD, target.labels
    probe = RidgeProbe.of(x, y, at[held_out], labels[held_out])
    low, high = settings.bandwidth_range

    problem = dt.Problem.from_embeddings(x, at[seen], neighbors=settings.neighbors)
    pairs = Pairs.of(problem, x, at[seen], reach=high)
    loss = jax.jit(probe(problem.shortlist_U))
    example = Test.of(RidgeProbe.of(x, y, at[test], labels[test]), problem.shortlist_U, probe.classes_C)

    def problem_of(bandwidth):
        return jax.tree.map(np.asarray, pairs.problem_at(bandwidth=bandwidth))

    def entry(plan, **more):
        return {"loss": float(loss(jnp.asarray(plan.weights_U, jnp.float32))), **example(plan), **more}

    began = time.perf_counter()
    grid = []
    for bandwidth in np.minimum(np.geomspace(low, high, settings.bandwidths), high):
        there = problem_of(bandwidth)
        for alpha in settings.alphas:
            value = float(loss(jnp.asarray(dt.tsds(there, alpha=alpha).weights_U, jnp.float32)))
            grid.append({"alpha": alpha, "bandwidth": float(bandwidth), "loss": value})
    grid_seconds = time.perf_counter() - began
    best = min(grid, key=lambda each: each["loss"])

    began = time.perf_counter()
    learned = learn_knobs(
        x,
        at[seen],
        probe,
        key=stage_key(seed, name),
        bandwidths=(low, high),
        neighbors=settings.neighbors,
        max_evaluations=settings.evaluations,
    )
    learned_seconds = time.perf_counter() - began
    losses = [each["loss"] for each in learned.history]

    def first_at_most(bound):
        return next((i + 1 for i, value in enumerate(losses) if value <= bound), None)

    return {
        "target": name,
        "seed": seed,
        "shortlist": len(problem.shortlist_U),
        "default": entry(dt.tsds(problem_of(min(0.75, high)))),
        "grid": entry(
            dt.tsds(problem_of(best["bandwidth"]), alpha=best["alpha"]),
            alpha=best["alpha"],
            bandwidth=best["bandwidth"],
            evaluations=len(grid),
            seconds=grid_seconds,
        ),
        "learned": entry(
            learned.plan,
            alpha=learned.alpha,
            bandwidth=learned.bandwidth,
            evaluations=len(learned.history),
            seconds=learned_seconds,
        ),
        "evaluations_to_grid": first_at_most(best["loss"]),
        "evaluations_to_near": first_at_most(best["loss"] * (1 + NEAR)),
        "losses_by_gradient": losses,
        "losses_of_grid": [each["loss"] for each in grid],
    }


@dataclass(frozen=True, eq=False)
class Test:
    """The probe on the test rows."""

    arrays: tuple[Any, ...]
    ridge: float

    @classmethod
    def of(cls, probe: RidgeProbe, shortlist_U: np.ndarray, classes_C: np.ndarray) -> Test:
        """The probe of the classes that the held-out rows have: it knows no others."""
        known = np.isin(probe.classes_C, classes_C)
        x, y, held_out, targets, ridge = probe(shortlist_U).args
        return cls((x, y[:, known], held_out, targets[:, known]), ridge)

    def __call__(self, plan: dt.Plan) -> dict[str, float]:
        x_UxE, y_UxC, test_VxE, targets_VxC = self.arrays
        predicted_VxC = test_VxE @ fit_probe(x_UxE, y_UxC, jnp.asarray(plan.weights_U, jnp.float32), self.ridge)
        right = jnp.take_along_axis(targets_VxC, jnp.argmax(predicted_VxC, axis=1)[:, None], axis=1)
        loss = jnp.mean(jnp.sum((targets_VxC - predicted_VxC) ** 2, axis=1))
        return {"test_loss": float(loss), "test_accuracy": float(jnp.mean(right))}


def show(rows: list[dict[str, Any]], settings: Settings) -> None:
    """Means over seeds, and how many evaluations the gradient needed to be as good as the grid."""
    size = len(settings.alphas) * settings.bandwidths
    title = (
        f"Means over seeds. Of the gradient: evaluations until no worse than the best of the grid's {size}, and until "
        f"within {NEAR:.1%} of it; median of the seeds that come so far."
    )
    table = Table(title=title, title_justify="left")
    for column in ("target", "knobs", "held-out", "test loss", "test accuracy", "no worse after", "near after"):
        table.add_column(column, justify="right")
    for target in [*settings.targets, "all"]:
        some = [row for row in rows if target in (row["target"], "all")]
        for arm in ("default", "grid", "learned"):
            fields = zip(("loss", "test_loss", "test_accuracy"), ("0.4f", "0.4f", "0.3f"), strict=True)
            means = [format(np.mean([row[arm][field] for row in some]), digits) for field, digits in fields]
            reached = [_reached(some, to) for to in ("grid", "near")] if arm == "learned" else []
            table.add_row(target, arm, *means, *reached)
    console.print(table)


def _reached(rows: list[dict[str, Any]], to: str) -> str:
    counts = [row[f"evaluations_to_{to}"] for row in rows if row[f"evaluations_to_{to}"] is not None]
    return f"{np.median(counts):.0f} ({len(counts)} of {len(rows)})" if counts else f"(none of {len(rows)})"


def main(settings: Settings) -> None:
    """Fill in what is missing, and show the table."""
    request = json.loads(
        json.dumps({**asdict(settings), "out": None, "targets": None, "seeds": None, "first_seed": None}, default=str)
    )
    rows = [row for row in read_jsonl(settings.out) if row["settings"] == request] if settings.out.exists() else []
    done = {(row["target"], row["seed"]) for row in rows}
    cells = [
        (target, seed)
        for target in settings.targets
        for seed in range(settings.first_seed, settings.first_seed + settings.seeds)
    ]
    missing = [cell for cell in cells if cell not in done]
    if missing:
        texts = read(settings)
        for target, seed in track(missing, "learning the knobs"):
            rows.append({**compare(texts["pool"], texts[target], settings, target, seed), "settings": request})
            write_jsonl(settings.out, rows)
    show([row for row in rows if (row["target"], row["seed"]) in cells], settings)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
