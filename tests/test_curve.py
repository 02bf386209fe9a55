"""The budget curve: verdicts on runs whose truth is known, and a small study end to end."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from deft_tsds.cli import show_curve
from deft_tsds.config import Arm, Evaluate, Experiment, Scratch, Synthetic, Train
from deft_tsds.report.curve import curve_figure, write_curve
from deft_tsds.selectors import DEFT, Full, Random
from deft_tsds.studies.curve import curve, judge
from deft_tsds.studies.finetuned import FineTuned

ROOT = Path(__file__).parents[1]
METRIC, SEEDS, EXAMPLES = "exact_match", 5, 150

SMALL = Experiment(
    data=Synthetic(pool=80, queries=12, test=3),
    arms={"full": Arm(Full()), "random": Arm(Random(), share=0.4), "deft": Arm(DEFT(clusters=2), share=0.4)},
    replicates=2,
    scratch=Scratch(vocabulary=300, d_model=16, d_ff=32, d_kv=8, heads=2, layers=1),
    train=Train(steps=2, batch_size=4, max_input_tokens=24, max_target_tokens=16),
    evaluate=Evaluate(max_new_tokens=4, batch_size=24, resamples=50),
)


def runs(rng: np.random.Generator, mean: float, examples_N: np.ndarray) -> dict[str, np.ndarray]:
    values = mean + examples_N + 0.5 * rng.normal(size=(SEEDS, 1)) + 3 * rng.normal(size=(SEEDS, len(examples_N)))
    return {"a": np.stack([values / 100, np.ones_like(values)], axis=-1)}


def judged(losses: dict[float, float], *, tested: int | None = None, margin: float = 2.0):
    rng = np.random.default_rng(0)
    examples_N = 20 * rng.normal(size=EXAMPLES)
    found = {share: runs(rng, 50 - loss, examples_N) for share, loss in losses.items()}
    settings = {"margin": margin, "level": 0.95, "resamples": 200, "seed": 0}
    full = runs(rng, 50, examples_N)
    return judge(METRIC, found, full, baseline=found, pool=1000, tested=tested or len(losses), **settings)


def test_the_smallest_budget_that_loses_less_than_the_margin_is_named():
    found = judged({0.1: 9.0, 0.3: 0.0, 0.6: 0.0})
    assert [point["enough"] for point in found["points"]] == [False, True, True]
    assert (found["smallest"], found["saved"]) == (0.3, 0.7)
    assert found["verdict"].startswith("0.3 of the data (300 examples) is enough: ")
    assert found["points"][0]["sentence"].startswith("better than random: not shown, +0.0")


def test_where_none_qualifies_it_is_said():
    found = judged({0.1: 9.0, 0.5: 2.0})
    assert (found["smallest"], found["saved"]) == (None, None)
    assert (
        found["verdict"] == "no budget qualifies: none is shown to lose less than 2 exact_match against all of the data"
    )


def test_an_arm_that_has_no_budget_is_not_judged():
    found = judged({}, tested=3)
    assert (found["verdict"], found["savings"]) == ("no budget was measured", [])


def test_what_is_saved_at_other_margins_is_what_they_would_be_judged_by():
    losses = {0.1: 5.0, 0.3: 1.5, 0.6: -3.0}
    found = judged(losses)
    margins, saved = np.transpose(found["savings"])
    assert margins[0] == 0
    assert margins[-1] == 8
    assert np.all(np.diff(saved) >= 0)
    assert len(set(saved)) > 2
    for margin, share in found["savings"][1::6]:
        assert (judged(losses, margin=margin)["saved"] or 0) == share


def test_the_correction_counts_budgets_that_were_not_run():
    few, many = judged({0.5: 0.0}), judged({0.5: 0.0}, tested=8)
    assert many["points"][0]["p_holm"] == pytest.approx(8 * few["points"][0]["p_worse"])


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The real thing: one budget, two seeds, every stage."""
    experiment = dataclasses.replace(
        SMALL, arms={"random": Arm(Random(), share=0.4)}, workdir=tmp_path_factory.mktemp("curve") / "run"
    )
    return experiment, curve(FineTuned(experiment), budgets=[0.5], margin=5.0)


def test_a_study_goes_on_to_the_same_table(study, capsys):
    experiment, table = study
    (point,) = table["arms"]["random"]["points"]
    assert point["count"] == 40
    assert point["score"]["low"] <= point["score"]["value"] <= point["score"]["high"]
    assert json.loads((experiment.workdir / "curve" / "table.json").read_text()) == json.loads(json.dumps(table))
    assert curve(FineTuned(experiment), budgets=[0.5], margin=5.0) == table
    show_curve(table)
    assert "random: " in capsys.readouterr().err


CONFIG = """\
import sys
sys.path.insert(0, {tests!r})
from test_curve import KILLED
config = KILLED
"""
KILLED = dataclasses.replace(
    SMALL,
    arms={"random": Arm(Random())},
    replicates=3,
    train=dataclasses.replace(SMALL.train, side_by_side=True, save_every=1),
)


def test_killed_at_random_the_study_ends_the_same(tmp_path):
    """SIGKILL at a random moment after the next stage of the study is done, again and again (`KILLS=10` for more)."""
    (tmp_path / "killed.py").write_text(CONFIG.format(tests=str(ROOT / "tests")))

    def start(name: str) -> subprocess.Popen:
        options = ["--budgets", "0.3,0.5,0.7", "--margin", "5", "--workdir", str(tmp_path / name)]
        script = [sys.executable, str(ROOT / "scripts" / "curve.py"), str(tmp_path / "killed.py")]
        return subprocess.Popen([*script, *options], env=os.environ | {"JAX_PLATFORMS": "cpu"})

    def stages(name: str) -> int:
        # `os.walk` passes over folders that the study renames meanwhile, such as Orbax's; `rglob` fails on them.
        return sum("manifest.json" in files for _, _, files in os.walk(tmp_path / name))

    assert start("whole").wait() == 0
    rng = np.random.default_rng(0)
    for _ in range(int(os.environ.get("KILLS", "3"))):
        before, study = stages("killed"), start("killed")
        while stages("killed") == before and study.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        study.send_signal(signal.SIGKILL)
        assert study.wait() == -signal.SIGKILL  # it had not come to its end
    assert start("killed").wait() == 0
    tables = [(tmp_path / name / "curve" / "table.json").read_bytes() for name in ("whole", "killed")]
    assert tables[0] == tables[1]


def test_the_page_holds_every_point_and_escapes_names(study, tmp_path):
    _, table = study
    hostile = {**table, "arms": {"<script>alert(1)</script>": table["arms"]["random"]}}
    page = write_curve(hostile, tmp_path / "curve.html").read_text()
    assert "<script>alert(1)" not in page
    assert table["arms"]["random"]["verdict"].split(":")[0] in page
    (band,) = [trace for trace in curve_figure(table)["data"] if trace.get("fill") == "toself"]
    assert len(band["x"]) == 2


def test_the_page_shows_what_is_saved_where_the_table_knows(study, tmp_path):
    _, table = study
    page = write_curve(table, tmp_path / "curve.html").read_text()
    assert 'data-figure="savings"' in page
    older = {**table, "arms": {name: {**arm, "savings": []} for name, arm in table["arms"].items()}}
    assert 'data-figure="savings"' not in write_curve(older, tmp_path / "older.html").read_text()


BUDGETS = [0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8]


def simulated(monkeypatch, enough: dict[str, float]) -> list[tuple[str, float]]:
    """In place of training: arms that lose nothing from some budget on, and 9 points below. Returns what was run."""
    seen = []
    examples_N = 20 * np.random.default_rng(0).normal(size=EXAMPLES)

    def fake(pipeline, arm):
        share = getattr(pipeline.experiment.arms.get(arm), "share", None)
        seen.append((arm, share))
        loss = 0.0 if share is None or share >= enough[arm] else 9.0
        return runs(np.random.default_rng(int(100 * (share or 1))), 50 - loss, examples_N)

    monkeypatch.setattr("deft_tsds.studies.finetuned._runs", fake)
    return seen


@pytest.mark.parametrize("adaptive", [False, True])
def test_halving_finds_what_the_grid_finds(adaptive, monkeypatch, tmp_path):
    seen = simulated(monkeypatch, {"random": 0.65, "deft": 0.2})
    experiment = dataclasses.replace(
        SMALL, workdir=tmp_path, evaluate=dataclasses.replace(SMALL.evaluate, metrics=(METRIC,))
    )
    table = curve(FineTuned(experiment), budgets=BUDGETS, margin=3.0, adaptive=adaptive)
    assert {name: arm["smallest"] for name, arm in table["arms"].items()} == {"random": 0.7, "deft": 0.4}
    for name, halved in (("random", [0.4, 0.7, 0.6]), ("deft", [0.4])):
        grid = BUDGETS if name == "random" else BUDGETS[3:]
        assert [share for arm, share in seen if arm == name] == (halved if adaptive else grid)
    # A third of the pool is DEFT's base set, which smaller budgets cannot hold: that is said, and no failure.
    unfit = table["arms"]["deft"]["notes"]
    assert [note.partition(":")[0] for note in unfit] == (["0.2", "0.3"] if adaptive else ["0.1", "0.2", "0.3"])
    assert all("leaves nothing of the budget" in note for note in unfit)
    assert table["arms"]["deft"]["points"][0]["sentence"].startswith("better than random: ")
    assert table["arms"]["random"]["points"][0]["sentence"] is None


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({}, {"budgets": [0.5, 0.2]}, r"budgets are \[0\.5, 0\.2\]: give shares"),
        ({}, {"budgets": [0.5, 1.0]}, "give shares of the pool between 0 and 1"),
        ({}, {"budgets": [0.5], "margin": 0.0}, "margin is 0.0"),
        ({"replicates": 1}, {"budgets": [0.5]}, "a verdict needs several seeds"),
        ({"arms": {"full": Arm(Full())}}, {"budgets": [0.5]}, "nothing but Full"),
    ],
)
def test_what_cannot_be_is_refused_before_any_run(change, arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        curve(FineTuned(dataclasses.replace(SMALL, workdir=tmp_path, **change)), **arguments)
    assert not any(tmp_path.iterdir())
