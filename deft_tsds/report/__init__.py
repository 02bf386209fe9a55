"""One self-contained HTML page a run: what was asked, what was chosen and why, and what fine-tuning on it did."""

from deft_tsds.report.page import write_report
from deft_tsds.report.view import RunView, read_run

__all__ = ["RunView", "read_run", "write_report"]
