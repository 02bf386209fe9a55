"""How few are enough when a target is given: t5-nano writes the label of a text, four data sets in one, five seeds.

    python scripts/curve.py configs/studies/curve_domain_t5.py --margin 1 \
        --budgets 0.01,0.05,0.1,0.2,0.325,0.5 --workdir runs/curve_domain_t5

The pool is 20,000 texts of seven data sets with the labels of all; the target examples are 200 texts of each of four of
them, and the score is the share of exactly right labels on their test sets. Nothing in the input names the data set.
The ways to choose are those of `curve_editing.py`.
215 fine-tunings of 1,000 steps: 24 minutes on one H100, shared out among four processes. The table is in the README.
"""

import dataclasses
from pathlib import Path

from deft_tsds.config import Evaluate, Files, Source, load

SHARED = Path(__file__).parents[3] / "shared"
editing, _ = load(Path(__file__).with_name("curve_editing.py"), [])


def texts(file: str, split: str, limit: int | None = None) -> Source:
    return Source(
        str(SHARED / f"data/domain/domain_{file}.jsonl.gz"),
        input_field="text",
        target_field="label",
        group_field="dataset",
        where={"split": split},
        limit=limit,
    )


config = dataclasses.replace(
    editing,
    data=Files(
        pool=texts("pool", "pool", limit=20_000),
        queries=texts("target_*", "query"),
        tests={name: texts(f"target_{name}", "test") for name in ("banking77", "chemprot", "sciie", "stackoverflow")},
    ),
    train=dataclasses.replace(editing.train, steps=1000, max_target_tokens=16),
    evaluate=Evaluate(metrics=("exact_match",), max_new_tokens=16, batch_size=512),
    workdir=Path("runs/curve_domain_t5"),
)
