# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Write a regularizer in ten lines
#
# A selection objective is a sum of *terms*, and a term is a function of a transport plan: `term(plan, problem)`. We
# write one that the library does not have, check its gradient, look at what it does, and ablate it.
#
# The question behind it: should a chosen example serve *one* query very well, or *many* queries? Let query $i$ and
# candidate $j$ be drawn together with probability $\gamma_{ij}$. If knowing the candidate says much about the query,
# the candidates are specialists; if it says nothing, each serves all queries alike. That is the mutual information
#
# $$ I(\gamma) = \sum_{ij} \gamma_{ij} \log \frac{\gamma_{ij}}{w_i \, p_j}, \qquad p_j = \sum_i \gamma_{ij}, $$
#
# which is convex in $\gamma$ for given query weights $w$, so that the solver can prove its answer.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import deft_tsds as dt

jax.config.update("jax_enable_x64", True)  # for the comparison with finite differences below


def specialisation(plan, problem):
    """I(query; candidate), in nats: 0 when every candidate serves all queries alike."""
    mass = plan.mass_MxK
    alone = problem.query_weights_M[:, None] * plan.weights_U[problem.index_MxK]
    safe = jnp.where(mass > 0, mass, 1.0)
    return jnp.sum(mass * (jnp.log(safe) - jnp.log(jnp.where(mass > 0, alone, 1.0))))


# %% [markdown]
# ## A pool to try it on
# Two tasks that overlap: the queries of each stand on a ring, and candidates lie everywhere.

# %%
rng = np.random.default_rng(0)
angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
ring = np.stack([np.cos(angle), np.sin(angle)], axis=1)
aside = np.array([0.6, 0.0])
queries = np.concatenate([ring - aside, ring + aside]).astype(np.float32)
candidates = rng.uniform([-2.2, -1.6], [2.2, 1.6], size=(600, 2)).astype(np.float32)
problem = dt.Problem.from_embeddings(candidates, queries, neighbors=600)

objective = dt.Objective.of(
    align=(1.0, dt.terms.transport_cost),
    spread=(0.1, dt.terms.entropy),
    special=(0.0, specialisation),
)

# %% [markdown]
# ## Its gradient
# Nothing has to be registered: the term is differentiated by JAX. At a random plan, one derivative by `jax.grad`
# beside the same one by a central difference:

# %%
shares = rng.dirichlet(np.ones(600), size=len(queries))
mass = shares * problem.query_weights_M[:, None]
value = jax.jit(lambda mass: specialisation(dt.terms.plan_of(mass, problem), problem))
gradient = jax.grad(value)(mass)
row, column, step = 3, 17, 1e-7
nudge = np.zeros_like(mass)
nudge[row, column] = step
by_difference = (value(mass + nudge) - value(mass - nudge)) / (2 * step)
print(f"jax.grad {gradient[row, column]:.8f}   central difference {by_difference:.8f}")

# %% [markdown]
# ## Its effect
# `sweep` solves one objective for many weights in one compiled program; each answer comes with a gap, a proven bound
# on how far it may be from the best.

# %%
weights = np.array([0.0, 0.05, 0.1, 0.2, 0.4, 0.8])
results = dt.sweep(problem, objective, special=weights)
distance, mutual, effective = [], [], []
for weight, (plan, info) in zip(weights, results, strict=True):
    distance.append(float(dt.terms.transport_cost(plan, problem)))
    mutual.append(float(specialisation(plan, problem)))
    effective.append(1 / float(np.sum(np.square(plan.weights_U))))
    print(
        f"weight {weight:4.2f}: distance {distance[-1]:.3f}, information {mutual[-1]:.3f} nats, as diverse as "
        f"{effective[-1]:5.1f} candidates, gap {info['gap']:.1e}, converged {info['converged']}"
    )

# %%
figure, panels = plt.subplots(1, 3, figsize=(13, 3.6), sharex=True, sharey=True)
for axes, at in zip(panels, (0, 3, 5), strict=True):
    plan = results[at][0]
    p = np.asarray(plan.weights_U)
    axes.scatter(*candidates.T, s=3, color="0.85")
    axes.scatter(*candidates[plan.shortlist_U].T, s=4000 * p, color="C0", alpha=0.6, linewidth=0)
    axes.scatter(*queries.T, s=14, marker="x", color="k", linewidth=0.8)
    axes.set(title=f"weight {weights[at]:g}: {mutual[at]:.2f} nats", xticks=[], yticks=[], aspect="equal")

# %% [markdown]
# The area of a disc is the probability of a candidate. With a growing weight the mass leaves the rings for places
# from which many queries are near: generalists. The price is paid in distance.

# %%
figure, axes = plt.subplots(figsize=(5, 3))
axes.plot(mutual, distance, marker="o")
for x, y, weight in zip(mutual, distance, weights, strict=True):
    axes.annotate(f" {weight:g}", (x, y))
axes.set(xlabel="information between query and candidate (nats)", ylabel="mean distance")
axes.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# ## Its ablation
# `without` removes a term: it is not computed any more, unlike one of weight zero. What does each term do for the
# whole?

# %%
whole = objective.with_weights(special=0.2)
rows = {"whole": whole, **{f"without {name}": whole.without(name) for name in whole.terms}}
print(f"{'':16} {'distance':>9} {'information':>12} {'as diverse as':>14} {'gap':>9}")
for name, part in rows.items():
    plan, info = dt.solve(problem, part, tolerance=1e-3)
    numbers = [dt.terms.transport_cost(plan, problem), specialisation(plan, problem), 1 / np.sum(plan.weights_U**2)]
    print(f"{name:16} {float(numbers[0]):9.3f} {float(numbers[1]):12.3f} {float(numbers[2]):14.1f} {info['gap']:9.1e}")

# %% [markdown]
# Without `align` the mass goes everywhere, and no candidate says anything about a query any more. Without `spread` a
# handful of candidates remain. Without `special` we are back at specialists.
#
# ## Into a selection
# `Transport` draws by the plan that is best for an objective. The draw spreads over what the objective prefers:

# %%
selector = dt.selectors.Transport(whole, neighbors=600)
selection = dt.select(candidates, queries, selector=selector, budget=40, key=jax.random.key(0))
print(selection.reasons[0]["why"])
selection.info["plan"]["parts"]
