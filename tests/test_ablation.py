"""Objectives from a config, and their ablation: right cells, right numbers, the same after a kill."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fake_run import fake_examples

import deft_tsds as dt
from deft_tsds import build
from deft_tsds.config import Arm, Evaluate, Experiment, Scratch, Synthetic, Train, Transport, Weighted
from deft_tsds.pipeline import Pipeline
from deft_tsds.report.ablation import headings, measures, write_ablation
from deft_tsds.runs import Run, read_json, read_jsonl
from deft_tsds.selectors import DEFT, TSDS
from deft_tsds.studies.ablation import ablate, cells
from deft_tsds.studies.side_by_side import SideBySide
from deft_tsds.studies.variants import Shelf
from deft_tsds.transport import terms

ROOT = Path(__file__).parents[1]

SMALL = Experiment(
    data=Synthetic(pool=150, queries=12, test=4),
    arms={
        "tsds": Arm(TSDS(), count=20),
        "own": Arm(
            Transport(
                {
                    "align": Weighted(1.0, "transport_cost"),
                    "kde": Weighted(0.5, "kde_repulsion"),
                    "mine": Weighted(0.3, "test_ablation:spread"),
                },
                neighbors=60,
                bandwidth=0.75,
            ),
            count=20,
        ),
    },
    scratch=Scratch(vocabulary=300, d_model=16, d_ff=32, d_kv=8, heads=2, layers=1),
    train=Train(steps=4, batch_size=8, max_input_tokens=32, max_target_tokens=24),
    evaluate=Evaluate(max_new_tokens=8, batch_size=24, resamples=50),
)

CONFIG = """\
import sys
sys.path.insert(0, {tests!r})
from test_ablation import SMALL as config
"""


def spread(plan, problem):
    """A user's own term."""
    return jnp.sum(plan.weights_U**2)


def words(examples):
    """A user's own column."""
    return np.array([float(len(text.split())) for text in examples.inputs])


def short_column(examples):
    return np.ones(len(examples) - 1)


# From a config to an objective


def objective_of(**sections: Weighted) -> dt.Objective:
    return build.objective(sections, where="objective", pool=lambda: fake_examples(30))


def test_a_config_becomes_the_objective_that_it_names():
    found = objective_of(
        align=Weighted(1.0, "transport_cost"),
        mine=Weighted(0.3, "test_ablation:spread"),
        length=Weighted(-0.1, "linear", {"costs_N": "test_ablation:words"}),
        wide=Weighted(0.2, "coverage", {"budget": 20.0}),
        drift=Weighted(0.4, "pool_drift"),
        even=Weighted(0.5, "group_balance", {"groups_N": "groups", "shares_G": "equal_shares"}),
    )
    assert found.weights == {"align": 1.0, "mine": 0.3, "length": -0.1, "wide": 0.2, "drift": 0.4, "even": 0.5}
    functions = {name: term.function for name, term in found.terms.items()}
    assert functions["align"] is terms.transport_cost
    assert functions["mine"].__name__ == "spread"
    assert functions["drift"] is terms.pool_drift
    np.testing.assert_array_equal(found.terms["length"].arguments["costs_N"], words(fake_examples(30)))
    assert found.terms["wide"].arguments == {"budget": 20.0}
    examples, even = fake_examples(30), found.terms["even"].arguments
    names = sorted(set(examples.groups))
    assert [names[number] for number in even["groups_N"]] == list(examples.groups)
    np.testing.assert_allclose(even["shares_G"], 1 / len(names))


def test_columns_say_what_they_say():
    examples = fake_examples(30)
    for name, texts in (("input_words", examples.inputs), ("target_words", examples.targets)):
        counts = [len(text.split()) for text in texts]
        np.testing.assert_allclose(build.columns.COLUMNS[name](examples), np.array(counts) / np.mean(counts))
    shares = build.columns.pool_shares(examples)
    expected = [examples.groups.count(name) / 30 for name in sorted(set(examples.groups))]
    np.testing.assert_allclose(shares, expected)


