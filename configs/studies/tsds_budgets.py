"""TSDS at 0.5, 1 and 5% of the pool against random, LESS and DSIR.

    python scripts/experiment.py configs/studies/tsds_budgets.py --data.encoder.model MINILM --gradients.model T5

LESS sees the gradients of a T5 that says the label of a text, and so the labels of pool and queries, which nobody
else does; T5 is any T5. The paper (arXiv 2410.11303), fine-tuning language models: TSDS on LESS's gradients is +1.5
F1 ahead of the baselines on average, and 1% is often better than the full data. `scripts/targeted.py` compares every
selector of this package in the same way.
"""

from pathlib import Path

from deft_tsds.config import Gradients, Lora
from deft_tsds.selectors import DSIR, LESS, TSDS, Full, Random
from deft_tsds.studies.chooser import Contender
from deft_tsds.studies.comparison import Comparison
from deft_tsds.studies.gradients import GradientsOf

config = Comparison(
    contenders={
        "Random": Contender(Random()),
        "Full": Contender(Full()),
        "KDE": Contender(TSDS()),
        "DSIR": Contender(DSIR(), sees="counts"),
        "LESS": Contender(LESS(), sees="gradients"),
        "KDE on gradients": Contender(TSDS(), sees="gradients"),
    },
    shares=(0.005, 0.01, 0.05),
    gradients=GradientsOf(
        "../shared/models/t5-nano",
        Gradients(dimension=512, epochs=2, learning_rate=1e-2, lora=Lora(rank=8), at_once=32),
        max_input_tokens=64,
        max_target_tokens=16,
    ),
    workdir=Path("runs/tsds_budgets"),
)
