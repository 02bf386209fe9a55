"""Small pools that the tests of several selectors share."""

import jax
import numpy as np

KEY = jax.random.key(0)
N, D = 60, 5


def pool_of(n=N, seed=0, d=D):
    rng = np.random.default_rng(seed)
    centers = 2 * rng.normal(size=(3, d))
    candidates = (centers[rng.integers(3, size=n)] + rng.normal(size=(n, d))).astype(np.float32)
    queries = (candidates[:4] + 0.1 * rng.normal(size=(min(4, n), d))).astype(np.float32)
    return candidates, queries, np.array([f"task {i}" for i in rng.integers(3, size=n)])


def unequal_pool():
    """Three directions with 40, 16 and 4 rows."""
    rng = np.random.default_rng(3)
    directions = np.repeat(np.eye(3), [40, 16, 4], axis=0)
    return (directions + 0.05 * rng.normal(size=(60, 3))).astype(np.float32)
