"""The page of a study: tables, figures, verdicts and a what-if panel, from result files only.

A folder that `dimec.reporting.results` describes goes in. One HTML page that asks nothing of any network comes out,
with its figures as SVG and PNG and its tables as CSV, Markdown and LaTeX beside it.
"""

from dimec.reporting.write import Written, check_installed, write_report

__all__ = ["Written", "check_installed", "write_report"]
