"""The table of arms against the bootstrap of one cell, and against plain means."""

import numpy as np
import pytest

from deft_tsds.evaluate import cell, tabulate
from deft_tsds.metrics import METRICS, bootstrap, bootstrap_difference

TESTS = ("short", "long")
SEED, RESAMPLES = 3, 200


def statistics(arm: int, replicates: int) -> dict[tuple[str, str], list[np.ndarray]]:
    """Per-example values of two averaging metrics on two test sets of other sizes."""
    rng = np.random.default_rng(arm)
    return {
        (test, metric): [
            np.stack([rng.uniform(0, 0.5 + 0.1 * arm, rows), np.ones(rows)], axis=1) for _ in range(replicates)
        ]
        for test, rows in (("short", 20), ("long", 60))
        for metric in ("exact_match", "token_f1")
    }


ARMS = {"copy": statistics(0, 1), "random": statistics(1, 3), "deft": statistics(2, 3)}


@pytest.fixture(scope="module")
def table() -> dict:
    return tabulate(ARMS, tests=TESTS, metrics=("token_f1", "exact_match"), resamples=RESAMPLES, level=0.95, seed=SEED)


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("metric", ["token_f1", "exact_match"])
def test_values_are_means_over_examples_then_seeds_then_tests(table, arm, metric):
    means = [np.mean([100 * run[:, 0].mean() for run in ARMS[arm][test, metric]]) for test in TESTS]
    for test, expected in zip((*TESTS, "all"), (*means, np.mean(means)), strict=True):
        np.testing.assert_allclose(cell(table, arm, test, metric).value, expected)


def test_single_arm_intervals_are_those_of_the_bootstrap():
    only = {"copy": ARMS["copy"]}
    table = tabulate(only, tests=TESTS, metrics=("token_f1",), resamples=RESAMPLES, level=0.9, seed=SEED)
    for test in TESTS:
        rows = np.stack(ARMS["copy"][test, "token_f1"])
        expected = bootstrap(METRICS["token_f1"], rows, resamples=RESAMPLES, level=0.9, seed=SEED)
        np.testing.assert_allclose(cell(table, "copy", test, "token_f1"), expected)
    assert table["differences"] == []


def test_differences_are_paired():
    two = {"deft": ARMS["deft"], "random": ARMS["random"]}
    table = tabulate(two, tests=TESTS, metrics=("token_f1",), resamples=RESAMPLES, level=0.95, seed=SEED)
    (found,) = [row for row in table["differences"] if row["test"] == "long"]
    runs = [np.stack(two[arm]["long", "token_f1"]) for arm in ("deft", "random")]
    expected = bootstrap_difference(METRICS["token_f1"], *runs, resamples=RESAMPLES, seed=SEED)
    np.testing.assert_allclose([found["value"], found["low"], found["high"]], expected)
    assert (found["arm"], found["against"]) == ("deft", "random")


def test_an_arm_differs_from_itself_by_nothing():
    """Paired resamples of equal single-seed arms cancel exactly."""
    twins = {"twin": ARMS["copy"], "random": ARMS["copy"]}
    table = tabulate(twins, tests=TESTS, metrics=("token_f1",), resamples=RESAMPLES, level=0.95, seed=SEED)
    for row in table["differences"]:
        assert (row["value"], row["low"], row["high"]) == (0, 0, 0)


def test_what_the_table_says_of_itself(table):
    assert table["primary"] == "token_f1"
    assert table["tests"] == [{"name": "short", "rows": 20}, {"name": "long", "rows": 60}]
    assert table["arms"] == ["copy", "random", "deft"]
    assert table["conventions"]["token_f1"] == METRICS["token_f1"].convention
    with pytest.raises(ValueError, match="no token_f1 of lima on short"):
        cell(table, "lima", "short", "token_f1")
