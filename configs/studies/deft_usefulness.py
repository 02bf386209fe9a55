"""DEFT-UCS: is an example more useful the farther it lies from the middle of its cluster?

    python scripts/experiment.py configs/studies/deft_usefulness.py

Usefulness is LESS's influence of an example on held-out rows of the same pool, by gradients of t5-nano at the two
checkpoints of a short run on a fifth of the rows; distances are DEFT's, in the clusters of each representation. A
positive rank correlation is what hard sampling takes for granted. The paper (arXiv 2310.16776) argues that rows far
from the middle say more and never measures it; it finds hard sampling ahead where the base set is small.

Time: 10 minutes with `--rows 800 --held-out 150` on two cores that had other work too; nearly all of it are the
gradients.
"""

from pathlib import Path

from deft_tsds.config import Gradients, Lexical, Lora, Source
from deft_tsds.embed.t5 import T5Encoder
from deft_tsds.studies.gradients import GradientsOf
from deft_tsds.studies.usefulness import Usefulness

T5 = "../shared/models/t5-nano"

config = Usefulness(
    pool=Source("../shared/data/edit/edit_train_pool.jsonl.gz", group_field="subtask", instruction_field="instruction"),
    encoders={"lexical": Lexical(), "averaged-t5": T5Encoder(T5, "mean")},
    gradients=GradientsOf(
        T5,
        Gradients(dimension=1024, share=0.2, epochs=2, learning_rate=1e-2, lora=Lora(rank=8), at_once=32),
        max_input_tokens=96,
        max_target_tokens=96,
    ),
    workdir=Path("runs/deft_usefulness"),
)
