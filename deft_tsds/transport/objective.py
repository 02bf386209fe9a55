"""An objective: a weighted sum of named terms on a transport plan, and a pytree.

Weights and the numbers that a term was given are leaves: an objective may pass through jit, grad and vmap, and one with
other weights runs what was compiled for the first. Names and functions are the structure: leaving a term out is a
program of its own, in which the term is not computed, and not a weight of zero.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from deft_tsds.transport import terms
from deft_tsds.transport.problem import Plan, Problem

_LEAVES = (np.ndarray, np.floating, jax.Array, float)


@jax.tree_util.register_pytree_node_class
class Term:
    """A function `function(plan, problem, **arguments) -> scalar` with its arguments. A pytree.

    Arrays and floats among the arguments are leaves, so that other values do not recompile; everything else (an int, a
    string, None) belongs to the structure and must be hashable.

    Example:
        >>> candidates, queries = np.array([[0.0], [0.1], [1.0], [9.0]]), np.array([[0.0]])
        >>> plan = dt.tsds(dt.Problem.from_embeddings(candidates, queries), alpha=1.0)
        >>> lengths = dt.Term(dt.terms.linear, {"costs_N": np.array([7.0, 8.0, 9.0, 10.0])})
        >>> float(lengths(plan, dt.Problem.from_embeddings(candidates, queries)))
        7.0
    """

    def __init__(self, function: Callable[..., Any], arguments: Mapping[str, Any] | None = None):
        self.function = function
        self.arguments = dict(arguments or {})
        self._leaves = tuple(sorted(name for name, value in self.arguments.items() if isinstance(value, _LEAVES)))

    def __call__(self, plan: Plan, problem: Problem) -> Any:
        return self.function(plan, problem, **self.arguments)

    def __repr__(self) -> str:
        bound = "".join(f", {name}=..." for name in self.arguments)
        return f"Term({getattr(self.function, '__name__', self.function)}{bound})"

    def parameters(self) -> set[str]:
        """The names of arguments that the function takes beyond plan and problem."""
        names = list(inspect.signature(self.function).parameters.values())[2:]
        return {parameter.name for parameter in names}

    def tree_flatten(self):
        rest = tuple(sorted((name, value) for name, value in self.arguments.items() if name not in self._leaves))
        return [self.arguments[name] for name in self._leaves], (self.function, self._leaves, rest)

    @classmethod
    def tree_unflatten(cls, structure, leaves):
        # A transformation may put anything in the place of a leaf, so that its type decides nothing any more.
        function, names, rest = structure
        term = cls(function, dict(zip(names, leaves, strict=True)) | dict(rest))
        term._leaves = names
        return term


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, eq=False)
class Objective:
    """sum_t weight_t term_t(plan, problem), to be minimised. Made by `Objective.of`; frozen, a pytree.

    Attributes:
        weights: by name, numbers (leaves).
        terms: by name, `Term` or `functools.partial` or function, as they were given.

    Example:
        >>> objective = dt.Objective.of(near=(1.0, dt.terms.transport_cost), spread=(0.1, dt.terms.entropy))
        >>> list(objective.weights), list(objective.without("spread").weights)
        (['near', 'spread'], ['near'])
    """

    weights: dict[str, Any]
    terms: dict[str, Term]

    @classmethod
    def of(cls, **weighted: tuple[Any, Callable[..., Any] | Term]) -> Objective:
        """Make an objective: `Objective.of(align=(1.0, dt.terms.transport_cost), kde=(0.5, dt.terms.kde_repulsion))`.

        Args:
            weighted: by name, a weight and a term: a function of plan and problem, a `functools.partial` of one that
                has its other arguments, or a `Term`.

        Raises:
            ValueError: no terms; something else than a pair; a weight that is not finite, or is negative where the term
                is convex and not linear; a term that cannot be called with plan and problem.
        """
        if not weighted:
            raise ValueError("an objective needs terms: Objective.of(align=(1.0, dt.terms.transport_cost)).")
        weights, kept = {}, {}
        for name, pair in weighted.items():
            if not (isinstance(pair, tuple) and len(pair) == 2):
                raise ValueError(f"term {name!r} is {pair!r}: give a weight and a function, (1.0, my_term).")
            kept[name] = _as_term(name, pair[1])
            weights[name] = _check_weight(name, pair[0], kept[name])
        return cls(weights, kept)

    def __call__(self, plan: Plan, problem: Problem) -> jax.Array:
        """The value at a plan, a scalar."""
        return sum(self.parts(plan, problem).values(), jnp.zeros(()))

    def parts(self, plan: Plan, problem: Problem) -> dict[str, Any]:
        """By name, weight times term; they add up to the value."""
        return {name: self.weights[name] * term(plan, problem) for name, term in self.terms.items()}

    def without(self, *names: str) -> Objective:
        """The objective without these terms, which are then not computed at all."""
        self._check_names(names)
        kept = [name for name in self.terms if name not in names]
        if not kept:
            raise ValueError("without these terms the objective would be empty: keep at least one.")
        return Objective({name: self.weights[name] for name in kept}, {name: self.terms[name] for name in kept})

    def with_weights(self, **weights: Any) -> Objective:
        """The objective with other weights for some of its terms."""
        self._check_names(weights)
        checked = {name: _check_weight(name, weight, self.terms[name]) for name, weight in weights.items()}
        return replace(self, weights=self.weights | checked)

    def bind(self, **arguments: Any) -> Objective:
        """The objective with these arguments given to every term that takes one of the name and does not have it yet.

        Embeddings of a shortlist are known only once the problem is; a selector binds them then.
        """
        bound = {}
        for name, term in self.terms.items():
            missing = {key: arguments[key] for key in term.parameters() & arguments.keys() - term.arguments.keys()}
            bound[name] = Term(term.function, term.arguments | missing)
        return replace(self, terms=bound)

    def check(self, problem: Problem) -> dict[str, float]:
        """By name, each term where every query spreads its mass evenly.

        Raises:
            ValueError: one of them is no finite scalar, or lacks an argument; the message names it.
        """
        for name, term in self.terms.items():
            missing = [
                key
                for key, parameter in list(inspect.signature(term.function).parameters.items())[2:]
                if parameter.default is parameter.empty
                and parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
                and key not in term.arguments
            ]
            if missing:
                raise ValueError(
                    f"term {name!r} needs {', '.join(missing)}: bind what it needs, "
                    f"functools.partial({_name(term.function)}, {missing[0]}=...)."
                )
        values = _at_even_plan(self, problem)
        for name, value in values.items():
            shape, dtype = np.shape(value), getattr(value, "dtype", np.asarray(value).dtype)
            if shape != () or not jnp.issubdtype(dtype, jnp.floating):
                raise ValueError(f"term {name!r} returned {dtype} {list(shape)}: a term returns one real number.")
            if not math.isfinite(float(value)):
                raise ValueError(
                    f"term {name!r} is {float(value)} where every query spreads its mass evenly: look for a logarithm "
                    "or a division of zero in it, and for NaN in what it was given."
                )
        return {name: float(value) for name, value in values.items()}

    def _check_names(self, names: Any) -> None:
        for name in names:
            if name not in self.terms:
                raise ValueError(f"there is no term {name!r}: the objective has {', '.join(self.terms)}.")

    def tree_flatten(self):
        names = tuple(self.terms)
        return [[self.weights[name] for name in names], [self.terms[name] for name in names]], names

    @classmethod
    def tree_unflatten(cls, names, children):
        weights, kept = children
        return cls(dict(zip(names, weights, strict=True)), dict(zip(names, kept, strict=True)))


@jax.jit
def _at_even_plan(objective: Objective, problem: Problem) -> dict[str, Any]:
    m, k = problem.costs_MxK.shape
    weights_M = jnp.asarray(problem.query_weights_M)
    plan = terms.plan_of(jnp.broadcast_to(weights_M[:, None] / k, (m, k)), problem)
    values = {}
    for name, term in objective.terms.items():
        try:
            values[name] = term(plan, problem)
        except Exception as error:
            error.add_note(f"This came from term {name!r} of the objective.")
            raise
    return values


def _name(function: Any) -> str:
    return getattr(function, "__name__", repr(function))


def _as_term(name: str, given: Any) -> Term:
    if isinstance(given, Term):
        term = given
    elif isinstance(given, functools.partial):
        if given.args:
            raise ValueError(f"term {name!r} is a partial with positional arguments: bind keywords alone.")
        term = Term(given.func, given.keywords)
    elif callable(given):
        term = Term(given)
    else:
        raise ValueError(f"term {name!r} is {given!r}: give a function of plan and problem.")
    signature = inspect.signature(term.function)
    try:
        signature.bind_partial(None, None, **term.arguments)
    except TypeError as error:
        raise ValueError(
            f"term {name!r}, {_name(term.function)}{signature}, cannot be called as term(plan, problem, **arguments): "
            f"{error}."
        ) from error
    return term


def _check_weight(name: str, weight: Any, term: Term) -> Any:
    if isinstance(weight, jax.core.Tracer):
        return weight  # inside a transformation there is no value to look at
    try:
        values = np.asarray(weight, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the weight of term {name!r} is {weight!r}: give a number.") from error
    if not np.isfinite(values).all():
        raise ValueError(f"the weight of term {name!r} is {weight}: give a finite number.")
    if (values < 0).any() and term.function in terms.CONVEX - terms.LINEAR:
        raise ValueError(
            f"the weight of term {name!r} is {weight}: {_name(term.function)} is convex, and with a negative weight "
            "the objective would not be. Give at least 0, or leave the term out with without()."
        )
    return float(values) if values.ndim == 0 else weight
