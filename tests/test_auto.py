"""Knobs decided by the data: planted structure comes back, and nothing but the data matters."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group
from sklearn.metrics import silhouette_score
from test_pipeline import SMALL

import deft_tsds as dt
from deft_tsds.arrays import normalize_rows
from deft_tsds.config import Arm, Experiment, Synthetic, Transport, Weighted, automatic, load
from deft_tsds.pipeline import Pipeline
from deft_tsds.report.view import _decided
from deft_tsds.runs import read_json
from deft_tsds.selection import Pool
from deft_tsds.selectors import DEFT, TSDS, ClusteredTSDS, Random, ShortlistDEFT
from deft_tsds.selectors.auto import base_share, distinct_size, repeated_share, spread_plan
from deft_tsds.selectors.clusters import choose_clusters, stable_clusters

KEY = jax.random.key(0)
D = 8


def blobs(clusters: int, n: int = 160, seed: int = 0, spread: float = 0.12) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows around directions at right angles, and the direction of each."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % clusters
    return normalize_rows((np.eye(D)[labels] + spread * rng.normal(size=(n, D))).astype(np.float32)), labels


def circle(n: int = 200) -> np.ndarray:
    """Unit rows in all directions of the plane: no number of clusters is better than another."""
    angles = 2 * np.pi * np.random.default_rng(2).random(n)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def rotated(x: np.ndarray) -> np.ndarray:
    return (x @ ortho_group.rvs(x.shape[1], random_state=3)).astype(np.float32)


# K


@pytest.mark.parametrize("wanted", [2, 5])
def test_planted_clusters_are_found_and_the_reason_says_how(wanted):
    unit, labels = blobs(wanted)
    value, decision = stable_clusters(unit, 7, key=KEY)
    assert value == decision["value"] == wanted
    tried = {item["clusters"]: item for item in decision["tried"]}
    assert sorted(tried) == [2, 3, 4, 5, 6, 7]
    assert tried[wanted]["stability"] == 1
    assert tried[wanted]["silhouette"] == pytest.approx(silhouette_score(unit, labels), abs=1e-5)
    assert decision["why"].startswith(f"{wanted} clusters: of K = 2 to 7, those that come again in another half")
    assert (value, decision) == stable_clusters(unit, 7, key=KEY)


def test_without_clusters_of_their_own_the_data_do_not_decide():
    """The silhouette alone is content with any slices of a ring; no slice comes again."""
    unit = circle()
    assert max(item["score"] for item in choose_clusters(unit, 8, key=KEY)[1]) > 0.4
    value, decision = stable_clusters(unit, 8, key=KEY)
    assert max(item["stability"] for item in decision["tried"]) < 0.8
    assert value == 7
    assert decision["why"].startswith("7 clusters, as in the paper: of K = 2 to 8 none comes again")
    assert stable_clusters(unit, 5, key=KEY)[0] == 5


def test_k_does_not_depend_on_order_rotation_or_copies():
    unit, _ = blobs(3, 90)
    value, plain = stable_clusters(unit, 5, key=KEY)
    order = np.random.default_rng(1).permutation(len(unit))
    assert stable_clusters(unit[order], 5, key=KEY) == (value, plain)
    assert stable_clusters(np.concatenate([unit, unit, unit]), 5, key=KEY) == (value, plain)
    turned = stable_clusters(rotated(unit), 5, key=KEY)
    assert turned[0] == value == 3
    for a, b in zip(plain["tried"], turned[1]["tried"], strict=True):
        assert b == pytest.approx(a, abs=1e-3)


def test_rows_that_are_all_alike_are_one_cluster():
    for rows in (np.ones((9, 3)), np.zeros((9, 3)), np.eye(3), np.eye(1)):
        value, decision = stable_clusters(rows.astype(np.float32), 12, key=KEY)
        assert value == 1
        assert decision["why"].startswith("1 cluster: there ")


# The base set


@pytest.mark.parametrize(("near", "exact"), [(0, 0), (30, 0), (0, 45), (24, 16)])
def test_the_planted_share_of_copies_is_found(near, exact):
    """Each copied row is copied once: of n + m rows m repeat others."""
    unit, rng = blobs(3, 150)[0], np.random.default_rng(5)
    moved = unit[:near] + 1e-3 * rng.normal(size=(near, D)) / np.sqrt(D)
    pool = np.concatenate([unit, moved, unit[near : near + exact]]).astype(np.float32)
    assert repeated_share(pool) == pytest.approx((near + exact) / len(pool), abs=0.03)
    shuffled = rotated(pool[rng.permutation(len(pool))])
    assert repeated_share(shuffled) == pytest.approx(repeated_share(pool), abs=1e-3)


def test_nothing_but_exact_copies():
    few = np.repeat(np.eye(3, dtype=np.float32), 40, axis=0)
    assert repeated_share(few) == pytest.approx(1 - 3 / 120, abs=1e-6)
    assert repeated_share(few[:40]) == 1 - 1 / 40
    share, decision = base_share(few, 20, 7, key=KEY)
    assert decision["far"] == 0
    assert share == 19 / 120


def far_by_loops(unit: np.ndarray, labels: np.ndarray) -> float:
    far = 0
    for label in np.unique(labels):
        rows = unit[labels == label].astype(np.float64)
        mean = rows.mean(0)
        distances = [1 - row @ mean / np.linalg.norm(mean) for row in rows]
        far += sum(distance > np.mean(distances) + np.std(distances) for distance in distances)
    return far / len(unit)


@pytest.mark.parametrize(("budget", "half"), [(10, True), (30, True), (110, False), (159, False), (160, False)])
def test_the_core_set_gets_what_is_hard_and_half_of_the_budget_at_most(budget, half):
    unit, labels = blobs(4)
    share, decision = base_share(unit, budget, 4, key=KEY)
    hard = far_by_loops(unit, labels) * (1 - repeated_share(unit))
    assert decision["hard"] == pytest.approx(hard)
    count = round(share * 160)
    assert share * 160 == pytest.approx(count)
    if half:
        assert count == budget // 2
        assert "half of the budget" in decision["why"]
    else:
        core = budget - count
        assert core == max(1, math.floor(hard * (160 - count)))
        assert "what these leave of the budget" in decision["why"]


def test_copies_leave_less_for_the_core_set():
    unit, _ = blobs(4)
    copied = np.concatenate([unit, unit])
    alone, doubled = (base_share(rows, round(0.7 * len(rows)), 4, key=KEY) for rows in (unit, copied))
    assert doubled[1]["far"] == alone[1]["far"]
    assert doubled[1]["repeats"] == pytest.approx(0.5, abs=0.01)
    assert doubled[0] > alone[0] + 0.02


@settings(deadline=None, max_examples=40)
@given(n=st.integers(2, 40), share=st.floats(0.01, 1), seed=st.integers(0, 10**6))
def test_any_budget_leaves_a_core_set(n, share, seed):
    unit = normalize_rows(np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32))
    budget = max(1, round(share * n))
    value, _ = base_share(unit, budget, 3, key=KEY)
    assert budget // 2 <= round(value * n) + (budget == 1) <= budget
    assert round(value * n) < budget
    DEFT(base=value).check_budget(budget, n)


def test_deft_runs_with_what_was_decided():
    unit, _ = blobs(3)
    selector = DEFT(clusters="auto", base="auto", most_clusters=4)
    selection = dt.select(unit, selector=selector, budget=40, key=KEY)
    decisions = selection.info["auto"]
    assert decisions["clusters"]["value"] == selection.info["kmeans"]["clusters"] == 3
    assert (decisions["clusters"]["paper"], decisions["base"]["paper"]) == (7, 0.3)
    assert selection.info["base"] == 20 == round(decisions["base"]["value"] * 160)
    selector.check_budget(1, 160)
    assert len(dt.select(unit, selector=selector, budget=1, key=KEY)) == 1
    mixed = DEFT(clusters="silhouette", base="auto", most_clusters=4)
    decided, info = mixed.decided(Pool.of(unit), budget=40, key=KEY)
    assert decided == DEFT(clusters=3, base=20 / 160, most_clusters=4)
    assert set(info) == {"auto", "silhouette"}
    assert set(info["auto"]) == {"base"}


# The spread of the plan


def targeted(copies: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Candidates about 1 apart, each with near-copies 0.001 away, and queries among them."""
    rng = np.random.default_rng(seed)
    once = rng.normal(size=(120, D))
    queries = once[:5] + 0.3 * rng.normal(size=(5, D))
    candidates = np.concatenate([once + 1e-3 * rng.normal(size=once.shape) / np.sqrt(D) for _ in range(copies)])
    return candidates.astype(np.float32), queries.astype(np.float32)


