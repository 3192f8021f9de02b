"""Trajectory stores, windows and importers."""

from epns_pyro.context import DataContext
from epns_pyro.data.description import Split
from epns_pyro.data.generate import generate
from epns_pyro.data.importers.epns_format import import_epns
from epns_pyro.data.importers.labels import import_labels
from epns_pyro.data.inspection.check import check
from epns_pyro.data.inspection.findings import Finding
from epns_pyro.data.layout import to_dataset
from epns_pyro.data.scales import compute_context
from epns_pyro.data.stores import Store, open_store
from epns_pyro.data.windows import Batch, Windows

__all__ = [
    "Batch",
    "DataContext",
    "Finding",
    "Split",
    "Store",
    "Windows",
    "check",
    "compute_context",
    "generate",
    "import_epns",
    "import_labels",
    "open_store",
    "to_dataset",
]
