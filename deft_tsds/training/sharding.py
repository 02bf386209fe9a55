"""Many devices: one mesh, a table of rules that says how parameters are split over it, and input by process.

The mesh has two axes. Batches are split over both; parameters and their moments over "shard" alone:

    make_mesh(shards=1)     data parallel: each device holds all parameters and a part of each batch
    make_mesh()             fully sharded: each device holds a part of both (ZeRO-3, arXiv 1910.02054)
    make_mesh(shards=8)     fully sharded over each 8 devices, data parallel among these groups

XLA derives the communication from where the inputs lie; the step is the same program text as on one device, and its
numbers differ from one device's by the order of sums alone.

On several hosts call `jax.distributed.initialize()` before anything else, build the mesh from all devices, and run the
same script on each: every process reads all pairs and puts only its own rows of each batch on its devices.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from deft_tsds.geometry.mesh import spread_key as spread_key

DATA, SHARD = "data", "shard"

Rules = Sequence[tuple[str, P]]
"""A regular expression on the path of a parameter, and how it is split; the first that is found in the path counts."""

# Every matrix is split along the model width D, which is a multiple of 256 in all released sizes; the vocabulary
# (32,128 = 128 * 251) is not. A low-rank factor is split along D too, and copied where it has none.
RULES: Rules = (
    (r"(embedding_VxD|lm_head_VxD)$", P(None, SHARD)),
    (r"\b(o|wo)/b$", P(None, SHARD)),
    (r"\b(o|wo)/a$", P()),
    (r"\b(q|k|v|wi|wi_0|wi_1)/b$", P()),
    (r"\b(o|wo)(/weight)?$", P(None, SHARD)),
    (r"\b(q|k|v|wi|wi_0|wi_1)(/weight|/a)?$", P(SHARD, None)),
    (r"position_table$", P()),
)


def make_mesh(devices: Sequence[Any] | None = None, *, shards: int | None = None) -> Mesh:
    """A mesh [devices / shards, shards] of all devices, of every process, in JAX's order.

    Args:
      devices: all by default.
      shards: parts that the parameters are split into; all devices by default.

    Raises:
      ValueError: the devices are not a multiple of `shards`.
    """
    devices = jax.devices() if devices is None else list(devices)
    shards = len(devices) if shards is None else shards
    if shards < 1 or len(devices) % shards:
        raise ValueError(f"shards ({shards}) must divide the number of devices ({len(devices)}).")
    grid = np.array(devices).reshape(-1, shards)
    return Mesh(grid, (DATA, SHARD), axis_types=(AxisType.Auto, AxisType.Auto))


def state_shardings(state: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """The sharding of each array of a tree: parameters, or the moments of an optimiser, whose paths end alike.

    Rules are for matrices; vectors (norms, factored moments) and scalars are small and go whole to every device.

    Raises:
      ValueError: no rule fits a matrix, or an axis of it cannot be cut into equal parts.
    """

    def sharding(path, leaf) -> NamedSharding:
        if len(leaf.shape) < 2:
            return NamedSharding(mesh, P())
        name = _name(path)
        spec = next((spec for pattern, spec in rules if re.search(pattern, name)), None)
        if spec is None:
            raise ValueError(f"No rule says how {name} {leaf.shape} is split: add one to `rules`, P() to copy it.")
        for axis, size in zip(spec, leaf.shape, strict=False):
            parts = 1 if axis is None else mesh.shape[axis]
            if size % parts:
                raise ValueError(
                    f"{name} {leaf.shape} cannot be split into {parts} equal parts along {size}: "
                    "give make_mesh fewer shards, or add a rule that splits it elsewhere."
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, state)


def _name(path: Sequence[Any]) -> str:
    """The path of a leaf as a/b/0/c, without the wrapper of a variable."""
    parts = [str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path]
    return "/".join(part for part in parts if part != "value")


def spread(state: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """A tree of arrays, equal in every process, laid out by the rules."""
    # By way of NumPy: what lies on one device of one process cannot be moved to devices of another.
    return jax.tree.map(lambda x, to: jax.device_put(np.asarray(x), to), state, state_shardings(state, mesh, rules))


def gathered(state: Any) -> Any:
    """The whole arrays of a tree as NumPy, in every process."""
    return multihost_utils.process_allgather(state, tiled=True)


def my_rows(batch_size: int) -> slice:
    """The rows of a batch that this process puts on its devices.

    Raises:
      ValueError: the batch cannot be split evenly over all processes.
    """
    processes = jax.process_count()
    if batch_size % processes:
        raise ValueError(f"batch_size ({batch_size}) must be a multiple of the number of processes ({processes}).")
    share = batch_size // processes
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def place_batch(rows: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """The batch of all processes from the rows of each, split over all devices."""
    split = NamedSharding(mesh, P((DATA, SHARD)))
    return {name: jax.make_array_from_process_local_data(split, value) for name, value in rows.items()}
