"""Replay a policy over an exit table; metrics, intervals and the honest controls."""

from dimec.evaluation.replay import Replay, replay
from dimec.evaluation.results import Evaluation, Row, TierShares
from dimec.evaluation.rows import evaluate

__all__ = [
    "Evaluation",
    "Replay",
    "Row",
    "TierShares",
    "evaluate",
    "replay",
]
