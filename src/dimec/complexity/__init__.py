"""From training dynamics and exits to pools, from pools to centroids, and the thresholds in between."""

from dimec.complexity.cartography import Cartography, Spread, cartography
from dimec.complexity.centroids import Centroids
from dimec.complexity.consensus import consensus, consensus_of_one, fit_consensus, log_opinions
from dimec.complexity.evidence import FRACTIONS, bet, total, wilson
from dimec.complexity.pools import cartography_pools, exit_pools, first_sure_exit, sure_exits
from dimec.complexity.thresholds import (
    ThresholdSearch,
    confidence_grid,
    search_cartography,
    search_exits,
    search_thresholds,
)

__all__ = [
    "FRACTIONS",
    "Cartography",
    "Centroids",
    "Spread",
    "ThresholdSearch",
    "bet",
    "cartography",
    "cartography_pools",
    "confidence_grid",
    "consensus",
    "consensus_of_one",
    "exit_pools",
    "first_sure_exit",
    "fit_consensus",
    "log_opinions",
    "search_cartography",
    "search_exits",
    "search_thresholds",
    "sure_exits",
    "total",
    "wilson",
]
