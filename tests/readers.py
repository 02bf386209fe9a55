"""Every reader of the package with a small valid input, and ways to spoil it, for the tests and `benchmarks/fuzz.py`.

The contract of a reader: it reads, or it raises ValueError or FileNotFoundError with a message. Nothing else is raised,
nothing hangs, nothing takes memory that the input does not have.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ALLOWED = (ValueError, FileNotFoundError)
"""What a reader may raise, with a message."""

ROWS = [
    {"id": "a", "input": "fix this", "target": "Fix this.", "task": "gec", "refs": ["Fix this.", "Fix it."]},
    {"id": "b", "input": "make it short, please", "target": "Short.", "task": "simplify", "refs": ["Short."]},
]


@dataclass(frozen=True)
class Reader:
    """A reader, and one file that it reads.

    Attributes:
        name: of the case.
        file: the one that is spoiled, within the folder that `make` filled.
        kind: how `spoil` understands its bytes: "json", "jsonl", "safetensors", "npy", "text" or "bytes".
        make: writes a valid input into an empty folder.
        read: reads the folder.
        after: sets right what stands for the spoiled bytes elsewhere (a digest), so that they are looked at.
        slow: takes more than a few milliseconds.
    """

    name: str
    file: str
    kind: str
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    after: Callable[[Path], None] | None = None
    slow: bool = False

    def try_bytes(self, folder: Path, data: bytes) -> None:
        """Read `folder` with these bytes in the file; AssertionError where the contract is broken."""
        (folder / self.file).parent.mkdir(parents=True, exist_ok=True)
        (folder / self.file).write_bytes(data)
        if self.after is not None:
            self.after(folder)
        try:
            self.read(folder)
        except ALLOWED as error:
            if not str(error).strip():
                raise AssertionError(f"{self.name}: {type(error).__name__} without a message") from error
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{self.name} raised {type(error).__name__}: {error}") from error


def _lines(rows: list[dict]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _csv() -> bytes:
    return b'id,input,target,task\na,fix this,Fix this.,gec\nb,"make it ""short"",\nplease",Short.,simplify\n'


def _written(file: str, data: bytes | Callable[[], bytes]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / file).write_bytes(data if isinstance(data, bytes) else data())

    return make


def _examples(file: str, **options: Any) -> Callable[[Path], Any]:
    from deft_tsds.data.examples import read_examples

    return lambda folder: read_examples(folder / file, **options)


def _array(save: Callable[..., None], *arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *arrays)
    return buffer.getvalue()


MATRIX = np.arange(6, dtype=np.float32).reshape(3, 2)


def _parquet(columns: dict[str, Any]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def _torch(array: np.ndarray) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(torch.from_numpy(array), buffer)
    return buffer.getvalue()


def _data_readers() -> Iterator[Reader]:
    from deft_tsds.data.examples import Examples

    jsonl = _lines(ROWS)
    options: dict[str, Any] = {"group_field": "task", "references_field": "refs"}
    yield Reader("data jsonl", "a.jsonl", "jsonl", _written("a.jsonl", jsonl), _examples("a.jsonl", **options))
    yield Reader(
        "data jsonl without ids", "a.jsonl", "jsonl", _written("a.jsonl", jsonl), _examples("a.jsonl", id_field=None)
    )
    yield Reader("data json", "a.json", "json", _written("a.json", json.dumps(ROWS).encode()), _examples("a.json"))
    yield Reader("data csv", "a.csv", "text", _written("a.csv", _csv()), _examples("a.csv", group_field="task"))
    packed = gzip.compress(jsonl, mtime=0)
    yield Reader("data jsonl.gz", "a.jsonl.gz", "bytes", _written("a.jsonl.gz", packed), _examples("a.jsonl.gz"))
    packed = gzip.compress(_csv(), mtime=0)
    yield Reader("data csv.gz", "a.csv.gz", "bytes", _written("a.csv.gz", packed), _examples("a.csv.gz"))

    def table() -> bytes:
        return _parquet({name: [row[name] for row in ROWS] for name in ROWS[0]})

    yield Reader(
        "data parquet", "a.parquet", "bytes", _written("a.parquet", table), _examples("a.parquet", **options), slow=True
    )

    def saved(folder: Path) -> None:
        import datasets

        datasets.disable_progress_bars()
        datasets.Dataset.from_list(ROWS).save_to_disk(str(folder / "saved"))

    for file, kind in (
        ("state.json", "json"),
        ("dataset_info.json", "json"),
        ("data-00000-of-00001.arrow", "bytes"),
    ):
        yield Reader(f"data saved folder, {file}", f"saved/{file}", kind, saved, _examples("saved"), slow=True)

    def own(folder: Path) -> None:
        from deft_tsds.data.examples import read_examples

        (folder / "a.jsonl").write_bytes(jsonl)
        read_examples(folder / "a.jsonl", **options).save(folder / "own.jsonl")

    yield Reader("Examples.load", "own.jsonl", "jsonl", own, lambda folder: Examples.load(folder / "own.jsonl"))


def _embedding_readers() -> Iterator[Reader]:
    from deft_tsds.embed.given import read_embeddings
    from deft_tsds.embed.lexical import Lexical, LexicalEncoder
    from deft_tsds.embed.store import open_store, write_store

    def embeddings(file: str, **options: Any) -> Callable[[Path], Any]:
        return lambda folder: read_embeddings(folder / file, rows=3, **options)

    yield Reader("embeddings npy", "a.npy", "npy", _written("a.npy", _array(np.save, MATRIX)), embeddings("a.npy"))
    yield Reader(
        "embeddings npz", "a.npz", "bytes", _written("a.npz", _array(np.savez_compressed, MATRIX)), embeddings("a.npz")
    )

    def table() -> bytes:
        return _parquet({"e": MATRIX.tolist()})

    yield Reader("embeddings parquet", "a.parquet", "bytes", _written("a.parquet", table), embeddings("a.parquet"))
    yield Reader(
        "embeddings raw",
        "a.bin",
        "bytes",
        _written("a.bin", MATRIX.tobytes()),
        embeddings("a.bin", raw=("float32", 2)),
    )

    class Two:
        name = "two"

        def settings(self) -> dict[str, Any]:
            return {"d": 2}

        def encode(self, texts) -> np.ndarray:
            return np.array([[len(text), 1] for text in texts], np.float32)

    def store(folder: Path) -> None:
        write_store(folder / "store", ["a", "bb", "ccc"], Two(), shard_rows=2)

    def read_store(folder: Path) -> None:
        opened = open_store(folder / "store")
        opened.fingerprint()
        opened.array()
        list(opened.blocks())
        opened.verify()

    def grow_store(folder: Path) -> None:
        write_store(folder / "store", ["a", "bb", "ccc", "dddd"], Two(), shard_rows=2)

    def right_sizes(folder: Path) -> None:
        """Size and hash of the spoiled shard as the header says, so that its bytes are looked at."""
        header = json.loads((folder / "store/store.json").read_bytes())
        data = (folder / "store/shard-00000.npy").read_bytes()
        header["shards"][0] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (folder / "store/store.json").write_text(json.dumps(header))

    yield Reader("store header", "store/store.json", "json", store, read_store)
    yield Reader("store header, growing", "store/store.json", "json", store, grow_store)
    yield Reader("store shard", "store/shard-00000.npy", "npy", store, read_store)
    yield Reader("store shard, hashed", "store/shard-00000.npy", "npy", store, read_store, after=right_sizes)

    def lexical(folder: Path) -> None:
        import jax

        texts = ["one two three", "three four five", "five six one"]
        Lexical(dimension=2).fit(texts, key=jax.random.key(0)).save(folder / "lexical.npz")

    yield Reader(
        "lexical encoder",
        "lexical.npz",
        "bytes",
        lexical,
        lambda folder: LexicalEncoder.load(folder / "lexical.npz").encode(["one two"]),
    )


def _choice_readers() -> Iterator[Reader]:
    import jax

    from deft_tsds.data.exchange import read_features, read_indices, read_log_weights
    from deft_tsds.runs import Run, read_json, read_jsonl
    from deft_tsds.selection import Selection

    def selection(folder: Path) -> None:
        Selection.of([4, 1], weights=[1.0, 3.0], scores=[0.5, -1.0], info={"selector": "s"}).save(folder / "chosen")

    def load(folder: Path) -> Any:
        found = Selection.load(folder / "chosen")
        found.save(folder / "again")
        return found

    def right_digest(folder: Path) -> None:
        digest = hashlib.sha256((folder / "chosen/chosen.jsonl").read_bytes()).hexdigest()
        header = {"count": 2, "chosen_sha256": digest, "info": {}}
        (folder / "chosen/info.json").write_text(json.dumps(header))

    yield Reader("selection info", "chosen/info.json", "json", selection, load)
    yield Reader("selection rows", "chosen/chosen.jsonl", "jsonl", selection, load, after=right_digest)

    indices, log_weights = np.array([2, 0], np.int64), np.array([0.5, -np.inf, 2.0])
    for suffix, kind, written in (
        ("npy", "npy", _array(np.save, indices)),
        ("txt", "text", b"2\n0\n"),
        ("pt", "bytes", lambda: _torch(indices)),
    ):
        yield Reader(
            f"indices {suffix}",
            f"i.{suffix}",
            kind,
            _written(f"i.{suffix}", written),
            lambda folder, file=f"i.{suffix}": read_indices(folder / file, candidates=3, repeats="weigh"),
        )
    for suffix, kind, written in (
        ("npy", "npy", _array(np.save, log_weights)),
        ("txt", "text", b"0.5\n-inf\n2.0\n"),
        ("pt", "bytes", lambda: _torch(log_weights)),
    ):
        yield Reader(
            f"log weights {suffix}",
            f"w.{suffix}",
            kind,
            _written(f"w.{suffix}", written),
            lambda folder, file=f"w.{suffix}": read_log_weights(
                folder / file, candidates=3, budget=1, key=jax.random.key(0)
            ),
        )
    yield Reader(
        "features pt",
        "f.pt",
        "bytes",
        _written("f.pt", lambda: _torch(MATRIX)),
        lambda folder: read_features(folder / "f.pt", rows=3),
    )

    def stage(folder: Path) -> None:
        Run(folder, 0).do("stage", lambda _: {"made": 1}, settings={"a": 1})

    yield Reader(
        "manifest",
        "stage/manifest.json",
        "json",
        stage,
        lambda folder: Run(folder, 0).do("stage", lambda _: {"made": 1}, settings={"a": 1}),
    )

    def begun(folder: Path) -> None:
        stage(folder)
        (folder / "stage/manifest.json").unlink()

    def go_on(folder: Path) -> None:
        Run(folder, 0).do("stage", lambda _: {"made": 1}, settings={"a": 1})
        (folder / "stage/manifest.json").unlink()

    yield Reader("request", "stage/request.json", "json", begun, go_on)
    yield Reader("read_json", "a.json", "json", _written("a.json", b'{"a": [1]}'), lambda f: read_json(f / "a.json"))
    yield Reader(
        "read_jsonl", "a.jsonl", "jsonl", _written("a.jsonl", _lines(ROWS)), lambda f: read_jsonl(f / "a.jsonl")
    )


def _model_readers() -> Iterator[Reader]:
    from deft_tsds.embed.t5 import T5Encoder, load_encoder
    from deft_tsds.t5.load import load_pretrained, load_tokenizer, save_pretrained, train_tokenizer
    from deft_tsds.t5.model import T5, T5Config

    def model(folder: Path, vocab_size: int = 7, **options: Any) -> None:
        from flax import nnx

        shape = T5Config(
            vocab_size=vocab_size, d_model=4, d_kv=2, d_ff=4, num_layers=1, num_decoder_layers=1, num_heads=2
        )
        save_pretrained(T5(shape, rngs=nnx.Rngs(0)), folder / "t5", **options)

    def load(folder: Path) -> Any:
        return load_pretrained(folder / "t5")

    yield Reader("t5 config", "t5/config.json", "json", model, load, slow=True)
    yield Reader("t5 weights", "t5/model.safetensors", "safetensors", model, load, slow=True)
    yield Reader(
        "t5 shard index",
        "t5/model.safetensors.index.json",
        "json",
        lambda folder: model(folder, max_shard_bytes=400),
        load,
        slow=True,
    )
    yield Reader(
        "t5 encoder config", "t5/config.json", "json", model, lambda folder: load_encoder(folder / "t5"), slow=True
    )

    def tokenizer(folder: Path) -> None:
        train_tokenizer(["one two"], vocab_size=259).save_pretrained(folder / "tok")

    def load_both(folder: Path) -> Any:
        return load_tokenizer(folder / "tok")

    yield Reader("tokenizer", "tok/tokenizer.json", "json", tokenizer, load_both, slow=True)
    yield Reader("tokenizer config", "tok/tokenizer_config.json", "json", tokenizer, load_both, slow=True)

    def sentence(folder: Path) -> None:
        model(folder, vocab_size=259)
        train_tokenizer(["one two"], vocab_size=259).save_pretrained(folder / "t5")
        (folder / "t5/modules.json").write_text(
            json.dumps(
                [
                    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
                    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
                ]
            )
        )
        (folder / "t5/1_Pooling").mkdir()
        (folder / "t5/1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": true}')
        (folder / "t5/sentence_bert_config.json").write_text('{"max_seq_length": 16, "do_lower_case": false}')

    def settings(folder: Path) -> Any:
        return T5Encoder(str(folder / "t5"), pooling="sentence").settings()

    for file in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"):
        yield Reader(f"sentence-t5 {file}", f"t5/{file}", "json", sentence, settings)


def _judging_readers() -> Iterator[Reader]:
    from deft_tsds.judging.collecting import read_answers, results
    from deft_tsds.judging.making import Study, make
    from deft_tsds.judging.written import Written, read_predictions

    def study() -> Study:
        written = [
            Written(f"e{n}", "gec", f"one two three four five six {n}", {"new": f"new {n}", "old": f"old {n}"})
            for n in range(8)
        ]
        return make(written, items=3, raters=1, checks=2, seed=0)

    def write(folder: Path) -> None:
        made = study()
        made.save(folder / "study")
        (rater, order) = next(iter(made.order.items()))
        answers = {item: {field: options[0] for field, options in made.fields.items()} for item in order}
        (folder / "answers.json").write_text(json.dumps({"study": made.id, "rater": rater, "answers": answers}))

    made = study()

    def collect(folder: Path) -> Any:
        answers = read_answers(made, [folder / "answers.json"], partial=True)
        return results(made, answers, attention=0, resamples=20)

    yield Reader("judge export", "answers.json", "json", write, collect)
    yield Reader("judge key", "study/key.json", "json", write, lambda folder: Study.load(folder / "study"))
    yield Reader("judge assignment", "study/assignment.jsonl", "jsonl", write, lambda f: Study.load(f / "study"))
    predictions = _lines([{"id": "a", "prediction": "x"}, {"id": "b", "prediction": "y"}])
    yield Reader(
        "predictions", "p.jsonl", "jsonl", _written("p.jsonl", predictions), lambda f: read_predictions(f / "p.jsonl")
    )


def _config_readers() -> Iterator[Reader]:
    from deft_tsds.config import Arm, Experiment, Synthetic, load, override
    from deft_tsds.selectors import DEFT

    experiment = Experiment(data=Synthetic(), arms={"deft": Arm(DEFT(), share=0.2)})

    def command_line(folder: Path) -> Any:
        text = (folder / "arguments").read_bytes().decode("utf-8", "replace")
        arguments = [part for part in text.split("\n") if part not in ("--help", "-h")]
        try:
            return override(experiment, arguments)
        except SystemExit as error:  # what tyro says of a wrong argument has been printed
            if error.code in (None, 0):
                raise
            raise ValueError("said on standard error") from error

    yield Reader(
        "command line",
        "arguments",
        "text",
        _written("arguments", b"--train.steps\n7\n--arms.deft.selector.clusters\n9\n--workdir\nx"),
        command_line,
        slow=True,
    )
    source = (
        b"from deft_tsds.config import *\nfrom deft_tsds.selectors import DEFT\n"
        b"config = Experiment(data=Synthetic(), arms={'deft': Arm(DEFT(clusters=3), share=0.2)})\n"
    )
    # What stands in a config is the user's own program: only what is no Python is spoiled here.
    yield Reader(
        "config file that is no Python",
        "c.py",
        "text",
        _written("c.py", b"1 = = 2\n" + source),
        lambda folder: load(folder / "c.py"),
    )

    def column(folder: Path) -> Any:
        from deft_tsds import build

        return build.selector(_quality(str(folder / "scores.npy")), name="q", pool=lambda: _three_examples())

    yield Reader("quality scores", "scores.npy", "npy", _written("scores.npy", _array(np.save, np.arange(3.0))), column)


def _quality(path: str) -> Any:
    from deft_tsds.config import Quality

    return Quality(path)


def _three_examples() -> Any:
    from deft_tsds.data.examples import Examples

    ids = ("a", "b", "c")
    return Examples(ids, ids, ids, ids, tuple((i,) for i in ids), ("", "", ""))


def readers() -> list[Reader]:
    """All of them."""
    return [
        *_data_readers(),
        *_embedding_readers(),
        *_choice_readers(),
        *_model_readers(),
        *_judging_readers(),
        *_config_readers(),
    ]


# ------------------------------------------------------------------------------------------------ spoiling

HOSTILE: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"),
    "", " ", "a", "0", "../x", "../../etc/passwd", "/etc/passwd", "..", ".", "\\", "C:\\x", "a\x00b", "\ud800",
    "\u202e", "\ufeff", "x" * 3000, "<script>", "%s", "{}", "os:system", [], {}, [[]], [None], [1, 2],
    {"a": None}, {"": ""},
    [[[[[[[[[[]]]]]]]]]], {"__class__": "x"}, ["a"] * 50,
]  # fmt: skip


def spoil(data: bytes, kind: str, rng: random.Random) -> bytes:
    """The same bytes, a little wrong; what they mean is known to `kind`, so that the wrong comes far."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = _spoil_once(data, kind, rng)
    return data


