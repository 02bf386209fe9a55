"""One program on two processes of four devices each (`jax.distributed`), as on two hosts: the ids of one device."""

from __future__ import annotations

import socket

import mesh_run
import pytest


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


@pytest.mark.parametrize("options", [(), ("--accelerated",)])
def test_two_processes_find_and_choose_what_one_device_does(tmp_path, options):
    """In both processes, each of which reads its own half of the rows."""
    common = ("--devices", "4", "--port", free_port(), *options)
    outs = [tmp_path / f"{number}.npz" for number in range(mesh_run.PROCESSES)]
    mesh_run.finish(
        *(mesh_run.start(out, *common, "--process", str(number)) for number, out in enumerate(outs)),
    )
    for out in outs:
        mesh_run.assert_equal_to_one(out, densities=1e-5 if options else 0.0)
