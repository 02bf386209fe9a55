"""DEFT-UCS by a probe: hard, easy or random examples beside a base set of 10, 30, 50 or 70% of the pool.

    python scripts/experiment.py configs/studies/deft_base_domain.py --data.limit 20000 --data.encoder.model MINILM

What `deft_sampling` and `deft_base` ask by fine-tuning, on labelled text and for two cores: the logistic probe of
`targeted` learns from what was chosen. The first three at 12.5, the next at 32.5, 52.5 and 72.5% are the paper's case,
2.5% of the pool from the clusters; with a smaller base set beside it the clusters give the rest of the budget. The
paper (arXiv 2310.16776): hard is ahead of random and easy where the base set is small, random where it is large.
"""

import dataclasses
from pathlib import Path

from deft_tsds.selectors import DEFT, Full, Random
from deft_tsds.studies.chooser import Contender
from deft_tsds.studies.comparison import Comparison

BASES, CORE = (0.1, 0.3, 0.5, 0.7), 0.025
KINDS = {"hard": DEFT(), "easy": DEFT(hard=0.0, easy=1.0), "random": DEFT(hard=0.0, random=1.0)}

config = Comparison(
    contenders={
        "Random": Contender(Random()),
        "Full": Contender(Full()),
        **{
            f"{kind}, base {100 * base:.0f}%": Contender(dataclasses.replace(selector, base=base))
            for base in BASES
            for kind, selector in KINDS.items()
        },
    },
    shares=tuple(base + CORE for base in BASES),
    workdir=Path("runs/deft_base_domain"),
)
