"""Who judges what, and on which side: designs in which no rater, item or side is favoured."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

import numpy as np


def assign(items: int, raters: int, *, overlap: int, rng: np.random.Generator) -> list[list[int]]:
    """The raters of each item: as few to an item as give every pair of raters `overlap` items in common.

    Each item has the same number of raters, and the raters' numbers of items differ by one at most.

    Args:
        items, raters: how many there are, at least 1.
        overlap: 0 (an item has one rater) to `items` (every rater judges every item).
        rng: decides between raters who are equally near their fill.

    Returns:
        For each item its raters, ascending, from 0.

    Raises:
        ValueError: no items or raters, or more overlap than items.
    """
    if items < 1 or raters < 1:
        raise ValueError(f"items is {items} and raters is {raters}: both must be at least 1.")
    if not 0 <= overlap <= items:
        raise ValueError(f"overlap is {overlap}: give 0 to the number of items, {items}.")
    found: list[list[int]] = []
    for judges in range(1, raters + 1):
        found = _spread(items, raters, judges, rng)
        shared = Counter(pair for row in found for pair in itertools.combinations(row, 2))
        if all(shared[pair] >= overlap for pair in itertools.combinations(range(raters), 2)):
            break
    return found


def _spread(items: int, raters: int, judges: int, rng: np.random.Generator) -> list[list[int]]:
    """Item after item to the raters with the least to do, and among these to those who have met least."""
    load_R, met_RxR = np.zeros(raters), np.zeros((raters, raters))
    found = []
    for _ in range(items):
        row: list[int] = []
        for _ in range(judges):
            free = np.setdiff1d(np.arange(raters), row)
            row.append(int(free[np.lexsort((rng.random(len(free)), met_RxR[free][:, row].sum(1), load_R[free]))[0]]))
        load_R[row] += 1
        met_RxR[np.ix_(row, row)] += 1
        found.append(sorted(row))
    return found


def balanced_sides(pairs: Sequence[tuple[Hashable, Hashable]], *, rng: np.random.Generator) -> list[bool]:
    """A side for each (rater, item): for every rater, and for every item, the two sides differ by one at most.

    Raters and items are the nodes of a bipartite graph, judgments its edges. Joined to a node more where their degree
    is odd, all degrees are even, and the graph falls into closed walks; one side is an edge walked from its rater, the
    other one walked to him. A walk leaves each node as often as it comes to it.
    """
    edges: list[tuple[tuple, tuple]] = [(("rater", rater), ("item", item)) for rater, item in pairs]
    odd = [node for node, degree in Counter(itertools.chain(*edges)).items() if degree % 2]
    edges += [(node, ("more",)) if node[0] == "rater" else (("more",), node) for node in odd]
    ways = defaultdict(list)
    for edge in rng.permutation(len(edges)).tolist():
        left, right = edges[edge]
        ways[left].append((edge, right))
        ways[right].append((edge, left))
    forward: dict[int, bool] = {}
    for start in list(ways):
        while ways[start]:
            node, turned = start, bool(rng.integers(2))
            while ways[node]:
                edge, other = ways[node].pop()
                if edge not in forward:
                    forward[edge] = (node == edges[edge][0]) != turned
                    node = other
    return [forward[edge] for edge in range(len(pairs))]
