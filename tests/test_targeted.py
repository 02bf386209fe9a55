"""Selectors with a target, each against an oracle: plain NumPy, plain counting, POT."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from typing import Any

import jax
import numpy as np
import pytest
from oracles import brute_distances

import deft_tsds as dt
from deft_tsds.data.ngrams import NgramCounts
from deft_tsds.selection import Pool
from deft_tsds.selectors import DSIR, LESS, Nearest, RDSPlus, RoundRobin, UnbalancedTransport
from deft_tsds.selectors.dsir import gumbel_top_k

KEY = jax.random.key(0)


def arrays(n=80, m=6, d=7, seed=0):
    """Candidates, some of them copies, and queries near some of them."""
    rng = np.random.default_rng(seed)
    candidates = rng.normal(size=(n, d)).astype(np.float32)
    candidates[n // 2 : n // 2 + 5] = candidates[1]
    queries = (candidates[:m] + 0.3 * rng.normal(size=(m, d))).astype(np.float32)
    return candidates, queries


def chosen(selector, budget, candidates, queries, key=KEY):
    return dt.select(candidates, queries, selector=selector, budget=budget, key=key)


# Nearest, RoundRobin, RDS+


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
def test_nearest_against_numpy(metric):
    candidates, queries = arrays()
    distance_MxN = brute_distances(queries, candidates, metric).astype(np.float32)
    expected = np.sort(np.argsort(distance_MxN.min(axis=0), kind="stable")[:9])
    selection = chosen(Nearest(metric), 9, candidates, queries)
    np.testing.assert_array_equal(selection.indices, expected)
    np.testing.assert_allclose(selection.scores, -distance_MxN.min(axis=0)[expected], rtol=1e-6)
    assert [r["query"] for r in selection.reasons] == distance_MxN.argmin(axis=0)[expected].tolist()
    assert sorted(r["rank"] for r in selection.reasons) == list(range(1, 10))


def round_robin(distance_MxN, budget):
    taken = []
    while True:
        for distance_N in distance_MxN:
            order = np.argsort(distance_N, kind="stable")
            taken.append(int(order[~np.isin(order, taken)][0]))
            if len(taken) == budget:
                return taken


@pytest.mark.parametrize("selector", [RoundRobin(), RoundRobin("euclidean"), RDSPlus()])
@pytest.mark.parametrize("budget", [1, 8, 41, 80])
def test_round_robin_against_numpy(selector, budget):
    candidates, queries = arrays()
    distance_MxN = brute_distances(queries, candidates, getattr(selector, "metric", "cosine")).astype(np.float32)
    taken = round_robin(distance_MxN, budget)
    selection = chosen(selector, budget, candidates, queries)
    np.testing.assert_array_equal(selection.indices, np.sort(taken))
    for row, reason in zip(selection.indices.tolist(), selection.reasons, strict=True):
        number = taken.index(row)
        assert (reason["query"], reason["turn"]) == (number % 6, 1 + number // 6)
        assert reason["distance"] == pytest.approx(distance_MxN[number % 6, row], rel=1e-5)


def test_round_robin_of_queries_that_want_the_same():
    """Forty equal queries: each takes the next of one common list, which is deeper than the first search."""
    candidates, queries = arrays()
    selection = chosen(RoundRobin(), 60, candidates, np.repeat(queries[:1], 40, axis=0))
    assert selection.info["neighbors_used"] > 2 * 2 + 16
    np.testing.assert_array_equal(selection.indices, chosen(Nearest(), 60, candidates, queries[:1]).indices)


def test_nearest_reads_the_pool_in_blocks(monkeypatch):
    candidates, queries = arrays()
    whole = [chosen(selector, 20, candidates, queries) for selector in (Nearest(), LESS())]
    monkeypatch.setattr("deft_tsds.selectors.nearest.BLOCK_BYTES", 7 * 4 * 9)
    for selector, expected in zip((Nearest(), LESS()), whole, strict=True):
        found = chosen(selector, 20, candidates, queries)
        np.testing.assert_array_equal(found.indices, expected.indices)
        assert found.reasons == expected.reasons


def test_unknown_metric():
    wrong: Any = "l1"
    for selector in (Nearest, RoundRobin):
        with pytest.raises(ValueError, match="metric is 'l1': choose one of euclidean, cosine, dot"):
            selector(wrong)


# LESS


def test_less_against_numpy():
    candidates, queries = arrays()
    subtasks = ("b", "a", "b", "c", "a", "b")
    cosine_NxM = 1 - brute_distances(queries, candidates, "cosine").T
    score_NxS = np.stack([cosine_NxM[:, np.array(subtasks) == s].mean(axis=1) for s in "abc"], axis=1)
    expected = np.sort(np.argsort(-score_NxS.max(axis=1).astype(np.float32), kind="stable")[:15])
    selection = chosen(LESS(subtasks), 15, candidates, queries)
    np.testing.assert_array_equal(selection.indices, expected)
    np.testing.assert_allclose(selection.scores, score_NxS.max(axis=1)[expected], atol=1e-6)
    assert [r["subtask"] for r in selection.reasons] == ["abc"[s] for s in score_NxS.argmax(axis=1)[expected]]
    assert sum(selection.info["chosen_by_subtask"].values()) == 15


def test_less_over_checkpoints_is_the_weighted_sum_of_cosines():
    """Features of two checkpoints at lengths sqrt(eta), side by side: the cosine is sum_i eta_i cos_i."""
    (first, first_q), (second, second_q) = arrays(seed=0), arrays(seed=1)
    eta = (0.7, 0.3)

    def side_by_side(a, b):
        parts = (np.sqrt(e) * x / np.linalg.norm(x, axis=1, keepdims=True) for e, x in zip(eta, (a, b), strict=True))
        return np.hstack(list(parts))

    influences = [
        e * (1 - brute_distances(q, x, "cosine")).mean(axis=0)
        for e, x, q in zip(eta, (first, second), (first_q, second_q), strict=True)
    ]
    score_N = np.sum(influences, axis=0)
    selection = chosen(LESS(), 12, side_by_side(first, second), side_by_side(first_q, second_q))
    np.testing.assert_array_equal(selection.indices, np.sort(np.argsort(-score_N)[:12]))
    np.testing.assert_allclose(selection.scores, score_N[selection.indices], atol=1e-6)


def test_less_needs_a_subtask_for_each_query():
    candidates, queries = arrays()
    with pytest.raises(ValueError, match="LESS has 2 subtasks for 6 queries"):
        chosen(LESS(("a", "b")), 3, candidates, queries)


# DSIR

POOL = [
    "The cat sat on the mat.",
    "Alice went to the store",
    "stocks fell, and bonds rose",
    "the protein binds the receptor",
    "a kinase inhibitor binds the protein kinase",
    "Alice went to the store",
    "",
]
TARGET = ["the inhibitor binds the kinase", "protein receptor"]


def plain_counts(text, buckets):
    words = re.findall(r"\w+|[^\w\s]+", text.lower())
    ngrams = words + [" ".join(pair) for pair in itertools.pairwise(words)]
    return Counter(int(hashlib.sha256(ngram.encode()).hexdigest(), 16) % buckets for ngram in ngrams)


def plain_log_weights(pool, target, buckets):
    def shares(texts):
        counts = Counter()
        for text in texts:
            counts += plain_counts(text, buckets)
        return {b: counts[b] / sum(counts.values()) for b in range(buckets)}

    p, q = shares(target), shares(pool)
    return [
        sum(count * (np.log(p[b] + 1e-8) - np.log(q[b] + 1e-8)) for b, count in plain_counts(text, buckets).items())
        for text in pool
    ]


def test_ngram_counts_against_plain_counting():
    for buckets in (10_000, 13):  # thirteen buckets: n-grams share them
        counts = NgramCounts(POOL, buckets=buckets)
        assert counts.shape == (7, buckets)
        for row, text in enumerate(POOL):
            expected = np.zeros(buckets, np.float32)
            for bucket, count in plain_counts(text, buckets).items():
                expected[bucket] = count
            np.testing.assert_array_equal(counts[row : row + 1][0], expected)
    np.testing.assert_array_equal(counts[np.array([4, 0])], np.concatenate([counts[4:5], counts[0:1]]))
    assert counts[2:5].dtype == np.float32
    three = NgramCounts(["a b c d"], longest=3)[0:1]
    assert three.sum() == 4 + 3 + 2


def test_ngram_counts_are_those_of_the_published_code():
    """Values of its own test: the buckets of "alice" and "alice went", and 9 n-grams in the sentence."""
    counts = NgramCounts(["Alice went to the store"])[0:1][0]
    assert counts.sum() == 9
    assert counts[6720] == 1
    assert counts[114] == 1


def test_ngram_counts_refuse():
    with pytest.raises(ValueError, match="texts is empty"):
        NgramCounts([])
    for options in ({"longest": 0}, {"buckets": 0}):
        with pytest.raises(ValueError, match="give an integer at least 1"):
            NgramCounts(["a"], **options)


@pytest.mark.parametrize("buckets", [10_000, 13])
def test_dsir_weights_against_plain_counting(buckets):
    pool = Pool.of(NgramCounts(POOL, buckets=buckets), NgramCounts(TARGET, buckets=buckets))
    expected = plain_log_weights(POOL, TARGET, buckets)
    everything = DSIR()(pool, budget=7, key=KEY)
    np.testing.assert_allclose([r["log_weight"] for r in everything.reasons], expected, rtol=1e-9, atol=1e-9)
    top = DSIR(draw=False)(pool, budget=3, key=KEY)
    np.testing.assert_array_equal(top.indices, np.sort(np.argsort(-np.array(expected), kind="stable")[:3]))
    assert everything.reasons[6]["ngrams"] == 0
    assert everything.reasons[1] == everything.reasons[5]


def test_dsir_takes_the_one_text_of_the_target():
    """The toy of the published code's test: among a thousand texts one is that of the target, and it is resampled."""
    rng = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(500)])
    texts = [" ".join(rng.choice(words, 20)) for _ in range(1000)]
    texts[0] = "an odd sentence about herons, reeds, and ponds"
    pool = Pool.of(NgramCounts(texts), NgramCounts([texts[0]]))
    for seed in range(5):
        assert DSIR()(pool, budget=1, key=jax.random.key(seed)).indices.tolist() == [0]


