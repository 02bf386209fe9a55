"""`scripts/doctor.py`: it finds this machine fit, and finds what is broken on purpose."""

from __future__ import annotations

import collections
import importlib
import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deft_tsds import doctor

ROOT = Path(__file__).parents[1]
KMEANS = importlib.import_module("deft_tsds.geometry.kmeans")
SOLVE = importlib.import_module("deft_tsds.transport.solve")
TSDS = importlib.import_module("deft_tsds.transport.tsds")


def problems(findings):
    return {finding.name: finding for finding in findings if finding.state == "problem"}


@pytest.mark.parametrize("name", doctor.ORACLES)
def test_every_operation_agrees_with_its_oracle(name):
    found = doctor.self_test(name, doctor.ORACLES[name])
    assert found.state == "ok", found.found


def wrong_neighbors(monkeypatch):
    module = importlib.import_module("deft_tsds.geometry.neighbors")
    right = module.nearest_neighbors

    def wrong(*arguments):
        found = right(*arguments)
        found.indices_MxK[3, [4, 5]] = found.indices_MxK[3, [5, 4]]
        return found

    monkeypatch.setattr(module, "nearest_neighbors", wrong)


def wrong_density(monkeypatch):
    module = importlib.import_module("deft_tsds.geometry.density")
    right = module.kernel_density
    monkeypatch.setattr(module, "kernel_density", lambda *a, **k: right(*a, **k) * 1.0001)


def wrong_clusters(monkeypatch):
    right = KMEANS.kmeans

    def wrong(*arguments, **options):
        return right(*arguments, **{**options, "max_iterations": 1})

    monkeypatch.setattr(KMEANS, "kmeans", wrong)


def wrong_transport(monkeypatch):
    right = TSDS.tsds
    monkeypatch.setattr(TSDS, "tsds", lambda *a, **k: right(*a, **{**k, "alpha": 0.59}))


def wrong_sinkhorn(monkeypatch):
    right = SOLVE.solve
    monkeypatch.setattr(SOLVE, "solve", lambda *a, marginal: right(*a, marginal=marginal[::-1]))


def wrong_draws(monkeypatch):
    module = importlib.import_module("deft_tsds.sampling")
    right = module.sample
    monkeypatch.setattr(module, "sample", lambda p, *a, **k: right(np.full(len(p), 1 / len(p)), *a, **k))


def wrong_choice(monkeypatch):
    module = importlib.import_module("deft_tsds.selection")
    right, budgets = module.select, iter([20, 19, 20, 20])
    monkeypatch.setattr(module, "select", lambda *a, **k: right(*a, **{**k, "budget": next(budgets)}))


def wrong_sari(monkeypatch):
    from deft_tsds.metrics import METRICS

    monkeypatch.setitem(METRICS, "sari", METRICS["sari_hf"])


def wrong_t5(monkeypatch):
    right = doctor.t5_case

    def wrong():
        model, ids, mask, decoder_ids = right()
        return model, ids, np.ones_like(mask), decoder_ids  # padding counts

    monkeypatch.setattr(doctor, "t5_case", wrong)


WRONG = {
    "neighbours": wrong_neighbors,
    "density": wrong_density,
    "k-means": wrong_clusters,
    "problem RT": wrong_transport,
    "Sinkhorn": wrong_sinkhorn,
    "sample": wrong_draws,
    "select": wrong_choice,
    "SARI": wrong_sari,
    "T5": wrong_t5,
}


@pytest.mark.parametrize("name", doctor.ORACLES)
def test_an_operation_that_is_a_little_wrong_is_found(name, monkeypatch):
    WRONG[name](monkeypatch)
    found = doctor.self_test(name, doctor.ORACLES[name])
    assert found.state == "problem"
    assert found.mend


