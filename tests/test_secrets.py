"""What looks like a secret is not written down, and what does not is left alone."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deft_tsds.config import Arm, Experiment, Files, Source
from deft_tsds.running.secrets import MASK, masked, masked_command, masked_text
from deft_tsds.runs import plain
from deft_tsds.selectors import Random

SECRET = "s3cr3t-Value/+x"
FORMS = [
    "hf_" + "aB3dEfGhIjKlMnOpQrStUvWxYz",
    "sk-proj-" + "a1B2c3D4e5F6g7H8i9J0",
    "ghp_" + "a1B2c3D4e5F6g7H8i9J0a1B2c3D4e5F6g7H8",
    "github_pat_" + "11ABCDEFG0abcdefghij_xyz",
    "AKIA" + "IOSFODNN7EXAMPLE",
    "AIza" + "SyA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6q",
    "xoxb-" + "123456789012-abcdefghijkl",
    "glpat-" + "abcdefghijklmnopqrst",
    "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIn0." + "dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----",
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form[:8])
def test_keys_of_known_services_go_wherever_they_stand(form):
    assert form not in masked_text(f"before {form} after")
    assert masked_text(f"before {form} after") == f"before {MASK} after"
    assert form not in masked_command(["run.py", f"--model={form}", form])
    assert form not in json.dumps(masked({"note": [f"x {form}"]}))


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--hub-token", SECRET], f"--hub-token {MASK}"),
        (["--hub.token", SECRET, "--seed", "3"], f"--hub.token {MASK} --seed 3"),
        ([f"--api-key={SECRET}"], f"--api-key={MASK}"),
        ([f"HF_TOKEN={SECRET}", "python"], f"HF_TOKEN={MASK} python"),
        ([f"AWS_SECRET_ACCESS_KEY={SECRET}"], f"AWS_SECRET_ACCESS_KEY={MASK}"),
        (["--password", "two words"], f"--password {MASK}"),
        (["--db.passwd", SECRET], f"--db.passwd {MASK}"),
        (["--data.pool.path", f"https://user:{SECRET}@host/x"], f"--data.pool.path https://{MASK}@host/x"),
        (["--data.pool.path", f"https://host/x?sig={SECRET}&a=1"], f"--data.pool.path https://host/x?sig={MASK}&a=1"),
        (["https://host/?X-Amz-Signature=abc&X-Amz-Date=1"], f"https://host/?X-Amz-Signature={MASK}&X-Amz-Date=1"),
        (["-H", f"Authorization: {SECRET}"], f"-H Authorization: {MASK}"),
        (["--clientSecret", SECRET], f"--clientSecret {MASK}"),
    ],
    ids=lambda value: value[0][:24] if isinstance(value, list) else "",
)
def test_secrets_of_a_command_line_are_masked(arguments, shown):
    assert masked_command(arguments) == shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["run.py", "configs/demo.py", "--workdir", "runs/demo", "--train.max-input-tokens", "64"],
        ["--token-count", "x", "--tokenizer", "folder", "--secretary", "Ann"],
        ["--max-tokens", "none", "--token"],
        ["--token", "--seed", "3"],
        ["https://host/path?a=1#token", "user@host", "a:b@c", "s3://bucket/key"],
        ["the token of the day is a word"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_is_no_secret_stays(arguments):
    assert masked_command(arguments) == " ".join(arguments)


def test_settings_are_masked_by_name_and_by_form():
    source = Source(f"https://ann:{SECRET}@host/pool.jsonl", where={"api_key": SECRET, "task": "gec"})
    experiment = Experiment(data=Files(source, {"t": Source("t.jsonl")}), arms={"a": Arm(Random(), share=0.1)})
    shown = masked(plain(experiment))
    assert SECRET not in json.dumps(shown)
    assert shown["data"]["pool"]["where"] == {"api_key": MASK, "task": "gec"}
    assert shown["data"]["pool"]["path"] == f"https://{MASK}@host/pool.jsonl"
    assert shown["train"] == plain(experiment.train)
    assert masked({"max_tokens": 64, "pad_token_id": 0, "token": None}) == {
        "max_tokens": 64,
        "pad_token_id": 0,
        "token": None,
    }
    assert masked({"tokens": ["a", 3], "password": "x"}) == {"tokens": [MASK, 3], "password": MASK}


@given(st.text(max_size=200))
def test_masking_twice_is_masking_once(text):
    once = masked_text(text)
    assert masked_text(once) == once


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=40), max_size=6))
def test_any_command_line_is_shown(arguments):
    assert isinstance(masked_command(arguments), str)


@given(
    st.text("abcdefghijklmnopqrstuvwxyzABCDEFGH0123456789/+", min_size=8, max_size=40).filter(lambda t: not t.isdigit())
)
def test_no_value_of_a_secret_name_survives(value):
    value = "v" + value
    for text in (
        masked_command(["--token", value]),
        masked_command([f"--x.password={value}"]),
        masked_command([f"API_KEY={value}"]),
        masked_text(f"run --secret {value} --seed 1"),
        json.dumps(masked({"a": [{"password": value}]})),
        masked_text(f"https://me:{value.replace('/', '_')}@host/x") if "/" not in value else "",
    ):
        assert value not in text
