"""Every public name has a docstring with shapes and an example, and the examples do what they say."""

from __future__ import annotations

import doctest
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import deft_tsds as dt

NAMES = [name for name in dt.__all__ if name != "__version__"]
FLAGS = doctest.NORMALIZE_WHITESPACE

# Functions and classes whose values are no arrays, or whose arrays are those of what they hold.
SHAPELESS = {"Learned", "Objective", "Optimum", "PlanCost", "Term", "path_ends", "plan_cost", "selectors", "sweep"}


def documented(name):
    text = getattr(dt, name).__doc__ or ""
    return inspect.cleandoc(text)


@pytest.mark.parametrize("name", NAMES)
def test_the_example_does_what_it_says(name):
    modules = {"dt": dt, "jax": jax, "jnp": jnp, "np": np}
    example = doctest.DocTestParser().get_doctest(documented(name), modules, f"dt.{name}", None, None)
    assert example.examples, f"dt.{name} has no example: give it one of a few lines, with small arrays."
    said: list[str] = []
    failed, _ = doctest.DocTestRunner(optionflags=FLAGS).run(example, out=said.append)
    assert not failed, "".join(said)


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_says_shapes(name):
    text = documented(name)
    letters = r"\[[A-Z](, [A-Z])*\]|[A-Z] x [A-Z]|_[A-Z](x[A-Z])*\b"
    assert name in SHAPELESS or re.search(letters, text), f"dt.{name}: say the shapes, such as [N, D]."
