"""Cascades from dear to cheap: one half of validation fits and orders them, the other half certifies them.

Learn then test. The choosing half fits `dimec-cascade` at a ladder of prices, each at the best of the cuts that are
compared and to be like all-cloud, and orders them, the dearest first. The certifying half, which chooses nothing, tests
them in this order (`dimec.deploying.promise`) and stops at the first that fails; the last that passed is the cheapest
that can be promised. All-cloud itself is always promised.

The kept epoch was chosen by all-cloud's own score on the whole of validation. That can only flatter all-cloud on the
certifying rows, so a drop against it is, if anything, smaller than it looks, and the promise safer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import OptionError
from dimec.core.progress import SILENT, Progress
from dimec.core.tiers import Step, Tier
from dimec.core.untrusted import Record
from dimec.costs.model import DEFAULT_PRICE, CostModel
from dimec.deploying.promise import Assurance, Outcomes, last_kept, rows_for, upper_bound
from dimec.evaluation.cuts import Cut, best_cuts, fit_cascades
from dimec.policies import Calibration, Policy
from dimec.policies.cascade import DimecCascade
from dimec.policies.replay import Replay, replay
from dimec.runs.exit_table import ExitTable, TierTables
from dimec.runs.run import Run

LADDER = tuple(np.geomspace(0.002, 2.0, 24).tolist())
"""The prices that cascades are fitted at."""


class Shortage(Record):
    """Why no cascade can be promised within a tolerance.

    Attributes:
        rows_without_losses: How many certifying rows would do for a policy that loses none; None where no number would.
        rows_expected: How many would do for the safest cascade if it went on as on these rows; None likewise.
        labelled_without_losses: How many labelled rows it takes in all to have so many that certify.
        labelled_expected: Likewise for the safest cascade.
        promisable_points: What can be promised of that cascade with the rows that there are.
    """

    rows_without_losses: int | None
    rows_expected: int | None
    labelled_without_losses: int | None = None
    labelled_expected: int | None = None
    promisable_points: float


@dataclass(frozen=True, eq=False)
class Certifying:
    """Rows that certify and choose nothing.

    Attributes:
        tables: What every tier's exits say of them.
        cloud_predictions: [n], what all-cloud answers.
    """

    tables: TierTables
    cloud_predictions: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Rung:
    """A cascade of the ladder.

    Attributes:
        chosen_cost: Its mean cost on the choosing half.
        played: What it did on the certifying half.
        outcomes: How it differs from all-cloud there.
    """

    price: float
    policy: DimecCascade
    chosen_cost: float
    played: Replay
    outcomes: Outcomes

    def bound_points(self, assurance: Assurance) -> float:
        """Return how many points it loses at most against all-cloud, by one test of it alone."""
        return 100 * upper_bound(self.outcomes, assurance)


@dataclass(frozen=True, eq=False)
class Ladder:
    """Cascades from dear to cheap, all of them cheaper than all-cloud.

    Attributes:
        rungs: The cascades; their order, where each cuts the encoder and everything about them but what they did on
            the certifying half comes from the choosing half.
        n_cuts: Among how many cuts the choosing half chose for each.
        certifying: What every tier's exits say of the certifying half.
        cloud_right: [n], what all-cloud gets right of the certifying half.
        cloud_cost: What it costs, in lambda.
        labelled_per_row: How many labelled rows it takes to have one more that certifies.
    """

    rungs: tuple[Rung, ...]
    n_cuts: int
    n_choosing: int
    certifying: TierTables
    costs: CostModel
    cloud_right: NDArray[np.bool_]
    cloud_cost: float
    labelled_per_row: float = 1.0

    def certified(self, max_drop_points: float, assurance: Assurance) -> tuple[Rung, ...]:
        """Return the cascades that keep within a tolerance, from dear to cheap: the last is the one to promise.

        Each was tested only after all before it had passed, so that the assurance is that of all of them together.
        """
        last = last_kept(
            [rung.outcomes for rung in self.rungs],
            max_drop=max_drop_points / 100,
            assurance=assurance,
        )
        return () if last is None else self.rungs[: last + 1]

    def affordable(self, budget: float) -> Rung:
        """Return the dearest cascade that a share of all-cloud's cost below 1 allows, by its cost on the choosing half.

        Raises:
            OptionError: If it is no such share, or nothing is so cheap.
        """
        if not (math.isfinite(budget) and 0 < budget < 1):
            raise OptionError(
                f"--budget {budget:g}: it must be a share of all-cloud's cost above 0 and below 1, which is all-cloud "
                "itself, such as 0.25"
            )
        for rung in self.rungs:
            if rung.chosen_cost / self.cloud_cost <= budget:
                return rung
        cheapest = "there is none"
        if self.rungs:
            cheapest = (
                f"the cheapest cascade costs {self.rungs[-1].chosen_cost / self.cloud_cost:.3g}"
            )
        raise OptionError(
            f"--budget {budget:g}: no cascade costs at most this share of all-cloud's cost ({cheapest}): allow more"
        )

    def shortage(self, max_drop_points: float, assurance: Assurance) -> Shortage:
        """Say what would help where nothing can be promised."""
        max_drop = max_drop_points / 100
        expected, promisable = None, 0.0
        if self.rungs:
            safest = self.rungs[0]
            expected = rows_for(
                max_drop,
                assurance,
                loss_rate=safest.outcomes.losses / safest.outcomes.n,
                gain_rate=safest.outcomes.gains / safest.outcomes.n,
            )
            promisable = safest.bound_points(assurance)
        lossless = rows_for(max_drop, assurance) if max_drop else None
        return Shortage(
            rows_without_losses=lossless,
            rows_expected=expected,
            labelled_without_losses=self._labelled(lossless),
            labelled_expected=self._labelled(expected),
            promisable_points=promisable,
        )

    def _labelled(self, n_rows: int | None) -> int | None:
        return None if n_rows is None else math.ceil(n_rows * self.labelled_per_row)


def run_calibration(
    run: Run, *, price: float = DEFAULT_PRICE, costs: CostModel | None = None
) -> Calibration:
    """Return a run's validation split as what policies are fitted from, with the run's own seed.

    Raises:
        RunError: If its model is too small for three tiers.
    """
    return Calibration(
        run.validation,
        run.cut(),
        costs=costs or CostModel(),
        price=price,
        seed=run.config.options.seed,
    )


def halve(table: ExitTable, *, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Draw the choosing and the certifying half: positions in the table, ascending, whatever order its rows are in."""
    by_id = np.argsort(table.row_ids, kind="stable")
    drawn = by_id[np.random.default_rng([seed, 0x9120]).permutation(len(table))]
    middle = len(table) // 2
    return np.sort(drawn[:middle]), np.sort(drawn[middle:])


