"""What a search found, shown: tables for the terminal, pictures, and one page that holds everything."""

from lissom.report.content import LayerRow, Point, Report, StepRow
from lissom.report.page import page, write_report
from lissom.report.plot import plot
from lissom.report.table import frontier_table, layer_table, step_table

__all__ = [
    "LayerRow",
    "Point",
    "Report",
    "StepRow",
    "frontier_table",
    "layer_table",
    "page",
    "plot",
    "step_table",
    "write_report",
]
