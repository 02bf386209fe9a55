"""The loop of a fine-tuning: steps, a look at each loss, validation, the log, checkpoints.

It knows nothing of models and devices: one run or R runs at once, on one device or many, are `Programs` to it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from deft_tsds.running import stopping
from deft_tsds.runs import progress_bar
from deft_tsds.training.batches import ahead
from deft_tsds.training.checkpoints import Checkpoints
from deft_tsds.training.sharding import gathered
from deft_tsds.training.step import StepLoss
from deft_tsds.training.throughput import Meter, Trace
from deft_tsds.training.tracking import TrackedLog, Tracker


class Feed(NamedTuple):
    """What one step eats: the batch on its devices, and for messages and the log the names of its pairs [R][B], their
    tokens without padding, and the model FLOPs of the step."""

    batch: dict[str, jax.Array]
    names: list[list[str]]
    tokens: int
    flops: float


@dataclasses.dataclass(frozen=True)
class Programs:
    """What is run: `feed(step)`, `step(params, moments, batch, rate, step)`, and `validate(params)`, float64 [R]."""

    feed: Callable[[int], Feed]
    step: Callable[..., tuple[Any, Any, StepLoss]]
    validate: Callable[[Any], np.ndarray] | None


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long, and what when; the fields are arguments of `finetune`."""

    rates: np.ndarray
    validate_every: int
    patience: int | None
    keep_best: bool
    save_every: int
    log_every: int
    profile: bool
    track: Sequence[Tracker]
    description: str
    names: Sequence[str] = ("",)
    """What messages call each of the R runs."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """How a fine-tuning went: steps taken, the step whose parameters were kept, and the losses there."""

    steps: int
    kept_step: int
    loss: float
    validation_loss: float | None


def train(
    programs: Programs, params: Any, moments: Any, plan: Plan, *, folder: Path, logs: Sequence[Path], peak: float
) -> tuple[Any, list[Trained]]:
    """Take all steps, going on from the checkpoint in `folder` if there is one.

    Args:
      programs: for R runs.
      params, moments: the state before the first step; both are given away.
      plan: with `keep_best`, R is 1.
      folder: of the checkpoints and the trace.
      logs: the `metrics.jsonl` of each of the R runs.
      peak: FLOP/s of all devices, of which the utilisation is a share.

    Returns:
      The parameters to keep, and R results.

    Raises:
      FloatingPointError: the loss of a run is no longer finite.
      Stopped: the process was told to stop; there is a checkpoint of the last step that it took.
    """
    checkpoints = Checkpoints(folder)
    progress: dict[str, Any] = {"losses": [math.nan] * len(logs), "validation_losses": None}
    progress |= {"best_loss": math.inf, "best_step": 0, "worse": 0}
    start, params, moments, progress = checkpoints.resume(params, moments, progress)

    writes = jax.process_index() == 0
    opened = contextlib.ExitStack()
    rows = [TrackedLog(path, keep_until_step=start, track=plan.track) for path in logs if writes]
    for log in rows:
        opened.callback(log.close)
    meter, trace = Meter(peak), Trace(folder / "profile" if plan.profile else None)
    began, last = time.perf_counter(), len(plan.rates)
    unchecked: tuple[int, Feed, StepLoss] | None = None

    def stopped() -> bool:
        return plan.patience is not None and progress["worse"] >= plan.patience

    if stopped():
        last = start
    with stopping.deferred(), opened, progress_bar() as bar, trace:
        task = bar.add_task(plan.description, total=last, completed=start, note="")
        for step, feed in enumerate(ahead(programs.feed, start + 1, last + 1), start + 1):
            trace.before(step - start)
            params, moments, loss = programs.step(params, moments, feed.batch, plan.rates[step - 1], step)
            bar.advance(task)
            meter.count(feed.flops, feed.tokens)
            if unchecked is not None:  # this step is under way: nothing waits for the host
                _finite_losses(*unchecked, plan)
            unchecked = (step, feed, loss)
            logged = step % plan.log_every == 0 or step in (1, last)
            validated = programs.validate is not None and (step % plan.validate_every == 0 or step == last)
            told = stopping.requested(together=logged)  # this machine is wanted elsewhere: what is done must be saved
            saved = step % plan.save_every == 0 or step == last or told
            if not (logged or validated or saved):
                continue
            losses = _finite_losses(*unchecked, plan)
            unchecked = None
            found: list[dict[str, Any]] = [{} for _ in logs]
            if logged:
                progress["losses"] = losses
                speed = {} if step == start + 1 else meter.read()  # the first step compiles
                found = [{"loss": loss, **speed} for loss in losses]
                bar.update(task, note=f"loss {np.mean(losses):.3f}")
            if validated and programs.validate is not None:
                held_out = progress["validation_losses"] = programs.validate(params).tolist()
                found = [{**row, "validation_loss": loss} for row, loss in zip(found, held_out, strict=True)]
                if held_out[0] < progress["best_loss"]:
                    progress |= {"best_loss": held_out[0], "best_step": step, "worse": 0}
                    if plan.keep_best:
                        checkpoints.keep_as_best(step, params)
                else:
                    progress["worse"] += 1
            if logged or validated:
                about = {
                    "step": step,
                    "learning_rate": float(plan.rates[step - 1]),
                    "seconds": time.perf_counter() - began,
                }
                for log, row in zip(rows, found, strict=False):  # only the first process has logs
                    log.write({**about, **row})
            if saved or stopped():
                checkpoints.save(step, params, moments, progress)
            if told:
                stopping.stop()
            meter.restart()
            if stopped():
                last = step
                break
    losses, kept, held_out = progress["losses"], last, progress["validation_losses"]
    if plan.keep_best:
        kept, held_out = progress["best_step"], [progress["best_loss"]]
        params = checkpoints.best(kept, params)
    checkpoints.close()
    return params, [
        Trained(steps=last, kept_step=kept, loss=loss, validation_loss=None if held_out is None else held_out[run])
        for run, loss in enumerate(losses)
    ]


def _finite_losses(step: int, feed: Feed, loss: StepLoss, plan: Plan) -> list[float]:
    """The losses of the R runs, if they are finite."""
    losses_R = np.atleast_1d(np.asarray(loss.mean, np.float64))
    if np.isfinite(losses_R).all():
        return losses_R.tolist()
    run = int(np.flatnonzero(~np.isfinite(losses_R))[0])
    examples_B = gathered(loss.examples_B).reshape(len(losses_R), -1)[run]
    wrong = [name for name, value in zip(feed.names[run], examples_B, strict=True) if not np.isfinite(value)]
    where = plan.description if len(losses_R) == 1 else f"{plan.description}, run {plan.names[run]}"
    if wrong and len(wrong) < len(examples_B):
        cause = (
            f"It comes from {len(wrong)} of its {len(examples_B)} pairs: {', '.join(wrong)}. Look at these, or lower"
        )
    else:
        cause = (
            f"It is so in every pair ({', '.join(feed.names[run])}): an earlier step has spoiled the parameters. Lower"
        )
    raise FloatingPointError(
        f"{where}: the loss is {losses_R[run]} at step {step}. {cause} train.learning_rate "
        f"(now {plan.rates[step - 1]:.2g})."
    )
