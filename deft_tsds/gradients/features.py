"""Gradient features: what a step on one example would do to the model, as d numbers a checkpoint (LESS).

Reference: "LESS: Selecting Influential Data for Targeted Instruction Tuning", arXiv 2402.04333. With theta_i and eta_i
the parameters and the mean learning rate of checkpoint i, z an example of the pool and z' one of the target task,

    Inf(z, z') = sum_i eta_i cos(grad l(z'; theta_i), Gamma(z; theta_i))                       (definition 3.1)

where l is the mean loss of an example's target tokens and Gamma the step that Adam would take on z alone, with the
moments that it has at theta_i (section 2). A feature row holds, side by side for all checkpoints,

    sqrt(eta_i / sum_i' eta_i') v_i / |v_i|,    v_i = S_i Gamma(z; theta_i), or S_i grad l(z'; theta_i) for the target,

S_i the random projection of checkpoint i (`projection`), so that the dot product of a row of the pool and a row of the
target is an estimate of Inf over sum_i eta_i, and every row has length 1.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from deft_tsds.arrays import check_count, normalize_rows
from deft_tsds.gradients.projection import check_dimension, project
from deft_tsds.gradients.warmup import Checkpoint
from deft_tsds.t5.model import T5
from deft_tsds.training.finetune import LossTerms, Pairs, trained_part
from deft_tsds.training.step import summed_loss

Direction = Literal["adam", "gradient"]


class GradientEncoder:
    """An encoder of pairs, whose texts are row numbers: "0", "1", ... (see `deft_tsds.embed.Encoder`).

    `write_store(folder, encoder.texts, encoder)` makes a store of them that a killed call goes on with. Only the
    gradients of `batch_size` examples are ever held.

    Args:
      model: of the warm-up run; its parameters are not read, those of the checkpoints are.
      checkpoints: from `warm_up`.
      pairs: N examples; their weights count for nothing.
      direction: "adam" for the pool (Gamma), "gradient" for the target examples.
      dimension: d, a power of two; D = d times the number of checkpoints.
      key: decides the projections: the same for pool and target.
      batch_size: examples whose gradients are held at once, about 3 P floats each for P trained parameters; a multiple
        of the devices of `mesh`.
      mesh: its devices share out the examples; each holds the model.

    Raises:
      ValueError: no checkpoints, learning rates that are all 0, an unknown direction, or a number out of range.
    """

    name = "gradients"

    def __init__(
        self,
        model: T5,
        checkpoints: Sequence[Checkpoint],
        pairs: Pairs,
        *,
        direction: Direction,
        dimension: int,
        key: jax.Array,
        batch_size: int = 16,
        mesh: Mesh | None = None,
    ):
        check_dimension(dimension)
        check_count(batch_size, "batch_size", 1)
        if direction not in ("adam", "gradient"):
            raise ValueError(f'direction is {direction!r}: give "adam" for the pool or "gradient" for the target.')
        rates = np.array([checkpoint.rate for checkpoint in checkpoints])
        if not rates.sum() > 0:
            raise ValueError("checkpoints: give at least one, of a learning rate above 0.")
        if mesh is not None and batch_size % mesh.size:
            raise ValueError(f"batch_size is {batch_size}: give a multiple of the {mesh.size} devices.")
        self._graph, _, self._frozen = trained_part(model)
        self._checkpoints, self._weights = checkpoints, rates / rates.sum()
        self._pairs, self._direction, self._dimension = pairs, direction, dimension
        self._key, self._batch_size, self._mesh = key, batch_size, mesh

    @property
    def texts(self) -> list[str]:
        """What to embed: all the pairs, in order."""
        return [str(row) for row in range(len(self._pairs))]

    def settings(self) -> dict[str, Any]:
        return {
            "direction": self._direction,
            "dimension": self._dimension,
            "key": jax.random.key_data(self._key).tolist(),
            "weights": self._weights.tolist(),
            "sha256": self._hash,
        }

    @cached_property
    def _hash(self) -> str:
        """Of the model, the checkpoints and the pairs."""
        digest = hashlib.sha256(repr(self._graph).encode())
        states = [(checkpoint.params, checkpoint.adam) for checkpoint in self._checkpoints]
        for leaf in jax.tree.leaves((self._frozen, states, self._pairs.inputs_NxS, self._pairs.labels_NxT)):
            digest.update(np.ascontiguousarray(leaf).data)
        return digest.hexdigest()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 [n, D] of length 1: the features of the pairs of these numbers. A gradient of 0 stays 0."""
        rows = np.array([int(text) for text in texts])
        by_length = np.argsort(self._pairs.lengths_N[rows], kind="stable")
        batches = [by_length[start : start + self._batch_size] for start in range(0, len(rows), self._batch_size)]
        found_LxNxd = np.empty((len(self._checkpoints), len(rows), self._dimension), np.float32)
        whole = None if self._mesh is None else NamedSharding(self._mesh, P())
        frozen = jax.device_put(self._frozen, whole)
        for number, checkpoint in enumerate(self._checkpoints):
            adam = None
            if self._direction == "adam":
                moments = {"mu": _flat_on_host(checkpoint.adam.mu), "nu": _flat_on_host(checkpoint.adam.nu)}
                adam = checkpoint.adam._replace(**moments)
            params, adam, key = jax.device_put((checkpoint.params, adam, jax.random.fold_in(self._key, number)), whole)
            for places in batches:
                filled = np.resize(places, self._batch_size)  # the last batch is filled up by its own rows
                batch = self._pairs.batch(rows[filled], self._pairs.widths(rows[places]))
                gradients_BxP = example_gradients(
                    self._graph, frozen, params, batch["inputs"], batch["labels"], mesh=self._mesh
                )
                projected_Bxd = features(gradients_BxP, adam, key, dimension=self._dimension, mesh=self._mesh)
                found_LxNxd[number, places] = np.asarray(projected_Bxd)[: len(places)]
        parts = [
            np.sqrt(weight) * normalize_rows(found) for weight, found in zip(self._weights, found_LxNxd, strict=True)
        ]
        return np.concatenate(parts, axis=1).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("graph", "mesh"))
