"""Embed the pool and the queries by every encoder of a config, or by those that are named.

    python scripts/embed.py CONFIG.py
    python scripts/embed.py CONFIG.py --only gradients

The experiment's own `encoder` is called `encoder`, the others by their names in `encoders`. Fields of the config may be
set as for the other scripts. A run that was stopped goes on by the same command.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from deft_tsds.cli import plain_errors
from deft_tsds.config import load
from deft_tsds.pipeline import Pipeline
from deft_tsds.runs import console

OWN = "encoder"


@dataclass(frozen=True)
class Settings:
    config: tyro.conf.Positional[Path]
    """A config file."""
    only: tuple[str, ...] = ()
    """Names of encoders; all by default."""


def main() -> None:
    settings, rest = tyro.cli(Settings, description=__doc__, return_unknown_args=True)
    with plain_errors():
        experiment, description = load(settings.config, rest)
        names = [OWN, *experiment.encoders]
        if unknown := sorted({*settings.only} - {*names}):
            raise ValueError(f"--only names {', '.join(unknown)}: choose among {', '.join(names)}.")
        pipeline = Pipeline(experiment, description)
        for name in settings.only or names:
            stage = pipeline.encoded(None if name == OWN else name)
            console.print(f"{name}: {stage.folder}", soft_wrap=True)


if __name__ == "__main__":
    main()