def test_the_logits_of_the_t5_are_those_of_transformers(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from deft_tsds.t5.load import save_pretrained

    model, ids, mask, decoder_ids = doctor.t5_case()
    save_pretrained(model, tmp_path)
    other = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    tensors = {
        "input_ids": torch.tensor(ids.astype(np.int64)),
        "attention_mask": torch.tensor(mask.astype(np.int64)),
        "decoder_input_ids": torch.tensor(decoder_ids.astype(np.int64)),
    }
    with torch.no_grad():
        logits = other(**tensors).logits.numpy()
    np.testing.assert_allclose(doctor.t5_values(logits), doctor.T5_LOGITS, rtol=0, atol=1e-5)


def test_this_machine_is_fit(tmp_path):
    machine = [doctor.python(), *doctor.packages(), *doctor.devices(), *doctor.folder(tmp_path), *doctor.text()]
    machine += [doctor.memory(), doctor.threads(), doctor.browser()]
    assert not problems(machine)
    assert {"Python", "packages", "disk", "writing", "memory", "threads", "browser", "locale"} <= {
        f.name for f in machine
    }
    assert any(finding.name.startswith("device ") for finding in machine)


def test_versions_out_of_bounds_are_found(monkeypatch):
    right = importlib.metadata.version

    def version(name):
        if name == "plotly":
            raise importlib.metadata.PackageNotFoundError(name)
        return {"numpy": "1.20.0", "transformers": "6.0.0", "torch": "1.0"}.get(name) or right(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    findings = {finding.name: finding for finding in doctor.packages()}
    assert findings["numpy"].state == findings["transformers"].state == findings["plotly"].state == "problem"
    assert findings["numpy"].mend.startswith("pip install 'numpy>=")
    assert findings["torch"].state == "note"  # an extra
    assert "1.20.0 is not >=" in findings["numpy"].found


def test_an_old_python_is_found(monkeypatch):
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.9.1")
    assert doctor.python().state == "problem"


def test_an_installation_without_a_checkout_has_the_same_bounds(monkeypatch, tmp_path):
    from_checkout = doctor.project()
    assert any(line.startswith("jax>=") for line in from_checkout["dependencies"])
    monkeypatch.setattr(doctor, "__file__", str(tmp_path / "deft_tsds" / "doctor.py"))
    installed = doctor.project()
    assert any(line.startswith("jax>=") for line in installed["dependencies"])
    assert installed["python"] == from_checkout["python"]


@pytest.mark.parametrize(("free", "state"), [(5e8, "problem"), (5e9, "note"), (5e10, "ok")])
def test_room_on_the_disk(monkeypatch, tmp_path, free, state):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, free))
    found = next(iter(doctor.folder(tmp_path / "not" / "there")))
    assert (found.name, found.state) == ("disk", state)
    assert not (tmp_path / "not").exists()


def test_a_folder_that_cannot_be_written_is_found(tmp_path):
    (tmp_path / "file").write_text("")
    assert problems(doctor.folder(tmp_path / "file" / "runs"))["writing"].mend


@pytest.mark.parametrize(("bytes_", "state"), [(5e8, "problem"), (2e9, "note"), (8e9, "ok"), (None, "note")])
def test_memory(monkeypatch, bytes_, state):
    monkeypatch.setattr(importlib.import_module("deft_tsds.cost"), "available_memory", lambda: bytes_)
    assert doctor.memory().state == state


@pytest.mark.parametrize(("cpus", "threads", "state"), [(4, 4, "ok"), (2, 8, "note"), (4, 1, "note"), (1, 1, "ok")])
def test_threads(monkeypatch, cpus, threads, state):
    pools = [{"internal_api": "openblas", "num_threads": threads}]
    monkeypatch.setattr(importlib.import_module("threadpoolctl"), "threadpool_info", lambda: pools)
    monkeypatch.setattr(importlib.import_module("deft_tsds.arrays"), "usable_cpus", lambda: cpus)
    assert doctor.threads().state == state


def test_a_locale_without_utf_8_is_found(monkeypatch):
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    assert "PYTHONUTF8" in problems(doctor.text())["locale"].mend


def test_a_device_that_computes_wrongly_is_found(monkeypatch):
    monkeypatch.setattr(doctor.jnp, "matmul", lambda x, y, precision: np.asarray(x) @ np.asarray(y) + 1)
    [found] = list(problems(doctor.devices()).values())
    assert "wrong" in found.found


def test_a_platform_that_is_not_there_is_found(monkeypatch):
    def missing():
        raise RuntimeError("Unable to initialize backend 'cuda'\nmore")

    monkeypatch.setattr(doctor.jax, "local_devices", missing)
    assert problems(doctor.devices())["devices"].found == "Unable to initialize backend 'cuda'"


def test_the_script_says_what_is_wrong_by_its_exit_code(tmp_path):
    (tmp_path / "file").write_text("")
    command = [sys.executable, "scripts/doctor.py", "--workdir", str(tmp_path / "file")]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 1, found.stderr
    assert "1 problems" in found.stdout  # this one, and none beside
    assert "give a --workdir that can be written" in found.stdout
