"""Knobs from the data against the papers' fixed ones, by the probe of `curve_domain`: DEFT and TSDS, each both ways.

    python scripts/curve.py configs/studies/auto_domain.py --budgets 0.01,0.02,0.05,0.1,0.2,0.325,0.5 \
        --data.encoder.model MINILM --workdir runs/auto_domain

`--auto` does for the arms of an experiment what `deft-auto` and `tsds-auto` do here; `auto.py` asks the same of
fine-tuning. DEFT's fixed base set is a share of the budget, since 30% of the pool leaves nothing to choose at most of
these budgets. The table is in the README.
"""

from pathlib import Path

from deft_tsds.selectors import DEFT, TSDS, Random
from deft_tsds.studies.chooser import Contender
from deft_tsds.studies.probed import Probed

config = Probed(
    contenders={
        "random": Contender(Random()),
        "deft": Contender(DEFT(base_of="budget")),
        "deft-auto": Contender(DEFT(clusters="auto", base="auto")),
        "tsds": Contender(TSDS(fill="nearest")),
        "tsds-auto": Contender(TSDS(alpha="auto", bandwidth="auto", fill="nearest")),
    },
    workdir=Path("runs/auto_domain"),
)
