"""Bad configs, command lines, checkpoints and weights: each is refused before any work, with what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from refused import Bad, changed, check, table, text
from safetensors.numpy import load_file, save_file

from deft_tsds import build
from deft_tsds import config as cfg
from deft_tsds.config import (
    Arm,
    Concatenated,
    Custom,
    Evaluate,
    Experiment,
    Gradients,
    HeldOut,
    OwnEmbeddings,
    Quality,
    Scratch,
    SentenceTransformers,
    Synthetic,
    Train,
    Weighted,
    load,
    override,
)
from deft_tsds.data.examples import Examples
from deft_tsds.embed.folders import model_folder, weight_files
from deft_tsds.embed.t5 import T5Encoder, load_encoder
from deft_tsds.selectors import DEFT, DSIR, Full, Random
from deft_tsds.t5.load import load_pretrained, load_tokenizer, save_pretrained, train_tokenizer
from deft_tsds.t5.model import T5, T5Config
from deft_tsds.training.checkpoints import Checkpoints

ARM = Arm(DEFT(), share=0.2)
EXPERIMENT = Experiment(data=Synthetic(), arms={"deft": ARM})
HEAD = "from deft_tsds.config import *\nfrom deft_tsds.selectors import DEFT, Random\n"
EXAMPLES = Examples(("a", "b"), ("x", "y"), ("x", "y"), ("u", "v"), (("u",), ("v",)), ("g", "h"))


def source(body: str, *arguments: str):
    return lambda folder: load(text(folder / "c.py", HEAD + body), arguments)


def line(*arguments: str):
    return lambda _: override(EXPERIMENT, arguments)


def made(kind: Any, **options: Any):
    return lambda _: kind(**options)


def objective(name: str, option: dict[str, Any] | None = None):
    weighted = {"mine": Weighted(1.0, name, option or {})}
    return lambda _: build.objective(weighted, where="arms.a.selector.objective", pool=lambda: EXAMPLES)


def scores(value: Any):
    def do(folder: Path) -> None:
        if isinstance(value, np.ndarray):
            np.save(folder / "s.npy", value, allow_pickle=value.dtype == object)
        named = str(folder / "s.npy") if isinstance(value, np.ndarray) else value
        build.selector(Quality(named), name="q", pool=lambda: EXAMPLES)

    return do


def arms(**arm: Any):
    """The budget of an arm, of a pool of 10."""
    return lambda _: build.budget(Arm(**cast(Any, {"selector": Random()} | arm)), 10, name="a")


def encoders(experiment: Experiment):
    return lambda _: build.check_encoders(experiment, {"pool": 2, "queries": 0})


CONFIGS = [
    Bad("a config that is no Python", source("config = Experiment("), "c.py, line 3: SyntaxError", "was never closed"),
    Bad(
        "a field that there is not",
        source("config = Experiment(data=Synthetic(), arms={}, trian=1)"),
        "c.py, line 3",
        "Did you mean 'train'?",
    ),
    Bad(
        "a field of a section that there is not",
        source("\ntrain = Train(stepz=3)"),
        "c.py, line 4",
        "Did you mean 'steps'?",
    ),
    Bad(
        "a class that there is not",
        source("config = Experimnt()"),
        "c.py, line 3: NameError",
        "Did you mean 'Experiment'?",
    ),
    Bad(
        "a module that there is not", source("import no_such_module"), "c.py, line 3: ModuleNotFoundError", "PYTHONPATH"
    ),
    Bad("a config that is a dict", source("config = {}"), "c.py must define", "found dict"),
    Bad(
        "a config without arms",
        source("config = Experiment(data=Synthetic(), arms={})"),
        "c.py, line 3",
        "arms is empty",
    ),
    Bad("a folder in place of a config", lambda f: load(f), "no config file", "Configs in"),
    Bad("a config of NUL bytes", source("\0"), "c.py", "null bytes"),
    Bad(
        "an arm whose name is a path",
        made(Experiment, data=Synthetic(), arms={"../x": ARM}),
        "'../x'",
        "leave out slashes",
    ),
    Bad(
        "an encoder whose name is a path",
        made(Experiment, data=Synthetic(), arms={"a": ARM}, encoders={"/tmp": cfg.Lexical()}),
        "'/tmp'",
        "leave out slashes",
    ),
    Bad(
        "no replicates",
        made(Experiment, data=Synthetic(), arms={"a": ARM}, replicates=0),
        "replicates is 0",
        "at least 1",
    ),
    Bad("a batch of none", made(Train, batch_size=0), "train.batch_size is 0", "give an integer at least 1"),
    Bad("half a batch", made(Train, batch_size=0.5), "train.batch_size is 0.5", "give an integer"),
    Bad("a learning rate below 0", made(Train, learning_rate=-1.0), "train.learning_rate is -1", "at least 0"),
    Bad(
        "a learning rate that is NaN",
        made(Train, learning_rate=float("nan")),
        "train.learning_rate is nan",
        "a finite number",
    ),
    Bad("a warm-up of 5", made(Train, warmup=5.0), "train.warmup is 5", "at most 1"),
    Bad("a clip of 0", made(Train, clip=0.0), "train.clip is 0", "above 0"),
    Bad("label smoothing of 1", made(Train, label_smoothing=1.0), "train.label_smoothing is 1", "below 1"),
    Bad("no input tokens", made(Train, max_input_tokens=0), "train.max_input_tokens is 0", "at least 1"),
    Bad("a patience of 0", made(Train, patience=0), "train.patience is 0", "at least 1"),
    Bad("negative validation rows", made(Train, validation=-5), "train.validation is -5", "at least 0"),
    Bad("checkpoints every 0 steps", made(Train, save_every=0), "train.save_every is 0", "at least 1"),
    Bad("no beams", made(Evaluate, beams=0), "evaluate.beams is 0", "at least 1"),
    Bad("a level of 1", made(Evaluate, level=1.0), "evaluate.level is 1", "such as 0.95"),
    Bad("a level of 95", made(Evaluate, level=95.0), "evaluate.level is 95", "at most 1"),
    Bad("no resamples", made(Evaluate, resamples=0), "evaluate.resamples is 0", "at least 1"),
    Bad("no rows to score", made(Evaluate, limit=0), "evaluate.limit is 0", "at least 1"),
    Bad("a synthetic pool of none", made(Synthetic, pool=0), "data.pool is 0", "at least 1"),
    Bad(
        "a share of duplicates above 1",
        made(Synthetic, near_duplicates=1.5),
        "data.near_duplicates is 1.5",
        "at most 1",
    ),
    Bad("no queries held out", made(HeldOut, count=0), "data.queries.count is 0", "at least 1"),
    Bad(
        "steps and epochs",
        lambda _: build.check_train(Train(steps=5, epochs=1.0)),
        "train.steps (now 5)",
        "exactly one",
    ),
    Bad(
        "side by side with patience",
        lambda _: build.check_train(Train(steps=5, side_by_side=True, patience=2)),
        "train.side_by_side",
        "set train.patience to None",
    ),
    Bad(
        "a metric that there is not",
        lambda _: build.check_metrics(("bleurt",)),
        "evaluate.metrics: unknown ['bleurt']",
        "there are ['bleu'",
    ),
    Bad("no metrics", lambda _: build.check_metrics(()), "evaluate.metrics", "there are ['bleu'"),
    Bad("a share and a count", arms(share=0.5, count=3), "arms.a: give either share", "exactly one of them"),
    Bad("a share of 0", arms(share=0.0), "arms.a.share is 0.0", "it must lie in (0, 1]"),
    Bad("a share that is NaN", arms(share=float("nan")), "arms.a.share is nan", "it must lie in (0, 1]"),
    Bad("a count beyond the pool", arms(count=11), "arms.a.count is 11", "the pool has 10 examples"),
    Bad(
        "a share of everything",
        arms(selector=Full(), share=0.5),
        "arms.a: Full takes the whole pool",
        "leave share and count out",
    ),
    Bad(
        "an encoder that there is not",
        encoders(
            Experiment(
                data=Synthetic(),
                arms={"a": Arm(Random(), share=0.1, encoder="grads")},
                encoders={"gradients": Gradients()},
            )
        ),
        "arms.a.encoder is 'grads'",
        "Did you mean 'gradients'?",
    ),
    Bad(
        "DSIR without its counts",
        encoders(Experiment(data=Synthetic(), arms={"a": Arm(DSIR(), share=0.1)})),
        "arms.a: DSIR reads counts",
        "set encoders={'ngrams': Ngrams()}",
    ),
    Bad(
        "gradients of a dimension of 1000",
        encoders(Experiment(data=Synthetic(), arms={"a": ARM}, encoders={"g": Gradients(dimension=1000)})),
        "dimension is 1000",
        "power of two",
    ),
    Bad(
        "embeddings of queries there are not",
        encoders(Experiment(data=Synthetic(), arms={"a": ARM}, encoder=OwnEmbeddings("p.npy", queries="q.npy"))),
        "encoder.queries is q.npy",
        "if data.queries names some",
    ),
    Bad(
        "own embeddings that are missing",
        encoders(Experiment(data=Synthetic(), arms={"a": ARM}, encoder=OwnEmbeddings("no.npy"))),
        "encoder.pool: no.npy is missing",
        "check the path",
    ),
    Bad(
        "a function without its module",
        lambda _: build.selector(Custom("mine"), name="a", pool=lambda: EXAMPLES),
        "'mine'",
        "must be written as module:function",
    ),
    Bad(
        "a function with a path",
        lambda _: build.selector(Custom("../x:f"), name="a", pool=lambda: EXAMPLES),
        "'../x:f'",
        "must be written as module:function",
    ),
    Bad(
        "a function whose module is missing",
        lambda _: build.selector(Custom("no_such:f"), name="a", pool=lambda: EXAMPLES),
        "'no_such'",
        "set PYTHONPATH",
    ),
    Bad(
        "a function that its module lacks",
        lambda _: build.selector(Custom("json:dump5"), name="a", pool=lambda: EXAMPLES),
        "'json' has no 'dump5'",
        "Did you mean 'dump'?",
    ),
    Bad(
        "a selector that is no function",
        lambda _: build.selector(Custom("math:pi"), name="a", pool=lambda: EXAMPLES),
        "math:pi gave 3.14",
        "no function (pool, *, budget, key)",
    ),
    Bad(
        "a term that there is not",
        objective("kde_repulsionn"),
        "objective.mine.term is 'kde_repulsionn'",
        "Did you mean 'kde_repulsion'?",
    ),
    Bad("a term without its array", objective("linear"), "objective.mine needs costs_N", "give options="),
    Bad(
        "a column that there is not",
        objective("linear", {"costs_N": "input_word"}),
        "options.costs_N is 'input_word'",
        "Did you mean 'input_words'?",
    ),
    Bad(
        "a column file that is missing",
        objective("linear", {"costs_N": "no.npy"}),
        "options.costs_N: no.npy",
        "numpy.save",
    ),
    Bad("scores of other rows", scores(np.ones(3)), "selector.scores", "one row for each of 2 candidates"),
    Bad("scores as a pickle", scores(np.array([{}, {}], object)), "s.npy cannot be read", "numpy.save"),
    Bad("scores that there are not", scores("lenght"), "arms.q.selector.scores is 'lenght'", "give module:function"),
    Bad(
        "several encoders of which there is none",
        lambda _: build.encoder(Concatenated({}), EXAMPLES, path=Path("x"), key=jax.random.key(0)),
        "parts is empty",
        "give at least one encoder",
    ),
    Bad("an argument that there is not", line("--train.stepz", "3"), "--train.stepz", "--train.steps"),
    Bad("an argument without value", line("--train.steps"), "--train.steps'", "Expected 1 values"),
    Bad("a word for a number", line("--seed", "three"), "--seed", "INT"),
    Bad("an arm that there is not", line("--arms.def.share", "0.1"), "--arms.def.share", "--arms.deft.share"),
    Bad("a choice that there is not", line("--train.optimizer", "sgd"), "--train.optimizer", "adamw"),
    Bad("a value out of range", line("--train.batch-size", "0"), "train.batch_size is 0", "at least 1"),
]

SHAPE = T5Config(vocab_size=7, d_model=4, d_kv=2, d_ff=4, num_layers=1, num_decoder_layers=1, num_heads=2)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A T5 of a few numbers, in one file and in shards, with a tokenizer."""
    folder = tmp_path_factory.mktemp("t5")
    model = T5(SHAPE, rngs=nnx.Rngs(0))
    save_pretrained(model, folder / "one")
    save_pretrained(model, folder / "shards", max_shard_bytes=400)
    train_tokenizer(["one two"], vocab_size=259).save_pretrained(folder / "one")
    return folder


