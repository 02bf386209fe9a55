"""Variants of an experiment, the shelf of their stages, and statistics over seeds."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from deft_tsds.config import Arm, Experiment, Synthetic, Train, Transport, Weighted
from deft_tsds.runs import Run
from deft_tsds.selectors import TSDS
from deft_tsds.studies.variants import (
    REFERENCE,
    Estimate,
    Shelf,
    compare,
    estimate,
    holm,
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


def ends(found: Estimate) -> tuple[float, float]:
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8), st.floats(0.5, 0.99))
def test_the_interval_is_students(values, level):
    found = estimate(values, level=level)
    if np.std(values) < 1e-9:
        return
    expected: Any = stats.ttest_1samp(values, 0.0)
    interval = expected.confidence_interval(level)
    oracle = (np.mean(values), interval.low, interval.high, expected.pvalue)
    np.testing.assert_allclose(np.array(found, float), oracle, rtol=1e-9, atol=1e-12)


def test_resplits_widen_the_interval():
    values = [1.0, 2.0, 4.0, 3.0, 2.5]
    plain, wide = estimate(values, level=0.9), estimate(values, level=0.9, resplit=0.25)
    assert np.ptp(ends(wide)) / np.ptp(ends(plain)) == pytest.approx(np.sqrt((1 / 5 + 0.25) * 5))


def test_one_seed_has_no_interval_and_equal_seeds_have_no_width():
    assert estimate([3.0], level=0.95) == (3.0, None, None, None)
    assert estimate([3.0, 3.0], level=0.95) == (3.0, 3.0, 3.0, 0.0)
    assert estimate([0.0, 0.0], level=0.95) == (0.0, 0.0, 0.0, 1.0)


def test_intervals_cover_at_their_level():
    rng = np.random.default_rng(0)
    draws = rng.normal(5.0, 2.0, size=(3000, 5))
    covered = [low <= 5.0 <= high for low, high in (ends(estimate(row, level=0.95)) for row in draws)]
    assert 0.94 < np.mean(covered) < 0.96


def test_resplit_intervals_cover_where_seeds_share_their_data():
    """Means over the kept part of one sample of 50, five random re-splits of a fifth each: Student's own interval is
    far too narrow for the mean of the population, the corrected one is about right."""
    rng = np.random.default_rng(1)
    hits = np.zeros(2)
    for _ in range(1000):
        sample = rng.normal(size=50)
        values = [rng.permutation(sample)[:10].mean() for _ in range(5)]  # what the left-out part says
        for place, resplit in enumerate((0.0, 0.25)):
            low, high = ends(estimate(values, level=0.95, resplit=resplit))
            hits[place] += low <= 0.0 <= high
    naive, corrected = hits / 1000
    assert naive < 0.9
    assert 0.93 < corrected < 0.985


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_holm_by_its_definition(p_values):
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    expected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, (len(p_values) - rank) * p_values[place])
        expected[place] = min(1.0, largest)
    np.testing.assert_allclose(holm(p_values), expected)


def test_holm_keeps_the_familywise_error():
    p_values = np.random.default_rng(0).uniform(size=(2000, 6))
    assert np.mean([min(holm(row)) < 0.05 for row in p_values]) == pytest.approx(0.05, abs=0.015)


def test_differences_are_paired_by_seed():
    base = [{"a": 1.0}, {"a": 10.0}, {"a": 100.0}]
    more = [{"a": 1.5}, {"a": 10.51}, {"a": 100.49}]
    cells = compare(["base", "more"], [base, more], level=0.95, resplit={})
    difference = cells[1]["differences"]["a"]
    assert difference["verdict"] == "higher"
    assert difference["value"] == pytest.approx(0.5)
    assert difference["p"] == pytest.approx(stats.ttest_rel([1.5, 10.51, 100.49], [1.0, 10.0, 100.0]).pvalue)
    assert cells[0]["differences"] == {}
    assert cells[0]["measures"]["a"]["low"] < 0 < cells[0]["measures"]["a"]["high"]  # unpaired, nothing would show


def test_verdicts_are_corrected_for_the_number_of_cells():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(8, 6))
    shifted = noise - noise.mean(1, keepdims=True) + 1.05 * noise.std(1, ddof=1, keepdims=True) * 2.571 / np.sqrt(6)
    base = [{"a": 0.0}] * 6
    one = compare(["base", "x"], [base, [{"a": v} for v in shifted[0]]], level=0.95, resplit={})
    many = compare(
        ["base", *map(str, range(8))], [base, *([{"a": v} for v in row] for row in shifted)], level=0.95, resplit={}
    )
    assert one[1]["differences"]["a"]["verdict"] == "higher"  # p just below 0.05
    assert {cell["differences"]["a"]["verdict"] for cell in many[1:]} == {"no difference shown"}


def test_what_could_not_be_measured_is_left_out():
    cells = compare(["base", "x", "y"], [[{"a": 1.0}, {}], [{"a": 2.0}, {"a": 5.0}], [{}, {}]], level=0.95, resplit={})
    assert cells[1]["measures"]["a"]["seeds"] == [2.0, 5.0]
    assert cells[1]["differences"]["a"] == {
        "value": 1.0,
        "low": None,
        "high": None,
        "p": None,
        "p_holm": None,
        "verdict": "one seed",
    }
    assert cells[2]["measures"] == {}


@pytest.mark.parametrize(("values", "level"), [([], 0.95), ([1.0, np.nan], 0.95), ([1.0, 2.0], 1.0)])
def test_estimates_refuse_what_has_no_meaning(values, level):
    with pytest.raises(ValueError, match=r"values are|level is"):
        estimate(values, level=level)
