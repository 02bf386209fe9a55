"""The features of a pool and of its targets as stores on disk: the whole of LESS but for the choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from deft_tsds.data.examples import Examples
from deft_tsds.embed.shared import write_shared_store
from deft_tsds.embed.store import Store, open_store, write_store
from deft_tsds.gradients.features import Direction, GradientEncoder
from deft_tsds.gradients.warmup import warm_up
from deft_tsds.t5.lora import add_lora
from deft_tsds.t5.model import T5
from deft_tsds.training.finetune import Pairs, learning_rates

SHARD_ROWS = 1024  # a few seconds to a minute of gradients: what a kill can cost


def write_gradients(
    folder: Path,
    model: T5,
    pool: Examples,
    targets: Mapping[str, Examples],
    tokenized: Callable[[Examples], Pairs],
    *,
    dimension: int,
    share: float,
    epochs: int,
    learning_rate: float,
    warmup: float,
    batch_size: int,
    lora: Mapping[str, Any] | None,
    at_once: int,
    key: jax.Array,
    mesh: Mesh | None = None,
) -> dict[str, Store]:
    """Train on a random share of the pool, and write what a step on each example would do at the checkpoints.

    A killed call goes on where it stopped, in the short run as in the stores.

    Args:
        folder: gets `warm-up`, `pool` and a store for each name of `targets`.
        model: what the short run begins with; changed in place where it has no low-rank factors to get.
        pool: the candidates, with targets; their features are Adam's steps.
        targets: examples of the target tasks by name, with targets; their features are plain gradients.
        tokenized: turns examples into pairs of the model's tokens.
        dimension: d of each checkpoint, a power of two; D = d `epochs`.
        share: of the pool that the short run trains on, in (0, 1].
        epochs: of the short run, each of which ends in a checkpoint.
        learning_rate: its peak; it rises over the part `warmup` of the steps and falls to 0 afterwards.
        batch_size: examples a step of the short run.
        lora: arguments of `add_lora`, whose factors alone are then trained and seen; None is all parameters.
        at_once: examples whose gradients are held at once.
        key: fixes the share, the factors, the order of the short run, and the projections.
        mesh: of all devices of all processes, each of which calls this: they train together, and then each takes its
            part of the examples. None where one process does it, be it of several.

    Returns:
        The stores by name, "pool" first; rows of unit length, float32 [N, D].

    Raises:
        ValueError: an example without a target, since a loss needs one; otherwise as `warm_up`, `GradientEncoder` and
            `write_store`.
    """
    named = {"pool": pool, **targets}
    for name, examples in named.items():
        if "" in examples.targets:
            row = examples.targets.index("")
            raise ValueError(
                f"{name}, row {row} ({examples.ids[row]!r}), has no target, and a gradient is that of a loss: set its "
                "target_field, or drop such rows."
            )
    share_key, lora_key, train_key, key = jax.random.split(key, 4)
    count = max(1, round(share * len(pool)))
    rows = np.sort(np.asarray(jax.random.permutation(share_key, len(pool)))[:count])
    if lora is not None:
        model = add_lora(model, **lora, key=lora_key)
    steps = epochs * -(-count // batch_size)
    checkpoints = warm_up(
        model,
        tokenized(pool.take(rows)),
        rates=learning_rates(steps=steps, peak=learning_rate, warmup=warmup, schedule="linear"),
        checkpoints=epochs,
        batch_size=batch_size,
        key=train_key,
        folder=folder / "warm-up",
        mesh=mesh,
    )
    stores = {}
    for name, examples in named.items():
        direction: Direction = "adam" if name == "pool" else "gradient"
        encoder = GradientEncoder(
            model,
            checkpoints,
            tokenized(examples),
            direction=direction,
            dimension=dimension,
            key=key,
            batch_size=at_once,
        )
        write = write_store if mesh is None else write_shared_store
        write(folder / name, encoder.texts, encoder, ids=examples.ids, shard_rows=SHARD_ROWS)
        stores[name] = open_store(folder / name)
    return stores
