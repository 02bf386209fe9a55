"""How few are enough: score against budget for every arm, and the smallest budget that loses nothing.

    python scripts/curve.py configs/demo.py --budgets 0.05,0.1,0.2,0.325,0.5 --replicates 5 --workdir runs/curve
    python scripts/curve.py configs/demo.py --budgets 0.01,0.02,0.05,0.1,0.2,0.5 --adaptive --margin 2 --replicates 5

Fields of the config may be set as for the other scripts; the budgets of its arms are not looked at. A study that was
stopped goes on by the same command. Writes `curve/table.json` and `curve/curve.html` in the run folder.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from deft_tsds.cli import plain_errors, show_curve
from deft_tsds.config import load
from deft_tsds.report.curve import write_curve
from deft_tsds.runs import console
from deft_tsds.studies.curve import curve


@dataclass(frozen=True)
class Curve:
    config: tyro.conf.Positional[Path]
    """A config file."""
    budgets: str = "0.01,0.02,0.05,0.1,0.2,0.325,0.5,0.7"
    """Shares of the pool, ascending."""
    margin: float = 1.0
    """How much of the first metric a budget may lose against all of the data and still be enough."""
    adaptive: bool = False
    """Look for the smallest budget that is enough by halving, in place of running all of them."""


def main() -> None:
    options, rest = tyro.cli(Curve, description=__doc__, return_unknown_args=True)
    with plain_errors():
        experiment, _ = load(options.config, rest)
        try:
            budgets = [float(budget) for budget in options.budgets.split(",")]
        except ValueError as error:
            raise ValueError(f"--budgets {options.budgets!r}: write numbers such as 0.05,0.1,0.5.") from error
        table = curve(experiment, budgets=budgets, margin=options.margin, adaptive=options.adaptive)
        page = write_curve(table, experiment.workdir / "curve" / "curve.html", command=sys.argv)
        show_curve(table)
        if table["notice"]:
            console.print(table["notice"])
        console.print(f"table: {page.parent / 'table.json'}\npage: {page}", soft_wrap=True)


if __name__ == "__main__":
    main()
