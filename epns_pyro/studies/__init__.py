"""Studies: the paper's claims, with everything that they need trained, judged alike and told on one page.

celestial.yaml, cellular.yaml    what a study is made of: presets, models, claims
definition    reads these files
plan          the runs: folders and settings
programs      baselines that are Pyro programs of whole trajectories, in run folders
contenders    trains what is missing; models, programs and references with one face
judging       measures of each run what the paper reports, part by part
work          does the runs, several at a time; an interrupt loses nothing
estimate      how long that takes
measures      the numbers of the tables: mean and spread over seeds
claims        what the numbers support
page          sections and figures of the page, which `epns_pyro.report` writes
"""

from epns_pyro.studies.definition import NAMES, Study
from epns_pyro.studies.plan import Job, Plan, make_plan

__all__ = ["NAMES", "Job", "Plan", "Study", "make_plan"]
