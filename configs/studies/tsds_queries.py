"""TSDS with few queries: 200, 100, 20 and 5 examples of the target, others in each seed.

    python scripts/experiment.py configs/studies/tsds_queries.py --data.encoder.model MINILM

The paper (arXiv 2410.11303) selects by 9 query examples (TydiQA), 69 (BBH) and 285 (MMLU), and claims to be ahead of
random with each. RoundRobin is what needs no plan. With 5 queries the default plan reaches fewer rows than the
budget, and says so; "size 2B" asks for one as diverse as twice the budget.
"""

from pathlib import Path

from deft_tsds.selectors import TSDS, Random, RoundRobin
from deft_tsds.studies.chooser import Contender
from deft_tsds.studies.comparison import Comparison
from deft_tsds.studies.conditions import Condition

config = Comparison(
    contenders={
        "Random": Contender(Random()),
        "KDE": Contender(TSDS()),
        "KDE, size 2B": Contender(TSDS(neighbors=20_000), size=2),
        "uniform": Contender(TSDS(regularizer="uniform")),
        "RoundRobin": Contender(RoundRobin()),
    },
    conditions={
        "200 queries": Condition(),
        **{f"{count} queries": Condition(queries=count) for count in (100, 20, 5)},
    },
    shares=(0.01,),
    workdir=Path("runs/tsds_queries"),
)
