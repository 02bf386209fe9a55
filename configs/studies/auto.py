"""Knobs from the data against the papers' fixed ones, on real editing text: DEFT and TSDS, each both ways, and random.

    python scripts/curve.py configs/studies/auto.py --budgets 0.02,0.05,0.1,0.2,0.325,0.5 --workdir runs/auto-curve
    python scripts/run.py configs/studies/auto.py --workdir runs/auto

`--auto` does for the arms of any config what `deft_auto` and `tsds_auto` do here. DEFT with its fixed base of 30% of
the pool has no choice of fewer, and the curve says so.
"""

from pathlib import Path

from deft_tsds.config import Arm, Evaluate, Experiment, Files, HeldOut, Source, Train
from deft_tsds.selectors import DEFT, TSDS, Random

SHARED = Path(__file__).parents[3] / "shared"

config = Experiment(
    data=Files(
        pool=Source(
            str(SHARED / "data/edit/edit_train_pool.jsonl.gz"), group_field="subtask", instruction_field="instruction"
        ),
        queries=HeldOut(group="gec", count=200),
        tests={
            name: Source(
                str(SHARED / f"data/edit/edit_test_{name}.jsonl.gz"),
                target_field=None,
                references_field="references",
                group_field="task",
                instruction_field="instruction",
            )
            for name in ("asset", "turk", "jfleg")
        },
    ),
    arms={
        "random": Arm(Random(), share=0.325),
        "deft": Arm(DEFT(), share=0.325),
        "deft_auto": Arm(DEFT(clusters="auto", base="auto"), share=0.325),
        "tsds": Arm(TSDS(), share=0.325),
        "tsds_auto": Arm(TSDS(alpha="auto", bandwidth="auto"), share=0.325),
    },
    model=str(SHARED / "models/t5-nano"),
    train=Train(steps=500, batch_size=32, learning_rate=1e-3, max_input_tokens=96, max_target_tokens=96),
    evaluate=Evaluate(max_new_tokens=96),
    replicates=5,
    workdir=Path("runs/auto"),
)
