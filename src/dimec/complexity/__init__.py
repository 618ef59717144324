"""From training dynamics and exits to pools, from pools to centroids, and the thresholds in between."""

from dimec.complexity.cartography import Cartography, Spread, cartography
from dimec.complexity.centroids import Centroids
from dimec.complexity.pools import cartography_pools, exit_pools, first_sure_exit
from dimec.complexity.thresholds import ThresholdSearch, search_cartography, search_exits

__all__ = [
    "Cartography",
    "Centroids",
    "Spread",
    "ThresholdSearch",
    "cartography",
    "cartography_pools",
    "exit_pools",
    "first_sure_exit",
    "search_cartography",
    "search_exits",
]
