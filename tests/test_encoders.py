"""Encoders over models of somebody's: a T5's states and Sentence-T5, BART's CLS, several encoders as one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deft_tsds import build
from deft_tsds import config as cfg
from deft_tsds.data.examples import read_examples
from deft_tsds.embed import Encoder
from deft_tsds.embed import t5 as t5_module
from deft_tsds.embed.bart import BartCLS
from deft_tsds.embed.concatenated import Concatenated
from deft_tsds.embed.store import open_store, write_store
from deft_tsds.embed.t5 import T5Encoder, load_encoder
from deft_tsds.runs import write_jsonl
from deft_tsds.t5 import load_pretrained, train_tokenizer

WORDS = (
    *("the", "a", "cat", "dog", "house", "tree", "runs", "sleeps", "quickly", "slowly", "under", "over"),
    *("big", "small", "red", "blue", "and", "but", "never", "often"),
)
WIDTH = 24


def sentences(count: int, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, size=generator.integers(1, 25))) for _ in range(count)]


TEXTS = [*sentences(9), "", "  the cat  ", " ".join(WORDS * 4)]  # the last is longer than any limit


@pytest.fixture(scope="module")
def plain_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole T5 with random weights and its tokenizer, saved by transformers."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "d_model": WIDTH,
        "decoder_start_token_id": 0,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 2,
        "num_decoder_layers": 1,
        "num_heads": 3,
    }
    config = transformers.T5Config(vocab_size=300, feed_forward_proj="gated-gelu", **sizes)
    model = transformers.T5ForConditionalGeneration(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "relative_attention_bias" in name:
                weight.normal_(0, 1.5)
            elif "layer_norm" in name:
                weight.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    train_tokenizer(sentences(40), vocab_size=300).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sentence_t5(plain_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same T5's encoder as a Sentence-T5: mean pooling, a matrix with random weights, unit length."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    folder = tmp_path_factory.mktemp("sentence-t5")
    torch.manual_seed(1)
    parts = [
        Transformer(str(plain_t5), max_seq_length=24),
        Pooling(WIDTH, "mean"),
        Dense(WIDTH, 16, bias=False, activation_function=torch.nn.Identity()),
        Normalize(),
    ]
    SentenceTransformer(modules=parts, device="cpu").save(str(folder))
    return folder


def torch_states(folder: Path, max_tokens: int) -> list[np.ndarray]:
    """The last hidden states of the encoder for each text by itself, [tokens, D], by transformers."""
    import torch
    from transformers import AutoTokenizer, T5EncoderModel

    tokenizer, model = AutoTokenizer.from_pretrained(folder), T5EncoderModel.from_pretrained(folder).eval()
    with torch.no_grad():
        rows = [tokenizer(text, truncation=True, max_length=max_tokens, return_tensors="pt") for text in TEXTS]
        return [model(row["input_ids"]).last_hidden_state[0].double().numpy() for row in rows]


def test_mean_and_position_against_loops_over_transformers(plain_t5: Path) -> None:
    states = torch_states(plain_t5, 24)
    assert {len(rows) for rows in states} >= {1, 24}
    mean = [rows.sum(axis=0) / len(rows) for rows in states]
    position = [sum(i * row for i, row in enumerate(rows, start=1)) / sum(range(1, len(rows) + 1)) for rows in states]
    poolings: list[tuple[t5_module.Pooling, Any]] = [("mean", mean), ("position", position)]
    for pooling, expected in poolings:
        encoder = T5Encoder(str(plain_t5), pooling, max_tokens=24, batch_size=5)
        assert isinstance(encoder, Encoder)
        found = encoder.encode(TEXTS)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_sentence_t5_is_what_sentence_transformers_gives(sentence_t5: Path) -> None:
    from sentence_transformers import SentenceTransformer

    expected = SentenceTransformer(str(sentence_t5), device="cpu").encode(TEXTS)
    encoder = T5Encoder(str(sentence_t5), "sentence", batch_size=5)
    assert encoder.settings()["max_tokens"] == 24
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)


def test_a_folder_of_an_older_version_reads_alike(sentence_t5: Path, tmp_path: Path) -> None:
    """Released Sentence-T5 folders are of version 2: other names of modules and of the pooling, the limit in a file."""
    old = tmp_path / "old"
    shutil.copytree(sentence_t5, old)
    modules = json.loads((old / "modules.json").read_text())
    for part in modules:
        part["type"] = "sentence_transformers.models." + part["type"].rpartition(".")[2]
    (old / "modules.json").write_text(json.dumps(modules))
    modes = {f"pooling_mode_{name}": name == "mean_tokens" for name in ("cls_token", "mean_tokens", "max_tokens")}
    (old / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": WIDTH, **modes}))
    (old / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12, "do_lower_case": False}))
    encoder = T5Encoder(str(old), "sentence", batch_size=5)
    assert encoder.settings()["max_tokens"] == 12
    short = T5Encoder(str(sentence_t5), "sentence", max_tokens=12, batch_size=5)
    np.testing.assert_array_equal(encoder.encode(TEXTS), short.encode(TEXTS))


def test_padding_batches_and_order_change_rounding_only(plain_t5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = T5Encoder(str(plain_t5), max_tokens=24, batch_size=5).encode(TEXTS)
    alone = T5Encoder(str(plain_t5), max_tokens=24, batch_size=1)
    np.testing.assert_allclose(np.concatenate([alone.encode([text]) for text in TEXTS]), rows, atol=1e-5)
    order = np.random.default_rng(0).permutation(len(TEXTS))
    shuffled = T5Encoder(str(plain_t5), max_tokens=24, batch_size=7).encode([TEXTS[row] for row in order])
    np.testing.assert_allclose(shuffled, rows[order], atol=1e-5)
    monkeypatch.setattr(t5_module, "_padded", lambda length: 32)
    padded = T5Encoder(str(plain_t5), max_tokens=24, batch_size=5).encode(TEXTS)
    np.testing.assert_allclose(padded, rows, atol=1e-5)


def test_a_program_for_each_padded_length_and_no_more(plain_t5: Path) -> None:
    program: Any = t5_module._embed
    program.clear_cache()
    encoder = T5Encoder(str(plain_t5), max_tokens=24, batch_size=5)
    encoder.encode(sentences(40))
    compiled = program._cache_size()
    assert 1 < compiled <= 6  # 4, 8, 12, 16, 20, 24
    encoder.encode(sentences(40)[::-1])
    T5Encoder(str(plain_t5), max_tokens=24, batch_size=5).encode(sentences(40))
    assert program._cache_size() == compiled


def test_padded_lengths() -> None:
    assert [t5_module._padded(length) for length in (1, 4, 5, 32, 33, 64, 65, 128, 129, 512)] == [
        *(4, 4, 8, 32, 40, 64, 80, 128, 160, 512)
    ]


def test_bfloat16_is_near(plain_t5: Path) -> None:
    exact = T5Encoder(str(plain_t5), max_tokens=24, batch_size=5).encode(TEXTS)
    rough = T5Encoder(str(plain_t5), max_tokens=24, batch_size=5, dtype="bfloat16")
    found = rough.encode(TEXTS)
    assert found.dtype == np.float32
    assert rough.settings()["dtype"] == "bfloat16"
    cosines = (found * exact).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(exact, axis=1)
    assert 0.99 < cosines.min() < 1 - 1e-7  # near, and not the same numbers


def test_no_texts_and_one(plain_t5: Path) -> None:
    encoder = T5Encoder(str(plain_t5))
    assert len(encoder.encode([])) == 0
    assert encoder.encode(["one"]).shape == (1, WIDTH)


def test_eight_devices_give_the_rows_of_one(plain_t5: Path, tmp_path: Path) -> None:
    code = f"""
