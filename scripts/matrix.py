"""Every selector on every representation: a choice that keeps the contract, or the reason why there is none.

    python scripts/matrix.py configs/studies/matrix.py

Fields of the config may be set as for the other scripts (`--workdir RUN`, `--budget 50`). A matrix that was stopped
goes on by the same command. Writes `matrix.md` and `matrix.json` in the run folder; ends with 1 where a cell failed.
"""

import sys

from deft_tsds.cli import plain_errors
from deft_tsds.config import load_as
from deft_tsds.runs import console
from deft_tsds.studies.matrix import Matrix, fill, write_matrix


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    with plain_errors():
        matrix, _ = load_as(Matrix, sys.argv[1], sys.argv[2:])
        found = fill(matrix)
        console.print(write_matrix(found, matrix.workdir), markup=False, soft_wrap=True)
        console.print(f"matrix: {matrix.workdir / 'matrix.json'}", soft_wrap=True)
    sys.exit(any(cell["status"] == "failed" for cell in found["cells"]))


if __name__ == "__main__":
    main()
