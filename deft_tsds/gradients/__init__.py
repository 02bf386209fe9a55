"""Gradient features (LESS): a warm-up run, the gradient of each example at its checkpoints, and their projection."""

from deft_tsds.gradients.features import GradientEncoder
from deft_tsds.gradients.projection import project
from deft_tsds.gradients.stores import write_gradients
from deft_tsds.gradients.warmup import Checkpoint, warm_up

__all__ = ["Checkpoint", "GradientEncoder", "project", "warm_up", "write_gradients"]
