"""How few are enough: score against budget for every arm, and the smallest budget that loses nothing.

    python scripts/curve.py configs/demo.py --budgets 0.05,0.1,0.2,0.325,0.5 --replicates 5 --workdir runs/curve
    python scripts/curve.py configs/demo.py --budgets 0.01,0.02,0.05,0.1,0.2,0.5 --adaptive --margin 2 --replicates 5
    python scripts/curve.py configs/studies/curve_domain.py --workdir runs/curve_domain
    python scripts/curve.py runs/curve_domain/curve/table.json

The config is an experiment, whose arms are scored by fine-tuning, or a `studies.probed.Probed`, whose are by a probe.
Its fields may be set as for the other scripts; the budgets of an experiment's arms are not looked at. A study that was
stopped goes on by the same command; with fewer budgets it shows what there is. Writes `table.json`, `table.md` and
`curve.html` in the folder `curve` of the run folder; of a `table.json` the two others are made again.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import tyro

from deft_tsds.cli import plain_errors, show_curve
from deft_tsds.config import AUTO, Experiment, automatic, load_as
from deft_tsds.report.curve import write_curve
from deft_tsds.runs import console, read_json
from deft_tsds.studies.curve import Cells, curve, write_markdown
from deft_tsds.studies.finetuned import FineTuned
from deft_tsds.studies.probed import Probed


@dataclass(frozen=True)
class Curve:
    config: tyro.conf.Positional[Path]
    """A config file, or the table.json of a curve."""
    budgets: str = "0.01,0.02,0.05,0.1,0.2,0.325,0.5,0.7"
    """Shares of the pool, ascending."""
    margin: float = 1.0
    """How much of the first metric a budget may lose against all of the data and still be enough."""
    adaptive: bool = False
    """Look for the smallest budget that is enough by halving, in place of running all of them."""


def main() -> None:
    options, rest = tyro.cli(Curve, description=__doc__, return_unknown_args=True)
    with plain_errors():
        if options.config.suffix == ".json":
            table, folder = read_json(options.config), options.config.parent
        else:
            try:
                budgets = [float(budget) for budget in options.budgets.split(",")]
            except ValueError as error:
                raise ValueError(f"--budgets {options.budgets!r}: write numbers such as 0.05,0.1,0.5.") from error
            cells = read_cells(options.config, rest)
            table = curve(cells, budgets=budgets, margin=options.margin, adaptive=options.adaptive)
            folder = cells.facts().workdir / "curve"
        written = write_markdown(table, folder / "table.md")
        page = write_curve(table, folder / "curve.html", command=sys.argv)
        show_curve(table)
        if table["notice"]:
            console.print(table["notice"])
        console.print(f"table: {written}\npage: {page}", soft_wrap=True)


def read_cells(path: Path, arguments: list[str]) -> Cells:
    """The cells that a config describes."""

    def known(config: object) -> object:
        if not isinstance(config, (Experiment, Probed)):
            raise ValueError(
                f"{path} must define `config` as an Experiment or a Probed; found {type(config).__name__}."
            )
        return automatic(config) if AUTO in arguments and isinstance(config, Experiment) else config

    rest = [argument for argument in arguments if argument != AUTO]
    config, _ = load_as(object, path, rest, change=known)
    return config if isinstance(config, Probed) else FineTuned(cast(Experiment, config))


if __name__ == "__main__":
    main()
