"""Meshes of candidates: which rows lie where, and how what is found of them comes together.

A mesh has one axis, "candidates", along which the rows are split: device i of P has the i-th of P equal parts, the last
ones filled up with rows that never count. On several hosts (`jax.distributed.initialize()` first) every process runs
the same program on the same arguments; it reads its own rows alone of a memory-map or a store, and has the whole
result in the end.

The same ids on every mesh, that is the rule here, and three things make it true:

- What is compared is defined by the rows alone (neighbours: a distance and an index, in one integer), so that the best
  of the best of parts are the best of all.
- What is summed is summed exactly: rows are rounded to a grid so coarse that float64 holds every partial sum of them
  to the last bit (`grid`). Then no order of the summands, and so no mesh, can change a sum.
- Where neither is possible, work is cut into blocks of one fixed shape, whatever the mesh, and their results are added
  in the order of the blocks.

A function of a mesh waits for all processes: call it in all of them, or, where one works for itself while the others
wait (it writes a report, say), inside `processes.alone()`. A stage of a run that one process does is inside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import jax
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from deft_tsds.arrays import Rows, as_matrix
from deft_tsds.running.processes import alone, is_alone

AXIS = "candidates"


def candidates_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of devices over the one axis "candidates", process by process, so that each has consecutive rows.

    Args:
        devices: all devices of all processes by default.
    """
    devices = sorted(jax.devices() if devices is None else devices, key=lambda x: (x.process_index, x.id))
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


def mesh_of(mesh: Mesh | None) -> Mesh | None:
    """The mesh to work on: the devices of `mesh`; of all processes where it is None; None for a single CPU device."""
    if mesh is not None:
        return candidates_mesh(mesh.devices.ravel().tolist())
    devices = jax.local_devices() if is_alone() else jax.devices()
    return candidates_mesh(devices) if len(devices) > 1 or jax.default_backend() != "cpu" else None


def local_part(mesh: Mesh) -> Mesh:
    """The devices of this process."""
    return candidates_mesh(list(mesh.local_devices))


def processes(mesh: Mesh | None) -> Mesh:
    """One device of each process of a mesh: whom it takes to tell each other something."""
    first: dict[int, Any] = {}
    for device in [] if mesh is None else mesh.devices.flat:
        first.setdefault(device.process_index, device)
    return candidates_mesh(list(first.values()) or jax.local_devices()[:1])


def place_of(mesh: Mesh | None) -> tuple[int, int]:
    """Which of the processes of a mesh this is, and how many there are."""
    indices = [device.process_index for device in processes(mesh).devices.flat]
    return indices.index(jax.process_index()), len(indices)


