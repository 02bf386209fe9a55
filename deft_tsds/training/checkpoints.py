"""The checkpoints of a fine-tuning, by Orbax: the latest state, from which a killed run goes on, and the best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp


class Checkpoints:
    """The latest checkpoint and the best parameters in a folder; Orbax writes to a temporary name and renames.

    Arrays are restored to the shardings of the arrays given, so that a run may go on with other devices or processes.
    """

    def __init__(self, folder: Path):
        options = ocp.CheckpointManagerOptions(max_to_keep=1, create=True)
        self._latest = ocp.CheckpointManager((folder / "checkpoints").absolute(), options=options)
        self._best = ocp.CheckpointManager((folder / "best").absolute(), options=options)

    def resume(self, params: Any, moments: Any, progress: dict[str, Any]) -> tuple[int, Any, Any, dict[str, Any]]:
        """Step, parameters, moments and progress of the latest checkpoint; what is given, at step 0, without one."""
        start = self._latest.latest_step() or 0
        if start == 0:
            return 0, params, moments, progress
        state = ocp.args.StandardRestore({"params": params, "moments": moments})
        found = self._latest.restore(start, args=ocp.args.Composite(state=state, progress=ocp.args.JsonRestore()))
        for step in self._best.all_steps():
            if step > start:  # the steps after `start` are taken again and will keep it again
                self._best.delete(step)
        return start, found["state"]["params"], found["state"]["moments"], found["progress"]

    def save(self, step: int, params: Any, moments: Any, progress: dict[str, Any]) -> None:
        state = ocp.args.StandardSave({"params": params, "moments": moments})
        self._latest.save(step, args=ocp.args.Composite(state=state, progress=ocp.args.JsonSave(progress)))
        self._latest.wait_until_finished()  # the next step gives these buffers away

    def keep_as_best(self, step: int, params: Any) -> None:
        self._best.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave({"params": params})))
        self._best.wait_until_finished()

    def best(self, step: int, params: Any) -> Any:
        target = ocp.args.Composite(state=ocp.args.StandardRestore({"params": params}))
        return self._best.restore(step, args=target)["state"]["params"]

    def close(self) -> None:
        self._latest.close()
        self._best.close()
