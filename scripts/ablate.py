"""What each part of one way to choose is worth: leave terms out, sweep any field, over several seeds.

    python scripts/ablate.py configs/objective.py --drop-each objective --sweep objective.kde.weight=0,0.1,1 --seeds 5
    python scripts/ablate.py configs/demo.py --sweep arms.tsds.selector.alpha=0.2,0.5,0.8 --until table --seeds 3

Fields of the config may be set as for the other scripts (`--workdir RUN`, `--arms.NAME.share 0.05`; `python
scripts/run.py CONFIG --help` lists them). A study that was stopped goes on by the same command. Writes
`ablation/table.json`, `ablation/table.jsonl` and `ablation/ablation.html` in the run folder.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from deft_tsds.cli import plain_errors, show_ablation
from deft_tsds.config import load
from deft_tsds.report.ablation import headings, write_ablation
from deft_tsds.runs import console
from deft_tsds.studies.ablation import ablate, cells
from deft_tsds.studies.variants import parse_sweep


@dataclass(frozen=True)
class Ablation:
    config: tyro.conf.Positional[Path]
    """A config file."""
    sweep: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """PATH=v1,v2,...: any field of the config; `objective` stands for the objective of the studied arm. Given several
    times, all combinations."""
    drop_each: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """`objective`: leave out each of its terms in turn."""
    seeds: int = 5
    """How often each cell is measured; intervals are over these."""
    until: Literal["select", "table"] = "select"
    """How deep. "select" looks at what is chosen, in seconds a cell; it is the default because what a term does to the
    choice shows there. "table" also fine-tunes on each choice and scores it, which takes as long as `run.py` does for
    each cell and seed, and is what a claim about a model needs."""
    arm: str | None = None
    """The arm to study, where neither the paths nor a single transport arm in the config say which."""
    held_out: float = 0.2
    """Share of the target examples that each seed leaves out of the choice, to measure how near it comes to them."""
    level: float = 0.95
    """Level of the intervals and of the verdicts."""


def main() -> None:
    options, rest = tyro.cli(Ablation, description=__doc__, return_unknown_args=True)
    with plain_errors():
        experiment, _ = load(options.config, rest)
        sweeps = dict(parse_sweep(text) for text in options.sweep)
        if len(sweeps) < len(options.sweep):
            raise ValueError("--sweep names a path twice: give all its values at once.")
        arm, found = cells(experiment, sweeps=sweeps, drops=options.drop_each, arm=options.arm, until=options.until)
        table = ablate(
            found,
            arm=arm,
            seeds=options.seeds,
            until=options.until,
            held_out=options.held_out,
            level=options.level,
        )
        page = write_ablation(table, experiment.workdir / "ablation" / "ablation.html", command=sys.argv)
        show_ablation(table, headings(table))
        if table["notice"]:
            console.print(table["notice"])
        console.print(f"table: {page.parent / 'table.json'}\npage: {page}", soft_wrap=True)


if __name__ == "__main__":
    main()
