"""The relaxed draw against roots by scipy, enumerated laws, finite differences with common random numbers."""

from __future__ import annotations

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from deft_tsds.sampling import inclusion_probabilities
from deft_tsds.transport.relaxed import Law, relaxed_inclusion, relaxed_sample

P = np.array([0.28, 0.22, 0.18, 0.14, 0.1, 0.08])
N, B = len(P), 2
DRAWS = 20_000
KEYS = jax.random.split(jax.random.key(0), DRAWS)
LAWS = pytest.mark.parametrize("law", ["pareto", "gumbel"])


@partial(jax.jit, static_argnames=("budget", "law", "hard"))
def draw(p, key, temperature, budget=B, law: Law = "pareto", hard=False):
    return relaxed_sample(p, budget, key=key, temperature=temperature, law=law, hard=hard)


@partial(jax.jit, static_argnames=("law", "hard"))
def many(p, temperature, law="pareto", hard=False):
    return jax.vmap(lambda key: draw(p, key, temperature, law=law, hard=hard))(KEYS)


def sequences(p):
    """By ordered pair, the probability of drawing it one after another (Plackett-Luce)."""
    return {(i, j): p[i] * p[j] / (1 - p[i]) for i, j in itertools.permutations(range(N), 2)}


FEATURES = np.random.default_rng(0).normal(size=(N, 3))


def spread(u_N):
    """How far the mean of the drawn lies from a target: quadratic, so that rows in part count otherwise than whole."""
    return jnp.sum((u_N @ jnp.asarray(FEATURES) / B - 0.3) ** 2)


def exact_spread(p):
    p = p / p.sum()
    rows = [jnp.zeros(N).at[jnp.array(pair)].set(1) for pair in itertools.permutations(range(N), 2)]
    return sum(chance * spread(u) for chance, u in zip(sequences(p).values(), rows, strict=True))


@LAWS
def test_weights_sum_to_the_budget_and_lie_between_0_and_1(law):
    p = np.concatenate([P, [0.0, 0.0]]).astype(np.float32)
    for temperature in (5.0, 0.5, 0.01):
        for budget in (1, 3, 5):
            u = np.asarray(draw(p, KEYS[0], temperature, budget, law))
            assert u.sum() == pytest.approx(budget, rel=1e-5)
            assert u.min() >= 0
            assert u.max() <= 1
            np.testing.assert_array_equal(u[-2:], 0)


def test_weights_against_a_root_by_scipy():
    with jax.enable_x64(True):
        u = np.asarray(draw(P, KEYS[1], 0.4))
        pi = inclusion_probabilities(P, B)
        v = np.log(pi / (1 - pi)) + np.asarray(jax.random.logistic(KEYS[1], (N,), jnp.float64))
    t = brentq(lambda t: np.sum(1 / (1 + np.exp((t - v) / 0.4))) - B, v.min() - 50, v.max() + 50, xtol=1e-14)
    np.testing.assert_allclose(u, 1 / (1 + np.exp((t - v) / 0.4)), rtol=1e-10)


@LAWS
def test_falling_temperature_ends_in_the_hard_draw(law):
    for key in KEYS[:5]:
        hard = np.asarray(draw(P, key, 0.3, law=law, hard=True))
        assert sorted(hard) == pytest.approx([0, 0, 0, 0, 1, 1])
        np.testing.assert_allclose(draw(P, key, 1e-4, law=law), hard, atol=1e-3)


@pytest.mark.parametrize("p", [P, np.array([0.75, 0.1, 0.06, 0.04, 0.03, 0.02])])
@pytest.mark.parametrize("hard", [False, True])
@LAWS
def test_gradient_is_that_of_common_random_numbers(p, hard, law):
    """Straight-through rows have the gradient of the soft ones, at the hard value."""
    with jax.enable_x64(True):
        v = np.random.default_rng(1).normal(size=N)
        slopes = jax.grad(lambda p, t: draw(p, KEYS[2], t, law=law, hard=hard) @ v, argnums=(0, 1))(jnp.array(p), 0.5)

        def soft(p, t):
            return float(draw(p, KEYS[2], t, law=law) @ v)

        e = 1e-6
        for j in range(N):
            step = e * np.eye(N)[j]
            slope = (soft(p + step, 0.5) - soft(p - step, 0.5)) / (2 * e)
            assert float(slopes[0][j]) == pytest.approx(slope, rel=1e-5, abs=1e-7)
        slope = (soft(p, 0.5 + e) - soft(p, 0.5 - e)) / (2 * e)
        assert float(slopes[1]) == pytest.approx(slope, rel=1e-5, abs=1e-7)


