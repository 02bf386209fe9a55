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
# # Optimal transport of data, in two dimensions
#
# TSDS (arXiv 2410.11303) asks for the plan $\gamma$ that carries the mass of the queries to candidates at the least
# cost
#
# $$ \min_{\gamma \ge 0,\, \sum_j \gamma_{ij} = 1/M}\ \frac{\alpha}{C} \sum_{ij} \gamma_{ij} d_{ij}
# + (1 - \alpha)\, G(\gamma), $$
#
# where $G$ is what keeps it from putting everything on the nearest candidates. This notebook redraws the paper's
# picture of it: what does each $G$ do with a candidate that exists many times over?

# %%
import matplotlib.pyplot as plt
import numpy as np
import plotly.graph_objects as go
import plotly.io as pio

import deft_tsds as dt

pio.renderers.default = "plotly_mimetype+notebook_connected"

# %% [markdown]
# ## The scene
# Three queries. Around the middle one lie distinct candidates, and, at the same distance from it, a clump: one text
# that was copied 30 times with small changes. Far away lies what has nothing to do with the task.

# %%
rng = np.random.default_rng(0)
queries = np.array([[-1.6, 0.0], [0.0, 0.0], [1.6, 0.0]], dtype=np.float32)
distinct = rng.uniform([-2.4, -1.1], [2.4, 1.1], size=(70, 2))
far = rng.normal([0, 2.6], [1.2, 0.2], size=(25, 2))


def scene(copies):
    """Candidates [95 + copies, 2], the clump last."""
    clump = [0.0, -0.3] + 0.02 * np.random.default_rng(1).normal(size=(copies, 2))
    return np.concatenate([distinct, far, clump]).astype(np.float32)


candidates = scene(30)
in_clump = np.arange(len(candidates)) >= len(candidates) - 30
problem = dt.Problem.from_embeddings(candidates, queries, neighbors=len(candidates), bandwidth=0.2)
print("density in the clump", np.round(problem.density_U[in_clump].mean(), 1))
print("density elsewhere   ", np.round(problem.density_U[~in_clump].mean(), 1))

# %% [markdown]
# ## Four ways to be diverse
# - **uniform** wants all candidates to get the same: thirty copies get thirty shares.
# - **total variation** wants the same, but measures the sum and not the maximum: it moves mass from beyond a radius
#   to the nearest candidate, all of it.
# - **kernel density** divides by how crowded a place is: thirty copies share what one of them would get.
# - **entropy** (Sinkhorn with a free marginal, a softmax of each row) counts copies as *uniform* does.

# %%
alpha, scale = 0.6, 2.0
plans = {name: dt.tsds(problem, alpha=alpha, scale=scale, regularizer=name) for name in ("uniform", "tv", "kde")}
smooth = dt.Objective.of(align=(1.0, dt.terms.transport_cost), spread=(0.15, dt.terms.entropy))
plans["entropy"], _ = dt.solve(problem, smooth)


def draw(axes, candidates, probability, title):
    axes.scatter(*candidates.T, s=4, color="0.75")
    axes.scatter(*candidates.T, s=2500 * probability, color="C0", alpha=0.55, linewidth=0)
    axes.scatter(*queries.T, s=40, marker="x", color="k")
    axes.set(title=title, xticks=[], yticks=[], aspect="equal", xlim=(-2.7, 2.7), ylim=(-1.4, 3.1))


figure, panels = plt.subplots(2, 2, figsize=(10, 8.2))
for axes, (name, plan) in zip(panels.ravel(), plans.items(), strict=True):
    p = plan.probabilities()
    draw(axes, candidates, p, f"{name}: {p[in_clump].sum():.0%} of the mass on the clump")

# %% [markdown]
# ## The more copies, the worse?
# The clump is one piece of information. How much of the mass does it attract when it is copied 1, 3, 10, 30, 100
# times?

