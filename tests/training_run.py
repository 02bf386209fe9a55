"""One small fine-tuning, the same in this process and in processes that tests start, kill and let go on.

    python tests/training_run.py FOLDER [--devices 8] [--shards 1] [--stop-at 10] [--pause 0.1] [--process 0 --port 99]

It writes the parameters at the end to FOLDER/parameters.npz.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

STEPS = 20


def model_and_pairs() -> Any:
    """A T5 with dropout, whose sizes eight devices can share, and pairs of many lengths."""
    from flax import nnx

    from deft_tsds.t5.model import T5, T5Config
    from deft_tsds.training.finetune import Pairs

    sizes: dict[str, Any] = {"vocab_size": 64, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_heads": 2}
    config = T5Config(**sizes, num_layers=1, num_decoder_layers=1, dropout_rate=0.1, tie_word_embeddings=False)
    model = T5(config, rngs=nnx.Rngs(params=jax.random.key(0)))
    rng = np.random.default_rng(0)
    labels = rng.integers(2, 64, (40, 16)).astype(np.int32)
    labels[np.arange(16) >= rng.integers(3, 17, (40, 1))] = 0
    return model, Pairs(labels[:, ::-1].copy() + (labels[:, ::-1] == 0), labels, np.ones(40, np.float32), cut=0)


def train(folder: Path, *, mesh: Any = None, stop_at: int | None = None) -> tuple[list[np.ndarray], dict[int, float]]:
    """The parameters at the end, and the loss of each step of the log."""
    from flax import nnx

    from deft_tsds.runs import read_jsonl
    from deft_tsds.training.finetune import finetune, learning_rates, make_optimizer

    model, pairs = model_and_pairs()
    finetune(
        model,
        pairs,
        rates=learning_rates(steps=STEPS, peak=1e-2, warmup=0.1, schedule="linear")[:stop_at],
        batch_size=8,
        key=jax.random.key(1),
        folder=folder,
        optimizer=make_optimizer("adamw"),
        validation=pairs,
        validate_every=7,
        save_every=3,
        log_every=1,
        mesh=mesh,
    )
    losses = {row["step"]: row["loss"] for row in read_jsonl(folder / "metrics.jsonl")}
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))], losses


def start(folder: Path, *options: str) -> subprocess.Popen:
    """The same in a process of its own."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, __file__, str(folder), *options]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(*processes: subprocess.Popen) -> None:
    """Wait for processes that must succeed."""
    outputs = [process.communicate(timeout=500)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--shards", type=int)
    parser.add_argument("--stop-at", type=int)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--process", type=int)
    parser.add_argument("--port", type=int)
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", options.devices)
    if options.process is not None:
        # A machine with other work may stop a process for long: that is not its death.
        jax.distributed.initialize(
            f"127.0.0.1:{options.port}",
            num_processes=2,
            process_id=options.process,
            heartbeat_timeout_seconds=500,
        )

    from deft_tsds.runs import MetricsLog
    from deft_tsds.training.sharding import make_mesh

    if options.pause:
        write = MetricsLog.write

        def slowly(self: MetricsLog, row: Any) -> None:
            write(self, row)
            time.sleep(options.pause)

        MetricsLog.write = slowly
    mesh = None if options.shards is None else make_mesh(shards=options.shards)
    parameters, _ = train(options.folder, mesh=mesh, stop_at=options.stop_at)
    if not options.process:
        np.savez(options.folder / "parameters.npz", *parameters)


if __name__ == "__main__":
    _main()