import jax
jax.config.update("jax_num_cpu_devices", 8)
import json, numpy as np
from deft_tsds.embed.t5 import T5Encoder
assert len(jax.devices()) == 8
encoder = T5Encoder({str(plain_t5)!r}, "position", max_tokens=24, batch_size=5)
np.save({str(tmp_path / "rows.npy")!r}, encoder.encode(json.loads({json.dumps(json.dumps(TEXTS))})))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    here = T5Encoder(str(plain_t5), "position", max_tokens=24, batch_size=5).encode(TEXTS)
    np.testing.assert_allclose(np.load(tmp_path / "rows.npy"), here, atol=1e-5)


def test_settings_follow_files_and_pooling_not_paths(plain_t5: Path, tmp_path: Path) -> None:
    here = T5Encoder(str(plain_t5)).settings()
    moved = tmp_path / "moved"
    shutil.copytree(plain_t5, moved)
    assert T5Encoder(str(moved), batch_size=3).settings() == here
    for other in (T5Encoder(str(moved), "position"), T5Encoder(str(moved), max_tokens=9)):
        assert other.settings() != here
    weights = bytearray((moved / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (moved / "model.safetensors").write_bytes(weights)
    assert T5Encoder(str(moved)).settings() != here


def test_the_encoder_alone_equals_that_of_the_whole_model(plain_t5: Path, sentence_t5: Path) -> None:
    """`sentence_t5` holds no decoder; neither reads one."""
    ids = np.random.default_rng(0).integers(3, 300, (2, 7))
    whole = load_pretrained(plain_t5).encode(ids, np.ones_like(ids))
    for folder in (plain_t5, sentence_t5):
        alone = load_encoder(folder)
        assert not hasattr(alone, "decoder")
        np.testing.assert_array_equal(alone.encode(ids, np.ones_like(ids)), whole)


def edited(folder: Path, to: Path, file: str, **changes: Any) -> Path:
    shutil.copytree(folder, to)
    settings = json.loads((to / file).read_text())
    (to / file).write_text(json.dumps({**settings, **changes}))
    return to


def test_folders_that_cannot_be_used(plain_t5: Path, sentence_t5: Path, tmp_path: Path) -> None:
    pickle = tmp_path / "pickle"
    shutil.copytree(plain_t5, pickle)
    (pickle / "model.safetensors").rename(pickle / "pytorch_model.bin")
    bare = tmp_path / "bare"
    shutil.copytree(plain_t5, bare)
    (bare / "model.safetensors").unlink()
    cut = tmp_path / "cut"
    shutil.copytree(plain_t5, cut)
    (cut / "model.safetensors").write_bytes((plain_t5 / "model.safetensors").read_bytes()[:-9])
    deep = edited(plain_t5, tmp_path / "deep", "config.json", num_layers=3)
    wide = edited(plain_t5, tmp_path / "wide", "config.json", d_ff=40)
    few = edited(plain_t5, tmp_path / "few", "config.json", vocab_size=299)
    biased = edited(sentence_t5, tmp_path / "biased", "2_Dense/config.json", bias=True)
    bent = edited(sentence_t5, tmp_path / "bent", "2_Dense/config.json", activation_function="torch.nn.Tanh")
    first = edited(sentence_t5, tmp_path / "first", "1_Pooling/config.json", pooling_mode="cls")
    lower = edited(sentence_t5, tmp_path / "lower", "sentence_bert_config.json", do_lower_case=True)
    dense_pickle = tmp_path / "dense-pickle"
    shutil.copytree(sentence_t5, dense_pickle)
    (dense_pickle / "2_Dense" / "model.safetensors").rename(dense_pickle / "2_Dense" / "pytorch_model.bin")
    chain = tmp_path / "chain"
    shutil.copytree(sentence_t5, chain)
    modules = json.loads((chain / "modules.json").read_text())
    (chain / "modules.json").write_text(json.dumps([modules[0], modules[2]]))
    cases: list[tuple[Path, t5_module.Pooling, str]] = [
        (pickle, "mean", r"pytorch_model\.bin .*A \.bin file is a pickle, which can run any code"),
        (bare, "mean", r"has no model\*\.safetensors"),
        (cut, "mean", "cannot be read .*truncated"),
        (deep, "mean", r"lacks \d+ tensors of a T5 encoder: encoder\.block\.2"),
        (wide, "mean", r"has shape .* where config\.json says"),
        (few, "mean", r"shape|299 embeddings"),
        (plain_t5, "sentence", r"no modules\.json"),
        (biased, "sentence", "no plain matrix"),
        (bent, "sentence", "no plain matrix"),
        (first, "sentence", "does not take the mean"),
        (lower, "sentence", "lowers the case"),
        (chain, "sentence", "is a chain of Transformer, Dense;"),
        (dense_pickle, "sentence", r"pytorch_model\.bin .*is a pickle"),
        (tmp_path / "none", "mean", "is no local folder"),
    ]
    for folder, pooling, message in cases:
        with pytest.raises(ValueError, match=message):
            T5Encoder(str(folder), pooling).settings()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pooling": "max"}, "pooling is 'max': give one of mean, position, sentence"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_tokens": 0}, "max_tokens is 0"),
    ],
)
def test_arguments_that_make_no_sense(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        T5Encoder("any", **arguments)


@pytest.fixture(scope="module")
def tiny_bart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BART with random weights and a byte-level tokenizer that puts `<s>` first, saved by transformers."""
    import torch
    from tokenizers import processors
    from transformers import BartConfig, BartModel

    folder = tmp_path_factory.mktemp("bart")
    tokenizer = train_tokenizer(sentences(40), vocab_size=300)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    start, end = (tokenizer.convert_tokens_to_ids(token) for token in ("<s>", "</s>"))
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", start), ("</s>", end)]
    )
    tokenizer.save_pretrained(folder)
    sizes: dict[str, Any] = {"encoder_layers": 2, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads: dict[str, Any] = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=len(tokenizer), d_model=16, max_position_embeddings=48, pad_token_id=0, **sizes, **heads
    )
    BartModel(config).save_pretrained(folder)
    return folder


def test_bart_gives_the_state_of_the_first_token(tiny_bart: Path) -> None:
    import torch
    from transformers import AutoTokenizer, BartModel

    tokenizer, model = AutoTokenizer.from_pretrained(tiny_bart), BartModel.from_pretrained(tiny_bart).eval()
    encoder = BartCLS(str(tiny_bart), batch_size=5, device="cpu")
    assert isinstance(encoder, Encoder)
    assert encoder.settings()["max_tokens"] == 48
    found = encoder.encode(TEXTS)
    assert found.dtype == np.float32
    assert encoder.encode([]).shape == (0, 16)
    for text, row in zip(TEXTS, found, strict=True):
        ids = tokenizer(text, truncation=True, max_length=48, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected = model.get_encoder()(ids).last_hidden_state[0, 0]
        np.testing.assert_allclose(row, expected, atol=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_bart_refuses_pickles_and_other_models(tiny_bart: Path, plain_t5: Path, tmp_path: Path) -> None:
    pickle = tmp_path / "pickle"
    shutil.copytree(tiny_bart, pickle)
    (pickle / "model.safetensors").rename(pickle / "pytorch_model.bin")
    for folder, message in (
        (pickle, "is a pickle"),
        (plain_t5, "model of type 't5'"),
        (tmp_path / "none", "is no local folder"),
    ):
        with pytest.raises(ValueError, match=message):
            BartCLS(str(folder)).settings()
    with pytest.raises(ValueError, match="batch_size is 0"):
        BartCLS("any", batch_size=0)


def test_bart_names_the_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from deft_tsds.embed import bart

    monkeypatch.setattr(bart.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r'pip install "deft-tsds\[encoders\]"'):
        BartCLS("any")


class Fixed:
    """Vectors from the length and the letters of a text, of a length that is far from one."""

    name = "fixed"

    def __init__(self, scale: float, width: int):
        self.scale, self.width = scale, width

    def settings(self) -> dict[str, Any]:
        return {"scale": self.scale, "width": self.width}

    def encode(self, texts: Any) -> np.ndarray:
        rows = [[ord(text[place % len(text)]) - 100.0 for place in range(self.width)] for text in texts]
        return self.scale * np.array(rows, np.float32)


def test_distances_and_cosines_of_a_concatenation_add_with_the_weights() -> None:
    a, b = Fixed(100.0, 5), Fixed(0.01, 3)
    whole = Concatenated([a, b], weights=[3, 1])
    assert isinstance(whole, Encoder)
    texts = sentences(6)
    rows = whole.encode(texts).astype(np.float64)
    assert rows.shape == (6, 8)
    units = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a.encode(texts), b.encode(texts))]
    distances = [((x[:, None] - x[None]) ** 2).sum(-1) for x in (rows, *units)]
    np.testing.assert_allclose(distances[0], 0.75 * distances[1] + 0.25 * distances[2], atol=1e-6)
    np.testing.assert_allclose(rows @ rows.T, 0.75 * units[0] @ units[0].T + 0.25 * units[1] @ units[1].T, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(Concatenated([a, b], [6, 2]).encode(texts), whole.encode(texts))
    assert Concatenated([a, b]).shares == [0.5, 0.5]


def test_a_store_tells_concatenations_apart(tmp_path: Path) -> None:
    texts = sentences(7)
    parts = [Fixed(1.0, 5), Fixed(2.0, 3)]
    write_store(tmp_path / "store", texts, Concatenated(parts, [1, 2]))
    assert open_store(tmp_path / "store").encoder == "fixed + fixed"
    for other in (Concatenated(parts, [2, 1]), Concatenated(parts[::-1], [1, 2]), Concatenated([parts[0]] * 2, [1, 2])):
        with pytest.raises(ValueError, match=r"settings\.parts differ"):
            write_store(tmp_path / "store", texts, other)


@pytest.mark.parametrize(
    ("parts", "weights", "message"),
    [
        ([], None, "parts is empty"),
        ([Fixed(1, 2)], [1, 2], "weights has 2 entries for 1 parts"),
        ([Fixed(1, 2)], [0], r"weights\[0\] is 0: give a number above 0"),
        ([Fixed(1, 2)], [float("nan")], r"weights\[0\] is nan"),
    ],
)
def test_concatenations_that_make_no_sense(parts: list[Any], weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Concatenated(parts, weights)


def test_a_config_builds_several_encoders_and_keeps_what_they_learn(plain_t5: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "pool.jsonl", [{"id": str(n), "input": text} for n, text in enumerate(sentences(30))])
    pool = read_examples(tmp_path / "pool.jsonl", target_field=None)
    kept = tmp_path / "kept"
    kept.mkdir()
    config = cfg.Concatenated(
        {"words": cfg.Part(cfg.Lexical(4)), "states": cfg.Part(T5Encoder(str(plain_t5), batch_size=5), weight=3.0)}
    )
    built = build.encoder(config, pool, path=kept / "encoder.npz", key=jax.random.key(0))
    assert [path.name for path in kept.iterdir()] == ["encoder-words.npz"]
    rows = built.encode(pool.prompts)
    assert rows.shape == (30, 4 + WIDTH)
    np.testing.assert_allclose((rows[:, 4:] ** 2).sum(1), 0.75, atol=1e-6)
    again = build.encoder(config, pool.take(np.arange(9)), path=kept / "encoder.npz", key=jax.random.key(1))
    assert again.settings() == built.settings()
    assert list(build.encoder_identity(config)) == [str(plain_t5)]


def test_a_config_reads_own_embeddings_from_columns_and_raw_files(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    pq.write_table(pa.table({"a": rows.tolist(), "b": (2 * rows).tolist()}), tmp_path / "rows.parquet")
    rows.astype(np.float16).tofile(tmp_path / "rows.dat")
    for config, expected in (
        (cfg.OwnEmbeddings(str(tmp_path / "rows.parquet"), column="b"), 2 * rows),
        (cfg.OwnEmbeddings(str(tmp_path / "rows.dat"), raw=("float16", 3)), rows.astype(np.float16)),
    ):
        own = build.given_embeddings(config, {"pool": 4, "queries": 0})["pool"]
        np.testing.assert_array_equal(own.encode(own.texts), expected.astype(np.float32))
