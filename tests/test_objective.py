from __future__ import annotations

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deft_tsds as dt
from deft_tsds.transport.terms import plan_of

RNG = np.random.default_rng(0)
PROBLEM = dt.Problem.from_embeddings(RNG.normal(size=(12, 3)), RNG.normal(size=(3, 3)), neighbors=5)
PLAN = plan_of(np.full((3, 5), 1 / 15, np.float32), PROBLEM)


def squares(plan, problem):
    return jnp.sum(plan.weights_U**2)


def priced(plan, problem, *, price_U, power):
    return jnp.sum(plan.weights_U**power * price_U)


def make(**weights):
    weights = {"align": 1.0, "mine": 0.3, **weights}
    return dt.Objective.of(align=(weights["align"], dt.terms.transport_cost), mine=(weights["mine"], squares))


def test_value_is_the_sum_of_its_parts():
    objective = make()
    parts = objective.parts(PLAN, PROBLEM)
    assert list(parts) == ["align", "mine"]
    assert float(parts["mine"]) == pytest.approx(0.3 * float(squares(PLAN, PROBLEM)))
    assert float(objective(PLAN, PROBLEM)) == pytest.approx(sum(float(part) for part in parts.values()))


def test_without_removes_and_with_weights_replaces_and_the_original_stays():
    objective = make()
    assert list(objective.without("mine").terms) == ["align"]
    other = objective.with_weights(mine=2.0)
    assert other.weights == {"align": 1.0, "mine": 2.0}
    assert objective.weights == {"align": 1.0, "mine": 0.3}
    with pytest.raises(AttributeError):
        objective.weights = {}  # type: ignore[misc]
    with pytest.raises(ValueError, match=r"^there is no term 'kde': the objective has align, mine\.$"):
        objective.without("kde")
    with pytest.raises(ValueError, match="no term 'kde'"):
        objective.with_weights(kde=1.0)
    with pytest.raises(ValueError, match="would be empty"):
        objective.without("align", "mine")


def test_equal_objectives_compile_once_and_others_anew():
    traced = []

    @jax.jit
    def value(objective, plan, problem):
        traced.append(1)
        return objective(plan, problem)

    first = value(make(), PLAN, PROBLEM)
    assert float(value(make(mine=0.6), PLAN, PROBLEM)) > float(first)
    prices = np.ones(len(PROBLEM.shortlist_U), np.float32)
    assert len(traced) == 1
    for scale in (1.0, 2.0):  # other numbers bound to a term, the same structure
        term = functools.partial(priced, price_U=scale * prices, power=2)
        value(dt.Objective.of(mine=(1.0, term)), PLAN, PROBLEM)
    assert len(traced) == 2
    value(dt.Objective.of(mine=(1.0, functools.partial(priced, price_U=prices, power=3))), PLAN, PROBLEM)
    assert len(traced) == 3
    value(make().without("mine"), PLAN, PROBLEM)
    assert len(traced) == 4


def test_gradients_with_respect_to_weights_and_bound_arrays():
    prices = np.linspace(0, 1, len(PROBLEM.shortlist_U), dtype=np.float32)
    objective = dt.Objective.of(mine=(0.5, functools.partial(priced, price_U=prices, power=2)))
    gradient = jax.grad(lambda objective: objective(PLAN, PROBLEM))(objective)
    assert float(gradient.weights["mine"]) == pytest.approx(float(np.sum(PLAN.weights_U**2 * prices)), rel=1e-6)
    np.testing.assert_allclose(gradient.terms["mine"].arguments["price_U"], 0.5 * PLAN.weights_U**2, rtol=1e-6)
    leaves, structure = jax.tree.flatten(objective)
    assert jax.tree.structure(jax.tree.unflatten(structure, [object()] * len(leaves))) == structure


def test_weights_may_be_mapped():
    values = jax.vmap(lambda weight: make().with_weights(mine=weight)(PLAN, PROBLEM))(jnp.array([0.0, 1.0]))
    assert float(values[1] - values[0]) == pytest.approx(float(squares(PLAN, PROBLEM)), rel=1e-5)


def test_bind_gives_terms_what_they_lack_and_leaves_what_they_have():
    prices = np.ones(len(PROBLEM.shortlist_U), np.float32)
    objective = dt.Objective.of(a=(1.0, functools.partial(priced, power=2)), b=(1.0, squares))
    bound = objective.bind(price_U=prices, power=3)
    assert bound.terms["a"].arguments["power"] == 2
    assert bound.terms["a"].arguments["price_U"] is prices
    assert bound.terms["b"].arguments == {}


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (lambda plan, problem: plan.weights_U, r"term 'mine' returned float32 \[\d+\]: a term returns one real number"),
        (lambda plan, problem: jnp.log(-1.0) * plan.mass_MxK.sum(), "term 'mine' is nan where every query"),
        (lambda plan, problem: jnp.int32(3), "term 'mine' returned int32"),
        (
            functools.partial(priced, power=2),
            r"term 'mine' needs price_U: bind what it needs, functools.partial\(priced",
        ),
    ],
)
def test_check_names_the_term(term, message):
    objective = dt.Objective.of(align=(1.0, dt.terms.transport_cost), mine=(1.0, term))
    with pytest.raises(ValueError, match=message):
        objective.check(PROBLEM)
    with pytest.raises(ValueError, match="term 'mine'"):
        dt.solve(PROBLEM, objective)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (1.0, "term 'mine' is 1.0: give a weight and a function"),
        ((1.0, 3), "term 'mine' is 3: give a function"),
        ((1.0, lambda plan: 0.0), "term 'mine', .* cannot be called as term"),
        ((1.0, functools.partial(cast(Any, squares), wrong=1)), "term 'mine', squares.* cannot be called as term"),
        ((1.0, functools.partial(squares, 1)), "term 'mine' is a partial with positional arguments"),
        ((float("nan"), squares), "weight of term 'mine' is nan: give a finite number"),
        (("much", squares), "weight of term 'mine' is 'much': give a number"),
        ((-1.0, dt.terms.kde_repulsion), "weight of term 'mine' is -1.0: kde_repulsion is convex"),
    ],
)
def test_bad_terms_and_weights_are_refused_by_name(pair, message):
    with pytest.raises(ValueError, match=message):
        dt.Objective.of(align=(1.0, dt.terms.transport_cost), mine=pair)


def test_linear_terms_and_own_terms_take_negative_weights():
    assert dt.Objective.of(a=(-1.0, dt.terms.transport_cost), b=(-0.5, squares)).weights == {"a": -1.0, "b": -0.5}
    with pytest.raises(ValueError, match="an objective needs terms"):
        dt.Objective.of()
