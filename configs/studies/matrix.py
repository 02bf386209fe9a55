"""Every selector on every representation, on 2,000 texts of seven domains with 200 abstracts' sentences as the target.

    python scripts/matrix.py configs/studies/matrix.py

The text is that of `scripts/targeted.py` (JSON lines: id, text, dataset, split). `--representations.minilm.model
FOLDER` and `--representations.lexical-minilm.parts.minilm.encoder.model FOLDER` take the model from a folder,
`--foreign FILE` gives `Foreign` what another tool chose. Add a representation, any section of `encoder`, by a line of
the mapping.
"""

from pathlib import Path

from deft_tsds.config import Concatenated, Lexical, Ngrams, Part, SentenceTransformers, Source
from deft_tsds.embed.t5 import T5Encoder
from deft_tsds.studies.matrix import Matrix

MINILM = SentenceTransformers("sentence-transformers/all-MiniLM-L6-v2")
T5 = "../shared/models/t5-nano"
FIELDS = {"input_field": "text", "target_field": None, "group_field": "dataset"}

config = Matrix(
    pool=Source("../shared/data/domain/domain_pool.jsonl.gz", limit=2000, **FIELDS),
    queries=Source("../shared/data/domain/domain_target_chemprot.jsonl.gz", where={"split": "query"}, **FIELDS),
    representations={
        "lexical": Lexical(dimension=128),
        "minilm": MINILM,
        "lexical-minilm": Concatenated({"lexical": Part(Lexical(dimension=128)), "minilm": Part(MINILM)}),
        "averaged": T5Encoder(T5, "mean"),
        "rds+": T5Encoder(T5, "position"),
        "ngrams": Ngrams(),
    },
    workdir=Path("runs/matrix"),
)
