"""DEFT-UCS: how large the base set is, 10, 30, 50 or 70% of the pool, with hard, easy or random examples beside it.

    python scripts/experiment.py configs/studies/deft_base.py

To each base set come 2.5% of the pool from the clusters, as in the paper's 32.5%. Fine-tunes t5-nano as
`configs/editing.py` does, twelve arms with five seeds. Time: not yet run; by the 14 minutes an arm of that config, 14
hours on two cores: for an accelerator. The paper (arXiv 2310.16776): hard is ahead of random and easy where the base
set is small, random where it is large; Asset needs about 12% of the data, and WNC more than 80%.
"""

from pathlib import Path

from deft_sampling import fine_tuned  # the config beside this one

from deft_tsds.config import Arm
from deft_tsds.selectors import DEFT
from deft_tsds.studies.contrasts import Contrasts

BASES, CORE = (0.1, 0.3, 0.5, 0.7), 0.025


def arms(base: float) -> dict[str, Arm]:
    kinds = {
        "hard": DEFT(base=base, hard=1.0),
        "easy": DEFT(base=base, hard=0.0, easy=1.0),
        "random": DEFT(base=base, hard=0.0, random=1.0),
    }
    return {f"{kind}-{100 * base:.0f}": Arm(selector, share=base + CORE) for kind, selector in kinds.items()}


config = Contrasts(
    experiment=fine_tuned({name: arm for base in BASES for name, arm in arms(base).items()}),
    against={f"{kind}-{100 * base:.0f}": f"random-{100 * base:.0f}" for base in BASES for kind in ("hard", "easy")},
    workdir=Path("runs/deft_base"),
)
