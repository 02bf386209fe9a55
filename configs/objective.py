"""An objective of one's own on the demo's synthetic text, one term of which is a function in a file beside this one.

python scripts/ablate.py configs/objective.py --drop-each objective --sweep objective.kde.weight=0,0.1,1
python scripts/run.py configs/objective.py --workdir runs/objective
"""

from pathlib import Path

from deft_tsds.config import Arm, Evaluate, Experiment, Scratch, Synthetic, Train, Transport, Weighted
from deft_tsds.selectors import Random

config = Experiment(
    data=Synthetic(),
    arms={
        "random": Arm(Random(), share=0.1),
        "transport": Arm(
            Transport(
                objective={
                    "align": Weighted(1.0, "transport_cost"),
                    "kde": Weighted(0.5, "kde_repulsion"),
                    "drift": Weighted(0.5, "pool_drift"),
                    "short": Weighted(1.0, "own_terms:short_texts", {"words_N": "own_terms:prompt_words"}),
                },
                neighbors=1000,
                bandwidth=0.75,
            ),
            share=0.1,
        ),
    },
    model="scratch",
    scratch=Scratch(),
    train=Train(
        steps=180, batch_size=32, optimizer="adafactor", learning_rate=0.03, max_input_tokens=48, max_target_tokens=32
    ),
    evaluate=Evaluate(max_new_tokens=32),
    workdir=Path("runs/objective"),
)
