"""Who serves whom, and which targets are badly served: against plain loops over the reasons and the embeddings."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from fake_run import fake_examples, write_fake_run
from parsed_page import Page, small_run

from deft_tsds.report import read_run, write_report
from deft_tsds.report.coverage import coverage
from deft_tsds.report.figures import coverage_figure
from deft_tsds.report.map2d import pool_map
from deft_tsds.report.map_figures import served_figure
from deft_tsds.report.served import MOST_LINKS, Link, links, served
from deft_tsds.report.view import RunView
from deft_tsds.selection import Selection


@pytest.fixture(scope="module")
def view(tmp_path_factory) -> RunView:
    return read_run(write_fake_run(tmp_path_factory.mktemp("runs") / "demo"))


@pytest.mark.parametrize(
    ("reason", "link"),
    [
        ({"query": 4, "distance": 0.3, "rank": 9}, Link(4, 7, None, 0.3, None)),  # rank among all candidates: Nearest
        ({"query": 4, "turn": 2, "neighbor": 3, "distance": 0.3}, Link(4, 7, None, 0.3, 3)),
        ({"query": 4, "query_distance": 0.2, "distance": 9.0}, Link(4, 7, None, 0.2, None)),  # 9 is to a centroid
        ({"query": 4, "mass": 0.5, "share": 0.25, "cosine": 0.75}, Link(4, 7, 0.125, 0.25, None)),
        (
            {"probability": 0.1, "queries": [{"query": 4, "share": 0.5, "distance": 0.3, "rank": 2}]},
            Link(4, 7, 0.05, 0.3, 2),
        ),
        ({"probability": 0.0, "queries": [{"query": 4, "distance": 0.3}]}, Link(4, 7, None, 0.3, None)),  # filled up
    ],
)
def test_every_form_of_a_reason_is_read(reason, link):
    assert links(Selection.of(np.array([7]), reasons=[{"why": "so", **reason}])) == [link]


def test_a_reason_without_queries_serves_none(view):
    assert links(Selection.of(np.array([1, 2]))) == []
    assert [arm.label for arm in served(view, np.arange(12))] == ["TSDS"]


def test_what_serves_a_query_against_a_loop(view):
    arm = next(arm for arm in view.arms if arm.name == "tsds")
    (found,) = served(view, np.arange(12))
    assert {query.query for query in found.queries} == set(range(12))
    named = set()
    for query in found.queries:
        rows = []
        for row, reason in zip(arm.first.indices.tolist(), arm.first.reasons, strict=True):
            for each in reason["queries"]:
                if each["query"] == query.query:
                    rows.append((each["share"] * reason["probability"], each["distance"], row))
                    named.add(query.query)
        assert query.count == len(rows)
        if rows:
            assert query.mass == pytest.approx(sum(mass for mass, _, _ in rows))
            assert query.nearest == min(distance for _, distance, _ in rows)
        ordered = [row for _, _, row in sorted(rows, key=lambda each: (-round(each[0], 9), each[1]))]
        assert [link.row for link in query.links] == ordered[:MOST_LINKS]
    assert found.unnamed == 12 - len(named)
    masses = [query.mass or 0 for query in found.queries]
    assert masses == sorted(masses, reverse=True)


def test_only_the_asked_queries_are_listed_and_all_are_counted(view):
    (whole,), (part,) = served(view, np.arange(12)), served(view, np.array([3, 8]))
    assert {query.query for query in part.queries} == {3, 8}
    assert part.unnamed == whole.unnamed
    assert part.queries == tuple(query for query in whole.queries if query.query in (3, 8))


def test_the_picture_has_the_listed_examples_where_the_map_has_them(view):
    from plotly import graph_objects

    mapped = pool_map(view, key=jax.random.key(0))
    assert mapped is not None
    found = served(view, mapped.query_rows)
    figure = served_figure(view, mapped, found)
    graph_objects.Figure(data=figure["data"], layout=figure["layout"])  # raises for an unknown property
    assert figure["data"][1]["customdata"] == list(range(12))
    places = mapped.places()
    for query in found[0].queries:
        fan = figure["fans"][0][query.query]
        assert [place for _, _, place in fan] == list(range(1, len(query.links) + 1))
        for (x, y, _), link in zip(fan, query.links, strict=True):
            assert (x, y) == pytest.approx(places[link.row], abs=1e-3)


def test_the_page_says_how_many_more(view):
    (found,) = served(view, np.arange(12))
    page = Page(write_report(view.folder).read_text(encoding="utf-8"))
    shown = [e for e in page.all("details") if e["attrs"].get("class") == "query"]
    assert [int(e["attrs"]["data-query"]) for e in shown] == [query.query for query in found.queries]
    for query, element in zip(found.queries, shown, strict=True):
        more = query.count - len(query.links)
        assert (f"and {more} more" in element["text"]) == (more > 0)
        for link in query.links:
            assert view.pool.ids[link.row] in element["text"]
    assert any(query.count > MOST_LINKS for query in found.queries)


def test_coverage_against_a_loop_in_float64(view):
    found = coverage(view)
    assert found is not None
    pool, queries = np.asarray(view.embeddings_NxD, float), np.asarray(view.query_embeddings_MxD, float)
    distance_MxN = 1 - queries @ pool.T
    np.testing.assert_allclose(found.offered_M, distance_MxN.min(axis=1), atol=1e-6)
    assert [arm.label for arm in found.arms] == ["Random", "DEFT", "TSDS"]  # Full leaves nothing out
    by_label = {arm.label: arm for arm in view.arms}
    random_M = distance_MxN[:, by_label["Random"].first.indices].min(axis=1)
    for arm in found.arms:
        chosen = by_label[arm.label].first.indices
        nearest_M = distance_MxN[:, chosen].min(axis=1)
        lost_M = nearest_M - distance_MxN.min(axis=1)
        np.testing.assert_allclose(arm.distances_M, nearest_M, atol=1e-6)
        assert (arm.mean, arm.worst) == pytest.approx((nearest_M.mean(), nearest_M.max()), abs=1e-6)
        assert arm.best == pytest.approx((lost_M < 5e-4).mean())
        expected = None if arm.label == "Random" else pytest.approx((nearest_M - random_M >= 5e-4).mean())
        assert arm.behind_random == expected
        lost = [each.distance - each.offered for each in arm.badly]
        assert lost == sorted(lost, reverse=True)
        assert len(lost) == min(12, (lost_M >= 5e-4).sum())
        assert lost[0] == pytest.approx(lost_M.max(), abs=1e-6)
        for each in arm.badly:
            assert each.row in chosen
            assert distance_MxN[each.query, each.row] == pytest.approx(each.distance, abs=1e-6)
            assert distance_MxN[each.query, each.offered_row] == pytest.approx(each.offered, abs=1e-6)
            assert each.random == pytest.approx(random_M[each.query], abs=1e-6)


def test_coverage_without_a_random_arm_or_without_embeddings(view):
    alone = dataclasses.replace(view, arms=tuple(arm for arm in view.arms if arm.name == "tsds"))
    found = coverage(alone)
    assert found is not None
    assert found.arms[0].behind_random is None
    assert all(each.random is None for each in found.arms[0].badly)
    for lacking in ("embeddings_NxD", "query_embeddings_MxD", "queries"):
        assert coverage(dataclasses.replace(view, **{lacking: None})) is None
    whole = coverage(dataclasses.replace(view, arms=view.arms[:1]))
    assert whole is not None
    assert whole.arms == ()


def test_coverage_figure_is_valid_and_shows_the_asked_queries(view):
    from plotly import graph_objects

    found = coverage(view)
    assert found is not None
    figure = coverage_figure(found, view.queries.inputs, np.array([2, 5]))  # type: ignore[union-attr]
    graph_objects.Figure(data=figure["data"], layout=figure["layout"])
    assert [trace["name"] for trace in figure["data"][1:]] == ["Random", "DEFT", "TSDS"]
    assert figure["data"][3]["y"] == pytest.approx(found.arms[2].distances_M[[2, 5]].tolist(), abs=1e-4)


def test_a_run_without_targets_says_so(tmp_path: Path):
    folder = small_run(tmp_path / "run")
    (folder / "data/queries.jsonl").unlink()
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    for section in ("served", "coverage"):
        assert "data/queries.jsonl is missing" in page.by_id(section)["text"]


def test_many_targets_are_sampled_and_the_page_says_so(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("deft_tsds.report.map2d.MOST_QUERIES", 5)
    queries = fake_examples(9, seed=1, prefix="query")
    folder = write_fake_run(tmp_path / "run", pool=fake_examples(40), queries=queries, seeds=(0,))
    page = Page(write_report(folder).read_text(encoding="utf-8"))
    assert len([e for e in page.all("details") if e["attrs"].get("class") == "query"]) == 5
    assert "5 of 9 target examples, drawn at random" in page.by_id("served")["text"]
    assert "for 5 targets drawn at random" in page.by_id("coverage")["text"]
