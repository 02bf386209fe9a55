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
# # A first selection, looked at
#
# A pool of text edits has everything that real pools have: rows for six kinds of edit, near-duplicates, wrong
# targets, and rows that are not about editing at all. We choose 300 of 3,000 rows in three ways and look at what each
# one took. The text is made by a seeded generator, so that nothing is downloaded; with your own data, only the first
# cell changes.

# %%
import tempfile
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from sklearn.decomposition import PCA

import deft_tsds as dt
from deft_tsds.embed.lexical import Lexical
from deft_tsds.synthetic import make_editing

text = make_editing(3000, 10, 60, key=jax.random.key(0))
pool_prompts = [f"{row['instruction']}: {row['input']}" for row in text.pool]
query_prompts = [f"{row['instruction']}: {row['input']}" for row in text.queries]
for row in text.pool[:3]:
    print(f"{row['task']:16} {row['instruction']}: {row['input']}\n{'':16} -> {row['target']}\n")

# %% [markdown]
# ## Texts to vectors
# The lexical encoder counts n-grams and needs nothing but the pool. `deft_tsds.embed.sentence_transformers` takes any
# sentence-transformers model instead; everything below only sees the matrix.

# %%
encoder = Lexical(dimension=128).fit(pool_prompts, key=jax.random.key(1))
candidates, queries = encoder.encode(pool_prompts), encoder.encode(query_prompts)
candidates.shape, queries.shape

# %% [markdown]
# ## Three ways to choose
# `DEFT` needs no target: it clusters the pool and takes the rows far from the centroids. `TSDS` needs a few examples
# of the task, the *queries*: it transports them onto the pool and pays for piling up on near-duplicates. The
# bandwidth `"auto"` looks for the distance below which two rows of this pool are near-duplicates, and
# `effective_size` says how many rows the plan should spread over, as if they were equally likely.

# %%
budget, key = 300, jax.random.key(2)
tasks = [row["task"] for row in text.pool]
chosen = {
    "random": dt.select(candidates, selector=dt.selectors.Random(), budget=budget, key=key),
    "DEFT": dt.select(candidates, selector=dt.selectors.DEFT(base=0.03), budget=budget, key=key, groups=tasks),
    "TSDS": dt.select(
        candidates, queries, selector=dt.selectors.TSDS(effective_size=600, bandwidth="auto"), budget=budget, key=key
    ),
}
for name, selection in chosen.items():
    print(f"{name:7} {len(selection)} rows in {selection.info['seconds']:.2f} s")
print(chosen["TSDS"].info["plan"]["message"])

# %% [markdown]
# ## What did they take?
# The generator knows which rows are flawed; the selectors do not. Flaws that show in the *prompt* (a row about
# something else, a near-duplicate) can be avoided by looking at prompts. A wrong *target* cannot: its prompt looks
# like any other.

# %%
flaws = ("near_duplicate", "wrong_target", "off_task")
shares = {"whole pool": [np.mean([row[flaw] for row in text.pool]) for flaw in flaws]}
for name, selection in chosen.items():
    shares[name] = [np.mean([text.pool[row][flaw] for row in selection.indices]) for flaw in flaws]

figure, axes = plt.subplots(figsize=(7, 3))
for position, (name, values) in enumerate(shares.items()):
    axes.bar(np.arange(3) + 0.2 * position, values, width=0.18, label=name)
axes.set_xticks(np.arange(3) + 0.3, [flaw.replace("_", " ") for flaw in flaws])
axes.set_ylabel("share of the rows")
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)

# %% [markdown]
# TSDS takes no row that is off the task: none of the queries has a use for one. DEFT knows no task. Here it takes twice
# its share of near-duplicates, since rows far from a centroid may lie there together; with another key, and so other
# clusters, the bars are others. Nobody sees the targets, so that nobody avoids the wrong ones for what they are.
#
# ## Where do they lie?
# Two principal components of the pool, with the queries as crosses.

# %%
plane = PCA(2, random_state=0).fit(candidates)
xy, query_xy = plane.transform(candidates), plane.transform(queries)
figure, panels = plt.subplots(1, 3, figsize=(12, 4), sharex=True, sharey=True)
for axes, (name, selection) in zip(panels, chosen.items(), strict=True):
    axes.scatter(*xy.T, s=3, color="0.85")
    axes.scatter(*xy[selection.indices].T, s=8, color="C3")
    axes.scatter(*query_xy.T, s=18, marker="x", color="k", linewidth=0.8)
    axes.set(title=name, xticks=[], yticks=[])

# %% [markdown]
# ## Why these?
# Each choice carries its reason: a sentence, and the numbers behind it.

# %%
for name in ("DEFT", "TSDS"):
    selection = chosen[name]
    best = int(np.argmax(selection.scores))
    row = int(selection.indices[best])
    print(f"{name}, row {row}: {pool_prompts[row]}\n  {selection.reasons[best]['why']}\n")

# %% [markdown]
# Which row serves which query, how far it lies from it, and how crowded its place is:

# %%
{name: value for name, value in chosen["TSDS"].reasons[0].items() if name != "why"}

# %% [markdown]
# ## Keep it
# A selection is two plain files, and comes back bit for bit.

# %%
with tempfile.TemporaryDirectory() as folder:
    chosen["TSDS"].save(folder)
    same = dt.Selection.load(folder)
    print([path.name for path in sorted(Path(folder).iterdir())])
np.array_equal(same.indices, chosen["TSDS"].indices)
