"""The probe against scikit-learn, its slope against differences, and the learned knobs against a fine grid."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Ridge

import deft_tsds as dt
from deft_tsds.transport.knobs import RidgeProbe, learn_knobs
from deft_tsds.transport.pairs import Pairs

RNG = np.random.default_rng(0)
N, M, V, D, C = 400, 12, 60, 6, 3
CENTERS = RNG.normal(size=(2 * C, D))
# Classes 0 .. C-1 are the target's, the others are a task of their own; every tenth row is a near-copy.
LABELS = RNG.integers(2 * C, size=N)
X = (CENTERS[LABELS] + 0.6 * RNG.normal(size=(N, D))).astype(np.float32)
COPIES = np.arange(0, N, 10)
X[COPIES], LABELS[COPIES] = X[0] + 0.01 * RNG.normal(size=(len(COPIES), D)), LABELS[0]
HELD_LABELS, QUERY_LABELS = RNG.integers(C, size=V), RNG.integers(C, size=M)
HELD = (CENTERS[HELD_LABELS] + 0.6 * RNG.normal(size=(V, D))).astype(np.float32)
Q = (CENTERS[QUERY_LABELS] + 0.6 * RNG.normal(size=(M, D))).astype(np.float32)
PROBE = RidgeProbe.of(X, LABELS, HELD, HELD_LABELS, ridge=1e-2)
RANGE = (0.05, 1.5)


@pytest.fixture(scope="module")
def learned():
    return learn_knobs(X, Q, PROBE, key=jax.random.key(0), bandwidths=RANGE, neighbors=120)


def test_probe_is_the_weighted_ridge_of_scikit_learn():
    ids = np.arange(0, N, 3)
    p = RNG.random(len(ids))
    p /= p.sum()
    x, y = np.c_[X[ids], np.ones(len(ids))], (LABELS[ids][:, None] == np.arange(C)).astype(float)
    held, targets = np.c_[HELD, np.ones(V)], np.eye(C)[HELD_LABELS]
    peer = Ridge(alpha=1e-2, fit_intercept=False).fit(x, y, sample_weight=p)
    expected = np.mean(np.sum((targets - peer.predict(held)) ** 2, axis=1))
    assert float(PROBE(ids)(jnp.asarray(p, jnp.float32))) == pytest.approx(expected, rel=1e-4)
    numbers = RidgeProbe.of(X, np.eye(2 * C)[LABELS][:, :C], HELD, targets, ridge=1e-2)
    assert float(numbers(ids)(jnp.asarray(p, jnp.float32))) == pytest.approx(expected, rel=1e-4)


def test_probe_has_the_slope_of_central_differences():
    with jax.enable_x64(True):
        loss = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), PROBE(np.arange(50)))
        p, step = jnp.full(50, 0.02), 1e-6 * RNG.normal(size=50)
        slope = float(loss(p + step) - loss(p - step)) / 2
        assert float(jax.grad(loss)(p) @ step) == pytest.approx(slope, rel=1e-6)


def test_learned_knobs_are_no_worse_than_a_grid(learned):
    problem = dt.Problem.from_embeddings(X, Q, neighbors=120)
    pairs, loss = Pairs.of(problem, X, Q, reach=RANGE[1]), jax.jit(PROBE(problem.shortlist_U))
    losses = []
    for bandwidth in np.minimum(np.geomspace(*RANGE, 6), RANGE[1]):
        there = jax.tree.map(np.asarray, pairs.problem_at(bandwidth=bandwidth))
        for alpha in (0.05, 0.1, 0.2, 0.4, 0.6, 0.9):
            losses.append(float(loss(jnp.asarray(dt.tsds(there, alpha=alpha).weights_U, jnp.float32))))
    assert learned.loss <= min(losses) * 1.01
    assert learned.loss < np.median(losses) * 0.98  # so that there was something to learn
    assert len(learned.history) <= 32 + 8


def test_alpha_and_bandwidth_are_those_of_the_plan(learned):
    problem = dt.Problem.from_embeddings(X, Q, neighbors=120, bandwidth=learned.bandwidth)
    plan = dt.tsds(problem, alpha=learned.alpha, scale=learned.scale)
    np.testing.assert_allclose(plan.weights_U, learned.plan.weights_U, atol=1e-5)
    assert plan.info["s"] == pytest.approx(learned.s, rel=1e-4)
    assert not plan.info["exhausted"]
    assert RANGE[0] <= learned.bandwidth <= RANGE[1]
    best = min(learned.history, key=lambda each: each["loss"])
    assert learned.loss == best["loss"]
    assert learned.s <= best["s"] * (1 + 1e-5)


def test_the_same_key_and_any_differentiable_loss():
    target = np.zeros(N, np.float32)
    target[LABELS < C] = 1

    def loss_on(shortlist_U):
        wanted_U = jnp.asarray(target[shortlist_U])
        return lambda p_U: jnp.sum(p_U**2) - jnp.sum(p_U * wanted_U)

    one, two = (
        learn_knobs(X, Q, loss_on, key=jax.random.key(3), bandwidths=RANGE, neighbors=40, max_evaluations=6)
        for _ in range(2)
    )
    assert one.history == two.history
    assert one.alpha == two.alpha


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bandwidths": (0.5, 0.5)}, r"bandwidths\[1\]"),
        ({"starts": 0}, "starts is 0"),
        ({"max_evaluations": 4}, "max_evaluations is 4"),
        ({"loss_on": lambda ids: lambda p_U: jnp.sum(p_U) * jnp.nan}, "not finite"),
    ],
)
def test_bad_input(change, message):
    arguments = {"loss_on": PROBE, "bandwidths": RANGE, "key": jax.random.key(0), "neighbors": 40, **change}
    with pytest.raises(ValueError, match=message):
        learn_knobs(X, Q, **arguments)


def test_probe_refuses_what_does_not_go_together():
    with pytest.raises(ValueError, match="targets has shape"):
        RidgeProbe.of(X, LABELS[:-1], HELD, HELD_LABELS)
    with pytest.raises(ValueError, match="give both as labels"):
        RidgeProbe.of(X, LABELS, HELD, np.eye(C)[HELD_LABELS])
