"""Real editing text on two cores: full data, random, DEFT-UCS, TSDS and an objective, from a small pretrained T5.

    python scripts/run.py configs/editing.py --workdir runs/editing
    python scripts/ablate.py configs/editing.py --drop-each objective --sweep objective.kde.weight=0,0.1,1

Time: 1 h 43 min on two cores that had other work too. Scores: in the README; `--model` takes any T5 folder or hub name.
"""

from pathlib import Path

from deft_tsds.config import Arm, Evaluate, Experiment, Files, HeldOut, Source, Train, Transport, Weighted
from deft_tsds.selectors import DEFT, TSDS, Full, Random

SHARED = Path(__file__).parents[2] / "shared"
TESTS = ("asset", "turk", "jfleg", "cweb_g", "wikisplit", "wikifuse", "wnc", "iterater_r3")


def test_set(name: str) -> Source:
    return Source(
        str(SHARED / f"data/edit/edit_test_{name}.jsonl.gz"),
        target_field=None,
        references_field="references",
        group_field="task",
        instruction_field="instruction",
    )


config = Experiment(
    data=Files(
        pool=Source(
            str(SHARED / "data/edit/edit_train_pool.jsonl.gz"),
            group_field="subtask",
            instruction_field="instruction",
        ),
        queries=HeldOut(group="gec", count=200),
        tests={name: test_set(name) for name in TESTS},
    ),
    arms={
        "full": Arm(Full()),
        "random": Arm(Random(), share=0.325),
        "deft": Arm(DEFT(), share=0.325),
        "tsds": Arm(TSDS(), share=0.1),
        "transport": Arm(
            Transport(
                {
                    "align": Weighted(1.0, "transport_cost"),
                    "kde": Weighted(0.5, "kde_repulsion"),
                    "drift": Weighted(0.5, "pool_drift"),
                },
                bandwidth=0.75,
            ),
            share=0.1,
        ),
    },
    model=str(SHARED / "models/t5-nano"),
    train=Train(steps=500, batch_size=32, learning_rate=1e-3, max_input_tokens=96, max_target_tokens=96),
    evaluate=Evaluate(max_new_tokens=96),
    workdir=Path("runs/editing"),
)