def example_gradients(
    graph: nnx.GraphDef,
    frozen: nnx.State,
    params: nnx.State,
    inputs_BxS: jax.Array,
    labels_BxT: jax.Array,
    mesh: Mesh | None = None,
) -> jax.Array:
    """The gradient of each example's mean loss over its target tokens, without dropout: float32 [B, P], the parameters
    one after another in the order of `jax.tree.leaves`."""

    def loss(params, inputs_S, labels_T):
        batch = {"inputs": inputs_S[None], "labels": labels_T[None], "weights": jnp.ones(1)}
        total, (tokens, _) = summed_loss(nnx.merge(graph, params, frozen), batch, None, LossTerms())
        return total / tokens

    def flat_gradient(params, inputs_S, labels_T):
        gradient = jax.grad(loss)(params, inputs_S, labels_T)
        return jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(gradient)])

    return _by_rows(jax.vmap(flat_gradient, (None, 0, 0)), mesh, "whole", "rows", "rows")(
        params, inputs_BxS, labels_BxT
    )


@functools.partial(jax.jit, static_argnames=("dimension", "mesh"))
def features(
    gradients_BxP: jax.Array,
    adam: optax.ScaleByAdamState | None,
    key: jax.Array,
    *,
    dimension: int,
    mesh: Mesh | None = None,
) -> jax.Array:
    """The projected direction of each example, float32 [B, d]: the step of an Adam whose moments are vectors [P], or
    without a state of Adam the gradient itself.

    A program apart from the gradients': it knows nothing of the widths of the batch, and XLA, which would fuse Adam
    with the gradients of each parameter, took minutes to compile the two as one.
    """

    def here(gradients_BxP, adam, key):
        directions_BxP = gradients_BxP
        if adam is not None:
            update: Any = optax.scale_by_adam().update
            directions_BxP = jax.vmap(lambda gradient: update(gradient, adam)[0])(gradients_BxP)
        return project(directions_BxP, key, dimension=dimension)

    return _by_rows(here, mesh, "rows", "whole", "whole")(gradients_BxP, adam, key)


def _by_rows(function: Callable[..., jax.Array], mesh: Mesh | None, *inputs: Literal["rows", "whole"]):
    """Each device takes its share of the rows, and gives as many; no device needs another."""
    if mesh is None:
        return function
    rows = P(mesh.axis_names)
    specs = tuple(rows if each == "rows" else P() for each in inputs)
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)


def _flat_on_host(tree: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
