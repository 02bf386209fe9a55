"""Texts that attack the page: shown as they are, run nowhere."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parsed_page import HOSTILE, TEN_KB, Page, hostile_run

from deft_tsds.report import write_comparison, write_report
from deft_tsds.report.figures import hover_text, plotly_text
from deft_tsds.runs import read_json, write_json


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> str:
    return write_report(hostile_run(tmp_path_factory.mktemp("hostile") / "run")).read_text(encoding="utf-8")


def test_hostile_text_makes_no_element_and_no_attribute(hostile):
    page = Page(hostile)
    assert len(page.all("script")) == 6
    assert not page.all("img")
    for element in page.elements:
        assert not any(name.startswith("on") for name in element["attrs"])
        assert "javascript:" not in json.dumps(element["attrs"])
    assert not any("alert(" in script["text"][-20_000:] for script in page.all("script") if not script["attrs"])


def test_hostile_text_is_shown_as_it_is(hostile):
    text = Page(hostile).by_id("typical")["text"]
    for attack in HOSTILE[:7]:
        assert attack in text
    assert "49" not in Page(hostile).by_id("asked")["text"]  # no template of the data was run
    assert "nul \ufffd escape \ufffd bell \ufffd lone" in text


def test_figures_json_cannot_leave_its_element(hostile):
    data = Page(hostile).by_id("figures")["text"]
    assert not set("<>&") & set(data)
    figures = json.loads(data)
    traces = [trace for figure in figures.values() for trace in figure["data"]]
    texts = [text for trace in traces for text in trace.get("text", ())]
    names = [trace["name"] for trace in traces]
    reasons = [why for arm in figures["map"]["arms"] for trace in arm["traces"] for why in trace["why"]]
    labels = [arm["label"] for arm in figures["map"]["arms"]]
    templates = [trace["hovertemplate"] for trace in figures["loss"]["data"]]
    assert {"map", "served", "coverage", "loss"} == set(figures)
    for text in [*texts, *names, *reasons, *labels, *templates]:
        bare = re.sub(r"</?b>|<br>|<extra></extra>", "", text)  # our own
        assert not set("<>") & set(bare), text
        assert not set(re.findall(r"&\w*;?", bare)) - {"&lt;", "&gt;", "&amp;"}  # Plotly knows no others
        assert "%{customdata}" not in text
        assert not re.search("[\u202a-\u202e\u2066-\u2069]", text)
        assert max(len(line) for line in text.split("<br>")) < 400


@pytest.mark.parametrize("section", ["served", "coverage", "gained"])
def test_every_section_isolates_and_cuts_the_texts_of_the_data(hostile, section):
    page = Page(hostile)
    text = page.by_id(section)["text"]
    assert HOSTILE[0] in text
    assert all(len(line) < 12_500 for line in text.splitlines())  # a whole text of 10 kB is behind its summary
    for summary in page.all("summary"):
        assert TEN_KB not in summary["text"]


def test_a_comparison_trusts_no_text_either(tmp_path):
    runs = [hostile_run(tmp_path / name) for name in ("one", "two")]
    experiment = read_json(runs[1] / "experiment.json")
    experiment["config"] |= {"prefix": HOSTILE[0], HOSTILE[2]: TEN_KB}
    write_json(runs[1] / "experiment.json", experiment)
    page = Page(write_comparison(runs, tmp_path / "page.html", command=[HOSTILE[1]]).read_text(encoding="utf-8"))
    assert len(page.all("script")) == 3
    assert not page.all("img")
    assert not any(name.startswith("on") for element in page.elements for name in element["attrs"])
    assert HOSTILE[0] in page.by_id("settings")["text"]
    assert HOSTILE[2] in page.by_id("settings")["text"]
    assert TEN_KB not in page.by_id("settings")["text"]
    assert HOSTILE[1] in page.by_id("runs")["text"]


def test_long_tokens_are_cut_with_the_whole_text_in_details(hostile):
    page = Page(hostile)
    wholes = [e for e in page.all("bdi") if e["attrs"].get("class") == "whole" and "details" in e["parents"]]
    assert any(element["text"].endswith(TEN_KB) for element in wholes)
    for element in page.all("summary"):
        assert len(element["text"]) < 500
    assert len(page.by_id("groups")["text"]) < 10_000


def test_directions_do_not_leak_out_of_a_text(hostile):
    page = Page(hostile)
    for element in page.elements:
        if "\u202e" in element["text"] and not {"bdi", "script", "style"} & {element["tag"], *element["parents"]}:
            inside = "".join(e["text"] for e in page.all("bdi") if "\u202e" in e["text"])
            assert inside.count("\u202e") >= element["text"].count("\u202e")


@settings(deadline=None, max_examples=40)
@given(st.text(max_size=300))
def test_plotly_text_has_no_markup_left(text):
    for safe in (plotly_text(text), hover_text(text, 200).replace("<br>", " ")):
        assert not set("<>") & set(safe)
        assert "%{" not in safe