# %%
counts = [1, 3, 10, 30, 100]
attracted = {name: [] for name in plans}
for copies in counts:
    points = scene(copies)
    crowded = dt.Problem.from_embeddings(points, queries, neighbors=len(points), bandwidth=0.2)
    for name in attracted:
        if name == "entropy":
            plan, _ = dt.solve(crowded, smooth)
        else:
            plan = dt.tsds(crowded, alpha=alpha, scale=scale, regularizer=name)
        attracted[name].append(plan.probabilities()[-copies:].sum())

figure, axes = plt.subplots(figsize=(6, 3.2))
for name, shares in attracted.items():
    axes.plot(counts, shares, marker="o", label=name)
axes.set(xscale="log", xticks=counts, xticklabels=counts, xlabel="copies", ylabel="mass on the clump", ylim=(0, None))
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
for name, shares in attracted.items():
    print(f"{name:8}", " ".join(f"{share:6.3f}" for share in shares))

# %% [markdown]
# Only the kernel density sees that the copies are copies.
#
# ## With a given marginal there is nothing to choose
# Classical optimal transport fixes what every candidate receives. Then $p$ is known beforehand, and only *who serves
# whom* is left to find. A cap, $p_j \le 1/B$, lies between: no candidate may take more than its place in a draw of
# $B$.

# %%
even = np.full(len(candidates), 1 / len(candidates))
balanced, _ = dt.solve(problem, smooth, marginal=even)
capped, info = dt.solve(problem, smooth, cap=1 / 20)
figure, panels = plt.subplots(1, 2, figsize=(10, 4))
draw(panels[0], candidates, balanced.probabilities(), "given marginal (Sinkhorn)")
draw(panels[1], candidates, capped.probabilities(), "cap 1/20")
print(f"largest p: {capped.probabilities().max():.4f}, gap {info['gap']:.1e}")

# %% [markdown]
# ## Move alpha yourself
# The slider moves `alpha`: near 1 only distance counts, and each query takes its nearest candidate; near 0 all
# candidates within reach get their share.

# %%
alphas = np.round(np.linspace(0.05, 1, 20), 2)
names = ["uniform", "tv", "kde"]


colours = np.where(in_clump, "#c2503c", "#2f7fb8")


def discs(name, alpha):
    """What changes in a frame: areas, and the probabilities to show under the pointer."""
    p = dt.tsds(problem, alpha=float(alpha), scale=scale, regularizer=name).probabilities()
    return {"marker": {"size": np.round(90 * np.sqrt(p) + 2, 1)}, "customdata": np.round(p, 5)}


places = {
    "x": np.round(candidates[:, 0], 3),
    "y": np.round(candidates[:, 1], 3),
    "mode": "markers",
    "showlegend": False,
}
start = discs("kde", alpha)
dots = go.Scatter(
    **places,
    customdata=start["customdata"],
    marker={**start["marker"], "color": colours, "opacity": 0.6},
    hovertemplate="p = %{customdata}<extra></extra>",
)
crosses = go.Scatter(
    x=queries[:, 0],
    y=queries[:, 1],
    mode="markers",
    marker={"symbol": "x", "color": "black", "size": 9},
    hoverinfo="skip",
    showlegend=False,
)
frames = [
    go.Frame(data=[go.Scatter(**discs(name, alpha))], traces=[0], name=f"{name} {alpha}")
    for name in names
    for alpha in alphas
]
at_once = {"mode": "immediate", "frame": {"duration": 0, "redraw": False}, "transition": {"duration": 0}}
sliders = [
    {
        "active": int(np.argmin(np.abs(alphas - alpha))),
        "currentvalue": {"prefix": f"{name}: alpha = "},
        "y": -0.05 - 0.25 * number,
        "steps": [{"label": str(a), "method": "animate", "args": [[f"{name} {a}"], at_once]} for a in alphas],
    }
    for number, name in enumerate(names)
]
page = go.Figure(data=[dots, crosses], frames=frames)
page.update_layout(sliders=sliders, height=800, template="simple_white", margin={"t": 20, "b": 320})
page.update_yaxes(scaleanchor="x")
page.show()
