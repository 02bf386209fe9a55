"""The page on which one rater judges: texts and opaque ids, and nothing that says which system wrote what."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from deft_tsds.judging.making import Study
from deft_tsds.report import shell
from deft_tsds.runs import atomic_write

KEYS = {"yes": "y", "no": "n", "a": "a", "tie": "t", "b": "b"}
"""The key of each answer."""

LABELS = {"yes": "yes", "no": "no", "a": "A", "tie": "no difference", "b": "B"}


def annotation_page(study: Study, rater: str) -> str:
    """The page of one rater, as HTML: self-contained, blind, and the same whenever it is made."""
    items = [
        {"id": item.id, "input": item.input, "a": item.texts[0], "b": item.texts[1]} for item in study.shown(rater)
    ]
    asked = []
    for question in study.questions:
        for field, options in question.fields.items():
            side = field.rpartition("_")[2].upper() if question.kind == "each" else ""
            answers = [{"value": option, "key": KEYS[option], "label": LABELS[option]} for option in options]
            asked.append({"field": field, "side": side, "text": question.text, "answers": answers})
    data: dict[str, Any] = {"study": study.id, "rater": rater, "fields": study.fields, "items": items}
    return shell.render(
        "annotate.html",
        filters={},
        plots={},
        styles=["style.css", "annotate.css"],
        scripts=["annotate.js"],
        rater=rater,
        asked=asked,
        size=len(items),
        study=data,
    )


def write_study(study: Study, folder: str | Path) -> Path:
    """Write a study: `raters/<name>.html` to be given away, `key.json` and `assignment.jsonl` to be kept, `answers/`.

    All or nothing: the folder gets its name when everything is in it.

    Raises:
        ValueError: the folder is there already, and may be of a study whose raters are at work.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} is there already: raters may hold its pages. Give another --out, or remove it.")
    made = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        for rater in study.order:
            page = annotation_page(study, rater)
            with atomic_write(made / "raters" / f"{rater}.html") as temporary:
                temporary.write_text(page, encoding="utf-8", newline="\n")
        (made / "answers").mkdir()
        study.save(made)
        os.replace(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder
