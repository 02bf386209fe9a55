"""The figures as plain Plotly JSON, and the interval plot as numbers for the template's SVG.

Plotly reads a pseudo-HTML in every text and `%{...}` in every template, so all text goes through `plotly_text`.
It knows the escapes of `&`, `<` and `>` only, and shows any other one as it stands; quotes are harmless to it.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deft_tsds.report.map2d import PoolMap
from deft_tsds.report.results import ALL_TESTS, COPY, arm_label, columns, decimals, find, format_number, metric_label
from deft_tsds.report.view import ArmView, RunView

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


def map_figure(view: RunView, pool_map: PoolMap) -> dict[str, Any]:
    """The map, a trace a group, and for each arm which points of each trace it chose and why.

    Returns:
      A Plotly figure with one more entry, "arms": for each arm that leaves something out, its label and, trace by
      trace, the positions of the chosen points ("points") with their reasons ("why").
    """
    groups = np.array(view.pool.groups)[pool_map.rows]
    names, counts = np.unique(np.array(view.pool.groups), return_counts=True)
    ranked = names[np.argsort(-counts, kind="stable")]
    coloured = list(ranked[: len(COLOURS)])
    members = [np.flatnonzero(groups == name) for name in coloured]
    labels = [plotly_text(str(name) or "(no group)", 28) for name in coloured]
    shades = [colour(number) for number in range(len(coloured))]
    if len(ranked) > len(coloured):
        members.append(np.flatnonzero(~np.isin(groups, coloured)))
        labels.append(f"{len(ranked) - len(coloured)} smaller groups")
        shades.append(OTHER_COLOUR)

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
    axis = {"visible": False, "showgrid": False, "zeroline": False}
    layout = {
        "xaxis": axis,
        "yaxis": {**axis, "scaleanchor": "x"},
        "legend": {"orientation": "h", "y": 0, "yanchor": "top", "x": 0, "itemsizing": "constant"},
        "margin": {"l": 4, "r": 4, "t": 4, "b": 4},
        "hovermode": "closest",
        "dragmode": "pan",
    }
    return {"data": traces, "layout": layout, "arms": _chosen_points(view, pool_map, members)}


def colour(number: int) -> str:
    """The colour of the arm or group with this number; colours come again after ten."""
    return COLOURS[number % len(COLOURS)]


@dataclass(frozen=True)
class Mark:
    """A value with its interval and its seeds, in percent of the width of its panel."""

    value: float
    low: float
    high: float
    seeds: tuple[float, ...]


@dataclass(frozen=True)
class IntervalPanel:
    """One scale shared by all arms, with a line to compare with."""

    title: str
    marks: Mapping[str, Mark]
    """By arm name; an arm without a value has none."""
    line: float | None
    line_label: str
    reference: str
    """The arm that the others are compared with here, which therefore has no mark; "" for none."""
    ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class IntervalPlot:
    """The primary metric at a glance: arms down; scores on the left, paired differences on the right."""

    arms: tuple[tuple[str, str], ...]
    """(name, label), copying left out: it is the line of the first panel."""
    panels: tuple[IntervalPanel, ...]


def interval_plot(view: RunView) -> IntervalPlot | None:
    """Lay out the primary metric on all tests (or on the only one); None without any score."""
    table, metric = view.table, view.table["primary"]
    test = columns(table)[0]
    digits = decimals(table, metric)
    names = [name for name in table["arms"] if name != COPY]
    where = {"test": test, "metric": metric}
    scores = {name: cell for name in names if (cell := find(table["cells"], arm=name, **where))}
    if not scores:
        return None
    copying = find(table["cells"], arm=COPY, **where)
    scope = "mean over the test sets" if test == ALL_TESTS else f"test set {test}"
    line = copying["value"] if copying else None
    label = f"copying {format_number(line, digits)}" if line is not None else ""
    panels = [_panel(f"{metric_label(metric)}, {scope}", scores, line, label, "")]
    against = next((row["against"] for row in table["differences"] if row["against"] != COPY), None)
    if against:
        found = {name: find(table["differences"], arm=name, against=against, **where) for name in names}
        differences = {name: row for name, row in found.items() if row}
        if differences:
            panels.append(_panel(f"paired difference against {against}", differences, 0.0, "no difference", against))
    return IntervalPlot(tuple((name, arm_label(view.arms, name)) for name in names), tuple(panels))


def _panel(
    title: str, rows: Mapping[str, Mapping[str, Any]], line: float | None, line_label: str, reference: str
) -> IntervalPanel:
    numbers = [number for row in rows.values() for number in (row["value"], *_ends(row), *(row.get("seeds") or ()))]
    numbers += [line] if line is not None else []
    ticks = nice_ticks(min(numbers), max(numbers))
    least, most = ticks[0], ticks[-1]

    def at(number: float) -> float:
        return round(100 * (number - least) / (most - least), 3)

    marks = {}
    for name, row in rows.items():
        low, high = _ends(row)
        marks[name] = Mark(at(row["value"]), at(low), at(high), tuple(at(seed) for seed in row.get("seeds") or ()))
    step = ticks[1] - ticks[0]
    places = next(places for places in range(8) if abs(round(step, places) - step) < step / 1000)
    labels = tuple((at(tick), format_number(tick, places)) for tick in ticks)
    return IntervalPanel(title, marks, None if line is None else at(line), line_label, reference, labels)


def nice_ticks(least: float, most: float) -> tuple[float, ...]:
    """Three to seven round numbers, evenly spaced, that enclose the range."""
    span = max(most - least, 1e-3 * max(abs(least), abs(most)), 1e-6)
    power = 10.0 ** np.floor(np.log10(span))
    step = next(float(power * unit) for unit in (0.2, 0.5, 1, 2) if span / (power * unit) <= 5)
    first, last = int(np.floor(least / step)), int(np.ceil(most / step))
    last = max(last, first + 2)
    return tuple(round(number * step, 10) for number in range(first, last + 1))


def _ends(cell: Mapping[str, Any]) -> tuple[float, float]:
    low, high = cell.get("low"), cell.get("high")
    return (cell["value"] if low is None else low), (cell["value"] if high is None else high)


def _thin(rows: Sequence[Mapping[str, Any]], field: str) -> tuple[list[int], list[float]]:
    """At most 300 points of a curve: each the mean of equally many rows that follow one another."""
    points = [(row["step"], row[field]) for row in rows if row.get(field) is not None]
    stride = -(-len(points) // _MOST_CURVE_POINTS) or 1
    parts = [points[start : start + stride] for start in range(0, len(points), stride)]
    return [part[-1][0] for part in parts], [round(float(np.mean([loss for _, loss in part])), 5) for part in parts]


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
