"""The page of a human evaluation: who was preferred, how often each was right, and how far the raters agreed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deft_tsds.report import shell
from deft_tsds.report.results import format_number
from deft_tsds.runs import atomic_write

MOST_SHOWN = 50
"""Disagreements on the page; all are in `results.json`."""


def write_judged(found: Mapping[str, Any], path: str | Path, *, command: Sequence[str] = ()) -> Path:
    """Write the page of what `deft_tsds.judging.collecting.results` returned; `command` is what made it."""
    page = shell.render(
        "judged.html",
        filters={"share": share, "kappa": kappa, "said": said},
        plots={},
        styles=["style.css", "ablation.css"],
        scripts=["sortable.js"],
        found=found,
        notes=notes(found),
        questions={question["name"]: question for question in found["questions"]},
        tasks=sorted(
            {task for by_system in found["each"].values() for one in by_system.values() for task in one["tasks"]}
        ),
        most=MOST_SHOWN,
        command=" ".join(command),
    )
    path = Path(path)
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")
    return path


def notes(found: Mapping[str, Any]) -> list[str]:
    """What a reader must know beside the numbers."""
    told = []
    for rater in found["raters"]:
        if rater["dropped"]:
            told.append(
                f"{rater['name']} is left out: {rater['right']} of {rater['checks']} attention checks right, and "
                f"{found['attention']:.0%} are asked for."
            )
        elif rater["judged"] < rater["given"]:
            told.append(f"{rater['name']} judged {rater['judged']} of {rater['given']} items.")
    if found["absent"]:
        told.append(f"No answers came from {', '.join(found['absent'])}.")
    for pair in found["pairs"]:
        names, same = " and ".join(pair["systems"]), f"{pair['same']} of {pair['examples']} examples"
        counted = f"{pair['draws']} of them were drawn and count as ties unseen" if pair["draws"] else "none was judged"
        if pair["same"]:
            told.append(f"{names} wrote the same on {same}: {counted}.")
    return told


def share(found: Mapping[str, Any]) -> str:
    """A share with its interval."""
    if found["value"] is None:
        return "–"
    return f"{100 * found['value']:.1f}% [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def kappa(found: Mapping[str, Any]) -> str:
    """A kappa with its interval."""
    if found["value"] is None:
        return "not defined"
    low, high = found["low"], found["high"]
    ends = "no interval" if low is None else f"{format_number(low, 2)}, {format_number(high, 2)}"
    return f"{format_number(found['value'], 2)} [{ends}]"


def said(answers: Mapping[str, Any]) -> str:
    """What one rater said of one item."""
    parts = [f"{name}: {answer}" for name, answer in answers["which"].items()]
    for name, by_system in answers["each"].items():
        parts += [f"{system} {name}: {'yes' if answer else 'no'}" for system, answer in by_system.items()]
    return "; ".join(parts)