OPTIMUM: dict[str, Any] = {"scale": 5.0, "regularizer": "kde"}


@pytest.mark.parametrize(("budget", "copies"), [(6, 1), (30, 1), (30, 4), (100, 1)])
def test_the_plan_is_the_nearest_that_is_worth_two_choices(budget, copies):
    candidates, queries = targeted(copies)
    problem, plan, decision = spread_plan(candidates, queries, budget, bandwidth=0.1, **OPTIMUM)
    p, rho = plan.weights_U, np.asarray(problem.density_U, np.float64)
    distance = np.linalg.norm(candidates[:, None].astype(np.float64) - candidates, axis=-1)
    kernel = np.maximum(0, 1 - (distance / 0.1) ** 2)
    np.testing.assert_allclose(rho, kernel.sum(1)[problem.shortlist_U], rtol=1e-3)
    inside = kernel[np.ix_(problem.shortlist_U, problem.shortlist_U)]
    # Leinster and Cobbold's diversity itself, for copies that share their mass nearly evenly.
    assert decision["distinct_size"] == pytest.approx(1 / (p @ inside @ p), rel=0.05)
    assert decision["wanted"] == pytest.approx(120 * (1 - (1 - budget / 120) ** 2), rel=1e-3)
    assert decision["distinct_size"] >= decision["wanted"]
    tau = plan.info["tau"]
    nearer = dt.tsds(problem, alpha=5 / (5 + 0.97 * tau), **OPTIMUM)
    assert distinct_size(problem, nearer) < decision["wanted"]
    assert plan.info["support"] >= budget
    assert not plan.info["exhausted"]


