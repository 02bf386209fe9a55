"""Learn the knobs of TSDS, alpha and the bandwidth, from what they are for: the loss on held-out target examples.

    min over s, h   L(p(s, h))        p(s, h) the optimum of problem RT, `deft_tsds.transport.path`

Bilevel: L trains a small probe on the candidates, weighted by p, and returns its loss on examples that the selection
has not seen. Both levels are differentiable, so that one evaluation gives the loss and its slope in both knobs. The
search is L-BFGS-B (scipy) in the unit square of

    a = log(s / s_first) / log(s_last / s_first)      b = log(h / h_low) / log(h_high / h_low)

whose every point is an optimum of RT within the K neighbours. Alpha itself has no useful derivative
(`deft_tsds.transport.path` says why, and what the blur is for); it is read off the path at each point, tau = F(s) and
alpha = C / (C + tau), and of all points looked at, the one whose plan by `dt.tsds` has the least loss is handed out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from scipy.optimize import minimize

from deft_tsds.arrays import as_matrix, check_count, check_real, check_same_width
from deft_tsds.sampling import generator_of
from deft_tsds.transport.closed_form import optima
from deft_tsds.transport.pairs import Pairs
from deft_tsds.transport.path import path_ends, path_plan
from deft_tsds.transport.problem import Plan, Problem
from deft_tsds.transport.tsds import tsds

_EXACT = jax.lax.Precision.HIGHEST
# The loss at a point of the search is good to about this much in float32: less than that is no progress.
_PROGRESS = 1e-5


@dataclass(frozen=True, eq=False)
class Learned:
    """Knobs that were learned, and the plan that `dt.tsds` gives with them.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x, queries, held_out = rng.normal(size=(60, 3)), rng.normal(size=(3, 3)), rng.normal(size=(20, 3))
        >>> probe = dt.RidgeProbe.of(x, x[:, :1], held_out, held_out[:, :1])
        >>> search = {"bandwidths": (0.5, 2.0), "neighbors": 20, "starts": 1, "max_evaluations": 2}
        >>> learned = dt.learn_knobs(x, queries, probe, key=jax.random.key(0), **search)
        >>> 0 < learned.alpha <= 1, 0.5 <= learned.bandwidth <= 2.0, learned.plan.size
        (True, True, 60)
    """

    alpha: float
    scale: float
    bandwidth: float
    s: float
    """Where on the path the plan is: about how many distinct neighbours each query spreads over."""
    loss: float
    """Of the plan."""
    plan: Plan
    history: list[dict[str, float]]
    """Every point looked at, in its order: s, bandwidth, blurred_loss (what the search sees), alpha, and the loss of
    the plan of that alpha and bandwidth."""


def learn_knobs(
    candidates: Any,
    queries: Any,
    loss_on: Callable[[np.ndarray], Callable[[jax.Array], Any]],
    *,
    key: jax.Array,
    bandwidths: tuple[float, float],
    neighbors: int = 1000,
    scale: float = 5.0,
    query_weights: Any = None,
    blur: float = 0.2,
    starts: int = 4,
    max_evaluations: int = 32,
) -> Learned:
    """Choose alpha and the bandwidth by gradient such that a loss of the plan's probabilities is least.

        probe = dt.RidgeProbe.of(x, labels, held_out, held_out_labels)
        learned = dt.learn_knobs(x, queries, probe, bandwidths=(0.1, 0.9), key=jax.random.key(0))
        selector = dt.selectors.TSDS(alpha=learned.alpha, bandwidth=learned.bandwidth, neighbors=1000)

    The held-out examples decide: keep a test set that neither they nor the queries touch, for what is reported.

    Args:
        candidates: [N, D] real; may be a memory-map or a `Store`.
        queries: [M, D] real, examples of the target.
        loss_on: from the ids of the shortlist [U] to the loss, a differentiable function of p_U that runs inside of
            `jit`; such as a `RidgeProbe`. One that holds large arrays is best a `jax.tree_util.Partial`.
        key: for the points to start from.
        bandwidths: the lowest and the highest h, 0 < low < high. Memory grows with the pairs within the highest.
        neighbors: K; the search ends where K neighbours no longer hold an optimum.
        scale: C that the alpha is meant for.
        query_weights: as in `Problem.from_embeddings`.
        blur: b > 0 of the path during the search.
        starts: how many points to look at first, the middle of the square and random ones; then a descent begins from
            the best of them, and when it ends from the next.
        max_evaluations: about how many evaluations of the loss at most; a line search that has begun is finished.

    Returns:
        Learned; the best plan seen.

    Raises:
        ValueError: bad rows or arguments, or a loss that is not finite.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x, queries, held_out = rng.normal(size=(60, 3)), rng.normal(size=(3, 3)), rng.normal(size=(20, 3))
        >>> probe = dt.RidgeProbe.of(x, x[:, :1], held_out, held_out[:, :1])
        >>> search = {"bandwidths": (0.5, 2.0), "neighbors": 20, "starts": 1, "max_evaluations": 2}
        >>> learned = dt.learn_knobs(x, queries, probe, key=jax.random.key(0), **search)
        >>> learned.loss <= learned.history[0]["loss"]
        True
    """
    starts = check_count(starts, "starts", 1)
    max_evaluations = check_count(max_evaluations, "max_evaluations", starts + 1)
    low = check_real(bandwidths[0], "bandwidths[0]", above=0.0)
    high = check_real(bandwidths[1], "bandwidths[1]", above=low)
    blur, scale = check_real(blur, "blur", above=0.0), check_real(scale, "scale", above=0.0)
    generator = generator_of(key)
    problem = Problem.from_embeddings(candidates, queries, neighbors=neighbors, query_weights=query_weights)
    pairs = Pairs.of(problem, candidates, queries, reach=high)
    loss = loss_on(np.asarray(problem.shortlist_U))
    loss = loss if isinstance(loss, Partial) else Partial(loss)
    on_device = jax.device_put((pairs, loss))
    points, history = [], []
    best: list[tuple[dict[str, float], Plan]] = []

    def evaluate(place):
        (value, (s, h)), slope = _loss_and_slope(jnp.asarray(place, jnp.float32), *on_device, low, high, blur)
        if not (np.isfinite(value) and np.isfinite(slope).all()):
            raise ValueError(f"the loss at s = {s:g}, bandwidth = {h:g} is {value:g}, or its slope is not finite.")
        points.append(np.array(place))
        alpha, plan_here = _plan_at(pairs, float(s), float(h), scale)
        here = {"s": float(s), "bandwidth": float(h), "blurred_loss": float(value), "alpha": alpha}
        here["loss"] = float(_loss(on_device[1], jnp.asarray(plan_here.weights_U, jnp.float32)))
        history.append(here)
        if not best or here["loss"] < best[0][0]["loss"]:
            best[:] = [(here, plan_here)]
        return float(value), np.asarray(slope, np.float64)

    for place in [np.full(2, 0.5), *generator.random((starts - 1, 2))]:
        evaluate(place)
    size = abs(history[0]["blurred_loss"]) or 1.0  # the stopping rules suppose values of the order of 1
    for start in np.argsort([each["blurred_loss"] for each in history]):
        if (left := max_evaluations - len(history)) < 1:
            break
        minimize(
            lambda place: tuple(part / size for part in evaluate(place)),
            points[start],
            jac=True,
            method="L-BFGS-B",
            bounds=[(0, 1)] * 2,
            options={"maxfun": left, "maxls": 8, "ftol": _PROGRESS, "gtol": _PROGRESS},
        )
    [(found, plan)] = best
    return Learned(found["alpha"], scale, found["bandwidth"], plan.info["s"], found["loss"], plan, history)


def _plan_at(pairs: Pairs, s: float, bandwidth: float, scale: float) -> tuple[float, Plan]:
    """Read alpha off the path, and the plan that it stands for: the optimum at s or at the level below."""
    problem = jax.tree.map(np.asarray, pairs.problem_at(bandwidth=bandwidth))
    path = optima(problem, "kde")
    tau, _ = path.along(min(s, path.end()))
    # A hair below F(s) the smallest level is the same, and rounding of alpha cannot lead to the next one.
    alpha = scale / (scale + tau * (1 - 1e-9))
    return alpha, tsds(problem, alpha=alpha, scale=scale)


@jax.jit
def _loss(loss: Partial, weights_U: jax.Array) -> jax.Array:
    return loss(weights_U)


@partial(jax.jit, static_argnames="blur")
@partial(jax.value_and_grad, has_aux=True)
def _loss_and_slope(place: jax.Array, pairs: Pairs, loss: Partial, low: Any, high: Any, blur: float):
    """The loss at a point of the unit square, and which s and bandwidth it stands for."""
    bandwidth = jnp.minimum(low * (high / low) ** place[1], pairs.reach)
    problem = pairs.problem_at(bandwidth=bandwidth)
    first, last = path_ends(problem)
    s = first * (last / first) ** place[0]
    return loss(path_plan(problem, s, blur=blur).weights_U), (s, bandwidth)


@dataclass(frozen=True, eq=False)
class RidgeProbe:
    """Ridge regression on candidates weighted by p, and its loss on held-out examples: a `loss_on`. Made by `of`.

        W = argmin sum_j p_j |y_j - W^T x_j|^2 + ridge |W|^2 = (X^T P X + ridge)^-1 X^T P Y
        L = mean over held-out examples of |y - W^T x|^2

    x [N, D] and [V, D] with a 1 appended, y [N, C] and [V, C]. In closed form, so that the derivative through the
    training is exact; U D^2 operations.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x, held_out = rng.normal(size=(40, 3)), rng.normal(size=(20, 3))
        >>> probe = dt.RidgeProbe.of(x, x[:, :1], held_out, held_out[:, :1])  # the target is the first coordinate
        >>> loss = probe(np.arange(40))
        >>> bool(loss(jnp.full(40, 1 / 40)) < 1e-3)
        True
    """

    candidates_NxD: Any
    targets: Any
    held_out_VxD: Any
    held_out_targets_VxC: Any
    classes_C: Any
    ridge: float

    @classmethod
    def of(
        cls, candidates: Any, targets: Any, held_out: Any, held_out_targets: Any, *, ridge: float = 1e-3
    ) -> RidgeProbe:
        """Check and keep what the probe learns from.

        Args:
            candidates: [N, D] real; may be a memory-map or a `Store`.
            targets: [N, C] real numbers to predict, or [N] labels: then y_c is 1 for class c and 0 else, and a label
                that no held-out example has, such as those of another task, is 0 in all classes.
            held_out: [V, D] real, examples of the target that are not among the queries.
            held_out_targets: [V, C] or [V], as `targets`.
            ridge: above 0; p sums to 1, so that it compares with the mean square of an embedding's entries.

        Raises:
            ValueError: shapes that do not go together, targets that are not finite, ridge not above 0.
        """
        candidates_NxD, held_out_VxD = as_matrix(candidates, "candidates"), as_matrix(held_out, "held_out")
        check_same_width(held_out_VxD, candidates_NxD, "held_out", "candidates")
        targets, held_out_targets = np.asarray(targets), np.asarray(held_out_targets)
        for name, given, rows in (
            ("targets", targets, len(candidates_NxD)),
            ("held_out_targets", held_out_targets, len(held_out_VxD)),
        ):
            if given.ndim not in (1, 2) or len(given) != rows:
                raise ValueError(
                    f"{name} has shape {given.shape}: give a label or a row of numbers for each of {rows}."
                )
        if targets.shape[1:] != held_out_targets.shape[1:]:
            raise ValueError(
                f"targets has shape {targets.shape} and held_out_targets {held_out_targets.shape}: give both as "
                "labels, or both with the same columns."
            )
        ridge = check_real(ridge, "ridge", above=0.0)
        if targets.ndim == 2:
            held_out_VxC = as_matrix(held_out_targets, "held_out_targets")
            return cls(candidates_NxD, as_matrix(targets, "targets"), held_out_VxD, held_out_VxC, None, ridge)
        classes_C = np.unique(held_out_targets)
        held_out_VxC = _one_hot(held_out_targets, classes_C)
        return cls(candidates_NxD, targets, held_out_VxD, held_out_VxC, classes_C, ridge)

    def __call__(self, shortlist_U: np.ndarray) -> Partial:
        """The loss as a function of p_U."""
        x_UxE = _with_one(self.candidates_NxD[shortlist_U])
        targets = self.targets[shortlist_U]
        y_UxC = targets if self.classes_C is None else _one_hot(targets, self.classes_C)
        arrays = x_UxE, y_UxC, _with_one(self.held_out_VxD), self.held_out_targets_VxC
        return Partial(_probe_loss, *(jnp.asarray(array) for array in arrays), self.ridge)


def fit_probe(x_UxE: jax.Array, y_UxC: jax.Array, weights_U: jax.Array, ridge: Any) -> jax.Array:
    """W [E, C] of `RidgeProbe`."""
    weighted_UxE = x_UxE * weights_U[:, None]
    square_ExE = jnp.matmul(x_UxE.T, weighted_UxE, precision=_EXACT) + ridge * jnp.eye(
        x_UxE.shape[1], dtype=x_UxE.dtype
    )
    return jax.scipy.linalg.solve(square_ExE, jnp.matmul(weighted_UxE.T, y_UxC, precision=_EXACT), assume_a="pos")


def _probe_loss(x_UxE, y_UxC, held_out_VxE, targets_VxC, ridge, weights_U):
    predicted_VxC = jnp.matmul(held_out_VxE, fit_probe(x_UxE, y_UxC, weights_U, ridge), precision=_EXACT)
    return jnp.mean(jnp.sum((targets_VxC - predicted_VxC) ** 2, axis=1))


def _with_one(rows: Any) -> np.ndarray:
    rows = np.asarray(rows)
    return np.concatenate([rows, np.ones((len(rows), 1), rows.dtype)], axis=1)


def _one_hot(labels: np.ndarray, classes_C: np.ndarray) -> np.ndarray:
    return (labels[:, None] == classes_C).astype(np.float32)
