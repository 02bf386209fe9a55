"""Gradient features of the texts of a study, which has no model of its own: which T5, seen how."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from deft_tsds import build
from deft_tsds import config as cfg
from deft_tsds.data.examples import Examples
from deft_tsds.gradients import write_gradients
from deft_tsds.runs import Run, Stage, stage_key
from deft_tsds.training.finetune import Pairs, tokenize_pairs


@dataclasses.dataclass(frozen=True)
class GradientsOf:
    """The gradients of a T5 on texts with targets (LESS)."""

    model: str
    """Folder or hub name."""
    how: cfg.Gradients = dataclasses.field(default_factory=cfg.Gradients)
    """The short run on the pool, and what is kept of the gradients."""
    max_input_tokens: int = 64
    """Longer texts are cut."""
    max_target_tokens: int = 32
    """Longer targets are cut."""


def make_gradients(
    config: GradientsOf, pool: Examples, targets: Mapping[str, Examples], *, run: Run, stage: str
) -> Stage:
    """Make the features of pool and targets, or find them made.

    Args:
        config: of which model, and how.
        pool, targets: as `write_gradients`.
        run, stage: where they are kept.

    Returns:
        The stage, in whose folder lie a store for the pool ("pool") and one for each target, by its name.

    Raises:
        ValueError: as `write_gradients` and `load_pretrained`.
    """

    def work(folder: Path) -> None:
        model, tokenizer = build.pretrained(config.model, dtype="float32")

        def tokenized(examples: Examples) -> Pairs:
            widths = {name: getattr(config, name) for name in ("max_input_tokens", "max_target_tokens")}
            return tokenize_pairs(tokenizer, examples.prompts, examples.targets, ids=examples.ids, **widths)

        key = stage_key(run.seed, stage)
        write_gradients(folder, model, pool, targets, tokenized, key=key, **dataclasses.asdict(config.how))

    texts = {name: examples.fingerprint() for name, examples in {"pool": pool, **targets}.items()}
    settings = {"gradients": config, "files": build.identity(config.model), "texts": texts}
    return run.do(stage, work, settings=settings)
