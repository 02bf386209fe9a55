"""Choices and runs beside one another: against plain sets, and refused where they do not compare."""

from __future__ import annotations

import dataclasses
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from fake_run import fake_examples, write_fake_run
from hypothesis import given, settings
from hypothesis import strategies as st
from parsed_page import Page, small_run

from deft_tsds.data.examples import Examples
from deft_tsds.report import read_run, write_comparison
from deft_tsds.report.comparison import differing_settings, score_tables, shared_numbers, shared_tests
from deft_tsds.report.difference import Chosen, difference, jaccard, overlaps, pairs
from deft_tsds.report.results import metric_table
from deft_tsds.runs import read_json, read_jsonl, write_json, write_jsonl
from deft_tsds.selection import Selection

POOL = fake_examples(60)


def chosen(rows: set[int], label: str = "arm", seeds: tuple[set[int], ...] = ()) -> Chosen:
    ordered = np.array(sorted(rows))
    return Chosen(label, POOL, ordered, ordered, tuple(np.array(sorted(each)) for each in seeds))


rows = st.sets(st.integers(0, 59), min_size=1)


@settings(deadline=None, max_examples=60)
@given(rows, rows)
def test_a_difference_against_plain_sets(before, after):
    found = difference(chosen(before, "old"), chosen(after, "new"))
    assert (found.kept, found.gained, found.lost) == (len(before & after), len(after - before), len(before - after))
    assert found.overlap == pytest.approx(len(before & after) / len(before | after))
    assert {text.id for text in found.gained_texts} <= {POOL.ids[row] for row in after - before}
    assert {text.id for text in found.lost_texts} <= {POOL.ids[row] for row in before - after}
    assert len(found.gained_texts) == min(8, len(after - before))
    assert len(found.lost_texts) == min(8, len(before - after))
    for change in found.groups:
        of_group = {row for row in range(60) if POOL.groups[row] == change.name}
        assert change.before == len(before & of_group)
        assert change.after == len(after & of_group)
        assert change.gained == len((after - before) & of_group)
        assert change.lost == len((before - after) & of_group)
    assert sum(change.gained for change in found.groups) == found.gained
    back = difference(chosen(after), chosen(before))
    assert (back.gained, back.lost, back.overlap) == (found.lost, found.gained, found.overlap)


def test_overlaps_and_what_chance_would_give():
    rng = np.random.default_rng(0)
    one, other = (set(rng.choice(60, size, replace=False).tolist()) for size in (20, 30))
    again = set(rng.choice(60, 20, replace=False).tolist())
    table = overlaps([chosen(one, seeds=(again,)), chosen(other)], 60)
    assert table[0][1] == table[1][0]
    assert table[0][1].value == pytest.approx(len(one & other) / len(one | other))
    assert table[0][0].value == pytest.approx(len(one & again) / len(one | again))
    assert table[0][0].chance is None
    assert table[1][1].value is None
    draws = [jaccard(*(np.sort(rng.choice(60, size, replace=False)) for size in (20, 30))) for _ in range(400)]
    assert table[0][1].chance == pytest.approx(np.mean(draws), abs=0.02)


