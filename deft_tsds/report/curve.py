"""The page of a budget curve: one self-contained file with the curves, their bands, and the verdict of every arm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deft_tsds.report import shell
from deft_tsds.report.ablation import interval, number
from deft_tsds.report.figures import OTHER_COLOUR, colour, plotly_text
from deft_tsds.report.results import metric_label, percent


def write_curve(table: Mapping[str, Any], path: str | Path, *, command: Sequence[str] = ()) -> Path:
    """Write the page of what `deft_tsds.studies.curve.curve` returned; `command` is what made it."""
    several = table["tests"] if len(table["tests"]) > 1 else []
    by_test = {f"test-{place}": curve_figure(table, test) for place, test in enumerate(several)}
    savings = {"savings": savings_figure(table)} if any(arm.get("savings") for arm in table["arms"].values()) else {}
    page = shell.render(
        "curve.html",
        filters={"number": number, "interval": interval, "percent": percent},
        plots={"curve": curve_figure(table), **savings, **by_test},
        styles=["style.css", "ablation.css"],
        scripts=["page.js", "sortable.js"],
        notices=[table["notice"]],
        table=table,
        metric=metric_label(table["metric"]),
        by_test=list(zip(several, by_test, strict=True)),
        has_savings=bool(savings),
        command=" ".join(command),
    )
    return shell.write(page, path)


def curve_figure(table: Mapping[str, Any], test: str | None = None) -> dict[str, Any]:
    """Score against budget, a line with its band for each arm; full data, what it may lose, and copying as levels.

    Of a single `test` there are no verdicts, and so neither what may be lost nor any mark of what is enough.
    """

    def score(found: Mapping[str, Any]) -> Mapping[str, Any]:
        return found if test is None else found["by_test"][test]

    traces = []
    for place, (name, arm) in enumerate(table["arms"].items()):
        points, shade = arm["points"], colour(place)
        budgets = [100 * point["budget"] for point in points]
        scores = [score(point["score"]) for point in points]
        lows, highs = ([each[end] for each in scores] for end in ("low", "high"))
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [*budgets, *budgets[::-1]],
                "y": [*highs, *lows[::-1]],
                "fill": "toself",
                "fillcolor": shade,
                "opacity": 0.15,
                "line": {"width": 0},
                "hoverinfo": "skip",
                "showlegend": False,
                "legendgroup": name,
            }
        )
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": plotly_text(name),
                "legendgroup": name,
                "x": budgets,
                "y": [each["value"] for each in scores],
                "line": {"color": shade, "width": 1.6},
                "marker": {
                    "color": shade,
                    "size": 8,
                    "symbol": ["circle" if point["enough"] or test else "circle-open" for point in points],
                },
                "text": [
                    plotly_text(f"{name}, {point['budget']:.3g}: {number(each['value'])} {interval(each)}", 120)
                    for point, each in zip(points, scores, strict=True)
                ],
                "hoverinfo": "text",
            }
        )
    levels = {"full": (score(table["full"])["value"], "solid")}
    if test is None:
        levels[f"full less {table['margin']:g}"] = (table["full"]["value"] - table["margin"], "dash")
    if table["copy"]:
        levels["copy"] = (score(table["copy"])["value"], "dot")
    ends = [100 * table["budgets"][0], 100.0]
    for name, (value, dash) in levels.items():
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": name,
                "x": ends,
                "y": [value, value],
                "line": {"color": OTHER_COLOUR, "dash": dash, "width": 1.4},
                "hoverinfo": "name+y",
            }
        )
    return {
        "data": traces,
        "layout": {
            "xaxis": {"type": "log", "title": {"text": "share of the pool, %"}},
            "yaxis": {"title": {"text": plotly_text(metric_label(table["metric"]))}},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
            "margin": {"l": 56, "r": 12, "t": 12, "b": 44},
        },
    }


def savings_figure(table: Mapping[str, Any]) -> dict[str, Any]:
    """How much of the pool each arm may leave out, by how much of the score may be lost; tables of before have none."""
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": plotly_text(name),
            "x": [margin for margin, _ in arm.get("savings", [])],
            "y": [100 * saved for _, saved in arm.get("savings", [])],
            "line": {"color": colour(place), "width": 1.6, "shape": "hv"},
            "hoverinfo": "name+x+y",
        }
        for place, (name, arm) in enumerate(table["arms"].items())
    ]
    label = plotly_text(metric_label(table["metric"]))
    return {
        "data": traces,
        "layout": {
            "xaxis": {"title": {"text": f"what may be lost, {label}"}, "rangemode": "tozero"},
            "yaxis": {"title": {"text": "data saved, %"}, "range": [-2, 102]},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
            "margin": {"l": 56, "r": 12, "t": 12, "b": 44},
        },
    }
