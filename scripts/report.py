"""Write the page that explains the run: `python scripts/report.py CONFIG.py`."""

from deft_tsds.cli import main
from deft_tsds.runs import console

if __name__ == "__main__":
    main(lambda pipeline: console.print(f"report: {pipeline.report()}"))
