"""Gradient features (LESS) beside one training step on the same batch: examples a second, their ratio, peak memory.

    python benchmarks/gradients.py                             # a T5 from scratch and t5-small with low-rank factors
    python benchmarks/gradients.py --only "scratch, all parameters" --dimension 8192

A feature is the Adam direction of one example at one checkpoint, projected to d numbers; LESS takes four checkpoints.
The step is `train_step`: forward, backward and AdamW on the batch as a whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tyro
from measure import compare, print_table

CASES: dict[str, dict[str, Any]] = {
    "scratch, all parameters": {"size": None, "rank": None, "rows": 16, "source": 64, "target": 32},
    "t5-small, low rank 8": {"size": "t5-small", "rank": 8, "rows": 8, "source": 64, "target": 64},
}


def _setting(size: str | None, rank: int | None, rows: int, source: int, target: int) -> tuple[Any, Any, Any]:
    """The parts of the model, moments of AdamW, and a batch."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from deft_tsds.t5 import T5, T5Config, add_lora
    from deft_tsds.t5.model import SIZES
    from deft_tsds.training.finetune import make_optimizer, trained_part

    names = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads")
    shape = dict(zip(names, (1024, 96, 24, 256, 2, 2, 4) if size is None else SIZES[size], strict=True))
    model = T5(T5Config(**shape, dropout_rate=0.0), rngs=nnx.Rngs(0))
    if rank is not None:
        model = add_lora(model, rank=rank, key=jax.random.key(1))
    parts = trained_part(model)
    keys = jax.random.split(jax.random.key(2))
    ids = [jax.random.randint(key, (rows, width), 3, 1000) for key, width in zip(keys, (source, target), strict=True)]
    batch = {"inputs": ids[0], "labels": ids[1], "weights": jnp.ones(rows)}
    return parts, make_optimizer("adamw").init(parts[1]), batch


def ours(dimension: int, **case: Any) -> Callable[[], Any]:
    import jax
    import jax.numpy as jnp
    import optax

    from deft_tsds.gradients.features import example_gradients, features

    (graph, params, frozen), _, batch = _setting(**case)
    adam = optax.scale_by_adam().init(jnp.zeros(sum(leaf.size for leaf in jax.tree.leaves(params))))

    def call():
        gradients = example_gradients(graph, frozen, params, batch["inputs"], batch["labels"])
        return features(gradients, adam, jax.random.key(3), dimension=dimension).block_until_ready()

    return call


def step(dimension: int, **case: Any) -> Callable[[], Any]:
    import jax

    from deft_tsds.training.finetune import LossTerms, make_optimizer
    from deft_tsds.training.step import train_step

    (graph, params, frozen), moments, batch = _setting(**case)
    state = [params, moments]

    def call():
        key, terms = jax.random.key(4), LossTerms()
        state[0], state[1], loss = train_step(graph, make_optimizer("adamw"), *state, frozen, batch, 1e-3, key, terms)
        return loss.mean.block_until_ready()

    return call


def main(only: list[str] | None = None, dimension: int = 1024, rounds: int = 2, calls: int = 4) -> None:
    """Time the cases.

    Args:
        only: names of cases; all by default.
        dimension: d, the numbers a feature has.
        rounds: of both contenders, in turn.
        calls: timed in each round.
    """
    rows = []
    for name in only or CASES:
        case = {**CASES[name], "dimension": dimension}
        found = compare({"features": "gradients:ours", "step": "gradients:step"}, case, rounds=rounds, calls=calls)
        features, training = found["features"], found["step"]
        rows.append(
            [
                name,
                f"{case['rows'] / features.seconds:.1f}",
                f"{case['rows'] / training.seconds:.1f}",
                f"{features.seconds / training.seconds:.2f}",
                f"{features.peak_bytes / 1e6:.0f}",
                f"{training.peak_bytes / 1e6:.0f}",
            ]
        )
    columns = ["model", "features/s", "trained examples/s", "time of a step", "peak MB", "peak MB of a step"]
    print_table(f"Gradient features of {dimension} numbers at one checkpoint", columns, rows)


if __name__ == "__main__":
    tyro.cli(main)
