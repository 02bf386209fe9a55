"""How few are enough on real editing text: every way to choose at any budget, five seeds, eight test sets.

    python scripts/curve.py configs/studies/curve_editing.py --budgets 0.01,0.05,0.1,0.325 --margin 0.5 \
        --workdir runs/curve_editing

The target examples are 200 rows of the whole pool, so that all selectors choose for the same mixture of tasks. DEFT's
base set is a share of the budget here, since 30% of the pool leaves nothing to choose at most of these budgets. LESS
reads gradients of the model itself. 145 fine-tunings of 500 steps: 21 minutes on one H100. The table is in the README.
"""

import dataclasses
from pathlib import Path

from deft_tsds.config import Arm, Gradients, HeldOut, Ngrams, load
from deft_tsds.selectors import DEFT, DSIR, LESS, TSDS, Full, Random

editing, _ = load(Path(__file__).parents[1] / "editing.py", [])

config = dataclasses.replace(
    editing,
    data=dataclasses.replace(editing.data, queries=HeldOut(count=200)),
    arms={
        "full": Arm(Full()),
        "random": Arm(Random()),
        "deft-hard": Arm(DEFT(base_of="budget")),
        "deft-easy": Arm(DEFT(base_of="budget", easy=1.0, hard=0.0)),
        "tsds-kde": Arm(TSDS(fill="nearest")),
        "tsds-uniform": Arm(TSDS(regularizer="uniform", fill="nearest")),
        "less": Arm(LESS(), encoder="gradients"),
        "dsir": Arm(DSIR(), encoder="ngrams"),
    },
    encoders={"gradients": Gradients(at_once=128), "ngrams": Ngrams()},
    replicates=5,
    train=dataclasses.replace(editing.train, side_by_side=True, log_every=100),
    evaluate=dataclasses.replace(editing.evaluate, metrics=("sari",), batch_size=512),
    workdir=Path("runs/curve_editing"),
)