def build_ladder(
    calibration: Calibration,
    *,
    cuts: Sequence[Cut] = (),
    cloud_predictions: NDArray[np.int64] | None = None,
    certifying: Certifying | None = None,
    n_labelled: int | None = None,
    prices: Sequence[float] = LADDER,
    progress: Progress = SILENT,
) -> Ladder:
    """Fit cascades on the choosing half and replay them on the certifying one, or on further rows that certify.

    Args:
        calibration: The whole validation split; its seed draws the halves, its price is not used.
        cuts: Where the encoder may be cut, if not only where the calibration says: the choosing half takes the best
            one at each price.
        cloud_predictions: [n], what all-cloud answers; by default the last exit of the calibration's table. Where the
            tables were made by quantised files, this is the float model that a promise is to be held against.
        certifying: Further rows; all of the calibration chooses then.
        n_labelled: How many labelled rows the calibration is a fixed share of, where it is halved.

    Raises:
        OptionError: If there are too few rows to halve.
    """
    table = calibration.table
    said = table.predictions[:, -1] if cloud_predictions is None else cloud_predictions
    per_row = 1.0
    choosing = np.arange(len(table))
    if certifying is None:
        if len(table) < 4:
            raise OptionError(
                f"{len(table)} validation rows cannot be halved: fit on more rows, or use `dimec evaluate`"
            )
        choosing, rows = halve(table, seed=calibration.seed)
        certifying = Certifying(calibration.tables.take(rows), said[rows])
        per_row = (n_labelled or len(table)) / len(rows)
    test = certifying.tables
    cloud_right = certifying.cloud_predictions == test.encoder.labels
    chosen_right = (said == table.labels)[choosing]
    costs = calibration.costs
    cloud_cost = costs.of([Step(Tier.CLOUD, table.n_layers)])
    chooser = calibration.take(choosing)
    found: dict[tuple[float, int, int], Rung] = {}
    cuts = cuts or [calibration.depths]
    prices = sorted(prices)
    like = said[choosing]
    chosen = best_cuts(chooser, cuts, prices, like=like, progress=progress)
    cascades = fit_cascades(chooser, chosen, prices, like=like, progress=progress)
    with progress.stage("Trying cascades", len(prices)) as advance:
        for price, policy in zip(prices, cascades, strict=True):
            own, spent = _try(policy, chooser.tables, chosen_right, costs)
            cost = float(spent.costs.mean())
            key = (cost, own.losses, own.gains)
            if cost < cloud_cost and key not in found:
                outcomes, played = _try(policy, test, cloud_right, costs)
                found[key] = Rung(price, policy, cost, played, outcomes)
            advance(1)
    rungs = sorted(found.values(), key=lambda rung: -rung.chosen_cost)
    return Ladder(
        tuple(rungs),
        n_cuts=len(cuts),
        n_choosing=len(choosing),
        certifying=test,
        costs=costs,
        cloud_right=cloud_right,
        cloud_cost=cloud_cost,
        labelled_per_row=per_row,
    )


def _try(
    policy: Policy, tables: TierTables, cloud_right: NDArray[np.bool_], costs: CostModel
) -> tuple[Outcomes, Replay]:
    played = replay(policy, tables, costs=costs)
    right = played.predictions == tables.encoder.labels
    return Outcomes.of(cloud_right, right), played
