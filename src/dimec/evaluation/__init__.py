"""Replay a policy over an exit table; metrics, intervals and the honest controls."""

from dimec.evaluation.replay import Replay, replay
from dimec.evaluation.results import Evaluation, Frontier, Learning, NotRun, Row, TierShares
from dimec.evaluation.rows import Lineup, evaluate

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
