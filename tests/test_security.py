"""What is read is never run: held by reading the source, and by folders that try."""

from __future__ import annotations

import ast
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
import pytest
from markupsafe import Markup
from test_report_chromium import curve_table

from deft_tsds import build
from deft_tsds.config import Arm, Custom, Experiment, Synthetic
from deft_tsds.data.examples import read_examples
from deft_tsds.embed.folders import within
from deft_tsds.report import shell
from deft_tsds.selection import Selection
from deft_tsds.t5.load import load_tokenizer, train_tokenizer

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "deft_tsds").rglob("*.py"))
SOURCES = [
    *PACKAGE,
    *(
        path
        for room in ("scripts", "benchmarks", "configs", "notebooks")
        for path in sorted((ROOT / room).glob("*.py"))
    ),
]

UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "tarfile"}
UNSAFE_CALLS = {
    *("eval", "exec", "compile", "os.system", "os.popen", "tempfile.mktemp", "shutil.unpack_archive", "yaml.load"),
    *("yaml.unsafe_load", "yaml.full_load", "pd.read_pickle", "np.fromregex", "torch.jit.load", "torch.hub.load"),
}
IMPORTERS = {  # where a name that is not a constant may be imported, and whose name it is
    "deft_tsds/build.py": "module:function of the user's own config",
    "deft_tsds/config.py": "the user's own config file",
    "benchmarks/measure.py": "the benchmark that its own file names",
    "benchmarks/fuzz.py": "the tests' own readers",
    "benchmarks/fault_children.py": "modules of this package, by a list in that file",
    "deft_tsds/doctor.py": "modules of this package and what it needs, by lists in that file",
}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call of a file, with the dotted name of what is called."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def keyword(call: ast.Call, name: str) -> object:
    """The constant that a keyword of a call has; None without it."""
    return next(
        (one.value.value for one in call.keywords if one.arg == name and isinstance(one.value, ast.Constant)), None
    )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_source_calls_nothing_that_runs_what_it_reads(path):
    where = path.relative_to(ROOT).as_posix()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not UNSAFE_MODULES & {name.partition(".")[0] for name in names}, f"{where}, line {node.lineno}"
    for name, call in calls(path):
        at = f"{where}, line {call.lineno}: {name}"
        assert name not in UNSAFE_CALLS, at
        assert not name.endswith((".extractall", ".extract")), at
        assert keyword(call, "shell") is not True, at
        assert keyword(call, "trust_remote_code") in (None, False), at
        if name in ("np.load", "numpy.load", "jnp.load"):
            assert keyword(call, "allow_pickle") is False, at
        if name == "torch.load":
            assert keyword(call, "weights_only") is True, at
        if name in ("importlib.import_module", "__import__", "importlib.util.spec_from_file_location"):
            constant = bool(call.args) and isinstance(call.args[0], ast.Constant)
            assert constant or where in IMPORTERS, at


def test_no_text_of_the_source_asks_for_remote_code():
    for path in [*SOURCES, ROOT / "README.md"]:
        assert "trust_remote_code=True" not in path.read_text(encoding="utf-8"), path


def test_no_template_trusts_a_text():
    for path in (ROOT / "deft_tsds/report").glob("*.html"):
        source = path.read_text(encoding="utf-8")
        assert "|safe" not in source.replace(" ", ""), path
        assert "autoescape" not in source, path
        assert "http://" not in source, path
        assert "https://" not in source, path
    for path in (ROOT / "deft_tsds/report").glob("*.js"):
        source = path.read_text(encoding="utf-8")
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "fetch(",
            "XMLHttpRequest",
            "eval(",
        ):
            assert word not in source, f"{path}: {word}"


