"""TSDS: how diversity is measured, KDE, uniform or total variation, at three budgets.

    python scripts/experiment.py configs/studies/tsds_regularizers.py --data.encoder.model MINILM

MINILM is the folder or hub name of any sentence-transformers model; `--data.embeddings FOLDER` takes vectors made
before. The paper (arXiv 2410.11303) proposes KDE for pools with near-duplicates; independent runs with LESS gradients
and none planted find the two level (means over 25 cells: KNN-uniform 31.0, KNN-KDE 30.8, random 28.6).

TV with its default tau is a uniform draw on vectors of unit length (C = 5 is above every distance), so it stands here
twice: as it is, and with the plan whose effective size is twice the budget.
"""

from pathlib import Path

from deft_tsds.selectors import TSDS, Full, Random
from deft_tsds.studies.chooser import Contender
from deft_tsds.studies.comparison import Comparison

config = Comparison(
    contenders={
        "Random": Contender(Random()),
        "Full": Contender(Full()),
        "KDE": Contender(TSDS()),
        "uniform": Contender(TSDS(regularizer="uniform")),
        "TV": Contender(TSDS(regularizer="tv")),
        "TV, size 2B": Contender(TSDS(regularizer="tv", neighbors=1_000_000), size=2),
    },
    shares=(0.005, 0.01, 0.05),
    workdir=Path("runs/tsds_regularizers"),
)
