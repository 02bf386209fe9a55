"""Variants of an experiment, the shelf of their stages."""

import itertools
from pathlib import Path

import pytest

from deft_tsds.config import Arm, Experiment, Synthetic, Train, Transport, Weighted
from deft_tsds.runs import Run
from deft_tsds.selectors import TSDS
from deft_tsds.studies.variants import (
    REFERENCE,
    Shelf,
    parse_sweep,
    value_at,
    variants,
    with_value,
)

EXPERIMENT = Experiment(
    data=Synthetic(),
    arms={
        "tsds": Arm(TSDS(alpha=0.5), share=0.1),
        "own": Arm(
            Transport({"align": Weighted(1.0, "transport_cost"), "kde": Weighted(0.5, "kde_repulsion")}), share=0.1
        ),
    },
    train=Train(steps=10),
)


def test_a_sweep_is_a_path_and_its_values():
    assert parse_sweep("a.b = 0, 0.1,1") == ("a.b", ("0", "0.1", "1"))


@pytest.mark.parametrize("text", ["a.b", "=1", "a=", "a=1,,2", "a=1,1"])
def test_a_wrong_sweep_is_refused(text):
    with pytest.raises(ValueError, match="--sweep"):
        parse_sweep(text)


def test_the_product_of_sweeps_has_every_combination_and_the_reference_once():
    weight, alpha = "arms.own.selector.objective.kde.weight", "arms.tsds.selector.alpha"
    found = variants(EXPERIMENT, sweeps={weight: ["0", "0.5"], alpha: ["0.5", "0.9"]})
    seen = [(value_at(each.experiment, weight), value_at(each.experiment, alpha)) for each in found]
    assert seen[0] == (0.5, 0.5)  # as configured
    assert sorted(seen) == sorted(itertools.product([0.0, 0.5], [0.5, 0.9]))
    assert [each.values == {weight: w, alpha: a} for each, (w, a) in zip(found, seen, strict=True)] == [True] * 4
    assert found[0].name == REFERENCE
    assert found[0].experiment is EXPERIMENT
    assert len({each.name for each in found}) == 4


def test_values_are_typed_by_their_fields():
    paths = {"train.steps": "20", "train.epochs": "2", "train.optimizer": "adafactor", "workdir": "a/b"}
    for path, text in paths.items():
        *_, changed = variants(EXPERIMENT, sweeps={path: [text]})
        value = value_at(changed.experiment, path)
        assert str(value) in (text, f"{text}.0")
        assert type(value) is {"steps": int, "epochs": float, "optimizer": str}.get(path.split(".")[-1], type(Path()))


def test_each_entry_of_a_mapping_is_left_out_in_turn():
    path = "arms.own.selector.objective"
    found = variants(EXPERIMENT, sweeps={}, drops=[path])
    assert [(each.name, each.dropped) for each in found[1:]] == [("without align", "align"), ("without kde", "kde")]
    assert [list(value_at(each.experiment, path)) for each in found[1:]] == [["kde"], ["align"]]


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ({"train.stepz": ["1"]}, "--train.steps"),
        ({"arms.own.selector.objective.kd.weight": ["1"]}, "--arms.own.selector.objective.kde.weight"),
        ({"train.steps": ["many"]}, "--train.steps"),
        ({"arms.tsds.selector.regularizer": ["kdee"]}, "kde"),
    ],
)
def test_a_wrong_path_or_value_names_the_nearest_field(sweep, said, capsys):
    with pytest.raises(SystemExit):
        variants(EXPERIMENT, sweeps=sweep)
    assert said in capsys.readouterr().err


def test_nothing_to_leave_out():
    with pytest.raises(ValueError, match=r"train\.steps has nothing to leave out"):
        variants(EXPERIMENT, sweeps={}, drops=["train.steps"])
    with pytest.raises(ValueError, match=r"no 'arm' here, but .*arms"):
        variants(EXPERIMENT, sweeps={}, drops=["arm.own"])


def test_a_changed_value_leaves_all_else():
    changed = with_value(EXPERIMENT, "arms.own.selector.objective.kde.weight", 2.0)
    assert value_at(changed, "arms.own.selector.objective.kde.weight") == 2.0
    assert with_value(changed, "arms.own.selector.objective.kde.weight", 0.5) == EXPERIMENT
    assert with_value(EXPERIMENT, "train.learning-rate", 1.0).train.learning_rate == 1.0


def test_the_shelf_keeps_requests_apart_and_takes_what_the_run_has(tmp_path):
    done = []

    def stage(run, value, upstream=()):
        return run.do(
            "a", lambda folder: done.append(value) or {"value": value}, settings={"v": value}, upstream=upstream
        )

    plain = stage(Run(tmp_path, 0), 1)
    shelf = Shelf(tmp_path, 0)
    assert stage(shelf, 1) == plain  # the run's own stage, and not a second one
    first, second = stage(shelf, 2), stage(shelf, 3)
    assert first.folder != second.folder
    assert stage(Shelf(tmp_path, 0), 2) == first
    assert stage(Run(tmp_path, 0), 1) == plain  # nothing has overwritten it
    below = stage(shelf, 2, upstream=[second])
    assert below.folder not in (first.folder, second.folder)
    assert stage(Shelf(tmp_path, 7), 1).folder != plain.folder
    assert done == [1, 2, 3, 2, 1]
