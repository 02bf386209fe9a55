"""Figures as plain Plotly JSON, and what every one of them is made with: colours, and texts that Plotly may read.

Plotly reads a pseudo-HTML in every text and `%{...}` in every template, so all text goes through `plotly_text`.
It knows the escapes of `&`, `<` and `>` only, and shows any other one as it stands; quotes are harmless to it.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deft_tsds.report.coverage import Coverage
from deft_tsds.report.view import ArmView

COLOURS = (
    "#c2503c",
    "#2f7fb8",
    "#4d8a3d",
    "#9a66b8",
    "#b0761b",
    "#1d8b85",
    "#c0528c",
    "#7a7d3a",
    "#5a74cc",
    "#93705f",
)
"""At least 3:1 against the page in light and in dark, so that a figure needs no second palette."""

OTHER_COLOUR = "#80807c"

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x")
_MOST_CURVE_POINTS = 300
_HOVER_WIDTH = 58
_BIDI_CONTROLS = dict.fromkeys([0x61C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)])


def plotly_text(text: str, limit: int = 60) -> str:
    """Make text from the data safe to hand to Plotly: one line, cut, escaped, without direction controls."""
    line = " ".join(text.translate(_BIDI_CONTROLS).split())
    line = line if len(line) <= limit else line[: limit - 1] + "…"
    return html.escape(line, quote=False).replace("%{", "% {")


def hover_text(text: str, limit: int) -> str:
    """As `plotly_text`, wrapped into lines."""
    line = " ".join(text.translate(_BIDI_CONTROLS).split())
    line = line if len(line) <= limit else line[: limit - 1] + "…"
    return "<br>".join(
        html.escape(part, quote=False).replace("%{", "% {") for part in textwrap.wrap(line, _HOVER_WIDTH)
    )


def loss_figure(arms: Sequence[ArmView]) -> dict[str, Any] | None:
    """One line a run, a colour and a dash an arm, rings for validation losses; None when nothing has been trained."""
    traces = []
    for number, arm in enumerate(arms):
        style = {"color": colour(number), "dash": _DASHES[number % len(_DASHES)], "width": 1.6}
        group = {"legendgroup": str(number), "name": plotly_text(arm.label)}
        for position, (seed, rows) in enumerate(arm.metrics.items()):
            steps, losses = _thin(rows, "loss")
            about = f"{plotly_text(arm.label)}, seed {seed}"
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "x": steps,
                    "y": losses,
                    "line": style,
                    "showlegend": position == 0,
                    "hovertemplate": f"{about}<br>step %{{x}}: loss %{{y:.3f}}<extra></extra>",
                    **group,
                }
            )
            validated = [row for row in rows if row.get("validation_loss") is not None]
            if validated:
                traces.append(
                    {
                        "type": "scatter",
                        "mode": "markers",
                        "x": [row["step"] for row in validated],
                        "y": [round(row["validation_loss"], 5) for row in validated],
                        "marker": {"symbol": "circle-open", "size": 7, "color": colour(number)},
                        "showlegend": False,
                        "hovertemplate": f"{about}<br>step %{{x}}: validation loss %{{y:.3f}}<extra></extra>",
                        **group,
                    }
                )
    if not traces:
        return None
    layout = {
        "xaxis": {"title": {"text": "optimiser step"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "training loss"}},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "margin": {"l": 56, "r": 12, "t": 36, "b": 44},
        "hovermode": "closest",
    }
    return {"data": traces, "layout": layout}


def coverage_figure(found: Coverage, texts: Sequence[str], query_rows: np.ndarray) -> dict[str, Any]:
    """A point a query and arm: the distance to the nearest chosen example over what the pool could offer.

    Args:
      found: the distances.
      texts: of all queries, for the labels of the points.
      query_rows: int [m], the queries to show.
    """
    offered = found.offered_M[query_rows]
    ends = [float(offered.min()), float(offered.max())]
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "as near as the pool allows",
            "x": ends,
            "y": ends,
            "line": {"color": OTHER_COLOUR, "width": 1.4, "dash": "dash"},
            "hoverinfo": "skip",
        }
    ]
    rows: list[int] = query_rows.tolist()
    described = [hover_text(texts[row], 180) for row in rows]
    for arm in found.arms:
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": plotly_text(arm.label),
                "x": _rounded(offered),
                "y": _rounded(arm.distances_M[query_rows]),
                "text": described,
                "hovertemplate": "%{text}<br>nearest chosen %{y:.3f}, nearest in the pool %{x:.3f}<extra></extra>",
                "marker": {
                    "color": colour(arm.number),
                    "size": 6,
                    "symbol": _SYMBOLS[arm.number % len(_SYMBOLS)],
                },
            }
        )
    layout = {
        "xaxis": {"title": {"text": "distance to the nearest in the pool"}},
        "yaxis": {"title": {"text": "to the nearest chosen"}},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "margin": {"l": 56, "r": 12, "t": 36, "b": 44},
        "hovermode": "closest",
    }
    return {"data": traces, "layout": layout}


def colour(number: int) -> str:
    """The colour of the arm or group with this number; colours come again after ten."""
    return COLOURS[number % len(COLOURS)]


def _thin(rows: Sequence[Mapping[str, Any]], field: str) -> tuple[list[int], list[float]]:
    """At most 300 points of a curve: each the mean of equally many rows that follow one another."""
    points = [(row["step"], row[field]) for row in rows if row.get(field) is not None]
    stride = -(-len(points) // _MOST_CURVE_POINTS) or 1
    parts = [points[start : start + stride] for start in range(0, len(points), stride)]
    return [part[-1][0] for part in parts], [round(float(np.mean([loss for _, loss in part])), 5) for part in parts]


def _rounded(values: np.ndarray) -> list[float]:
    return [round(value, 4) for value in values.tolist()]
