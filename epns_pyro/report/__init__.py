"""The report of a run and the comparison of runs: self-contained HTML pages made from the folders RUN/evaluation/.

evaluated           reads a folder, whatever of it is there
sections, ...       what the page shows, as plain records (parts)
figures_...         panels, drawn by matplotlib into SVG in the colours of the page (svg)
viewers             numbers for the players of the page
pages               templates and writing
"""

from epns_pyro.report.pages import write_comparison, write_report

__all__ = ["write_comparison", "write_report"]
