"""The budget curve: what so many examples are worth, and the smallest budget that loses nothing against all of them.

A point is one arm at one budget, run with every seed through the stages of the `Pipeline`. Its verdict is a test of
non-inferiority: that the arm is worse than the full data by the margin, or by more, is refuted where the p-value of
`statistics.difference`, corrected by Holm's method for the number of budgets, is below 1 - level. The smallest such
budget is the answer to "how few are enough", and the data that it leaves out are the data saved.

Each stage of a point is kept as soon as it is done: a study that was killed goes on where it stopped.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deft_tsds import config as cfg
from deft_tsds.pipeline import COPY, Pipeline
from deft_tsds.runs import console, track, write_json
from deft_tsds.studies.statistics import Runs, difference, holm, mean_score, sentence
from deft_tsds.studies.variants import Shelf

FULL = "full"
BASELINE = "random"
"""The arm that the others are also compared with, at the same budget."""


def curve(
    experiment: cfg.Experiment,
    *,
    budgets: Sequence[float],
    margin: float = 1.0,
    adaptive: bool = False,
) -> dict[str, Any]:
    """Run every arm of the experiment at every budget, and judge each against the full data.

    Writes `curve/table.json` in the run folder.

    Args:
        experiment: its arms are the ways to choose; their own budgets are not looked at. `replicates` are the seeds;
            metric, level and resamples are those of `evaluate`. An arm `random` is compared with as well.
        budgets: shares of the pool, ascending, in (0, 1).
        margin: how much of the metric may be lost and still count as nothing.
        adaptive: look for the crossing by halving, and leave out the budgets that this does not come to. It takes the
            score to rise with the budget; the verdict is corrected for all budgets all the same.

    Returns:
        The table as plain JSON: `arms`, by name `points` (see `judge`), `verdict` in words, `smallest` budget or None,
        the share of the data `saved`, and under `notes` the budgets that the arm cannot have; the scores of `full` and
        `copy`; and what is needed to read them.

    Raises:
        ValueError: no arms, one seed, budgets that are no ascending shares, a margin that is not above 0, and all that
            `Pipeline` raises.
    """
    shares = [float(budget) for budget in budgets]
    if not shares or any(not 0 < share < 1 for share in shares) or sorted(set(shares)) != shares:
        raise ValueError(f"budgets are {shares}: give shares of the pool between 0 and 1, ascending.")
    if not margin > 0:
        raise ValueError(f"margin is {margin}: give what may be lost, a number above 0.")
    if experiment.replicates < 2:
        raise ValueError(f"replicates is {experiment.replicates}: a verdict needs several seeds; set --replicates 5.")
    arms = {name: arm for name, arm in experiment.arms.items() if not isinstance(arm.selector, cfg.Full)}
    if not arms:
        raise ValueError("arms has nothing but Full: name at least one way to choose fewer.")

    evaluate = experiment.evaluate
    metric, level = evaluate.metrics[0], evaluate.level
    settings: dict[str, Any] = {"level": level, "resamples": evaluate.resamples, "seed": experiment.seed}
    whole = Pipeline(dataclasses.replace(experiment, arms={FULL: cfg.Arm(cfg.Full())}), run=_shelf(experiment))
    full, pool = _runs(whole, FULL, metric), whole.clean.results["pool"]
    measured: dict[str, dict[float, Runs]] = {name: {} for name in arms}

    notes: dict[str, list[str]] = {name: [] for name in arms}

    def is_enough(name: str, share: float) -> bool:
        arm = dataclasses.replace(arms[name], share=share, count=None)
        try:
            pipeline = Pipeline(dataclasses.replace(experiment, arms={name: arm}), run=_shelf(experiment))
            measured[name][share] = _runs(pipeline, name, metric)
        except ValueError as error:  # such as a core-set whose base set alone is larger than this budget
            notes[name].append(f"{share:g}: {error}")
            console.print(f"{name} at {notes[name][-1]}", soft_wrap=True, markup=False)
            return False
        return difference(metric, measured[name][share], full, margin=margin, **settings).p_worse < 1 - level

    for name in track(list(arms), "arms"):
        if adaptive:
            bisect.bisect_left(shares, True, key=functools.partial(is_enough, name))
        else:
            for share in shares:
                is_enough(name, share)
    table = {
        "metric": metric,
        "level": level,
        "margin": margin,
        "seeds": experiment.replicates,
        "budgets": shares,
        "pool": pool,
        "tests": list(full),
        "notice": whole.notice,
        "steps": "epochs" if experiment.train.steps is None else "steps",
        FULL: mean_score(metric, full, **settings)._asdict(),
        COPY: mean_score(metric, _runs(whole, COPY, metric), **settings)._asdict(),
        "arms": {
            name: judge(
                metric,
                runs,
                full,
                baseline=measured[BASELINE] if name != BASELINE and BASELINE in measured else {},
                pool=pool,
                tested=len(shares),
                margin=margin,
                **settings,
            )
            | {"notes": notes[name]}
            for name, runs in measured.items()
        },
    }
    write_json(experiment.workdir / "curve" / "table.json", table)
    return table


def judge(
    metric: str,
    runs: Mapping[float, Runs],
    full: Runs,
    *,
    baseline: Mapping[float, Runs],
    pool: int,
    tested: int,
    margin: float,
    level: float,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """The points of one arm and its verdict.

    Args:
        runs: by budget, the runs of the arm.
        full: those of the full data, with the same seeds.
        baseline: by budget, the runs of the arm to compare with as well, where it was run.
        pool: size of the pool.
        tested: how many budgets might have been looked at, for Holm's correction.

    Returns:
        `points`, one for each budget: `budget`, `count`, `score` and `to_full` with their intervals, `p_worse`,
        `p_holm`, `enough`, and `sentence` against the baseline or None; `smallest`, `saved` and `verdict`.
    """
    settings: dict[str, Any] = {"level": level, "resamples": resamples, "seed": seed}
    shares = sorted(runs)
    found = [difference(metric, runs[share], full, margin=margin, **settings) for share in shares]
    unseen = [1.0] * (tested - len(shares))
    adjusted = holm([*(each.p_worse for each in found), *unseen])
    points = []
    for share, each, p_holm in zip(shares, found, adjusted, strict=False):
        point = {
            "budget": share,
            "count": max(1, round(share * pool)),
            "score": mean_score(metric, runs[share], **settings)._asdict(),
            "to_full": each._asdict(),
            "p_worse": each.p_worse,
            "p_holm": p_holm,
            "enough": p_holm < 1 - level,
            "sentence": None,
        }
        if share in baseline:
            against = difference(metric, runs[share], baseline[share], **settings)
            point["sentence"] = sentence(against, against=BASELINE, unit=metric, level=level)
        points.append(point)
    enough = [point for point in points if point["enough"]]
    smallest = enough[0]["budget"] if enough else None
    verdict = f"no budget qualifies: none is shown to lose less than {margin:g} {metric} against all of the data"
    if enough:
        low = enough[0]["to_full"]
        verdict = (
            f"{smallest:.3g} of the data ({enough[0]['count']} examples) is enough: {low['value']:+.1f} {metric} "
            f"[{low['low']:.1f}, {low['high']:.1f}] against all of it, p = {enough[0]['p_holm']:.2g} for a loss of "
            f"{margin:g} or more"
        )
    return {"points": points, "smallest": smallest, "saved": smallest and 1 - smallest, "verdict": verdict}


def _shelf(experiment: cfg.Experiment) -> Shelf:
    return Shelf(experiment.workdir, experiment.seed, room="curve")


def _runs(pipeline: Pipeline, arm: str, metric: str) -> Runs:
    """The statistics of every seed, by test set; copying has one run, which stands for all."""
    replicates = range(1 if arm == COPY else pipeline.experiment.replicates)
    stages = [pipeline.evaluate(arm, replicate) for replicate in replicates]
    return {
        test: np.stack(
            [np.load(stage.folder / f"statistics_{test}.{metric}.npy", allow_pickle=False) for stage in stages]
        )
        for test in pipeline.data.results["tests"]
    }
