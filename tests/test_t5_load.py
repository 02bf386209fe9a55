"""Folders of transformers in, folders for transformers out, and every way in which a folder can be broken."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from t5_oracle import SHAPES, batch, save_torch_t5

from deft_tsds.t5.card import write_model_card
from deft_tsds.t5.load import TENSORS, load_pretrained, load_tokenizer, save_pretrained, train_tokenizer
from deft_tsds.t5.model import T5, T5Config

NANO = Path(__file__).parents[2] / "shared" / "models" / "t5-nano"
needs_nano = pytest.mark.skipif(not NANO.is_dir(), reason=f"{NANO} is not on this machine")
TEXTS = [
    "The cat sat on the mat.",
    "A dog, a cat; two birds?",
    "  She said: “naïve” — and left.\n",
    "1984 was 40 years ago!",
]


@pytest.fixture(scope="module", params=SHAPES)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    save_torch_t5(request.param, path)
    return path


@pytest.fixture
def copy(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def _tensors_equal(one: Path, other: Path) -> None:
    first, second = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert set(first) == set(second)
    for name in first:
        assert first[name].tobytes() == second[name].tobytes(), name


def _logits(model):
    ids, mask = batch(3, 9)
    return np.asarray(jax.jit(lambda: model(ids, mask, ids))())


def _change(folder: Path, **changes) -> None:
    path = folder / "model.safetensors"
    tensors = {**load_file(path), **changes}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


def test_ties_are_decided_by_the_file(folder):
    model = load_pretrained(folder)
    assert model.config.tie_word_embeddings == (folder.name.startswith("t5"))
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is True  # which says nothing
    assert (model.lm_head_VxD is None) == model.config.tie_word_embeddings


def test_round_trip_keeps_every_byte_and_loads_in_transformers(folder, tmp_path):
    from transformers import T5ForConditionalGeneration

    model = load_pretrained(folder)
    save_pretrained(model, tmp_path)
    _tensors_equal(folder, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    again = load_pretrained(tmp_path)
    assert again.config == model.config
    theirs = T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert theirs.generation_config.decoder_start_token_id == 0
    ids, mask = batch(3, 9)
    with torch.no_grad():
        tokens = torch.tensor(ids).long()
        expected = theirs(input_ids=tokens, attention_mask=torch.tensor(mask), decoder_input_ids=tokens).logits
        before = T5ForConditionalGeneration.from_pretrained(folder).eval()
        original = before(input_ids=tokens, attention_mask=torch.tensor(mask), decoder_input_ids=tokens).logits
    np.testing.assert_allclose(expected, original, atol=1e-6, rtol=0)
    np.testing.assert_allclose(_logits(again), expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gated-gelu"])
def test_export_of_every_kind_gives_transformers_the_same_logits(tmp_path, activation, tied, scaled):
    from transformers import T5ForConditionalGeneration

    config = T5Config(
        vocab_size=31, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_decoder_layers=1, num_heads=2,
        activation=activation, tie_word_embeddings=tied, scale_decoder_outputs=scaled,
    )  # fmt: skip
    model = T5(config, rngs=nnx.Rngs(0))
    save_pretrained(model, tmp_path)
    theirs = T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    ids, mask = batch(3, 9, vocab_size=31)
    with torch.no_grad():
        tokens = torch.tensor(ids).long()
        expected = theirs(input_ids=tokens, attention_mask=torch.tensor(mask), decoder_input_ids=tokens).logits
    found = jax.jit(lambda: model(ids, mask, ids))()
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)
    assert load_pretrained(tmp_path).config == config


def test_shards_load_like_one_file(folder, tmp_path):
    from transformers import T5ForConditionalGeneration

    T5ForConditionalGeneration.from_pretrained(folder).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    np.testing.assert_array_equal(_logits(load_pretrained(tmp_path)), _logits(load_pretrained(folder)))
    lost = sorted(tmp_path.glob("model-*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(ValueError, match=f"names the shard '{lost.name}', which is not in"):
        load_pretrained(tmp_path)


def test_a_large_model_is_saved_in_shards_that_transformers_loads(folder, tmp_path):
    from transformers import T5ForConditionalGeneration

    model = load_pretrained(folder)
    save_pretrained(model, tmp_path)
    save_pretrained(model, tmp_path, max_shard_bytes=20_000)
    names = {path.name for path in tmp_path.iterdir()}
    shards = {name for name in names if name.startswith("model-")}
    assert len(shards) > 2
    assert names == shards | {"config.json", "generation_config.json", "model.safetensors.index.json"}
    for shard in shards:
        tensors = load_file(tmp_path / shard)
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= 20_000
    theirs = T5ForConditionalGeneration.from_pretrained(tmp_path).state_dict()
    for name, tensor in load_file(folder / "model.safetensors").items():
        np.testing.assert_array_equal(theirs[name], tensor, err_msg=name)
    again = load_pretrained(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(again), nnx.state(model))
    save_pretrained(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}


def test_model_card_names_the_selection(tmp_path):
    from huggingface_hub import ModelCard

    folder = tmp_path / "splitter"
    folder.mkdir()
    selection = {"budget": 1200, "plan": {"alpha": 0.5, "note": "near | far"}, "fingerprint": "ab12"}
    arguments = {"base": "google/flan-t5-small", "selector": "TSDS", "count": 1200, "selection": selection}
    write_model_card(folder, **arguments, training={"steps": 300})
    card = ModelCard.load(folder / "README.md")
    data = card.data.to_dict()
    assert (data["base_model"], data["library_name"]) == ("google/flan-t5-small", "transformers")
    for line in (
        "# splitter",
        "google/flan-t5-small, fine-tuned on 1,200 training examples chosen by TSDS",
        "| budget | 1200 |",
        "| plan.alpha | 0.5 |",
        "| plan.note | near \\| far |",
        "| fingerprint | ab12 |",
        "| steps | 300 |",
    ):
        assert line in card.text
    write_model_card(folder, **{**arguments, "base": "A T5 with random weights"})
    assert "base_model" not in ModelCard.load(folder / "README.md").data.to_dict()
    with pytest.raises(ValueError, match=r"plan\.gap is nan, which is no plain JSON"):
        write_model_card(folder, **{**arguments, "selection": {"plan": {"gap": float("nan")}}})


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_files_become_float32(copy, dtype):
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    tensors = {
        name: tensor.to(getattr(torch, dtype)) for name, tensor in load_torch(copy / "model.safetensors").items()
    }
    save_torch(tensors, copy / "model.safetensors")
    model = load_pretrained(copy)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(model.embedding_VxD[...], tensors["shared.weight"].float().numpy())


def test_copies_of_the_shared_embedding_are_accepted_only_if_equal(copy):
    expected = _logits(load_pretrained(copy))
    shared = load_file(copy / "model.safetensors")["shared.weight"]
    bias = np.zeros((32, 5), np.float32)
    unused = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": bias}
    _change(copy, **{"encoder.embed_tokens.weight": shared, "decoder.embed_tokens.weight": shared}, **unused)
    np.testing.assert_array_equal(_logits(load_pretrained(copy)), expected)
    _change(copy, **{"shared.weight": None})
    np.testing.assert_array_equal(_logits(load_pretrained(copy)), expected)
    _change(copy, **{"decoder.embed_tokens.weight": shared + 1})
    with pytest.raises(ValueError, match=r"tensor decoder\.embed_tokens\.weight differs from shared\.weight"):
        load_pretrained(copy)


def test_a_head_equal_to_the_embedding_is_a_tie_unless_the_config_denies_it(copy):
    shared = load_file(copy / "model.safetensors")["shared.weight"]
    _change(copy, **{"lm_head.weight": shared})
    assert load_pretrained(copy).lm_head_VxD is None
    settings_ = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**settings_, "tie_word_embeddings": False}))
    assert load_pretrained(copy).lm_head_VxD is not None


def test_table_names_each_parameter_once():
    assert len({row[0] for row in TENSORS}) == len({row[1] for row in TENSORS}) == len(TENSORS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"encoder.block.1.layer.0.SelfAttention.q.weight": None},
            r"has no tensor encoder\.block\.1\.layer\.0.*q",
        ),
        ({"shared.weight": None}, r"has no tensor shared\.weight"),
        ({"encoder.block.9.extra": np.zeros(2, np.float32)}, r"has unknown tensors encoder\.block\.9\.extra"),
        (
            {"decoder.block.0.layer.1.EncDecAttention.k.weight": np.zeros((40, 35), np.float32)},
            r"tensor decoder\.block\.0\.layer\.1\.EncDecAttention\.k\.weight has shape \[40, 35\], .* says \[40, 36\]",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(copy, change, message):
    _change(copy, **change)
    with pytest.raises(ValueError, match=message):
        load_pretrained(copy)


def test_broken_folders_say_what_is_wrong(copy, tmp_path):
    weights, config = copy / "model.safetensors", copy / "config.json"
    whole, text = weights.read_bytes(), config.read_text()
    for broken in (whole[: len(whole) // 2], whole[:5], b""):
        weights.write_bytes(broken)
        with pytest.raises(ValueError, match=r"model\.safetensors cannot be read .* truncated"):
            load_pretrained(copy)
    weights.unlink()
    with pytest.raises(ValueError, match=r"has no model\.safetensors and no"):
        load_pretrained(copy)
    (copy / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin .* is a pickle.*refused.*save_pretrained"):
        load_pretrained(copy)
    for wrong, message in (("{", "is not valid JSON"), ("[]", "holds no JSON object"), ("{}", "missing model_type")):
        config.write_text(wrong)
        with pytest.raises(ValueError, match=message):
            load_pretrained(copy)
    config.unlink()
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load_pretrained(copy)
    with pytest.raises(ValueError, match="has no tokenizer"):
        load_tokenizer(copy)
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        load_tokenizer(copy)
    assert json.loads(text)["model_type"] == "t5"


@pytest.mark.parametrize("name", ["./no/folder", "/no/folder", "a/b/c", Path("no-folder")])
def test_a_path_that_is_no_folder_never_asks_the_hub(name, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(ValueError, match="There is no folder"):
        load_pretrained(name)


def test_a_hub_name_is_downloaded_or_the_reason_is_given(folder, monkeypatch):
    import huggingface_hub

    asked = []

    def download(name, *, allow_patterns):
        asked.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    np.testing.assert_array_equal(_logits(load_pretrained("owner/name")), _logits(load_pretrained(folder)))
    assert asked[0][0] == "owner/name"
    assert not any(pattern.endswith((".bin", ".py", "*")) for pattern in asked[0][1])

    def unreachable(name, *, allow_patterns):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(ValueError, match=r"'owner/name' is no local folder, and .* hub did not give it .*no network"):
        load_tokenizer("owner/name")


def test_a_failed_save_leaves_the_old_folder(tmp_path, monkeypatch):
    config = T5Config(vocab_size=31, d_model=8, d_kv=4, d_ff=12, num_layers=1, num_decoder_layers=1, num_heads=2)
    save_pretrained(T5(config, rngs=nnx.Rngs(0)), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full_disk(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError("no space")

    monkeypatch.setattr("deft_tsds.t5.load.save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_pretrained(T5(dataclasses.replace(config, d_ff=8), rngs=nnx.Rngs(1)), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@needs_nano
def test_the_export_of_a_real_folder_keeps_every_byte(tmp_path):
    save_pretrained(load_pretrained(NANO), tmp_path)
    _tensors_equal(NANO, tmp_path)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 20, vocab_size=300)


def test_tokenizer_has_t5s_special_ids(tokenizer):
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer("The cat")["input_ids"][-1] == 1
    assert tokenizer("")["input_ids"] == [1]
    padded = tokenizer(["a", "The dog sat"], padding=True)
    assert padded["input_ids"][0][-1] == 0
    assert padded["attention_mask"][0][-1] == 0
    assert 259 < len(tokenizer) <= 300


def test_truncation_keeps_the_end_token(tokenizer):
    ids = tokenizer(TEXTS[0] * 5, truncation=True, max_length=8)["input_ids"]
    assert len(ids) == 8
    assert ids[-1] == 1


def test_training_twice_gives_the_same_tokenizer():
    first, again = (train_tokenizer(iter(TEXTS * 20), vocab_size=300) for _ in range(2))
    assert first.backend_tokenizer.to_str() == again.backend_tokenizer.to_str()


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
@settings(deadline=None, max_examples=40)
def test_every_text_decodes_to_itself(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_tokenizer_saves_and_loads_beside_a_model(tokenizer, copy):
    tokenizer.save_pretrained(copy)
    again = load_tokenizer(copy)
    texts = [*TEXTS, "unseen ≠ 見 🙂  words"]
    assert again(texts)["input_ids"] == tokenizer(texts)["input_ids"]
    assert again.batch_decode(again(texts)["input_ids"], skip_special_tokens=True) == texts
    assert (again.pad_token_id, again.eos_token_id) == (0, 1)


@needs_nano
def test_a_real_tokenizer_loads():
    tokenizer = load_tokenizer(NANO)
    ids = tokenizer("The cat sat on the mat .")["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == "The cat sat on the mat ."


@pytest.mark.parametrize(
    ("texts", "vocab_size", "message"),
    [
        ([], 300, "texts is empty"),
        (["", ""], 300, "texts is empty"),
        (["a"], 258, "vocab_size is 258; the bytes and special tokens need 259"),
    ],
)
def test_train_tokenizer_errors(texts, vocab_size, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(texts, vocab_size=vocab_size)