def settings(read: Any = load_pretrained, **changes: Any):
    """The folder with other entries in its config.json."""

    def do(folder: Path) -> None:
        changed(folder / "one/config.json", **changes)
        read(folder / "one")

    return do


def tensors(change):
    """The folder with other tensors."""

    def do(folder: Path) -> None:
        path = folder / "one/model.safetensors"
        found = load_file(path)
        change(found)
        save_file(found, path)
        load_pretrained(folder / "one")

    return do


def index(change):
    """The folder of shards with another index."""

    def do(folder: Path) -> None:
        path = folder / "shards/model.safetensors.index.json"
        found = json.loads(path.read_text())
        found = change(found["weight_map"]) or found
        path.write_text(json.dumps(found))
        load_pretrained(folder / "shards")

    return do


def tokenizer(name: str, content: str):
    return lambda folder: (text(folder / "one" / name, content), load_tokenizer(folder / "one"))


def modules(*parts: Any):
    return lambda f: T5Encoder(
        str(text(f / "one/modules.json", json.dumps(list(parts))).parent), pooling="sentence"
    ).settings()


def _link(folder: Path) -> None:
    path = next((folder / "shards").glob("model-*.safetensors"))
    path.rename(folder / "elsewhere.safetensors")
    path.symlink_to(folder / "elsewhere.safetensors")
    load_pretrained(folder / "shards")


