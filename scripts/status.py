"""How far a run is: every stage with its state, time, memory, and for a training the step and what is left.

python scripts/status.py runs/demo            # also while it runs, from another terminal, or after a kill
python scripts/status.py runs/curve --all     # every stage of a study by itself
python scripts/status.py runs/demo --json     # for programs
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deft_tsds.status import Status, lines, span, status

COLOURS = {"done": "green", "running": "cyan", "half-way": "yellow", "stale": "magenta", "damaged": "red"}


@dataclass(frozen=True)
class Options:
    run: tyro.conf.Positional[Path]
    """The run folder (`--workdir`)."""
    all: bool = False
    """Every stage by itself, however many there are."""
    json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """One JSON object instead of a table."""


def show(found: Status, *, everything: bool) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160
    table = Table("stage", "state", "time", "memory", "")
    for column in table.columns:
        column.overflow = "fold"
    for name, state, *rest in lines(found, everything=everything):
        colour = COLOURS.get(state)
        table.add_row(escape(name), f"[{colour}]{state}[/]" if colour else state, *map(escape, rest))
    console.print(table)
    console.print(", ".join(f"{count} {state}" for state, count in found.counts.items()))
    if found.lock and found.lock["alive"] is not False:
        words = "{pid} on {host}, since {since}: {command}".format(**{"since": "?", "command": "?", **found.lock})
        console.print(f"held by process {words}", markup=False, soft_wrap=True)
    if not found.to_come:
        console.print("What else is to come, the folder does not say: its command makes up cells as it goes.")
    seconds, unknown = found.left()
    if seconds:
        words = f"about {span(seconds)} of work left, by stages of the same kind"
        console.print(words + (f", and {unknown} stages of which nothing is known" if unknown else ""))


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    try:
        found = status(options.run)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if options.json:
        print(json.dumps(found.as_json(), indent=2))
    else:
        show(found, everything=options.all)
