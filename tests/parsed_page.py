"""A page of the report as a list of its elements, and a run whose every text is an attack."""

from __future__ import annotations

import itertools
import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from fake_run import fake_embeddings, fake_examples, write_fake_run

from deft_tsds.data.examples import Examples
from deft_tsds.runs import read_json, write_json, write_jsonl
from deft_tsds.selection import Selection

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


def small_run(folder: Path) -> Path:
    """A run so small that its page takes no time."""
    tests = {"jfleg": fake_examples(4, seed=2, prefix="jfleg")}
    return write_fake_run(folder, pool=fake_examples(24), tests=tests, seeds=(0,))


def hostile_run(folder: Path) -> Path:
    """A run whose every text is an attack."""
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
        pairs = zip(chosen.indices, chosen.reasons, strict=True)
        reasons = [{**reason, "why": written(bad[row % size])} for row, reason in pairs]
        Selection.of(chosen.indices, reasons=reasons).save(where)
        outputs = [{"id": i, "prediction": written(p)} for i, p in zip(tests["jfleg"].ids, bad, strict=True)]
        write_jsonl(folder / f"evaluate/{arm}/seed-0/predictions_jfleg.jsonl", outputs)
    experiment = read_json(folder / "experiment.json")
    experiment.update(name=HOSTILE[1], description=HOSTILE[0], notice=HOSTILE[2], command=HOSTILE[3])
    experiment["config"]["prefix"] = HOSTILE[1]
    experiment["arms"]["deft"]["options"] = {HOSTILE[0]: HOSTILE[3]}
    experiment["arms"]["deft"]["selector"] = HOSTILE[0]
    write_json(folder / "experiment.json", experiment)
    return folder
