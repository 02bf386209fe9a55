"""Config files and command-line overrides."""

import re
from pathlib import Path

import pytest

from deft_tsds.config import Experiment, load
from deft_tsds.selectors import DEFT

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


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
    experiment, _ = load(CONFIGS[0].with_name("demo.py"), arguments)
    assert experiment.train.steps == 7
    assert experiment.arms["deft"].selector == DEFT(clusters=9)
    assert experiment.workdir == Path("elsewhere")
    assert experiment.model == "folder"


def test_a_typo_names_the_nearest_field(capsys):
    with pytest.raises(SystemExit):
        load(CONFIGS[0].with_name("demo.py"), ["--train.stepz", "7"])
    message = capsys.readouterr().err
    assert "--train.stepz" in message
    assert "--train.steps" in message


def test_help_shows_every_field_with_its_docstring(capsys):
    with pytest.raises(SystemExit):
        load(CONFIGS[0].with_name("demo.py"), ["--help"])
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
