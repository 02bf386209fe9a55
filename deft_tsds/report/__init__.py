"""Self-contained HTML pages: of a run (what was asked, what was chosen and why, what it did), and of several beside one
another."""

from deft_tsds.report.comparison import write_comparison
from deft_tsds.report.page import write_report
from deft_tsds.report.view import RunView, read_run

__all__ = ["RunView", "read_run", "write_comparison", "write_report"]
