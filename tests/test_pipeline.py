"""The whole job on a small pool: the same numbers twice, and after a kill in every stage; clear errors before it."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from deft_tsds.config import (
    Arm,
    Custom,
    Evaluate,
    Experiment,
    Files,
    HeldOut,
    OwnEmbeddings,
    Scratch,
    Source,
    Synthetic,
    Train,
)
from deft_tsds.pipeline import Pipeline
from deft_tsds.runs import read_json, read_jsonl, write_jsonl
from deft_tsds.selection import Selection
from deft_tsds.selectors import DEFT, TSDS, Full, Random

ROOT = Path(__file__).parents[1]

SMALL = Experiment(
    data=Synthetic(pool=150, queries=12, test=4),
    arms={
        "full": Arm(Full()),
        "random": Arm(Random(), share=0.4),
        "deft": Arm(DEFT(clusters=3), share=0.4),
        "tsds": Arm(TSDS(), count=20),
    },
    scratch=Scratch(vocabulary=300, d_model=16, d_ff=32, d_kv=8, heads=2, layers=1),
    train=Train(steps=12, batch_size=8, max_input_tokens=32, max_target_tokens=24, save_every=4, log_every=4),
    evaluate=Evaluate(max_new_tokens=8, batch_size=24, resamples=50),
)

CONFIG = """\
import sys
sys.path.insert(0, {tests!r})
import dataclasses
from test_pipeline import SMALL
config = dataclasses.replace(SMALL, arms={{name: SMALL.arms[name] for name in ("random", "tsds")}})
"""


def outcome(run: Path) -> dict[str, bytes]:
    """What must be the same after every way of running: selections, predictions, scores, final parameters."""
    patterns = (
        "select/**/chosen.jsonl",
        "evaluate/**/predictions_*.jsonl",
        "table/table.json",
        "finetune/**/*.safetensors",
    )
    return {str(path.relative_to(run)): path.read_bytes() for pattern in patterns for path in run.glob(pattern)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Pipeline:
    pipeline = Pipeline(dataclasses.replace(SMALL, workdir=tmp_path_factory.mktemp("run") / "small"), "A test.")
    pipeline.report()
    return pipeline


def test_every_stage_leaves_its_folder_and_manifest(finished):
    run = finished.run.folder
    stages = ["data", "embed", "tokenizer", "table", "report"]
    stages += [f"{stage}/{arm}/seed-0" for stage in ("select", "finetune", "evaluate") for arm in SMALL.arms]
    for stage in [*stages, "evaluate/copy/seed-0"]:
        assert read_json(run / stage / "manifest.json")["stage"] == stage
    assert (run / "report" / "report.html").stat().st_size > 10_000


def test_arms_have_their_budgets(finished):
    for arm, budget in {"full": 150, "random": 60, "deft": 60, "tsds": 20}.items():
        selection = Selection.load(finished.run.folder / "select" / arm / "seed-0" / "selection")
        assert len(np.unique(selection.indices)) == budget


def test_copy_baseline_is_the_input(finished):
    run = finished.run.folder
    for test in finished.data.results["tests"]:
        rows = read_jsonl(run / "data" / "tests" / f"{test}.jsonl")
        predictions = read_jsonl(run / "evaluate" / "copy" / "seed-0" / f"predictions_{test}.jsonl")
        assert [row["input"] for row in rows] == [row["prediction"] for row in predictions]


def test_the_table_covers_every_arm_test_and_metric(finished):
    table = read_json(finished.run.folder / "table" / "table.json")
    found = {(cell["arm"], cell["test"], cell["metric"]) for cell in table["cells"]}
    tests = [*finished.data.results["tests"], "all"]
    assert found == {(a, t, m) for a in ("copy", *SMALL.arms) for t in tests for m in SMALL.evaluate.metrics}
    for cell in table["cells"]:
        assert 0 <= cell["low"] <= cell["high"] <= 100
        assert len(cell["seeds"]) == 1


def test_a_second_run_does_nothing(finished, capsys):
    Pipeline(finished.experiment, "A test.").report()
    assert "done" not in capsys.readouterr().err


def test_a_new_folder_gives_the_same_numbers(finished, tmp_path):
    Pipeline(dataclasses.replace(SMALL, workdir=tmp_path / "again")).report()
    assert outcome(tmp_path / "again") == outcome(finished.run.folder)


def test_another_seed_gives_another_choice(finished, tmp_path):
    other = Pipeline(dataclasses.replace(SMALL, workdir=tmp_path, seed=1))
    chosen = Selection.load(other.select("random", 0).folder / "selection").indices
    assert set(chosen) != set(Selection.load(finished.select("random", 0).folder / "selection").indices)


def test_side_by_side_is_the_same_training(tmp_path):
    """One program for both replicates; both sides fit one width here, so that dropout draws the same numbers."""
    few = dataclasses.replace(SMALL, arms={"random": SMALL.arms["random"]}, replicates=2)
    together = dataclasses.replace(few, train=dataclasses.replace(few.train, side_by_side=True))
    runs = [
        Pipeline(dataclasses.replace(one, workdir=tmp_path / name))
        for name, one in (("apart", few), ("together", together))
    ]
    for replicate in range(2):
        apart, beside = (run.finetune("random", replicate) for run in runs)
        assert beside.results["loss"] == pytest.approx(apart.results["loss"], rel=1e-4)
        assert beside.results["pairs"] == apart.results["pairs"] == 60
        steps = [[row["step"] for row in read_jsonl(stage.folder / "metrics.jsonl")] for stage in (apart, beside)]
        assert steps[0] == steps[1] == [1, 4, 8, 12]
        folders = [run.evaluate("random", replicate).folder for run in runs]
        for path in sorted(folders[0].glob("statistics_*.sari.npy")):
            np.testing.assert_allclose(np.load(folders[1] / path.name), np.load(path), atol=0.02)
    first, second = (runs[1].finetune("random", replicate).results["loss"] for replicate in range(2))
    assert first != second
    assert "no loss curve" not in runs[1].report().read_text()


def start(config: Path, workdir: Path) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "scripts" / "run.py"), str(config), "--workdir", str(workdir)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, env=environment)


def test_killed_in_each_stage_the_run_ends_the_same(tmp_path):
    """SIGKILL while each stage is at work, in one run folder, against a run that nothing disturbed."""
    config = tmp_path / "small.py"
    config.write_text(CONFIG.format(tests=str(ROOT / "tests")))
    whole = start(config, tmp_path / "whole")
    # Each is written in the midst of its stage: a request when a stage begins, the others later. In the order of the
    # run, which takes one arm to its end before the next.
    marks = (
        "data/request.json",
        "embed/request.json",
        "tokenizer/request.json",
        "finetune/random/seed-0/checkpoints",
        "evaluate/random/seed-0/request.json",
        "select/tsds/seed-0/request.json",
        "table/request.json",
        "report/request.json",
    )
    run, killed = tmp_path / "killed", {}
    assert whole.wait(timeout=600) == 0
    for mark in marks:
        assert not (run / mark).exists()  # else the kill would come before anything is done
        process = start(config, run)
        while process.poll() is None and not (run / mark).exists():
            time.sleep(0.002)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        died = process.wait() == -signal.SIGKILL
        killed[mark] = died and not (run / mark).with_name("manifest.json").exists()
    assert all(killed.values()), killed
    last = start(config, run)
    assert last.wait(timeout=600) == 0
    assert outcome(run) == outcome(tmp_path / "whole")


def test_an_error_is_one_plain_line(tmp_path):
    config = tmp_path / "wrong.py"
    config.write_text(CONFIG.format(tests=str(ROOT / "tests")))
    command = [sys.executable, str(ROOT / "scripts" / "data.py"), str(config), "--workdir", str(tmp_path / "run")]
    result = subprocess.run(
        [*command, "--evaluate.metrics", "[bold]sarii"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "error evaluate.metrics: unknown ['[bold]sarii']" in result.stderr
    assert "Traceback" not in result.stderr


# Bad input: each gets its error from the constructor, before anything long.


@pytest.fixture
def files(tmp_path) -> Files:
    rows = [{"id": f"r{i}", "input": f"some text {i}", "target": f"a text {i}", "task": "ab"[i % 2]} for i in range(40)]
    write_jsonl(tmp_path / "pool.jsonl", rows)
    write_jsonl(tmp_path / "test.jsonl", rows[:4])
    return Files(
        pool=Source(str(tmp_path / "pool.jsonl"), group_field="task"),
        tests={"held": Source(str(tmp_path / "test.jsonl"))},
    )


def experiment(files: Files, workdir: Path, **changes) -> Experiment:
    return dataclasses.replace(SMALL, data=files, arms={"random": Arm(Random(), share=0.5)}, workdir=workdir, **changes)


def pool_of(files: Files, **changes) -> Files:
    return dataclasses.replace(files, pool=dataclasses.replace(files.pool, **changes))


def test_missing_file(files, tmp_path):
    with pytest.raises(ValueError, match=r"data\.pool.*pol\.jsonl"):
        Pipeline(experiment(pool_of(files, path=str(tmp_path / "pol.jsonl")), tmp_path / "run"))


def test_wrong_field_name(files, tmp_path):
    with pytest.raises(ValueError, match=r"no field 'imput' \(input_field\).*Did you mean 'input'"):
        Pipeline(experiment(pool_of(files, input_field="imput"), tmp_path / "run"))


def test_empty_pool(files, tmp_path):
    (tmp_path / "pool.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"pool\.jsonl"):
        Pipeline(experiment(files, tmp_path / "run"))


def test_queries_missing_for_tsds(files, tmp_path):
    config = dataclasses.replace(experiment(files, tmp_path / "run"), arms={"t": Arm(TSDS(), share=0.5)})
    with pytest.raises(ValueError, match=r"arms\.t: TSDS needs target examples: set data\.queries"):
        Pipeline(config)


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        (Arm(Random(), count=41), r"arms\.a\.count is 41, but the pool has 40"),
        (Arm(Random(), share=1.5), r"arms\.a\.share is 1\.5"),
        (Arm(Random()), r"give either share"),
        (Arm(Random(), share=0.5, count=3), r"give either share"),
        (Arm(Full(), share=0.5), r"Full takes the whole pool"),
        (Arm(DEFT(base=0.5), share=0.5), r"base = 0\.5 of 40 candidates is 20 rows"),
        (Arm(Custom("nowhere_to_be_found:f"), share=0.5), r"Cannot import 'nowhere_to_be_found'"),
        (Arm(Custom("no colon"), share=0.5), r"module:function"),
    ],
)
def test_wrong_arm(files, tmp_path, arm, message):
    with pytest.raises(ValueError, match=message):
        Pipeline(dataclasses.replace(experiment(files, tmp_path / "run"), arms={"a": arm}))


def test_nan_in_the_users_embeddings(files, tmp_path):
    array = np.ones((40, 3), np.float32)
    array[17, 1] = np.nan
    np.save(tmp_path / "pool.npy", array)
    with pytest.raises(ValueError, match=r"encoder\.pool.*row 17"):
        Pipeline(experiment(files, tmp_path / "run", encoder=OwnEmbeddings(str(tmp_path / "pool.npy"))))


def test_users_embeddings_of_another_pool(files, tmp_path):
    np.save(tmp_path / "pool.npy", np.ones((39, 3), np.float32))
    with pytest.raises(ValueError, match=r"encoder\.pool.*39.*40"):
        Pipeline(experiment(files, tmp_path / "run", encoder=OwnEmbeddings(str(tmp_path / "pool.npy"))))


def test_unreadable_model_folder(files, tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match=r"model has no config\.json"):
        Pipeline(experiment(files, tmp_path / "run", model=str(tmp_path / "model")))


def test_wrong_settings(files, tmp_path):
    base = experiment(files, tmp_path / "run")
    wrong = {
        r"train\.steps.*exactly one": {"train": Train(steps=3, epochs=1.0)},
        r"evaluate\.metrics: unknown \['sarii'\]": {"evaluate": Evaluate(metrics=("sarii",))},
        r"side_by_side has no early stopping": {"train": Train(steps=3, side_by_side=True, keep_best=True)},
        r"replicates is 0": {"replicates": 0},
        r"arms is empty": {"arms": {}},
        r"copy baseline": {"arms": {"copy": Arm(Full())}},
        r"'\.\./up' of an arm or encoder": {"arms": {"../up": Arm(Full())}},
        r"train\.validation is 40": {"train": Train(steps=3, validation=40)},
        r"data\.tests is empty": {"data": dataclasses.replace(files, tests={})},
        r"has the group 'c'": {"data": dataclasses.replace(files, queries=HeldOut("c", 3))},
    }
    for message, change in wrong.items():
        with pytest.raises(ValueError, match=message):
            Pipeline(dataclasses.replace(base, **change))


def test_the_users_embeddings_reach_the_selector(files, tmp_path):
    embeddings = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    np.save(tmp_path / "pool.npy", embeddings)
    pipeline = Pipeline(
        dataclasses.replace(
            experiment(files, tmp_path / "run", encoder=OwnEmbeddings(str(tmp_path / "pool.npy"), normalize=False)),
            arms={"mine": Arm(Custom("test_pipeline:first_rows"), count=3)},
        )
    )
    selection = Selection.load(pipeline.select("mine", 0).folder / "selection")
    np.testing.assert_allclose(selection.scores, embeddings[:3, 0], rtol=1e-6)


def first_rows(pool, *, budget, key):
    """A user's own selector."""
    del key
    rows = np.arange(budget)
    return Selection.of(rows, scores=pool.embeddings_NxD[rows, 0], reasons=[{"why": "It comes first."}] * budget)
