"""The map: samples that keep every share, figures that Plotly takes, and the points of a large pool."""

from __future__ import annotations

import base64

import jax
import numpy as np
import pytest
from fake_run import GROUPS, fake_embeddings, fake_examples, write_fake_run
from hypothesis import given, settings
from hypothesis import strategies as st

from deft_tsds.data.examples import Examples
from deft_tsds.report import read_run
from deft_tsds.report.composition import group_shares
from deft_tsds.report.figures import COLOURS, OTHER_COLOUR, loss_figure
from deft_tsds.report.map2d import MOST_POINTS, PoolMap, place, plane, pool_map, proportional_sample
from deft_tsds.report.map_figures import map_figure
from deft_tsds.report.view import RunView

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def view(tmp_path_factory) -> RunView:
    return read_run(write_fake_run(tmp_path_factory.mktemp("runs") / "demo"))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 400), wanted=st.integers(1, 120), strata=st.integers(1, 9))
def test_sample_keeps_every_share(seed, rows, wanted, strata):
    labels = np.random.default_rng(seed).integers(strata, size=rows)
    sample = proportional_sample([labels], wanted, key=jax.random.key(seed))
    assert sample.size == min(wanted, rows)
    assert np.unique(sample).size == sample.size
    for label in range(strata):
        expected = (labels == label).sum() * sample.size / rows
        assert abs((labels[sample] == label).sum() - expected) <= 1 + 1e-9


def test_map_keeps_chosen_shares_and_says_why(view):
    mapped = pool_map(view, key=KEY)
    assert mapped is not None
    assert mapped.rows.size == min(MOST_POINTS, len(view.pool))
    figure = map_figure(view, mapped)
    assert [arm["label"] for arm in figure["arms"]] == ["Random", "DEFT", "TSDS"]  # Full leaves nothing out
    deft = next(arm for arm in view.arms if arm.name == "deft")
    marked = sum(len(trace["points"]) for trace in figure["arms"][1]["traces"])
    assert marked == len(deft.first.indices)
    assert all("cluster" in why for trace in figure["arms"][1]["traces"] for why in trace["why"])
    assert figure["data"][-1]["marker"]["symbol"] != "circle"
    assert len(figure["data"]) == len(GROUPS) + 1


def test_figures_are_valid_plotly(view):
    from plotly import graph_objects

    mapped = pool_map(view, key=KEY)
    assert mapped is not None
    for figure in (loss_figure(view.arms), map_figure(view, mapped)):
        assert figure is not None
        graph_objects.Figure(data=figure["data"], layout=figure["layout"])  # raises for an unknown property


@pytest.mark.parametrize("rows", [1, 2, 3, 9, 10, 40])
def test_plane_of_few_or_equal_points_is_finite(rows):
    varied = np.random.default_rng(0).standard_normal((rows, 4)).astype(np.float32)
    for points in (varied, np.ones((rows, 4), dtype=np.float32)):
        placed = plane(points, key=KEY)
        assert placed.shape == (rows, 2)
        assert np.isfinite(placed).all()


def test_many_groups_share_a_colour_and_a_row(tmp_path):
    pool = fake_examples(60)
    columns = {name: getattr(pool, name) for name in ("ids", "inputs", "prompts", "targets", "references", "flags")}
    pool = Examples(**columns, groups=tuple(f"group {row % 30}" for row in range(60)))
    embeddings = fake_embeddings(pool)
    tests = {"jfleg": fake_examples(4, seed=2, prefix="jfleg")}
    view = read_run(write_fake_run(tmp_path / "many", pool=pool, tests=tests, embeddings_NxD=embeddings, seeds=(0,)))
    rows = group_shares(view)
    assert len(rows) == 25
    assert rows[-1].name == "(6 smaller groups)"
    assert sum(row.pool for row in rows) == pytest.approx(1)
    nothing = np.zeros(0, dtype=int), np.zeros((0, 2))
    everywhere = PoolMap(np.arange(60), np.zeros((60, 2)), *nothing, *nothing)
    traces = map_figure(view, everywhere)["data"]
    assert len(traces) == len(COLOURS) + 1
    assert traces[-1]["marker"]["color"] == OTHER_COLOUR
    assert sum(len(trace["x"]) for trace in traces) == 60


# The points of a large pool


def test_places_against_a_loop():
    rng = np.random.default_rng(0)
    known, points = rng.standard_normal((9, 4)).astype(np.float32), rng.standard_normal((9, 2))
    rest = np.concatenate([rng.standard_normal((6, 4)).astype(np.float32), known[4:5]])
    placed = place(rest, known, points)
    for row, where in zip(rest[:6].astype(float), placed, strict=False):
        distances = np.linalg.norm(known - row, axis=1)
        nearest = np.argsort(distances)[:3]
        weights = distances[nearest] ** -2
        np.testing.assert_allclose(where, weights @ points[nearest] / weights.sum(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(placed[6], points[4], atol=1e-6)
    assert place(rest[:0], known, points).shape == (0, 2)
    assert np.isfinite(place(rest, known[:1], points[:1])).all()


@pytest.fixture
def large(view, monkeypatch) -> PoolMap:
    """The map of a pool of which only a part is laid out."""
    monkeypatch.setattr("deft_tsds.report.map2d.MOST_POINTS", 100)
    monkeypatch.setattr("deft_tsds.report.map2d.MOST_PLACED", 220)
    mapped = pool_map(view, key=KEY)
    assert mapped is not None
    return mapped


def test_a_large_pool_is_placed_around_a_sample(view, large):
    assert (large.rows.size, large.placed_rows.size) == (100, 120)
    assert not set(large.rows.tolist()) & set(large.placed_rows.tolist())
    rows = np.concatenate([large.rows, large.placed_rows])
    for arm in view.arms:
        share = len(arm.first.indices) / len(view.pool)
        for sample in (rows, large.rows):
            assert np.isin(sample, arm.first.indices).mean() == pytest.approx(share, abs=0.06)
    assert set(large.places()) == set(rows.tolist())


def test_the_bytes_of_the_cloud_are_its_points(view, large):
    figure = map_figure(view, large)
    cloud = figure["cloud"]
    at = np.frombuffer(base64.b64decode(cloud["at"]), "<u2").reshape(-1, 2)
    read = np.array(cloud["low"]) + at / 65535 * np.array(cloud["span"])
    np.testing.assert_allclose(read, large.placed_points_px2, atol=1e-4 * max(cloud["span"]))
    shade = np.frombuffer(base64.b64decode(cloud["shade"]), np.uint8)
    names = [trace["name"] for trace in figure["data"]]
    assert [names[number] for number in shade] == [view.pool.groups[row] for row in large.placed_rows]
    assert cloud["shades"] == [trace["marker"]["color"] for trace in figure["data"][: len(cloud["shades"])]]
    arms = [arm for arm in view.arms if arm.name != "full"]
    assert len(cloud["chosen"]) == len(figure["arms"]) == len(arms)
    for arm, bits in zip(arms, cloud["chosen"], strict=True):
        is_chosen = np.unpackbits(np.frombuffer(base64.b64decode(bits), np.uint8), count=120, bitorder="little")
        np.testing.assert_array_equal(is_chosen, np.isin(large.placed_rows, arm.first.indices))


def test_the_map_of_a_small_pool_has_no_cloud(view):
    mapped = pool_map(view, key=KEY)
    assert mapped is not None
    assert mapped.placed_rows.size == 0
    assert map_figure(view, mapped)["cloud"] is None
