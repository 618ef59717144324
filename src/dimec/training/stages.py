"""The stages of training: what learns in each, from which exits' losses, and which of its epochs is kept.

Joint training is one stage. Two-stage training is DeeBERT's: the backbone learns with the last exit alone, then stays
as it is while the exits before it learn. Exits are slices of the model's exits, so that a stage knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from dimec.runs.run import Training
from dimec.training.model import MultiExitEncoder
from dimec.training.state import EpochLog

_ALL, _LAST, _OTHERS = slice(None), slice(-1, None), slice(None, -1)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A number of epochs with a learning-rate schedule of their own.

    Attributes:
        name: What the epochs' logs call it.
        exits: The exits that learn.
        judges: The exits whose mean validation score picks the epoch that is kept.
        place: What follows an epoch's number wherever one is shown.
    """

    name: str
    exits: slice = field(default_factory=lambda: _ALL)
    judges: slice = field(default_factory=lambda: _LAST)
    place: str = ""

    @property
    def criterion(self) -> str:
        """Where on validation the kept epoch is the best."""
        return "at the last exit" if self.judges == _LAST else "in the mean of the other exits"

    def best(self, history: Sequence[EpochLog]) -> EpochLog:
        """Return this stage's best epoch in a history; the first of equals."""
        return max(
            (log for log in history if log.stage == self.name),
            key=lambda log: fmean(log.validation_scores[self.judges]),
        )


@dataclass(frozen=True, kw_only=True)
class FitStage(Stage):
    """A stage of a fit; the exits learn from the sum of their cross-entropies.

    Attributes:
        backbone: Whether the backbone learns; where not, no gradient goes through it.
    """

    backbone: bool

    def freeze(self, model: MultiExitEncoder) -> None:
        """Ask for gradients of what learns in this stage, and of nothing else."""
        model.requires_grad_(False)
        if self.backbone:
            model.adapter.requires_grad_(True)
        for layer in model.exits[self.exits]:
            model.heads[str(layer)].requires_grad_(True)


STAGES: dict[Training, tuple[FitStage, ...]] = {
    "joint": (FitStage(name="joint", backbone=True),),
    "two-stage": (
        FitStage(name="backbone", backbone=True, exits=_LAST, place=", stage 1/2 (backbone)"),
        FitStage(
            name="exits",
            backbone=False,
            exits=_OTHERS,
            judges=_OTHERS,
            place=", stage 2/2 (exits)",
        ),
    ),
}
"""The stages of each kind of training. Dynamics are recorded in the last: every exit of a tier before the cloud learns
there."""
