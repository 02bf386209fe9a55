"""Transport arms whose objectives differ in weights alone: one problem, solved for all of them side by side."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np

from deft_tsds.selectors import Transport
from deft_tsds.transport.objective import Objective
from deft_tsds.transport.problem import Plan, Problem
from deft_tsds.transport.solve import solve, sweep

_ENTRIES = 2**25  # weights x queries x neighbours held at once: 256 MiB an array


class SideBySide:
    """The plans of several transport selectors, for any part of the queries.

    Neighbourhoods and densities are found once, for all queries. A query that is left out has no weight, and so moves
    no mass; since the shapes stay the same, nothing is compiled a second time.
    """

    def __init__(self, embeddings_NxD: np.ndarray, queries_MxD: np.ndarray, selectors: Sequence[Transport]):
        """Take the selectors, which must be equal but for the weights of their objectives."""
        self._embeddings_NxD, self._queries_MxD, self._selectors = embeddings_NxD, queries_MxD, selectors
        self._last: tuple[Any, list[tuple[Plan, dict[str, Any]]]] = (None, [])

    def plan(self, place: int, left_out: np.ndarray) -> tuple[Plan, dict[str, Any]]:
        """The best plan for the selector at `place` without these queries, and its info (see `dt.solve`).

        Which selectors are solved together depends on all of them, and never on which plans have been asked for: a
        study that goes on after a kill gets the same numbers as one that was not killed.
        """
        count = len(self._selectors)
        m, k = np.shape(self._problem.costs_MxK)
        most = max(1, _ENTRIES // (m * k)) if self._selectors[0].cap is None else 1  # sweep knows no caps
        size = math.ceil(count / math.ceil(count / most))
        start = place - place % size
        mark = (start, left_out.tobytes())
        if self._last[0] != mark:
            together = self._selectors[start : start + size]
            self._last = (mark, self._solve(self._without(left_out), together))
        return self._last[1][place - start]

    def values(self, plan: Plan, left_out: np.ndarray, objective: Objective) -> dict[str, float]:
        """The terms of an objective at a plan, by name, without their weights."""
        with jax.enable_x64(True):
            bound, problem = objective.bind(**self._given), self._without(left_out)
            return {name: float(term(plan, problem)) for name, term in bound.terms.items()}

    def _solve(self, problem: Problem, together: Sequence[Transport]) -> list[tuple[Plan, dict[str, Any]]]:
        first = together[0]
        objective = first.objective.bind(**self._given)
        effort: dict[str, Any] = {"tolerance": first.tolerance, "max_iterations": first.max_iterations}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # not converged: info says so, and the caller passes it on
            if len(together) == 1:
                return [solve(problem, objective, cap=first.cap, **effort)]
            points = [each.objective.weights for each in together]
            weights: dict[str, Any] = {name: [point[name] for point in points] for name in objective.weights}
            # By one vmap where there is room for it, one after another where they would wait for each other's memory.
            lanes = 1 if jax.default_backend() == "cpu" else len(together)
            return sweep(problem, objective, lanes=lanes, **effort, **weights)

    @cached_property
    def _problem(self) -> Problem:
        first = self._selectors[0]
        return Problem.from_embeddings(
            self._embeddings_NxD,
            self._queries_MxD,
            neighbors=first.neighbors,
            bandwidth=first.bandwidth,
            density_over=first.density_over,
        )

    @cached_property
    def _given(self) -> dict[str, Any]:
        return {
            "candidates_UxD": np.asarray(self._embeddings_NxD[self._problem.shortlist_U]),
            "queries_MxD": np.asarray(self._queries_MxD),
            "pool_mean_D": np.mean(self._embeddings_NxD, axis=0, dtype=np.float64),
        }

    def _without(self, left_out: np.ndarray) -> Problem:
        weights_M = np.ones(len(self._problem.query_weights_M))
        weights_M[left_out] = 0
        return dataclasses.replace(self._problem, query_weights_M=weights_M / weights_M.sum())
