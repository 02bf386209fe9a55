"""The budget curve by a probe, on a small pool: scores by scikit-learn, resumption, verdicts, the script."""

from __future__ import annotations

import dataclasses
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import pytest
from sklearn.metrics import f1_score
from test_comparison import write_texts

from deft_tsds.config import Lexical, load_as
from deft_tsds.runs import Run, read_json, stage_key
from deft_tsds.selection import Pool, select
from deft_tsds.selectors import DEFT, LESS, TSDS, Full, Herding, Nearest, Random
from deft_tsds.studies import probed
from deft_tsds.studies.chooser import Chooser, Contender
from deft_tsds.studies.curve import curve, markdown
from deft_tsds.studies.gradients import GradientsOf
from deft_tsds.studies.labelled_text import LabelledText, read
from deft_tsds.studies.probe import MACRO_F1, predict
from deft_tsds.studies.probed import Probed

ROOT = Path(__file__).parents[1]
BUDGETS, SEEDS = [0.1, 0.2, 0.4], 3
CONTENDERS = {
    "full": Contender(Full()),
    "random": Contender(Random()),
    "deft": Contender(DEFT(clusters=2, base_of="budget")),
    "kde": Contender(TSDS(alpha=0.8, neighbors=12, grow=False, fill="nearest")),
    "nearest": Contender(Nearest()),
    "herding": Contender(Herding("queries")),
    "less": Contender(LESS(), sees="gradients"),
}


@pytest.fixture(scope="module", name="data")
def _data(tmp_path_factory) -> LabelledText:
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module", name="study")
def _study(data, tmp_path_factory) -> tuple[Probed, dict]:
    cells = Probed(
        contenders=CONTENDERS,
        up_to={"herding": 0.2},
        data=data,
        gradients=GradientsOf("nobody/nothing"),
        replicates=SEEDS,
        resamples=100,
        seed=7,
        workdir=tmp_path_factory.mktemp("curve"),
    )
    return cells, curve(cells, budgets=BUDGETS, margin=5.0)


def test_arms_are_those_that_choose_and_see_what_there_is(study):
    _, table = study
    assert list(table["arms"]) == ["random", "deft", "kde", "nearest", "herding"]
    assert table["copy"] is None
    assert [point["budget"] for point in table["arms"]["herding"]["points"]] == BUDGETS[:2]
    assert table["arms"]["herding"]["notes"] == ["0.4: not asked for more than 0.2 of the pool, which takes too long."]


@pytest.mark.parametrize("name", ["random", "kde", "nearest", "full"])
def test_a_score_is_that_of_a_probe_on_what_the_selector_chooses(study, name):
    """The mean over seeds and targets of scikit-learn's macro-F1; a blind choice is the same for both targets."""
    cells, table = study
    texts = read(cells.data, Run(cells.workdir, cells.seed))
    pool, budget = texts.pool, 36  # 20% of 180
    scores = {}
    for target in texts.targets:
        scores[target.name] = []
        for seed in range(SEEDS):
            names = ("curve", str(seed)) if name in ("random", "full") else ("curve", target.name, str(seed))
            chosen = select(
                pool.embeddings_NxD,
                target.queries.embeddings_NxD,
                selector=CONTENDERS[name].selector,
                budget=len(pool.texts) if name == "full" else budget,
                key=stage_key(7, *names),
            )
            own = chosen.indices[pool.groups[chosen.indices] == target.name]
            said = predict(pool.embeddings_NxD[own], pool.labels[own], target.test.embeddings_NxD)
            scores[target.name].append(
                100 * f1_score(target.test.labels, said, average="macro", zero_division=cast(Any, 0))
            )
    found = table["full"] if name == "full" else table["arms"][name]["points"][1]["score"]
    for target, expected in scores.items():
        assert found["by_test"][target]["value"] == pytest.approx(np.mean(expected))
    assert found["value"] == pytest.approx(np.mean(list(scores.values())))
    assert 0 <= found["low"] <= found["value"] <= found["high"] <= 100


def test_what_draws_nothing_is_run_once_and_stands_for_all_seeds(study):
    cells, _ = study
    assert len(np.load(cells.workdir / "cells" / "nearest" / "36" / "apples" / "predictions.npy")) == 1
    runs = cells.runs("nearest", 0.2)
    assert {test: array.shape for test, array in runs.items()} == {"apples": (SEEDS, 50, 9), "pears": (SEEDS, 50, 9)}


