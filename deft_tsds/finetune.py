"""Fine-tuning: one jitted step, a learning rate for each step, checkpoints from which a killed run goes on.

The loss of a batch is the cross-entropy per target token, each example counted with its selection weight w_i:

    L = sum_i w_i sum_t -log p(y_it | y_i<t, x_i)  /  sum_i w_i |y_i|

Learning rates are an array over steps and reach the step as a traced scalar, so that arms with different numbers of
steps share one compiled program. The order of the examples is a Grain data set with random access: the step number *is*
the input position, so that a checkpoint at step s says what comes next. Batches hold pairs of like length and are cut
to a few widths, which saves half of the work on ordinary text and compiles a handful of programs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx

from deft_tsds.runs import MetricsLog, progress_bar
from deft_tsds.t5.model import T5, shift_right

_WIDTH_STEP = 32  # batches are cut to multiples of it: more would compile more programs, fewer would compute on padding
_BATCHES_SORTED = 8  # batches whose examples are drawn together and grouped by length


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Tokenized pairs, padded with the pad id to one width a side.

    Attributes:
      inputs_NxS: int32 prompt ids.
      labels_NxT: int32 target ids.
      weights_N: float32 weight of each pair in the loss.
      cut: number of prompts or targets that were longer than allowed.
      pad_token_id: fills the rows at the end.
    """

    inputs_NxS: np.ndarray
    labels_NxT: np.ndarray
    weights_N: np.ndarray
    cut: int
    pad_token_id: int = 0

    def __len__(self) -> int:
        return len(self.inputs_NxS)

    @cached_property
    def lengths_N(self) -> np.ndarray:
        """Tokens of each pair, both sides together."""
        pad = self.pad_token_id
        return (self.inputs_NxS != pad).sum(1) + (self.labels_NxT != pad).sum(1)

    def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The pairs of some rows, each side cut to the least multiple of `_WIDTH_STEP` that loses no token."""
        sides = {"inputs": self.inputs_NxS[rows], "labels": self.labels_NxT[rows]}
        for name, ids_BxS in sides.items():
            longest = int((ids_BxS != self.pad_token_id).sum(1).max())
            sides[name] = ids_BxS[:, : -(-longest // _WIDTH_STEP) * _WIDTH_STEP]
        return {**sides, "weights": self.weights_N[rows]}


def tokenize_pairs(
    tokenizer: Any,
    prompts: Sequence[str],
    targets: Sequence[str],
    *,
    max_input_tokens: int,
    max_target_tokens: int,
    weights: np.ndarray | None = None,
) -> Pairs:
    """Tokenize prompts and targets to fixed widths (the longest row, at most the given limits).

    Raises:
      ValueError: no pairs, or a weight for each pair is not given.
    """
    if not prompts or len(prompts) != len(targets):
        raise ValueError(f"Fine-tuning needs pairs: got {len(prompts)} prompts and {len(targets)} targets.")
    if weights is None:
        weights = np.ones(len(prompts), np.float32)
    if len(weights) != len(prompts):
        raise ValueError(f"weights has {len(weights)} entries for {len(prompts)} pairs.")
    sides, cut = [], 0
    for texts, limit in ((prompts, max_input_tokens), (targets, max_target_tokens)):
        rows = tokenizer(list(texts), verbose=False).input_ids  # too long a text is counted, not warned of
        cut += sum(len(row) > limit for row in rows)
        # The end-of-sequence token stays when a text is cut.
        rows = [row if len(row) <= limit else [*row[: limit - 1], row[-1]] for row in rows]
        padded = np.full((len(rows), max(map(len, rows))), tokenizer.pad_token_id, np.int32)
        for padded_row, row in zip(padded, rows, strict=True):
            padded_row[: len(row)] = row
        sides.append(padded)
    return Pairs(*sides, weights_N=np.asarray(weights, np.float32), cut=cut, pad_token_id=tokenizer.pad_token_id)


@functools.cache  # equal arguments give the same object, so that the jitted step is compiled once
def make_optimizer(name: str, *, weight_decay: float = 0.0, clip: float = 1.0) -> optax.GradientTransformation:
    """The update direction, to be multiplied by minus the learning rate.

    "adamw" is Adam with decoupled decay on matrices; "adafactor" is Adafactor with T5's settings (factored second
    moments, updates clipped to root mean square 1, steps relative to the parameter scale).
    """
    if name == "adamw":
        return optax.chain(
            optax.clip_by_global_norm(clip),
            optax.scale_by_adam(),
            optax.add_decayed_weights(weight_decay, mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params)),
        )
    if name == "adafactor":
        return optax.chain(
            optax.clip_by_global_norm(clip),
            optax.scale_by_factored_rms(),
            optax.clip_by_block_rms(1.0),
            optax.scale_by_param_block_rms(),
        )
    raise ValueError(f'optimizer must be "adamw" or "adafactor", not {name!r}.')


def learning_rates(*, steps: int, peak: float, warmup: float, schedule: str) -> np.ndarray:
    """The learning rate of each step, float32 [steps]: linear warm-up over a share of the steps, then the schedule."""
    warm = round(warmup * steps)
    rest = max(steps - warm, 1)
    after = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
    }
    if schedule not in after:
        raise ValueError(f"schedule must be one of {sorted(after)}, not {schedule!r}.")
    # One past the start, so that the first step of a warm-up is not lost.
    rising = optax.linear_schedule(peak / max(warm, 1), peak, max(warm - 1, 1))
    joined = optax.join_schedules([rising, after[schedule]], [warm])
    return np.asarray(jax.vmap(joined)(jnp.arange(steps)), np.float32)


def _summed_loss(model: T5, batch: dict[str, jax.Array], key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Sum of the weighted token losses, and the sum of the weights."""
    inputs, labels, pad = batch["inputs"], batch["labels"], model.config.pad_token_id
    logits = model(inputs, inputs != pad, shift_right(labels, model.config), key=key)
    weights = jnp.where(labels != pad, batch["weights"][:, None], 0.0)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.sum(losses * weights), jnp.sum(weights)


