"""Replay a policy over an exit table; metrics, intervals and the honest controls."""

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
