"""Replay a policy over an exit table; metrics, intervals and the honest controls.

The names are loaded on first use: the options of this room are read by ``dimec evaluate --help``, which needs no more.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dimec.evaluation.results import Evaluation, Frontier, Learning, NotRun, Row, TierShares
    from dimec.evaluation.rows import Lineup, evaluate
    from dimec.policies.replay import Replay, replay

__all__ = [
    "Evaluation",
    "Frontier",
    "Learning",
    "Lineup",
    "NotRun",
    "Replay",
    "Row",
    "TierShares",
    "evaluate",
    "replay",
]
_HOMES = {
    "Lineup": "dimec.evaluation.rows",
    "evaluate": "dimec.evaluation.rows",
    "Replay": "dimec.policies.replay",
    "replay": "dimec.policies.replay",
}


def __getattr__(name: str) -> object:
    """Load a name on first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: object = getattr(import_module(_HOMES.get(name, "dimec.evaluation.results")), name)
    return found
