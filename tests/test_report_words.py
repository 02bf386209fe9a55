"""Scores in words: the page claims what an interval allows, and no more."""

from __future__ import annotations

import copy
import re
import shutil
from pathlib import Path

import pytest
from fake_run import write_fake_run
from hypothesis import given, settings
from hypothesis import strategies as st
from parsed_page import Page, small_run

from deft_tsds.report import read_run, write_report
from deft_tsds.report import results as words
from deft_tsds.report.intervals import nice_ticks
from deft_tsds.report.view import RunView
from deft_tsds.runs import read_json, write_json


@pytest.fixture(scope="module")
def view(tmp_path_factory) -> RunView:
    return read_run(write_fake_run(tmp_path_factory.mktemp("runs") / "demo"))


@pytest.fixture(scope="module")
def page(view) -> Page:
    return Page(write_report(view.folder).read_text(encoding="utf-8"))


@pytest.fixture
def small(tmp_path) -> Path:
    return small_run(tmp_path / "small")


def test_headline_claims_only_what_the_interval_allows(view):
    deft, tsds, full, rest = words.headline(view)
    assert deft.startswith("DEFT on 32.5% of the pool: SARI 6")
    assert deft.endswith("+1.1 [0.5, 1.7] against random: better.")
    assert tsds.endswith("\u22120.3 [\u22121.2, 0.6] against random: no difference shown.")
    assert full.startswith("Full on 100%")
    assert "copying the input 2" in rest or "copying the input 3" in rest


@settings(deadline=None, max_examples=40)
@given(low=st.floats(-5, 0), high=st.floats(0, 5), value=st.floats(-5, 5))
def test_no_claim_when_the_interval_includes_zero(view, low, high, value):
    table = copy.deepcopy(dict(view.table))
    for row in table["differences"]:
        row.update(low=low, high=high, value=value)
    changed = RunView(**{**vars(view), "table": table})
    sentences = words.headline(changed)
    assert all("no difference shown" in sentence for sentence in sentences[:-1])
    assert not any(re.search("better|worse", sentence) for sentence in sentences)
    verdicts = {
        cell.verdict for t in words.metric_tables(changed) for _, cells in t.differences for cell in cells if cell
    }
    assert verdicts == {"no difference shown"}


@settings(deadline=None, max_examples=40)
@given(low=st.floats(1e-5, 5), width=st.floats(0, 5), sign=st.sampled_from([-1, 1]))
def test_a_shown_difference_is_never_printed_as_touching_zero(view, low, width, sign):
    ends = sorted([sign * low, sign * (low + width)])
    row = {"value": sum(ends) / 2, "low": ends[0], "high": ends[1]}
    shown = words._difference(row, 1)
    assert shown.verdict == ("better" if sign > 0 else "worse")
    printed = [float(end.replace("\u2212", "-")) for end in shown.interval.strip("[]").split(",")]
    assert all(end * sign > 0 for end in printed)


def test_cells_that_do_not_beat_copying_are_marked(view, page):
    table = view.table
    expected = 0
    for cell in table["cells"]:
        copying = next(
            c["value"]
            for c in table["cells"]
            if (c["arm"], c["test"], c["metric"]) == ("copy", cell["test"], cell["metric"])
        )
        expected += cell["arm"] != "copy" and not cell["low"] > copying
    marked = [element for element in page.all("td") if "not shown to beat copying" in element["text"]]
    assert len(marked) == expected > 0
    assert all("†" in element["text"] for element in marked)
    last = read_json(view.folder / "table/table.json")["tests"][-1]["name"]
    assert words.beats_copying(table, "deft", last, "sari") is False
    assert words.beats_copying(table, "deft", "all", "sari") is True
    assert words.beats_copying(table, "copy", "all", "sari") is None


def test_a_paired_difference_against_copying_decides(view):
    table = copy.deepcopy(dict(view.table))
    where = {"arm": "deft", "against": "copy", "test": "all", "metric": "sari"}
    table["differences"].append({**where, "value": 40.0, "low": -1.0, "high": 80.0})
    assert words.beats_copying(table, "deft", "all", "sari") is False


def test_primary_metric_comes_first_and_scales_have_their_decimals(view):
    tables = words.metric_tables(RunView(**{**vars(view), "table": {**view.table, "primary": "exact_match"}}))
    assert [table.metric for table in tables] == ["exact_match", "sari", "rouge_l"]
    cells = [cell for _, cells in tables[0].rows for cell in cells if cell]
    assert all(re.fullmatch(r"0\.\d{3}", cell.value) for cell in cells)
    assert tables[1].columns == ("all", "jfleg", "asset", "wnc")


def test_a_score_without_interval_or_value_is_said_to_have_none(small):
    table = read_json(small / "table/table.json")
    for row in [*table["cells"], *table["differences"]]:
        if row["arm"] == "deft":
            row["low"] = row["high"] = None
        if row["arm"] == "tsds":
            row["value"] = None
    write_json(small / "table/table.json", table)
    shutil.rmtree(small / "embed")
    headline = " ".join(words.headline(read_run(small)))
    assert "[no interval] against random: no difference shown" in headline
    assert "TSDS" not in headline
    Page(write_report(small).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("share", "said"), [(0.325, "32.5%"), (1.0, "100%"), (2764 / 27638, "10%"), (0.0025, "0.25%"), (0.1, "10%")]
)
def test_percent(share, said):
    assert words.percent(share) == said


@settings(deadline=None, max_examples=40)
@given(st.floats(-1e4, 1e4), st.floats(0, 1e4))
def test_ticks_are_few_and_enclose_the_range(least, width):
    ticks = nice_ticks(least, least + width)
    assert 3 <= len(ticks) <= 8
    slack = 1e-6 * max(1.0, abs(least) + width)
    assert ticks[0] <= least + slack
    assert ticks[-1] >= least + width - slack