def test_gumbel_top_k_draws_in_proportion():
    """Two of four without replacement: the frequencies of the pairs are those of drawing one after another."""
    weights = np.array([1.0, 2.0, 3.0, 4.0])
    draws = 2000
    seen = Counter(tuple(gumbel_top_k(np.log(weights) + 700, 2, key).tolist()) for key in jax.random.split(KEY, draws))
    p = weights / weights.sum()
    for i in range(4):
        for j in range(i + 1, 4):
            chance = p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j])
            assert abs(seen[i, j] / draws - chance) < 5 * np.sqrt(chance / draws)


def test_dsir_refuses_embeddings():
    candidates, queries = arrays()
    with pytest.raises(ValueError, match="queries, row 0, has a negative value: DSIR reads counts"):
        chosen(DSIR(), 3, candidates, queries)
    with pytest.raises(ValueError, match=r"candidates, row \d+, has a negative value: DSIR reads counts"):
        chosen(DSIR(), 3, candidates, np.abs(queries))
    with pytest.raises(ValueError, match="queries hold no n-gram"):
        chosen(DSIR(), 3, np.abs(candidates), np.zeros_like(queries))
    with pytest.raises(ValueError, match="smoothing is 0"):
        DSIR(smoothing=0)


# UnbalancedTransport


