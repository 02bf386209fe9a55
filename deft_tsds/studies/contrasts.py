"""Arms of an experiment against one another: who beats whom on the test sets, several seeds, corrected for how many.

The stages are those of the `Pipeline`, and so is the page; this adds the differences that a claim is about, where the
pipeline's own table knows one baseline alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from deft_tsds import build
from deft_tsds import config as cfg
from deft_tsds.pipeline import COPY, Pipeline
from deft_tsds.studies.statistics import Runs, difference, holm, mean_score, sentence
from deft_tsds.studies.study import Study, markdown_table, shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrasts(Study):
    """An experiment, and which of its arms to compare."""

    experiment: cfg.Experiment
    """What is run; its seed and run folder are the study's."""
    against: dict[str, str]
    """By arm, the arm that it is compared with."""

    def fill(self) -> dict[str, Any]:
        """Run every arm with every seed, and compare.

        Returns:
            Plain JSON: the `metric`, `seeds`, the `tests`, where the `page` is, and by arm under `arms` its `count` of
            examples and its `score`; where it is compared, `against`, the `difference` with its `p_holm`, corrected for
            all comparisons, and the `sentence`.

        Raises:
            ValueError: an arm in `against` that there is not, and all that `Pipeline` raises.
        """
        for name in (*self.against, *self.against.values()):
            if name not in self.experiment.arms:
                raise ValueError(f"against names {name!r}: choose among {', '.join(self.experiment.arms)}.")
        experiment = dataclasses.replace(self.experiment, seed=self.seed, workdir=self.workdir / "run")
        pipeline, evaluate = Pipeline(experiment), experiment.evaluate
        metric = evaluate.metrics[0]
        settings: dict[str, Any] = {"level": evaluate.level, "resamples": evaluate.resamples, "seed": self.seed}
        runs = {name: _runs(pipeline, name, metric) for name in (COPY, *experiment.arms)}
        arms: dict[str, dict[str, Any]] = {
            name: {"count": None, "score": mean_score(metric, each, **settings)._asdict()}
            for name, each in runs.items()
        }
        for name, arm in experiment.arms.items():
            arms[name]["count"] = build.budget(arm, pipeline.clean.results["pool"], name=name)
        found = {name: difference(metric, runs[name], runs[other], **settings) for name, other in self.against.items()}
        adjusted = holm([each.p for each in found.values()])
        for (name, each), p_holm in zip(found.items(), adjusted, strict=True):
            other = self.against[name]
            arms[name] |= {
                "against": other,
                "difference": {**each.to_json(), "p_holm": p_holm},
                "sentence": sentence(each, against=other, unit=metric, level=evaluate.level),
            }
        return {
            "metric": metric,
            "level": evaluate.level,
            "seeds": experiment.replicates,
            "tests": pipeline.data.results["tests"],
            "page": str(pipeline.report()),
            "arms": arms,
        }

    def markdown(self, found: Mapping[str, Any]) -> str:
        titles = ["arm", "examples", found["metric"], "difference", "p (Holm)"]
        rows = []
        for name, arm in found["arms"].items():
            line = [name, "–" if arm["count"] is None else f"{arm['count']:,}", shown(arm["score"]), "–", "–"]
            if "difference" in arm:
                line[3] = f"{shown(arm['difference'], 1, '+')} to {arm['against']}"
                line[4] = f"{arm['difference']['p_holm']:.2g}"
            rows.append(line)
        title = f"**Mean {found['metric']} over {', '.join(found['tests'])}; {found['seeds']} seeds**"
        words = [f"- {name}: {arm['sentence']}" for name, arm in found["arms"].items() if "sentence" in arm]
        return "\n".join([title, "", markdown_table(titles, rows), "", *words])


def _runs(pipeline: Pipeline, arm: str, metric: str) -> Runs:
    """The statistics of every seed, by test set; copying has one run."""
    stages = [pipeline.evaluate(arm, r) for r in range(1 if arm == COPY else pipeline.experiment.replicates)]
    return {
        test: np.stack(
            [np.load(stage.folder / f"statistics_{test}.{metric}.npy", allow_pickle=False) for stage in stages]
        )
        for test in pipeline.data.results["tests"]
    }
