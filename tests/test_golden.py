"""Fifty steps on a fixed seed, against losses recorded before: nothing moves unnoticed.

python tests/test_golden.py        # records the losses anew
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import training_run

RECORD = Path(__file__).parent / "golden_losses.json"
ANEW = (
    "If initialisation, dropout, loss, optimiser or the order of the examples was changed on purpose, or JAX changed "
    "its random numbers, say so in the commit and record anew: python tests/test_golden.py. Otherwise something broke."
)


def losses(folder: Path) -> list[float]:
    """The loss of each step: dropout, weights, label smoothing and z-loss, Adafactor, two parts a batch."""
    from deft_tsds.runs import read_jsonl
    from deft_tsds.training.finetune import LossTerms, Pairs, finetune, learning_rates, make_optimizer

    model, pairs = training_run.model_and_pairs()
    weights = np.linspace(0.5, 1.5, len(pairs), dtype=np.float32)
    finetune(
        model,
        Pairs(pairs.inputs_NxS, pairs.labels_NxT, weights, cut=0),
        rates=learning_rates(steps=50, peak=3e-2, warmup=0.1, schedule="cosine"),
        batch_size=8,
        accumulate=2,
        key=jax.random.key(7),
        folder=folder,
        optimizer=make_optimizer("adafactor"),
        terms=LossTerms(label_smoothing=0.1, z_loss=1e-3),
        log_every=1,
    )
    return [row["loss"] for row in read_jsonl(folder / "metrics.jsonl")]


def test_fifty_steps_have_the_recorded_losses(tmp_path):
    recorded, found = json.loads(RECORD.read_text()), losses(tmp_path)
    assert len(recorded) == 50
    assert found[-1] < found[0] - 0.5
    worst = int(np.argmax(np.abs(np.subtract(found, recorded))))
    difference = abs(found[worst] - recorded[worst])
    assert difference < 1e-4, f"step {worst + 1}: {found[worst]:.6f}, recorded {recorded[worst]:.6f}. {ANEW}"


if __name__ == "__main__":
    from deft_tsds.runs import write_json

    with tempfile.TemporaryDirectory() as temporary:
        write_json(RECORD, losses(Path(temporary)))
    sys.stdout.write(f"{RECORD}\n")
