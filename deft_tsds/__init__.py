"""Which examples should I fine-tune on, how few are enough, and why these? Data selection as JAX programs.

    selection = dt.select(embeddings, selector=dt.selectors.DEFT(), budget=1000, key=jax.random.key(0))

Importing this needs NumPy and JAX alone: never flax, torch or transformers.
"""

from __future__ import annotations

from deft_tsds import selectors
from deft_tsds.cost import PlanCost, plan_cost
from deft_tsds.geometry.density import kernel_density
from deft_tsds.geometry.kmeans import KMeans, kmeans
from deft_tsds.geometry.neighbors import Neighbors, nearest_neighbors
from deft_tsds.incremental import reselect
from deft_tsds.sampling import sample
from deft_tsds.selection import Pool, Selection, select
from deft_tsds.shards import Shards, open_shards
from deft_tsds.transport import terms
from deft_tsds.transport.implicit import Optimum, optimum
from deft_tsds.transport.knobs import Learned, RidgeProbe, learn_knobs
from deft_tsds.transport.objective import Objective, Term
from deft_tsds.transport.pairs import Pairs
from deft_tsds.transport.path import path_ends, path_plan
from deft_tsds.transport.problem import Plan, Problem
from deft_tsds.transport.relaxed import relaxed_sample
from deft_tsds.transport.solve import solve, sweep
from deft_tsds.transport.tsds import tsds

__version__ = "0.1.0"

__all__ = [
    "KMeans",
    "Learned",
    "Neighbors",
    "Objective",
    "Optimum",
    "Pairs",
    "Plan",
    "PlanCost",
    "Pool",
    "Problem",
    "RidgeProbe",
    "Selection",
    "Shards",
    "Term",
    "__version__",
    "kernel_density",
    "kmeans",
    "learn_knobs",
    "nearest_neighbors",
    "open_shards",
    "optimum",
    "path_ends",
    "path_plan",
    "plan_cost",
    "relaxed_sample",
    "reselect",
    "sample",
    "select",
    "selectors",
    "solve",
    "sweep",
    "terms",
    "tsds",
]
