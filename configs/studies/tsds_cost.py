"""Time and memory against the number of candidates, and which selectors are worth their cost.

    python scripts/experiment.py configs/studies/tsds_cost.py --data.encoder.model MINILM

Each selection runs in a process of its own: seconds from the representation to a choice with its reasons, the first
call, which compiles, and the most memory that it held. A selector lies on the front where none is both faster and
better; `figures.html` shows it. The pool is cut to 5,000 and 20,000 candidates, and grown to some 290,000 by three
copies of each, moved far enough (a cosine of .9) to be other texts. The budget is the same everywhere. The cost of
TSDS (arXiv 2410.11303) is what its rivals attack: one claims a selection 40 times faster.
"""

from pathlib import Path

from deft_tsds.selectors import DSIR, TSDS, Herding, Nearest, Random, RoundRobin, UnbalancedTransport
from deft_tsds.studies.chooser import Contender
from deft_tsds.studies.comparison import Comparison
from deft_tsds.studies.conditions import Condition, Copies

config = Comparison(
    contenders={
        "Random": Contender(Random()),
        "KDE": Contender(TSDS()),
        "uniform": Contender(TSDS(regularizer="uniform")),
        "Nearest": Contender(Nearest()),
        "RoundRobin": Contender(RoundRobin()),
        "UnbalancedTransport": Contender(UnbalancedTransport()),
        "Herding": Contender(Herding("queries")),
        "DSIR": Contender(DSIR(), sees="counts"),
    },
    conditions={
        "all candidates": Condition(),
        "5,000": Condition(candidates=5000),
        "20,000": Condition(candidates=20_000),
        "four times": Condition(copies=Copies(share=1.0, times=3, noise=0.5)),
    },
    shares=(0.01,),
    seeds=3,
    timed=3,
    workdir=Path("runs/tsds_cost"),
)
