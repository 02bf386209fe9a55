"""Low-rank adaptation: few parameters to train, none to run once they are merged.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models" (arXiv 2106.09685), equation 3: a matrix W [I, O]
is left as it is, and what it does to x becomes

    x W + (alpha / rank) (x A) B,      A [I, rank] Gaussian, B [rank, O] zero,

so that the adapted model starts as the one that it adapts. A and B are `nnx.LoRAParam`, everything else stays
`nnx.Param`; what is trained is one filter:

    adapted = add_lora(model, rank=8, key=key)
    graph, trained, frozen = nnx.split(adapted, nnx.LoRAParam, ...)
    ...                                                      # gradients and moments of `trained` only
    model = merge_lora(nnx.merge(graph, trained, frozen))    # plain matrices again, for export
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

import jax
import jax.numpy as jnp
from flax import nnx

from deft_tsds.t5.model import T5, Attention, FeedForward


class LowRank(nnx.Module):
    """A projection [I, O] with its correction (A B) alpha / rank; stands where the matrix alone stood."""

    def __init__(self, weight: nnx.Param, *, rank: int, alpha: float, key: jax.Array):
        inputs, outputs = weight.shape
        self.scale = alpha / rank
        self.weight = weight
        self.a = nnx.LoRAParam(inputs**-0.5 * jax.random.normal(key, (inputs, rank), jnp.float32))
        self.b = nnx.LoRAParam(jnp.zeros((rank, outputs), jnp.float32))

    def __call__(self, x: jax.Array) -> jax.Array:
        low = x @ self.a[...].astype(x.dtype)
        return x @ self.weight[...].astype(x.dtype) + self.scale * (low @ self.b[...].astype(x.dtype))

    def merged(self) -> nnx.Param:
        """The matrix W + (A B) alpha / rank, float32."""
        product = jnp.matmul(self.a[...], self.b[...], precision=jax.lax.Precision.HIGHEST)
        return nnx.Param(self.weight[...].astype(jnp.float32) + self.scale * product)


def add_lora(
    model: T5, *, rank: int, key: jax.Array, targets: Collection[str] = ("q", "v"), alpha: float | None = None
) -> T5:
    """A model that shares the arrays of `model` and has a `LowRank` in place of every matrix named in `targets`.

    Args:
        model: left as it is.
        rank: of the correction; A and B have rank (I + O) numbers for the I O of the matrix.
        key: draws the A of every matrix; under `vmap` it gives one set of factors a seed.
        targets: names of matrices: q, k, v, o of all attentions, wi or wi_0, wi_1, and wo of the feed-forwards. q and
            v are what section 7.1 of the paper finds best for a given number of parameters.
        alpha: the correction counts alpha / rank; by default alpha is the rank.

    Raises:
        ValueError: rank is below 1, alpha is not positive, the model is adapted already, or a target names no matrix.
    """
    alpha = float(rank if alpha is None else alpha)
    if rank < 1 or not (alpha > 0 and math.isfinite(alpha)):
        raise ValueError(f"add_lora: rank must be at least 1 and alpha positive, got {rank} and {alpha}.")
    adapted = nnx.clone(model)
    matrices = list(_matrices(adapted))
    if any(isinstance(getattr(module, name), LowRank) for module, name in matrices):
        raise ValueError("add_lora: the model has low-rank factors already. Call merge_lora first.")
    names = {name for _, name in matrices}
    if not targets or not set(targets) <= names:
        raise ValueError(f"add_lora: targets must be among {sorted(names)}, got {list(targets)}.")
    for number, (module, name) in enumerate(matrices):
        if name in targets:
            factors = LowRank(getattr(module, name), rank=rank, alpha=alpha, key=jax.random.fold_in(key, number))
            setattr(module, name, factors)
    return adapted


def merge_lora(model: T5) -> T5:
    """A model of plain matrices that computes what `model` does; one without low-rank factors comes back equal."""
    plain = nnx.clone(model)
    for module, name in list(_matrices(plain)):
        projection = getattr(module, name)
        if isinstance(projection, LowRank):
            setattr(module, name, projection.merged())
    return plain


def _matrices(model: T5) -> Iterator[tuple[nnx.Module, str]]:
    """Every projection of the layers as (the module that has it, its name there), in one fixed order."""
    for _, module in nnx.iter_modules(model):
        if isinstance(module, Attention | FeedForward):
            for name in sorted(vars(module)):
                if isinstance(getattr(module, name), nnx.Param | LowRank):
                    yield module, name
