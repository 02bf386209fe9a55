"""The study of targeted selection on a small pool: measures by plain counting, scores by sklearn, and resumption."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections import Counter

import numpy as np
import pytest
from oracles import brute_distances
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

import deft_tsds as dt
from deft_tsds.config import Transport, Weighted
from deft_tsds.data.ngrams import NgramCounts
from deft_tsds.runs import Run, stage_key
from deft_tsds.selectors import DSIR, LESS, TSDS, Full, Nearest, Random, RoundRobin
from deft_tsds.studies.probe import STRENGTH, macro_f1, outcomes, predict
from deft_tsds.studies.targeted import Contender, Labelled, Target, measure
from deft_tsds.studies.targeted_table import summarize, write_tables

SHARES, SEEDS = (0.1, 0.3), 2
OBJECTIVE = {"align": Weighted(1.0, "transport_cost"), "kde": Weighted(0.5, "kde_repulsion")}
CONTENDERS = {
    "Random": Contender(Random()),
    "Full": Contender(Full()),
    "TSDS-KDE": Contender(TSDS(alpha=0.8)),
    "TSDS, size 1.2B": Contender(TSDS(), size=1.2),
    "Transport": Contender(Transport(OBJECTIVE, bandwidth=0.75)),
    "Nearest": Contender(Nearest()),
    "Nearest again": Contender(Nearest()),
    "RoundRobin": Contender(RoundRobin()),
    "DSIR": Contender(DSIR(), sees="counts", seeds=1),
    "LESS": Contender(LESS(), sees="gradients"),
    "TSDS on gradients": Contender(TSDS(alpha=0.8), sees="gradients"),
}


def rows_of(seed, n, groups):
    """Rows in clusters, one a label, three labels a group; every seventh row nearly repeats the one before it."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(9).normal(size=(6, 8))
    kind = np.concatenate([3 * group + rng.integers(3, size=n) for group in groups])
    points = centers[kind] + 0.6 * rng.normal(size=(len(kind), 8))
    texts = [f"word{k} {rng.integers(9)} {rng.integers(9)} of {k // 3}" for k in kind]
    for row in range(1, len(kind), 7):
        points[row] = points[row - 1] + 0.02 * rng.normal(size=8)
        texts[row] = f"<< {texts[row - 1].upper()} >>"
        kind[row] = kind[row - 1]
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    gradients = points @ np.random.default_rng(8).normal(size=(8, 5))
    gradients /= np.linalg.norm(gradients, axis=1, keepdims=True)
    names, labels = np.array(["apples", "pears"])[kind // 3], np.array([f"label {k}" for k in kind])
    return Labelled(tuple(texts), labels, names, points.astype(np.float32), gradients.astype(np.float32))


POOL = rows_of(0, 100, (0, 1))
TARGETS = [
    Target("apples", rows_of(1, 12, (0,)), rows_of(2, 90, (0,))),
    Target("pears", rows_of(3, 12, (1,)), rows_of(4, 70, (1,))),
]


@pytest.fixture(scope="module", name="study")
def _study(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("study"), seed=5)
    stages = measure(POOL, TARGETS, run, contenders=CONTENDERS, shares=SHARES, seeds=SEEDS)
    return run, stages, summarize(POOL, TARGETS, stages)


def chosen(name, target, budget, seed):
    """The rows, by the selector itself."""
    contender, key = CONTENDERS[name], stage_key(5, "targeted", target.name, str(seed))
    selector, pool, queries = contender.selector, POOL.embeddings_NxD, target.queries.embeddings_NxD
    if isinstance(selector, Transport):
        objective = dt.Objective.of(align=(1.0, dt.terms.transport_cost), kde=(0.5, dt.terms.kde_repulsion))
        selector = dt.selectors.Transport(objective, bandwidth=0.75)
    if contender.size is not None:
        selector = TSDS(effective_size=contender.size * budget)
    if contender.sees == "counts":
        pool, queries = NgramCounts(POOL.texts), NgramCounts(target.queries.texts)
    groups = None
    if contender.sees == "gradients":
        pool, queries, groups = POOL.gradients_NxG, target.queries.gradients_NxG, target.queries.labels
    return dt.select(pool, queries, selector=selector, budget=budget, key=key, query_groups=groups).indices


def plain_measures(target, rows):
    own = [row for row in rows if POOL.groups[row] == target.name]
    words = {"".join(c for c in POOL.texts[row].lower() if c.isalnum()) for row in rows}
    distances = brute_distances(POOL.embeddings_NxD[rows], POOL.embeddings_NxD[rows], "cosine")
    np.fill_diagonal(distances, np.inf)
    counts = Counter(POOL.labels[row] for row in own)
    entropy = -sum(count / len(own) * math.log(count / len(own)) for count in counts.values())
    return {
        "own": len(own) / len(rows),
        "distinct": len(words) / len(rows),
        "near_duplicates": sum(row.min() <= 0.05 for row in distances) / len(rows),
        "classes": math.exp(entropy) / 3,
    }


def sklearn_labels(target, rows):
    own = rows[POOL.groups[rows] == target.name]
    probe = LogisticRegression(C=STRENGTH, max_iter=1000)
    return probe.fit(POOL.embeddings_NxD[own], POOL.labels[own]).predict(target.test.embeddings_NxD)


@pytest.mark.parametrize("name", CONTENDERS)
def test_cells_against_the_selector_itself(study, name):
    _, stages, _ = study
    for target in TARGETS:
        stage = stages[name, target.name]
        predictions = np.load(stage.folder / "predictions.npy")
        cells = stage.results["cells"]
        once = name in ("Full", "Nearest", "Nearest again", "RoundRobin", "LESS")
        seeds = 1 if once or name == "DSIR" else SEEDS
        shares = (1.0,) if name == "Full" else SHARES
        assert [(cell["share"], cell["seed"]) for cell in cells] == [(s, r) for s in shares for r in range(seeds)]
        for cell, predicted in zip(cells, predictions, strict=True):
            assert cell["budget"] == round(cell["share"] * 200)
            rows = chosen(name, target, cell["budget"], cell["seed"])
            assert cell["measures"] == pytest.approx(plain_measures(target, rows.tolist()))
            assert cell["trained_on"] == (POOL.groups[rows] == target.name).sum()
            assert np.mean(predicted == sklearn_labels(target, rows)) > 0.98  # the probe stops at its limit


def test_the_measures_can_tell(study):
    """There are near-copies, and texts that differ in their letters' case and signs alone."""
    whole = study[1]["Full", "apples"].results["cells"][0]["measures"]
    assert whole["own"] == 0.5
    assert whole["near_duplicates"] > 0.2
    assert whole["distinct"] < 0.9


def test_scores_against_sklearn(study):
    _, stages, summary = study
    for table in summary["shares"]:
        rows = {row["contender"]: row for row in table["rows"]}
        scores = {}
        for name, row in rows.items():
            for target in TARGETS:
                stage = stages[name, target.name]
                predicted = np.load(stage.folder / "predictions.npy")
                here = [c["share"] == table["share"] or name == "Full" for c in stage.results["cells"]]
                each = [100 * f1_score(target.test.labels, p, average="macro") for p in predicted[here]]
                scores[name, target.name] = np.mean(each)
                assert row["macro_f1"][target.name]["value"] == pytest.approx(np.mean(each))
            mean = np.mean([scores[name, target.name] for target in TARGETS])
            found = row["macro_f1"]["mean"]
            assert found["value"] == pytest.approx(mean)
            assert found["low"] <= found["value"] <= found["high"]
            assert found["high"] - found["low"] < 30
        for name, row in rows.items():
            assert set(row["differences"]) == set(rows) - {name}
            for other, difference in row["differences"].items():
                for target in TARGETS:
                    apart = scores[name, target.name] - scores[other, target.name]
                    assert difference[target.name]["value"] == pytest.approx(apart)
        # Paired: the same predictions on the same resampled test rows do not differ.
        same = rows["Nearest"]["differences"]["Nearest again"]["mean"]
        assert (same["low"], same["high"]) == (0, 0)
        own = [
            c["measures"]["own"]
            for t in TARGETS
            for c in stages["Nearest", t.name].results["cells"]
            if c["share"] == table["share"]
        ]
        assert rows["Nearest"]["measures"]["own"] == pytest.approx(np.mean(own))


def test_a_study_that_was_stopped_gives_the_same_table(
    study,
    tmp_path,
):
    run, _, summary = study
    folder = tmp_path / "again"
    shutil.copytree(run.folder, folder)
    shutil.rmtree(folder / "cells" / "pears" / "TSDS-KDE")
    (folder / "cells" / "apples" / "Transport" / "manifest.json").unlink()  # killed before its end
    finished = folder / "cells" / "apples" / "TSDS-KDE" / "manifest.json"
    before = finished.stat().st_mtime_ns
    again = measure(POOL, TARGETS, Run(folder, seed=5), contenders=CONTENDERS, shares=SHARES, seeds=SEEDS)
    assert summarize(POOL, TARGETS, again) == summary
    assert finished.stat().st_mtime_ns == before
    texts = [write_tables(summary, tmp_path / name) for name in ("a", "b")]
    assert texts[0] == texts[1] == (tmp_path / "a" / "table.md").read_text()


def test_the_markdown(study):
    text = write_tables(study[2], study[0].folder)
    assert "**10.0% of the pool: 20 of 200 rows**" in text
    lines = text.splitlines()
    header = next(line for line in lines if line.startswith("| selector"))
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| selector")]
    assert len(rows) == 2 * len(CONTENDERS)
    assert {line.count("|") for line in rows} == {header.count("|")}
    best = max(study[2]["shares"][0]["rows"][2:], key=lambda row: row["macro_f1"]["mean"]["value"])["contender"]
    assert "**" in next(line for line in rows if line.startswith(f"| {best} |"))
    assert not any("**" in line for line in rows if line.startswith("| Full"))
    assert "TSDS-KDE less Random, by target: apples " in text
    assert (study[0].folder / "cells.jsonl").read_text().count("\n") == len(study[2]["cells"])


def test_a_selector_that_cannot_meet_the_budget_says_so(tmp_path):
    contenders = {"Random": Contender(Random()), "short": Contender(TSDS(alpha=0.99, neighbors=2, grow=False))}
    stages = measure(POOL, TARGETS, Run(tmp_path, 0), contenders=contenders, shares=(0.5,), seeds=1)
    rows = {row["contender"]: row for row in summarize(POOL, TARGETS, stages)["shares"][0]["rows"]}
    assert "fewer than the budget of 100" in rows["short"]["note"]
    assert "macro_f1" not in rows["short"]
    text = write_tables(summarize(POOL, TARGETS, stages), tmp_path)
    assert "| short | – |" in text
    assert f"short: {rows['short']['note']}" in text


def test_wrong_input(tmp_path):
    run = Run(tmp_path, 0)
    with pytest.raises(ValueError, match="the pool has no row of the target 'plums'"):
        measure(POOL, [Target("plums", POOL, POOL)], run)
    blind = dataclasses.replace(POOL, gradients_NxG=None)
    with pytest.raises(ValueError, match="LESS, TSDS on gradients see gradients: give pool and queries some"):
        measure(blind, TARGETS, run, contenders=CONTENDERS)
    with pytest.raises(ValueError, match="seeds is 0"):
        measure(POOL, TARGETS, run, seeds=0)
    with pytest.raises(ValueError, match=r"shares has 1\.5"):
        measure(POOL, TARGETS, run, shares=(1.5,))
    with pytest.raises(ValueError, match="the same number of rows"):
        Labelled(("a",), np.array(["b"]), np.array(["c"]), np.zeros((2, 3), np.float32))


def test_probe_of_few_labels():
    train, test = POOL.embeddings_NxD[:4], POOL.embeddings_NxD[:7]
    assert predict(train, np.array(["a"] * 4), test).tolist() == ["a"] * 7
    assert predict(train[:0], np.array([], dtype=str), test).tolist() == [""] * 7


def test_macro_f1_of_absent_classes():
    classes = ["a", "b", "c", "d"]
    predicted, true = np.array(["a", "b", "a", "", "x"]), np.array(["a", "a", "b", "b", "c"])
    metric = macro_f1(classes)
    total = outcomes(predicted, true, classes).sum(0)
    expected = 100 * f1_score(true, predicted, labels=classes, average="macro", zero_division=0)  # pyright: ignore[reportArgumentType]
    assert metric.score(total) == pytest.approx(expected)
    rows = metric.statistics(predicted.tolist(), ["text"] * 5, [[label] for label in true.tolist()])
    np.testing.assert_array_equal(rows, outcomes(predicted, true, classes))
