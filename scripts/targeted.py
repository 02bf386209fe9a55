"""Every targeted selector on real text with labels: what it chooses, and what a probe learns from it.

    python scripts/targeted.py --data ../shared/data/domain --model MODEL --gradients.model T5 --out runs/targeted

The data are a pool of several data sets and a few targets among them (JSON lines: id, text, label, dataset, split). A
target's `query` rows choose; its `test` rows judge. MODEL is any sentence-transformers model. T5 is any T5: LESS
selects by its gradients, with the text as input and the label as target, and so is the only one to see labels. The same
command goes on where it was stopped. Writes `table.md`, `table.json` and `cells.jsonl`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from deft_tsds.cli import plain_errors
from deft_tsds.config import Gradients, Lora, SentenceTransformers
from deft_tsds.runs import Run, console
from deft_tsds.studies.gradients import GradientsOf
from deft_tsds.studies.labelled_text import LabelledText, read, with_gradients
from deft_tsds.studies.targeted import CONTENDERS, SHARES, measure
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


def main(settings: Settings) -> None:
    """Fill in what is missing, and show the tables."""
    unknown = sorted({*settings.selectors} - {*CONTENDERS})
    if unknown:
        raise ValueError(f"selectors has {', '.join(unknown)}: choose among {', '.join(CONTENDERS)}.")
    contenders = {name: CONTENDERS[name] for name in settings.selectors}
    run = Run(settings.out, settings.seed)
    encoder = SentenceTransformers(settings.model)
    texts = read(LabelledText(settings.data, settings.targets, encoder, settings.embeddings), run)
    if any(contender.sees == "gradients" for contender in contenders.values()):
        texts = with_gradients(texts, settings.gradients, run)
    pool, targets = texts.pool, texts.targets
    stages = measure(pool, targets, run, contenders=contenders, shares=settings.shares, seeds=settings.seeds)
    text = write_tables(summarize(pool, targets, stages), settings.out)
    console.print(text, markup=False, soft_wrap=True)


if __name__ == "__main__":
    with plain_errors():
        main(tyro.cli(Settings, description=__doc__, config=(tyro.conf.AvoidSubcommands,)))
