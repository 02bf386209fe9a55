"""DEFT-UCS: hard, easy or random examples inside the clusters, at the paper's size, 32.5% of the pool with base 30%.

    python scripts/experiment.py configs/studies/deft_sampling.py

Fine-tunes t5-nano as `configs/editing.py` does, five arms with five seeds. Time: not yet run; by the 14 minutes an
arm of that config, six hours on two cores: for an accelerator. The paper (arXiv 2310.16776), with Flan-T5-Large on
CoEDIT: hard is ahead of easy and random, and 32.5% is ahead of the full data on TurkCorpus (46.6 SARI against 43.7),
Asset (46.8 against 44.7) and IteraTeR clarity (61.8 against 61.3), level on fluency (64.7) and behind on WNC (79.0
against 80.2).
"""

import dataclasses
from pathlib import Path

from deft_tsds.config import Arm, Experiment, load
from deft_tsds.selectors import DEFT, Full, Random
from deft_tsds.studies.contrasts import Contrasts

SIZE = 0.325

editing, _ = load(Path(__file__).parents[1] / "editing.py")


def fine_tuned(arms: dict[str, Arm]) -> Experiment:
    """t5-nano fine-tuned on what each arm chooses of the editing pool."""
    data, train = dataclasses.replace(editing.data, queries=None), dataclasses.replace(editing.train, side_by_side=True)
    return dataclasses.replace(editing, data=data, arms=arms, train=train, replicates=5)


config = Contrasts(
    experiment=fine_tuned(
        {
            "full": Arm(Full()),
            "random": Arm(Random(), share=SIZE),
            "hard": Arm(DEFT(base=0.3, hard=1.0), share=SIZE),
            "easy": Arm(DEFT(base=0.3, hard=0.0, easy=1.0), share=SIZE),
            "random-in-clusters": Arm(DEFT(base=0.3, hard=0.0, random=1.0), share=SIZE),
        }
    ),
    against={
        "hard": "random-in-clusters",
        "easy": "random-in-clusters",
        "random-in-clusters": "random",
        "random": "full",
    },
    workdir=Path("runs/deft_sampling"),
)
