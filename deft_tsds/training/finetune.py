"""Fine-tuning one T5, on one device or many, or many T5s of one shape at once.

Learning rates are an array over steps and reach the step as a traced scalar, so that arms with different numbers of
steps share one compiled program. Batches are made in another thread, and the loss of a step is looked at when the next
one is under way, so that the device never waits for the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from deft_tsds.t5.model import T5
from deft_tsds.training.batches import ExampleOrder, Pairs, tokenize_pairs
from deft_tsds.training.footprint import Shape, step_flops
from deft_tsds.training.loop import Feed, Plan, Programs, Trained, train
from deft_tsds.training.optimizers import learning_rates, make_optimizer
from deft_tsds.training.sharding import (
    RULES,
    Rules,
    gathered,
    my_rows,
    place_batch,
    spread,
    spread_key,
    state_shardings,
)
from deft_tsds.training.step import (
    LossTerms,
    train_step,
    train_step_many,
    validation_sums,
    validation_sums_many,
)
from deft_tsds.training.throughput import gemm_peak
from deft_tsds.training.tracking import Tracker

__all__ = [
    "ExampleOrder",
    "LossTerms",
    "Pairs",
    "Trained",
    "finetune",
    "finetune_many",
    "learning_rates",
    "make_optimizer",
    "tokenize_pairs",
    "validation_loss",
]

_NO_TERMS = LossTerms()


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
    terms: LossTerms = _NO_TERMS,
    validation: Pairs | None = None,
    validate_every: int = 100,
    patience: int | None = None,
    keep_best: bool = False,
    save_every: int = 500,
    log_every: int = 20,
    profile: bool = False,
    track: Sequence[Tracker] = (),
    mesh: Mesh | None = None,
    rules: Rules = RULES,
    description: str = "fine-tuning",
) -> Trained:
    """Fine-tune `model` in place, going on from the last checkpoint in `folder` if there is one.

    A model with low-rank factors (`add_lora`) has these trained and all else left as it is.

    Args:
      model: changed in place; holds the final (or the best) parameters afterwards. With `mesh` these are NumPy arrays,
        whole in every process.
      pairs: the training set; its weights enter the loss.
      rates: learning rate of each step, float32 [steps]; its length is the number of steps.
      batch_size: examples a step; a multiple of `accumulate` times the devices of `mesh`.
      key: fixes the order of the examples and the dropout.
      folder: gets `checkpoints/` (parameters, moments), `best/` (if the best are kept), `profile/` and `metrics.jsonl`.
      optimizer: from `make_optimizer`.
      accumulate: parts of a batch that are taken one after another.
      terms: label smoothing and z-loss.
      validation: pairs for the validation loss.
      validate_every: steps between validation losses.
      patience: stop after so many validation losses in a row that are no better than the best; keeps the best.
      keep_best: end with the parameters of the best validation loss.
      save_every: steps between checkpoints.
      log_every: steps between rows of `metrics.jsonl`. A row has the loss, tokens a second, and the utilisation: model
        FLOP/s as a share of what a matrix product reaches on the same devices.
      profile: write a trace of three steps to `folder/profile`.
      track: where the rows of `metrics.jsonl` are copied to (see `deft_tsds.training.tracking`).
      mesh: from `sharding.make_mesh`; parameters and batches are split over it, by this and all other processes.
      rules: how parameters are split.
      description: shown beside the progress bar.

    Raises:
      ValueError: `batch_size` is no multiple of what it must be; `patience` or `keep_best` without `validation`; a
        token that the model does not have; a parameter that the rules cannot split.
      FloatingPointError: the loss is no longer finite; the message names the pairs.
    """
    devices = 1 if mesh is None else mesh.size
    _check([pairs], validation, model, batch_size=batch_size, accumulate=accumulate, devices=devices)
    if (patience is not None or keep_best) and validation is None:
        raise ValueError("patience and keep_best need validation pairs: set train.validation to a number of rows.")
    graph, params, frozen = trained_part(model)
    order_key, dropout_key = jax.random.split(key)
    if mesh is None:
        # The step donates its buffers: those of the caller's model must not be the ones given away.
        params = jax.tree.map(jnp.copy, params)
        moments, layout = jax.jit(optimizer.init)(params), None
    else:
        params, frozen, dropout_key = (
            spread(params, mesh, rules),
            spread(frozen, mesh, rules),
            spread_key(dropout_key, mesh),
        )
        laid_out = state_shardings(jax.eval_shape(optimizer.init, params), mesh, rules)
        moments = jax.jit(optimizer.init, out_shardings=laid_out)(params)
        layout = tuple(leaf.sharding for leaf in jax.tree.leaves((params, moments)))
    order = ExampleOrder(pairs.lengths_N, batch_size, key=order_key)

    def placed(pairs: Pairs, rows: np.ndarray, weights_B: np.ndarray) -> dict[str, jax.Array]:
        if mesh is None:
            return jax.device_put({**pairs.batch(rows), "weights": weights_B})
        mine = my_rows(batch_size)
        return place_batch({**pairs.batch(rows[mine], pairs.widths(rows)), "weights": weights_B[mine]}, mesh)

    def feed(step: int) -> Feed:
        rows = order[step - 1]
        batch = placed(pairs, rows, pairs.weights_N[rows])
        return Feed(batch, [pairs.names(rows)], int(pairs.lengths_N[rows].sum()), _flops(model, batch))

    def step(params, moments, batch, rate, step):
        key = jax.random.fold_in(dropout_key, step)
        state, how = (params, moments, frozen), {"accumulate": accumulate, "layout": layout}
        return train_step(graph, optimizer, *state, batch, rate, key, terms, **how)

    def validate(params, pairs: Pairs) -> np.ndarray:
        def sums(rows, weights_B):
            return validation_sums(graph, params, frozen, placed(pairs, rows, weights_B))

        return _mean_loss(pairs, batch_size, sums)

    params, [trained] = train(
        Programs(feed, step, None if validation is None else partial(validate, pairs=validation)),
        params,
        moments,
        Plan(
            rates=rates,
            validate_every=validate_every,
            patience=patience,
            keep_best=keep_best or patience is not None,
            save_every=save_every,
            log_every=log_every,
            profile=profile,
            track=track,
            description=description,
        ),
        folder=folder,
        logs=[folder / "metrics.jsonl"],
        peak=devices * gemm_peak(model.dtype),
    )
    nnx.update(model, params if mesh is None else gathered(params))
    return trained


def finetune_many(
    models: Sequence[T5],
    pairs: Sequence[Pairs],
    *,
    keys: Sequence[jax.Array],
    rates: np.ndarray,
    batch_size: int,
    folder: Path,
    optimizer: optax.GradientTransformation,
    accumulate: int = 1,
    terms: LossTerms = _NO_TERMS,
    validation: Pairs | None = None,
    validate_every: int = 100,
    save_every: int = 500,
    log_every: int = 20,
    profile: bool = False,
    track: Sequence[Tracker] = (),
    names: Sequence[str] | None = None,
    vmapped: int | None = None,
    mesh: Mesh | None = None,
    description: str = "fine-tuning",
) -> list[Trained]:
    """R fine-tunings of models of one shape in one program: other seeds, other selections, or both.

    Run r has the order, the dropout keys and the learning rates of `finetune(models[r], pairs[r], key=keys[r], ...)`,
    and its losses up to the order of sums. The batches of a step are all as wide as the widest of them; this changes
    nothing but what dropout draws, which depends on the width.

    Args:
      models: R models, changed in place. Models with low-rank factors must share all else.
      pairs: R training sets; they may differ in size.
      keys: R keys.
      folder: gets `checkpoints/` (of all runs together), and `<name>/metrics.jsonl` for each run.
      names: of the R runs, for their folders and in messages; 0, 1, ... by default.
      vmapped: runs computed side by side by `vmap`; the others follow in the same program. By default all, and 1 on
        CPU, where XLA multiplies the matrices of a batch one by one anyway and eight models at once leave the cache.
      mesh: its devices share the runs out among them; R must be a multiple of their number.
      rates, batch_size, optimizer, accumulate, terms, validation, validate_every, save_every, log_every, profile,
        track, description: as in `finetune`, the same for all runs. There is no early stopping.

    Raises:
      ValueError: not as many models, pairs and keys; models of more than one shape; else as `finetune`.
      FloatingPointError: the loss of a run is no longer finite; the message names the run and its pairs.
    """
    count, devices = len(models), 1 if mesh is None else mesh.size
    names = [str(run) for run in range(count)] if names is None else list(names)
    if not count or {len(pairs), len(keys), len(names)} != {count}:
        given = f"{count} models, {len(pairs)} pairs, {len(keys)} keys and {len(names)} names"
        raise ValueError(f"finetune_many: got {given}; give one a run.")
    if count % devices:
        raise ValueError(f"finetune_many: {count} runs cannot be shared out evenly among {devices} devices.")
    _check(pairs, validation, models[0], batch_size=batch_size, accumulate=accumulate, devices=1)
    graph, frozen, params = _stack(models)
    if vmapped is None:
        vmapped = 1 if jax.default_backend() == "cpu" else count
    many = {"vmapped": min(vmapped, count // devices), "mesh": mesh}
    moments = jax.jit(jax.vmap(optimizer.init))(params)
    place = None if mesh is None else NamedSharding(mesh, P(mesh.axis_names))
    params, moments = jax.device_put((params, moments), place)
    order_keys_R, dropout_keys_R = jax.vmap(jax.random.split, out_axes=1)(jnp.stack(list(keys)))
    orders = [ExampleOrder(p.lengths_N, batch_size, key=key) for p, key in zip(pairs, order_keys_R, strict=True)]

    def feed(step: int) -> Feed:
        chosen = [(p, order[step - 1]) for p, order in zip(pairs, orders, strict=True)]
        source, target = np.max([p.widths(rows) for p, rows in chosen], axis=0).tolist()
        batches = [p.batch(rows, (source, target)) for p, rows in chosen]
        batch = jax.device_put({name: np.stack([b[name] for b in batches]) for name in batches[0]}, place)
        tokens = sum(int(p.lengths_N[rows].sum()) for p, rows in chosen)
        return Feed(batch, [p.names(rows) for p, rows in chosen], tokens, _flops(models[0], batch))

    def step(params, moments, batch, rate, step):
        keys_R = jax.vmap(jax.random.fold_in, (0, None))(dropout_keys_R, step)
        state = (params, moments, frozen)
        return train_step_many(graph, optimizer, *state, batch, rate, keys_R, terms, accumulate=accumulate, **many)

    def validate(params, pairs: Pairs) -> np.ndarray:
        def sums(rows, weights_B):
            batch = {**pairs.batch(rows), "weights": weights_B}
            return validation_sums_many(graph, params, frozen, batch, **many)

        return _mean_loss(pairs, batch_size, sums)

    params, trained = train(
        Programs(feed, step, None if validation is None else partial(validate, pairs=validation)),
        params,
        moments,
        Plan(
            rates=rates,
            validate_every=validate_every,
            patience=None,
            keep_best=False,
            save_every=save_every,
            log_every=log_every,
            profile=profile,
            track=track,
            description=description,
            names=names,
        ),
        folder=folder,
        logs=[folder / name / "metrics.jsonl" for name in names],
        peak=devices * gemm_peak(models[0].dtype),
    )
    for run, model in enumerate(models):
        nnx.update(model, jax.tree.map(lambda x, run=run: x[run], params))
    return trained


def validation_loss(model: T5, pairs: Pairs, *, batch_size: int) -> float:
    """Cross-entropy per target token over all of `pairs`, without dropout."""
    graph, params, frozen = trained_part(model)

    def sums(rows, weights_B):
        return validation_sums(graph, params, frozen, {**pairs.batch(rows), "weights": weights_B})

    return float(_mean_loss(pairs, batch_size, sums)[0])


def _mean_loss(pairs: Pairs, batch_size: int, sums: Callable[[np.ndarray, np.ndarray], Any]) -> np.ndarray:
    """Mean loss over all pairs, [R], from `sums(rows, weights_B)`; the last batch is filled up by weight 0."""
    total = weight = np.zeros(1)
    for start in range(0, len(pairs), batch_size):
        places = np.arange(start, start + batch_size)
        rows = places % len(pairs)
        weights_B = np.where(places < len(pairs), pairs.weights_N[rows], np.float32(0))
        loss_sum, weight_sum = sums(rows, weights_B)
        total, weight = total + np.asarray(loss_sum, np.float64), weight + np.asarray(weight_sum, np.float64)
    return total / weight


def trained_part(model: T5) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """The graph, what is trained (low-rank factors, or all parameters where there are none), and the rest."""
    adapted = bool(jax.tree.leaves(nnx.state(model, nnx.LoRAParam)))
    graph, params, frozen = nnx.split(model, nnx.LoRAParam if adapted else nnx.Param, ...)
    return graph, params, frozen


def _stack(models: Sequence[T5]) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """The graph, what is not trained, and what is, stacked along a new first axis."""
    graphs, states, rest = zip(*map(trained_part, models), strict=True)
    for run in range(1, len(models)):
        if graphs[run] != graphs[0]:
            raise ValueError(f"finetune_many: model {run} is not of the shape of model 0.")
        if not jax.tree.all(jax.tree.map(jnp.array_equal, rest[0], rest[run])):
            raise ValueError(f"finetune_many: model {run} differs from model 0 in what is not trained.")
    return graphs[0], rest[0], jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


def _check(
    pairs: Sequence[Pairs], validation: Pairs | None, model: T5, *, batch_size: int, accumulate: int, devices: int
) -> None:
    if batch_size % (accumulate * devices):
        over = "" if devices == 1 else f" times the number of devices ({devices})"
        raise ValueError(f"batch_size ({batch_size}) must be a multiple of accumulate ({accumulate}){over}.")
    vocabulary = model.config.vocab_size
    for some in (*pairs, *([] if validation is None else [validation])):
        if not len(some):
            raise ValueError("Fine-tuning needs pairs: a training or validation set is empty.")
        for side in (some.inputs_NxS, some.labels_NxT):
            outside = np.argwhere((side < 0) | (side >= vocabulary))
            if len(outside):
                row, column = outside[0]
                raise ValueError(
                    f"Pair {some.names(np.array([row]))[0]} has token {side[row, column]}, and the model knows "
                    f"{vocabulary}: was it made with the tokenizer of another model?"
                )


def _flops(model: T5, batch: dict[str, jax.Array]) -> float:
    """Model FLOPs of a step on this batch, padding computed and so counted."""
    (*many, rows, source), target = batch["inputs"].shape, batch["labels"].shape[-1]
    lora = bool(jax.tree.leaves(nnx.state(model, nnx.LoRAParam)))
    return float(np.prod(many)) * step_flops(model.config, Shape(rows, source, target), lora=lora)
