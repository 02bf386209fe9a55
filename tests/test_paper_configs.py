"""The configs that name hub data and models, run on small local folders of the same layout.

Each keeps its selectors, its encoder kind, its fields and its training recipe; only paths, lengths and steps change.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from deft_tsds.config import load
from deft_tsds.pipeline import Pipeline
from deft_tsds.runs import read_json
from deft_tsds.selection import Selection
from deft_tsds.t5.load import save_pretrained, train_tokenizer
from deft_tsds.t5.model import T5, T5Config

CONFIGS = Path(__file__).parents[1] / "configs"
WORDS = ("river", "stone", "garden", "letter", "window", "winter", "market", "music", "paper", "silver")


def sentence(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(WORDS, size=5)) + "."


@pytest.fixture(scope="module")
def flan(tmp_path_factory) -> str:
    """A Flan-style folder: gated gelu, untied, with its tokenizer."""
    folder = tmp_path_factory.mktemp("flan")
    rng = np.random.default_rng(0)
    tokenizer = train_tokenizer([sentence(rng) for _ in range(100)], vocab_size=300)
    shape: dict[str, Any] = {
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 2,
    }
    config = T5Config(len(tokenizer), **shape, activation="gated-gelu", tie_word_embeddings=False)
    save_pretrained(T5(config, rngs=nnx.Rngs(params=jax.random.key(0))), folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def hub_folder(folder: Path, splits: dict[str, list[dict]]) -> str:
    """A data set as the hub lays it out."""
    folder.mkdir()
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def run(name: str, arguments: list[str]) -> Pipeline:
    experiment, description = load(CONFIGS / name, arguments)
    pipeline = Pipeline(experiment, description)
    pipeline.report()
    return pipeline


SMALL = "--train.max-input-tokens 32 --train.max-target-tokens 16 --evaluate.max-new-tokens 4 --evaluate.resamples 20"


def test_deft_coedit(tmp_path, flan, tiny_sentence_transformer):
    rng = np.random.default_rng(1)
    rows = [
        {"_id": str(number), "task": ("gec", "neutralize")[number % 2], "src": f"Fix: {text}", "tgt": text}
        for number, text in enumerate(sentence(rng) for _ in range(70))
    ]
    data = hub_folder(tmp_path / "coedit", {"train": rows[:60], "validation": rows[60:]})
    pipeline = run(
        "deft_coedit.py",
        f"{SMALL} --data.pool.path {data} --data.tests.coedit.path {data} --encoder.model {tiny_sentence_transformer} "
        f"--model {flan} --train.batch-size 8 --train.epochs 1 --workdir {tmp_path / 'run'}".split(),
    )
    selection = Selection.load(pipeline.select("deft", 0).folder / "selection")
    assert len(selection.indices) == round(0.325 * 60)
    assert sum(reason["part"] == "base" for reason in selection.reasons) == 18
    assert sum(reason["part"] == "hard" for reason in selection.reasons) == 2
    table = read_json(pipeline.table.folder / "table.json")
    assert table["arms"] == ["copy", "full", "random", "deft"]
    # The source of SARI is the text without its instruction: copying it is exact here.
    exact = [c["value"] for c in table["cells"] if (c["arm"], c["metric"]) == ("copy", "exact_match")]
    assert exact == [100.0, 100.0]


def test_tsds_instruct(tmp_path, flan, tiny_sentence_transformer):
    rng = np.random.default_rng(2)
    pool = [
        {"instruction": sentence(rng), "response": sentence(rng), "context": "", "category": "open_qa"}
        for _ in range(300)
    ]
    target = [{"question": sentence(rng), "answer": sentence(rng)} for _ in range(12)]
    dolly = hub_folder(tmp_path / "dolly", {"train": pool})
    gsm8k = hub_folder(tmp_path / "gsm8k", {"train": target[:8], "test": target[8:]})
    pipeline = run(
        "tsds_instruct.py",
        f"{SMALL} --data.pool.path {dolly} --data.queries.path {gsm8k} --data.tests.gsm8k.path {gsm8k} "
        f"--encoder.model {tiny_sentence_transformer} --model {flan} --train.batch-size 8 --train.epochs 1 "
        f"--replicates 1 --workdir {tmp_path / 'run'}".split(),
    )
    for arm in ("random", "tsds_kde", "tsds_uniform"):
        assert len(Selection.load(pipeline.select(arm, 0).folder / "selection").indices) == 3