WEIGHTS = [
    Bad(
        "a config.json that is a list",
        lambda f: (text(f / "one/config.json", "[]"), load_pretrained(f / "one")),
        "config.json holds no JSON object",
        "that save_pretrained",
    ),
    Bad(
        "a config.json cut off",
        lambda f: (text(f / "one/config.json", '{"a'), load_pretrained(f / "one")),
        "config.json",
        "not valid JSON",
    ),
    Bad("another kind of model", settings(model_type="bert"), "model_type 'bert'", "use a 't5' or 'mt5' checkpoint"),
    Bad("no model_type", settings(model_type=None), "missing model_type", "Is this the config.json of a T5?"),
    Bad("a width that is text", settings(d_model="512"), "d_model must be an integer", "at least 1"),
    Bad("a width that is true", settings(d_model=True), "d_model must be an integer", "at least 1"),
    Bad("a width of 10**30", settings(d_model=10**30), "d_model must be below", "2**31"),
    Bad("a billion layers", settings(num_layers=10**9), "for the 1000000001 layers", "Copy or download both again"),
    Bad(
        "a billion layers of an encoder",
        settings(load_encoder, num_layers=10**9),
        "for the 1000000001 layers",
        "download",
    ),
    Bad("a dropout that is text", settings(dropout_rate="0.1"), "dropout_rate must be in [0, 1)", "got '0.1'"),
    Bad("an epsilon that is negative", settings(layer_norm_epsilon=-1.0), "layer_norm_epsilon must be", "got -1.0"),
    Bad("an activation that there is not", settings(feed_forward_proj="swish"), "activation must be", "'gated-gelu'"),
    Bad("a pad token beyond the vocabulary", settings(pad_token_id=99), "pad_token_id 99", "outside vocab_size 7"),
    Bad(
        "buckets of 3", settings(relative_attention_num_buckets=3), "relative_attention_num_buckets", "a multiple of 4"
    ),
    Bad(
        "weights with NaN",
        tensors(lambda t: t["shared.weight"].fill(np.nan)),
        "tensor shared.weight holds NaN",
        "download",
    ),
    Bad(
        "weights with an infinite value",
        tensors(lambda t: t["encoder.final_layer_norm.weight"].fill(np.inf)),
        "tensor encoder.final_layer_norm.weight",
        "Copy or download the weights again",
    ),
    Bad(
        "weights of another shape",
        tensors(lambda t: t.update({"shared.weight": np.ones((9, 4), np.float32)})),
        "tensor shared.weight has shape [9, 4]",
        "config.json says [7, 4]",
    ),
    Bad(
        "a tensor that is missing",
        tensors(lambda t: t.pop("decoder.final_layer_norm.weight") is None),
        "has no tensor decoder.final_layer_norm.weight",
        "another model than its weights",
    ),
    Bad(
        "a safetensors header too long",
        lambda f: (text(f / "one/model.safetensors", b"\xff" * 7 + b"\x00{}"), load_pretrained(f / "one")),
        "model.safetensors cannot be read",
        "copy or download it again",
    ),
    Bad(
        "an empty safetensors file",
        lambda f: (text(f / "one/model.safetensors", b""), load_pretrained(f / "one")),
        "model.safetensors cannot be read",
        "copy or download it again",
    ),
    Bad(
        "a pickle beside no weights",
        lambda f: (
            (f / "one/model.safetensors").unlink(),
            text(f / "one/pytorch_model.bin", b"\x80"),
            load_pretrained(f / "one"),
        ),
        "pytorch_model.bin",
        "refused. Convert it where you trust it",
    ),
    Bad(
        "an encoder's pickle",
        lambda f: (
            (f / "one/model.safetensors").unlink(),
            text(f / "one/pytorch_model.bin", b"\x80"),
            weight_files(f / "one"),
        ),
        "pytorch_model.bin",
        "so it is refused. Convert it",
    ),
    Bad("an index that is a list", index(lambda _: [1]), "index.json has no weight_map", "Copy or download it again"),
    Bad(
        "an index of numbers",
        index(lambda m: {"weight_map": dict.fromkeys(m, 3)}),
        "has no weight_map from tensors",
        "download",
    ),
    Bad(
        "an index that names a file elsewhere",
        index(lambda m: {"weight_map": dict.fromkeys(m, "../one/model.safetensors")}),
        "names the shard '../one/model.safetensors'",
        "Copy all shards",
    ),
    Bad(
        "an index that names a file longer than names may be",
        index(lambda m: {"weight_map": dict.fromkeys(m, "x" * 300)}),
        "which no file can be called (File name too long)",
        "copy or download",
    ),
    Bad(
        "an index that names an absolute path",
        index(lambda m: {"weight_map": dict.fromkeys(m, "/etc/passwd")}),
        "names the shard '/etc/passwd'",
        "Copy all shards",
    ),
    Bad(
        "an index that names its folder",
        index(lambda m: {"weight_map": dict.fromkeys(m, "..")}),
        "names '..'",
        "into the folder",
    ),
    Bad("a shard that is a link out of the folder", _link, "which leads out of", "Copy what is meant into the folder"),
    Bad(
        "an index with a tensor that its shard lacks",
        index(lambda m: m.update({"x": next(iter(m.values()))}) or None),
        "cannot be read",
        "copy or download it again",
    ),
    Bad(
        "a tokenizer that is a list", tokenizer("tokenizer.json", "[]"), "The tokenizer in", "Copy or download it again"
    ),
    Bad(
        "a tokenizer with a word for a number",
        tokenizer("tokenizer.json", '{"version": 1, "model": {"type": 5}}'),
        "The tokenizer in",
        "Copy or download it again",
    ),
    Bad(
        "a tokenizer whose settings are a list",
        tokenizer("tokenizer_config.json", "[]"),
        "The tokenizer in",
        "download",
    ),
    Bad(
        "a sentence encoder without modules",
        lambda f: T5Encoder(str(f / "one"), pooling="sentence").settings(),
        "has no modules.json",
        "take 'mean' or 'position'",
    ),
    Bad(
        "a sentence encoder whose modules are numbers",
        modules(1, 2),
        "modules.json is no list of modules",
        "SentenceTransformer.save wrote",
    ),
    Bad(
        "a sentence encoder with a module elsewhere",
        modules({"type": "a.Transformer", "path": "../../x"}, {"type": "a.Pooling", "path": "1_Pooling"}),
        "modules.json names '../../x'",
        "into the folder",
    ),
    Bad(
        "a sentence encoder with a module that no folder can be called",
        modules({"type": "a.Transformer", "path": "x" * 3000}, {"type": "a.Pooling", "path": "1_Pooling"}),
        "which no file can be called (File name too long)",
        "copy or download",
    ),
    Bad(
        "a sentence encoder without a path",
        modules({"type": "a.Transformer"}),
        "module 0, has no type and path",
        "copy or download",
    ),
    Bad("a model of no name", lambda _: model_folder("/no/such/folder"), "'/no/such/folder'", "give a folder"),
    Bad("a tokenizer of few pieces", lambda _: train_tokenizer(["a"], vocab_size=5), "vocab_size is 5", "need 259"),
    Bad(
        "a scratch model of no width",
        lambda _: build.scratch_model(Scratch(d_model=0), vocabulary=300, dtype="float32", key=jax.random.key(0)),
        "d_model must be an integer",
        "at least 1",
    ),
]


