"""Tables, plots and one self-contained HTML page per run or comparison."""

from jaxforget.report.page import write_report
from jaxforget.report.tables import COLUMNS, RunSummary, load_run, terminal_table

__all__ = ["COLUMNS", "RunSummary", "load_run", "terminal_table", "write_report"]