def test_an_array_from_a_file(tmp_path):
    np.save(tmp_path / "price.npy", np.arange(30.0))
    found = objective_of(price=Weighted(1.0, "linear", {"costs_N": str(tmp_path / "price.npy")}))
    np.testing.assert_array_equal(found.terms["price"].arguments["costs_N"], np.arange(30.0))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"a": Weighted(1.0, "kde_repulsionn")},
            r"a\.term is 'kde_repulsionn'.*chi_square.*'kde_repulsion'\?",
        ),
        ({"a": Weighted(1.0, "nowhere_to_be_found:f")}, r"Cannot import 'nowhere_to_be_found'"),
        ({"a": Weighted(1.0, "test_ablation:sprad")}, r"'test_ablation' has no 'sprad'"),
        ({"a": Weighted(1.0, "linear")}, r"objective\.a needs costs_N: give options=\{'costs_N'"),
        ({"a": Weighted(1.0, "mmd")}, r"objective\.a needs bandwidth"),
        ({"a": Weighted(1.0, "entropy", {"epsilon": 1.0})}, r"objective: term 'a', entropy.*cannot be called"),
        ({"a": Weighted(1.0, "linear", {"costs_N": "wrds"})}, r"objective\.a\.options\.costs_N is 'wrds'.*input_words"),
        ({"a": Weighted(1.0, "linear", {"costs_N": "no.npy"})}, r"costs_N: no\.npy cannot be read"),
        ({"a": Weighted(1.0, "linear", {"costs_N": "test_ablation:short_column"})}, r"shape \(29,\): one row .* 30"),
        ({"a": Weighted(-1.0, "entropy")}, r"objective: the weight of term 'a' is -1\.0: entropy is convex"),
        ({"a": Weighted(float("nan"), "entropy")}, r"the weight of term 'a' is nan"),
        ({}, r"objective: an objective needs terms"),
    ],
)
def test_a_wrong_objective_names_its_term(sections, message):
    with pytest.raises(ValueError, match=message):
        objective_of(**sections)


def test_the_request_of_a_choice_knows_the_users_files(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    module, prices = tmp_path / "terms_that_change.py", tmp_path / "price.npy"
    module.write_text("def f(plan, problem, *, price_N): return 0.0\n")
    np.save(prices, np.ones(150))
    arm = Transport(
        {"align": Weighted(1.0, "transport_cost"), "f": Weighted(1.0, "terms_that_change:f", {"price_N": str(prices)})}
    )
    before = build.selector_identity(arm)
    assert set(before) == {"terms_that_change:f", str(prices)}
    module.write_text("def f(plan, problem, *, price_N): return 1.0\n")
    after = build.selector_identity(arm)
    assert after["terms_that_change:f"] != before["terms_that_change:f"]
    assert after[str(prices)] == before[str(prices)]
    np.save(prices, np.ones(151))
    assert build.selector_identity(arm)[str(prices)] != before[str(prices)]
    assert build.selector_identity(TSDS()) == {}


# Cells


def test_the_studied_arm_is_named_or_the_only_transport_arm():
    sweep = {"objective.kde.weight": ["0", "1"]}
    assert cells(SMALL, sweeps=sweep)[0] == "own"
    arm, found = cells(SMALL, sweeps={"arms.tsds.selector.alpha": ["0.2"]})
    assert arm == "tsds"
    assert [each.name for each in found] == ["as configured", "alpha=0.2"]
    assert [list(each.experiment.arms) for each in found] == [["tsds"], ["tsds"]]


def test_leaving_out_each_term_is_without(monkeypatch):
    _, found = cells(SMALL, sweeps={}, drops=["objective"])
    whole = build.objective(SMALL.arms["own"].selector.objective, where="", pool=list)  # type: ignore[arg-type]
    for each in found[1:]:
        rest = build.objective(each.experiment.arms["own"].selector.objective, where="", pool=list)  # type: ignore
        assert jax.tree.structure(rest) == jax.tree.structure(whole.without(str(each.dropped)))
        assert rest.weights == whole.without(str(each.dropped)).weights
    assert [each.dropped for each in found] == [None, "align", "kde", "mine"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sweeps": {}}, "nothing to vary"),
        ({"sweeps": {"train.learning_rate": ["1"]}}, r"train\.learning_rate changes nothing before .*--until table"),
        ({"sweeps": {"objective.kde.weight": ["1"]}, "arm": "tsds"}, r"this arm is TSDS; only a Transport"),
        ({"sweeps": {"objective.kde.weight": ["1"]}, "arm": "nobody"}, r"no arm 'nobody', but tsds, own"),
        ({"sweeps": {"objective.kde.weight": ["0.5"]}}, "every value is the one that is configured"),
        (
            {"sweeps": {"arms.tsds.selector.alpha": ["1"], "arms.own.count": ["9"]}},
            r"several arms .*\(own, tsds",
        ),
        ({"sweeps": {}, "drops": ["arms.tsds.selector"]}, r"only terms can be left out"),
    ],
)
def test_a_study_that_makes_no_sense_says_so(options, message):
    with pytest.raises(ValueError, match=message):
        cells(SMALL, **options)


