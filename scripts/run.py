"""The whole job: choose, fine-tune, score, explain.

python scripts/run.py configs/demo.py --workdir runs/demo --train.steps 500
python scripts/run.py configs/demo.py --workdir runs/auto --auto      # K, base share, alpha, bandwidth from the data
"""

from deft_tsds.cli import main, show_table
from deft_tsds.pipeline import Pipeline
from deft_tsds.runs import console


def run(pipeline: Pipeline) -> None:
    page = pipeline.report()
    show_table(pipeline)
    if pipeline.notice:
        console.print(pipeline.notice)
    console.print(f"report: {page}")


if __name__ == "__main__":
    main(run)
