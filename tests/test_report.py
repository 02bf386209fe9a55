"""The report page as a document: right structure, nothing from elsewhere, readable by everyone."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
import shutil
from pathlib import Path

import pytest
from fake_run import write_fake_run
from parsed_page import Page, small_run

from deft_tsds.report import write_report
from deft_tsds.report.figures import COLOURS, OTHER_COLOUR
from deft_tsds.report.page import duration, size
from deft_tsds.report.settings import flat
from deft_tsds.report.shell import clipped, count
from deft_tsds.runs import read_json, write_json


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = write_fake_run(tmp_path_factory.mktemp("runs") / "demo")
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def source(run) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source) -> Page:
    return Page(source)


@pytest.fixture
def small(tmp_path) -> Path:
    return small_run(tmp_path / "small")


def test_sections_come_in_order(page):
    ids = [element["attrs"]["id"] for element in page.all("section")]
    assert ids == [
        *("asked", "scores", "loss", "map", "served", "coverage", "groups", "let-in", "typical", "gained", "outputs"),
        "provenance",
    ]
    assert [link["attrs"]["href"] for link in page.all("a") if "nav" in link["parents"]] == [f"#{name}" for name in ids]


def test_every_reference_resolves_and_ids_are_unique(page):
    ids = [element["attrs"]["id"] for element in page.elements if "id" in element["attrs"]]
    assert len(ids) == len(set(ids))
    for element in page.elements:
        assert element["attrs"].get("aria-labelledby", ids[0]) in ids
        if element["tag"] == "a":
            assert element["attrs"]["href"][0] == "#"
            assert element["attrs"]["href"][1:] in ids


def test_tables_have_captions_and_headers_have_scopes(page):
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(element["attrs"].get("scope") in ("row", "col") for element in page.all("th"))
    assert all("label" in element["parents"] for element in page.all("input"))
    assert len(page.all("legend")) == len(page.all("fieldset"))
    levels = [int(element["tag"][1]) for element in page.elements if re.fullmatch("h[1-6]", element["tag"])]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_paragraphs_hold_only_text(page):
    # A browser ends a paragraph where a block begins, and html.parser does not say so.
    blocks = {"details", "div", "table", "ul", "ol", "dl", "pre", "section", "p", "figure", "h3", "h4"}
    assert not [element for element in page.elements if element["tag"] in blocks and "p" in element["parents"]]


def test_scrolling_regions_can_be_reached_by_keyboard(page):
    regions = [element for element in page.all("div") if element["attrs"].get("class") == "scroll"]
    assert regions
    for region in regions:
        assert region["attrs"]["tabindex"] == "0"
        assert region["attrs"]["role"] == "region"
        assert "aria-labelledby" in region["attrs"] or "aria-label" in region["attrs"]
    assert page.all("a")[0]["attrs"] == {"class": "skip", "href": "#scores"}


def test_policy_allows_exactly_the_scripts_of_the_page(source, page):
    policy = next(m["attrs"]["content"] for m in page.all("meta") if "http-equiv" in m["attrs"])
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data: blob:"
    scripts = [script for script in page.all("script") if script["attrs"].get("type") != "application/json"]
    digests = [base64.b64encode(hashlib.sha256(s["text"].encode()).digest()).decode() for s in scripts]
    assert rules["script-src"].split() == [f"'sha256-{digest}'" for digest in digests]
    assert sum("plotly.js v" in script["text"][:200] for script in scripts) == 1
    assert "\r" not in source
    assert source.index("http-equiv") < source.index("<style") < source.index("<script")


def test_nothing_is_loaded_from_elsewhere(page):
    for element in page.elements:
        for name, value in element["attrs"].items():
            assert not name.startswith("on")
            if name in ("src", "href", "data", "action", "srcset", "poster"):
                assert value.startswith(("#", "data:"))
    assert not {"iframe", "object", "embed", "form", "base"} & {element["tag"] for element in page.elements}
    assert all("url(" not in style["text"] and "@import" not in style["text"] for style in page.all("style"))


def test_page_is_small_and_the_same_twice(run, source, tmp_path):
    assert len(source.encode()) < 8e6
    again = write_report(run, tmp_path / "deep" / "again.html")
    assert again.read_text(encoding="utf-8") == source


def test_notice_command_and_config_are_shown(page):
    assert "synthetic" in next(p["text"] for p in page.all("p") if p["attrs"].get("class") == "notice")
    provenance = page.by_id("provenance")["text"]
    assert "python scripts/run.py configs/demo.py --workdir runs/demo --train.steps 500" in provenance
    assert "train.steps" in provenance
    assert "812 MB" in provenance
    assert hashlib.sha256(b"embed").hexdigest()[:12] in provenance


@pytest.mark.parametrize(("match", "said"), [("steps", "equal steps"), ("epochs", "equal epochs (steps differ)")])
def test_captions_say_what_is_equal(small, match, said):
    experiment = read_json(small / "experiment.json")
    write_json(small / "experiment.json", {**experiment, "match": match})
    shutil.rmtree(small / "embed")
    page = Page(write_report(small).read_text(encoding="utf-8"))
    captions = [caption["text"] for caption in page.all("caption") if "bootstrap interval; arms" in caption["text"]]
    assert len(captions) == 3
    assert all(said in " ".join(caption.split()) for caption in captions)


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_in_light_and_dark(page):
    light, dark = re.findall(r":root[^{]*\{([^}]*)\}", page.all("style")[0]["text"])[:2]
    for block in (light, dark):
        colour = dict(re.findall(r"--(\w+(?:-\w+)?):\s*(#[0-9a-f]{6})", block))
        for paper in ("paper", "raised"):
            for text in ("ink", "muted", "accent", "ins", "del"):
                assert contrast(colour[text], colour[paper]) >= 4.5, (text, paper)
        assert contrast(colour["ins"], colour["ins-paper"]) >= 4.5
        for mark in (*COLOURS, OTHER_COLOUR):
            assert contrast(mark, colour["paper"]) >= 3.0, mark
    assert contrast("#ffffff", "#000000") == pytest.approx(21)  # the definition's own end point


def test_formats():
    assert [duration(s) for s in (0.42, 12.4, 185.2, 7620)] == ["0.4 s", "12 s", "3 min 05 s", "2 h 07 min"]
    assert [size(b) for b in (812_000_000, 1_400_000_000, 12, 5_000)] == ["812 MB", "1.4 GB", "12 B", "5.0 kB"]
    assert count(27638) == "27\u202f638"
    assert clipped("one two three", 8) == "one two…"
    assert clipped("x" * 50, 10) == "x" * 10 + "…"
    nested = {"seed": 0, "train": {"steps": None, "name": "a"}, "empty": {}, "list": [1, 2]}
    assert flat(nested) == (
        ("seed", "0"),
        ("train.steps", "null"),
        ("train.name", "a"),
        ("empty", "{}"),
        ("list", "[1, 2]"),
    )