@table(CONFIGS)
def test_bad_configs(bad, tmp_path, capsys):
    check(bad, tmp_path, capsys)


@table(WEIGHTS)
def test_bad_weights(bad, saved, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("socket.getaddrinfo", _refused)
    check(bad, Path(shutil.copytree(saved, tmp_path / "copy")), capsys)


def _refused(*_: Any, **__: Any) -> None:
    raise OSError("no network")


PARAMS = {"w": jnp.arange(6.0).reshape(2, 3)}


def checkpoint(change, params: Any = None, best: bool = False):
    """A checkpoint of step 3, changed, and read as that of these parameters."""

    def do(folder: Path) -> None:
        moments = jax.tree.map(jnp.zeros_like, PARAMS)
        kept = Checkpoints(folder)
        kept.save(3, PARAMS, moments, {"epoch": 1})
        kept.keep_as_best(3, PARAMS)
        kept.close()
        change(folder / ("best" if best else "checkpoints") / "3")
        again = Checkpoints(folder)
        given = PARAMS if params is None else params
        try:
            again.best(3, given) if best else again.resume(given, jax.tree.map(jnp.zeros_like, given), {})
        finally:
            again.close()

    return do


def _cut(folder: Path) -> None:
    for path in (folder / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(folder: Path) -> None:
    for path in (folder / "state").rglob("d/*"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
        path.write_bytes(bytes(data))


WAY = "the same command trains this model anew"
CHECKPOINTS = [
    Bad("a checkpoint cut in half", checkpoint(_cut), "_METADATA is damaged", WAY),
    Bad("a checkpoint with zeros in it", checkpoint(_flip), "is damaged: its SHA-256", WAY),
    Bad("a checkpoint without its arrays", checkpoint(lambda f: shutil.rmtree(f / "state")), "is missing", WAY),
    Bad("a checkpoint without its progress", checkpoint(lambda f: shutil.rmtree(f / "progress")), "is missing", WAY),
    Bad(
        "a checkpoint whose progress is no JSON",
        checkpoint(lambda f: [text(p, "{") for p in (f / "progress").glob("*") if p.is_file()]),
        "checkpoints/3/progress",
        WAY,
    ),
    Bad(
        "a checkpoint of another shape",
        checkpoint(lambda _: None, {"w": jnp.zeros((5, 3))}),
        "of another model",
        "delete",
    ),
    Bad(
        "a checkpoint of another model",
        checkpoint(lambda _: None, {"v": jnp.zeros((2, 3))}),
        "of another model",
        "delete",
    ),
    Bad("the best cut in half", checkpoint(_cut, best=True), "best/3 cannot be read", "train this arm anew"),
]


@table(CHECKPOINTS)
def test_bad_checkpoints(bad, tmp_path, capsys):
    check(bad, tmp_path, capsys)


def test_a_good_folder_is_read(saved):
    for name in ("one", "shards"):
        load_pretrained(saved / name)
    load_tokenizer(saved / "one")
    assert SentenceTransformers(str(saved)).batch_size == 64
