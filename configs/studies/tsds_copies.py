"""TSDS: near-duplicates that grow in number. One candidate in a hundred is copied 1, 10 and 100 times, moved a little.

    python scripts/experiment.py configs/studies/tsds_copies.py --data.encoder.model MINILM

A copy's embedding is moved by a random vector of length .05, so that two copies have a cosine of about .9975. The claim
of the paper (arXiv 2410.11303): with KDE score and choice hold while the number of near-duplicates grows, and without
it they do not. `originals` says how many rows are left when copies of one row count once,
`repeated` which share of the choice this leaves out. `tsds_edits.py` changes the texts in place of their vectors.

Time: 8 minutes with `--data.limit 20000 --shares 0.03 --seeds 3` and vectors made before, on two cores that had other
work too.
"""

from pathlib import Path

from deft_tsds.selectors import TSDS, Random
from deft_tsds.studies.chooser import Contender
from deft_tsds.studies.comparison import Comparison
from deft_tsds.studies.conditions import Condition, Copies

config = Comparison(
    contenders={
        "Random": Contender(Random()),
        "KDE": Contender(TSDS()),
        "KDE, h = 0.3": Contender(TSDS(bandwidth=0.3)),
        "uniform": Contender(TSDS(regularizer="uniform")),
    },
    conditions={
        "no copies": Condition(),
        **{f"{times} copies": Condition(copies=Copies(share=0.01, times=times)) for times in (1, 10, 100)},
    },
    shares=(0.01,),
    workdir=Path("runs/tsds_copies"),
)
