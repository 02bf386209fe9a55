"""TSDS: near-duplicates as they come about in text. One candidate in fifty is copied 1, 10 and 100 times with slips.

    python scripts/experiment.py configs/studies/tsds_edits.py

Each copy of a text has two single letters changed, left out, put in or exchanged, and is then embedded like any other
text, by the lexical encoder: nothing to download. The pool is the first 6,000 candidates, and the budget a twentieth of
them. What the paper claims is in `tsds_copies.py`.

Time: 2 minutes with three seeds on two cores that had other work too.
"""

from pathlib import Path

from deft_tsds.config import Lexical
from deft_tsds.selectors import TSDS, Random
from deft_tsds.studies.chooser import Contender
from deft_tsds.studies.comparison import Comparison
from deft_tsds.studies.conditions import Condition, Copies
from deft_tsds.studies.labelled_text import LabelledText

config = Comparison(
    contenders={
        "Random": Contender(Random()),
        "KDE": Contender(TSDS()),
        "uniform": Contender(TSDS(regularizer="uniform")),
    },
    conditions={
        "no copies": Condition(),
        **{f"{times} copies": Condition(copies=Copies(share=0.02, times=times, edits=2)) for times in (1, 10, 100)},
    },
    shares=(0.05,),
    data=LabelledText(encoder=Lexical(dimension=128), limit=6000),
    workdir=Path("runs/tsds_edits"),
)
