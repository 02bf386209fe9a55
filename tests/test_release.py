"""What is released: the wheel and the sdist, their contents and their metadata, and the files beside them."""

from __future__ import annotations

import email
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BUILD = """
import sys
from setuptools import build_meta
print(getattr(build_meta, "build_" + sys.argv[1])(sys.argv[2]))
"""


def build(what, source, out):
    """By the backend that pyproject.toml names, as `pip` and `build` call it, but in this environment."""
    pytest.importorskip("setuptools", minversion="77")
    command = [sys.executable, "-c", BUILD, what, str(out)]
    found = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return out / found.stdout.splitlines()[-1]


def tracked():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("no git checkout")
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The checkout without what a build leaves behind, so that nothing old finds its way into the wheel."""
    folder = tmp_path_factory.mktemp("source")
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def sdist(source, tmp_path_factory):
    return build("sdist", source, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """From the sdist, as `python -m build` makes it: so the sdist has all that it takes."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    [inside] = [path for path in folder.iterdir() if path.is_dir()]
    return build("wheel", inside, folder)


@pytest.fixture(scope="module")
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_the_wheel_has_the_package_whole_and_nothing_else(names):
    package = {name for name in tracked() if name.startswith("deft_tsds/")}
    inside = {name for name in names if ".dist-info/" not in name}
    assert inside == package
    assert {"deft_tsds/py.typed", "deft_tsds/report/page.html", "deft_tsds/report/map.js"} <= inside
    assert {Path(name).suffix for name in inside} == {".py", ".html", ".css", ".js", ".typed"}  # no data


def test_the_wheel_works_where_it_is_installed(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import sys, numpy as np; sys.path.insert(0, sys.argv[1]);"
        "import deft_tsds as dt, jax; from deft_tsds.report import shell; from importlib.resources import files;"
        "assert dt.__file__.startswith(sys.argv[1]), dt.__file__;"
        "assert 'html' in files('deft_tsds.report').joinpath('page.html').read_text();"
        "print(len(dt.select(np.eye(9), selector=dt.selectors.Random(), budget=3, key=jax.random.key(0))))"
    )
    command = [sys.executable, "-I", "-c", code, str(tmp_path / "site")]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.stdout.strip() == "3", found.stderr


def test_the_metadata_is_that_of_the_project(wheel, names):
    [path] = [name for name in names if name.endswith(".dist-info/METADATA")]
    with zipfile.ZipFile(wheel) as archive:
        metadata = email.message_from_bytes(archive.read(path))
    assert (metadata["Name"], metadata["Version"]) == (PROJECT["name"], PROJECT["version"])
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    required = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert len(required) == len(PROJECT["dependencies"])
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_sdist_has_the_sources_and_no_data(sdist):
    with tarfile.open(sdist) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    rooms = ("deft_tsds/", "scripts/", "configs/", "tests/")
    missing = {name for name in tracked() if name.startswith(rooms) and not name.endswith(".pyc")} - inside
    assert not missing
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "Makefile"} <= inside
    assert sdist.stat().st_size < 2_000_000
    assert not {name for name in inside if name.startswith(("runs/", ".venv/", "docs/", ".git/"))}


def test_every_dependency_has_a_lower_bound_of_its_own():
    lines = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
    loose = [line for line in lines if ">=" not in line and not line.startswith("deft-tsds")]
    assert loose == ["pre-commit"]
    bounds: dict[str, set[str]] = {}
    for line in lines:
        if ">=" in line:
            bounds.setdefault(re.split(r"[\[>]", line)[0].lower(), set()).add(line.partition(">=")[2].split(",")[0])
    assert {name: found for name, found in bounds.items() if len(found) > 1} == {}


def test_the_citation_is_of_this_version():
    text = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {PROJECT['version']}\n" in text
    assert f"\nlicense: {PROJECT['license']}\n" in text
    assert "2310.16776" in text
    assert "2410.11303" in text


def test_the_changelog_is_of_this_version():
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert first is not None
    assert first[1] == PROJECT["version"]


@pytest.mark.parametrize("name", ["run", "matrix", "install"])
def test_the_scripts_of_the_checks_can_be_read_and_run(name):
    path = ROOT / ".ci" / name
    assert path.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_the_matrix_names_tests_that_are_there():
    block = re.search(r"^tests=\((.*?)\)", (ROOT / ".ci/matrix").read_text(), re.M | re.S)
    assert block is not None
    assert [name for name in block[1].split() if not (ROOT / "tests" / f"{name}.py").is_file()] == []
