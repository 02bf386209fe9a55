"""How few are enough for a probe: eight ways to choose for four targets, nine budgets, five seeds where one draws.

    python scripts/curve.py configs/studies/curve_domain.py --budgets 0.005,0.01,0.02,0.05,0.1,0.2,0.325,0.5,0.7 \
        --data.encoder.model MINILM --workdir runs/curve_domain

`--data.embeddings FOLDER` takes vectors that are there (a .npy for each file), `--data.limit 20000` fewer candidates.
`--with-gradients True --gradients.model T5` has LESS take part, which alone sees labels. Targeted arms that run out of
candidates near the queries go on with the nearest (`fill`), as at large budgets they must. DEFT's base set is a share
of the budget, since 30% of the pool leaves nothing to choose at most of these budgets. Herding costs a pass over the
pool for every row chosen, and is asked for 20% at most. The table is in the README.
"""

from pathlib import Path

from deft_tsds.config import Gradients, Lora
from deft_tsds.selectors import DEFT, DSIR, LESS, TSDS, Herding, Random
from deft_tsds.studies.chooser import Contender
from deft_tsds.studies.gradients import GradientsOf
from deft_tsds.studies.probed import Probed

config = Probed(
    contenders={
        "random": Contender(Random()),
        "deft-hard": Contender(DEFT(base_of="budget")),
        "deft-easy": Contender(DEFT(base_of="budget", easy=1.0, hard=0.0)),
        "tsds-kde": Contender(TSDS(fill="nearest")),
        "tsds-uniform": Contender(TSDS(regularizer="uniform", fill="nearest")),
        "dsir": Contender(DSIR(), sees="counts"),
        "herding": Contender(Herding("queries")),
        "less": Contender(LESS(), sees="gradients"),
    },
    up_to={"herding": 0.2},
    gradients=GradientsOf(
        "../shared/models/t5-nano",
        Gradients(dimension=512, epochs=2, learning_rate=1e-2, lora=Lora(rank=8), at_once=32),
        max_input_tokens=64,
        max_target_tokens=16,
    ),
    workdir=Path("runs/curve_domain"),
)
