"""The checkpoints of a fine-tuning, by Orbax: the latest state, from which a killed run goes on, and the best."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from deft_tsds.running import damage

_OVERHEAD_BYTES = 2**18  # what a checkpoint takes beside its arrays: names, shapes, shardings, progress


class Checkpoints:
    """The latest checkpoint and the best parameters in a folder; Orbax writes to a temporary name and renames.

    Arrays are restored to the shardings of the arrays given, so that a run may go on with other devices or processes.
    """

    def __init__(self, folder: Path):
        self._folder, self._memo = folder / "checkpoints", folder / "checkpoints.json"
        # Orbax measures its patience by the wall clock: one that jumps forward must not look like a disk that hangs.
        patient = ocp.AsyncOptions(timeout_secs=4 * 10**9, create_directories_asynchronously=False)
        options = ocp.CheckpointManagerOptions(max_to_keep=1, create=True, async_options=patient)
        self._latest = ocp.CheckpointManager((folder / "checkpoints").absolute(), options=options)
        self._best = ocp.CheckpointManager((folder / "best").absolute(), options=options)

    def resume(self, params: Any, moments: Any, progress: dict[str, Any]) -> tuple[int, Any, Any, dict[str, Any]]:
        """Step, parameters, moments and progress of the latest checkpoint; what is given, at step 0, without one.

        Raises:
          ValueError: the checkpoint is not what was written.
        """
        start = self._latest.latest_step() or 0
        if start == 0:
            return 0, params, moments, progress
        cure = f"Delete {self._folder}; the same command trains this model anew and keeps the rest."
        damage.check_remembered(self._folder / str(start), self._memo, cure)
        state = ocp.args.StandardRestore({"params": params, "moments": moments})
        with _readable(self._latest, start, "go on from the one before, or begin anew"):
            found = self._latest.restore(start, args=ocp.args.Composite(state=state, progress=ocp.args.JsonRestore()))
            _check_like({"params": params, "moments": moments}, found["state"])
            if not isinstance(found["progress"], dict):
                raise TypeError(f"its progress is {type(found['progress']).__name__}, no object")
        for step in self._best.all_steps():
            if step > start:  # the steps after `start` are taken again and will keep it again
                self._best.delete(step)
        return start, found["state"]["params"], found["state"]["moments"], found["progress"]

    def save(self, step: int, params: Any, moments: Any, progress: dict[str, Any]) -> None:
        _check_room(self._folder, (params, moments))
        state = ocp.args.StandardSave({"params": params, "moments": moments})
        with _raised_and_not_logged():
            self._latest.save(step, args=ocp.args.Composite(state=state, progress=ocp.args.JsonSave(progress)))
            self._latest.wait_until_finished()  # the next step gives these buffers away
        if jax.process_index() == 0:
            damage.remember(self._folder / str(step), self._memo)

    def keep_as_best(self, step: int, params: Any) -> None:
        _check_room(self._folder, params)
        with _raised_and_not_logged():
            self._best.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave({"params": params})))
            self._best.wait_until_finished()

    def best(self, step: int, params: Any) -> Any:
        target = ocp.args.Composite(state=ocp.args.StandardRestore({"params": params}))
        with _readable(self._best, step, "train this arm anew"):
            found = self._best.restore(step, args=target)["state"]
            _check_like({"params": params}, found)
        return found["params"]

    def close(self) -> None:
        self._latest.close()
        self._best.close()


def _check_room(folder: Path, state: Any) -> None:
    """Raise OSError where the arrays do not fit on the disk: Orbax finds out in the midst of writing, in threads that
    each print a traceback."""
    needed = _OVERHEAD_BYTES + sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: a checkpoint takes {needed:,} bytes", str(folder))


@contextlib.contextmanager
def _raised_and_not_logged() -> Iterator[None]:
    """What fails in one of Orbax's threads is raised here; the traceback that it logs besides buries the plain word."""
    log = logging.getLogger("absl")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


@contextlib.contextmanager
def _readable(manager: ocp.CheckpointManager, step: int, then: str) -> Iterator[None]:
    """Whatever Orbax raises on a damaged checkpoint or one of another model, as a ValueError that names its folder."""
    try:
        yield
    except Exception as error:  # a damaged one raises whatever its many parsers raise
        folder = Path(manager.directory) / str(step)
        said = " ".join(str(error).split())[:300]
        raise ValueError(
            f"The checkpoint {folder} cannot be read ({type(error).__name__}: {said}). It is damaged, or of another "
            f"model or optimiser: delete that folder to {then}."
        ) from error


def _check_like(wanted: Any, found: Any) -> None:
    """Raise ValueError where an array has another shape than the one in its place."""
    named, _ = jax.tree_util.tree_flatten_with_path(wanted)
    for (path, array), other in zip(named, jax.tree.leaves(found), strict=True):
        if getattr(array, "shape", ()) != getattr(other, "shape", ()):
            raise ValueError(f"{jax.tree_util.keystr(path)} is {other.shape} and not {array.shape}")
