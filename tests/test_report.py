"""The report page: right numbers, honest words, no way in for the data's text, readable by everyone."""

from __future__ import annotations

import base64
import copy
import hashlib
import itertools
import json
import re
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import jax
import numpy as np
import pytest
from fake_run import GROUPS, GivenVectors, fake_embeddings, fake_examples, write_fake_run
from hypothesis import given, settings
from hypothesis import strategies as st

from deft_tsds.data.examples import Examples
from deft_tsds.embed.store import write_store
from deft_tsds.report import read_run, write_report
from deft_tsds.report import results as words
from deft_tsds.report.composition import flag_shares, group_shares, near_duplicate_share
from deft_tsds.report.figures import COLOURS, OTHER_COLOUR, hover_text, loss_figure, map_figure, nice_ticks, plotly_text
from deft_tsds.report.map2d import MOST_POINTS, PoolMap, plane, pool_map, proportional_sample
from deft_tsds.report.outputs import edits, side_by_side
from deft_tsds.report.page import duration, flat, size
from deft_tsds.report.shell import clipped, count
from deft_tsds.report.typicality import extremes, typicality
from deft_tsds.report.view import RunView
from deft_tsds.runs import read_json, read_jsonl, write_json, write_jsonl
from deft_tsds.selection import Selection

KEY = jax.random.key(0)
VOID = {"meta", "link", "input", "br", "img", "hr", "line", "circle"}
TEN_KB = "x" * 10_000
HOSTILE = (
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "<!-- <script> --><img src=x onerror=alert(3)>",
    '" onmouseover="alert(4)" \' onfocus=\'alert(5)',
    "{{ 7 * 7 }} {% raw %} %{customdata} ${1}",
    "<a href='javascript:alert(6)'>b</a> &lt;b&gt; &amp;amp;",
    "abc \u202edesrever\u202c \u2067rtl \u05e9\u05dc\u05d5\u05dd\u2069",
    "nul \x00 escape \x1b bell \x07 lone \ud800 surrogate",
    TEN_KB,
)


