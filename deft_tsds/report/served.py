"""Which target examples are served by which chosen ones: what the reasons of a selection say, read from the targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deft_tsds.report.view import ArmView, RunView
from deft_tsds.selection import Selection

MOST_LINKS = 6
"""Chosen examples that are shown of a query."""


@dataclass(frozen=True)
class Link:
    """A chosen example that serves a query."""

    query: int
    row: int
    """Of the pool."""
    mass: float | None
    """The part of the whole plan that this query pours on this example; None for a selector without a plan."""
    distance: float | None
    """As the selector measured it."""
    rank: int | None
    """The how-manieth neighbour of the query it is, 1 being the nearest."""


@dataclass(frozen=True)
class Served:
    """A query, with the chosen examples that serve it most."""

    query: int
    links: tuple[Link, ...]
    """By mass, then by distance; at most `MOST_LINKS`."""
    count: int
    """Of all chosen examples that name this query in their reasons."""
    mass: float | None
    """Of all of these together."""
    nearest: float | None


@dataclass(frozen=True)
class ArmServed:
    """What an arm's first selection says of the queries that are shown."""

    label: str
    queries: tuple[Served, ...]
    """The one with the most mass, or the most examples, first."""
    unnamed: int
    """Of all queries of the run, those that no reason names."""


def served(view: RunView, query_rows: np.ndarray) -> tuple[ArmServed, ...]:
    """The arms whose reasons name queries.

    Args:
      view: the run.
      query_rows: int [m], the queries to show.
    """
    found = []
    if view.queries is not None:
        for arm in view.arms:
            if said := links(arm.first):
                found.append(_arm_served(arm, said, query_rows, len(view.queries)))
    return tuple(found)


def links(selection: Selection) -> list[Link]:
    """Every pair of a chosen example and a query that its reason names, in the order of the selection."""
    pairs = zip(np.asarray(selection.indices).tolist(), selection.reasons, strict=True)
    return [link for row, reason in pairs for link in _links(row, reason)]


def _links(row: int, reason: Mapping[str, Any]) -> list[Link]:
    """The two forms in which selectors name queries: a list of several, or one."""
    if "queries" in reason:
        whole = reason.get("probability")
        return [
            Link(each["query"], row, _product(whole, each.get("share")), each.get("distance"), each.get("rank"))
            for each in reason["queries"]
        ]
    if "query" in reason:
        distance = reason.get("query_distance", reason.get("distance"))
        if distance is None and "cosine" in reason:
            distance = 1 - reason["cosine"]
        mass = _product(reason.get("mass"), reason.get("share"))
        return [Link(reason["query"], row, mass, distance, reason.get("neighbor"))]
    return []


def _product(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one * other


def _arm_served(arm: ArmView, said: Sequence[Link], query_rows: np.ndarray, queries: int) -> ArmServed:
    by_query: dict[int, list[Link]] = {int(query): [] for query in query_rows}
    for link in said:
        if link.query in by_query:
            by_query[link.query].append(link)
    shown = [_served(query, found) for query, found in by_query.items()]
    shown.sort(key=lambda each: (-(each.mass or 0.0), -each.count, each.query))
    named = {link.query for link in said}
    return ArmServed(arm.label, tuple(shown), queries - len(named))


def _served(query: int, found: Sequence[Link]) -> Served:
    masses = [link.mass for link in found if link.mass is not None]
    distances = [link.distance for link in found if link.distance is not None]
    # Filled neighbours have equal masses up to rounding: then the nearer one goes first.
    ordered = sorted(found, key=lambda link: (-float(f"{link.mass or 0:.6g}"), link.distance or 0.0, link.row))
    return Served(
        query=query,
        links=tuple(ordered[:MOST_LINKS]),
        count=len(found),
        mass=sum(masses) if masses else None,
        nearest=min(distances, default=None),
    )
