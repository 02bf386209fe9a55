"""The README's tree of the package names every file, and none that is gone."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_tree_names_every_file_of_the_package():
    block = re.search(r"<summary>Every file.*?```\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    assert block is not None
    named, room = set(), ""
    for line in block[1].splitlines():
        name = line.split()[0]
        room = name if name.endswith("/") else room if line.startswith(" ") else ""
        if name.endswith(".py"):
            named.add(room + name)
    package = ROOT / "deft_tsds"
    files = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    assert named == {file for file in files if file == "__init__.py" or not file.endswith("/__init__.py")}
