"""The report of a run and the comparison of runs: self-contained HTML pages made from the folders RUN/evaluation/.

The content of a page comes from `epns_pyro.evaluation`: every check makes its own sections, as plain records.

pages      templates and writing
comparison the page that compares runs
papers     figures as files, the summary as Markdown
svg        panels of figures, drawn by matplotlib in the colours of the page
training   the section about the training
viewers    data for the players of the page
"""

from epns_pyro.report.comparison import write_comparison
from epns_pyro.report.pages import write_page, write_player, write_report, write_report_pages
from epns_pyro.report.papers import write_figures, write_markdown

__all__ = ["write_comparison", "write_figures", "write_markdown", "write_page", "write_player", "write_report", "write_report_pages"]