def test_of_many_arms_each_is_compared_with_one():
    arms = [chosen({number}, str(number)) for number in range(9)]
    assert len(pairs(arms[:6], 2)) == 15
    assert [(one.label, other.label) for one, other in pairs(arms, 2)] == [("2", str(n)) for n in range(9) if n != 2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    """Two small runs with the same texts, other choices and another config."""
    folder = tmp_path_factory.mktemp("runs")
    one = write_fake_run(folder / "one", pool=fake_examples(60))
    two = write_fake_run(folder / "two", pool=fake_examples(60), seed=3, notice="Made of something else.")
    experiment = read_json(two / "experiment.json")
    experiment["config"]["train"]["steps"] = 800
    experiment["config"]["extra"] = {"depth": 2}
    write_json(two / "experiment.json", experiment)
    return one, two


def test_only_what_differs_is_listed(runs):
    views = [read_run(run) for run in runs]
    found = {setting.name: setting.values for setting in differing_settings(views)}
    assert found == {"train.steps": ("500", "800"), "extra.depth": (None, "2")}
    assert differing_settings([views[0], views[0]]) == ()


def test_the_page_of_two_runs(runs, tmp_path):
    views = [read_run(run) for run in runs]
    page = Page(write_comparison(runs, tmp_path / "page.html", command=["report.py"]).read_text(encoding="utf-8"))
    assert [e["attrs"]["id"] for e in page.all("section")] == ["runs", "settings", "scores", "overlap", "gained"]
    notices = [e["text"] for e in page.all("p", role="note")]
    assert any("1 one: The text of this run is synthetic" in text for text in notices)
    assert any("2 two: Made of something else." in text for text in notices)
    scores = page.by_id("scores")["text"]
    for view in views:
        for table in (metric_table(view, metric) for metric in view.table["metrics"]):
            for _, cells in table.rows:
                assert all(cell and cell.value in scores and cell.interval in scores for cell in cells)
    one, two = (next(arm for arm in view.arms if arm.name == "tsds").first.indices for view in views)
    kept = len(set(one.tolist()) & set(two.tolist()))
    assert f"{kept} kept, {len(two) - kept} gained, {len(one) - kept} lost" in page.by_id("gained")["text"]
    assert "60 different examples together; 60 of them are in every pool" in page.by_id("runs")["text"]
    assert not page.all("div", role="group")


def test_three_runs_have_a_row_for_every_arm_and_copying_once(runs):
    views = [read_run(run) for run in (runs[0], runs[1], runs[1])]
    labels = ("a", "b", "c")
    table = score_tables(views, labels, shared_tests(views, labels))[0]
    arms = ["Full", "Random", "DEFT", "TSDS"]
    assert [(row.run, row.arm) for row in table.rows] == [
        *((label, arm) for label in labels for arm in arms),
        ("", "Copy the input"),
    ]
    assert table.columns == ("all", "jfleg", "asset", "wnc")


def changed_test(run: Path, target: Path) -> Path:
    """A copy of a run in which one text of one test set is another."""
    shutil.copytree(run, target)
    rows = read_jsonl(target / "data/tests/asset.jsonl")
    rows[3]["input"] += " again"
    write_jsonl(target / "data/tests/asset.jsonl", rows)
    return target


def test_a_test_set_that_differs_is_left_out_and_named(runs, tmp_path):
    other = changed_test(runs[1], tmp_path / "other")
    views = [read_run(runs[0]), read_run(other)]
    found = shared_tests(views, ("a", "b"))
    assert found.names == ("jfleg", "wnc")
    assert not found.mean
    assert found.left_out == (("asset", "has other texts under the same name"),)
    assert score_tables(views, ("a", "b"), found)[0].columns == ("jfleg", "wnc")
    page = Page(write_comparison([runs[0], other], tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "asset: has other texts under the same name" in page.by_id("scores")["text"]


def test_tests_of_another_size_or_of_one_run_only_are_left_out(runs):
    one, two = (read_run(run) for run in runs)
    table = dict(two.table)
    tests = [{"name": "jfleg", "rows": 21}, {"name": "asset", "rows": 20}, {"name": "new", "rows": 5}]
    other = dataclasses.replace(two, table={**table, "tests": tests})
    found = shared_tests([one, other], ("a", "b"))
    assert found.names == ("asset",)
    assert dict(found.left_out) == {"jfleg": "has 20, 21 rows", "wnc": "not in b", "new": "not in a"}


def test_runs_without_a_common_test_set_are_refused(runs, tmp_path):
    other = write_fake_run(tmp_path / "other", pool=fake_examples(24), tests={"else": fake_examples(4, prefix="else")})
    with pytest.raises(ValueError, match=r"share no test set.*jfleg: not in 2 other.*compare runs that"):
        write_comparison([runs[0], other], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_runs_without_a_common_metric_are_refused(runs):
    one, two = (read_run(run) for run in runs)
    other = dataclasses.replace(two, table={**two.table, "metrics": ["bleu"]})
    with pytest.raises(ValueError, match="share no metric"):
        score_tables([one, other], ("a", "b"), shared_tests([one, two], ("a", "b")))


@pytest.mark.parametrize("given_runs", [[], ["one"], ["one", "one"]])
def test_fewer_than_two_different_runs_are_refused(runs, tmp_path, given_runs):
    with pytest.raises(ValueError, match="two or more different run folders"):
        write_comparison([runs[0].parent / name for name in given_runs], tmp_path / "page.html")


def test_examples_are_the_same_where_id_and_texts_are(runs):
    view = read_run(runs[0])
    shuffled = np.random.default_rng(0).permutation(60)
    pool = view.pool.take(shuffled)
    renamed = Examples(
        **{name: getattr(pool, name) for name in ("ids", "inputs", "prompts", "references", "groups", "flags")},
        targets=("another target", *pool.targets[1:]),
    )
    (first, second), total = shared_numbers([view, dataclasses.replace(view, pool=renamed)])
    assert first.tolist() == list(range(60))
    assert second.tolist() == [60, *shuffled[1:].tolist()]
    assert total == 61


@pytest.fixture
def script(monkeypatch, capsys):
    """scripts/report.py, run here: gives its exit status and what it said."""

    def run(*arguments: object) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["report.py", *map(str, arguments)])
        status: object = 0
        try:
            runpy.run_path(str(Path(__file__).parents[1] / "scripts/report.py"), run_name="__main__")
        except SystemExit as end:
            status = end.code
        said = capsys.readouterr()
        return status, " ".join((said.out + said.err).split())

    return run


def test_the_script_compares_explains_and_refuses(runs, tmp_path, script):
    assert script(*runs, "--out", tmp_path / "page.html")[0] == 0
    assert "1 one" in (tmp_path / "page.html").read_text(encoding="utf-8")
    folder = small_run(tmp_path / "small")
    shutil.rmtree(folder / "embed")
    assert script(folder)[0] == 0
    assert (folder / "report.html").is_file()
    status, said = script(*runs)
    assert status == 1
    assert "--out PAGE.html" in said
    status, said = script(tmp_path, "--out", tmp_path / "other.html")
    assert status == 1
    assert "is no run folder" in said


def test_a_choice_of_the_whole_pool_is_compared_with_nothing(tmp_path):
    folder = small_run(tmp_path / "run")
    for arm in ("random", "deft", "tsds"):
        Selection.of(np.arange(24)).save(folder / f"select/{arm}/seed-0/selection")
    other = shutil.copytree(folder, tmp_path / "other")
    page = Page(write_comparison([folder, other], tmp_path / "page.html").read_text(encoding="utf-8"))
    assert "Every arm takes its whole pool" in page.by_id("overlap")["text"]
    assert "No arm that leaves something out" in page.by_id("gained")["text"]
