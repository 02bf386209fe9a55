"""Synthetic editing text with known defects: what `make demo` runs on."""

from deft_tsds.synthetic.editing import FLAGS, OFF_TASK_NAME, Synthetic, make_editing, write_editing
from deft_tsds.synthetic.kinds import INSTRUCTIONS, KINDS

__all__ = ["FLAGS", "INSTRUCTIONS", "KINDS", "OFF_TASK_NAME", "Synthetic", "make_editing", "write_editing"]
