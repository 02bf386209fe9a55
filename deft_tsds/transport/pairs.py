"""A problem as a differentiable function of the bandwidth and of where its points lie.

Which candidates are the neighbours of a query, and which near-duplicates of each other, is found once and stays. Given
these pairs, a distance is |q_i - x_j| and a density is rho_j = sum_k max(0, 1 - |x_j - x_k|^2 / h^2) over the pairs
(j, k): functions with derivatives in the embeddings and in h (in h they are smooth but where it meets a distance, and
continuous there). The pairs hold as long as h does not exceed the `reach` within which they were looked for, and the
points do not move so far that others come near; a derivative asks for no more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from deft_tsds.arrays import as_matrix, check_real, check_same_width, row_blocks
from deft_tsds.runs import track
from deft_tsds.transport.problem import Problem

# float32 products leave about this much of |x|^2 + |y|^2 in |x - y|^2: a pair at the rim of the reach is kept.
_ROUNDING = 1e-5


@dataclass(frozen=True, eq=False)
class Pairs:
    """The neighbourhoods of a problem, and the near-duplicates in its shortlist: P pairs. A pytree; all leaves.

    Attributes:
        problem: as it was built; `problem_at` is the same problem elsewhere.
        candidates_UxD: float32, embeddings of the shortlist.
        queries_MxD: float32, embeddings of the queries.
        left_P, right_P: int32, places in the shortlist, left < right, of all pairs within the reach.
        squares_P: float32, their squared distances.
        reach: the largest bandwidth that the pairs are enough for.

    Example:
        >>> candidates, queries = np.array([[0.0], [0.1], [1.0], [9.0]]), np.array([[0.0]])
        >>> problem = dt.Problem.from_embeddings(candidates, queries, bandwidth=0.5)
        >>> pairs = dt.Pairs.of(problem, candidates, queries, reach=0.5)
        >>> pairs.left_P, pairs.right_P
        (array([0], dtype=int32), array([1], dtype=int32))
    """

    problem: Problem
    candidates_UxD: Any
    queries_MxD: Any
    left_P: Any
    right_P: Any
    squares_P: Any
    reach: Any

    @classmethod
    def of(cls, problem: Problem, candidates: Any, queries: Any, *, reach: float) -> Pairs:
        """Look for the near-duplicates in the shortlist of a problem.

        Args:
            problem: made by `Problem.from_embeddings` from these candidates and queries.
            candidates: [N, D] real; may be a memory-map or a `Store`.
            queries: [M, D] real.
            reach: above 0, the largest bandwidth to be asked for. Takes U^2 D / 2 operations and 12 bytes a pair: far
                above the distance of near-duplicates, nearly all U^2 / 2 pairs are within reach.

        Raises:
            ValueError: bad rows, arrays that are not those of the problem, reach not above 0.
        """
        candidates_NxD, queries_MxD = as_matrix(candidates, "candidates"), as_matrix(queries, "queries")
        check_same_width(queries_MxD, candidates_NxD, "queries", "candidates")
        if (len(candidates_NxD), len(queries_MxD)) != (problem.size, len(problem.query_weights_M)):
            raise ValueError(
                f"there are {len(candidates_NxD)} candidates and {len(queries_MxD)} queries, but the problem has "
                f"{problem.size} and {len(problem.query_weights_M)}: give those that it was made from."
            )
        reach = check_real(reach, "reach", above=0.0)
        candidates_UxD = np.asarray(candidates_NxD[np.asarray(problem.shortlist_U)])
        left_P, right_P = _near(candidates_UxD, reach)
        squares_P = np.empty(len(left_P), np.float32)
        for part in row_blocks(len(left_P), row_bytes=8 * candidates_UxD.shape[1]):
            difference = candidates_UxD[left_P[part]] - candidates_UxD[right_P[part]]
            squares_P[part] = np.einsum("pd,pd->p", difference, difference)
        return cls(problem, candidates_UxD, queries_MxD, left_P, right_P, squares_P, reach)

    def problem_at(
        self, *, bandwidth: Any = None, candidates_UxD: Any = None, queries_MxD: Any = None, query_weights: Any = None
    ) -> Problem:
        """The problem for another bandwidth, other embeddings or other weights: differentiable in all of them.

        Memory is O(M K + P + U D), forward and backward. Neighbours keep their places when points move, so that a row
        of costs need not ascend. Outside of `jit` or `vmap` arguments are checked; within, a bandwidth above the reach
        makes the densities NaN.

        Args:
            bandwidth: h, a scalar; None leaves rho = 1.
            candidates_UxD: [U, D]; None is where they were.
            queries_MxD: [M, D]; None is where they were.
            query_weights: [M] at least 0, divided by their sum; None keeps those of the problem.

        Returns:
            Problem, in the precision of the arguments. At distance zero the derivative of a distance is taken as 0.

        Raises:
            ValueError: a bandwidth that is known and not above 0, or above the reach.
        """
        problem, moved = self.problem, candidates_UxD is not None or queries_MxD is not None
        x_UxD = jnp.asarray(self.candidates_UxD if candidates_UxD is None else candidates_UxD)
        q_MxD = jnp.asarray(self.queries_MxD if queries_MxD is None else queries_MxD)
        if moved:
            index_MxK = jnp.asarray(problem.index_MxK)
            rows_MxK = jnp.broadcast_to(jnp.arange(len(q_MxD))[:, None], index_MxK.shape)
            squares = _squares(q_MxD, x_UxD, rows_MxK.ravel(), index_MxK.ravel())
            away = squares > 0
            distances = jnp.where(away, jnp.sqrt(jnp.where(away, squares, 1)), 0)
            problem = replace(problem, costs_MxK=distances.reshape(index_MxK.shape))
        if query_weights is not None:
            weights_M = jnp.asarray(query_weights)
            problem = replace(problem, query_weights_M=weights_M / jnp.sum(weights_M))
        if bandwidth is None:
            return replace(problem, density_U=jnp.ones(len(x_UxD), x_UxD.dtype))
        if not isinstance(bandwidth, jax.core.Tracer):
            known = check_real(bandwidth, "bandwidth", above=0.0)
            if known > self.reach:
                raise ValueError(f"bandwidth is {known:g}, above the reach of {self.reach:g}: raise reach.")
        squares_P = jnp.asarray(self.squares_P)
        if candidates_UxD is not None:
            squares_P = _squares(x_UxD, x_UxD, jnp.asarray(self.left_P), jnp.asarray(self.right_P))
        kernel_P = jnp.maximum(0, 1 - squares_P / bandwidth**2)
        ones_U = jnp.ones(len(x_UxD), kernel_P.dtype)  # each candidate counts itself
        density_U = ones_U.at[jnp.asarray(self.left_P)].add(kernel_P).at[jnp.asarray(self.right_P)].add(kernel_P)
        return replace(problem, density_U=jnp.where(bandwidth <= self.reach, density_U, jnp.nan))


jax.tree_util.register_dataclass(
    Pairs,
    data_fields=["problem", "candidates_UxD", "queries_MxD", "left_P", "right_P", "squares_P", "reach"],
    meta_fields=[],
)


def _near(points_UxD: np.ndarray, reach: float) -> tuple[np.ndarray, np.ndarray]:
    """All pairs left < right that may lie within the reach."""
    squares_U = np.einsum("ud,ud->u", points_UxD, points_UxD)
    blocks = list(row_blocks(len(points_UxD), row_bytes=4 * len(points_UxD)))
    left, right = [], []
    for rows in track(blocks, "near-duplicates"):
        later = slice(rows.start, None)
        both = squares_U[rows, None] + squares_U[later]
        near = both - 2 * points_UxD[rows] @ points_UxD[later].T <= reach**2 + _ROUNDING * both
        row, column = np.nonzero(np.triu(near, 1))
        left.append((row + rows.start).astype(np.int32))
        right.append((column + rows.start).astype(np.int32))
    return np.concatenate(left), np.concatenate(right)


def _squares(x_AxD: jax.Array, y_BxD: jax.Array, left_P: jax.Array, right_P: jax.Array) -> jax.Array:
    """|x_left - y_right|^2 of P pairs, in difference form.

    Taken in batches as large as the points themselves: then neither the rows gathered nor, backward, the gradient of
    the points that each batch adds to, need more memory or work than the points and the pairs do anyway.
    """

    @jax.checkpoint
    def square(pair):
        difference_D = x_AxD[pair[0]] - y_BxD[pair[1]]
        return jnp.sum(difference_D * difference_D)

    return jax.lax.map(square, (left_P, right_P), batch_size=max(len(x_AxD), len(y_BxD)))
