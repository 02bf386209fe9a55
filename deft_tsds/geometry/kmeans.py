"""k-means: greedy k-means++ and Lloyd's iterations on points in memory, mini-batches on points that do not fit.

Here the points are read, centred and brought to the devices. The mathematics is in `kmeans_mesh`, compiled, and for
mini-batches in `kmeans_programs`; where the only device is the CPU itself, Lloyd's iterations are those of
`kmeans_host`, which end in the same place sooner.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from deft_tsds.arrays import as_matrix, check_count, check_real, normalize_rows
from deft_tsds.geometry import kmeans_host as host
from deft_tsds.geometry import kmeans_mesh
from deft_tsds.geometry import kmeans_programs as programs
from deft_tsds.geometry.mesh import Layout, as_shared_matrix, candidates_mesh, grid, mesh_of, summed, whole
from deft_tsds.runs import track
from deft_tsds.sampling import check_key, generator_of

# A batch is made of runs of so many neighbouring rows.
_RUN_ROWS = 32


@dataclass(frozen=True, eq=False)
class KMeans:
    """A clustering of N points into K clusters.

    Attributes:
        centroids_KxD: float32, the mean of each cluster (of unit length if spherical).
        labels_N: int32, the nearest centroid of each point; ties go to the lower index.
        inertia: sum of squared distances of the points to their centroids.
        iterations: Lloyd iterations that were run; for mini-batches, passes over the points.
        converged: whether it stopped by itself before `max_iterations`.

    Example:
        >>> found = dt.kmeans(np.arange(12.0).reshape(6, 2), 3, key=jax.random.key(0))
        >>> found.centroids_KxD.shape, found.labels_N.shape, found.converged
        ((3, 2), (6,), True)
    """

    centroids_KxD: np.ndarray
    labels_N: np.ndarray
    inertia: float
    iterations: int
    converged: bool

    @property
    def sizes_K(self) -> np.ndarray:
        """int64, how many points each cluster holds; 0 only when there are fewer distinct points than clusters."""
        return np.bincount(self.labels_N, minlength=len(self.centroids_KxD))


def kmeans(
    points,
    k: int,
    *,
    key: jax.Array,
    init: Literal["k-means++"] | np.ndarray = "k-means++",
    max_iterations: int = 100,
    tolerance: float = 1e-4,
    spherical: bool = False,
    restarts: int = 1,
    batch_size: int | None = None,
    mesh: Mesh | None = None,
) -> KMeans:
    """Cluster points: min over c_1..c_k of sum_i min_j |x_i - c_j|^2, by Lloyd's iterations or by mini-batches.

    Lloyd's iterations stop when no label changes, or when the squared movement of all centroids together is at most
    `tolerance` times the mean variance of the coordinates (scikit-learn's rule). A cluster that loses all its points
    takes the point farthest from its own centroid, lowest index first. From the same start they end where
    `KMeans(algorithm="lloyd")` ends. One centred copy of the points is held on the device.

    With `batch_size` the points may be a memory-map larger than memory: only batches and blocks of it are ever held.
    A pass gives every point to its nearest centroid once, in batches of runs of neighbouring rows in random order, and
    a batch moves each centroid c that got points by c <- c + (1 / v_c) sum (x - c), v_c the number of points it got
    so far. A centroid that gets none in a whole pass takes the farthest point of the last batch. Passes stop when one
    lowers the inertia met on the way by at most `tolerance` of itself; one more gives labels and inertia.

    Args:
        points: [N, D] finite numbers; a float32 memory-map is not copied on the host.
        k: number of clusters, 1 <= k <= N. With fewer than k distinct points the clusters that are left over stay
            empty, each at a copy of a point.
        key: `jax.random.key(seed)`; with `init` an array and no batches it decides nothing.
        init: "k-means++" (greedy: the best of 2 + floor(log k) draws each time; for mini-batches on a sample of
            3 max(batch_size, k) points) or an array [k, D] of first centroids.
        max_iterations: at most this many iterations, or passes, >= 1.
        tolerance: >= 0; 0 runs until no label changes, or until a pass does not lower the inertia.
        spherical: cluster by angle: rows are brought to unit length, and so is every centroid.
        restarts: the result of lowest inertia of so many runs, the first among equals; run r has the key
            `jax.random.fold_in(key, r)` when there is more than one.
        batch_size: rows of a mini-batch, k <= batch_size; None for Lloyd's iterations.
        mesh: the devices to work on, whatever the axes; all devices of all processes when None. The same starts and
            labels on any, in every process (`kmeans_mesh` says why). Mini-batches are not split: every process works
            on all of them.

    Returns:
        A `KMeans` of NumPy arrays.

    Raises:
        ValueError: bad rows, k < 1, k > N, an `init` of the wrong shape or an unknown name, restarts from one and the
            same `init`, a batch smaller than k.

    References:
        Arthur and Vassilvitskii, "k-means++: the advantages of careful seeding", 2007 (section 7 for the greedy form).
        Sculley, "Web-scale k-means clustering", 2010 (algorithm 1).

    Example:
        >>> points = np.array([[0.0], [0.5], [5.0], [5.5]])
        >>> found = dt.kmeans(points, 2, key=jax.random.key(0))
        >>> sorted(found.centroids_KxD[:, 0].tolist())
        [0.25, 5.25]
        >>> bool(found.labels_N[0] == found.labels_N[1])
        True
    """
    mesh = mesh_of(mesh) if batch_size is None else None
    points_NxD = as_shared_matrix(points, "points", mesh)
    n, d = points_NxD.shape
    k = check_count(k, "k", 1, n)
    max_iterations = check_count(max_iterations, "max_iterations", 1)
    tolerance = check_real(tolerance, "tolerance", at_least=0)
    restarts = check_count(restarts, "restarts", 1)
    key = check_key(key)
    start_KxD = None
    if isinstance(init, str):
        if init != "k-means++":
            raise ValueError(f"init must be 'k-means++' or an array of centroids [{k}, {d}], not {init!r}.")
    else:
        start_KxD = as_matrix(init, "init")
        if start_KxD.shape != (k, d):
            raise ValueError(f"init has shape {start_KxD.shape}; {k} clusters of these points need ({k}, {d}).")
        if restarts > 1 and batch_size is None:
            raise ValueError(f"restarts is {restarts}, but all would end alike from one init: give init='k-means++'.")

    if batch_size is None:
        run = _lloyd_run(points_NxD, k, start_KxD, max_iterations, tolerance, spherical, mesh)
    else:
        batch_size = min(check_count(batch_size, "batch_size", k), n)
        run = partial(_minibatch, points_NxD, k, start_KxD, max_iterations, tolerance, spherical, batch_size)
    if restarts == 1:
        return run(key)
    runs = (run(jax.random.fold_in(key, r)) for r in track(range(restarts), "k-means starts"))
    return min(runs, key=lambda result: result.inertia)


@dataclass(frozen=True)
class _Frame:
    """The coordinates of all computation: about the mean, where |x|^2 - 2xc + |c|^2 loses the fewest digits, or, if
    spherical, rows of unit length about the origin, where angles are taken."""

    center_D: np.ndarray
    spherical: bool

    @classmethod
    def of(cls, points_NxD: np.ndarray, spherical: bool, layout: Layout | None = None) -> _Frame:
        n, d = points_NxD.shape
        center_D = np.zeros(d)
        if not spherical:
            mine = slice(0, n) if layout is None else layout.mine
            for start in range(mine.start, mine.stop, programs.BLOCK_ROWS):
                block_RxD = points_NxD[start : min(start + programs.BLOCK_ROWS, mine.stop)]
                center_D += block_RxD.sum(axis=0, dtype=np.float64) / n
            center_D = _coarse(center_D if layout is None else summed(layout.mesh, center_D))
        return cls(center_D.astype(np.float32), spherical)

    def enter(self, rows_RxD: np.ndarray, padded: int | None = None) -> np.ndarray:
        """Some points in these coordinates, filled up with rows at the origin to `padded`."""
        r, d = rows_RxD.shape
        entered = np.zeros((padded or r, d), np.float32)
        if self.spherical:
            entered[:r] = normalize_rows(rows_RxD)
        else:
            np.subtract(rows_RxD, self.center_D, out=entered[:r])
        return entered

    def leave(self, centroids_KxD: jax.Array) -> np.ndarray:
        return np.asarray(centroids_KxD) + self.center_D


def _coarse(center_D: np.ndarray) -> np.ndarray:
    """Some 16 bits of a mean: as good a centre, and the same one however its sum was rounded."""
    step = math.ldexp(1.0, math.frexp(float(np.abs(center_D).max()))[1] - 16)
    return np.rint(center_D / step) * step


def _on_device(points_NxD: np.ndarray, frame: _Frame) -> jax.Array:
    """All points in one matrix of whole blocks, laid down block by block, so that they are held once."""
    n, d = points_NxD.shape
    rows = _block_rows(n)
    matrix = jnp.zeros((-(-n // rows) * rows, d), jnp.float32)
    for start in range(0, n, rows):
        matrix = _lay_down(matrix, frame.enter(points_NxD[start : start + rows], rows), start).block_until_ready()
    return matrix


def _block_rows(n: int) -> int:
    return min(programs.BLOCK_ROWS, 1 << (n - 1).bit_length())  # powers of two: small pools share compiled shapes


@partial(jax.jit, donate_argnums=0)
def _lay_down(matrix_NxD, block_RxD, start):
    return lax.dynamic_update_slice(matrix_NxD, block_RxD, (start, 0))


def _lloyd_run(points_NxD, k, start_KxD, max_iterations, tolerance, spherical, mesh) -> Callable[[jax.Array], KMeans]:
    """Bring the points to the devices, once for all starts."""
    n, d = points_NxD.shape
    if mesh is None:
        frame, devices = _Frame.of(points_NxD, spherical), candidates_mesh(jax.local_devices()[:1])
        matrix_NxD = _on_device(points_NxD, frame)
    else:
        layout, devices = Layout.of(mesh, n, multiple=_block_rows(n)), mesh
        frame = _Frame.of(points_NxD, spherical, layout)
        matrix_NxD = layout.place(lambda rows, padded: frame.enter(points_NxD[rows], padded), d)
    with jax.enable_x64(True):
        squares_N, *moments = kmeans_mesh.moments(matrix_NxD, mesh=devices)
    square, sum_D, largest = (np.asarray(x) for x in moments)
    mean_square = float(square) / n
    variance = mean_square - float(np.sum((sum_D / n) ** 2))
    movement, floor = tolerance * variance / d, programs.ROUNDING * mean_square

    def run(key: jax.Array) -> KMeans:
        with jax.enable_x64(True):
            if start_KxD is None:
                draws = kmeans_mesh.draws(generator_of(key), n, k)
                centroids_KxD = kmeans_mesh.plus_plus(*draws, matrix_NxD, squares_N, largest, n, k, mesh=devices)
            else:
                centroids_KxD = frame.enter(start_KxD)
            settings = max_iterations, movement, floor
            found: tuple[Any, ...]
            if mesh is None:
                found = host.lloyd(np.asarray(matrix_NxD)[:n], np.asarray(centroids_KxD), *settings, spherical)
            else:
                step = grid(math.sqrt(largest), n)
                found = kmeans_mesh.lloyd(
                    matrix_NxD, n, np.asarray(centroids_KxD), *settings, step, spherical=spherical, mesh=mesh
                )
        centroids_KxD, labels_N, errors, iterations, converged = found
        return KMeans(
            centroids_KxD=frame.leave(centroids_KxD),
            labels_N=labels_N if mesh is None else whole(labels_N)[:n],
            inertia=float(np.sum(np.asarray(errors), dtype=np.float64)),
            iterations=int(iterations),
            converged=bool(converged),
        )

    return run


def _minibatch(points_NxD, k, start_KxD, max_iterations, tolerance, spherical, batch_size, key) -> KMeans:
    """Sculley's algorithm as `kmeans` describes it; a sample, a batch or a block of the points is held at a time."""
    n = len(points_NxD)
    generator = generator_of(key)
    sample_RxD = points_NxD[np.concatenate(list(islice(_batches(n, batch_size, generator), 3)))]
    frame = _Frame.of(sample_RxD, spherical)
    sample, one = _on_device(sample_RxD, frame), candidates_mesh(jax.local_devices()[:1])
    with jax.enable_x64(True):
        squares_R, square, _, largest = kmeans_mesh.moments(sample, mesh=one)
    floor = programs.ROUNDING * float(square) / len(sample_RxD)
    if start_KxD is None:
        draws, of_sample = kmeans_mesh.draws(generator, len(sample_RxD), k), (sample, squares_R, np.asarray(largest))
        with jax.enable_x64(True):
            means_KxD = kmeans_mesh.plus_plus(*draws, *of_sample, len(sample_RxD), k, mesh=one)
    else:
        means_KxD = jnp.asarray(frame.enter(start_KxD))
    del sample_RxD, sample

    seen_K, inertia, converged, passes = jnp.zeros(k), np.inf, False, 0
    for _ in track(range(max_iterations), "k-means passes"):
        met_K, errors = jnp.zeros(k), []
        for rows in _batches(n, batch_size, generator):
            batch_RxD = jnp.asarray(frame.enter(points_NxD[rows], batch_size))
            means_KxD, seen_K, met_K, errors_R = programs.learn(
                batch_RxD, len(rows), means_KxD, seen_K, met_K, spherical
            )
            errors.append(jnp.sum(errors_R))
        means_KxD, seen_K, revived = programs.revive(means_KxD, seen_K, met_K, batch_RxD, errors_R, floor)
        before, inertia = inertia, float(np.sum(np.asarray(errors, np.float64)))
        passes += 1
        converged = not revived and before - inertia <= tolerance * inertia
        if converged:
            break

    centroids_KxD = programs.unit_rows(means_KxD, means_KxD) if spherical else means_KxD
    labels_N, inertia = np.empty(n, np.int32), 0.0
    for start in track(range(0, n, programs.BLOCK_ROWS), "k-means labels"):
        block_RxD = points_NxD[start : start + programs.BLOCK_ROWS]
        labels_R, errors_R = programs.label(frame.enter(block_RxD, programs.BLOCK_ROWS), len(block_RxD), centroids_KxD)
        labels_N[start : start + programs.BLOCK_ROWS] = np.asarray(labels_R)[: len(block_RxD)]
        inertia += float(np.sum(np.asarray(errors_R), dtype=np.float64))
    return KMeans(frame.leave(centroids_KxD), labels_N, inertia, passes, converged)


def _batches(n: int, size: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """All rows once, in random batches of at most `size`. A batch is made of runs of neighbouring rows: read nearly as
    fast as the file in order, yet from all parts of it."""
    run = max(1, min(_RUN_ROWS, size // 8))
    starts = generator.permutation(np.arange(0, n, run))
    for some in np.array_split(starts, -(-len(starts) // (size // run))):
        rows = (np.sort(some)[:, None] + np.arange(run)).ravel()
        yield rows[rows < n]