def test_without_a_transport_arm_the_arm_must_be_named():
    only = dataclasses.replace(SMALL, arms={"deft": Arm(DEFT(), share=0.4), "tsds": SMALL.arms["tsds"]})
    with pytest.raises(ValueError, match=r"no transport arm: say --arm NAME, one of deft, tsds"):
        cells(only, sweeps={"encoder.dimension": ["8"]})
    assert cells(only, sweeps={"encoder.dimension": ["8"]}, arm="deft")[0] == "deft"


# Plans side by side


@pytest.fixture(scope="module")
def vectors() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    pool = rng.normal(size=(80, 6)).astype(np.float32)
    return pool / np.linalg.norm(pool, axis=1, keepdims=True), pool[:10] + 0.1


def transports(weights: list[float], **options: Any) -> list[dt.selectors.Transport]:
    objective = dt.Objective.of(
        align=(1.0, terms.transport_cost), kde=(1.0, terms.kde_repulsion), drift=(0.5, terms.pool_drift)
    )
    options = {"neighbors": 80, **options}
    return [dt.selectors.Transport(objective.with_weights(kde=weight), **options) for weight in weights]


def test_side_by_side_is_one_by_one(vectors):
    pool, queries = vectors
    selectors, left_out = transports([0.05, 0.3, 2.0]), np.array([1, 4])
    together = SideBySide(pool, queries, selectors)
    problem = dt.Problem.from_embeddings(pool, np.delete(queries, left_out, axis=0), neighbors=80)
    for place, selector in enumerate(selectors):
        plan, info = together.plan(place, left_out)
        objective = selector.objective.bind(candidates_UxD=pool, pool_mean_D=pool.mean(0))
        alone, found = dt.solve(problem, objective, tolerance=1e-6)
        assert info["converged"]
        assert info["value"] == pytest.approx(found["value"], rel=2e-4)
        assert np.abs(plan.probabilities() - alone.probabilities()).sum() < 0.1
        assert not plan.mass_MxK[left_out].any()
        parts = together.values(plan, left_out, selector.objective)
        assert {name: selector.objective.weights[name] * value for name, value in parts.items()} == pytest.approx(
            info["parts"], rel=1e-6
        )


def test_a_plan_does_not_depend_on_what_was_asked_before(vectors):
    pool, queries = vectors
    forth, back = (SideBySide(pool, queries, transports([0.05, 0.3, 2.0])) for _ in range(2))
    first = [forth.plan(place, np.array([0])) for place in (0, 1, 2)]
    again = [back.plan(place, np.array([0])) for place in (2, 0, 1)]
    for (plan, _), (other, _) in zip(first, [again[1], again[2], again[0]], strict=True):
        np.testing.assert_array_equal(plan.mass_MxK, other.mass_MxK)


def test_caps_are_kept_though_a_batch_knows_none(vectors):
    pool, queries = vectors
    together = SideBySide(pool, queries, transports([0.01, 0.02], cap=1 / 40))
    for place in range(2):
        plan, info = together.plan(place, np.array([], np.int64))
        assert info["converged"]
        assert plan.weights_U.max() <= 1 / 40 * 1.01


