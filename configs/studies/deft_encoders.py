"""DEFT-UCS: which representation puts the tasks into clusters of their own. Purity and NMI of its K = 7 clusters.

    python scripts/experiment.py configs/studies/deft_encoders.py --encoders.minilm.model MINILM

MINILM is the folder or hub name of any sentence-transformers model, and so is `sentence-t5` by default a hub name, and
`bart` (`--encoders.sentence-t5.model FOLDER`, `--encoders.bart.model FOLDER`; `scripts/stand_ins.py` writes untrained
ones, which the table marks). The paper (arXiv 2310.16776) compares Sentence-T5, BART's CLS state and averaged states of
Flan-T5, and finds Sentence-T5 the best and BART the worst.

The text is the input without its instruction, which would give the task away: `--pool.instruction-field instruction`
puts it before the text, as `configs/editing.py` does.

Time: 3 minutes for the first three on two cores that had other work too.
"""

from pathlib import Path

from deft_tsds.config import Lexical, SentenceTransformers, Source
from deft_tsds.embed.bart import BartCLS
from deft_tsds.embed.t5 import T5Encoder
from deft_tsds.studies.purity import Purity

config = Purity(
    pool=Source("../shared/data/edit/edit_train_pool.jsonl.gz", group_field="task"),
    encoders={
        "lexical": Lexical(),
        "minilm": SentenceTransformers("sentence-transformers/all-MiniLM-L6-v2"),
        "averaged-t5": T5Encoder("../shared/models/t5-nano", "mean"),
        "sentence-t5": T5Encoder("sentence-transformers/sentence-t5-base", "sentence"),
        "bart": BartCLS("facebook/bart-base"),
    },
    workdir=Path("runs/deft_encoders"),
)
