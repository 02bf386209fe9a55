"""Contenders under conditions, on a small pool: copies by plain counting, scores by sklearn, costs, and resumption."""

from __future__ import annotations

import dataclasses
import gzip
import json
import runpy
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

import deft_tsds as dt
from deft_tsds.config import Lexical, load_as
from deft_tsds.runs import Run, stage_key
from deft_tsds.selectors import TSDS, Full, Nearest, Random
from deft_tsds.studies.chooser import Contender
from deft_tsds.studies.comparison import Comparison
from deft_tsds.studies.conditions import Condition, Copies, changed, edited
from deft_tsds.studies.costs import on_the_front
from deft_tsds.studies.labelled_text import LabelledText, read
from deft_tsds.studies.statistics import holm
from deft_tsds.studies.study import Study
from deft_tsds.studies.targeted import Labelled, Target, measure

KEY = jax.random.key(3)
STUDIES = sorted((Path(__file__).parents[1] / "configs" / "studies").glob("*.py"))
WORDS = {"apples": ("cox", "gala", "fuji"), "pears": ("nashi", "conference", "bartlett")}
CONDITIONS = {
    "as it is": Condition(),
    "few": Condition(queries=3),
    "slips": Condition(copies=Copies(share=0.1, times=4, edits=2)),
}


def texts_of(group: str, n: int, seed: int, split: str) -> list[dict]:
    rng, kinds = np.random.default_rng(seed), WORDS[group]
    rows = []
    for number in range(n):
        kind = int(rng.integers(3))
        others = rng.choice(["ripe", "green", "sour", "sweet", "round", "old", kinds[(kind + 1) % 3]], 4)
        words = [kinds[kind], *others, group]
        row = {"id": f"{group}-{split}-{number}", "text": " ".join(words), "label": kinds[kind]}
        rows.append({**row, "dataset": group, "split": split})
    return rows