# The whole study


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> tuple[Experiment, dict[str, Any]]:
    experiment = dataclasses.replace(SMALL, workdir=tmp_path_factory.mktemp("ablation") / "run")
    arm, found = cells(experiment, sweeps={"objective.kde.weight": ["0.05", "0.5"]}, drops=["objective"])
    return experiment, ablate(found, arm=arm, seeds=3)


def test_the_table_has_every_cell_and_measure(study):
    experiment, table = study
    assert read_json(experiment.workdir / "ablation" / "table.json") == table
    names = ["as configured", "without align", "without kde", "without mine", "kde.weight=0.05"]
    assert [cell["name"] for cell in table["cells"]] == names
    assert table["left_out"] == 2
    everywhere = {"held_out_distance", "diversity", "near_duplicates", "effective_size", "overlap"}
    everywhere |= {"term.align", "term.kde", "term.mine"}
    for cell in table["cells"]:
        assert set(cell["measures"]) == everywhere
        assert set(cell["differences"]) == (set() if cell["name"] == names[0] else everywhere)
        for value in cell["measures"].values():
            assert value["low"] <= value["value"] <= value["high"]
            assert np.mean(value["seeds"]) == pytest.approx(value["value"])
        assert sum(cell["groups"].values()) == pytest.approx(1)


def test_the_measures_by_plain_loops(study):
    experiment, _ = study
    pipeline = Pipeline(
        dataclasses.replace(experiment, arms={"own": experiment.arms["own"]}), run=Shelf(experiment.workdir, 0)
    )
    pool, vectors, queries = pipeline.examples("pool"), pipeline.embeddings("pool"), pipeline.embeddings("queries")
    rows = read_jsonl(experiment.workdir / "ablation" / "table.jsonl")
    assert len(rows) == 15
    redrawn, chosen = {}, {}
    for path in experiment.workdir.glob("ablation/measure/own/*/*/request.json"):
        settings = read_json(path)["settings"]
        if settings["redraw"]:
            redrawn[settings["replicate"]] = set(read_json(path.with_name("chosen.json")))
    for row in rows:
        folder = experiment.workdir / row["folder"]
        left_out = read_json(folder / "request.json")["settings"]["left_out"]
        ids = chosen[row["cell"], row["seed"]] = read_json(folder / "chosen.json")
        x = vectors[np.array([pool.ids.index(each) for each in ids])].astype(np.float64)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        nearest = [min(np.linalg.norm(q - y) for y in x) for q in queries[left_out]]
        assert row["measures"]["held_out_distance"] == pytest.approx(np.mean(nearest), rel=1e-4)
        cosines = x @ x.T
        others = ~np.eye(len(x), dtype=bool)
        assert row["measures"]["diversity"] == pytest.approx(1 - cosines[others].mean(), abs=1e-5)
        close = ((cosines >= 0.95) & others).any(1).mean()
        assert row["measures"]["near_duplicates"] == pytest.approx(close, abs=1e-6)
        groups = [pool.groups[pool.ids.index(each)] for each in ids]
        assert row["groups"] == pytest.approx({name: groups.count(name) / 20 for name in set(groups)})
        base = redrawn[row["seed"]]
        assert row["measures"]["overlap"] == pytest.approx(len(base & set(ids)) / len(base | set(ids)))
        assert base != set(ids)
    same = {seed: {tuple(ids) for (_, at), ids in chosen.items() if at == seed} for seed in range(3)}
    assert all(len(found) > 1 for found in same.values())
    by_seed = [read_json(experiment.workdir / row["folder"] / "request.json")["settings"]["left_out"] for row in rows]
    assert len({tuple(left_out) for left_out in by_seed}) == 3  # one set a seed, the same in all cells


def test_a_term_that_is_left_out_goes_where_it_likes(study):
    _, table = study
    whole, _, kde, mine, light = table["cells"]
    for name, cell in (("kde", kde), ("mine", mine), ("kde", light)):
        assert cell["measures"][f"term.{name}"]["value"] > whole["measures"][f"term.{name}"]["value"]
    assert kde["measures"]["effective_size"]["value"] < whole["measures"]["effective_size"]["value"]


