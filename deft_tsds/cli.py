"""What the scripts share: read the config, say errors plainly, show the table."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from rich.markup import escape
from rich.table import Table

from deft_tsds.config import load
from deft_tsds.evaluate import cell
from deft_tsds.pipeline import Pipeline
from deft_tsds.runs import console, read_json

# The models here are ours: that transformers finds no torch for its own is no news.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def main(work: Callable[[Pipeline], object]) -> None:
    """Run `work` on the pipeline of `script.py CONFIG [--field value ...]`; a wrong input ends in one clear line."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(f"usage: {sys.argv[0]} CONFIG.py [--workdir RUN] [--field value ...]   (CONFIG.py --help lists them)")
    try:
        experiment, description = load(sys.argv[1], sys.argv[2:])
        work(Pipeline(experiment, description))
    except (ValueError, FloatingPointError) as error:
        console.print(f"[red]error[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on from here")
        sys.exit(130)


def show_table(pipeline: Pipeline) -> None:
    """Print the primary metric of every arm on every test set, with intervals."""
    table = read_json(pipeline.table.folder / "table.json")
    metric, tests = table["primary"], [*(test["name"] for test in table["tests"]), "all"]
    shown = Table(title=f"{metric}: {table['conventions'][metric]}", title_justify="left")
    shown.add_column("arm")
    for test in tests:
        shown.add_column(test, justify="right")
    for arm in table["arms"]:
        found = [cell(table, arm, test, metric) for test in tests]
        shown.add_row(arm, *(f"{score.value:.1f} [dim]\\[{score.low:.1f}, {score.high:.1f}][/]" for score in found))
    console.print(shown)
