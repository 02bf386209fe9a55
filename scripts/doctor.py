"""Is this machine fit for a run? Exit code 1 where something is a problem; each comes with the way to mend it.

python scripts/doctor.py
python scripts/doctor.py --workdir /mnt/disk/runs
"""

import gc
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deft_tsds import doctor

COLOURS = {"ok": "green", "note": "yellow", "problem": "red"}


@dataclass(frozen=True)
class Options:
    workdir: Path = Path("runs")
    """Where runs are to be written."""


if __name__ == "__main__":
    options = tyro.cli(Options, description=__doc__)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160
    gc.disable()  # a life too short for it: looking through all that compilers make takes a tenth of the time
    began = time.perf_counter()
    doctor.import_everything()
    imported = time.perf_counter()
    findings = list(doctor.machine(options.workdir))
    looked = time.perf_counter()
    findings += doctor.self_tests()
    tested = time.perf_counter()
    table = Table("", "state", "found", "how to mend")
    for name, state, found, mend in findings:
        table.add_row(escape(name), f"[{COLOURS[state]}]{state}[/]", escape(found), escape(mend))
    console.print(table)
    problems = sum(finding.state == "problem" for finding in findings)
    took = f"imports {imported - began:.2f} s, machine {looked - imported:.2f} s, self-test {tested - looked:.2f} s"
    console.print(f"{problems} problems" if problems else "fit", f"({took})")
    sys.exit(bool(problems))
