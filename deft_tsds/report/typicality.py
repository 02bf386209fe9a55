"""Typicality, by a measure that no selector uses: how near a row is to the middle of its own group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deft_tsds.report.view import ArmView, RunView

_SHOWN = 20


@dataclass(frozen=True)
class Choice:
    """One chosen example, with the reason that its selector gave."""

    id: str
    typicality: float
    group: str
    flags: tuple[str, ...]
    input: str
    target: str
    reason: str


@dataclass(frozen=True)
class Extremes:
    """The most and the least typical choices of an arm."""

    arm: str
    most: tuple[Choice, ...]
    least: tuple[Choice, ...]


def typicality(embeddings_NxD: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Cosine of each row to the mean embedding of its own group over the whole pool.

    t_i = e_i . m_g / |m_g| with m_g = mean of e_j over the rows j of group g = g(i), and |e_i| = 1.

    Args:
      embeddings_NxD: float32, rows of unit length.
      groups: N group names.

    Returns:
      float32 [N]; 0 for a group whose mean is 0.
    """
    typicality_N = np.zeros(len(groups), dtype=np.float32)
    names, labels_N = np.unique(np.array(groups), return_inverse=True)
    for label in range(len(names)):
        rows = np.flatnonzero(labels_N == label)
        members = np.asarray(embeddings_NxD[rows], dtype=np.float32)
        mean_D = members.mean(axis=0)
        norm = float(np.linalg.norm(mean_D))
        if norm > 0:
            typicality_N[rows] = members @ (mean_D / norm)
    return typicality_N


def extremes(view: RunView, typicality_N: np.ndarray) -> tuple[Extremes, ...]:
    """The twenty most and the twenty least typical choices of each arm's first seed; no row is in both lists."""
    return tuple(_extremes(view, arm, typicality_N) for arm in view.arms)


def _extremes(view: RunView, arm: ArmView, typicality_N: np.ndarray) -> Extremes:
    indices = np.asarray(arm.first.indices)
    _, first_positions = np.unique(indices, return_index=True)  # sampling with replacement repeats rows
    # Ties go to the lower index, so that a page made twice is the same page.
    order = first_positions[np.argsort(-typicality_N[indices[first_positions]], kind="stable")]
    shown = min(_SHOWN, order.size // 2 if order.size > 1 else 1)
    most, least = order[:shown], order[::-1][: min(shown, order.size - shown)]

    def choice(position: int) -> Choice:
        row = int(indices[position])
        return Choice(
            id=view.pool.ids[row],
            typicality=float(typicality_N[row]),
            group=view.pool.groups[row],
            flags=tuple(name for name, has_N in view.pool.flags.items() if has_N[row]),
            input=view.pool.inputs[row],
            target=view.pool.targets[row],
            reason=str(arm.first.reasons[position].get("why", "")) if arm.first.reasons else "",
        )

    return Extremes(arm.label, tuple(map(choice, most)), tuple(map(choice, least)))
