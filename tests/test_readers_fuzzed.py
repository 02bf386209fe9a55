"""Every reader on spoiled input: it reads, or says in words what is wrong. Longer, by coverage: benchmarks/fuzz.py."""

from __future__ import annotations

import random
import resource
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from readers import Reader, readers, spoil

SECONDS = 30.0
"""Far more than any of these inputs takes, and far less than a hang."""
BYTES = 1_000_000_000
"""More than any of these inputs may add to the peak of the process."""

READERS = readers()


def prepared(reader: Reader, folder: Path) -> bytes:
    reader.make(folder)
    return (folder / reader.file).read_bytes()


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Nothing that a spoiled file names is asked of the network."""

    def refused(*_, **__):
        raise AssertionError("a reader asked the network")

    monkeypatch.setattr("socket.socket.connect", refused)
    monkeypatch.setattr("socket.getaddrinfo", refused)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_a_valid_file_is_read(reader, tmp_path):
    prepared(reader, tmp_path)
    if reader.name == "config file that is no Python":
        pytest.skip("valid as a text alone")
    reader.read(tmp_path)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_a_spoiled_file_is_read_or_refused_in_words(reader, tmp_path):
    good = prepared(reader, tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(
        max_examples=12 if reader.slow else 40,
        deadline=None,
        phases=[Phase.generate],  # the seed of a finding is enough to find it again
        suppress_health_check=cast(Any, list(HealthCheck)),
    )
    @given(st.integers(0, 2**32 - 1))
    def spoiled(seed):
        began = time.monotonic()
        reader.try_bytes(tmp_path, spoil(good, reader.kind, random.Random(seed)))
        assert time.monotonic() - began < SECONDS

    spoiled()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    assert grown < BYTES


@pytest.mark.parametrize("reader", [one for one in READERS if not one.slow], ids=lambda reader: reader.name)
@pytest.mark.parametrize("data", [b"", b"\x00", b"[" * 100_000, b"1" * 5_000, b'{"a":' * 50_000, b"\xff\xfe"], ids=repr)
def test_what_is_no_such_file_at_all(reader, data, tmp_path):
    prepared(reader, tmp_path)
    reader.try_bytes(tmp_path, data)


def test_readers_have_names_of_their_own():
    names = [reader.name for reader in READERS]
    assert len(set(names)) == len(names)
