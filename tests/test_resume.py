"""A run that is killed, or goes on elsewhere, ends where one that nothing disturbed ends."""

import random
import signal
import socket
import time

import numpy as np
import pytest
import training_run

from deft_tsds.runs import read_jsonl


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """Parameters and losses of the run on one device."""
    return training_run.train(tmp_path_factory.mktemp("unbroken"))


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def assert_close(losses, expected, steps):
    assert list(losses) == list(range(1, steps + 1))
    for step, loss in losses.items():
        assert abs(loss - expected[step]) < 1e-5, f"step {step}: {loss} and {expected[step]}"


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, unbroken):
    """SIGKILL at a random step; the losses that follow are those of the same batches in the same order."""
    step = random.randrange(4, training_run.STEPS)
    process = training_run.start(tmp_path, "--pause", "0.1")
    log = tmp_path / "metrics.jsonl"
    while not (log.exists() and log.read_text().count("\n") >= step):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    killed_at = read_jsonl(log)[-1]["step"]
    assert killed_at < training_run.STEPS
    parameters, losses = training_run.train(tmp_path)
    assert losses == unbroken[1], f"killed at step {killed_at}"
    for a, b in zip(parameters, unbroken[0], strict=True):
        np.testing.assert_array_equal(a, b, err_msg=f"killed at step {killed_at}")


@pytest.mark.parametrize("shards", [1, 8])
def test_eight_devices_have_the_losses_of_one_and_one_goes_on(tmp_path, unbroken, shards):
    """Data parallel and fully sharded; the second half of the run is on one device."""
    training_run.finish(training_run.start(tmp_path, "--devices", "8", "--shards", str(shards), "--stop-at", "10"))
    assert_close({row["step"]: row["loss"] for row in read_jsonl(tmp_path / "metrics.jsonl")}, unbroken[1], 10)
    parameters, losses = training_run.train(tmp_path)
    assert_close(losses, unbroken[1], training_run.STEPS)
    for a, b in zip(parameters, unbroken[0], strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_two_processes_have_the_losses_of_one_and_one_goes_on(tmp_path, unbroken):
    """Each process of one device puts its half of every batch there."""
    options = ("--shards", "2", "--stop-at", "10", "--port", str(free_port()))
    training_run.finish(*(training_run.start(tmp_path, *options, "--process", str(number)) for number in range(2)))
    parameters, losses = training_run.train(tmp_path)
    assert_close(losses, unbroken[1], training_run.STEPS)
    for a, b in zip(parameters, unbroken[0], strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
