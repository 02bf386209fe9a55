"""One program on any mesh of one process: rows that are split over eight devices have the ids of one."""

from __future__ import annotations

import jax
import mesh_run
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deft_tsds as dt
from deft_tsds.geometry.mesh import Layout, as_shared_matrix, candidates_mesh, grid, mesh_of, own_rows, rows_of
from deft_tsds.running.processes import alone


@pytest.mark.parametrize("options", [(), ("--accelerated",)])
def test_eight_devices_find_and_choose_what_one_does(tmp_path, options):
    mesh_run.finish(mesh_run.start(tmp_path / "eight.npz", "--devices", "8", *options))
    mesh_run.assert_equal_to_one(tmp_path / "eight.npz", densities=1e-5 if options else 0.0)


def test_one_device_as_a_mesh_finds_what_the_host_does():
    """The compiled programs and the host's own kernels, of one process."""
    folder = mesh_run.inputs()
    rows_NxD, queries_MxD = np.load(folder / "candidates.npy"), np.load(folder / "queries.npy")
    mesh = candidates_mesh(jax.devices()[:1])
    for k in (10, 500):
        expected = dt.nearest_neighbors(queries_MxD, rows_NxD, k)
        found = dt.nearest_neighbors(queries_MxD, rows_NxD, k, mesh=mesh)
        np.testing.assert_array_equal(found.indices_MxK, expected.indices_MxK)
        np.testing.assert_array_equal(found.distances_MxK, expected.distances_MxK)
    expected = dt.kmeans(rows_NxD, 11, key=jax.random.key(5), tolerance=0)
    found = dt.kmeans(rows_NxD, 11, key=jax.random.key(5), tolerance=0, mesh=mesh)
    np.testing.assert_array_equal(found.labels_N, expected.labels_N)
    np.testing.assert_array_equal(found.centroids_KxD, expected.centroids_KxD)
    assert found.iterations == expected.iterations
    assert found.inertia == pytest.approx(expected.inertia, rel=1e-8)  # a float32 error a row on the mesh


def test_one_cpu_device_is_no_mesh():
    assert mesh_of(None) is None
    with alone():
        assert mesh_of(None) is None
    given = mesh_of(jax.make_mesh((1, 1), ("a", "b")))
    assert given is not None
    assert given.axis_names == ("candidates",)
    assert own_rows(None, 7) == slice(0, 7)


def test_a_layout_leaves_no_row_out():
    mesh = candidates_mesh()
    assert Layout.of(mesh, 5, multiple=4) == Layout(mesh, 5, 8)
    assert Layout.of(mesh, 5, multiple=4).mine == slice(0, 5)
    placed = Layout.of(mesh, 5, multiple=4).place(
        lambda rows, padded: np.pad(np.arange(5.0)[rows, None], ((0, padded - 5), (0, 0))), 1
    )
    np.testing.assert_array_equal(np.asarray(placed)[:, 0], [0, 1, 2, 3, 4, 0, 0, 0])


def test_rows_and_checks_of_one_process_are_the_plain_ones():
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.testing.assert_array_equal(rows_of(None, rows, np.array([3, 1])), rows[[3, 1]])
    assert as_shared_matrix(rows, "rows", None) is rows
    with pytest.raises(ValueError, match="rows, row 2, has a NaN"):
        as_shared_matrix(np.where(rows == 7, np.nan, rows), "rows", candidates_mesh())


@settings(deadline=None)
@given(
    x=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60),
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([1e-18, 1.0, 1e12]),
)
def test_no_order_changes_a_sum_on_a_grid(x, seed, scale):
    values = np.float64(scale) * np.array(x)
    step = grid(float(np.abs(values).max()), len(values))
    on_grid = np.rint(values / step)
    orders = [np.random.default_rng([seed, number]).permutation(len(x)) for number in range(3)]
    sums = {float(np.cumsum(on_grid[order])[-1]) for order in orders}
    assert len(sums) == 1
    assert abs(step * sums.pop() - values.sum()) <= len(x) * step
    assert len(x) * step <= 1e-11 * np.abs(values).max() * len(x) ** 2 or not values.any()
