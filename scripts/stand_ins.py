"""Stand-ins for what the matrix names and a machine may not have, to try its config before anything is downloaded.

    python scripts/stand_ins.py configs/studies/matrix.py --t5 ../shared/models/t5-nano --out runs/stand-ins

Writes, and then prints the command that takes them,

- `sentence-t5`: the encoder of the T5 that is given, the mean of its states, a random matrix, unit length, in the
  layout of sentence-transformers;
- `bart`: a small BART with random weights and the tokenizer of that T5, with `<s>` before each text;
- `own/pool.parquet` and `own/queries.parquet`: embeddings as a user may have made them, here TF-IDF and a truncated SVD
  by scikit-learn, a row for each example.

Neither model has been trained for what it stands for. A file `UNTRAINED` in its folder says so, and the matrix with it.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from deft_tsds.cli import plain_errors
from deft_tsds.config import load_as
from deft_tsds.data.examples import Examples
from deft_tsds.runs import console
from deft_tsds.studies.matrix import Matrix, texts_of
from deft_tsds.t5.load import load_tokenizer

SENTENCE_T5 = "the matrix behind the mean is random, and no part was trained to compare sentences."
BART = "all weights are random."
BART_SIZES = {"layers": 2, "ffn_dim": 512, "attention_heads": 4}


@dataclass(frozen=True)
class Settings:
    """What to write, and where."""

    config: Annotated[Path, tyro.conf.Positional]
    """Config of a matrix, for its texts."""
    t5: Path
    """Folder of a T5 in Hugging Face layout."""
    out: Path = Path("runs/stand-ins")
    """Gets the folders."""
    width: int = 128
    """Dimension of each of the models."""


def write_sentence_t5(t5: Path, folder: Path, width: int) -> None:
    """A Sentence-T5 whose encoder is that of `t5`."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    torch.manual_seed(0)
    transformer = Transformer(str(t5), max_seq_length=256)
    states = transformer.get_embedding_dimension()
    dense = Dense(states, width, bias=False, activation_function=torch.nn.Identity())
    parts = [transformer, Pooling(states, "mean"), dense, Normalize()]
    SentenceTransformer(modules=parts, device="cpu").save(str(folder))
    (folder / "UNTRAINED").write_text(SENTENCE_T5 + "\n")


def write_bart(t5: Path, folder: Path, width: int) -> None:
    """A BART of two layers on each side."""
    import torch
    from tokenizers import processors
    from transformers import BartConfig, BartModel

    tokenizer: Any = load_tokenizer(t5)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<s> $A {tokenizer.eos_token}", special_tokens=[("<s>", start), (tokenizer.eos_token, end)]
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sides: dict[str, Any] = {
        f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in BART_SIZES.items()
    }
    tokens: dict[str, Any] = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": start, "eos_token_id": end}
    config = BartConfig(vocab_size=len(tokenizer), d_model=width, max_position_embeddings=256, **sides, **tokens)
    BartModel(config).save_pretrained(folder)
    (folder / "UNTRAINED").write_text(BART + "\n")


def write_own(texts: dict[str, Examples], folder: Path) -> None:
    """Embeddings of pool and queries, by a model that has seen the pool."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline

    dimension = min(64, len(texts["pool"]) - 1)
    model = make_pipeline(TfidfVectorizer(sublinear_tf=True), TruncatedSVD(dimension, random_state=0))
    model.fit(texts["pool"].prompts)
    folder.mkdir(parents=True, exist_ok=True)
    for name, examples in texts.items():
        pq.write_table(pa.table({"embedding": list(model.transform(examples.prompts))}), folder / f"{name}.parquet")


def main(settings: Settings) -> None:
    """Write them all."""
    matrix, _ = load_as(Matrix, settings.config)
    out = settings.out
    write_sentence_t5(settings.t5, out / "sentence-t5", settings.width)
    write_bart(settings.t5, out / "bart", settings.width)
    write_own(texts_of(matrix), out / "own")
    taken = {
        "sentence-t5.model": out / "sentence-t5",
        "bart.model": out / "bart",
        "own.pool": out / "own" / "pool.parquet",
        "own.queries": out / "own" / "queries.parquet",
    }
    options = [text for name, path in taken.items() for text in (f"--representations.{name}", str(path))]
    console.print(
        shlex.join(["python", "scripts/matrix.py", str(settings.config), *options]), markup=False, soft_wrap=True
    )


if __name__ == "__main__":
    with plain_errors():
        main(tyro.cli(Settings, description=__doc__))