@pytest.mark.parametrize(("epsilon", "penalty"), [(0.01, 1e-4), (0.05, 0.5), (0.02, 0.02)])
def test_unbalanced_transport_against_pot(epsilon, penalty):
    import ot

    candidates, queries = arrays()
    cost_MxN = brute_distances(queries, candidates, "cosine") / 2
    plan_MxN = ot.unbalanced.sinkhorn_unbalanced(
        np.full(6, 1 / 6),
        np.full(80, 1 / 80),
        cost_MxN,
        reg=epsilon,
        reg_m=(np.inf, penalty),
        method="sinkhorn_stabilized",
        reg_type="kl",
        numItermax=100_000,
        stopThr=1e-12,
    )
    np.testing.assert_allclose(plan_MxN.sum(axis=1), 1 / 6, rtol=1e-6)  # the marginal of the queries holds
    mass_N = plan_MxN.sum(axis=0)
    selector = UnbalancedTransport(epsilon=epsilon, penalty=penalty, tolerance=1e-6)
    everything = chosen(selector, 80, candidates, queries)
    np.testing.assert_allclose(everything.scores, mass_N, atol=3e-6 * mass_N.max(), rtol=1e-3)
    assert everything.scores.sum() == pytest.approx(1, abs=1e-4)
    some = chosen(selector, 12, candidates, queries)
    assert some.scores.min() >= np.sort(mass_N)[::-1][12] - 1e-6
    for row, reason in zip(some.indices, some.reasons, strict=True):
        assert reason["query"] == plan_MxN[:, row].argmax()
        assert reason["share"] == pytest.approx(plan_MxN[:, row].max() / mass_N[row], abs=1e-3)
        assert reason["cosine"] == pytest.approx(1 - 2 * cost_MxN[reason["query"], row], abs=1e-5)


def test_unbalanced_transport_in_a_shortlist():
    candidates, queries = arrays()
    selection = chosen(UnbalancedTransport(neighbors=5), 10, candidates, queries)
    near = np.unique(np.argsort(brute_distances(queries, candidates, "cosine"), axis=1, kind="stable")[:, :5])
    assert selection.info["shortlist"] == len(near)
    assert np.isin(selection.indices, near).all()
    with pytest.raises(ValueError, match="altogether, fewer than the budget of 70: raise neighbors"):
        chosen(UnbalancedTransport(neighbors=5), 70, candidates, queries)


def test_unbalanced_transport_says_when_it_has_not_converged():
    candidates, queries = arrays()
    selector = UnbalancedTransport(epsilon=0.01, penalty=1.0, tolerance=1e-9, max_iterations=10)
    with pytest.raises(ValueError, match="not within tolerance=1e-09 after 10 iterations"):
        chosen(selector, 5, candidates, queries)
    for name in ("epsilon", "penalty", "tolerance", "neighbors"):
        with pytest.raises(ValueError, match=f"{name} is 0"):
            UnbalancedTransport(**{name: 0})
