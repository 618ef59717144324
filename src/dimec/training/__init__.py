"""Training: a multi-exit encoder, its dynamics on the way, and the exit tables that everything else reads."""

from dimec.training.fitting import fit
from dimec.training.grid import SearchResult, search
from dimec.training.tabulate import tabulate, tabulate_dataset

__all__ = ["SearchResult", "fit", "search", "tabulate", "tabulate_dataset"]
