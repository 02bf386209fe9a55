"""Write the page that explains a run, or the page that compares several.

python scripts/report.py configs/demo.py                        # does what is missing before it, as run.py would
python scripts/report.py runs/demo                              # from the files of the run folder alone
python scripts/report.py runs/a runs/b runs/c --out compare.html
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from deft_tsds.cli import main, plain_errors
from deft_tsds.report import write_comparison, write_report
from deft_tsds.runs import console


@dataclass(frozen=True)
class Report:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders: one is explained, several are compared."""
    out: Path | None = None
    """The HTML file; for one run RUN/report.html unless it is given."""


def write(options: Report) -> Path:
    for run in options.runs:
        if not (run / "experiment.json").is_file():
            raise ValueError(f"{run} is no run folder (it holds no experiment.json): give the --workdir of a run.")
    if len(options.runs) == 1:
        return write_report(options.runs[0], options.out)
    if not options.runs or options.out is None:
        raise ValueError("give one run folder, or several and --out PAGE.html for their comparison.")
    return write_comparison(options.runs, options.out, command=sys.argv)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1].endswith(".py"):
        main(lambda pipeline: console.print(f"report: {pipeline.report()}"))
    else:
        with plain_errors():
            console.print(f"report: {write(tyro.cli(Report, description=__doc__))}", soft_wrap=True)
