"""Small models that several test files share, made offline; and the inputs that hypothesis tries.

These are the same in every run, so that a change is what breaks a test. New ones: `HYPOTHESIS_PROFILE=new pytest`.
"""

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("same", derandomize=True, database=None)
settings.register_profile("new", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture(scope="session")
def tiny_sentence_transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer BERT over letters with mean pooling, saved as a sentence-transformers folder."""
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    folder = tmp_path_factory.mktemp("sentence-transformer")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(pieces))
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(pieces), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(config).save_pretrained(folder / "bert")
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    parts = [modules.Transformer(str(folder / "bert")), modules.Pooling(16)]
    SentenceTransformer(modules=parts, device="cpu").save(str(folder / "model"))
    return folder / "model"
