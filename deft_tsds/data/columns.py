"""Columns: what a term of an objective may be told of the candidates, each a function of the pool's examples.

A config names them as the options of a term: `Weighted(0.1, "linear", {"costs_N": "input_words"})`. An own one is any
function of this form, named as `module:function`.
"""

from __future__ import annotations

import numpy as np

from deft_tsds.data.examples import Examples


def input_words(examples: Examples) -> np.ndarray:
    """How many words the input has, in units of the pool's mean, [N]."""
    return _in_means([len(text.split()) for text in examples.inputs])


def target_words(examples: Examples) -> np.ndarray:
    """How many words the target has, in units of the pool's mean, [N]."""
    return _in_means([len(text.split()) for text in examples.targets])


def groups(examples: Examples) -> np.ndarray:
    """The group of each example as a number, groups in alphabetical order, int32 [N]."""
    return np.unique(np.array(examples.groups), return_inverse=True)[1].astype(np.int32)


def equal_shares(examples: Examples) -> np.ndarray:
    """The same share for each of the G groups, [G]."""
    count = len(set(examples.groups))
    return np.full(count, 1 / count)


def pool_shares(examples: Examples) -> np.ndarray:
    """The share of each of the G groups in the pool, [G]."""
    return np.bincount(groups(examples)) / len(examples)


def _in_means(counts: list[int]) -> np.ndarray:
    return np.array(counts) / max(np.mean(counts), 1.0)


COLUMNS = {function.__name__: function for function in (input_words, target_words, groups, equal_shares, pool_shares)}
