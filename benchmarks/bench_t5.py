"""The training step of T5 beside transformers + torch, and many seeds in one program beside separate runs.

    python benchmarks/bench_t5.py                  # T5-small's shape (60M), batch 8, 64/64 tokens, float32, AdamW
    python benchmarks/bench_t5.py --what seeds     # 8 seeds at the size of the demo

"step": both take the same ids through the same shape, without dropout, clip the gradient to norm 1 and step with AdamW;
each is a process of its own, in turn, and the best step of all rounds counts, since torch's own differ by a fifth from
one process to the next. "of limit" is the time that the step's matrix products would take at the GEMM speed of this
run, as a share of ours. First call: compilation, and for torch its warm-up.

"seeds": whole processes, from the start of the interpreter to the parameters of all runs on disk. Separate runs are
`finetune` in a process each; together they are one `finetune_many`, on one device, or with its runs shared out between
`--devices` devices of the host.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from measure import compare, gemm_flops, print_table

SMALL: dict[str, Any] = {"vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8}
DEMO: dict[str, Any] = {"vocab_size": 1024, "d_model": 96, "d_kv": 24, "d_ff": 256, "num_layers": 2, "num_heads": 4}


@dataclass(frozen=True)
class Settings:
    """What to time."""

    what: Literal["step", "seeds"] = "step"
    """One training step beside its peer, or many runs at once beside separate ones."""
    rows: int = 8
    """Rows of a batch of "step"."""
    width: int = 64
    """Tokens a side of "step"."""
    rounds: int = 4
    """How often each contender of "step" gets a process of its own."""
    calls: int = 4
    """Steps timed in each process of "step"; the best counts."""
    seeds: int = 8
    """Runs of "seeds"."""
    steps: int = 180
    """Steps of each run of "seeds"."""
    devices: int = 2
    """Devices of the host for the last contender of "seeds"."""


def _ids(rows: int, width: int, vocabulary: int) -> np.ndarray:
    return np.random.default_rng(0).integers(2, vocabulary, (2, rows, width))


def ours(rows: int, width: int) -> Callable[[], Any]:
    """`train_step` with AdamW."""
    import jax
    from flax import nnx

    from deft_tsds.t5.model import T5, T5Config
    from deft_tsds.training.optimizers import make_optimizer
    from deft_tsds.training.step import LossTerms, train_step

    config = T5Config(**SMALL, num_decoder_layers=SMALL["num_layers"], dropout_rate=0.0)
    graph, params, frozen = nnx.split(T5(config, rngs=nnx.Rngs(params=jax.random.key(0))), nnx.Param, ...)
    optimizer = make_optimizer("adamw")
    moments = jax.jit(optimizer.init)(params)
    inputs, labels = _ids(rows, width, config.vocab_size).astype(np.int32)
    batch: Any = {"inputs": inputs, "labels": labels, "weights": np.ones(rows, np.float32)}
    key = jax.random.key(0)

    def call() -> None:
        nonlocal params, moments
        rate: Any = np.float32(1e-3)
        params, moments, loss = train_step(graph, optimizer, params, moments, frozen, batch, rate, key, LossTerms())
        loss.mean.block_until_ready()

    return call


def torch_step(rows: int, width: int) -> Callable[[], Any]:
    """transformers' T5 and torch's AdamW."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    model = T5ForConditionalGeneration(T5Config(**SMALL, **{"dropout_rate": 0.0, "decoder_start_token_id": 0})).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    inputs, labels = map(torch.tensor, _ids(rows, width, SMALL["vocab_size"]))
    mask = torch.ones_like(inputs)

    def call() -> None:
        loss = model(input_ids=inputs, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return call


def time_step(settings: Settings) -> None:
    """Print the table of the training step."""
    from deft_tsds.t5.model import T5Config
    from deft_tsds.training.footprint import Shape, step_flops

    config = T5Config(**SMALL, num_decoder_layers=SMALL["num_layers"])
    flops = step_flops(config, Shape(settings.rows, settings.width, settings.width))
    limit = flops / gemm_flops()
    case = {"rows": settings.rows, "width": settings.width}
    contenders = {"ours": "bench_t5:ours", "torch": "bench_t5:torch_step"}
    found = compare(contenders, case, rounds=settings.rounds, calls=settings.calls)
    mine, peer = found["ours"], found["torch"]
    print_table(
        f"training step, T5-small's shape, batch {settings.rows}, {settings.width}/{settings.width}, float32, AdamW",
        ["contender", "s", "first call s", "peak GB", "ours / torch", "of limit"],
        [
            [name, f"{t.seconds:.2f}", f"{t.first_seconds:.1f}", f"{t.peak_bytes / 1e9:.2f}", ratio, share]
            for name, t, ratio, share in (
                ("ours", mine, f"{mine.seconds / peer.seconds:.2f}", f"{limit / mine.seconds:.2f}"),
                ("torch", peer, "", f"{limit / peer.seconds:.2f}"),
            )
        ],
    )


def run_seeds(folder: str, first: int, seeds: int, steps: int, devices: int, vmapped: int | None) -> None:
    """Fine-tune so many seeds of the demo's model: one by `finetune`, several by `finetune_many(vmapped=)`."""
    import jax

    jax.config.update("jax_num_cpu_devices", devices)
    from flax import nnx

    from deft_tsds.t5.load import save_pretrained
    from deft_tsds.t5.model import T5, T5Config
    from deft_tsds.training.finetune import Pairs, finetune, finetune_many, learning_rates, make_optimizer
    from deft_tsds.training.sharding import make_mesh

    config = T5Config(**DEMO, num_decoder_layers=DEMO["num_layers"], dropout_rate=0.0)
    models, pairs, keys = [], [], []
    for seed in range(first, first + seeds):
        rng = np.random.default_rng(seed)
        inputs, labels = rng.integers(3, 1024, (2, 1000, 32)).astype(np.int32)
        models.append(T5(config, rngs=nnx.Rngs(params=jax.random.key(seed))))
        pairs.append(Pairs(inputs, labels, np.ones(1000, np.float32), cut=0))
        keys.append(jax.random.key(seed))
    settings: dict[str, Any] = {
        "rates": learning_rates(steps=steps, peak=0.03, warmup=0.05, schedule="linear"),
        "batch_size": 32,
        "optimizer": make_optimizer("adafactor"),
        "folder": Path(folder) / f"run-{first}",
    }
    if seeds == 1:
        finetune(models[0], pairs[0], key=keys[0], **settings)
    else:
        mesh = None if devices == 1 else make_mesh(shards=1)
        finetune_many(models, pairs, keys=keys, mesh=mesh, vmapped=vmapped, **settings)
    for number, model in enumerate(models, start=first):
        save_pretrained(model, Path(folder) / f"model-{number}")


def _process(folder: str, first: int, seeds: int, steps: int, devices: int, vmapped: int | None) -> float:
    """Seconds of a process that does `run_seeds`."""
    call = f"import bench_t5; bench_t5.run_seeds({folder!r}, {first}, {seeds}, {steps}, {devices}, {vmapped})"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", call], check=True, cwd=Path(__file__).parent, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def time_seeds(settings: Settings) -> None:
    """Print the table of many seeds. Separate runs are equal work: the mean of the first and last stands for all."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:

        def timed(name: str, first: int, seeds: int, devices: int, vmapped: int | None = None) -> float:
            return _process(f"{folder}/{name}", first, seeds, settings.steps, devices, vmapped)

        first = timed("separate", 0, 1, 1)
        together = timed("together", 0, settings.seeds, 1)
        by_vmap = timed("vmap", 0, settings.seeds, 1, settings.seeds)
        shared = timed("shared", 0, settings.seeds, settings.devices)
        last = timed("separate", settings.seeds - 1, 1, 1)
    separate = settings.seeds * (first + last) / 2
    rows = [
        [f"{settings.seeds} separate runs", f"{separate:.1f}", ""],
        ["one program, one device", f"{together:.1f}", f"{together / separate:.2f}"],
        ["one program, one device, by vmap", f"{by_vmap:.1f}", f"{by_vmap / separate:.2f}"],
        [f"one program, {settings.devices} devices", f"{shared:.1f}", f"{shared / separate:.2f}"],
    ]
    title = f"{settings.seeds} seeds at the demo's size, {settings.steps} steps of 32 rows, whole processes"
    print_table(title, ["contender", "s", "of separate"], rows)


def main(settings: Settings) -> None:
    {"step": time_step, "seeds": time_seeds}[settings.what](settings)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
