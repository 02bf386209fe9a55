"""The best plan for an objective, and a proof of how near to the best it is.

    min over gamma >= 0, sum_j gamma_ij = w_i     sum_t weight_t term_t(gamma)

Smooth terms are differentiated; kinked ones (`terms.KINKED`), a cap and a given marginal are regions, whose proximal
maps are exact (`deft_tsds.transport.projections`, `deft_tsds.transport.kinks`). The method and the certificate are in
`deft_tsds.transport.descent`. Transport cost and entropy with a cap or a given marginal are Sinkhorn's problem, and are
given to ott-jax (`deft_tsds.transport.sinkhorn`).

All of it is one float64 program: a relative gap of 1e-4 is a difference of sums over M K entries that agree to four
figures more than that, which float32 does not have.
"""

from __future__ import annotations

import functools
import operator
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deft_tsds.arrays import check_count, check_real
from deft_tsds.runs import track
from deft_tsds.transport import terms
from deft_tsds.transport.ahead import Trail
from deft_tsds.transport.descent import Found, Start, allowance, descend, even_start
from deft_tsds.transport.kinks import Box, Tv, TvBox
from deft_tsds.transport.objective import Objective
from deft_tsds.transport.problem import Plan, Problem
from deft_tsds.transport.projections import Both, Free, Marginal, Region

_PATIENCE = 4


def solve(
    problem: Problem,
    objective: Objective,
    *,
    tolerance: float = 1e-4,
    max_iterations: int = 2000,
    cap: float | None = None,
    marginal: Any = None,
) -> tuple[Plan, dict[str, Any]]:
    """Find the plan of least objective on the neighbourhoods of a problem.

    Args:
        problem: queries and neighbourhoods.
        objective: what to minimise. Several kinked terms (`terms.KINKED`), or one with cap or marginal, alternate
            between their maps within each step, which takes many times longer than one alone. For the two maxima at
            once the bound may stay up to 1% below the optimum: multipliers that share the costs out best are not found.
        tolerance: the gap to reach, relative to the value (to a thousandth of the value at the start, where the value
            itself comes closer to zero than that).
        max_iterations: how many steps to try at most.
        cap: the most that any p_j may be, such as 1/B: then B rows drawn without repeats can follow p. With transport
            cost and entropy alone, cap and marginal are Sinkhorn, at 16 M U bytes (or, where U is over 16 K, the
            descent); a step is then ten of its iterations.
        marginal: [N], what every p_j has to be; summing to 1, and 0 beyond the shortlist.

    Returns:
        Plan in float64, and its info, which holds
            value: the objective at the plan;
            parts: by name, weight times term;
            gap: how far the value may lie above the optimum, if all terms are convex (those of this package are);
            steps: how many steps were tried;
            violation: with cap or marginal, the sum over candidates of how far p_j is from where it may lie;
            converged: whether the gap, and the violation, are within the tolerance;
            message: one sentence for people.

    Raises:
        ValueError: a term that is no finite scalar at the start (see `Objective.check`), arguments out of range, a cap
            that leaves no room, a marginal of the wrong shape or sum.

    Warns:
        UserWarning: not converged; the message says how far.

    Example:
        >>> candidates, queries = np.array([[0.0], [0.1], [1.0], [9.0]]), np.array([[0.0]])
        >>> objective = dt.Objective.of(near=(1.0, dt.terms.transport_cost), spread=(0.5, dt.terms.entropy))
        >>> plan, info = dt.solve(dt.Problem.from_embeddings(candidates, queries), objective)
        >>> info["converged"], bool(plan.mass_MxK[0, 0] > plan.mass_MxK[0, 1])
        (True, True)
    """
    tolerance, max_iterations = _check_effort(tolerance, max_iterations)
    with jax.enable_x64(True):
        problem, objective = _in_float64((problem, objective))
        scale = _scale(objective, objective.check(problem))
        found = _find(problem, objective, _check_limit(problem, cap, marginal), scale, tolerance, max_iterations)
        return _answer(problem, objective, scale, tolerance, found)