def test_gradient_is_finite_where_rows_are_certain_or_impossible():
    p = jnp.array([0.9, 0.05, 0.05, 0.0, 0.0, 0.0])
    for law in ("pareto", "gumbel"):
        slopes = jax.grad(lambda p, law=law: draw(p, KEYS[0], 0.3, law=law)[1])(p)
        assert np.isfinite(slopes).all()
        np.testing.assert_array_equal(slopes[3:], 0)


def test_inclusion_is_that_of_sample():
    generator = np.random.default_rng(0)
    with jax.enable_x64(True):
        for power in (0.5, 2.0, 6.0):
            for budget in (1, 4, 17, 29):
                p = generator.random(30) ** power
                p /= p.sum()
                expected = inclusion_probabilities(p, budget)
                np.testing.assert_allclose(relaxed_inclusion(jnp.array(p), budget), expected, rtol=1e-9)
        slopes = jax.jacobian(lambda p: relaxed_inclusion(p, 3))(jnp.array([0.7, 0.1, 0.1, 0.05, 0.05]))
    np.testing.assert_array_equal(slopes[0], 0)  # a certain row stays certain
    np.testing.assert_allclose(np.asarray(slopes).sum(axis=0), 0, atol=1e-12)  # and the sum stays the budget


def test_gumbel_rows_come_as_often_as_in_the_enumeration_and_pareto_rows_as_in_sample():
    chances = np.zeros(N)
    for pair, chance in sequences(P).items():
        chances[list(pair)] += chance
    error = norm.ppf(1 - 1e-4 / (4 * N)) * np.sqrt(0.25 / DRAWS)
    np.testing.assert_allclose(many(P, 1.0, "gumbel", True).mean(axis=0), chances, atol=error)
    pi = inclusion_probabilities(P, B)
    np.testing.assert_allclose(many(P, 1.0, "pareto", True).mean(axis=0), pi, atol=error + 0.02)
    assert np.abs(chances - pi).max() > 0.03  # so that the two laws can be told apart here


def test_bias_falls_with_the_temperature():
    """Of the value and of the gradient, for the sequential law, whose expectation can be enumerated."""
    expected, slope = jax.value_and_grad(exact_spread)(jnp.array(P))
    found = jax.jit(
        jax.value_and_grad(
            lambda p, t, hard: jnp.mean(
                jax.vmap(spread)(
                    jax.vmap(lambda key: relaxed_sample(p, B, key=key, temperature=t, law="gumbel", hard=hard))(KEYS)
                )
            )
        ),
        static_argnums=2,
    )
    bias, slope_bias = {}, {}
    for temperature in (2.0, 0.5, 0.1):
        value, gradient = found(jnp.array(P), temperature, False)
        bias[temperature] = abs(float(value - expected))
        slope_bias[temperature] = float(jnp.linalg.norm(gradient - slope) / jnp.linalg.norm(slope))
    hard_value, hard_gradient = found(jnp.array(P), 0.5, True)
    hard = float(jnp.linalg.norm(hard_gradient - slope) / jnp.linalg.norm(slope))
    # The figures of the module's docstring, seen here: 0.39, 0.36, 0.14 and 0.60, 0.24, 0.06; hard 0.015 and 0.28.
    assert bias[2.0] > bias[0.5] > 2 * bias[0.1]
    assert slope_bias[2.0] > 2 * slope_bias[0.5] > 4 * slope_bias[0.1]
    assert slope_bias[0.1] < 0.1
    assert abs(float(hard_value - expected)) < 0.04  # chance alone
    assert slope_bias[0.5] < hard < 0.4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"law": "poisson"}, "law is 'poisson'"),
        ({"budget": 6}, "budget is 6"),
        ({"key": 0}, "key must be"),
        ({"probabilities": np.ones((2, 2), np.float32)}, "give a vector"),
    ],
)
def test_bad_input(change, message):
    arguments = {"probabilities": P, "budget": B, "key": KEYS[0], "temperature": 0.5, **change}
    with pytest.raises(ValueError, match=message):
        relaxed_sample(**arguments)
