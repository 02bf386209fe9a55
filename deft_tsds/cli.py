"""What the scripts share: read the config, say errors plainly, show the table."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.markup import escape
from rich.table import Table

from deft_tsds.config import load
from deft_tsds.evaluate import cell
from deft_tsds.pipeline import Pipeline
from deft_tsds.running import locks, processes, stopping
from deft_tsds.running.files import DiskFull
from deft_tsds.runs import console, read_json

# The models here are ours: that transformers finds no torch for its own is no news.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def main(work: Callable[[Pipeline], object]) -> None:
    """Run `work` on the pipeline of `script.py CONFIG [--field value ...]`; a wrong input ends in one clear line."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(
            f"usage: {sys.argv[0]} CONFIG.py [--auto] [--workdir RUN] [--field value ...]   (CONFIG.py --help lists "
            "them; --auto has the knobs of DEFT and TSDS decided by the data)"
        )
    with plain_errors():
        experiment, description = load(sys.argv[1], sys.argv[2:])
        work(Pipeline(experiment, description))


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """End with one clear line where an input is wrong, the disk is full, or the process was told to stop.

    Inside, this process is one of its run, if there are several, and keeps the run folders that it has locked.
    """
    message = None
    try:
        with stopping.listening(), locks.kept():
            processes.start()
            console.quiet = not processes.is_writer()
            yield
            processes.finish()
    except (ValueError, FloatingPointError, DiskFull) as error:
        message = str(error)
    except RuntimeError as error:  # also what JAX raises where the connection to another process breaks
        if processes.count() == 1:
            raise
        traceback.print_exc()
        processes.await_loss()  # if it is another process that is gone, this does not return
        message = str(error)
    except KeyboardInterrupt as stopped:
        console.print(f"stopped by {stopped}" if str(stopped) else "stopped")
        console.print(f"resume with: {stopping.command()}", markup=False, soft_wrap=True)
        processes.leave(code := getattr(stopped, "exit_code", 130))
        sys.exit(code)
    except BaseException as error:  # no more than one process knows of it
        if processes.count() > 1 and not isinstance(error, SystemExit):
            traceback.print_exc()
            processes.leave(1, repr(error))
        raise
    if message is not None:
        console.quiet = False
        console.print(f"[red]error[/] {escape(message)}", soft_wrap=True)
        processes.leave(1, message)
        sys.exit(1)


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


def show_ablation(table: Mapping[str, Any], measures: Mapping[str, str]) -> None:
    """Print the cells of an ablation: means with intervals, and the differences to the first that are shown.

    Args:
        table: what `ablate` returned.
        measures: the columns to print: by name of a measure, its title.
    """
    level = f"{100 * table['level']:g}%"
    shown = Table(
        title=f"{table['arm']}: mean of {table['seeds']} seeds with {level} intervals; below, the paired difference to "
        f"'{table['cells'][0]['name']}', * where it is shown after Holm's correction",
        title_justify="left",
    )
    shown.add_column("cell", overflow="fold")
    for title in measures.values():
        shown.add_column(title, justify="right", overflow="fold")
    for row in table["cells"]:
        columns = [_estimates(row, measure) for measure in measures]
        shown.add_row(escape(row["name"]), *columns, end_section=True)
    console.print(shown)
    for row in table["cells"]:
        for note in row["notes"]:
            console.print(f"{row['name']}: {note}", soft_wrap=True, markup=False)


def show_curve(table: Mapping[str, Any]) -> None:
    """Print the points of a budget curve, and the verdict of each arm."""
    level = f"{100 * table['level']:g}%"
    title = f"{table['metric']}, {table['seeds']} seeds, {level} intervals; * loses less than {table['margin']:g}"
    shown = Table(title=title, title_justify="left")
    for column in ("arm", *(f"{budget:.3g}" for budget in table["budgets"]), "1"):
        shown.add_column(column, justify="left" if column == "arm" else "right", overflow="fold")
    for name, arm in table["arms"].items():
        points = {
            point["budget"]: _numbers(point["score"]) + ("*" if point["enough"] else " ") for point in arm["points"]
        }
        shown.add_row(escape(name), *(points.get(budget, "-") for budget in table["budgets"]), "-")
    for name in ("full", "copy") if table["copy"] else ("full",):
        shown.add_row(name, *("" for _ in table["budgets"]), _numbers(table[name]))
    console.print(shown)
    for name, arm in table["arms"].items():
        console.print(f"{name}: {arm['verdict']}.", soft_wrap=True, markup=False)


def _estimates(row: Mapping[str, Any], measure: str) -> str:
    if measure not in row["measures"]:
        return "-"
    lines = _numbers(row["measures"][measure])
    if measure in row["differences"]:
        difference = row["differences"][measure]
        star = "*" if difference["verdict"] in ("higher", "lower") else " "
        lines += f"\n[dim]{_numbers(difference, sign='+')}{star}[/]"
    return lines


def _numbers(found: Mapping[str, Any], sign: str = "") -> str:
    if found["low"] is None:
        return f"{found['value']:{sign}.3g} \\[one seed]"
    return f"{found['value']:{sign}.3g} \\[{found['low']:.3g}, {found['high']:.3g}]"
