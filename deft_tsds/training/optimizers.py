"""Optimisers and learning rates, by optax."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax


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
    """The learning rate of each step, float32 [steps]: linear warm-up over a share of the steps, then the schedule.

    "rsqrt" is T5's own pre-training schedule, peak * sqrt(warm / step) after a warm-up of `warm` steps.
    """
    warm = round(warmup * steps)
    rest = max(steps - warm, 1)
    after = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "rsqrt": lambda step: peak * jnp.sqrt(max(warm, 1) / (step + max(warm, 1))),
    }
    if schedule not in after:
        raise ValueError(f"schedule must be one of {sorted(after)}, not {schedule!r}.")
    # One past the start, so that the first step of a warm-up is not lost.
    rising = optax.linear_schedule(peak / max(warm, 1), peak, max(warm - 1, 1))
    joined = optax.join_schedules([rising, after[schedule]], [warm])
    return np.asarray(jax.vmap(joined)(jnp.arange(steps)), np.float32)
