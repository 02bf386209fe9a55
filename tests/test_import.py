"""The public names, and what importing them costs."""

from __future__ import annotations

import re
import subprocess
import sys
import types
from pathlib import Path

import deft_tsds as dt

ROOT = Path(__file__).parents[1]


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return result.stdout.strip()


def test_import_needs_no_model_library():
    heavy = [
        "flax",
        "torch",
        "transformers",
        "datasets",
        "sentence_transformers",
        "sklearn",
        "optax",
        "orbax",
        "grain",
        "ott",
    ]
    assert run(f"import sys, deft_tsds; print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_public_names_exist_and_are_all():
    public = {name for name, value in vars(dt).items() if name[0] != "_" and not isinstance(value, types.ModuleType)}
    public.discard("annotations")
    assert public | {"selectors", "terms", "__version__"} == set(dt.__all__)
    assert all(hasattr(dt, name) for name in dt.__all__)
    assert {"DEFT", "TSDS", "Random", "Full", "ShortlistDEFT", "ClusteredTSDS"} <= set(dt.selectors.__all__)


def test_version_is_that_of_the_package():
    declared = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert declared is not None
    assert dt.__version__ == declared[1]