def _spoil_once(data: bytes, kind: str, rng: random.Random) -> bytes:
    if rng.random() < 0.2:
        return _spoil_bytes(data, rng)
    try:
        if kind == "json":
            return _dumped(_spoil_json(json.loads(data), rng))
        if kind == "jsonl":
            lines = data.split(b"\n")
            at = rng.randrange(len(lines))
            lines[at] = _dumped(_spoil_json(json.loads(lines[at] or b"{}"), rng))
            return b"\n".join(lines)
        if kind == "safetensors":
            size = int.from_bytes(data[:8], "little")
            header = _dumped(_spoil_json(json.loads(data[8 : 8 + size]), rng))
            return len(header).to_bytes(8, "little") + header + data[8 + size :]
        if kind == "npy" and data[:6] == b"\x93NUMPY":
            size = int.from_bytes(data[8:10], "little")
            header = _spoil_header(data[10 : 10 + size], rng)
            return data[:8] + len(header).to_bytes(2, "little") + header + data[10 + size :]
        if kind == "text":
            return _spoil_text(data, rng)
    except (ValueError, RecursionError, OverflowError, IndexError, KeyError):
        pass
    return _spoil_bytes(data, rng)


def _dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True).encode()


def _places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    yield path
    if isinstance(value, dict):
        for key in list(value)[:40]:
            yield from _places(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(min(len(value), 12)):
            yield from _places(value[index], (*path, index))


def _spoil_json(value: Any, rng: random.Random) -> Any:
    path = rng.choice(list(_places(value))[:400])
    if not path:
        return rng.choice(HOSTILE) if rng.random() < 0.5 else [value] if rng.random() < 0.5 else {"a": value}
    parent = value
    for step in path[:-1]:
        parent = parent[step]
    last, what = path[-1], rng.random()
    if what < 0.6:
        parent[last] = rng.choice(HOSTILE)
    elif what < 0.75:
        del parent[last]
    elif what < 0.85 and isinstance(parent, dict):
        parent[rng.choice(("", "a", str(last) + "_", "__proto__", "\ud800"))] = parent.pop(last)
    elif isinstance(parent, list):
        parent.insert(last, rng.choice((parent[last], rng.choice(HOSTILE))))
    elif isinstance(parent[last], (int, float)) and not isinstance(parent[last], bool):
        parent[last] = rng.choice((-parent[last], parent[last] * 10**6, parent[last] + 1, float(parent[last]) / 2))
    else:
        parent[last] = {"a": parent[last]}
    return value


def _spoil_header(header: bytes, rng: random.Random) -> bytes:
    change = rng.choice(
        (
            (
                b"'<f4'",
                rng.choice((b"'|O'", b"'<f8'", b"'<U4'", b"'>f4'", b"'<c8'", b"'|V4'", b"'<M8'", b"[('a','<f4')]")),
            ),
            (b"'<i8'", rng.choice((b"'|O'", b"'<f8'", b"'<u8'", b"'|b1'", b"'<m8'", b"'<f2'"))),
            (b"'<f8'", rng.choice((b"'|O'", b"'<i8'", b"'<f2'", b"'<U2'", b"'<c16'", b"'<f16'"))),
            (
                b"(3,",
                rng.choice((b"(-3,", b"(0,", b"(3000000000,", b"(99999999999999999999,", b"(3.0,", b"((3,),", b"(")),
            ),
            (b"(2,", rng.choice((b"(-2,", b"(0,", b"(9223372036854775807,", b"(2,2,", b"(True,", b"(None,"))),
            (b"False", rng.choice((b"True ", b"None ", b"1", b"[]"))),
            (b"descr", b"descs"),
            (b"{", rng.choice((b"", b"[", b"{" * 90, b"(" * 300))),
        )
    )
    return header.replace(*change, 1)


def _spoil_text(data: bytes, rng: random.Random) -> bytes:
    words = data.replace(b"\n", b" \n ").split(b" ")
    at = rng.randrange(len(words))
    what = rng.random()
    new = str(rng.choice(HOSTILE)).encode("utf-8", "surrogatepass")
    if what < 0.5:
        words[at] = new
    elif what < 0.7:
        del words[at]
    elif what < 0.85:
        words.insert(at, words[rng.randrange(len(words))])
    else:
        words[at] = words[at] + rng.choice((b'"', b",", b"\r", b"\x00", b"\xff", b".", b"-", b"=", b"'"))
    return b" ".join(words).replace(b" \n ", b"\n")


def _spoil_bytes(data: bytes, rng: random.Random) -> bytes:
    if not data:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(9)))
    at, what = rng.randrange(len(data)), rng.randrange(7)
    piece = bytes(rng.choice((0, 255, 127, 128, rng.randrange(256))) for _ in range(rng.choice((1, 1, 4, 8))))
    if what == 0:
        return data[:at]
    if what == 1:
        return data[:at] + bytes((data[at] ^ (1 << rng.randrange(8)),)) + data[at + 1 :]
    if what == 2:
        return data[:at] + piece + data[at + len(piece) :]
    if what == 3:
        return data[:at] + piece + data[at:]
    if what == 4:
        return data[:at] + data[at + rng.randrange(1, 9) :]
    if what == 5:
        other = rng.randrange(len(data))
        return data[:at] + data[other : other + 32] + data[at:]
    return data[:at] + rng.choice(string.printable).encode() * rng.choice((1, 40)) + data[at + 1 :]