@functools.partial(jax.jit, static_argnames=("graph", "optimizer", "accumulate"), donate_argnames=("params", "moments"))
def train_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    params: nnx.State,
    moments: optax.OptState,
    batch: dict[str, jax.Array],
    learning_rate: jax.Array,
    key: jax.Array,
    *,
    accumulate: int = 1,
) -> tuple[nnx.State, optax.OptState, jax.Array]:
    """One optimiser step; the batch is taken in `accumulate` parts whose gradients add up to the whole batch's."""

    def part_loss(params, part, key):
        return _summed_loss(nnx.merge(graph, params), part, key)

    gradient = jax.value_and_grad(part_loss, has_aux=True)
    if accumulate == 1:
        (loss, weight), grads = gradient(params, batch, key)
    else:

        def add_part(sums, part_and_key):
            return jax.tree.map(jnp.add, sums, gradient(params, *part_and_key)), None

        parts = jax.tree.map(lambda x: x.reshape(accumulate, -1, *x.shape[1:]), batch)
        keys = jax.random.split(key, accumulate)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, params, batch, key))
        ((loss, weight), grads), _ = jax.lax.scan(add_part, zeros, (parts, keys))
    grads = jax.tree.map(lambda x: x / weight, grads)
    updates, moments = optimizer.update(grads, moments, params)
    params = jax.tree.map(lambda p, u: p - learning_rate * u, params, updates)
    return params, moments, loss / weight


@functools.partial(jax.jit, static_argnames="graph")
def _validation_sums(graph: nnx.GraphDef, params: nnx.State, batch: dict[str, jax.Array]):
    return _summed_loss(nnx.merge(graph, params), batch, None)


def validation_loss(model: T5, pairs: Pairs, *, batch_size: int) -> float:
    """Loss per target token over all of `pairs`, without dropout."""
    graph, params = nnx.split(model)
    return _validation_loss(graph, params, pairs, batch_size)


def _validation_loss(graph: nnx.GraphDef, params: nnx.State, pairs: Pairs, batch_size: int) -> float:
    total = weight = 0.0
    for start in range(0, len(pairs), batch_size):
        rows = np.arange(start, start + batch_size)
        batch = pairs.batch(rows % len(pairs))
        batch["weights"] = np.where(rows < len(pairs), batch["weights"], 0.0)  # the last batch is filled up
        loss_sum, weight_sum = _validation_sums(graph, params, batch)
        total, weight = total + float(loss_sum), weight + float(weight_sum)
    return total / weight


