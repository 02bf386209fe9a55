"""The run folder: atomic writes, skipping what is done, going on after a kill, beginning anew on another request."""

import json

import jax
import numpy as np
import pytest

from deft_tsds.runs import (
    MetricsLog,
    Run,
    atomic_write,
    file_hash,
    plain,
    read_json,
    read_jsonl,
    stage_key,
    write_json,
    write_jsonl,
)
from deft_tsds.selectors import DEFT


def test_atomic_write_leaves_the_old_file_when_the_writer_dies(tmp_path):
    path = tmp_path / "value.json"
    write_json(path, {"a": 1})

    def die():
        with atomic_write(path) as temporary:
            temporary.write_text("half of")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        die()
    assert read_json(path) == {"a": 1}
    assert [item.name for item in tmp_path.iterdir()] == ["value.json"]


def test_jsonl_round_trip_keeps_hostile_text(tmp_path):
    rows = [{"text": "a\nb\u2028c\u202e</script>\x00"}, {"text": "é日本"}]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read_jsonl(tmp_path / "rows.jsonl") == rows


def test_broken_jsonl_names_file_and_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2"):
        read_jsonl(path)


def test_broken_json_names_the_file(tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json is not valid JSON"):
        read_json(tmp_path / "manifest.json")


def test_a_done_stage_is_skipped_and_gives_its_results_again(tmp_path):
    run, calls = Run(tmp_path, seed=0), []

    def work(folder):
        calls.append(folder)
        return {"rows": 3}

    first = run.do("data", work, settings={"path": "x"})
    second = run.do("data", work, settings={"path": "x"})
    assert len(calls) == 1
    assert first == second
    assert second.results == {"rows": 3}


@pytest.mark.parametrize("change", ["settings", "seed", "upstream"])
def test_a_changed_request_clears_the_folder_and_begins_anew(tmp_path, change, capsys):
    def work(folder):
        assert not (folder / "old").exists()
        (folder / "old").write_text("")

    up = Run(tmp_path, 0).do("up", lambda folder: None, settings={"a": 1})
    Run(tmp_path, 0).do("stage", work, settings={"a": 1}, upstream=[up])
    up = Run(tmp_path, 0).do("up", lambda folder: None, settings={"a": 2}) if change == "upstream" else up
    seed, settings = (1 if change == "seed" else 0), {"a": 2 if change == "settings" else 1}
    Run(tmp_path, seed).do("stage", work, settings=settings, upstream=[up])
    expected = {"settings": "settings.a", "seed": "seed", "upstream": "upstream"}[change]
    assert f"changed: {expected}" in capsys.readouterr().err


@pytest.mark.parametrize(("key", "shown"), [("\ud800", "settings.\\ud800"), ("[/red]", "settings.[/red]")])
def test_a_damaged_request_is_shown_whatever_it_holds(tmp_path, key, shown, capsys):
    Run(tmp_path, 0).do("stage", lambda folder: None, settings={"a": 1})
    mark = tmp_path / "stage" / "request.json"
    mark.write_text(json.dumps({"settings": {key: 1}}))
    (tmp_path / "stage" / "manifest.json").unlink()
    Run(tmp_path, 0).do("stage", lambda folder: None, settings={"a": 1})
    assert shown in capsys.readouterr().err.replace("\n", "")


def test_a_killed_stage_finds_what_it_left(tmp_path):
    run = Run(tmp_path, 0)

    def dies(folder):
        (folder / "shard-0").write_text("kept")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.do("embed", dies, settings={})
    assert not (tmp_path / "embed" / "manifest.json").exists()
    run.do("embed", lambda folder: {"found": (folder / "shard-0").read_text()}, settings={})
    assert read_json(tmp_path / "embed" / "manifest.json")["results"] == {"found": "kept"}


def test_the_manifest_says_what_made_it(tmp_path):
    Run(tmp_path, 7).do("data", lambda folder: None, settings={"selector": DEFT(clusters=3)})
    manifest = read_json(tmp_path / "data" / "manifest.json")
    assert manifest["settings"]["selector"]["class"] == "DEFT"
    assert manifest["settings"]["selector"]["clusters"] == 3
    assert manifest["seed"] == 7
    assert manifest["versions"]["jax"] == jax.__version__
    assert manifest["seconds"] >= 0
    assert manifest["peak_memory_bytes"] > 1_000_000


def test_stage_keys_differ_by_name_and_seed_and_never_change():
    def bits(key):
        return int(jax.random.bits(key))

    keys = [stage_key(0, "select"), stage_key(1, "select"), stage_key(0, "data"), stage_key(0, "select", "deft")]
    assert len({bits(key) for key in keys}) == 4
    np.testing.assert_array_equal(
        jax.random.key_data(stage_key(0, "select", "deft")), jax.random.key_data(stage_key(0, "select", "deft"))
    )


def test_file_hash_sees_content_and_names(tmp_path):
    (tmp_path / "a").write_text("x")
    first = file_hash(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert file_hash(tmp_path) != first
    (tmp_path / "b").rename(tmp_path / "a")
    assert file_hash(tmp_path) == first


def test_metrics_log_is_cut_back_to_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in (1, 2, 3):
        log.write({"step": step, "loss": 1.0 / step})
    log.close()
    path.write_text(path.read_text() + '{"step": 4, "lo')  # killed while writing
    log = MetricsLog(path, keep_until_step=2)
    log.write({"step": 3, "loss": 0.5})
    log.close()
    assert [(row["step"], row["loss"]) for row in read_jsonl(path)] == [(1, 1.0), (2, 0.5), (3, 0.5)]


def test_plain_is_json():
    json.dumps(plain({"a": (DEFT(), [1, None])}))
