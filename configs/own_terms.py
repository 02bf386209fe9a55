"""A term of one's own, named `own_terms:short_texts` in `configs/objective.py`: any function of plan and problem."""

import jax.numpy as jnp
import numpy as np

from deft_tsds.data.examples import Examples
from deft_tsds.transport.problem import Plan, Problem


def short_texts(plan: Plan, problem: Problem, *, words_N):
    """(sum_j p_j w_j - 1)_+^2: how far the chosen are longer, on average, than the pool, whose mean is 1. Convex."""
    mean = jnp.sum(plan.weights_U * jnp.asarray(words_N)[jnp.asarray(problem.shortlist_U)])
    return jnp.maximum(mean - 1, 0) ** 2


def prompt_words(examples: Examples) -> np.ndarray:
    """How many words the model has to read, in units of the pool's mean, [N]."""
    counts = np.array([len(text.split()) for text in examples.prompts])
    return counts / counts.mean()
