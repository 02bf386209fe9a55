"""`scripts/embed.py`: every encoder of a config, or those that are named."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deft_tsds.embed.store import open_store
from deft_tsds.runs import write_jsonl

ROOT = Path(__file__).parents[1]
CONFIG = """
from deft_tsds.config import *

config = Experiment(
    data=Files(Source("pool.jsonl"), tests={"held": Source("test.jsonl")}, queries=Source("queries.jsonl")),
    arms={"random": Arm(Random(), count=2)},
    encoder=OwnEmbeddings("pool.npy", "queries.npy"),
    encoders={"other": OwnEmbeddings("other.npy", "queries.npy"), "counts": Ngrams()},
    train=Train(steps=1),
)
"""


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embed")
    (folder / "config.py").write_text(CONFIG)
    for name, rows in (("pool", 5), ("queries", 2), ("test", 1)):
        lines = [{"id": f"{name} {row}", "input": f"a {name} of {row}", "target": "b"} for row in range(rows)]
        write_jsonl(folder / f"{name}.jsonl", lines)
        np.save(folder / f"{name}.npy", np.eye(rows, 5))
    np.save(folder / "other.npy", np.eye(5)[::-1])
    return folder


@pytest.fixture(name="embed")
def _embed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The script in this process, with the folder of the config as the current one."""

    def embed(run: str, *options: str) -> None:
        monkeypatch.chdir(folder)
        script = str(ROOT / "scripts" / "embed.py")
        monkeypatch.setattr(sys, "argv", [script, "config.py", "--workdir", run, *options])
        runpy.run_path(script, run_name="__main__")

    return embed


def test_all_encoders(embed: Callable[..., None], folder: Path) -> None:
    embed("all")
    np.testing.assert_array_equal(open_store(folder / "all" / "embed" / "pool").array(), np.eye(5))
    np.testing.assert_array_equal(open_store(folder / "all" / "encoders" / "other" / "pool").array(), np.eye(5)[::-1])
    assert len(open_store(folder / "all" / "encoders" / "other" / "queries")) == 2


def test_one_encoder(embed: Callable[..., None], folder: Path, capsys: pytest.CaptureFixture) -> None:
    embed("one", "--only", "other")
    assert (folder / "one" / "encoders" / "other" / "pool").is_dir()
    assert not (folder / "one" / "embed").exists()
    with pytest.raises(SystemExit):
        embed("one", "--only", "othr")
    assert "--only names othr: choose among encoder, other, counts" in capsys.readouterr().err
