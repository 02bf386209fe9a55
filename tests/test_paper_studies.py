"""Purity, usefulness and contrasts of arms: the numbers by scikit-learn, SciPy and plain loops, and small runs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from deft_tsds.config import Arm, Evaluate, Experiment, Gradients, Lexical, Lora, Scratch, Source, Synthetic, Train
from deft_tsds.embed.store import open_store
from deft_tsds.embed.t5 import T5Encoder
from deft_tsds.runs import stage_key, write_jsonl
from deft_tsds.selectors import DEFT, Random
from deft_tsds.selectors.clusters import cluster_rows, cosine_distances
from deft_tsds.studies.contrasts import Contrasts
from deft_tsds.studies.gradients import GradientsOf
from deft_tsds.studies.purity import Purity, agreement, contingency
from deft_tsds.studies.usefulness import Usefulness, spearman, usefulness
from deft_tsds.t5 import T5, T5Config
from deft_tsds.t5.load import save_pretrained, train_tokenizer

TASKS = {
    "fluency": ("the cat sat", "a dog ran"),
    "neutral": ("sadly it is", "clearly they were"),
    "split": ("and", "but"),
}


@pytest.fixture(scope="module", name="source")
def _source(tmp_path_factory) -> Source:
    rng, rows = np.random.default_rng(0), []
    for number in range(60):
        task = list(TASKS)[number % 3]
        words = " ".join([*rng.choice(TASKS[task], 1), *rng.choice(sum(TASKS.values(), ()), 2)])
        rows.append({"id": f"r{number}", "task": task, "input": f"{words} {number}", "target": words})
    path = tmp_path_factory.mktemp("source") / "pool.jsonl"
    write_jsonl(path, rows)
    return Source(str(path), group_field="task")


@pytest.fixture(scope="module", name="model")
def _model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("t5")
    tokenizer = train_tokenizer(["the cat sat", "sadly it is and but red big old"], vocab_size=280)
    tokenizer.save_pretrained(folder)
    shape: dict[str, Any] = {
        "d_model": 8,
        "d_kv": 4,
        "d_ff": 8,
        "num_layers": 1,
        "num_decoder_layers": 1,
        "num_heads": 2,
    }
    save_pretrained(T5(T5Config(vocab_size=len(tokenizer), **shape), rngs=nnx.Rngs(0)), folder)
    (folder / "UNTRAINED").write_text("all of it is random.\n")
    return str(folder)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), clusters=st.integers(1, 5), labels=st.integers(1, 4))
def test_purity_and_nmi_against_scikit_learn(seed, clusters, labels):
    """Of rows that a resample may have drawn never or several times."""
    rng = np.random.default_rng(seed)
    clusters_SxN, label_N = rng.integers(clusters, size=(2, 40)), rng.integers(labels, size=40)
    weights_RxN = np.stack([np.ones(40), rng.multinomial(40, np.full(40, 1 / 40)).astype(float)])
    found = agreement(contingency(clusters_SxN, label_N, weights_RxN))
    for r, weight_N in enumerate(weights_RxN):
        rows = np.repeat(np.arange(40), weight_N.astype(int))
        for s, cluster_N in enumerate(clusters_SxN):
            table = np.asarray(contingency_matrix(label_N[rows], cluster_N[rows]))
            assert found["purity"][r, s] == pytest.approx(table.max(axis=0).sum() / 40)
            if len(table) > 1 or table.shape[1] > 1:  # of one cluster and one label scikit-learn says 1, by convention
                expected = normalized_mutual_info_score(label_N[rows], cluster_N[rows])
                assert found["nmi"][r, s] == pytest.approx(expected, abs=1e-9)


def test_purity_of_deft_s_own_clusters(source, model, tmp_path):
    study = Purity(
        pool=source,
        encoders={"lexical": Lexical(dimension=8), "t5": T5Encoder(model), "again": Lexical(dimension=8)},
        clusters=3,
        rows=50,
        seeds=2,
        resamples=200,
        workdir=tmp_path,
    )
    text = study.write()
    found = json.loads((tmp_path / "table.json").read_text())
    assert found["rows"] == 50
    assert sum(found["labels"].values()) == pytest.approx(1)
    lexical, t5, again = found["encoders"].values()
    assert (lexical["dimension"], t5["dimension"]) == (8, 8)
    assert (lexical["untrained"], t5["untrained"]) == (None, "all of it is random.")
    for each in (lexical, t5):
        for measure in ("purity", "nmi"):
            assert each[measure]["low"] < each[measure]["value"] < each[measure]["high"]
    apart = t5["nmi"]["to_first"]
    assert apart["value"] == pytest.approx(t5["nmi"]["value"] - lexical["nmi"]["value"])
    # Paired: the same clusters on the same resampled rows do not differ.
    assert again["nmi"]["to_first"] == {"value": 0, "low": 0, "high": 0}
    assert apart["low"] < apart["value"] < apart["high"]
    assert "**50 rows, K = 3; labels: fluency " in text
    assert "| t5* | 8 |" in text
    assert "- t5*: all of it is random." in text


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=20))
def test_rank_correlation_against_scipy(pairs):
    x_N, y_N = np.array(pairs).T
    found = spearman(np.stack([x_N, y_N]), np.stack([y_N, y_N]))
    constant = len(set(x_N)) == 1 or len(set(y_N)) == 1
    expected = 0 if constant else scipy.stats.spearmanr(x_N, y_N).statistic  # pyright: ignore[reportAttributeAccessIssue]
    assert found[0] == pytest.approx(expected)
    assert found[1] == pytest.approx(float(len(set(y_N)) > 1))


def test_usefulness_is_the_mean_influence_on_the_held_out_rows():
    rng = np.random.default_rng(0)
    pool_NxG, held_out_MxG = rng.normal(size=(5, 4)).astype(np.float32), rng.normal(size=(3, 4)).astype(np.float32)
    found = usefulness(pool_NxG, held_out_MxG)
    for row, pool_G in enumerate(pool_NxG):
        assert found[row] == pytest.approx(np.mean([float(pool_G @ other_G) for other_G in held_out_MxG]), abs=1e-6)


def test_usefulness_study(source, model, tmp_path):
    study = Usefulness(
        pool=source,
        encoders={"lexical": Lexical(dimension=8)},
        gradients=GradientsOf(
            model, Gradients(32, share=0.2, epochs=1, lora=Lora(rank=2), at_once=8, batch_size=4), 16, 8
        ),
        clusters=2,
        rows=40,
        held_out=8,
        seeds=2,
        resamples=100,
        workdir=tmp_path,
    )
    found = study.fill()
    useful_N = usefulness(
        open_store(tmp_path / "gradients" / "pool").array(), open_store(tmp_path / "gradients" / "held_out").array()
    )
    assert len(useful_N) == found["rows"] == 40
    unit_NxD = open_store(tmp_path / "embeddings" / "lexical" / "rows").array()
    overall, within = [], []
    for start in range(2):
        key = stage_key(0, "clusters", str(start))
        clustering, _ = cluster_rows(unit_NxD, 2, most_clusters=2, key=key)
        distance_N = cosine_distances(unit_NxD, clustering.centroids_KxD, clustering.labels_N)
        overall.append(scipy.stats.spearmanr(distance_N, useful_N).statistic)  # pyright: ignore[reportAttributeAccessIssue]
        parts = [np.flatnonzero(clustering.labels_N == k) for k in range(2)]
        each = [scipy.stats.spearmanr(distance_N[rows], useful_N[rows]).statistic for rows in parts]  # pyright: ignore[reportAttributeAccessIssue]
        within.append(np.average(each, weights=[len(rows) for rows in parts]))
    judged = found["encoders"]["lexical"]
    assert judged["overall"]["value"] == pytest.approx(np.mean(overall))
    assert judged["within"]["value"] == pytest.approx(np.mean(within))
    for kind in ("overall", "within"):
        assert -1 <= judged[kind]["low"] < judged[kind]["high"] <= 1
    assert sum(part["rows"] for part in judged["by_cluster"]) == 40
    text = study.write()
    assert "40 rows, 8 held out, K = 2" in text
    with pytest.raises(ValueError, match="rows \\+ held_out is 61, and the pool has 60 rows"):
        dataclasses.replace(study, rows=53).fill()


def test_contrasts_of_arms(tmp_path):
    experiment = Experiment(
        data=Synthetic(pool=80, queries=12, test=2),
        arms={
            "random": Arm(Random(), share=0.4),
            "hard": Arm(DEFT(clusters=2, base=0.2), share=0.4),
        },
        replicates=2,
        scratch=Scratch(vocabulary=300, d_model=16, d_ff=32, d_kv=8, heads=2, layers=1),
        train=Train(steps=2, batch_size=4, max_input_tokens=24, max_target_tokens=16),
        evaluate=Evaluate(metrics=("chrf",), max_new_tokens=4, batch_size=24, resamples=50),
    )
    study = Contrasts(experiment=experiment, against={"hard": "random"}, workdir=tmp_path)
    found = study.fill()
    assert list(found["arms"]) == ["copy", "random", "hard"]
    hard, random = found["arms"]["hard"], found["arms"]["random"]
    assert (hard["count"], random["count"]) == (32, 32)
    assert hard["difference"]["value"] == pytest.approx(hard["score"]["value"] - random["score"]["value"])
    assert hard["difference"]["p_holm"] >= hard["difference"]["p"]
    assert hard["sentence"].startswith("better than random: ")
    table = json.loads((tmp_path / "run" / "table" / "table.json").read_text())
    cells = {cell["arm"]: cell["value"] for cell in table["cells"] if cell["test"] == "all"}
    for name, arm in found["arms"].items():
        assert arm["score"]["value"] == pytest.approx(cells[name])
    assert Path(found["page"]).exists()
    lines = study.write().splitlines()
    assert lines[0].startswith("**Mean chrf over ")
    assert sum(line.startswith("| ") for line in lines) == 4
    assert any(line.startswith("- hard: better than random: ") for line in lines)
    with pytest.raises(ValueError, match="against names 'easy'"):
        dataclasses.replace(study, against={"easy": "random"}).fill()
