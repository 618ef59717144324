"""A promise that an export was asked for: which cascade keeps it, or why none can be promised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from dimec.bundle.manifest import Promise
from dimec.core.errors import OptionError
from dimec.core.progress import Progress
from dimec.core.tiers import Tier
from dimec.deploying.ladder import Certifying, Ladder, Rung, build_ladder
from dimec.deploying.options import CASCADES, USUAL_ASSURANCE, ExportOptions
from dimec.deploying.promise import Assurance
from dimec.evaluation.cuts import Cut
from dimec.policies import Calibration, Policy
from dimec.policies.cascade import DimecCascade
from dimec.policies.guarded import DimecGuarded


@dataclass(eq=False)
class PromiseRequest:
    """A promise that was asked for: by what may be lost, or by what may be spent.

    Attributes:
        cloud_predictions: [n], what all-cloud answers on validation in float32: what a user would have without any
            of this. Quantising is then part of what may lose accuracy.

    Raises:
        OptionError: If it cannot be asked for together with everything else.
    """

    options: ExportOptions
    cloud_predictions: NDArray[np.int64]
    assurance: Assurance = field(init=False)

    def __post_init__(self) -> None:
        options = self.options
        self.assurance = Assurance(options.assurance or USUAL_ASSURANCE, options.over)
        option = "--assurance" if options.budget is None else "--budget"
        if options.policy not in CASCADES:
            raise OptionError(
                f"--policy {options.policy}: promises are made of {' and '.join(CASCADES)}; leave out --policy or "
                f"{option}"
            )
        guard = options.guard_settings
        if guard is not None and guard.recalibrates:
            raise OptionError(
                f"--recalibrate changes the cascade that {option} makes a promise about: leave one of them out"
            )
        if options.policy == DimecGuarded.name and Tier.CLOUD in options.quantize:
            raise OptionError(
                f"--quantize with the cloud: {options.policy} answers its audits and its last rung there, and {option} "
                "makes a promise against the cloud in float32; quantise mobile and edge alone"
            )
        if options.price is not None:
            raise OptionError(
                f"--price {options.price:g}: {option} finds the price itself; give one of them"
            )

    def of(
        self,
        calibration: Calibration,
        cuts: Sequence[Cut],
        *,
        certifying: Certifying | None = None,
        n_labelled: int | None = None,
        progress: Progress,
    ) -> tuple[Policy, Promise, Calibration]:
        """Return the cascade that `plan` offers, fitted on the rows that choose, and at which price and cut that was.

        Under a guard every rung is a cascade that keeps the promise, or all-cloud: it holds whichever is played. What
        is normal and allowed on a stream is what the certifying half had: rows that fitted none of them.

        Raises:
            OptionError: If nothing can be promised.
        """
        ladder = build_ladder(
            calibration,
            cuts=cuts,
            cloud_predictions=self.cloud_predictions,
            certifying=certifying,
            n_labelled=n_labelled,
            progress=progress,
        )
        certified, points = self._certified(ladder)
        rung = certified[-1]
        promise = Promise(
            max_drop_points=points,
            assurance=self.assurance.level,
            over=self.assurance.over,
            rows=rung.outcomes.n,
            drop_points=100 * rung.outcomes.drop,
        )
        depths = next(cut for cut in cuts if cut[DimecCascade.method] == rung.policy.depths)
        calibration = replace(calibration, price=rung.price, depths=depths)
        policy: Policy = rung.policy
        if self.options.policy == DimecGuarded.name:
            policy = _guarded(ladder, certified, calibration)
        return policy, promise, calibration

    def _certified(self, ladder: Ladder) -> tuple[Sequence[Rung], float]:
        """Return the cascades that keep the promise together, the offered one last, and the points promised of each."""
        budget, max_drop = self.options.budget, self.options.max_drop
        short_of = (
            f"no cascade can be promised with {100 * self.assurance.level:g} % assurance by "
            f"{len(ladder.cloud_right):,} certifying rows"
        )
        if budget is not None:
            rung = ladder.affordable(budget)
            points = rung.bound_points(self.assurance)
            if points >= 100:
                raise OptionError(f"--budget {budget:g}: {short_of}: fit on more data")
            return (rung,), points
        certified = ladder.certified(max_drop, self.assurance)
        if not certified:
            lack = ladder.shortage(max_drop, self.assurance)
            help = "more of them would not help"
            if lack.rows_expected is not None:
                help = f"about {lack.rows_expected:,} would do, some {lack.labelled_expected:,} labelled rows in all"
            raise OptionError(
                f"--max-drop {max_drop:g}: {short_of} ({help}); with these, "
                f"{lack.promisable_points:.2f} points can be promised: allow more, fit on more data, or give further "
                "rows with --certify"
            )
        return certified, max_drop


def _guarded(ladder: Ladder, certified: Sequence[Rung], calibration: Calibration) -> DimecGuarded:
    """Put the last certified cascade under a guard; its safer rungs are those nearest to the guard's prices.

    A device has one cut, so they are looked for among those of this one's.
    """
    here = [rung for rung in certified if rung.policy.depths == certified[-1].policy.depths]
    wanted = [share * calibration.price for share in calibration.guard.ladder]
    safer = [min(here, key=lambda rung: abs(rung.price - each)) for each in wanted]
    rungs = dict.fromkeys([certified[-1].policy, *(rung.policy for rung in safer)])
    tables = ladder.certifying
    held_against = replace(calibration, table=tables.encoder, models=tables.models)
    return DimecGuarded.over(tuple(rungs), held_against)
