"""The loss, and one optimiser step as a compiled program: for one model, or for many of one shape at once.

The loss of a batch is the mean over target tokens, each example counted with its selection weight w_i:

    L = sum_i w_i sum_t l_it  /  sum_i w_i |y_i|
    l_it = -(1 - e) log p(y_it) - (e / V) sum_v log p(v) + z log(Z_it)^2,    p(v) = exp(logit_v) / Z_it

with label smoothing e (Szegedy et al. 2016, section 7) and the z-loss of Mesh TensorFlow, which keeps the logits from
drifting (PaLM, arXiv 2204.02311, section 5). Both are 0 by default, and 0 in every validation loss.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from deft_tsds.t5.model import T5, shift_right

Batch = dict[str, jax.Array]
"""inputs int32 [B, S], labels int32 [B, T], weights float32 [B]; a leading axis R where there are many runs."""


class LossTerms(NamedTuple):
    """What is added to cross-entropy; traced, so that a sweep compiles once."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0


class StepLoss(NamedTuple):
    """The loss of a step, a scalar, and the weighted sum over the tokens of each example [B]."""

    mean: jax.Array
    examples_B: jax.Array


def token_losses(logits_BxTxV: jax.Array, labels_BxT: jax.Array, terms: LossTerms) -> jax.Array:
    """l_it above, float32 [B, T]."""
    log_z_BxT = jax.nn.logsumexp(logits_BxTxV, axis=-1)
    label_logits_BxT = jnp.take_along_axis(logits_BxTxV, labels_BxT[..., None], axis=-1)[..., 0]
    e = terms.label_smoothing
    aimed_BxT = (1 - e) * label_logits_BxT + e * jnp.mean(logits_BxTxV, axis=-1)
    return log_z_BxT - aimed_BxT + terms.z_loss * jnp.square(log_z_BxT)


def _token_weights(model: T5, batch: Batch) -> jax.Array:
    """w_i where the label counts and 0 at padding, float32 [B, T]."""
    return jnp.where(batch["labels"] != model.config.pad_token_id, batch["weights"][:, None], 0.0)


def summed_loss(
    model: T5, batch: Batch, key: jax.Array | None, terms: LossTerms
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Sum of the weighted token losses; the sum of the weights, and the sum of the losses of each example [B]."""
    inputs, labels = batch["inputs"], batch["labels"]
    logits = model(inputs, inputs != model.config.pad_token_id, shift_right(labels, model.config), key=key)
    weights_BxT = _token_weights(model, batch)
    losses_B = jnp.sum(token_losses(logits, labels, terms) * weights_BxT, axis=1)
    return jnp.sum(losses_B), (jnp.sum(weights_BxT), losses_B)


def _step(graph, optimizer, params, moments, frozen, batch, learning_rate, key, terms, accumulate):
    # Known beforehand, the weight of the whole batch needs no pass over the gradient afterwards.
    weight = jnp.sum(_token_weights(nnx.merge(graph, params, frozen), batch))
    weight = jnp.where(weight > 0, weight, 1.0)  # a batch of examples of weight 0 teaches nothing

    def part_loss(params, part, key):
        total, (_, losses_B) = summed_loss(nnx.merge(graph, params, frozen), part, key, terms)
        return total / weight, losses_B

    gradient = jax.grad(part_loss, has_aux=True)
    if accumulate == 1:
        grads, losses_B = gradient(params, batch, key)
    else:

        def add_part(grads, part_and_key):
            more, losses_B = gradient(params, *part_and_key)
            return jax.tree.map(jnp.add, grads, more), losses_B

        # Part a holds rows a, a + accumulate, ...: a device that holds a run of rows has its share of every part.
        parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch)
        keys = jax.random.split(key, accumulate)
        grads, losses_AxB = jax.lax.scan(add_part, jax.tree.map(jnp.zeros_like, params), (parts, keys))
        losses_B = losses_AxB.T.reshape(-1)
    updates, moments = optimizer.update(grads, moments, params)
    params = jax.tree.map(lambda p, u: p - learning_rate * u, params, updates)
    return params, moments, StepLoss(jnp.sum(losses_B) / weight, losses_B)


@functools.partial(
    jax.jit, static_argnames=("graph", "optimizer", "accumulate", "layout"), donate_argnames=("params", "moments")
)
def train_step(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    params: nnx.State,
    moments: optax.OptState,
    frozen: nnx.State,
    batch: Batch,
    learning_rate: jax.Array,
    key: jax.Array,
    terms: LossTerms,
    *,
    accumulate: int = 1,
    layout: tuple[NamedSharding, ...] | None = None,
) -> tuple[nnx.State, optax.OptState, StepLoss]:
    """One optimiser step of `params`; `frozen` is the rest of the model. Gives away the buffers of both states.

    The batch is taken in `accumulate` parts whose gradients add up to the whole batch's. `layout` has the shardings of
    the leaves of (params, moments), which the new ones get; left to itself XLA may choose others, and compile anew.
    """
    params, moments, loss = _step(
        graph, optimizer, params, moments, frozen, batch, learning_rate, key, terms, accumulate
    )
    if layout is not None:
        leaves, tree = jax.tree.flatten((params, moments))
        params, moments = jax.tree.unflatten(tree, map(jax.lax.with_sharding_constraint, leaves, layout))
    return params, moments, loss


@functools.partial(
    jax.jit,
    static_argnames=("graph", "optimizer", "accumulate", "vmapped", "mesh"),
    donate_argnames=("params", "moments"),
)
def train_step_many(
    graph: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    params: nnx.State,
    moments: optax.OptState,
    frozen: nnx.State,
    batch: Batch,
    learning_rate: jax.Array,
    keys_R: jax.Array,
    terms: LossTerms,
    *,
    accumulate: int = 1,
    vmapped: int,
    mesh: Mesh | None = None,
) -> tuple[nnx.State, optax.OptState, StepLoss]:
    """`train_step` of R runs, whose params, moments and batches are stacked along a first axis; `frozen` is shared.

    `vmapped` runs are computed side by side, the others after them; over a mesh, each device takes its share of R.
    """

    def one(arguments):
        params, moments, batch, key = arguments
        return _step(graph, optimizer, params, moments, frozen, batch, learning_rate, key, terms, accumulate)

    return _over_runs(one, (params, moments, batch, keys_R), vmapped, mesh)


@functools.partial(jax.jit, static_argnames="graph")
def validation_sums(
    graph: nnx.GraphDef, params: nnx.State, frozen: nnx.State, batch: Batch
) -> tuple[jax.Array, jax.Array]:
    """Sums of the cross-entropy and of the weights over a batch, without dropout."""
    total, (weight, _) = summed_loss(nnx.merge(graph, params, frozen), batch, None, LossTerms())
    return total, weight


@functools.partial(jax.jit, static_argnames=("graph", "vmapped", "mesh"))
def validation_sums_many(
    graph: nnx.GraphDef, params: nnx.State, frozen: nnx.State, batch: Batch, *, vmapped: int, mesh: Mesh | None = None
) -> tuple[jax.Array, jax.Array]:
    """`validation_sums` of R runs on the same batch, each [R]."""
    return _over_runs(lambda params: validation_sums(graph, params, frozen, batch), params, vmapped, mesh)


def _over_runs(one, arguments, vmapped: int, mesh: Mesh | None):
    def here(arguments):
        return jax.lax.map(one, arguments, batch_size=vmapped)

    if mesh is None:
        return here(arguments)
    axes = P(mesh.axis_names)
    return jax.shard_map(here, mesh=mesh, in_specs=axes, out_specs=axes, check_vma=False)(arguments)
