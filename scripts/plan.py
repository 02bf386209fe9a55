"""What fine-tuning T5-large, XL or XXL takes, in memory and time, on TPU v5e-8, v5e-256 and one H100. Arithmetic only.

python scripts/plan.py
python scripts/plan.py --batch-size 512 --source 1024 --utilisation 0.5
"""

from __future__ import annotations

from dataclasses import dataclass

import tyro
from rich.console import Console
from rich.table import Table

from deft_tsds.training.footprint import (
    FLOAT,
    MACHINES,
    MODELS,
    Shape,
    activation_bytes,
    cache_bytes,
    estimate,
    forward_flops,
    lora_parameters,
    optimizer_bytes,
    parameters,
    step_flops,
)

GB = 1e9


@dataclass(frozen=True)
class Settings:
    """The batch, and how well the chips are used."""

    batch_size: int = 256
    """Rows of a step, over all chips."""
    source: int = 512
    """Source positions."""
    target: int = 128
    """Target positions."""
    rows_at_once: int = 8
    """Rows that a chip computes at once; the rest of its share waits (`train.accumulate`)."""
    utilisation: float = 0.4
    """Share of the chips' peak that is reached. A guess: `--train.profile` measures it."""
    rank: int = 8
    """Rank of the low-rank factors, on every q and v."""
    beams: int = 4
    """Beams that the cache of decoding holds."""


def models_table(settings: Settings) -> Table:
    """What a model holds and computes, wherever it is trained."""
    shape = Shape(settings.batch_size, settings.source, settings.target)
    part = Shape(settings.rows_at_once, settings.source, settings.target)
    table = Table(
        "model", "parameters", "AdamW", "Adafactor", "LoRA", "kept, all", "kept, remat", "cache", "forward", "step"
    )
    table.title = (
        f"Models: batch {shape.rows}, {shape.source} source and {shape.target} target positions\n"
        "parameters: embeddings + encoder + decoder. AdamW, Adafactor, LoRA: GB of float32 parameters + gradients +\n"
        f"moments. kept: GB of bfloat16 activations for {part.rows} rows, without and with remat. cache: GB of keys\n"
        f"and values, {part.rows} rows x {settings.beams} beams. forward, step: TFLOP of a batch; a step is 3 forwards."
    )
    table.title_justify = "left"
    for name, config in MODELS.items():
        parts = parameters(config)
        count, factors = sum(parts.values()), lora_parameters(config, rank=settings.rank)
        numbers = " + ".join(f"{value / 1e6:,.0f}" for value in parts.values())
        sums = [
            f"{FLOAT * count / GB:.1f} + {FLOAT * count / GB:.1f} + {optimizer_bytes(config, kind) / GB:.2f}"
            for kind in ("adamw", "adafactor")
        ]
        table.add_row(
            name,
            f"{numbers} = {count / 1e6:,.0f} M",
            *sums,
            f"{FLOAT * count / GB:.1f} + {4 * FLOAT * factors / GB:.2f}",
            f"{activation_bytes(config, part, item=2, remat=False) / GB:.1f}",
            f"{activation_bytes(config, part, item=2, remat=True) / GB:.1f}",
            f"{cache_bytes(config, part, beams=settings.beams, item=2) / GB:.2f}",
            f"{forward_flops(config, shape) / 1e12:,.0f}",
            f"{step_flops(config, shape) / 1e12:,.0f}",
        )
    return table


def machines_table(settings: Settings) -> Table:
    """Memory of a chip and time of a step, for every model, machine and optimiser."""
    shape = Shape(settings.batch_size, settings.source, settings.target)
    table = Table("model", "machine", "optimiser", "GB a chip, with remat", "fits", "s a step", "without remat", "fits")
    table.title = (
        "Machines: everything split over all chips, bfloat16 compute on float32 parameters\n"
        "GB: parameters + gradients + moments + bfloat16 copies + activations. s a step: FLOPs / (chips x peak x "
        f"{settings.utilisation:g});\nremat takes the forward pass twice. Communication between chips is not counted."
    )
    table.title_justify = "left"
    for name, config in MODELS.items():
        for machine in MACHINES:
            for optimizer in ("adamw", "adafactor", "lora"):
                found = [
                    estimate(
                        config,
                        machine,
                        shape,
                        optimizer=optimizer,
                        remat=remat,
                        rows_at_once=settings.rows_at_once,
                        utilisation=settings.utilisation,
                        rank=settings.rank,
                    )
                    for remat in (True, False)
                ]
                with_remat, without = found
                parts = (
                    with_remat.parameters,
                    with_remat.gradients,
                    with_remat.moments,
                    with_remat.copies,
                    with_remat.activations,
                )
                fits = ["yes" if each.total < machine.memory else "no" for each in found]
                table.add_row(
                    name,
                    f"{machine.name}, {machine.memory / GB:.0f} GB",
                    optimizer,
                    " + ".join(f"{part / GB:.1f}" for part in parts) + f" = {with_remat.total / GB:.1f}",
                    fits[0],
                    f"{with_remat.seconds:.2f}",
                    f"{without.total / GB:.1f} GB, {without.seconds:.2f} s",
                    fits[1],
                )
        table.add_section()
    return table


def main(settings: Settings) -> None:
    console = Console(width=150)
    console.print(models_table(settings))
    console.print(machines_table(settings))


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
