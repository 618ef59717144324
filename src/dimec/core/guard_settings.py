"""How closely a guarded cascade watches itself: what a user may set."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from dimec.core.errors import OptionError

GUARDED = "dimec-guarded"


@dataclass(frozen=True, slots=True)
class GuardSettings:
    """How closely a guarded cascade watches itself.

    Attributes:
        audit_rate: The share of samples that is audited.
        boost: How many times as many are while drift is suspected.
        suspects: For how many audits it is.
        slack: How much disagreement beyond validation's is allowed, as a share of all samples.
        drift_run: After how many samples drift is reported by chance where there is none, on average; inf for never.
        audit_run: After how many audits disagreement is; likewise.
        relief: The chance at most that a rung is gone back to that is not safe.
        ladder: The rungs' prices, as shares of the chosen one.
        recalibrates: Whether audits refit the scale of confidence.
        seed: Of the draws; by default the calibration's.
    """

    audit_rate: float = 0.02
    boost: float = 10.0
    suspects: int = 500
    slack: float = 0.01
    drift_run: float = 200_000
    audit_run: float = 2_000
    relief: float = 0.05
    ladder: tuple[float, ...] = (1.0, 0.3, 0.1)
    recalibrates: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.audit_rate <= 1:
            raise OptionError(
                f"--audit-rate {self.audit_rate:g}: it must be a share of all samples from 0 to 1, such as 0.02"
            )
        if self.boost < 1:
            raise OptionError(f"boost {self.boost}: it must be at least 1")
        if not 0 <= self.slack < 1:
            raise OptionError(
                f"--slack {100 * self.slack:g}: it must be points of disagreement from 0 to below 100, such as 1"
            )
        if min(self.drift_run, self.audit_run) < 1 or not 0 < self.relief < 1:
            raise OptionError("drift_run and audit_run are at least 1, relief is between 0 and 1")
        if not self.ladder or min(self.ladder) < 0:
            raise OptionError("ladder: give at least one share of the price, none negative")


def check_guarded(guard: GuardSettings | None, policies: Collection[str]) -> None:
    """Refuse settings of a guard where no policy has one.

    Raises:
        OptionError: If dimec-guarded is not among the policies.
    """
    if guard is not None and GUARDED not in policies:
        raise OptionError(
            f"--audit-rate, --slack and --recalibrate are settings of {GUARDED}: give --policy {GUARDED} too, or leave "
            "them out"
        )