@dataclass(frozen=True)
class Layout:
    """N rows on a mesh: device i has the rows i S to (i + 1) S, as far as there are so many."""

    mesh: Mesh
    n: int
    share: int

    @classmethod
    def of(cls, mesh: Mesh, n: int, *, multiple: int = 1) -> Layout:
        """Equal shares, each a multiple of some number of rows."""
        return cls(mesh, n, -(-n // (multiple * mesh.size)) * multiple)

    @property
    def mine(self) -> slice:
        """The rows of this process."""
        here = [i for i, device in enumerate(self.mesh.devices.flat) if device.process_index == jax.process_index()]
        return slice(min(here[0] * self.share, self.n), min((here[-1] + 1) * self.share, self.n))

    def place(self, read: Callable[[slice, int], np.ndarray], width: int) -> jax.Array:
        """float32 [P S, width] on the devices of all processes.

        Args:
            read: gives some rows (none, for a device that has only filling), filled up to a number of rows.
            width: columns of a row.
        """

        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(self.mesh.size * self.share)
            return read(slice(min(start, self.n), min(stop, self.n)), self.share)

        shape = self.mesh.size * self.share, width
        return jax.make_array_from_callback(shape, NamedSharding(self.mesh, P(AXIS)), part)


def own_rows(mesh: Mesh | None, n: int) -> slice:
    """The rows of N that this process reads: equal parts, one a process."""
    return slice(0, n) if mesh is None else Layout.of(processes(mesh), n).mine


def per_device(mesh: Mesh, function: Callable, *, inputs: Any, outputs: Any) -> Callable:
    """`function` run by every device on its part: `P(AXIS)` for what is split, `P()` for what all have."""
    return jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)


def summed(mesh: Mesh | None, x: np.ndarray) -> np.ndarray:
    """The sum over all processes of arrays of one shape, in every process. Two summands or more of float64 may lose a
    bit unless they lie on a `grid`."""
    meeting = processes(mesh)
    if meeting.size == 1:
        return x
    with jax.enable_x64(True):
        return np.array(_summed(meeting)(_contributed(meeting, x)))


def exchanged(mesh: Mesh | None, x: np.ndarray) -> np.ndarray:
    """The arrays of all processes, [processes, ...], in every process; any type, bit for bit."""
    meeting = processes(mesh)
    if meeting.size == 1:
        return x[None]
    return np.array(_gathered(meeting)(_contributed(meeting, _words(x)))).view(x.dtype)


def merged(mesh: Mesh | None, keys_MxK: np.ndarray) -> np.ndarray:
    """The K smallest integers of each row among those of all processes, in every process.

    Each process merges its share of the rows: a result crosses the network twice, however many processes there are.
    """
    meeting = processes(mesh)
    if meeting.size == 1:
        return keys_MxK
    m, k = keys_MxK.shape
    rows = -(-m // meeting.size)
    sent_PxRxK = np.zeros((meeting.size, rows, k), keys_MxK.dtype)
    sent_PxRxK.reshape(-1, k)[:m] = keys_MxK
    received = _swapped(meeting)(_contributed(meeting, _words(sent_PxRxK)))
    found_PxRxK = np.asarray(received.addressable_shards[0].data)[0].view(keys_MxK.dtype)
    both_RxPK = found_PxRxK.transpose(1, 0, 2).reshape(rows, -1)
    return exchanged(mesh, np.partition(both_RxPK, k - 1, axis=1)[:, :k]).reshape(-1, k)[:m]


def whole(x: jax.Array) -> np.ndarray:
    """An array that is split over a mesh, in every process."""
    if x.is_fully_addressable:
        return np.asarray(x)
    return np.asarray(_replicated(cast(NamedSharding, x.sharding).mesh)(x))


def spread_key(key: jax.Array, mesh: Mesh) -> jax.Array:
    """A key, equal in every process, on every device."""
    data = np.asarray(jax.random.key_data(key))
    wrap = jax.jit(
        lambda data: jax.random.wrap_key_data(data, impl=jax.random.key_impl(key)),
        out_shardings=NamedSharding(mesh, P()),
    )
    return wrap(data)


def by_own_rows(function: Callable[[slice], np.ndarray], n: int) -> np.ndarray:
    """`function(rows)` [rows, ...], of whose values each is of one row: every process does its own rows, and has all in
    the end."""
    mesh = mesh_of(None)
    layout = Layout.of(processes(mesh), n)
    if layout.mesh.size == 1:
        return function(slice(0, n))
    with alone():
        own = function(layout.mine)
    padded = np.zeros((layout.share, *own.shape[1:]), own.dtype)
    padded[: len(own)] = own
    return np.concatenate(exchanged(mesh, padded))[:n]


def rows_of(mesh: Mesh | None, matrix_NxD: Any, rows: np.ndarray) -> np.ndarray:
    """Some rows of a matrix in every process, each read by the process whose own it is."""
    mine = own_rows(mesh, len(matrix_NxD))
    if mine == slice(0, len(matrix_NxD)):
        return np.asarray(matrix_NxD[rows])
    here = np.flatnonzero((rows >= mine.start) & (rows < mine.stop))
    found = np.zeros((len(rows), matrix_NxD.shape[1]), np.float32)
    found[here] = matrix_NxD[rows[here]]
    return summed(mesh, found)


def as_shared_matrix(x: Any, name: str, mesh: Mesh | None) -> np.ndarray:
    """`as_matrix` where every process checks its own rows alone, and all refuse what one of them refuses."""
    on_disk = isinstance(x, Rows) or (isinstance(x, np.ndarray) and x.ndim == 2 and x.dtype == np.float32)
    if processes(mesh).size == 1 or not on_disk or 0 in x.shape:
        return as_matrix(x, name)
    mine, refusal = own_rows(mesh, len(x)), None
    if mine.start < mine.stop:
        try:
            as_matrix(Part(x, mine), f"{name} from row {mine.start} on" if mine.start else name)
        except ValueError as error:
            refusal = error
    refused = np.flatnonzero(exchanged(mesh, np.array([refusal is not None]).astype(np.uint32)))
    if refusal is not None:
        raise refusal
    if len(refused):
        raise ValueError(f"{name} has bad rows among those of process {refused[0]}: its own message says which.")
    return cast(np.ndarray, x)


class Part(Rows):
    """Consecutive rows of a matrix, each read when it is asked for."""

    def __init__(self, matrix_NxD: Any, rows: slice):
        self._matrix_NxD, self._first, self._count = matrix_NxD, rows.start, rows.stop - rows.start

    @property
    def shape(self) -> tuple[int, int]:
        return self._count, self._matrix_NxD.shape[1]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        if isinstance(rows, slice):
            start, stop, step = rows.indices(self._count)
            return self._matrix_NxD[slice(start + self._first, stop + self._first, step)]
        return self._matrix_NxD[np.asarray(rows) + self._first]


def grid(largest: float, n: int) -> float:
    """The spacing, a power of two, of a grid on which sums of N numbers of at most `largest` are exact in float64.

    All partial sums are whole multiples of it, below 2^52 of them. It is `largest` 2^-35 for N = 100,000, below what
    float32 resolves there. The factor keeps a largest length of 1, up to rounding, off the border of two powers.
    """
    return math.ldexp(1.0, math.frexp(1.25 * largest)[1] + math.ceil(math.log2(max(n, 2))) - 52)


def _contributed(meeting: Mesh, x: np.ndarray) -> jax.Array:
    """[processes, ...], each with what it has to say."""
    return jax.make_array_from_process_local_data(NamedSharding(meeting, P(AXIS)), np.ascontiguousarray(x)[None])


def _words(x: np.ndarray) -> np.ndarray:
    """An array as 32-bit words along its last axis, which no device changes."""
    return np.ascontiguousarray(x).view(np.uint32)


@cache
def _summed(mesh: Mesh) -> Callable:
    return jax.jit(per_device(mesh, lambda x: lax.psum(x[0], AXIS), inputs=P(AXIS), outputs=P()))


@cache
def _gathered(mesh: Mesh) -> Callable:
    return jax.jit(per_device(mesh, lambda x: lax.all_gather(x[0], AXIS), inputs=P(AXIS), outputs=P()))


@cache
def _swapped(mesh: Mesh) -> Callable:
    """Part q of process p to process q as its part p."""
    swap = per_device(mesh, lambda x: lax.all_to_all(x, AXIS, 1, 1), inputs=P(AXIS), outputs=P(AXIS))
    return jax.jit(swap)


@cache
def _replicated(mesh: Mesh) -> Callable:
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))
