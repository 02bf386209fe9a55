"""The table of contenders under conditions as Markdown, and its figures: scores, and quality against cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deft_tsds.report.figures import colour, plotly_text
from deft_tsds.report.shell import clipped
from deft_tsds.studies.study import markdown_table, shown
from deft_tsds.studies.targeted_table import LEVEL

TITLES = {
    "neighborhood": "neighbourhood",
    "effective_size": "effective size",
    "own": "own data set",
    "distinct": "distinct",
    "near_duplicates": "near-duplicates",
    "classes": "classes",
    "originals": "originals",
    "repeated": "repeated",
}
"""Titles of what is measured of a choice, and the order of the columns."""
OF_COPIES = ("originals", "repeated")
"""Those that say something only where copies are planted."""
_NOTE = 240  # letters: a selector may say the same of every seed and target, in other numbers
_WHOLE_NUMBERS = ("neighborhood", "effective_size", "originals")


def markdown(found: Mapping[str, Any], table: Mapping[str, Any], columns: Sequence[str]) -> str:
    """One share of a comparison (`Comparison.fill`): a line a row, the measures that `columns` names."""
    targets, rows = list(found["targets"]), table["rows"]
    several = len({row["condition"] for row in rows}) > 1
    measures = [name for name in columns if any(name in row["measures"] for row in rows)]
    costs = any("costs" in row for row in rows)
    titles = ["selector", *(["condition"] if several else []), *(TITLES[name] for name in measures), *targets]
    titles += ["mean macro-F1", f"less {found['against']}", *([f"less {found['first']}"] if several else [])]
    titles += ["seconds", "first call", "MB", "on the front"] if costs else []
    lines = []
    for row in rows:
        line = [row["contender"], *([row["condition"]] if several else [])]
        line += [shown(row["measures"].get(name), 0 if name in _WHOLE_NUMBERS else 2) for name in measures]
        scores = row["macro_f1"] or {}
        line += [f"{scores[name]['value']:.1f}" if scores else "–" for name in targets]
        line += [shown(scores.get("mean")), _difference(row["to_against"])]
        line += [_difference(row["to_first"])] if several else []
        if costs:
            line += _costs(row)
        lines.append(line)
    title = f"**{table['share']:.1%} of the pool: {table['budget']:,} of {found['candidates']:,} rows**"
    notes = [f"\n{row['name']}: {clipped(row['note'], _NOTE)}" for row in rows if row["note"]]
    return "\n".join([title, "", markdown_table(titles, lines), *notes])


def _difference(found: Mapping[str, Any] | None) -> str:
    """The difference with its interval, and a star where it is shown after Holm's correction."""
    return "–" if found is None else shown(found, 1, "+") + ("*" if found["p_holm"] < 1 - LEVEL else "")


def _costs(row: Mapping[str, Any]) -> list[str]:
    if "costs" not in row:
        return ["–"] * 4
    cost = row["costs"]
    memory = "–" if cost["peak_bytes"] is None else f"{cost['peak_bytes'] / 1e6:,.0f}"
    return [shown(cost["seconds"], 2), f"{cost['first_seconds']:.1f}", memory, "yes" if row["on_front"] else "no"]


def score_figure(table: Mapping[str, Any]) -> dict[str, Any]:
    """Mean macro-F1 with its interval: a line a contender over the conditions, or a point a contender."""
    rows = [row for row in table["rows"] if row["macro_f1"]]
    several = len({row["condition"] for row in rows}) > 1
    traces = []
    for place, contender in enumerate(dict.fromkeys(row["contender"] for row in rows)):
        mine = [row for row in rows if row["contender"] == contender]
        means = [row["macro_f1"]["mean"] for row in mine]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if several else "markers",
                "name": plotly_text(contender),
                "x": [plotly_text(row["condition"] if several else contender) for row in mine],
                "y": [mean["value"] for mean in means],
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [mean["high"] - mean["value"] for mean in means],
                    "arrayminus": [mean["value"] - mean["low"] for mean in means],
                },
                "line": {"color": colour(place)},
                "marker": {"color": colour(place), "size": 8},
            }
        )
    return {"data": traces, "layout": {"yaxis": {"title": {"text": "mean macro-F1, 95% interval"}}}}


def front_figure(table: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds against score, a colour a condition; filled, and joined, where nothing is both faster and better."""
    rows = [row for row in table["rows"] if "costs" in row]
    traces = []
    for place, condition in enumerate(dict.fromkeys(row["condition"] for row in rows)):
        mine = sorted((row for row in rows if row["condition"] == condition), key=lambda row: _seconds(row))
        front = [row for row in mine if row["on_front"]]
        style, name = {"color": colour(place)}, plotly_text(condition)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [_seconds(row) for row in front],
                "y": [row["macro_f1"]["mean"]["value"] for row in front],
                "line": {**style, "shape": "hv", "width": 1.4},
                "name": f"front, {name}",
            }
        )
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "x": [_seconds(row) for row in mine],
                "y": [row["macro_f1"]["mean"]["value"] for row in mine],
                "text": [plotly_text(row["contender"]) for row in mine],
                "textposition": "top center",
                "marker": {**style, "size": 9, "symbol": ["circle" if r["on_front"] else "circle-open" for r in mine]},
                "name": name,
            }
        )
    axes = {"xaxis": {"type": "log", "title": {"text": "seconds of one selection"}}}
    return {"data": traces, "layout": {**axes, "yaxis": {"title": {"text": "mean macro-F1"}}}}


def _seconds(row: Mapping[str, Any]) -> float:
    return row["costs"]["seconds"]["value"]