def test_a_study_goes_on_to_the_same_table_cell_by_cell(study, monkeypatch):
    cells, table = study
    shutil.rmtree(cells.workdir / "cells" / "kde" / "36" / "pears")
    made = []

    def counted(*arguments):
        made.append(arguments)
        return predict(*arguments)

    monkeypatch.setattr(probed, "predict", counted)
    again = dataclasses.replace(cells)  # which remembers nothing
    assert curve(again, budgets=BUDGETS, margin=5.0) == table
    assert 1 <= len(made) <= SEEDS
    # With fewer budgets it shows what there is, judged by those alone.
    fewer = curve(again, budgets=BUDGETS[:2], margin=5.0)
    point, before = fewer["arms"]["kde"]["points"][0], table["arms"]["kde"]["points"][0]
    assert (point["score"], point["p_worse"]) == (before["score"], before["p_worse"])
    assert point["p_holm"] <= before["p_holm"]


def test_markdown_marks_what_is_shown(study):
    _, table = study
    lines = markdown(table).splitlines()
    assert lines[2] == "|  | 10% (18) | 20% (36) | 40% (72) | 100% |"
    (kde,) = [line for line in lines if line.startswith("| kde |")][:1]
    points = table["arms"]["kde"]["points"]
    for cell, point in zip(kde.split(" | ")[1:], points, strict=False):
        assert cell.startswith(f"{point['score']['value']:.1f} [")
        assert ("*" in cell) == point["enough"]
        assert (cell.rstrip("*")[-1] in "+-") == (point["to_random"]["p_holm"] < 0.05)
    assert "**pears**" in lines


def test_a_chooser_that_orders_once_chooses_as_the_selector_does():
    rng = np.random.default_rng(0)
    candidates, queries = rng.normal(size=(60, 4)).astype(np.float32), rng.normal(size=(5, 4)).astype(np.float32)
    key = jax.random.key(0)
    for contender in (CONTENDERS["herding"], CONTENDERS["kde"]):
        chooser = Chooser(contender, Pool.of(candidates, queries), most=30)
        for budget in (4, 20, 55):
            expected = select(candidates, queries, selector=contender.selector, budget=budget, key=key).indices
            np.testing.assert_array_equal(chooser(budget, key), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"replicates": 1}, "a verdict needs several seeds"),
        ({"contenders": {"full": Contender(Full())}}, "nothing but Full"),
        ({"with_gradients": True, "gradients": None}, "say of which T5"),
    ],
)
def test_what_cannot_be_is_refused_before_any_run(data, change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Probed(**{"contenders": CONTENDERS, "data": data, "workdir": tmp_path, **change})


def test_a_target_without_rows_in_the_pool_is_refused(data, tmp_path):
    shutil.copy(data.folder / "domain_target_pears.jsonl.gz", data.folder / "domain_target_plums.jsonl.gz")
    contenders = {"random": CONTENDERS["random"]}
    cells = Probed(contenders=contenders, data=dataclasses.replace(data, targets=("apples", "plums")), workdir=tmp_path)
    with pytest.raises(ValueError, match="no row of the target 'plums'"):
        cells.facts()


def test_statistics_of_one_row_need_the_classes():
    with pytest.raises(ValueError, match=r"use macro_f1\(classes\)"):
        MACRO_F1.statistics(["a"], ["text"], [["a"]])


def test_the_script_on_its_config_and_on_its_table(data, tmp_path, monkeypatch):
    script, config = str(ROOT / "scripts" / "curve.py"), str(ROOT / "configs" / "studies" / "curve_domain.py")
    described, _ = load_as(Probed, config)
    assert described.contenders["tsds-kde"].selector.fill == "nearest"
    lexical = tmp_path / "small.py"
    lexical.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from test_probed import small\n"
        f"config = small({str(data.folder)!r})\n"
    )
    options = ["--budgets", "0.2,0.5", "--margin", "3", "--replicates", "2", "--workdir", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", [script, str(lexical), *options])
    runpy.run_path(script, run_name="__main__")
    folder = tmp_path / "run" / "curve"
    table, text, page = read_json(folder / "table.json"), folder / "table.md", folder / "curve.html"
    assert (table["budgets"], table["margin"], table["seeds"]) == ([0.2, 0.5], 3.0, 2)
    before = text.read_text()
    assert before == markdown(table)
    assert "macro-F1" in page.read_text()
    text.unlink()
    monkeypatch.setattr(sys, "argv", [script, str(folder / "table.json")])
    runpy.run_path(script, run_name="__main__")
    assert text.read_text() == before


def small(folder: str) -> Probed:
    """A config for the script."""
    texts = LabelledText(Path(folder), targets=("apples", "pears"), encoder=Lexical(dimension=16))
    return Probed(contenders={name: CONTENDERS[name] for name in ("random", "nearest")}, data=texts, resamples=50)
