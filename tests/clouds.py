"""What the tests of k-means share: point clouds, plain forms of the algorithm, the modules behind the public name."""

from __future__ import annotations

import importlib
from typing import Any

import jax
import numpy as np

# `deft_tsds.geometry.kmeans` as an attribute is the function
KMEANS: Any = importlib.import_module("deft_tsds.geometry.kmeans")
HOST: Any = importlib.import_module("deft_tsds.geometry.kmeans_host")
BOUNDS: Any = importlib.import_module("deft_tsds.geometry.kmeans_bounds")
MESH: Any = importlib.import_module("deft_tsds.geometry.kmeans_mesh")
PROGRAMS: Any = importlib.import_module("deft_tsds.geometry.kmeans_programs")
KEY = jax.random.key(0)


def mixture(n, d, clusters, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    centers = 3 * rng.normal(size=(clusters, d))
    return (centers[rng.integers(clusters, size=n)] + spread * rng.normal(size=(n, d))).astype(np.float32)


def overlapping(n, d, seed=0):
    """One round cloud of falling spectrum: labels go on changing for a hundred iterations."""
    return (np.random.default_rng(seed).normal(size=(n, d)) * np.geomspace(1, 0.1, d) + 1).astype(np.float32)


def inertia_of(points, labels, centroids):
    points, centroids = np.asarray(points, np.float64), np.asarray(centroids, np.float64)
    return float(((points - centroids[labels]) ** 2).sum())


def plain_lloyd(points, start, iterations):
    """Lloyd's iterations in float64, all distances each time; and how often the labels changed."""
    x, centroids, labels, changes = points.astype(np.float64), start.astype(np.float32), None, 0
    for _ in range(iterations):
        squares = ((x[:, None] - centroids.astype(np.float64)) ** 2).sum(-1)
        changes += labels is not None and np.any(squares.argmin(1) != labels)
        labels = squares.argmin(1)
        # float32 as ours, so that no label is decided by another rounding
        centroids = np.stack([x[labels == c].mean(0) for c in range(len(start))]).astype(np.float32)
    labels = ((x[:, None] - centroids.astype(np.float64)) ** 2).sum(-1).argmin(1)
    return centroids, labels, changes