def test_copies_do_not_move_alpha():
    """To "kde" a pool of copies is the pool; to "uniform" it is a larger one."""
    alphas = {}
    for regularizer, bandwidth in (("kde", 0.1), ("uniform", None)):
        options: dict[str, Any] = {"scale": 5.0, "regularizer": regularizer, "bandwidth": bandwidth}
        for copies in (1, 4):
            *_, decision = spread_plan(*targeted(copies), 30, **options)
            alphas[regularizer, copies] = decision["value"]
    # The worth of a plan moves in steps, and may dip where queries come to share candidates.
    assert alphas["kde", 4] == pytest.approx(alphas["kde", 1], rel=0.1)
    assert alphas["uniform", 4] > 1.3 * alphas["uniform", 1]


def test_neighbourhoods_grow_to_the_same_alpha():
    candidates, queries = targeted()
    *_, whole = spread_plan(candidates, queries, 30, bandwidth=0.1, **OPTIMUM)
    *_, grown = spread_plan(candidates, queries, 30, bandwidth=0.1, neighbors=3, **OPTIMUM)
    assert 3 < grown["neighbors"] < whole["neighbors"] == 120
    assert grown["value"] == pytest.approx(whole["value"], rel=0.1)


@pytest.mark.parametrize("regularizer", ["kde", "uniform", "tv"])
@pytest.mark.parametrize("budget", [1, 120])
def test_the_smallest_and_the_largest_budget(regularizer, budget):
    candidates, queries = targeted()
    selector = TSDS(alpha="auto", regularizer=regularizer, bandwidth=0.1)
    selection = dt.select(candidates, queries, selector=selector, budget=budget, key=KEY)
    assert len(selection) == budget
    assert 0 < selection.info["auto"]["alpha"]["value"] <= 1


def test_enough_queries_for_the_budget_take_their_nearest_alone():
    candidates, _ = targeted()
    *_, decision = spread_plan(candidates, candidates[:60], 5, bandwidth=0.1, **OPTIMUM)
    assert decision["value"] == 1
    assert decision["distinct_size"] == pytest.approx(60)


def test_alpha_does_not_depend_on_order_or_rotation():
    candidates, queries = targeted(2)
    rng = np.random.default_rng(7)
    *_, plain = spread_plan(candidates, queries, 30, bandwidth="auto", **OPTIMUM)
    shuffled = spread_plan(candidates[rng.permutation(240)], queries[::-1], 30, bandwidth="auto", **OPTIMUM)[2]
    both = rotated(np.concatenate([candidates, queries]))
    turned = spread_plan(both[:240], both[240:], 30, bandwidth="auto", **OPTIMUM)[2]
    assert shuffled["value"] == pytest.approx(plain["value"], rel=1e-2)
    assert turned["value"] == pytest.approx(plain["value"], rel=1e-2)


def test_tsds_says_why_and_draws_from_that_plan():
    once, queries = targeted()
    candidates = np.concatenate([once, once[:40] + np.float32(1e-4)])
    selection = dt.select(candidates, queries, selector=TSDS(alpha="auto", bandwidth="auto"), budget=30, key=KEY)
    decisions = selection.info["auto"]
    assert selection.info["plan"]["alpha"] == decisions["alpha"]["value"]
    assert f"alpha {decisions['alpha']['value']:.4g}" in decisions["alpha"]["why"]
    assert "with alpha 0.5 it would be worth" in decisions["alpha"]["why"]
    # The planted bandwidth: above the copies, below their neighbours.
    assert 3e-4 < decisions["bandwidth"]["value"] < 1
    assert decisions["bandwidth"]["value"] == selection.info["bandwidth"]["h"]
    costs = np.full(160, 7.0)
    spent = dt.select(candidates, queries, selector=TSDS(alpha="auto"), costs=costs, cost_budget=210, key=KEY)
    assert "for a budget of 30," in spent.info["auto"]["alpha"]["why"]
    assert spent.info["cost"] <= 210
    clustered = ClusteredTSDS(TSDS(alpha="auto"), clusters="auto", most_clusters=3)
    both = dt.select(candidates, queries, selector=clustered, budget=12, key=KEY)
    assert set(both.info["auto"]) == {"alpha", "clusters"}


