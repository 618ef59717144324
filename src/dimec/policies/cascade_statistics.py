"""What a validation split has of a cascade: how often it differs from all-cloud, its cost, and how sure it is where.

It is what a guarded cascade holds its stream against.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dimec.core.tiers import EXIT_ZERO, Step, Tier
from dimec.policies.base import Calibration
from dimec.policies.cascade import DimecCascade
from dimec.policies.consensus import log_opinions
from dimec.policies.replay import walk_groups
from dimec.runs.exit_table import TierTables

SCALES = np.geomspace(0.1, 5.0, 40)
"""What log-odds are multiplied by to see what fits."""


@dataclass(frozen=True, slots=True, eq=False)
class CascadeStatistics:
    """A cascade, and what validation had with it.

    Attributes:
        disagreement: The share of answers that differ from all-cloud's.
        cost: The mean, in lambda.
        reference: [points + 1, 3], the count of samples that come to a point, and the sums of their pooled confidence
            and of its square. The last are of the samples' unseen shares; zeros where they are not known, or exit zero
            is not read.
        fit: [scales], what each scale of the log-odds loses on the cloud's labels.
    """

    cascade: DimecCascade
    disagreement: float
    cost: float
    reference: NDArray[np.float64]
    fit: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        cascade: DimecCascade,
        tables: TierTables,
        calibration: Calibration,
        *,
        place: Mapping[tuple[Step, ...], int],
    ) -> CascadeStatistics:
        """Run a cascade over validation's tables, exit zero among them; ``place`` numbers the points."""
        reference, fit = np.zeros((len(place) + 1, 3)), np.zeros(len(SCALES))
        cloud = tables.of(Tier.CLOUD)
        sure = cloud.predictions[:, cloud.exit(cascade.depths.cloud)]
        differs, cost = 0, 0.0
        for stop in walk_groups(cascade, tables, calibration.costs):
            steps, rows = stop.path.steps, stop.group.rows
            if not steps:
                continue
            pooled = cascade.pooled_group(stop.group)
            labels = pooled[stop.answered].argmax(axis=1)
            differs += int((labels != sure[rows[stop.answered]]).sum())
            cost += stop.path.cost * len(labels)
            if steps[-1].tier is not Tier.CLOUD:
                top = pooled.max(axis=1)
                reference[place[steps]] += len(top), top.sum(), (top**2).sum()
                fit += log_losses(pooled, sure[rows])
        unseen = tables.of(Tier.MOBILE).unseen
        if unseen is not None and cascade.points[0].steps == (EXIT_ZERO,):
            shares = unseen.astype(np.float64)
            reference[-1] = len(shares), shares.sum(), (shares**2).sum()
        return cls(cascade, differs / len(tables), cost / len(tables), reference, fit)


def log_losses(pooled: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the summed log loss of pooled probabilities [k, classes] at each scale of their log-odds: [scales]."""
    logs = log_opinions(pooled)[None] * SCALES[:, None, None]
    logs -= logs.max(axis=2, keepdims=True)
    spread = np.log(np.exp(logs).sum(axis=2))
    told = logs[:, np.arange(len(labels)), labels]
    losses: NDArray[np.float64] = (spread - told).sum(axis=1)
    return losses
