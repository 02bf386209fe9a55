"""An experiment of the papers, or one's own: one config, one command, one table with intervals.

    python scripts/experiment.py configs/studies/tsds_kernel.py
    python scripts/experiment.py configs/studies/tsds_kernel.py --data.embeddings FOLDER --seeds 3 --workdir RUN

Fields of the config may be set as for the other scripts; CONFIG --help lists them. A study that was stopped goes on by
the same command. Writes `table.md` and `table.json` in the run folder, and `figures.html` where there is one.
"""

import sys

from deft_tsds.cli import plain_errors
from deft_tsds.config import load_as
from deft_tsds.runs import console
from deft_tsds.studies.study import Study


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    with plain_errors():
        study, _ = load_as(Study, sys.argv[1], sys.argv[2:])
        console.print(study.write(), markup=False, soft_wrap=True)
        console.print(f"table: {study.workdir / 'table.json'}", soft_wrap=True)


if __name__ == "__main__":
    main()
