"""DEFT-UCS as in the paper (arXiv 2310.16776): 32.5% of CoEDIT for Flan-T5-Large, with base 30%, K = 7, hard sampling.

    pip install 'deft-tsds[encoders,cuda]'
    python scripts/run.py configs/deft_coedit.py --workdir runs/deft_coedit

Embeddings by Sentence-T5. Needs the hub, or `--model FOLDER`, `--data.pool.path FOLDER` and `--encoder.model FOLDER`.
Time: not yet run at this size, since the project's machine has two cores and no hub; the same loading code is tested on
small local folders of the same layout.
"""

from pathlib import Path

from deft_tsds.config import Arm, Evaluate, Experiment, Files, SentenceTransformers, Source, Train
from deft_tsds.selectors import DEFT, Full, Random


def coedit(split: str) -> Source:
    return Source(
        "grammarly/coedit",
        split=split,
        id_field="_id",
        input_field="src",
        instruction_separator=": ",
        target_field="tgt",
        group_field="task",
    )


config = Experiment(
    data=Files(pool=coedit("train"), tests={"coedit": coedit("validation")}),
    arms={
        "full": Arm(Full()),
        "random": Arm(Random(), share=0.325),
        "deft": Arm(DEFT(clusters=7, base=0.3, hard=1.0), share=0.325),
    },
    encoder=SentenceTransformers("sentence-transformers/sentence-t5-large"),
    model="google/flan-t5-large",
    train=Train(
        epochs=5,
        batch_size=64,
        accumulate=4,
        optimizer="adamw",
        learning_rate=1e-4,
        max_input_tokens=256,
        max_target_tokens=256,
        dtype="bfloat16",
    ),
    evaluate=Evaluate(max_new_tokens=256, beams=4),
    workdir=Path("runs/deft_coedit"),
)