class Page(HTMLParser):
    """A page as a list of elements with their text; fails where tags do not nest."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[dict] = []
        self.open: list[dict] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {[element['tag'] for element in self.open]}"

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), f"repeated attribute in {tag}"
        parents = tuple(element["tag"] for element in self.open)
        element = {"tag": tag, "attrs": dict(attrs), "text": "", "parents": parents}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open[-1]["tag"] == tag, f"</{tag}> closes <{self.open[-1]['tag']}>"
        self.open.pop()

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag: str, **attrs) -> list[dict]:
        return [e for e in self.elements if e["tag"] == tag and all(e["attrs"].get(k) == v for k, v in attrs.items())]

    def by_id(self, name: str) -> dict:
        return next(element for element in self.elements if element["attrs"].get("id") == name)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = write_fake_run(tmp_path_factory.mktemp("runs") / "demo")
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def view(run) -> RunView:
    return read_run(run)


@pytest.fixture(scope="module")
def source(run) -> str:
    return (run / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source) -> Page:
    return Page(source)


@pytest.fixture
def small(tmp_path) -> Path:
    """A run so small that its page takes no time."""
    tests = {"jfleg": fake_examples(4, seed=2, prefix="jfleg")}
    return write_fake_run(tmp_path / "small", pool=fake_examples(24), tests=tests, seeds=(0,))


# The page as a document


def test_sections_come_in_order(page):
    ids = [element["attrs"]["id"] for element in page.all("section")]
    assert ids == ["asked", "scores", "loss", "map", "groups", "let-in", "typical", "outputs", "provenance"]
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


# Words and numbers of the results


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


# What was chosen


def test_group_and_flag_shares_against_counters(view):
    pool = Counter(view.pool.groups)
    rows = group_shares(view)
    assert [row.name for row in rows] == [
        name for name, _ in sorted(pool.items(), key=lambda item: (-item[1], item[0]))
    ]
    for row in rows:
        assert row.pool == pytest.approx(pool[row.name] / len(view.pool))
        for arm, share in zip(view.arms, row.arms, strict=True):
            by_seed = [
                Counter(view.pool.groups[index] for index in selection.indices)[row.name] / len(selection.indices)
                for selection in arm.selections.values()
            ]
            assert share.mean == pytest.approx(np.mean(by_seed))
            assert (share.low, share.high) == pytest.approx((min(by_seed), max(by_seed)))
            assert share.ratio == pytest.approx(share.mean / row.pool)
    flagged = {row.name: row for row in flag_shares(view)}
    chosen = view.arms[2].first.indices
    expected = np.mean([view.pool.flags["off_task"][index] for index in chosen])
    assert flagged["off_task"].arms[2].low <= expected <= flagged["off_task"].arms[2].high


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 40), threshold=st.floats(0.0, 0.99))
def test_near_duplicate_share_against_brute_force(seed, rows, threshold):
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((50, 3))
    unit = (points / np.linalg.norm(points, axis=1, keepdims=True)).astype(np.float32)
    indices = rng.integers(50, size=rows)  # some twice
    cosines = unit[indices].astype(np.float64) @ unit[indices].astype(np.float64).T
    pairs = [(i, j) for i in range(rows) for j in range(rows) if i != j and abs(cosines[i, j] - threshold) < 1e-5]
    if pairs:
        return  # float32 and float64 may differ on a cosine that lies on the threshold
    expected = np.mean([any(cosines[i, j] >= threshold for j in range(rows) if j != i) for i in range(rows)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deft_tsds.report.composition._BLOCK", 7)  # several blocks even here
        assert near_duplicate_share(unit, indices, key=KEY, threshold=threshold) == pytest.approx(expected)


def test_near_duplicate_share_of_many_rows_is_sampled_without_bias(monkeypatch):
    rng = np.random.default_rng(0)
    unit = np.eye(3000, 4000, dtype=np.float32)
    unit[:900] = unit[rng.integers(0, 5, size=900)]
    monkeypatch.setattr("deft_tsds.report.composition._MOST_COSINES", 3000 * 1000)
    share = near_duplicate_share(unit, np.arange(3000), key=KEY)
    assert share == pytest.approx(0.3, abs=4 * np.sqrt(0.3 * 0.7 / 1000))


def test_typicality_against_a_loop(view):
    embeddings = np.asarray(view.embeddings_NxD, dtype=np.float64)
    measured = typicality(view.embeddings_NxD, view.pool.groups)
    for row in range(0, len(view.pool), 17):
        own = [embeddings[i] for i in range(len(view.pool)) if view.pool.groups[i] == view.pool.groups[row]]
        mean = np.mean(own, axis=0)
        cosine = embeddings[row] @ mean / (np.linalg.norm(embeddings[row]) * np.linalg.norm(mean))
        assert measured[row] == pytest.approx(cosine, abs=1e-5)
    opposite = np.array([[1, 0], [-1, 0]], dtype=np.float32)
    assert typicality(opposite, ("a", "a")).tolist() == [0, 0]


def test_extremes_are_twenty_of_the_chosen_in_order(view):
    measured = typicality(view.embeddings_NxD, view.pool.groups)
    for arm, extreme in zip(view.arms, extremes(view, measured), strict=True):
        chosen = sorted(measured[arm.first.indices])
        shown = min(20, len(chosen) // 2)
        assert [c.typicality for c in extreme.least] == pytest.approx(chosen[:shown])
        assert [c.typicality for c in extreme.most] == pytest.approx(chosen[::-1][:shown])
        assert not {c.id for c in extreme.most} & {c.id for c in extreme.least}
        position = list(arm.first.indices).index(view.pool.ids.index(extreme.most[0].id))
        assert extreme.most[0].reason == arm.first.reasons[position]["why"]


# The map


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
    everywhere = PoolMap(np.arange(60), np.zeros((60, 2)), np.zeros(0, dtype=int), np.zeros((0, 2)))
    traces = map_figure(view, everywhere)["data"]
    assert len(traces) == len(COLOURS) + 1
    assert traces[-1]["marker"]["color"] == OTHER_COLOUR
    assert sum(len(trace["x"]) for trace in traces) == 60


# Outputs


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(["the", "a", "cat", "sat,", "on"]), max_size=12), st.randoms(use_true_random=False))
def test_edits_rebuild_both_texts(tokens, random):
    source = " ".join(tokens)
    output = " ".join(token for token in tokens if random.random() < 0.8)
    parts = edits(source, output)
    if parts is not None:
        assert "".join(text for kind, text in parts if kind != "insert") == source
        assert "".join(text for kind, text in parts if kind != "delete") == output


def test_side_by_side_counts_copies(view):
    shown = side_by_side(view)
    assert [outputs.name for outputs in shown] == ["jfleg", "asset", "wnc"]
    jfleg = shown[0]
    assert [row.id for row in jfleg.rows] == ["jfleg-00003", "jfleg-00009", "jfleg-00015"]
    rows = read_jsonl(view.folder / "evaluate/deft/seed-0/predictions_jfleg.jsonl")
    same = np.mean([row["prediction"] == text for row, text in zip(rows, view.tests["jfleg"].inputs, strict=True)])
    assert dict(jfleg.unchanged)["DEFT"] == pytest.approx(same)
    for row in jfleg.rows:
        for output in row.outputs:
            assert output.copies == (output.text == row.input)


# Hostile text


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> tuple[Path, str]:
    """A run whose every text is an attack."""
    folder = tmp_path_factory.mktemp("hostile") / "run"
    size = 3 * len(HOSTILE)
    bad = list(itertools.islice(itertools.cycle(HOSTILE), size))

    def attack(prefix: str) -> Examples:
        return Examples(
            ids=tuple(f"{prefix}{row} {text}" for row, text in enumerate(bad)),
            inputs=tuple(f"{row} {text}" for row, text in enumerate(bad)),
            prompts=tuple(f"{prefix}{row} prompt {text}" for row, text in enumerate(bad)),
            targets=tuple(bad),
            references=tuple((text, text) for text in bad),
            groups=tuple(HOSTILE[row % 4] for row in range(size)),
            flags={"<script>alert(7)</script>": np.ones(size, dtype=bool)},
        )

    # A lone surrogate cannot be written to a file as UTF-8, but JSON may hold one as an escape.
    def written(value):
        return json.loads(json.dumps(value).replace("\\ud800", "?"))

    def clean(examples: Examples) -> Examples:
        rows = written(examples.rows())
        return Examples(
            **{name + ("s"): tuple(row[name] for row in rows) for name in ("id", "input", "prompt", "target", "group")},
            references=tuple(tuple(row["references"]) for row in rows),
            flags=examples.flags,
        )

    pool, tests, queries = clean(attack("p")), {"jfleg": clean(attack("t"))}, clean(attack("q"))
    write_fake_run(folder, pool=pool, queries=queries, tests=tests, embeddings_NxD=fake_embeddings(pool), seeds=(0,))
    pool_file = folder / "data/pool.jsonl"
    pool_file.write_text(pool_file.read_text(encoding="utf-8").replace("lone ?", "lone \\ud800"), encoding="utf-8")
    for arm in ("full", "random", "deft", "tsds"):
        where = folder / f"select/{arm}/seed-0/selection"
        chosen = Selection.load(where)
        reasons = [{"why": written(bad[row % size])} for row in chosen.indices]
        Selection.of(chosen.indices, reasons=reasons).save(where)
        outputs = [{"id": i, "prediction": written(p)} for i, p in zip(tests["jfleg"].ids, bad, strict=True)]
        write_jsonl(folder / f"evaluate/{arm}/seed-0/predictions_jfleg.jsonl", outputs)
    experiment = read_json(folder / "experiment.json")
    experiment.update(name=HOSTILE[1], description=HOSTILE[0], notice=HOSTILE[2], command=HOSTILE[3])
    experiment["config"]["prefix"] = HOSTILE[1]
    experiment["arms"]["deft"]["options"] = {HOSTILE[0]: HOSTILE[3]}
    experiment["arms"]["deft"]["selector"] = HOSTILE[0]
    write_json(folder / "experiment.json", experiment)
    return folder, write_report(folder).read_text(encoding="utf-8")


def test_hostile_text_makes_no_element_and_no_attribute(hostile):
    page = Page(hostile[1])
    assert len(page.all("script")) == 3
    assert not page.all("img")
    for element in page.elements:
        assert not any(name.startswith("on") for name in element["attrs"])
        assert "javascript:" not in json.dumps(element["attrs"])
    assert not any("alert(" in script["text"][-20_000:] for script in page.all("script") if not script["attrs"])


def test_hostile_text_is_shown_as_it_is(hostile):
    text = Page(hostile[1]).by_id("typical")["text"]
    for attack in HOSTILE[:7]:
        assert attack in text
    assert "49" not in Page(hostile[1]).by_id("asked")["text"]  # no template of the data was run
    assert "nul \ufffd escape \ufffd bell \ufffd lone" in text


def test_figures_json_cannot_leave_its_element(hostile):
    data = Page(hostile[1]).by_id("figures")["text"]
    assert not set("<>&") & set(data)
    figures = json.loads(data)
    texts = [text for trace in figures["map"]["data"] for text in trace["text"]]
    names = [trace["name"] for figure in figures.values() for trace in figure["data"]]
    reasons = [why for arm in figures["map"]["arms"] for trace in arm["traces"] for why in trace["why"]]
    labels = [arm["label"] for arm in figures["map"]["arms"]]
    templates = [trace["hovertemplate"] for trace in figures["loss"]["data"]]
    for text in [*texts, *names, *reasons, *labels, *templates]:
        bare = re.sub(r"</?b>|<br>|<extra></extra>", "", text)  # our own
        assert not set("<>") & set(bare), text
        assert not set(re.findall(r"&\w*;?", bare)) - {"&lt;", "&gt;", "&amp;"}  # Plotly knows no others
        assert "%{customdata}" not in text
        assert not re.search("[\u202a-\u202e\u2066-\u2069]", text)
        assert max(len(line) for line in text.split("<br>")) < 400


def test_long_tokens_are_cut_with_the_whole_text_in_details(hostile):
    page = Page(hostile[1])
    wholes = [e for e in page.all("bdi") if e["attrs"].get("class") == "whole" and "details" in e["parents"]]
    assert any(element["text"].endswith(TEN_KB) for element in wholes)
    for element in page.all("summary"):
        assert len(element["text"]) < 500
    assert len(page.by_id("groups")["text"]) < 10_000


def test_directions_do_not_leak_out_of_a_text(hostile):
    page = Page(hostile[1])
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


# What is missing


@pytest.mark.parametrize(
    ("path", "stage"),
    [
        ("experiment.json", "run"),
        ("data/pool.jsonl", "data"),
        ("table/table.json", "evaluate"),
        ("select/tsds/seed-0/selection", "select"),
    ],
)
def test_missing_mandatory_file_is_named_with_its_stage(small, path, stage):
    target = small / path
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    with pytest.raises(ValueError, match=rf"{re.escape(path)} is missing.*stage `{stage}`"):
        write_report(small)
    assert not (small / "report.html").exists()


@pytest.mark.parametrize(
    ("path", "section"),
    [
        ("data/queries.jsonl", "provenance"),
        ("data/tests/jfleg.jsonl", "outputs"),
        ("embed/pool/store.json", "map"),
        ("embed/pool/store.json", "typical"),
        ("embed/pool/store.json", "let-in"),
        ("embed/queries/store.json", "provenance"),
        ("finetune/deft/seed-0/metrics.jsonl", "provenance"),
        ("evaluate/deft/seed-0/predictions_jfleg.jsonl", "provenance"),
    ],
)
def test_missing_optional_file_is_said(small, path, section):
    (small / path).unlink()
    page = Page(write_report(small).read_text(encoding="utf-8"))
    assert path in page.by_id(section)["text"]
    assert path in page.by_id("provenance")["text"]


def test_a_bare_run_has_a_page(small):
    for folder in ("embed", "finetune", "data/tests"):
        shutil.rmtree(small / folder)
    (small / "data/queries.jsonl").unlink()
    for manifest in small.rglob("manifest.json"):
        manifest.unlink()
    page = Page(write_report(small).read_text(encoding="utf-8"))
    assert "no loss" in page.by_id("provenance")["text"]
    assert "manifest.json" in page.by_id("provenance")["text"]
    assert not page.all("div", role="img")


def test_vectors_that_were_stored_unscaled_are_scaled(small):
    pool = fake_examples(24)
    unit = fake_embeddings(pool)
    given = dict(zip(pool.prompts, 3 * unit, strict=True))
    shutil.rmtree(small / "embed/pool")
    write_store(small / "embed/pool", pool.prompts, GivenVectors(given), normalize=False)
    read = read_run(small).embeddings_NxD
    assert read is not None
    np.testing.assert_allclose(read, unit, atol=1e-6)


def test_artefacts_of_different_pools_are_refused(small):
    where = small / "select/deft/seed-0/selection"
    Selection.of(np.array([0, 24])).save(where)
    with pytest.raises(ValueError, match=r"example 24, and the pool has 24.*stage `select`"):
        read_run(small)
    Selection.of(np.array([0, 23])).save(where)
    rows = read_jsonl(small / "data/pool.jsonl")
    write_jsonl(small / "data/pool.jsonl", [*rows, {**rows[0], "id": "new"}])
    with pytest.raises(ValueError, match=r"24 rows and data/pool.jsonl 25.*stage `embed`"):
        read_run(small)


# Numbers for readers


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
