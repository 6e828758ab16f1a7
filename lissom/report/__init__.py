"""What a search found, shown: a table for the terminal, two plots, and one page that holds everything."""

from lissom.report.content import LayerRow, Point, Report, StepRow
from lissom.report.page import page, write_report
from lissom.report.plot import plot
from lissom.report.table import frontier_table

__all__ = ["LayerRow", "Point", "Report", "StepRow", "frontier_table", "page", "plot", "write_report"]