class ExampleOrder:
    """Row numbers of the batch of each step, `order[step]` for any step: shuffled anew each epoch, without end.

    The rows of eight batches at a time are drawn by a shuffled Grain data set, sorted by length, cut into batches, and
    the batches shuffled: a batch holds pairs of like length, in random order of lengths.
    """

    def __init__(self, lengths_N: np.ndarray, batch_size: int, *, key: jax.Array):
        self._lengths_N, self._batch_size = lengths_N, batch_size
        self._seed = int(jax.random.bits(key, dtype=jnp.uint32))
        self._rows = grain.MapDataset.range(len(lengths_N)).seed(self._seed).shuffle().repeat()
        self._last: tuple[int, np.ndarray] = (-1, np.empty(0))

    def __getitem__(self, step: int) -> np.ndarray:
        """int64 [batch_size]"""
        group, place = divmod(step, _BATCHES_SORTED)
        if self._last[0] != group:
            self._last = (group, self._group(group))
        return self._last[1][place]

    def _group(self, group: int) -> np.ndarray:
        size = _BATCHES_SORTED * self._batch_size
        rows = np.array([self._rows[position] for position in range(group * size, (group + 1) * size)])
        rows = rows[np.argsort(self._lengths_N[rows], kind="stable")].reshape(_BATCHES_SORTED, self._batch_size)
        return np.random.default_rng((self._seed, group)).permutation(rows)


@dataclasses.dataclass(frozen=True)
class Trained:
    """How a fine-tuning went: steps taken, the step whose parameters were kept, and the losses there."""

    steps: int
    kept_step: int
    loss: float
    validation_loss: float | None


class _Checkpoints:
    """The latest checkpoint and the best parameters in a folder; Orbax writes to a temporary name and renames."""

    def __init__(self, folder: Path):
        options = ocp.CheckpointManagerOptions(max_to_keep=1, create=True)
        self._latest = ocp.CheckpointManager((folder / "checkpoints").absolute(), options=options)
        self._best = ocp.CheckpointManager((folder / "best").absolute(), options=options)

    def resume(self, params: Any, moments: Any, progress: dict[str, Any]) -> tuple[int, Any, Any, dict[str, Any]]:
        """Step, parameters, moments and progress of the latest checkpoint; what is given, at step 0, without one."""
        start = self._latest.latest_step() or 0
        if start == 0:
            return 0, params, moments, progress
        state = ocp.args.StandardRestore({"params": params, "moments": moments})
        found = self._latest.restore(start, args=ocp.args.Composite(state=state, progress=ocp.args.JsonRestore()))
        for step in self._best.all_steps():
            if step > start:  # the steps after `start` are taken again and will keep it again
                self._best.delete(step)
        return start, found["state"]["params"], found["state"]["moments"], found["progress"]

    def save(self, step: int, params: Any, moments: Any, progress: dict[str, Any]) -> None:
        state = ocp.args.StandardSave({"params": params, "moments": moments})
        self._latest.save(step, args=ocp.args.Composite(state=state, progress=ocp.args.JsonSave(progress)))
        self._latest.wait_until_finished()  # the next step gives these buffers away

    def keep_as_best(self, step: int, params: Any) -> None:
        self._best.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave({"params": params})))
        self._best.wait_until_finished()

    def best(self, step: int, params: Any) -> Any:
        target = ocp.args.Composite(state=ocp.args.StandardRestore({"params": params}))
        return self._best.restore(step, args=target)["state"]["params"]

    def close(self) -> None:
        self._latest.close()
        self._best.close()


