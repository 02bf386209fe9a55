"""The warm-up run of LESS: a short fine-tuning whose checkpoints keep parameters, Adam moments and learning rates."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from deft_tsds.running import processes
from deft_tsds.t5.model import T5
from deft_tsds.training.checkpoints import Checkpoints
from deft_tsds.training.finetune import Pairs, finetune, make_optimizer, trained_part
from deft_tsds.training.sharding import gathered, spread, state_shardings


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of the warm-up run after some of its steps; its arrays are NumPy's, on the host.

    Attributes:
        params: what is trained: the low-rank factors, or all parameters of a model without any.
        adam: count and moments of Adam for the same.
        rate: eta, the mean learning rate of the steps since the checkpoint before.
    """

    params: nnx.State
    adam: optax.ScaleByAdamState
    rate: float


def warm_up(
    model: T5,
    pairs: Pairs,
    *,
    rates: np.ndarray,
    checkpoints: int,
    batch_size: int,
    key: jax.Array,
    folder: Path,
    mesh: Mesh | None = None,
    **options: Any,
) -> list[Checkpoint]:
    """Fine-tune `model` by Adam and keep its state after each of `checkpoints` equal parts of the steps.

    The parts are one run: the order of the examples and the learning rates go on where the part before has stopped. A
    killed call goes on from the last checkpoint in `folder`; a finished one reads it all back.

    Args:
        model: changed in place; at the end it has the parameters of the last checkpoint.
        pairs: a random share of the pool; LESS takes 5%.
        rates: learning rate of each step, float32 [steps].
        checkpoints: how many; LESS keeps one an epoch, of four.
        batch_size: examples a step.
        key: fixes the order of the examples and the dropout.
        folder: gets a folder `part-1`, `part-2`, ... each, of `finetune`.
        mesh: as of `finetune`; all its processes call this.
        options: further arguments of `finetune`, such as `accumulate` and `save_every`.

    Raises:
        ValueError: fewer steps than checkpoints, or as `finetune`.
    """
    if not 1 <= checkpoints <= len(rates):
        raise ValueError(f"checkpoints is {checkpoints}: give 1 to {len(rates)}, the number of steps.")
    optimizer = make_optimizer("adamw")
    found, parts, before = [], np.array_split(np.asarray(rates), checkpoints), 0
    for number, part in enumerate(parts, start=1):
        here = folder / f"part-{number}"
        with contextlib.nullcontext() if mesh is None else processes.writer_first(f"{here}: begun"):
            if number > 1 and not here.exists():
                half = folder / f".part-{number}"
                shutil.rmtree(half, ignore_errors=True)
                shutil.copytree(folder / f"part-{number - 1}", half)
                os.replace(half, here)
        before += len(part)
        finetune(
            model,
            pairs,
            rates=rates[:before],
            batch_size=batch_size,
            key=key,
            folder=here,
            mesh=mesh,
            optimizer=optimizer,
            description=f"warm-up, part {number} of {checkpoints}",
            **options,
        )
        state, fetch = _empty_state(model, optimizer, mesh), jax.device_get if mesh is None else gathered
        kept = Checkpoints(here)
        _, params, moments, _ = kept.resume(*state, {})
        kept.close()
        found.append(Checkpoint(*fetch((params, _adam_state(moments))), rate=float(part.mean())))
    return found


def _empty_state(model: T5, optimizer: optax.GradientTransformation, mesh: Mesh | None) -> tuple[nnx.State, Any]:
    """Parameters and moments of the right shapes in the right places, for those of a checkpoint."""
    params = trained_part(model)[1]
    if mesh is None:
        return params, optimizer.init(params)
    laid_out = state_shardings(jax.eval_shape(optimizer.init, params), mesh)
    params = spread(params, mesh)
    return params, jax.jit(optimizer.init, out_shardings=laid_out)(params)


def _adam_state(moments: optax.OptState) -> optax.ScaleByAdamState:
    """Adam's part of the state of a chain."""
    states = jax.tree.leaves(moments, is_leaf=lambda state: isinstance(state, optax.ScaleByAdamState))
    return next(state for state in states if isinstance(state, optax.ScaleByAdamState))
