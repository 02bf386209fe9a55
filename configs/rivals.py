"""Ours and the papers' rivals on synthetic editing text, each on the representation that it was made for.

    python scripts/run.py configs/rivals.py --workdir runs/rivals
    python scripts/run.py configs/rivals.py --workdir runs/few --train.steps 40 --data.pool 1500

LESS sees gradients of the model itself after a warm-up run on a random share of the pool, DSIR counts of n-grams, and
all others the lexical embedding. Exact repeats, near-duplicates and rows of the test sets are dropped before.
"""

from pathlib import Path

from deft_tsds.config import Arm, Evaluate, Experiment, Gradients, Ngrams, Synthetic, Train
from deft_tsds.data.hygiene import Hygiene
from deft_tsds.selectors import DEFT, DSIR, LESS, TSDS, Full, Nearest, Random, RoundRobin

SHARE = 0.1

config = Experiment(
    data=Synthetic(pool=3000),
    arms={
        "full": Arm(Full()),
        "random": Arm(Random(), share=SHARE),
        "deft": Arm(DEFT(base=0.03), share=SHARE),
        "tsds": Arm(TSDS(), share=SHARE),
        "nearest": Arm(Nearest(), share=SHARE),
        "round-robin": Arm(RoundRobin(), share=SHARE),
        "less": Arm(LESS(), share=SHARE, encoder="gradients"),
        "tsds-gradients": Arm(TSDS(), share=SHARE, encoder="gradients"),
        "dsir": Arm(DSIR(), share=SHARE, encoder="ngrams"),
    },
    encoders={"gradients": Gradients(share=0.2), "ngrams": Ngrams()},
    hygiene=Hygiene(),
    train=Train(
        steps=180,
        batch_size=32,
        # As in configs/demo.py: steps relative to the parameter scale, for a T5 from scratch.
        optimizer="adafactor",
        learning_rate=0.03,
        max_input_tokens=48,
        max_target_tokens=32,
    ),
    evaluate=Evaluate(max_new_tokens=32),
    workdir=Path("runs/rivals"),
)
