"""Config files and command-line overrides."""

import re
from pathlib import Path

import pytest

from deft_tsds.config import Experiment, Transport, Weighted, load
from deft_tsds.selectors import DEFT

FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(path for path in FOLDER.glob("*.py") if path.stem != "own_terms")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_its_docstring_gives_its_command(path):
    experiment, description = load(path)
    assert isinstance(experiment, Experiment)
    assert f"python scripts/run.py configs/{path.name} --workdir" in description


def test_overrides_reach_nested_fields():
    arguments = [
        "--train.steps",
        "7",
        "--arms.deft.selector.clusters",
        "9",
        "--workdir",
        "elsewhere",
        "--model",
        "folder",
    ]
    experiment, _ = load(FOLDER / "demo.py", arguments)
    assert experiment.train.steps == 7
    assert experiment.arms["deft"].selector == DEFT(clusters=9)
    assert experiment.workdir == Path("elsewhere")
    assert experiment.model == "folder"


def test_overrides_reach_the_terms_of_an_objective():
    path = "--arms.transport.selector.objective"
    arguments = [f"{path}.kde.weight", "0.25", f"{path}.short.options.words-N", "input_words"]
    selector = load(FOLDER / "objective.py", arguments)[0].arms["transport"].selector
    assert isinstance(selector, Transport)
    assert selector.objective["kde"] == Weighted(0.25, "kde_repulsion")
    assert selector.objective["short"] == Weighted(1.0, "own_terms:short_texts", {"words_N": "input_words"})
    assert selector.objective["align"] == Weighted(1.0, "transport_cost")


def test_modules_beside_a_config_are_importable_after_all_others(tmp_path):
    (tmp_path / "beside_the_config.py").write_text("answer = 42\n")
    (tmp_path / "json.py").write_text("raise ImportError\n")  # no module beside a config hides another
    (tmp_path / "own.py").write_text(
        "import json\nfrom beside_the_config import answer\n"
        "from deft_tsds.config import *\nfrom deft_tsds.selectors import Random\n"
        "config = Experiment(data=Synthetic(), arms={'a': Arm(Random(), count=answer)})\n"
    )
    assert load(tmp_path / "own.py")[0].arms["a"].count == 42


def test_a_typo_names_the_nearest_field(capsys):
    with pytest.raises(SystemExit):
        load(FOLDER / "demo.py", ["--train.stepz", "7"])
    message = capsys.readouterr().err
    assert "--train.stepz" in message
    assert "--train.steps" in message


def test_help_shows_every_field_with_its_docstring(capsys):
    with pytest.raises(SystemExit):
        load(FOLDER / "demo.py", ["--help"])
    text = re.sub(r"[│\s]+", " ", capsys.readouterr().out)
    assert "Peak learning rate." in text
    assert "Number of" in text or "clusters" in text


def test_a_missing_config_lists_the_ones_there_are(tmp_path):
    (tmp_path / "other.py").write_text("")
    with pytest.raises(ValueError, match=r"no config file .*none\.py.*other\.py"):
        load(tmp_path / "none.py")


def test_a_file_without_config_says_what_to_write(tmp_path):
    (tmp_path / "empty.py").write_text("confg = 3\n")
    with pytest.raises(ValueError, match=r"must define `config = Experiment"):
        load(tmp_path / "empty.py")
