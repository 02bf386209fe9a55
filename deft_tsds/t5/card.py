"""The model card beside exported weights: which data trained the model, and who chose it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deft_tsds.runs import atomic_write

_CARD = """---
{front}
---

# {name}

{base}, fine-tuned on {count:,} training examples chosen by {selector} (deft_tsds). Fine-tuning on another choice of
data gives another model: the selection below is part of what this one is.

## The selection that trained it

{selection}
{training}
## How to use it

```python
from transformers import AutoTokenizer, T5ForConditionalGeneration

tokenizer = AutoTokenizer.from_pretrained({path})
model = T5ForConditionalGeneration.from_pretrained({path})
inputs = tokenizer("...", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=128)[0], skip_special_tokens=True))
```
"""


def write_model_card(
    folder: str | Path,
    *,
    base: str,
    selector: str,
    count: int,
    selection: Mapping[str, Any],
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write the `README.md` of a folder that `save_pretrained` wrote.

    Args:
        folder: where the weights are; its name is the model's.
        base: the model that training started from: a hub name, or words such as "A T5 with random weights".
        selector: who chose, such as "TSDS".
        count: number of chosen examples.
        selection: what is known about the choice: `Selection.info`, the budget, seed, fingerprint. Plain JSON.
        training: settings and results of the training, plain JSON.

    Raises:
        ValueError: a value is no plain JSON.
    """
    from huggingface_hub import ModelCardData

    folder = Path(folder)
    is_hub_name = base.count("/") == 1 and not base.startswith((".", "/", "~")) and " " not in base
    front = ModelCardData(
        library_name="transformers", base_model=base if is_hub_name else None, tags=["t5", "data-selection"]
    )
    text = _CARD.format(
        front=front.to_yaml(),
        name=folder.absolute().name,
        base=base,
        selector=selector,
        count=count,
        selection=_table(selection),
        training=f"\n## Training\n\n{_table(training)}" if training else "",
        path=json.dumps(folder.absolute().name),  # no local path: cards are published
    )
    with atomic_write(folder / "README.md") as temporary:
        temporary.write_text(text, encoding="utf-8")


def _table(values: Mapping[str, Any]) -> str:
    """A Markdown table; nested mappings give a row a leaf, named by its path."""
    lines = ["| | |", "|---|---|"]
    for name, value in _leaves(values):
        try:
            shown = value if isinstance(value, str) else json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"write_model_card: {name} is {value!r}, which is no plain JSON.") from error
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in (name, shown)) + " |")
    return "\n".join(lines) + "\n"


def _leaves(values: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, value in values.items():
        found += _leaves(value, f"{before}{name}.") if isinstance(value, Mapping) else [(f"{before}{name}", value)]
    return found