def test_a_second_time_nothing_is_done_and_more_values_add_their_cells(study, capsys):
    experiment, table = study
    request = {"sweeps": {"objective.kde.weight": ["0.05", "0.5"]}, "drops": ["objective"]}
    arm, found = cells(experiment, **request)
    assert ablate(found, arm=arm, seeds=3) == table
    assert "done" not in capsys.readouterr().err
    request["sweeps"] = {"objective.kde.weight": ["0.05", "5"]}
    arm, found = cells(experiment, **request)
    more = ablate(found, arm=arm, seeds=3)
    assert capsys.readouterr().err.count("done") == 3  # one cell, three seeds
    assert [cell["measures"] for cell in more["cells"][:5]] == [cell["measures"] for cell in table["cells"]]


def test_the_page_shows_the_cells_and_nothing_from_elsewhere(study, tmp_path):
    _, table = study
    hostile = json.loads(json.dumps(table))
    hostile["cells"][1]["name"] = "</script><script>alert(1)</script>"
    page = write_ablation(hostile, tmp_path / "page.html", command=["ablate.py", "<b>"]).read_text()
    assert "<script>alert(1)" not in page
    assert "&lt;b&gt;" in page
    bare = re.sub(r"""<script(?: type="text/plain" id="plotly")?>.*?</script>""", "", page, flags=re.S)
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", bare)
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', page, re.S)[1])  # type: ignore[index]
    assert len(figures) == 2 * len(measures(table))
    swept = figures["sweep-arms.own.selector.objective.kde.weight-effective_size"]
    assert swept["layout"]["xaxis"]["categoryarray"] == ["0.05", "0.5"]
    assert swept["data"][0]["x"] == ["0.05", "0.5"]
    sizes = [table["cells"][place]["measures"]["effective_size"]["value"] for place in (4, 0)]
    assert swept["data"][0]["y"] == sizes
    assert f'data-value="{sizes[0]}"' in page
    dropped = figures["drop-effective_size"]["data"][0]
    change = [table["cells"][place]["differences"]["effective_size"]["value"] for place in (1, 2, 3)]
    assert dropped["x"] == change
    assert list(headings(table)) == [name for name in measures(table) if not name.startswith("term.")]


def test_other_arms_and_fields_can_be_swept(tmp_path):
    experiment = dataclasses.replace(SMALL, workdir=tmp_path / "run")
    sweeps = {"arms.tsds.selector.alpha": ["0.3"], "encoder.dimension": ["16", "32"]}
    arm, found = cells(experiment, sweeps=sweeps)
    table = ablate(found, arm=arm, seeds=1)
    assert [cell["name"] for cell in table["cells"][1:]] == [
        "alpha=0.3, encoder.dimension=16",
        "alpha=0.3, encoder.dimension=32",
    ]
    assert table["cells"][1]["measures"] != table["cells"][2]["measures"]
    assert table["cells"][1]["differences"]["effective_size"]["verdict"] == "one seed"
    write_ablation(table, tmp_path / "page.html")


def test_a_cell_that_cannot_be_drawn_is_a_note_and_the_reference_an_error(tmp_path):
    arm = Arm(Transport({"align": Weighted(1.0, "transport_cost"), "kde": Weighted(0.5, "entropy")}), count=40)
    experiment = dataclasses.replace(SMALL, arms={"own": arm}, workdir=tmp_path / "run")
    _, found = cells(experiment, sweeps={}, drops=["objective"])
    table = ablate(found, arm="own", seeds=1)
    nearest_only = table["cells"][2]
    assert re.match(r"No draw: \d+ candidates have a probability, and the budget is 40", nearest_only["notes"][0])
    assert set(nearest_only["measures"]) == {"effective_size", "term.align", "term.kde"}
    write_ablation(table, tmp_path / "page.html")
    with pytest.raises(ValueError, match=r"The reference cannot be drawn. No draw"):
        ablate([found[2], found[0]], arm="own", seeds=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"seeds": 0}, "seeds is 0"), ({"held_out": 1.0}, "held_out is 1"), ({"held_out": 0.99}, "12 target examples")],
)
def test_wrong_options(tmp_path, options, message):
    arm, found = cells(dataclasses.replace(SMALL, workdir=tmp_path), sweeps={"objective.kde.weight": ["1"]})
    with pytest.raises(ValueError, match=message):
        ablate(found, arm=arm, **options)


@pytest.mark.slow
def test_until_table_scores_by_the_pipeline_and_reuses_its_stages(tmp_path, capsys):
    experiment = dataclasses.replace(SMALL, workdir=tmp_path / "run", arms={"own": SMALL.arms["own"]})
    plain = Pipeline(experiment).evaluate("own", 0)
    capsys.readouterr()
    arm, found = cells(experiment, sweeps={"train.learning_rate": ["0.01"]}, until="table")
    table = ablate(found, arm=arm, seeds=1, until="table")
    # Choosing is the same in both cells; only the second is fine-tuned and evaluated, and copying is evaluated once.
    said = re.sub(r"\x1b\[\d*m", "", capsys.readouterr().err)
    kinds = [name.split("/")[1] for name in re.findall(r"done (\S+)", said)]
    assert kinds == ["measure", "measure", "finetune", "evaluate", "evaluate"]
    assert read_json(plain.folder / "manifest.json")["stage"] == "evaluate/own/seed-0"
    reference, fast = table["cells"]
    tests = Pipeline(experiment).data.results["tests"]
    assert {f"sari.{test}" for test in (*tests, "all")} <= set(reference["measures"])
    assert set(table["copy"]) == {f"sari.{test}" for test in (*tests, "all")}
    scores = [reference["measures"][f"sari.{test}"]["value"] for test in tests]
    assert reference["measures"]["sari.all"]["value"] == pytest.approx(np.mean(scores))
    assert fast["measures"]["effective_size"] == reference["measures"]["effective_size"]
    assert next(iter(headings(table))) == "sari.all"


def start(config: Path, run: Path) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "scripts" / "ablate.py"), str(config), "--workdir", str(run)]
    command += ["--drop-each", "objective", "--sweep", "objective.kde.weight=0.05,0.5", "--seeds", "2"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(run.parent / "compiled"),  # so that the second start need not compile again
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_table(tmp_path):
    config = tmp_path / "small.py"
    config.write_text(CONFIG.format(tests=str(ROOT / "tests")))
    run = tmp_path / "killed"
    for finished in (1, 7):  # stages of the choice, out of 12
        process = start(config, run)
        while process.poll() is None and len(list(run.glob("ablation/measure/**/manifest.json"))) <= finished:
            time.sleep(0.002)
        assert process.poll() is None, "it was over before the kill"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (run / "ablation" / "table.json").exists()
    assert start(config, run).wait(timeout=600) == 0
    experiment = dataclasses.replace(SMALL, workdir=tmp_path / "whole")
    arm, found = cells(experiment, sweeps={"objective.kde.weight": ["0.05", "0.5"]}, drops=["objective"])
    ablate(found, arm=arm, seeds=2)
    for name in ("table.json", "table.jsonl"):
        assert (run / "ablation" / name).read_bytes() == (tmp_path / "whole" / "ablation" / name).read_bytes()
    assert (run / "ablation" / "ablation.html").stat().st_size > 10_000


def test_an_error_of_the_script_is_one_plain_line(tmp_path):
    config = tmp_path / "small.py"
    config.write_text(CONFIG.format(tests=str(ROOT / "tests")))
    command = [sys.executable, str(ROOT / "scripts" / "ablate.py"), str(config), "--sweep", "objective.kdee.weight=1"]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert result.returncode == 2
    assert "--arms.own.selector.objective.kde.weight" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_run_of_another_folder_is_not_touched(tmp_path):
    experiment = dataclasses.replace(SMALL, workdir=tmp_path / "run", arms={"own": SMALL.arms["own"]})
    Pipeline(experiment, run=Shelf(experiment.workdir, 0))
    assert not (tmp_path / "run" / "experiment.json").exists()
    Pipeline(experiment)
    before = (tmp_path / "run" / "experiment.json").read_bytes()
    Pipeline(dataclasses.replace(experiment, seed=1), run=Run(experiment.workdir, 1))
    assert (tmp_path / "run" / "experiment.json").read_bytes() == before
