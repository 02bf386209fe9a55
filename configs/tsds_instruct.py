"""TSDS for an instruction task (arXiv 2410.11303): 1% of an instruction pool chosen by a few target examples.

    pip install 'deft-tsds[encoders,cuda]'
    python scripts/run.py configs/tsds_instruct.py --workdir runs/tsds_instruct

Needs the hub, or folders of the same layout by `--data.pool.path` and the like. Time: not yet run at this size, since
the project's machine has two cores and no hub; the same loading code is tested on small local folders.
"""

from pathlib import Path

from deft_tsds.config import Arm, Evaluate, Experiment, Files, SentenceTransformers, Source, Train
from deft_tsds.selectors import TSDS, Random


def gsm8k(split: str, limit: int | None = None) -> Source:
    return Source(
        "openai/gsm8k:main", split=split, id_field=None, input_field="question", target_field="answer", limit=limit
    )


config = Experiment(
    data=Files(
        pool=Source(
            "databricks/databricks-dolly-15k",
            id_field=None,
            input_field="instruction",
            target_field="response",
            group_field="category",
        ),
        queries=gsm8k("train", limit=100),
        tests={"gsm8k": gsm8k("test")},
    ),
    arms={
        "random": Arm(Random(), share=0.01),
        "tsds_kde": Arm(TSDS(regularizer="kde"), share=0.01),
        "tsds_uniform": Arm(TSDS(regularizer="uniform"), share=0.01),
    },
    encoder=SentenceTransformers("sentence-transformers/all-MiniLM-L6-v2"),
    model="google/flan-t5-large",
    train=Train(
        epochs=4,
        batch_size=128,
        accumulate=8,
        learning_rate=2e-4,
        max_input_tokens=512,
        max_target_tokens=256,
        dtype="bfloat16",
    ),
    evaluate=Evaluate(metrics=("rouge_l", "exact_match", "token_f1", "bleu", "chrf"), max_new_tokens=256),
    replicates=3,
    workdir=Path("runs/tsds_instruct"),
)
