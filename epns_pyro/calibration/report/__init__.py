"""The report of a run and the comparison of runs: self-contained HTML pages made from the folders RUN/evaluation/.

evaluated           reads a folder, whatever of it is there
summary             the evaluation in one sentence, one line per quantity, one row per run
sections, ...       what the page shows, as plain records (parts)
figures_...         panels, drawn by matplotlib into SVG in the colours of the page (svg)
viewers             numbers for the players of the page
pages               templates and writing
"""

from epns_pyro.calibration.report.pages import write_comparison, write_report
from epns_pyro.calibration.report.summary import distributions_that_differ, initial_states_told_apart, verdict

__all__ = ["distributions_that_differ", "initial_states_told_apart", "verdict", "write_comparison", "write_report"]