def sweep(
    problem: Problem,
    objective: Objective,
    *,
    tolerance: float = 1e-4,
    max_iterations: int = 2000,
    lanes: int = 1,
    **weights: Any,
) -> list[tuple[Plan, dict[str, Any]]]:
    """Solve one objective for many weights by one compiled program (free marginals), `lanes` of them at once.

    Each descent begins where the optima of the weights before lead to (`deft_tsds.transport.ahead`); the certificate is
    that of `solve`, which does not look at the start. From a plan that is spread out to one that is not the way is
    short, and long in the other direction, where mass that has gone must come back. So both ends are solved first, and
    the sweep begins at the one of the larger entropy. A descent that takes longer than both ends did is begun again as
    `solve` begins.

    Args:
        problem, objective, tolerance, max_iterations: as in `solve`.
        lanes: how many weights to solve side by side, by vmap. On a CPU one after another is fastest: each then begins
            nearer to its end, and works in the cache. An accelerator that one problem leaves idle has room for more.
        weights: by name of a term, a vector of S weights; all of the same length.

    Returns:
        S pairs of Plan and info, as `solve` gives them, in the order of the weights; `steps` counts all that were
        tried. The plans take 8 S M K bytes.

    Raises:
        ValueError: as `solve`; no weights, or vectors of different lengths.

    Example:
        >>> candidates, queries = np.array([[0.0], [0.1], [1.0], [9.0]]), np.array([[0.0]])
        >>> objective = dt.Objective.of(near=(1.0, dt.terms.transport_cost), spread=(0.5, dt.terms.entropy))
        >>> found = dt.sweep(dt.Problem.from_embeddings(candidates, queries), objective, spread=[0.2, 0.5, 1.0])
        >>> [info["converged"] for plan, info in found]
        [True, True, True]
    """
    tolerance, max_iterations = _check_effort(tolerance, max_iterations)
    lanes = check_count(lanes, "lanes", 1)
    if not weights:
        raise ValueError("sweep needs weights: sweep(problem, objective, kde=[0.1, 1.0]).")
    lengths = {name: np.shape(values) for name, values in weights.items()}
    if len(set(lengths.values())) > 1 or any(len(shape) != 1 or shape == (0,) for shape in lengths.values()):
        raise ValueError(f"the weights have shapes {lengths}: give vectors of one length.")
    objective.with_weights(**weights)  # checks them
    points_SxW = np.stack([np.asarray(values, dtype=np.float64) for values in weights.values()], axis=1)
    with jax.enable_x64(True):
        problem, objective = _in_float64((problem, objective))
        even = objective.check(problem)
        answers: list[Any] = [None] * len(points_SxW)
        follow = _follow(problem, objective, even, tuple(weights), points_SxW, tolerance, max_iterations, lanes)
        for i, one, scale, found in follow:
            answers[i] = _answer(problem, one, scale, tolerance, found)
        return answers


def _follow(
    problem: Problem,
    objective: Objective,
    even: dict[str, float],
    names: tuple[str, ...],
    points_SxW: np.ndarray,
    tolerance: float,
    most: int,
    lanes: int,
) -> Iterator[tuple[int, Objective, float, Found]]:
    """For each point its place, its objective and scale, and where the descent from its neighbours' ends came to."""
    ones = [_at(objective, names, point_W) for point_W in points_SxW]
    scales = [_scale(one, even) for one in ones]
    scales_S = np.array(scales)

    def descend_at(places: list[int], starts: list[Start], most: int) -> list[Found]:
        rows = np.resize(np.arange(len(places)), lanes)  # as many each time, so that it compiles once
        points_LxW, scales_L = points_SxW[places][rows], scales_S[places][rows]
        begin = [starts[row] for row in rows]
        found = _descend_together(problem, objective, names, points_LxW, begin, scales_L, tolerance, most)
        return found[: len(places)]

    def entropy(found: Found) -> float:
        log_r_MxK = found.log_r_MxK
        return -float(jnp.vdot(problem.query_weights_M[:, None] * jnp.exp(log_r_MxK), log_r_MxK))

    order = np.lexsort(points_SxW.T[::-1]).tolist()
    cold = even_start(problem)
    ends = {i: descend_at([i], [cold], most)[0] for i in {order[0], order[-1]}}
    if entropy(ends[order[0]]) < entropy(ends[order[-1]]):
        order.reverse()
    patience = min(most, _PATIENCE * sum(int(found.count) for found in ends.values()))
    yield from ((i, ones[i], scales[i], found) for i, found in ends.items())

    trail, step = Trail().to(ends[order[0]].log_r_MxK, points_SxW[order[0]]), ends[order[0]].step
    between = order[1:-1]
    for first in track(range(0, len(between), lanes), "weights"):
        places = between[first : first + lanes]
        starts = [Start(trail.ahead(problem.query_weights_M, points_SxW[i]), step) for i in places]
        for i, found in zip(places, descend_at(places, starts, patience), strict=True):
            if patience <= int(found.count) < most:
                found = descend_at([i], [cold], most)[0]
                found = found._replace(count=found.count + patience)
            yield i, ones[i], scales[i], found
            trail, step = trail.to(found.log_r_MxK, points_SxW[i]), found.step


