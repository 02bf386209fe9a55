"""Every selector on every representation, on 2,000 texts of seven domains with 200 abstracts' sentences as the target.

    python scripts/matrix.py configs/studies/matrix.py

The text is that of `scripts/targeted.py` (JSON lines: id, text, label, dataset, split). The gradients are those of a
T5 that says the label of a text: `text` is its input and `label` its target. The other representations see the text
alone.

A model by hub name may be a folder: `--representations.minilm.model FOLDER` (and again for the part of
`lexical-minilm`), and likewise `sentence-t5` and `bart`; `own` are vectors that the user has made, a row for each
example (`--representations.own.pool FILE`, `.npy` or `.parquet`). `scripts/stand_ins.py` writes something for each
that a machine lacks. `--foreign FILE` gives `Foreign` what another tool chose. Add a representation, any section of
`encoder`, by a line of the mapping.
"""

from pathlib import Path
from typing import Any

from deft_tsds.config import (
    Concatenated,
    Gradients,
    Lexical,
    Lora,
    Ngrams,
    OwnEmbeddings,
    Part,
    SentenceTransformers,
    Source,
)
from deft_tsds.embed.bart import BartCLS
from deft_tsds.embed.t5 import T5Encoder
from deft_tsds.studies.gradients import GradientsOf
from deft_tsds.studies.matrix import Matrix

MINILM = SentenceTransformers("sentence-transformers/all-MiniLM-L6-v2")
T5 = "../shared/models/t5-nano"
FIELDS: dict[str, Any] = {"input_field": "text", "target_field": "label", "group_field": "dataset"}

config = Matrix(
    pool=Source("../shared/data/domain/domain_pool.jsonl.gz", limit=2000, **FIELDS),
    queries=Source("../shared/data/domain/domain_target_chemprot.jsonl.gz", where={"split": "query"}, **FIELDS),
    representations={
        "lexical": Lexical(dimension=128),
        "minilm": MINILM,
        "sentence-t5": T5Encoder("sentence-transformers/sentence-t5-base", "sentence"),
        "averaged": T5Encoder(T5, "mean"),
        "bart": BartCLS("facebook/bart-base"),
        "rds+": T5Encoder(T5, "position"),
        "own": OwnEmbeddings("runs/own/pool.npy", "runs/own/queries.npy"),
        "gradients": GradientsOf(T5, Gradients(512, share=0.2, epochs=2, learning_rate=1e-2, lora=Lora(), at_once=32)),
        "ngrams": Ngrams(),
        "lexical-minilm": Concatenated({"lexical": Part(Lexical(dimension=128)), "minilm": Part(MINILM)}),
    },
    workdir=Path("runs/matrix"),
)
