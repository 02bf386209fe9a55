"""Cells of a budget curve that are scored by fine-tuning: each arm, budget and seed as stages of the `Pipeline`."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import numpy as np

from deft_tsds import config as cfg
from deft_tsds.metrics import METRICS
from deft_tsds.pipeline import COPY, Pipeline
from deft_tsds.studies.curve import FULL, Cells, Facts
from deft_tsds.studies.statistics import Runs
from deft_tsds.studies.variants import Shelf


@dataclass(frozen=True)
class FineTuned(Cells):
    """The arms of an experiment; their own budgets are not looked at.

    `replicates` are the seeds; metric, level and resamples are those of `evaluate`.

    Raises:
        ValueError: no arms, or one seed. `full` and `runs` raise all that `Pipeline` raises.
    """

    experiment: cfg.Experiment

    def __post_init__(self) -> None:
        seeds = self.experiment.replicates
        if seeds < 2:
            raise ValueError(f"replicates is {seeds}: a verdict needs several seeds; set --replicates 5.")
        if not self._arms:
            raise ValueError("arms has nothing but Full: name at least one way to choose fewer.")

    def facts(self) -> Facts:
        experiment, evaluate = self.experiment, self.experiment.evaluate
        steps = "epochs" if experiment.train.steps is None else "steps"
        return Facts(
            metric=METRICS[evaluate.metrics[0]],
            arms=self._arms,
            seeds=experiment.replicates,
            level=evaluate.level,
            resamples=evaluate.resamples,
            seed=experiment.seed,
            workdir=experiment.workdir,
            pool=self._whole.clean.results["pool"],
            how=f"Every arm was trained for the same {steps} at each budget.",
            notice=self._whole.notice,
        )

    @property
    def _arms(self) -> tuple[str, ...]:
        return tuple(name for name, arm in self.experiment.arms.items() if not isinstance(arm.selector, cfg.Full))

    @functools.cached_property
    def _whole(self) -> Pipeline:
        return self._pipeline({FULL: cfg.Arm(cfg.Full())})

    def _pipeline(self, arms: dict[str, cfg.Arm]) -> Pipeline:
        shelf = Shelf(self.experiment.workdir, self.experiment.seed, room="curve")
        return Pipeline(dataclasses.replace(self.experiment, arms=arms), run=shelf)

    def full(self) -> Runs:
        return _runs(self._whole, FULL)

    def copy(self) -> Runs:
        return _runs(self._whole, COPY)

    def runs(self, arm: str, budget: float) -> Runs:
        at_budget = dataclasses.replace(self.experiment.arms[arm], share=budget, count=None)
        return _runs(self._pipeline({arm: at_budget}), arm)


def _runs(pipeline: Pipeline, arm: str) -> Runs:
    """The statistics of every seed, by test set; copying has one run, which stands for all."""
    metric = pipeline.experiment.evaluate.metrics[0]
    replicates = range(1 if arm == COPY else pipeline.experiment.replicates)
    stages = [pipeline.evaluate(arm, replicate) for replicate in replicates]
    return {
        test: np.stack(
            [np.load(stage.folder / f"statistics_{test}.{metric}.npy", allow_pickle=False) for stage in stages]
        )
        for test in pipeline.data.results["tests"]
    }