def _at(objective: Objective, names: tuple[str, ...], point_W: Any) -> Objective:
    """The objective with other weights, which may be traced."""
    return Objective({**objective.weights, **dict(zip(names, point_W, strict=True))}, objective.terms)


@functools.partial(jax.jit, static_argnames="names")
def _descend_together(
    problem: Problem, objective: Objective, names: tuple[str, ...], points_LxW, starts, scales_L, tolerance, most
) -> list[Found]:
    def one(point_W, start, scale):
        return descend(problem, *_split(problem, _at(objective, names, point_W), None), start, scale, tolerance, most)

    if len(starts) == 1:
        return [one(points_LxW[0], starts[0], scales_L[0])]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts)
    found_L = jax.vmap(one)(points_LxW, stacked, scales_L)
    return [jax.tree.map(operator.itemgetter(lane), found_L) for lane in range(len(starts))]


def _check_effort(tolerance: Any, max_iterations: Any) -> tuple[float, int]:
    return check_real(tolerance, "tolerance", above=0.0), check_count(max_iterations, "max_iterations", 1)


@jax.jit
def _in_float64(tree: Any) -> Any:
    """All that is no whole number, in one program: one for each leaf would take longer to compile than to run."""
    leaves, structure = jax.tree.flatten(tree)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    real = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
    cast = [leaf.astype(jnp.float64) if is_real else leaf for leaf, is_real in zip(leaves, real, strict=True)]
    return jax.tree.unflatten(structure, cast)


def _find(problem: Problem, objective: Objective, limit: Any, scale: float, tolerance: float, most: int) -> Found:
    """Sinkhorn where the objective is what that minimises, else the descent."""
    if limit is not None:
        from deft_tsds.transport.sinkhorn import Entropic, sinkhorn  # here, because ott takes seconds to import

        weights = Entropic.of(objective, problem)
        if weights is not None:
            limit_U, at_most = limit
            return sinkhorn(problem, weights, limit_U, scale, tolerance, most, at_most=bool(at_most))
    return descend(problem, *_split(problem, objective, limit), even_start(problem), scale, tolerance, most)


def _split(problem: Problem, objective: Objective, limit: Any) -> tuple[Objective, Region]:
    """The smooth terms, and the region that stands for the rest."""
    weights_M, k, n = problem.query_weights_M, problem.costs_MxK.shape[1], problem.size
    # A kinked term takes no arguments, so that two of one function are one of both weights.
    kinked: dict[Any, Any] = {}
    for name, term in objective.terms.items():
        if term.function in terms.KINKED:
            kinked[term.function] = kinked.get(term.function, 0.0) + objective.weights[name]
    smooth = [name for name, term in objective.terms.items() if term.function not in terms.KINKED]
    boxes = []
    for function, weight in kinked.items():
        if function is not terms.tv_deviation:
            inverse_U, total = terms.inverse_densities(problem, function)
            reference = jnp.full((), 1 / total, weights_M.dtype)
            least = reference if k < n else jnp.zeros_like(reference)
            boxes.append(Box(weights_M, inverse_U[problem.index_MxK], reference, least, weight))
    regions: list[Region] = list(boxes)
    if terms.tv_deviation in kinked:
        tv = Tv(weights_M, jnp.array(1 / n), jnp.array((n - k) / n), kinked[terms.tv_deviation])
        regions = [TvBox(tv, boxes[0]), *boxes[1:]] if boxes else [tv]
    if limit is not None:
        regions.append(Marginal(weights_M, problem.index_MxK, *limit))
    rest = Objective({key: objective.weights[key] for key in smooth}, {key: objective.terms[key] for key in smooth})
    return rest, functools.reduce(lambda last, first: Both(first, last), reversed(regions)) if regions else Free(
        weights_M
    )