def test_the_policy_of_the_pages_forbids_the_network():
    rules = dict(rule.strip().split(" ", 1) for rule in shell._policy([Markup("1")]).split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["connect-src"] == "'none'"
    assert rules["object-src"] == "'none'"
    assert rules["form-action"] == "'none'"
    assert rules["base-uri"] == "'none'"
    assert set(rules["img-src"].split()) <= {"data:", "blob:"}
    assert "unsafe" not in rules["script-src"]
    for path in (ROOT / "docs").glob("*.html"):
        assert "Content-Security-Policy" in path.read_text(encoding="utf-8"), path


# ------------------------------------------------------------------------------------------- folders that try


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A module that leaves a mark when it is imported, importable by its name; the name and the mark."""
    folder = tmp_path / "importable"
    folder.mkdir()
    mark = tmp_path / "ran"
    source = f"open({str(mark)!r}, 'w').close()\ndef run(*_, **__):\n    return None\nclass Trap:\n    pass\n"
    (folder / "deft_trap.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(sys.modules, "deft_trap", None)
    monkeypatch.delitem(sys.modules, "deft_trap")
    yield source, mark
    sys.modules.pop("deft_trap", None)


def test_the_users_own_function_is_named_before_it_runs(trap, capsys):
    _, mark = trap
    build._announce.cache_clear()
    experiment = Experiment(data=Synthetic(), arms={"mine": Arm(Custom("deft_trap:run"), share=0.1)})
    said_before = []
    real = build.importlib.import_module

    def imported(name):
        said_before.append(capsys.readouterr().err)
        return real(name)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(build.importlib, "import_module", imported)
        build.selector_identity(experiment.arms["mine"].selector)
        build.selector(experiment.arms["mine"].selector, name="mine", pool=cast(Any, lambda: None))
    assert "runs your code: deft_trap:run" in said_before[0]
    assert mark.exists()
    assert "runs your code" not in "".join(said_before[1:])  # once


def test_nothing_that_a_selection_or_manifest_names_is_imported(trap, tmp_path):
    _, mark = trap
    reasons = [{"why": "deft_trap:run", "function": "deft_trap:run"}]
    Selection.of([0], reasons=reasons, info={"selector": "deft_trap:run"}).save(tmp_path / "s")
    assert Selection.load(tmp_path / "s").info["selector"] == "deft_trap:run"
    row = {"id": "deft_trap:run", "input": "deft_trap:run", "target": "x"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    read_examples(tmp_path / "a.jsonl")
    assert not mark.exists()


def test_a_tokenizer_that_brings_its_own_class_does_not_run_it(trap, tmp_path):
    source, mark = trap
    train_tokenizer(["one two"], vocab_size=259).save_pretrained(tmp_path / "tok")
    (tmp_path / "tok/own.py").write_text(source)
    settings = json.loads((tmp_path / "tok/tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Trap", "auto_map": {"AutoTokenizer": ["own.Trap", "own.Trap"]}}
    (tmp_path / "tok/tokenizer_config.json").write_text(json.dumps(settings))
    with contextlib.suppress(ValueError):  # it may be read as another class, or refused
        load_tokenizer(tmp_path / "tok")
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["own.Trap", "deft_trap.Trap"])
def test_a_sentence_encoder_that_brings_its_own_module_does_not_run_it(kind, trap, tmp_path):
    pytest.importorskip("sentence_transformers")
    from deft_tsds.embed.sentence_transformers import SentenceTransformers

    source, mark = trap
    folder = tmp_path / "st"
    folder.mkdir()
    (folder / "own.py").write_text(source)
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": kind}]))
    (folder / "config_sentence_transformers.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be loaded"):
        SentenceTransformers(str(folder)).encode(["a"])
    assert not mark.exists()


def test_a_data_set_with_a_script_does_not_run_it(trap, tmp_path):
    source, mark = trap
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "set.py").write_text(source)
    with pytest.raises(ValueError, match="cannot be read"):
        read_examples(folder)
    assert not mark.exists()


@pytest.mark.parametrize(
    "name",
    ["..", "../x", "a/../../x", "/etc/passwd", "a/../..", "..\\x", "a\\..\\..\\x", "a\0b", "out", "out/x", "over/x"],
    ids=repr,
)
def test_a_name_that_leaves_its_folder_is_refused(name, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (home / "out").symlink_to(tmp_path / "elsewhere")
    (home / "over").symlink_to("..")
    with pytest.raises(ValueError, match="leads out of"):
        within(home, name, home / "list.json")


def test_names_that_stay_are_taken(tmp_path):
    home = tmp_path / "models--a--b" / "snapshots" / "abc"
    blobs = tmp_path / "models--a--b" / "blobs"
    for folder in (home / "part", blobs):
        folder.mkdir(parents=True)
    (blobs / "123").write_text("x")
    (home / "model.safetensors").symlink_to("../../blobs/123")  # how the hub's cache holds a snapshot
    for name in ("", ".", "a", "part/a", "part/./a", "model.safetensors", "a..b"):
        assert within(home, name, home / "list.json") == home / name


def test_a_header_takes_no_memory_that_the_file_does_not_have(tmp_path):
    import tracemalloc

    from deft_tsds.data.exchange import read_indices

    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000,), }"
    (tmp_path / "i.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 80)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"i\.npy cannot be read"):
            read_indices(tmp_path / "i.npy", candidates=5)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_a_page_shows_no_secret_of_its_command(tmp_path):
    from deft_tsds.report.curve import write_curve

    page = write_curve(
        curve_table(), tmp_path / "p.html", command=["curve.py", "--hub-token", "s3cret-value"]
    ).read_text()
    assert "s3cret-value" not in page
    assert "--hub-token ***" in page


def test_keys_are_no_secret_of_ours():
    """A JAX key in an argument called `key` is no password: what is masked are texts."""
    from deft_tsds.running.secrets import masked

    key = np.asarray(jax.random.key_data(jax.random.key(0))).tolist()
    assert masked({"key": key, "api_key": 5}) == {"key": key, "api_key": 5}
