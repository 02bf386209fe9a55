"""Every targeted selector on real text with labels: what it chooses, and what a probe learns from it.

    python scripts/targeted.py --data ../shared/data/domain --model MODEL --gradients.model T5 --out runs/targeted

The data are a pool of several data sets and a few targets among them (JSON lines: id, text, label, dataset, split). A
target's `query` rows choose; its `test` rows judge. MODEL is any sentence-transformers model. T5 is any T5: LESS
selects by its gradients, with the text as input and the label as target, and so is the only one to see labels. The same
command goes on where it was stopped. Writes `table.md`, `table.json` and `cells.jsonl`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import tyro

from deft_tsds.cli import plain_errors
from deft_tsds.config import Gradients, Lora
from deft_tsds.data.examples import Examples, read_examples
from deft_tsds.embed.given import read_embeddings
from deft_tsds.embed.sentence_transformers import SentenceTransformers
from deft_tsds.embed.store import open_store, write_store
from deft_tsds.runs import Run, console
from deft_tsds.studies.gradients import GradientsOf, make_gradients
from deft_tsds.studies.targeted import CONTENDERS, SHARES, Labelled, Target, measure
from deft_tsds.studies.targeted_table import summarize, write_tables

LESS = Gradients(dimension=512, epochs=2, learning_rate=1e-2, lora=Lora(rank=8), at_once=32)


@dataclass(frozen=True)
class Settings:
    """What to compare."""

    data: Path
    """Folder with domain_pool.jsonl.gz and domain_target_NAME.jsonl.gz."""
    out: Path
    """The run folder."""
    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Folder or hub name of a sentence-transformers model."""
    embeddings: Path | None = None
    """Folder with a .npy for each file, domain_pool.npy and so on, of rows of unit length; None embeds by `model`."""
    gradients: GradientsOf = field(
        default_factory=lambda: GradientsOf("google/flan-t5-small", LESS, max_input_tokens=64, max_target_tokens=16)
    )
    """Of which T5, and how: made where one of `selectors` sees them."""
    targets: tuple[str, ...] = ("banking77", "chemprot", "sciie", "stackoverflow")
    """Names of targets."""
    selectors: tuple[str, ...] = tuple(CONTENDERS)
    """Rows of the table."""
    shares: tuple[float, ...] = SHARES
    """Budgets, as shares of the pool."""
    seeds: int = 5
    """How often a selector that draws is measured."""
    seed: int = 0
    """The one seed of the run."""


def read(settings: Settings, name: str, *, group_field: str) -> tuple[Examples, Labelled]:
    """A file of the data, and its rows with their embeddings."""
    path = settings.data / f"{name}.jsonl.gz"
    rows = read_examples(path, input_field="text", target_field="label", group_field=group_field, name=name)
    if settings.embeddings is not None:
        embeddings_NxD = read_embeddings(settings.embeddings / f"{name}.npy", rows=len(rows), name=name)
    else:
        encoder = SentenceTransformers(settings.model)
        embeddings_NxD = write_store(settings.out / "embeddings" / name, rows.inputs, encoder)[:]
    return rows, Labelled(rows.inputs, np.array(rows.targets), np.array(rows.groups), np.asarray(embeddings_NxD))


def main(settings: Settings) -> None:
    """Fill in what is missing, and show the tables."""
    unknown = sorted({*settings.selectors} - {*CONTENDERS})
    if unknown:
        raise ValueError(f"selectors has {', '.join(unknown)}: choose among {', '.join(CONTENDERS)}.")
    contenders = {name: CONTENDERS[name] for name in settings.selectors}
    run = Run(settings.out, settings.seed)
    texts, pool = read(settings, "domain_pool", group_field="dataset")
    targets, queries = [], {}
    for name in settings.targets:
        examples, rows = read(settings, f"domain_target_{name}", group_field="split")
        queries[name] = examples.take(np.flatnonzero(rows.groups == "query"))
        targets.append(Target(name, rows.take(rows.groups == "query"), rows.take(rows.groups == "test")))
    if any(contender.sees == "gradients" for contender in contenders.values()):
        folder = make_gradients(settings.gradients, texts, queries, run=run, stage="gradients").folder
        pool = replace(pool, gradients_NxG=open_store(folder / "pool").array())
        for place, target in enumerate(targets):
            seen = replace(target.queries, gradients_NxG=open_store(folder / target.name).array())
            targets[place] = replace(target, queries=seen)
    stages = measure(pool, targets, run, contenders=contenders, shares=settings.shares, seeds=settings.seeds)
    text = write_tables(summarize(pool, targets, stages), settings.out)
    console.print(text, markup=False, soft_wrap=True)


if __name__ == "__main__":
    with plain_errors():
        main(tyro.cli(Settings, description=__doc__, config=(tyro.conf.AvoidSubcommands,)))