def write_texts(folder: Path) -> LabelledText:
    """A pool of two data sets, both of them targets."""
    pool = [*texts_of("apples", 90, 0, "train"), *texts_of("pears", 90, 1, "train")]
    pool = [pool[row] for row in np.random.default_rng(2).permutation(len(pool))]
    files = {"domain_pool": pool}
    for place, name in enumerate(WORDS):
        files[f"domain_target_{name}"] = [
            *texts_of(name, 8, 3 + place, "query"),
            *texts_of(name, 50, 5 + place, "test"),
        ]
    for name, rows in files.items():
        with gzip.open(folder / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return LabelledText(folder, targets=tuple(WORDS), encoder=Lexical(dimension=16))


@pytest.fixture(scope="module", name="data")
def _data(tmp_path_factory) -> LabelledText:
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module", name="study")
def _study(data, tmp_path_factory) -> tuple[Comparison, dict]:
    study = Comparison(
        contenders={
            "Random": Contender(Random()),
            "Full": Contender(Full()),
            "KDE": Contender(TSDS(alpha=0.8)),
            "Nearest": Contender(Nearest()),
        },
        conditions=CONDITIONS,
        shares=(0.1, 0.2),
        seeds=2,
        data=data,
        seed=7,
        workdir=tmp_path_factory.mktemp("comparison"),
    )
    return study, study.fill()


@pytest.mark.parametrize(
    "path", [path for path in STUDIES if path.stem.startswith(("deft_", "tsds_"))], ids=lambda path: path.stem
)
def test_every_study_loads_and_its_docstring_gives_its_command(path):
    study, description = load_as(Study, path)
    assert f"python scripts/experiment.py configs/studies/{path.name}" in description
    assert study.workdir == Path("runs") / path.stem
    changed_study, _ = load_as(Study, path, ["--workdir", "elsewhere", "--seed", "3"])
    assert changed_study == dataclasses.replace(study, workdir=Path("elsewhere"), seed=3)


def row_of(found: dict, share: float, contender: str, condition: str) -> dict:
    table = next(table for table in found["shares"] if table["share"] == share)
    (row,) = [row for row in table["rows"] if (row["contender"], row["condition"]) == (contender, condition)]
    return row


def scores_of(study: Comparison, found: dict, target: Target, share: float, contender: str, condition: str):
    """macro-F1 of each seed, by sklearn from the predictions."""
    folder = study.workdir / "conditions" / condition / "cells" / target.name / contender
    cells = json.loads((folder / "manifest.json").read_text())["results"]["cells"]
    said = np.load(folder / "predictions.npy")
    pairs = zip(cells, said, strict=True)
    return [100 * f1_score(target.test.labels, p, average="macro") for cell, p in pairs if cell["share"] == share]


def test_rows_and_differences_against_sklearn(study):
    study, found = study
    targets = read(study.data, Run(study.workdir, study.seed)).targets
    for share in study.shares:
        means = {}
        rows = next(table for table in found["shares"] if table["share"] == share)["rows"]
        assert [(row["condition"], row["contender"]) for row in rows] == [
            (condition, contender)
            for condition in CONDITIONS
            for contender in study.contenders
            if contender != "Full" or condition == "as it is"
        ]
        for row in rows:
            if row["contender"] == "Full":
                continue
            where = (row["contender"], row["condition"])
            each = [scores_of(study, found, target, share, *where) for target in targets]
            means[where] = float(np.mean([np.mean(scores) for scores in each]))
            assert row["macro_f1"]["mean"]["value"] == pytest.approx(means[where])
            drawn = row["contender"] != "Nearest" or row["condition"] == "few"
            assert row["seeds"] == len(each[0]) == (2 if drawn else 1)
        for row in rows:
            if row["contender"] == "Full":
                continue
            apart = {
                "to_against": means[row["contender"], row["condition"]] - means["Random", row["condition"]],
                "to_first": means[row["contender"], row["condition"]] - means[row["contender"], "as it is"],
            }
            for kind, value in apart.items():
                if value == 0:
                    assert row[kind] is None or row[kind]["value"] == 0
                else:
                    assert row[kind]["value"] == pytest.approx(value)
        for kind in ("to_against", "to_first"):
            shown = [row[kind] for row in rows if row[kind]]
            assert [each["p_holm"] for each in shown] == holm([each["p"] for each in shown])


def test_each_seed_of_few_queries_sees_others(study):
    """The choice is what the selector gives for the three queries that the key draws."""
    study, _ = study
    run = Run(study.workdir, study.seed)
    texts = read(study.data, run)
    target = texts.targets[0]
    folder = study.workdir / "conditions" / "few" / "cells" / "apples" / "Nearest"
    cells = json.loads((folder / "manifest.json").read_text())["results"]["cells"]
    seen = []
    for seed in range(2):
        order = np.asarray(jax.random.permutation(stage_key(7, "queries", "apples", str(seed)), 8))
        queries_MxD = target.queries.embeddings_NxD[np.sort(order[:3])]
        chosen = dt.select(texts.pool.embeddings_NxD, queries_MxD, selector=Nearest(), budget=18, key=KEY).indices
        own = float(np.mean(texts.pool.groups[chosen] == "apples"))
        (cell,) = [cell for cell in cells if cell["share"] == 0.1 and cell["seed"] == seed]
        assert cell["measures"]["own"] == pytest.approx(own)
        assert cell["measures"]["originals"] == 18
        seen.append(chosen.tolist())
    assert seen[0] != seen[1]


def test_a_study_that_was_stopped_gives_the_same_table(study):
    study, found = study
    cells = study.workdir / "conditions" / "slips" / "cells"
    (cells / "pears" / "KDE" / "manifest.json").unlink()
    kept = cells / "apples" / "KDE" / "manifest.json"
    before = kept.stat().st_mtime_ns
    assert study.fill() == found
    assert kept.stat().st_mtime_ns == before


def test_the_files_of_a_study(study):
    study, found = study
    text = study.write()
    assert json.loads((study.workdir / "table.json").read_text()) == json.loads(json.dumps(found))
    assert text == (study.workdir / "table.md").read_text()
    lines = text.splitlines()
    assert "**10.0% of the pool: 18 of 180 rows**" in lines
    header = next(line for line in lines if line.startswith("| selector"))
    assert "less Random" in header
    assert "less as it is" in header
    assert "originals" in header
    assert {line.count("|") for line in lines if line.startswith("| ")} == {header.count("|")}
    assert "Plotly.newPlot" in (study.workdir / "figures.html").read_text()


def cloud(n: int = 60) -> Labelled:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(n, 6)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return Labelled(tuple(f"text number {i}" for i in range(n)), np.array(["a"] * n), np.array(["own"] * n), points)


def test_copies_are_near_their_originals_and_nothing_else_changes():
    pool = cloud()
    few, many = (changed(pool, Condition(copies=Copies(0.1, times)), key=KEY, encode=None) for times in (1, 10))
    assert (len(few.texts), len(many.texts)) == (66, 120)
    for grown in (few, many):
        assert grown.origins_N is not None
        np.testing.assert_array_equal(grown.embeddings_NxD[:60], pool.embeddings_NxD)
        np.testing.assert_array_equal(grown.origins_N[:60], np.arange(60))
        cosines = np.sum(grown.embeddings_NxD * pool.embeddings_NxD[grown.origins_N], axis=1)[60:]
        np.testing.assert_allclose(np.linalg.norm(grown.embeddings_NxD, axis=1), 1, atol=1e-6)
        assert ((cosines < 1 - 1e-5) & (cosines > 1 - 0.05**2)).all()
        assert grown.texts == tuple(pool.texts[row] for row in grown.origins_N)
    repeated = [{text for text in grown.texts if grown.texts.count(text) > 1} for grown in (few, many)]
    assert repeated[0] == repeated[1]  # the same rows, however often
    assert len(repeated[0]) == 6


def test_fewer_candidates_are_among_more():
    pool = cloud()
    few, more = (changed(pool, Condition(candidates=count), key=KEY, encode=None) for count in (10, 40))
    assert set(few.texts) < set(more.texts) < set(pool.texts)
    assert changed(pool, Condition(), key=KEY, encode=None).texts == pool.texts


def levenshtein(a: str, b: str) -> int:
    above = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        row = [i]
        for j, other in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (letter != other)))
        above = row
    return above[-1]


