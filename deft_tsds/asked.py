"""What an experiment asks for: what can be seen to be wrong with it by itself, and how a run folder says it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from deft_tsds import build
from deft_tsds import config as cfg
from deft_tsds.running import processes
from deft_tsds.running.secrets import masked, masked_command
from deft_tsds.runs import plain
from deft_tsds.training.tracking import check_trackers

COPY = "copy"
"""The baseline that hands back its input: an editing model that does not beat it has learned nothing."""

SYNTHETIC_NOTICE = (
    "The text of this run is synthetic: a seeded generator wrote every pair. It shows that the machinery works; "
    "it says nothing about your data."
)


def check_experiment(experiment: cfg.Experiment) -> None:
    """Raise ValueError for what is wrong whatever the data are."""
    if not experiment.arms:
        raise ValueError("arms is empty: name at least one way to choose.")
    if COPY in experiment.arms:
        raise ValueError(f'arms: "{COPY}" is the name of the copy baseline; give the arm another.')
    for name in (*experiment.arms, *getattr(experiment.data, "tests", ())):
        if not re.fullmatch(r"[\w.-]*\w", name):
            raise ValueError(f"The name {name!r} of an arm or test set becomes a folder: use letters, digits, - and _.")
    if experiment.replicates < 1:
        raise ValueError(f"replicates is {experiment.replicates}; it must be at least 1.")
    build.check_metrics(experiment.evaluate.metrics)
    build.check_train(experiment.train)
    check_trackers(experiment.track)
    if processes.count() > 1 and experiment.train.side_by_side:
        raise ValueError("train.side_by_side trains in one process, and this run has several: set it to False.")


def described(experiment: cfg.Experiment, *, name: str, pool: int) -> dict[str, Any]:
    """What was asked, for the report and for whoever opens the folder.

    Args:
      experiment: all of it.
      name: of the run.
      pool: how many candidates there are.
    """
    arms = {}
    for arm, section in experiment.arms.items():
        budget = build.budget(section, pool, name=arm)
        options = plain(section.selector) | ({} if section.encoder is None else {"encoder": section.encoder})
        arms[arm] = {"selector": options.pop("class"), "options": options, "budget": budget, "share": budget / pool}
    return {
        "name": name,
        "notice": notice_of(experiment),
        "command": masked_command([Path(sys.executable).name, *sys.argv]),
        "config": masked(plain(experiment)),
        "seeds": list(range(experiment.replicates)),
        "arms": arms,
        "pool_size": pool,
        "match": "epochs" if experiment.train.steps is None else "steps",
        "train_steps": {arm: build.steps(experiment.train, found["budget"]) for arm, found in arms.items()},
    }


def notice_of(experiment: cfg.Experiment) -> str | None:
    """What must be said wherever results of this experiment are shown."""
    return SYNTHETIC_NOTICE if isinstance(experiment.data, cfg.Synthetic) else None
