"""TSDS: alpha, the weight of being near to the queries, against the size of the neighbourhoods, and the score.

    python scripts/experiment.py configs/studies/tsds_alpha.py --data.encoder.model MINILM

The paper (arXiv 2410.11303) looks at the average neighbourhood size against alpha; by its equations it falls as alpha
rises. Here it is the mean number of candidates that a query's mass goes to. Only tau = C (1 - alpha) / alpha matters,
C = 5: alpha .5 is tau 5, and .99 is .05. Its reference has .5, other ports .6 and .01.

Time: 4 minutes with `--data.limit 20000 --shares 0.03 --seeds 3` and vectors made before, on two cores that had other
work too.
"""

from pathlib import Path

from deft_tsds.selectors import TSDS, Random
from deft_tsds.studies.chooser import Contender
from deft_tsds.studies.comparison import Comparison

ALPHAS = (0.3, 0.5, 0.7, 0.9, 0.95, 0.99)

config = Comparison(
    contenders={
        "Random": Contender(Random()),
        **{f"KDE, alpha {alpha:g}": Contender(TSDS(alpha=alpha)) for alpha in ALPHAS},
        **{f"uniform, alpha {alpha:g}": Contender(TSDS(alpha=alpha, regularizer="uniform")) for alpha in ALPHAS},
    },
    shares=(0.01,),
    workdir=Path("runs/tsds_alpha"),
)