@settings(deadline=None, max_examples=50)
@given(text=st.text(min_size=1, max_size=30), edits=st.integers(1, 4), seed=st.integers(0, 100))
def test_slips_are_few_and_leave_something(text, edits, seed):
    changed_text = edited(text, edits, np.random.default_rng(seed))
    assert changed_text
    assert levenshtein(text, changed_text) <= 2 * edits  # an exchange counts as two
    assert changed_text == edited(text, edits, np.random.default_rng(seed))


def test_kde_holds_where_uniform_is_flooded(tmp_path):
    """The measures of copies by plain counting, and what they are for: a few rows copied often near the query."""
    pool = cloud(200)
    query = Labelled(("q",), np.array(["a"]), np.array(["query"]), pool.embeddings_NxD[:1])
    target = Target("own", query, query)
    flooded = changed(pool, Condition(copies=Copies(0.1, 30, noise=0.01)), key=KEY, encode=None)
    assert flooded.origins_N is not None
    contenders = {name: Contender(TSDS(alpha=0.5, regularizer=name, bandwidth=0.3)) for name in ("kde", "uniform")}
    stages = measure(flooded, [target], Run(tmp_path, 0), contenders=contenders, shares=(0.1,), seeds=1, shares_of=200)
    found = {}
    for name, contender in contenders.items():
        (cell,) = stages[name, "own"].results["cells"]
        assert cell["budget"] == 20
        key = stage_key(0, "targeted", "own", "0")
        chosen = dt.select(
            flooded.embeddings_NxD, query.embeddings_NxD, selector=contender.selector, budget=20, key=key
        ).indices
        originals = len({int(flooded.origins_N[row]) for row in chosen})
        assert cell["measures"]["originals"] == originals
        assert cell["measures"]["repeated"] == pytest.approx(1 - originals / 20)
        assert cell["plan"]["effective_size"] > 1
        found[name] = cell["measures"]["repeated"]
    assert found["uniform"] > 0.3
    assert found["kde"] < found["uniform"] / 2


