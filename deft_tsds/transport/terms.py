"""Terms: what can be asked of a transport plan, each a differentiable `term(plan, problem, **kwargs) -> scalar`.

Shapes: N candidates, M queries, K neighbours of a query, U candidates in the shortlist, D dimensions. gamma is
`plan.mass_MxK`, w the query weights, r_ij = gamma_ij / w_i the distribution of a row, and p_j = sum_i gamma_ij
`plan.weights_U`. All terms are minimised, and all are convex in gamma; `transport_cost` and `linear` are linear, so
that their weights may be negative. Three are maxima or sums of moduli, with kinks where their optima lie (`KINKED`):
`solve` treats them by their proximal maps, and a plain gradient does not.

Rows of weight zero, and places of the shortlist that no neighbourhood names, are padding and change no value. What a
term knows of a candidate by itself comes as [N] and is read through `problem.shortlist_U`; embeddings come as [U, D],
since N rows may not fit. An own term is any function of this form:

    def my_term(plan, problem):
        return jnp.sum(plan.weights_U**2)

    dt.Objective.of(align=(1.0, dt.terms.transport_cost), mine=(0.3, my_term))

Example:
    >>> candidates, queries = np.array([[0.0], [0.1], [1.0], [9.0]]), np.array([[0.0]])
    >>> def concentration(plan, problem):  # one's own term
    ...     return jnp.sum(plan.weights_U**2)
    >>> objective = dt.Objective.of(near=(1.0, dt.terms.transport_cost), mine=(0.3, concentration))
    >>> problem = dt.Problem.from_embeddings(candidates, queries)
    >>> plan = dt.tsds(problem, alpha=1.0)
    >>> sorted((name, round(float(part), 3)) for name, part in objective.parts(plan, problem).items())
    [('mine', 0.3), ('near', 0.0)]
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from deft_tsds.transport.problem import Plan, Problem

_EXACT = jax.lax.Precision.HIGHEST


def plan_of(mass_MxK: Any, problem: Problem) -> Plan:
    """The plan with this mass, inside or outside of jit: p_j = sum_i gamma_ij."""
    mass_MxK = jnp.asarray(mass_MxK)
    weights_U = over_candidates(mass_MxK, problem)
    return Plan(mass_MxK, weights_U, problem.shortlist_U, problem.size)


def over_candidates(values_MxK: Any, problem: Problem) -> jax.Array:
    """Sum the entries of each candidate, [M, K] -> [U]."""
    index = jnp.asarray(problem.index_MxK).ravel()
    return jax.ops.segment_sum(jnp.ravel(values_MxK), index, num_segments=len(problem.shortlist_U))


def transport_cost(plan: Plan, problem: Problem) -> jax.Array:
    """sum_ij gamma_ij d_ij, how far the mass lies from the queries. Linear."""
    return jnp.sum(plan.mass_MxK * jnp.asarray(problem.costs_MxK))


def linear(plan: Plan, problem: Problem, *, costs_N: Any) -> jax.Array:
    """sum_j p_j c_j for any cost of a candidate, such as its length, price or toxicity. Linear.

    Args:
        costs_N: [N] real; a reward is a negative cost, or a negative weight.
    """
    return jnp.sum(plan.weights_U * jnp.asarray(costs_N)[jnp.asarray(problem.shortlist_U)])


def uniform_deviation(plan: Plan, problem: Problem) -> jax.Array:
    """G_uniform = max_ij |r_ij - 1/N|, over all N candidates: those beyond the K of a query have r_ij = 0. Kinked."""
    return _largest_deviation(plan, problem, *inverse_densities(problem, uniform_deviation))


def kde_deviation(plan: Plan, problem: Problem) -> jax.Array:
    """G_kde = max_ij rho_j |r_ij - (1/rho_j) / Z|, Z = sum_j 1/rho_j. Kinked.

    Where the shortlist is not all of the pool, Z is taken at its lower bound, as in `deft_tsds.transport.closed_form`.
    """
    return _largest_deviation(plan, problem, *inverse_densities(problem, kde_deviation))


def tv_deviation(plan: Plan, problem: Problem) -> jax.Array:
    """G_tv = 1/2 sum_ij w_i |r_ij - 1/N|, over all N candidates. Kinked."""
    weights = _column(problem, plan)
    beyond = (problem.size - plan.mass_MxK.shape[1]) / problem.size
    return 0.5 * (jnp.sum(jnp.abs(plan.mass_MxK - weights / problem.size)) + beyond * jnp.sum(weights))


def entropy(plan: Plan, problem: Problem) -> jax.Array:
    """sum_ij gamma_ij log r_ij, the negative mean entropy of the rows: from -log K, spread out, to 0. Convex.

    With transport_cost and weight eps, the optimum is r_i = softmax(-d_i / eps).
    """
    weights = _column(problem, plan)
    return jnp.sum(_times_log(plan.mass_MxK, jnp.where(weights > 0, weights, 1)))


def kl(plan: Plan, problem: Problem, *, reference_N: Any = None) -> jax.Array:
    """sum_j p_j log(p_j / q_j), the divergence of the candidates' marginal from q. Convex.

    Args:
        reference_N: q, [N] above 0 and summing to 1; None is 1/N each.
    """
    return jnp.sum(_times_log(plan.weights_U, _reference(reference_N, plan, problem)))


def chi_square(plan: Plan, problem: Problem, *, reference_N: Any = None) -> jax.Array:
    """sum_j (p_j - q_j)^2 / q_j = sum_j p_j^2 / q_j - 1. Convex. With q = 1/N it is N / effective size - 1.

    Args:
        reference_N: q, [N] above 0 and summing to 1; None is 1/N each.
    """
    return jnp.sum(plan.weights_U**2 / _reference(reference_N, plan, problem)) - jnp.sum(plan.weights_U)


def kde_repulsion(plan: Plan, problem: Problem) -> jax.Array:
    """sum_i w_i sum_j rho_j r_ij^2, the smooth relative of `kde_deviation`. Convex.

    Least, at 1/Z, where r_ij is in proportion to 1/rho_j: near-duplicates share what one of them would get.
    """
    weights = _column(problem, plan)
    density_MxK = jnp.asarray(problem.density_U)[jnp.asarray(problem.index_MxK)]
    return jnp.sum(density_MxK * plan.mass_MxK**2 / jnp.where(weights > 0, weights, 1))


def coverage(plan: Plan, problem: Problem, *, budget: Any, features_NxF: Any = None) -> jax.Array:
    """The share of features that a draw misses: 1 - 1/F sum_f (1 - exp(-B sum_j p_j a_jf)). Convex.

    exp(-B x) is the chance that B independent draws meet nothing of a feature which each meets x of on average. The
    covered share grows ever more slowly with p: what is covered already is worth less.

    Args:
        budget: B > 0, the size of the draw.
        features_NxF: a >= 0, what each candidate has of each feature (topics, words); None makes each candidate a
            feature of its own, F = N.
    """
    if features_NxF is None:
        return 1 - jnp.sum(-jnp.expm1(-budget * plan.weights_U)) / problem.size
    features_UxF = jnp.asarray(features_NxF)[jnp.asarray(problem.shortlist_U)]
    return jnp.mean(jnp.exp(-budget * jnp.matmul(plan.weights_U, features_UxF, precision=_EXACT)))


def group_balance(plan: Plan, problem: Problem, *, groups_N: Any, shares_G: Any) -> jax.Array:
    """sum_g (P_g - share_g)^2, P_g the probability of group g. Convex.

    Args:
        groups_N: [N] integers 0 .. G-1, the group of each candidate.
        shares_G: [G], the wanted probability of each group.
    """
    shares_G = jnp.asarray(shares_G)
    groups_U = jnp.asarray(groups_N)[jnp.asarray(problem.shortlist_U)]
    found_G = jax.ops.segment_sum(plan.weights_U, groups_U, num_segments=len(shares_G))
    return jnp.sum((found_G - shares_G) ** 2)


def pool_drift(plan: Plan, problem: Problem, *, candidates_UxD: Any, pool_mean_D: Any) -> jax.Array:
    """|sum_j p_j x_j - mean|^2, how far the chosen lie from the pool on average. Convex.

    Args:
        candidates_UxD: embeddings of the shortlist.
        pool_mean_D: mean embedding of the whole pool.
    """
    mean_D = jnp.matmul(plan.weights_U, jnp.asarray(candidates_UxD), precision=_EXACT)
    return jnp.sum((mean_D - jnp.asarray(pool_mean_D)) ** 2)


def redundancy(plan: Plan, problem: Problem, *, candidates_UxD: Any) -> jax.Array:
    """sum_jk p_j p_k cos^2(x_j, x_k) = |sum_j p_j u_j u_j^T|_F^2, u_j of unit length: how alike two draws are. Convex.

    From 1/D, all directions alike, to 1, one direction. The right-hand side needs U D^2 operations and no [U, U]
    matrix.

    Args:
        candidates_UxD: embeddings of the shortlist.
    """
    x_UxD = jnp.asarray(candidates_UxD)
    squared_U = jnp.sum(x_UxD * x_UxD, axis=1)
    scaled_UxD = x_UxD * (plan.weights_U / jnp.where(squared_U > 0, squared_U, 1))[:, None]
    return jnp.sum(jnp.matmul(scaled_UxD.T, x_UxD, precision=_EXACT) ** 2)


def mmd(plan: Plan, problem: Problem, *, candidates_UxD: Any, queries_MxD: Any, bandwidth: Any) -> jax.Array:
    """|sum_j p_j phi(x_j) - sum_i w_i phi(q_i)|^2, the squared maximum mean discrepancy of chosen and target. Convex.

    phi is the feature map of the kernel k(x, y) = exp(-|x - y|^2 / (2 h^2)). Takes a [U, U] matrix.

    Args:
        candidates_UxD: embeddings of the shortlist.
        queries_MxD: embeddings of the queries.
        bandwidth: h > 0.
    """
    x_UxD, q_MxD = jnp.asarray(candidates_UxD), jnp.asarray(queries_MxD)
    p_U, w_M = plan.weights_U, jnp.asarray(problem.query_weights_M)

    def mean_kernel(a, x, b, y):
        kernel = jnp.exp(-squared_distances(x, y) / (2 * bandwidth**2))
        return jnp.vdot(a, jnp.matmul(kernel, b, precision=_EXACT))

    within = mean_kernel(p_U, x_UxD, p_U, x_UxD) + mean_kernel(w_M, q_MxD, w_M, q_MxD)
    return within - 2 * mean_kernel(p_U, x_UxD, w_M, q_MxD)


def sinkhorn_divergence(
    plan: Plan, problem: Problem, *, candidates_UxD: Any, queries_MxD: Any, epsilon: Any
) -> jax.Array:
    """OT(p, w) - OT(p, p)/2 - OT(w, w)/2 between chosen and target, by ott-jax. Convex (Feydy et al., 2019).

    OT is the entropic transport cost for squared distances with regularization eps, so a [U, U] matrix is needed. The
    derivative is the potential at the optimum (Danskin): right once, but not to be differentiated a second time.

    Args:
        candidates_UxD: embeddings of the shortlist.
        queries_MxD: embeddings of the queries.
        epsilon: eps > 0, in units of the squared distance.
    """
    x_UxD, q_MxD = jnp.asarray(candidates_UxD), jnp.asarray(queries_MxD)
    p_U, w_M = plan.weights_U, jnp.asarray(problem.query_weights_M, plan.weights_U.dtype)
    across = _entropic_cost(p_U, w_M, squared_distances(x_UxD, q_MxD), epsilon)
    chosen = _entropic_cost(p_U, p_U, squared_distances(x_UxD, x_UxD), epsilon)
    target = _entropic_cost(w_M, w_M, squared_distances(q_MxD, q_MxD), epsilon)
    return across - chosen / 2 - target / 2


def squared_distances(x_AxD: jax.Array, y_BxD: jax.Array) -> jax.Array:
    """|x_a - y_b|^2, [A, B]; smooth kernels of it forgive the rounding of the product form."""
    products = jnp.matmul(x_AxD, y_BxD.T, precision=_EXACT)
    squared = jnp.sum(x_AxD**2, axis=1)[:, None] - 2 * products + jnp.sum(y_BxD**2, axis=1)[None, :]
    return jnp.maximum(squared, 0)


def _entropic_cost(a_A: jax.Array, b_B: jax.Array, costs_AxB: jax.Array, epsilon: Any) -> jax.Array:
    """min over couplings P of a and b: <P, C> + eps KL(P | a b^T), with its first derivative in a and b."""
    # ott takes seconds to import, and loads optax and flax, which this package does without until then.
    from ott.geometry.geometry import Geometry
    from ott.problems.linear.linear_problem import LinearProblem
    from ott.solvers.linear.sinkhorn import Sinkhorn

    costs = jax.lax.stop_gradient(costs_AxB.astype(a_A.dtype))
    a, b = jax.lax.stop_gradient((a_A, b_B.astype(a_A.dtype)))
    tolerance = 1e-9 if a_A.dtype == jnp.float64 else 1e-5
    solver = Sinkhorn(threshold=tolerance, max_iterations=20_000)
    found = solver(LinearProblem(Geometry(cost_matrix=costs, epsilon=epsilon), a, b))
    # In the form whose plan is a_i b_j exp((f_i + g_j - c_ij) / eps), potentials where there is mass give those of the
    # places without any, where ott has none.
    g_B = jnp.where(b > 0, found.g - epsilon * jnp.log(jnp.where(b > 0, b, 1)), 0)
    f_A = -epsilon * jax.nn.logsumexp((g_B[None, :] - costs) / epsilon, axis=1, b=b[None, :])
    g_B = -epsilon * jax.nn.logsumexp((f_A[:, None] - costs) / epsilon, axis=0, b=a[:, None])
    f_A, g_B = jax.lax.stop_gradient((f_A, g_B))
    return jnp.vdot(f_A, a_A) + jnp.vdot(g_B, b_B)


def inverse_densities(problem: Problem, deviation: Any) -> tuple[jax.Array, Any]:
    """1/rho [U] and Z of `uniform_deviation` or `kde_deviation`; see there for Z."""
    density_U = jnp.asarray(problem.density_U)
    if deviation is uniform_deviation:
        return jnp.ones_like(density_U), problem.size
    # A place that no query names is padding. Each candidate beyond the shortlist counts with 1/N, the least it can
    # have.
    real = jnp.broadcast_to(_column(problem) > 0, jnp.shape(problem.index_MxK))
    named_U = over_candidates(real.astype(density_U.dtype), problem) > 0
    total = jnp.sum(jnp.where(named_U, 1 / density_U, 0)) + 1 - jnp.sum(named_U) / problem.size
    return 1 / density_U, total


def _largest_deviation(plan: Plan, problem: Problem, inverse_U: jax.Array, total: Any) -> jax.Array:
    weights = _column(problem, plan)
    shares_MxK = plan.mass_MxK / jnp.where(weights > 0, weights, 1)
    deviations = jnp.abs(shares_MxK / inverse_U[jnp.asarray(problem.index_MxK)] - 1 / total)
    largest = jnp.max(jnp.where(weights > 0, deviations, 0))
    return jnp.maximum(largest, 1 / total) if problem.size > plan.mass_MxK.shape[1] else largest


def _column(problem: Problem, plan: Plan | None = None) -> jax.Array:
    """w as a column, in the dtype of the plan."""
    return jnp.asarray(problem.query_weights_M, None if plan is None else plan.mass_MxK.dtype)[:, None]


def _reference(reference_N: Any, plan: Plan, problem: Problem) -> jax.Array:
    if reference_N is None:
        return jnp.full_like(plan.weights_U, 1 / problem.size)
    return jnp.asarray(reference_N)[jnp.asarray(problem.shortlist_U)]


def _times_log(x: jax.Array, reference: Any) -> jax.Array:
    """x log(x / reference), 0 at 0, where the derivative stays finite."""
    return x * (jnp.log(jnp.maximum(x, jnp.finfo(x.dtype).tiny)) - jnp.log(reference))


KINKED = frozenset({uniform_deviation, kde_deviation, tv_deviation})
LINEAR = frozenset({transport_cost, linear})
CONVEX = (
    KINKED
    | LINEAR
    | {
        entropy,
        kl,
        chi_square,
        kde_repulsion,
        coverage,
        group_balance,
        pool_drift,
        redundancy,
        mmd,
        sinkhorn_divergence,
    }
)
