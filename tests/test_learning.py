"""It learns: real sentence splitting and fusion, from the small pretrained T5 of ../shared."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from deft_tsds.data.examples import read_examples
from deft_tsds.t5 import T5, T5Config
from deft_tsds.t5.generate import generate_texts
from deft_tsds.t5.load import load_pretrained, load_tokenizer, train_tokenizer
from deft_tsds.training.finetune import finetune, learning_rates, make_optimizer, tokenize_pairs, validation_loss

SHARED = Path(__file__).parents[2] / "shared"
NANO, POOL = SHARED / "models" / "t5-nano", SHARED / "data" / "edit" / "edit_train_pool.jsonl.gz"
WIDTHS: dict[str, Any] = {"max_input_tokens": 64, "max_target_tokens": 64}

pytestmark = [
    pytest.mark.skipif(
        not (NANO.is_dir() and POOL.is_file()), reason="the real model and text of ../shared are not here"
    ),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def texts():
    """Prompts and targets of splitting and fusion, the shortest 1,000 in one fixed shuffled order."""
    examples = read_examples(
        str(POOL), instruction_field="instruction", where={"source": "google-research-datasets/wiki-split"}
    )
    shortest = sorted(range(len(examples)), key=lambda row: (len(examples.prompts[row]), row))[:1000]
    order = np.random.default_rng(0).permutation(shortest)
    return [examples.prompts[row] for row in order], [examples.targets[row] for row in order]


def copy_unigram_loss(train, held_out, vocabulary):
    """Loss per token of the best mixture of copying any token of the prompt and the targets' unigrams.

    p(y | x) = s count(y in x) / |x| + (1 - s) (count(y in all targets) + 1) / (tokens + V), the share s the best for
    the held-out pairs themselves: what can be had without reading.
    """
    counts = np.bincount(train.labels_NxT[train.labels_NxT != 0], minlength=vocabulary) + 1.0
    unigram = counts / counts.sum()
    copied, general = [], []
    for prompt, target in zip(held_out.inputs_NxS, held_out.labels_NxT, strict=True):
        prompt, target = prompt[prompt != 0], target[target != 0]
        copied.extend((prompt[:, None] == target).mean(0))
        general.extend(unigram[target])
    copied, general = np.array(copied), np.array(general)
    return min(-np.log(s * copied + (1 - s) * general).mean() for s in np.linspace(0.05, 0.95, 19))


def test_held_out_loss_falls_below_the_copy_unigram_level(texts, tmp_path):
    model, tokenizer = load_pretrained(NANO), load_tokenizer(NANO)
    prompts, targets = texts
    train = tokenize_pairs(tokenizer, prompts[100:], targets[100:], **WIDTHS)
    held_out = tokenize_pairs(tokenizer, prompts[:100], targets[:100], **WIDTHS)
    level = copy_unigram_loss(train, held_out, model.config.vocab_size)
    before = validation_loss(model, held_out, batch_size=25)
    trained = finetune(
        model,
        train,
        rates=learning_rates(steps=40, peak=1e-3, warmup=0.1, schedule="linear"),
        batch_size=16,
        key=jax.random.key(0),
        folder=tmp_path,
        optimizer=make_optimizer("adamw"),
        validation=held_out,
    )
    print(f"copy-unigram {level:.3f}, before {before:.3f}, after {trained.validation_loss:.3f}")
    assert trained.validation_loss is not None
    assert trained.validation_loss < level, f"copy-unigram {level:.3f}, before {before:.3f}"
    assert trained.validation_loss < 0.9 * before


def test_it_learns_64_pairs_by_heart(texts, tmp_path):
    # A T5 of the demo's shape from nothing. The pretrained one gives "Jese" for "Jesse" whatever the steps: its decoder
    # has the same state after one "s" and after two. torch, which trains it no better, comes to the same loss.
    prompts, targets = texts
    tokenizer = train_tokenizer([*prompts, *targets], vocab_size=1000)
    shape = T5Config(
        vocab_size=len(tokenizer),
        d_model=96,
        d_kv=24,
        d_ff=256,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        dropout_rate=0.0,
    )
    model = T5(shape, rngs=nnx.Rngs(0))
    shortest = sorted(range(len(targets)), key=lambda row: (len(targets[row]), row))[:64]
    prompts, targets = ([side[row] for row in shortest] for side in texts)
    pairs = tokenize_pairs(tokenizer, prompts, targets, **WIDTHS)
    finetune(
        model,
        pairs,
        rates=learning_rates(steps=450, peak=0.03, warmup=0.1, schedule="linear"),
        batch_size=32,
        key=jax.random.key(0),
        folder=tmp_path,
        optimizer=make_optimizer("adafactor"),
    )
    answers = generate_texts(model, tokenizer, prompts, max_input_tokens=64, max_new_tokens=64, batch_size=32)
    pairs_given = list(zip(answers, targets, strict=True))
    assert [pair for pair in pairs_given if pair[0] != pair[1]] == []