def test_a_contender_that_cannot_meet_the_budget_says_so_and_nothing_else(data, tmp_path):
    contenders = {"Random": Contender(Random()), "narrow": Contender(TSDS(alpha=0.99, neighbors=2, grow=False))}
    study = Comparison(contenders=contenders, shares=(0.5,), seeds=1, data=data, workdir=tmp_path)
    found = study.fill()
    row = row_of(found, 0.5, "narrow", "as it is")
    assert "fewer than the budget of 90" in row["note"]
    assert (row["measures"], row["macro_f1"], row["to_against"]) == ({}, None, None)
    text = study.markdown(found)
    assert "| narrow | – |" in text
    assert "\nnarrow: only " in text


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=8))
def test_the_front_against_its_definition(points):
    found = on_the_front(points)
    for place, (cost, quality) in enumerate(points):
        beaten = any((c < cost and q >= quality) or (c <= cost and q > quality) for c, q in points)
        assert found[place] is not beaten


def test_costs_are_measured_apart(data, tmp_path):
    study = Comparison(
        contenders={"Random": Contender(Random()), "Nearest": Contender(Nearest())},
        shares=(0.1,),
        seeds=1,
        data=data,
        timed=2,
        workdir=tmp_path,
    )
    found = study.fill()
    for row in found["shares"][0]["rows"]:
        assert row["costs"]["first_seconds"] > 0
        assert 0 < row["costs"]["seconds"]["value"] < 5
        assert row["costs"]["peak_bytes"] is None or 0 <= row["costs"]["peak_bytes"] < 2**31
    assert any(row["on_front"] for row in found["shares"][0]["rows"])
    assert "| on the front |" in study.markdown(found)
    assert set(study.figures(found)) == {"10.0% of the pool", "Quality against cost"}
    before = (tmp_path / "conditions" / "as it is" / "costs" / "Random" / "manifest.json").stat().st_mtime_ns
    assert study.fill() == found
    assert (tmp_path / "conditions" / "as it is" / "costs" / "Random" / "manifest.json").stat().st_mtime_ns == before


def test_the_script_runs_a_config_of_the_user_s_own(data, tmp_path, monkeypatch, capsys):
    config = tmp_path / "own.py"
    config.write_text(
        "from pathlib import Path\n"
        "from deft_tsds.config import Lexical\n"
        "from deft_tsds.selectors import Nearest, Random\n"
        "from deft_tsds.studies.comparison import Comparison\n"
        "from deft_tsds.studies.labelled_text import LabelledText\n"
        "from deft_tsds.studies.targeted import Contender\n"
        f"data = LabelledText(Path({str(data.folder)!r}), ('apples', 'pears'), Lexical(dimension=16))\n"
        "contenders = {'Random': Contender(Random()), 'Nearest': Contender(Nearest())}\n"
        "config = Comparison(contenders=contenders, data=data, shares=(0.1,))\n"
    )
    monkeypatch.setattr(sys, "argv", ["experiment.py", str(config), "--seeds", "1", "--workdir", str(tmp_path / "run")])
    runpy.run_path(str(STUDIES[0].parents[2] / "scripts" / "experiment.py"), run_name="__main__")
    printed = capsys.readouterr().err
    assert "| Nearest |" in printed
    assert json.loads((tmp_path / "run" / "table.json").read_text())["against"] == "Random"


def test_wrong_input(data, tmp_path):
    study = Comparison(contenders={"Random": Contender(Random())}, data=data, workdir=tmp_path, seeds=1)
    with pytest.raises(ValueError, match="against is 'KDE'"):
        dataclasses.replace(study, against="KDE").fill()
    blind = dataclasses.replace(study, contenders={"Random": Contender(Random(), sees="gradients")})
    with pytest.raises(ValueError, match="say of which T5 by `gradients`"):
        blind.fill()
    with pytest.raises(ValueError, match="queries is 9, and 'apples' has 8"):
        dataclasses.replace(study, conditions={"many": Condition(queries=9)}).fill()
    with pytest.raises(ValueError, match="limit is 0"):
        dataclasses.replace(study, data=dataclasses.replace(data, limit=0)).fill()
    with pytest.raises(ValueError, match="edits need an encoder"):
        changed(cloud(), Condition(copies=Copies(0.1, 1, edits=1)), key=KEY, encode=None)
    with pytest.raises(ValueError, match="candidates is 61"):
        changed(cloud(), Condition(candidates=61), key=KEY, encode=None)
    with pytest.raises(ValueError, match="share is 0"):
        Copies(0.0, 1)
