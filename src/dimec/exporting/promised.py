"""A promise that an export was asked for: which cascade keeps it, or why none can be promised."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dimec.bundle.manifest import Promise
from dimec.costs import DEFAULT_PRICE
from dimec.errors import OptionError
from dimec.planning import build_ladder, check_max_drop
from dimec.policies import Calibration, Policy
from dimec.progress import Progress

PROMISED_POLICY = "dimec-cascade"


@dataclass(frozen=True, eq=False)
class Wanted:
    """A promise that was asked for.

    Attributes:
        max_drop: In points.
        assurance: How sure it is to be.
        cloud_predictions: [n], what all-cloud answers on validation in float32: what a user would have without any
            of this. Quantising is then part of what may lose accuracy.
    """

    max_drop: float
    assurance: float
    cloud_predictions: NDArray[np.int64]

    def of(
        self, calibration: Calibration, *, progress: Progress
    ) -> tuple[Policy, Promise, Calibration]:
        """Return the cheapest cascade that keeps it, fitted on the choosing half, and at which price that was.

        Raises:
            OptionError: If none can be promised.
        """
        ladder = build_ladder(
            calibration, cloud_predictions=self.cloud_predictions, progress=progress
        )
        rung = ladder.promised(self.max_drop, assurance=self.assurance)
        if rung is None:
            lack = ladder.shortage(self.max_drop, assurance=self.assurance)
            rows = lack.rows_expected
            raise OptionError(
                f"--max-drop {self.max_drop:g}: no cascade can be promised with {100 * self.assurance:g} % assurance "
                f"by {len(ladder.cloud_right):,} certifying rows ("
                f"{f'about {rows:,} would do' if rows else 'more of them would not help'}); with these, "
                f"{lack.promisable_points:.2f} points can be promised: allow more, or fit on more data"
            )
        promise = Promise(
            max_drop_points=self.max_drop,
            assurance=self.assurance,
            rows=rung.outcomes.n,
            drop_points=100 * rung.outcomes.drop,
        )
        return rung.policy, promise, replace(calibration, price=rung.price)


def check_promising(policy: str, *, price: float, max_drop: float) -> None:
    """Check that a promise can be asked for together with a policy and a price.

    Raises:
        OptionError: If not.
    """
    check_max_drop(max_drop)
    if policy != PROMISED_POLICY:
        raise OptionError(
            f"--policy {policy}: promises are made of {PROMISED_POLICY}; leave out --policy or --max-drop"
        )
    if price != DEFAULT_PRICE:
        raise OptionError(f"--price {price:g}: --max-drop finds the price itself; give one of them")