def test_what_is_refused():
    candidates, queries = targeted()
    pool = Pool.of(candidates, queries)
    with pytest.raises(ValueError, match='alpha="auto" depends on the budget'):
        TSDS(alpha="auto").plan(pool)
    assert TSDS(alpha="auto").plan(pool, 30)[1].info["alpha"] < 1
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (DEFT, {"base": "half"}, "base is 'half'"),
        (DEFT, {"clusters": "gap"}, "clusters is 'gap': give a number, or 'silhouette' or 'auto'"),
        (TSDS, {"alpha": "low"}, "alpha is 'low'"),
        (TSDS, {"alpha": "auto", "effective_size": 9}, "give one of them"),
    ]
    for kind, options, message in cases:
        with pytest.raises(ValueError, match=message):
            kind(**options)


# Where they are set and shown


def test_the_flag_sets_every_knob_that_nothing_else_sets():
    def arm(selector: Any) -> Arm:
        return Arm(selector, share=0.2)

    kde = {"kde": Weighted(0.5, "kde_repulsion")}
    arms = {
        "random": arm(Random()),
        "deft": arm(DEFT(easy=0.5, hard=0.5)),
        "tsds": arm(TSDS(effective_size=9)),
        "uniform": arm(TSDS(alpha=0.2, regularizer="uniform")),
        "near": arm(ShortlistDEFT()),
        "clustered": arm(ClusteredTSDS()),
        "own": arm(Transport(kde, bandwidth=0.5)),
        "flat": arm(Transport(kde)),
    }
    auto = automatic(Experiment(Synthetic(), arms))
    assert {name: made.selector for name, made in auto.arms.items()} == {
        "random": Random(),
        "deft": DEFT(clusters="auto", base="auto", easy=0.5, hard=0.5),
        "tsds": TSDS(alpha="auto", bandwidth="auto"),
        "uniform": TSDS(alpha="auto", regularizer="uniform"),
        "near": ShortlistDEFT(DEFT(clusters="auto", base="auto")),
        "clustered": ClusteredTSDS(TSDS(alpha="auto", bandwidth="auto"), clusters="auto"),
        "own": Transport(kde, bandwidth="auto"),
        "flat": Transport(kde),
    }
    demo = Path(__file__).parents[1] / "configs/demo.py"
    experiment, _ = load(demo, ["--arms.deft.selector.clusters", "9", "--auto"])
    assert experiment.arms["deft"].selector == DEFT(clusters=9, base="auto")
    assert experiment.arms["tsds"].selector == TSDS(alpha="auto", bandwidth="auto")
    assert load(demo)[0].arms["deft"].selector == DEFT()
    arms = load(demo.parent / "studies/auto.py")[0].arms
    assert arms["deft_auto"].selector == automatic(Experiment(Synthetic(), arms)).arms["deft"].selector
    assert arms["tsds_auto"].selector == automatic(Experiment(Synthetic(), arms)).arms["tsds"].selector


def test_a_run_keeps_and_shows_why(tmp_path, capsys):
    arms = {"tsds": Arm(TSDS(alpha="auto", bandwidth="auto"), share=0.2)}
    pipeline = Pipeline(dataclasses.replace(SMALL, arms=arms, workdir=tmp_path / "run"))
    stage = pipeline.select("tsds", 0)
    decisions = read_json(stage.folder / "manifest.json")["results"]["auto"]
    selection = dt.Selection.load(stage.folder / "selection")
    assert selection.info["auto"] == decisions
    assert set(decisions) == {"alpha", "bandwidth"}
    printed = " ".join(capsys.readouterr().err.split())
    shown = _decided({0: selection})
    for knob, decision in decisions.items():
        assert " ".join(f"tsds: {decision['why']}".split()) in printed
        assert shown[knob] == f"auto: {decision['why']}"
    assert _decided({0: dt.Selection.of([0])}) == {}


ELSEWHERE = """
import jax
jax.config.update("jax_num_cpu_devices", 8)
from test_auto import decided
print(decided())
"""


def decided() -> str:
    pool = Pool.of(blobs(3)[0], blobs(3)[0][:3])
    deft = DEFT(clusters="auto", base="auto", most_clusters=3).decided(pool, budget=30, key=KEY)
    plan = TSDS(alpha="auto", bandwidth="auto").plan(pool, 30)[1]
    return repr((deft, plan.info["alpha"], plan.weights_U.tolist()))


def test_eight_devices_decide_the_same():
    folder = Path(__file__).parent
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": f"{folder}{os.pathsep}{folder.parent}"}
    found = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == decided()