def finetune(
    model: T5,
    pairs: Pairs,
    *,
    rates: np.ndarray,
    batch_size: int,
    key: jax.Array,
    folder: Path,
    optimizer: optax.GradientTransformation,
    accumulate: int = 1,
    validation: Pairs | None = None,
    validate_every: int = 100,
    patience: int | None = None,
    save_every: int = 500,
    log_every: int = 20,
    description: str = "fine-tuning",
) -> Trained:
    """Fine-tune `model` in place, going on from the last checkpoint in `folder` if there is one.

    Args:
      model: changed in place; holds the final (with `patience`: the best) parameters afterwards.
      pairs: the training set; its weights enter the loss.
      rates: learning rate of each step, float32 [steps]; its length is the number of steps.
      batch_size: examples a step; a multiple of `accumulate`.
      key: fixes the order of the examples and the dropout.
      folder: gets `checkpoints/` (parameters, moments), `best/` (with `patience`) and `metrics.jsonl`.
      optimizer: from `make_optimizer`.
      accumulate: parts of a batch that are taken one after another.
      validation: pairs for the validation loss.
      validate_every: steps between validation losses.
      patience: stop after so many validation losses in a row that are no better than the best.
      save_every: steps between checkpoints.
      log_every: steps between rows of `metrics.jsonl`.
      description: shown beside the progress bar.

    Raises:
      ValueError: `batch_size` is no multiple of `accumulate`; `patience` without `validation`.
      FloatingPointError: the loss is no longer finite.
    """
    if batch_size % accumulate:
        raise ValueError(f"batch_size ({batch_size}) must be a multiple of accumulate ({accumulate}).")
    if patience is not None and validation is None:
        raise ValueError("patience needs validation pairs: set train.validation to a number of rows.")
    graph, params = nnx.split(model)
    # The step donates its buffers: those of the caller's model must not be the ones given away.
    params = jax.tree.map(jnp.copy, params)
    moments = jax.jit(optimizer.init)(params)
    order_key, dropout_key = jax.random.split(key)
    order = ExampleOrder(pairs.lengths_N, batch_size, key=order_key)

    checkpoints = _Checkpoints(folder)
    progress = {"loss": math.nan, "validation_loss": None, "best_loss": math.inf, "best_step": 0, "worse": 0}
    start, params, moments, progress = checkpoints.resume(params, moments, progress)

    log = MetricsLog(folder / "metrics.jsonl", keep_until_step=start)
    began, last = time.perf_counter(), len(rates)
    with progress_bar() as bar:
        task = bar.add_task(description, total=last, completed=start, note="")
        for step in range(start + 1, last + 1):
            if patience is not None and progress["worse"] >= patience:
                last = step - 1
                break
            params, moments, loss_of_step = train_step(
                graph,
                optimizer,
                params,
                moments,
                pairs.batch(order[step - 1]),
                rates[step - 1],
                jax.random.fold_in(dropout_key, step),
                accumulate=accumulate,
            )
            bar.advance(task)
            row: dict[str, Any] = {}
            if step % log_every == 0 or step in (1, last):
                loss = float(loss_of_step)
                if not math.isfinite(loss):
                    raise FloatingPointError(
                        f"{description}: the loss is {loss} at step {step}. Lower train.learning_rate "
                        f"(now {rates[step - 1]:.2g}) or look at the pairs {order[step - 1].tolist()}."
                    )
                row["loss"] = progress["loss"] = loss
                bar.update(task, note=f"loss {loss:.3f}")
            if validation is not None and (step % validate_every == 0 or step == last):
                held_out_loss = _validation_loss(graph, params, validation, batch_size)
                row["validation_loss"] = progress["validation_loss"] = held_out_loss
                if held_out_loss < progress["best_loss"]:
                    progress |= {"best_loss": held_out_loss, "best_step": step, "worse": 0}
                    if patience is not None:
                        checkpoints.keep_as_best(step, params)
                else:
                    progress["worse"] += 1
            if row:
                seconds = time.perf_counter() - began
                log.write({"step": step, "learning_rate": float(rates[step - 1]), "seconds": seconds, **row})
            if step % save_every == 0 or step == last:
                checkpoints.save(step, params, moments, progress)
    kept, held_out_loss = last, progress["validation_loss"]
    if patience is not None:
        kept, held_out_loss = progress["best_step"], progress["best_loss"]
        params = checkpoints.best(kept, params)
    log.close()
    checkpoints.close()
    nnx.update(model, params)
    return Trained(steps=last, kept_step=kept, loss=progress["loss"], validation_loss=held_out_loss)