def _check_limit(problem: Problem, cap: Any, marginal: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """What p_j is limited to, and whether it may be below that; None without limits."""
    if cap is None and marginal is None:
        return None
    u = len(problem.shortlist_U)
    if cap is not None and marginal is not None:
        raise ValueError("cap and marginal both decide what p_j may be: give one of them.")
    if cap is not None:
        cap = check_real(cap, "cap", above=0.0)
        if cap * u < 1:
            raise ValueError(f"cap is {cap:g}, but {u} candidates can then hold only {cap * u:g} of 1: raise it.")
        return np.full(u, cap), np.array(True)
    marginal_N = np.asarray(marginal, dtype=np.float64)
    if marginal_N.shape != (problem.size,):
        raise ValueError(
            f"marginal has shape {marginal_N.shape}: give one number for each of {problem.size} candidates."
        )
    if not (np.isfinite(marginal_N).all() and (marginal_N >= 0).all() and abs(marginal_N.sum() - 1) <= 1e-9):
        raise ValueError(f"marginal sums to {marginal_N.sum():g}: give finite numbers of at least 0 that sum to 1.")
    marginal_U = marginal_N[np.asarray(problem.shortlist_U)]
    if abs(marginal_U.sum() - 1) > 1e-9:
        raise ValueError(
            f"marginal gives {1 - marginal_U.sum():.3g} to candidates in no neighbourhood: raise "
            "neighbors, or give them 0."
        )
    return marginal_U, np.array(False)


@jax.jit
def _plan_and_parts(problem: Problem, objective: Objective, log_r_MxK: jax.Array) -> tuple[Plan, dict[str, Any]]:
    plan = terms.plan_of(problem.query_weights_M[:, None] * jnp.exp(log_r_MxK), problem)
    return plan, objective.parts(plan, problem)


def _scale(objective: Objective, even: dict[str, float]) -> float:
    """How large the value of the even plan is."""
    return abs(sum(float(objective.weights[name]) * value for name, value in even.items()))


def _answer(
    problem: Problem, objective: Objective, scale: float, tolerance: float, found: Found
) -> tuple[Plan, dict[str, Any]]:
    """What is handed out, on the host, and the warning where it is not what was asked for."""
    plan, parts = _plan_and_parts(problem, objective, found.log_r_MxK)
    value, violation = float(found.value), float(found.violation)
    gap = value - float(found.bound)
    allowed = float(allowance(value, scale, tolerance))
    info: dict[str, Any] = {
        "value": value,
        "parts": {name: float(parts[name]) for name in objective.terms},
        "gap": gap,
        "steps": int(found.count),
        "violation": violation,
        "converged": bool(gap <= allowed and violation <= tolerance and gap >= -allowed),
    }
    own = [name for name, term in objective.terms.items() if term.function not in terms.CONVEX]
    if info["converged"]:
        info["message"] = f"Within {max(gap, 0.0):.3g} of the optimum after {info['steps']} steps"
        info["message"] += f", if {', '.join(own)} is convex." if own else "."
    elif gap < -allowed and violation <= tolerance:
        info["message"] = (
            f"Not proven: a value {-gap:.3g} below its lower bound was found, so that the objective is not convex"
            f"{' (look at ' + ', '.join(own) + ')' if own else ''}, and the gap means nothing."
        )
    else:
        beyond = violation > tolerance
        said = [] if gap <= allowed else [f"the value, {value:.6g}, may lie up to {gap:.3g} above the optimum"]
        said += [f"p is off its limits by {violation:.3g} in sum"] if beyond else []
        info["message"] = (
            f"Not converged: after {info['steps']} steps {' and '.join(said)}. Raise max_iterations or tolerance"
            f"{', or neighbors, without which no plan may keep to the limits' if beyond else ''}."
        )
    if not info["converged"]:
        warnings.warn(info["message"], stacklevel=3)
    mass_MxK, weights_U, shortlist_U = (np.asarray(x) for x in (plan.mass_MxK, plan.weights_U, plan.shortlist_U))
    return Plan(mass_MxK, weights_U, shortlist_U, plan.size, info), info
