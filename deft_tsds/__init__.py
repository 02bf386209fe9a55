"""Which examples should I fine-tune on, how few are enough, and why these? Data selection as JAX programs.

    selection = dt.select(embeddings, selector=dt.selectors.DEFT(), budget=1000, key=jax.random.key(0))

Importing this needs NumPy and JAX alone: never flax, torch or transformers.
"""

from __future__ import annotations

from deft_tsds import selectors, terms
from deft_tsds.cost import PlanCost, plan_cost
from deft_tsds.density import kernel_density
from deft_tsds.implicit import Optimum, optimum
from deft_tsds.kmeans import KMeans, kmeans
from deft_tsds.knobs import Learned, RidgeProbe, learn_knobs
from deft_tsds.neighbors import Neighbors, nearest_neighbors
from deft_tsds.objective import Objective, Term
from deft_tsds.pairs import Pairs
from deft_tsds.path import path_ends, path_plan
from deft_tsds.problem import Plan, Problem
from deft_tsds.relaxed import relaxed_sample
from deft_tsds.sampling import sample
from deft_tsds.selection import Pool, Selection, select
from deft_tsds.solve import solve, sweep

# `kmeans`, `solve` and `tsds` name a module and the function in it. A module becomes an attribute of the package when
# it is first loaded, so the functions, bound after that, are what `dt.kmeans`, `dt.solve` and `dt.tsds` mean.
from deft_tsds.tsds import tsds

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
    "Term",
    "__version__",
    "kernel_density",
    "kmeans",
    "learn_knobs",
    "nearest_neighbors",
    "optimum",
    "path_ends",
    "path_plan",
    "plan_cost",
    "relaxed_sample",
    "sample",
    "select",
    "selectors",
    "solve",
    "sweep",
    "terms",
    "tsds",
]
