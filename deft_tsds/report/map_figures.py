"""The figures on the map: the pool as each arm sees it, and the target examples with what serves them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from deft_tsds.report.figures import COLOURS, OTHER_COLOUR, colour, hover_text, plotly_text
from deft_tsds.report.map2d import PoolMap
from deft_tsds.report.served import ArmServed
from deft_tsds.report.view import RunView

_LARGEST = 65_535


def map_figure(view: RunView, pool_map: PoolMap) -> dict[str, Any]:
    """The map, a trace a group, and for each arm which points of each trace it chose and why.

    Returns:
      A Plotly figure with two more entries. "arms": for each arm that leaves something out, its label and, trace by
      trace, the positions of the chosen points ("points") with their reasons ("why"). "cloud": what map.js draws
      behind the points that have texts, or None.
    """
    names, group_N, counts = np.unique(np.array(view.pool.groups), return_inverse=True, return_counts=True)
    ranked = np.argsort(-counts, kind="stable")
    coloured = ranked[: len(COLOURS)]
    labels = [plotly_text(str(names[group]) or "(no group)", 28) for group in coloured]
    shades = [colour(number) for number in range(len(coloured))]
    if len(ranked) > len(coloured):
        labels.append(f"{len(ranked) - len(coloured)} smaller groups")
        shades.append(OTHER_COLOUR)
    place_of_group = np.full(len(names), len(coloured))
    place_of_group[coloured] = np.arange(len(coloured))
    shade_N = place_of_group[group_N]
    members = [np.flatnonzero(shade_N[pool_map.rows] == place) for place in range(len(shades))]

    traces = []
    for label, shade, points in zip(labels, shades, members, strict=True):
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": label,
                **_coordinates(pool_map.points_nx2[points]),
                "text": [_describe(view, int(pool_map.rows[point])) for point in points],
                "hoverinfo": "text",
                "marker": {"size": 5, "color": shade},
                "selected": {"marker": {"opacity": 1.0, "size": 7}},
                "unselected": {"marker": {"opacity": 0.22, "size": 4}},
            }
        )
    if pool_map.query_rows.size and view.queries is not None:
        described = [hover_text(view.queries.inputs[row], 220) for row in pool_map.query_rows]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "target examples",
                **_coordinates(pool_map.query_points_mx2),
                "text": [f"<b>target example</b><br>{text}" for text in described],
                "hoverinfo": "text",
                "marker": {"size": 7, "symbol": "diamond-open", "line": {"width": 1.4}},
                "meta": "ink",  # page.js gives it the colour of the text
            }
        )
    cloud = _cloud(view, pool_map, shade_N, shades) if pool_map.placed_rows.size else None
    return {"data": traces, "layout": _plain_layout(), "arms": _chosen_points(view, pool_map, members), "cloud": cloud}


def served_figure(view: RunView, pool_map: PoolMap, arms: Sequence[ArmServed]) -> dict[str, Any]:
    """The pool in grey and the queries on it; served.js adds the lines of the query that is open.

    Returns:
      A Plotly figure with one more entry, "fans": for each arm, by the row of a query, where the examples lie that
      serve it, each as [x, y, its place in the list]; those off the map are left out.
    """
    places = pool_map.places()
    fans = []
    for arm in arms:
        fan = {}
        for query in arm.queries:
            ends = [(places[link.row], place) for place, link in enumerate(query.links, 1) if link.row in places]
            fan[query.query] = [[round(x, 3), round(y, 3), place] for (x, y), place in ends]
        fans.append(fan)
    pool = {
        "type": "scatter",
        "mode": "markers",
        "name": "pool",
        **_coordinates(pool_map.points_nx2),
        "hoverinfo": "skip",
        "marker": {"size": 3, "color": OTHER_COLOUR, "opacity": 0.35},
    }
    queries = {
        "type": "scatter",
        "mode": "markers",
        "name": "target examples",
        **_coordinates(pool_map.query_points_mx2),
        "customdata": pool_map.query_rows.tolist(),
        "text": [hover_text(view.queries.inputs[row], 220) for row in pool_map.query_rows] if view.queries else [],
        "hoverinfo": "text",
        "marker": {"size": 8, "symbol": "diamond-open", "line": {"width": 1.4}},
        "meta": "ink",
    }
    return {"data": [pool, queries], "layout": _plain_layout(), "fans": fans}


def _plain_layout() -> dict[str, Any]:
    """Without axes, and as wide as high: on a map only nearness means anything."""
    axis = {"visible": False, "showgrid": False, "zeroline": False}
    return {
        "xaxis": axis,
        "yaxis": {**axis, "scaleanchor": "x"},
        "showlegend": True,
        "legend": {"orientation": "h", "y": 0, "yanchor": "top", "x": 0, "itemsizing": "constant"},
        "margin": {"l": 4, "r": 4, "t": 4, "b": 4},
        "hovermode": "closest",
        "dragmode": "pan",
    }


def _cloud(view: RunView, pool_map: PoolMap, shade_N: np.ndarray, shades: Sequence[str]) -> dict[str, Any]:
    """The points without texts as bytes: 2 + 2 for where, 1 for the colour, and 1 bit an arm for whether it is chosen.

    A page of 100,000 points loads quickly because these are drawn as one image, and read without parsing numbers.
    """
    points_px2, rows = pool_map.placed_points_px2, pool_map.placed_rows
    low, high = points_px2.min(axis=0), points_px2.max(axis=0)
    span = np.maximum(high - low, 1e-6)
    chosen = [
        np.packbits(np.isin(rows, arm.first.indices), bitorder="little")
        for arm in view.arms
        if not arm.is_whole(len(view.pool))
    ]
    return {
        "count": rows.size,
        "low": low.tolist(),
        "span": span.tolist(),
        "at": _bytes(np.round((points_px2 - low) / span * _LARGEST).astype("<u2")),
        "shade": _bytes(shade_N[rows].astype(np.uint8)),
        "shades": list(shades),
        "chosen": [_bytes(bits) for bits in chosen],
    }


def _bytes(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode("ascii")


def _coordinates(points_nx2: np.ndarray) -> dict[str, list[float]]:
    return {axis: [round(float(v), 3) for v in points_nx2[:, column]] for column, axis in enumerate("xy")}


def _describe(view: RunView, row: int) -> str:
    flags = [name for name, has_N in view.pool.flags.items() if has_N[row]]
    head = f"<b>{plotly_text(view.pool.groups[row] or '(no group)')}</b>"
    if flags:
        head += f" · {plotly_text(', '.join(flags))}"
    return f"{head}<br>{hover_text(view.pool.inputs[row], 180)}<br>→ {hover_text(view.pool.targets[row], 120)}"


def _chosen_points(view: RunView, pool_map: PoolMap, members: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    arms = []
    for arm in view.arms:
        if arm.is_whole(len(view.pool)):
            continue
        reasons = dict(zip(np.asarray(arm.first.indices).tolist(), arm.first.reasons, strict=True))
        traces = []
        for points in members:
            rows = pool_map.rows[points].tolist()
            positions = [position for position, row in enumerate(rows) if row in reasons]
            why = [hover_text(str(reasons[rows[position]].get("why", "")), 160) for position in positions]
            traces.append({"points": positions, "why": why})
        arms.append({"label": plotly_text(arm.label), "traces": traces})
    return arms
