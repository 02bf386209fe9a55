"""Arms that see different things, and hygiene before them, through the whole job."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from fake_run import write_fake_run

from deft_tsds.config import (
    Arm,
    Evaluate,
    Experiment,
    Files,
    Gradients,
    Lora,
    Ngrams,
    OwnEmbeddings,
    Quality,
    Scratch,
    Source,
    Synthetic,
    Train,
)
from deft_tsds.data.hygiene import Hygiene
from deft_tsds.data.ngrams import NgramCounts
from deft_tsds.embed.given import Given
from deft_tsds.embed.store import open_store, write_store
from deft_tsds.pipeline import Pipeline
from deft_tsds.report import write_report
from deft_tsds.runs import read_json, stage_key, write_json, write_jsonl
from deft_tsds.selection import Pool, Selection, select
from deft_tsds.selectors import DSIR, LESS, TSDS, Nearest, Random
from deft_tsds.studies.ablation import cells

SMALL = Experiment(
    data=Synthetic(pool=150, queries=12, test=4),
    arms={
        "random": Arm(Random(), count=30),
        "less": Arm(LESS(), count=30, encoder="gradients"),
        "dsir": Arm(DSIR(), count=30, encoder="ngrams"),
    },
    encoders={
        "gradients": Gradients(dimension=32, share=0.2, epochs=2, batch_size=8, at_once=8, lora=Lora(rank=2)),
        "ngrams": Ngrams(buckets=500),
    },
    hygiene=Hygiene(),
    scratch=Scratch(vocabulary=300, d_model=16, d_ff=32, d_kv=8, heads=2, layers=1),
    train=Train(steps=4, batch_size=8, max_input_tokens=32, max_target_tokens=24),
    evaluate=Evaluate(max_new_tokens=4, batch_size=24, resamples=20),
)


def stand_in(folder, model, pool, targets, tokenized, *, dimension, epochs, key, **options):
    """In place of `write_gradients`, which test_gradients.py has with its training: rows that hang on the key alone."""
    assert options.pop("mesh") is None  # one process
    assert dataclasses.asdict(SMALL.encoders["gradients"]).items() >= options.items()
    assert len(tokenized(pool)) == len(pool)
    assert model.config.d_model == SMALL.scratch.d_model
    for name, examples in {"pool": pool, **targets}.items():
        rows = jax.random.normal(jax.random.fold_in(key, len(examples)), (len(examples), dimension * epochs))
        np.save(folder / f"{name}.npy", rows)
        given = Given(folder / f"{name}.npy", rows=len(examples), name=name)
        write_store(folder / name, given.texts, given, ids=examples.ids)


@pytest.fixture(scope="module", autouse=True)
def _without_training():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deft_tsds.pipeline.write_gradients", stand_in)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Pipeline:
    pipeline = Pipeline(dataclasses.replace(SMALL, workdir=tmp_path_factory.mktemp("run") / "small"), "A test.")
    pipeline.each(pipeline.select)  # what follows is the same for any arm: see test_pipeline.py
    return pipeline


def chosen(pipeline: Pipeline, arm: str) -> Selection:
    return Selection.load(pipeline.select(arm, 0).folder / "selection")


def test_less_selects_on_gradients_by_the_queries_groups(finished):
    folder = finished.run.folder / "encoders" / "gradients"
    pool, queries = open_store(folder / "pool"), open_store(folder / "queries")
    assert pool.shape == (finished.clean.results["pool"], 2 * 32)
    groups = finished.examples("queries").groups
    ours = chosen(finished, "less")
    assert set(ours.info["chosen_by_subtask"]) == set(groups)
    means_SxD = [queries.array()[np.array(groups) == group].mean(axis=0) for group in sorted(set(groups))]
    influence_N = (pool.array() @ np.transpose(means_SxD)).max(axis=1)
    np.testing.assert_array_equal(ours.indices, np.sort(np.argsort(-influence_N, kind="stable")[:30]))


def test_dsir_selects_on_counts_of_the_texts(finished):
    pool, queries = (NgramCounts(finished.examples(name).prompts, buckets=500) for name in ("pool", "queries"))
    key = stage_key(finished.experiment.seed, "select", "dsir", "0")
    expected = select(pool, queries, selector=DSIR(), budget=30, key=key)
    np.testing.assert_array_equal(chosen(finished, "dsir").indices, expected.indices)


def test_the_pool_is_what_hygiene_left(finished):
    run = finished.run.folder
    report = read_json(run / "hygiene" / "report.json")
    assert report["candidates"] == 150
    assert report["left"] == finished.clean.results["pool"] == len(finished.examples("pool")) < 150
    experiment = read_json(run / "experiment.json")
    assert experiment["pool_size"] == report["left"]
    assert experiment["arms"]["less"]["options"]["encoder"] == "gradients"
    dropped = {row["row"] for check in report["checks"] for row in check["rows"]}
    raw = [line["id"] for line in read_lines(run / "data" / "pool.jsonl")]
    assert [raw[row] for row in range(150) if row not in dropped] == list(finished.examples("pool").ids)


def test_the_report_shows_what_was_dropped(finished, tmp_path):
    folder = write_fake_run(tmp_path)
    shutil.copytree(finished.run.folder / "hygiene", folder / "hygiene")
    shutil.copy(folder / "data" / "pool.jsonl", folder / "hygiene" / "pool.jsonl")  # the fake run's own pool
    said = read_json(folder / "experiment.json")
    write_json(folder / "experiment.json", said | {"config": said["config"] | {"hygiene": {}}})
    write_report(folder, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    report = read_json(folder / "hygiene" / "report.json")
    assert 'id="dropped"' in page
    for check in report["checks"]:
        assert check["check"] in page
    shown = next(check["examples"][0] for check in report["checks"] if check["examples"])
    assert f"row {shown['row']}" in page


def test_a_second_run_does_nothing_and_another_encoder_only_what_sees_it(finished, capsys):
    again = Pipeline(finished.experiment, "A test.")
    again.each(again.select)
    assert "done" not in capsys.readouterr().err
    gradients = dataclasses.replace(SMALL.encoders["gradients"], dimension=64)
    other = dataclasses.replace(finished.experiment, encoders={**SMALL.encoders, "gradients": gradients})
    before = chosen(finished, "dsir").indices
    pipeline = Pipeline(dataclasses.replace(other, train=SMALL.train))
    pipeline.each(pipeline.select)
    done = capsys.readouterr().err
    assert "done encoders/gradients" in done
    assert "done select/less/seed-0" in done
    for untouched in ("hygiene", "embed", "select/dsir", "select/random"):
        assert f"done {untouched}" not in done
    np.testing.assert_array_equal(chosen(pipeline, "dsir").indices, before)


def test_the_study_refuses_an_arm_that_sees_something_else():
    with pytest.raises(ValueError, match=r"arms\.less sees encoders\.gradients, and the study measures by `encoder`"):
        cells(SMALL, arm="less", sweeps={"arms.less.count": ["10", "20"]})


def read_lines(path):
    import json

    return [json.loads(line) for line in path.read_text().splitlines()]


# Files of the user's own, and what is wrong with a config.


@pytest.fixture
def files(tmp_path) -> Files:
    letters = list("abcdefghijklmnopqrstuvwxyz")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(40):
        text = " ".join("".join(rng.choice(letters, 6)) for _ in range(15))
        rows.append({"id": f"r{number}", "input": text, "target": text[::-1], "task": "ab"[number % 2]})
    rows[7] |= {"input": rows[3]["input"].upper(), "target": rows[3]["target"].upper()}
    write_jsonl(tmp_path / "pool.jsonl", rows)
    write_jsonl(tmp_path / "queries.jsonl", [{"id": "q0", "input": rows[20]["input"]}])
    write_jsonl(tmp_path / "test.jsonl", [{"id": "t0", "input": f"now {rows[11]['input']}", "target": "x"}])
    return Files(
        pool=Source(str(tmp_path / "pool.jsonl"), group_field="task"),
        tests={"held": Source(str(tmp_path / "test.jsonl"))},
    )


def experiment(files: Files, folder, **changes) -> Experiment:
    plain = dataclasses.replace(SMALL, data=files, workdir=folder / "run", encoders={}, hygiene=None)
    return dataclasses.replace(plain, **{"arms": {"random": Arm(Random(), count=5)}, **changes})


def test_hygiene_drops_the_repeat_and_the_leaks(files, tmp_path):
    queries = Source(str(tmp_path / "queries.jsonl"), target_field=None)
    for data, dropped in ((files, {7, 11}), (dataclasses.replace(files, queries=queries), {7, 11, 20})):
        pipeline = Pipeline(experiment(data, tmp_path, hygiene=Hygiene(near=None)))
        ids = pipeline.examples("pool").ids
        assert set(range(40)) - {int(i[1:]) for i in ids} == dropped


def test_hygiene_by_embedding_and_by_tokens(files, tmp_path):
    hygiene = Hygiene(near="embedding", cosine=0.999, leak_words=None, leak_cosine=0.9, exact=False, longest=500)
    pipeline = Pipeline(experiment(files, tmp_path, hygiene=hygiene))
    report = read_json(pipeline.clean.folder / "report.json")
    dropped = {check["check"]: [row["row"] for row in check["rows"]] for check in report["checks"]}
    assert dropped == {"length": [], "leak by embedding": [11], "near-duplicates by embedding": [7]}


def test_the_users_embeddings_follow_the_clean_pool(files, tmp_path):
    embeddings = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    np.save(tmp_path / "pool.npy", embeddings)
    own = OwnEmbeddings(str(tmp_path / "pool.npy"), normalize=False)
    pipeline = Pipeline(experiment(files, tmp_path, hygiene=Hygiene(near=None), encoder=own))
    np.testing.assert_array_equal(pipeline.embeddings("pool"), np.delete(embeddings, [7, 11], axis=0))


def test_quality_takes_a_column(files, tmp_path):
    scores = np.arange(40.0)
    np.save(tmp_path / "scores.npy", scores)
    arms = {"best": Arm(Quality(str(tmp_path / "scores.npy"), diversity=0.0), count=3)}
    pipeline = Pipeline(experiment(files, tmp_path, arms=arms))
    assert chosen(pipeline, "best").indices.tolist() == [37, 38, 39]
    first = pipeline.select("best", 0).fingerprint
    np.save(tmp_path / "scores.npy", -scores)
    again = Pipeline(experiment(files, tmp_path, arms=arms))
    assert again.select("best", 0).fingerprint != first
    assert chosen(again, "best").indices.tolist() == [0, 1, 2]


def test_wrong_encoders(files, tmp_path):
    queries = dataclasses.replace(files, queries=Source(str(tmp_path / "queries.jsonl"), target_field=None))
    ngrams = {"ngrams": Ngrams()}
    own = OwnEmbeddings(str(tmp_path / "pool.npy"))
    np.save(tmp_path / "pool.npy", np.ones((40, 3), np.float32))
    wrong = {
        r"arms\.a\.encoder is 'ngram'.*Did you mean 'ngrams'": {
            "arms": {"a": Arm(Random(), count=3, encoder="ngram")},
            "encoders": ngrams,
        },
        r"arms\.a: DSIR reads counts of n-grams": {
            "data": queries,
            "arms": {"a": Arm(DSIR(), count=3)},
            "encoders": ngrams,
        },
        r"arms\.a: LESS needs target examples": {
            "arms": {"a": Arm(LESS(), count=3, encoder="g")},
            "encoders": {"g": Gradients(dimension=32)},
        },
        r"Gradients need target examples with targets": {
            "data": queries,
            "arms": {"a": Arm(LESS(), count=3, encoder="g")},
            "encoders": {"g": Gradients(dimension=32)},
        },
        r"dimension is 1000: give a power of two": {"encoders": {"g": Gradients(dimension=1000)}},
        r"encoders\.g: share must lie in \(0, 1\]": {"encoders": {"g": Gradients(share=0.0)}},
        r"hygiene by embedding embeds the test sets too": {"encoder": own, "hygiene": Hygiene(near="embedding")},
    }
    for message, change in wrong.items():
        with pytest.raises(ValueError, match=message):
            Pipeline(experiment(**{"files": files, "folder": tmp_path, **change}))


# The groups of the queries, in `select`.


def test_less_takes_the_groups_of_the_queries():
    rng = np.random.default_rng(3)
    candidates, queries = rng.normal(size=(30, 6)), rng.normal(size=(4, 6))
    options = {"budget": 7, "key": jax.random.key(0)}
    groups = ["b", "a", "b", "c"]
    by_groups = select(candidates, queries, selector=LESS(), query_groups=groups, **options)
    by_hand = select(candidates, queries, selector=LESS(subtasks=tuple(groups)), **options)
    without = select(candidates, queries, selector=LESS(), **options)
    np.testing.assert_array_equal(by_groups.indices, by_hand.indices)
    assert by_groups.reasons == by_hand.reasons
    assert set(without.indices) != set(by_groups.indices)
    for other in (Nearest(), TSDS(neighbors=9)):
        one, two = (select(candidates, queries, selector=other, query_groups=g, **options) for g in (None, groups))
        np.testing.assert_array_equal(one.indices, two.indices)


@pytest.mark.parametrize(("queries", "groups"), [(np.ones((2, 3)), ["a"]), (None, ["a"])])
def test_groups_of_other_queries(queries, groups):
    with pytest.raises(ValueError, match=r"query_groups has shape \(1,\): give one label for each of the"):
        Pool.of(np.ones((4, 3)), queries, query_groups=groups)
