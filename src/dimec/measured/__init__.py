"""Costs that are measured rather than assumed: profiles of hardware and links, and what traces cost by them."""

from dimec.measured.billing import Billing, fitting_costs
from dimec.measured.pricing import UNITS, Measured, Pricer, Texts, Unit
from dimec.measured.profiles import READY, CostProfile, Link, Point, load_profile

__all__ = [
    "READY",
    "UNITS",
    "Billing",
    "CostProfile",
    "Link",
    "Measured",
    "Point",
    "Pricer",
    "Texts",
    "Unit",
    "fitting_costs",
    "load_profile",
]
