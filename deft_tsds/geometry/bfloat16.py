"""Scores by products in bfloat16, which some processors make several times as fast as float32 ones, with a bound on
their error: enough to rule pairs out, never to rank them."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_ROUNDING = 2.0**-8  # to the nearest of 8 bits
_FLUSHED = 2.0**-126  # what is smaller may count as zero


@cache
def is_fast() -> bool:
    """Whether the host has AMX, on which XLA makes these products."""
    cpus = Path("/proc/cpuinfo")
    return cpus.exists() and " amx_bf16" in cpus.read_text()


def rounded(left_TxD: np.ndarray) -> np.ndarray:
    """A left factor as the products take it."""
    return left_TxD.astype(jnp.bfloat16)


def error(left_TxD: np.ndarray, norm: float) -> np.ndarray:
    """A bound on what rounding both factors changes in the products with rows of at most this norm, float64 [T].

    a.x - a'.x' = (a - a').x + a'.(x - x'), each at most a product of norms; a - a' is at hand.
    """
    near_TxD = rounded(left_TxD).astype(np.float64)
    flushed = math.sqrt(left_TxD.shape[1]) * _FLUSHED
    lost_T = np.linalg.norm(left_TxD - near_TxD, axis=1) + flushed
    return lost_T * norm + np.linalg.norm(near_TxD, axis=1) * (_ROUNDING * norm + flushed)


@jax.jit
def scores(left_TxD: jax.Array, right_CxD: jax.Array, added_C: jax.Array) -> jax.Array:
    """left right' + added, float32 [T, C], of a rounded left factor and a float32 right one."""
    contracted = (((1,), (1,)), ((), ()))
    product_TxC = lax.dot_general(
        left_TxD, right_CxD.astype(jnp.bfloat16), contracted, preferred_element_type=jnp.float32
    )
    return product_TxC + added_C
