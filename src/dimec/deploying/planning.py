"""What a run can promise, and at what cost: the cheapest certified cascade within each tolerance or for a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from dimec.core.errors import OptionError
from dimec.core.progress import SILENT, Progress
from dimec.core.tabular import Tabular
from dimec.core.tiers import Step, Tier
from dimec.core.untrusted import Record
from dimec.costs.billing import Billing, fitting_costs
from dimec.costs.pricing import MONEY, Load, Unit
from dimec.deploying.ladder import Ladder, Rung, Shortage, build_ladder, run_calibration
from dimec.deploying.options import PlanOptions
from dimec.deploying.promise import DEFAULT_ASSURANCE, Assurance
from dimec.evaluation.cuts import Cut
from dimec.evaluation.meter import Meter, Spent
from dimec.evaluation.recommendation import answered_by
from dimec.evaluation.results import TierShares
from dimec.evaluation.tier_models import TierModel, with_models
from dimec.runs.run import Run

MENU = (0.0, 0.25, 0.5, 1.0, 2.0, 3.0)
"""The tolerances of a whole menu, in points."""


class Stop(Record):
    """A cascade whose test failed: those cheaper than it are not tested.

    Attributes:
        bound_points: What is not exceeded, with the plan's assurance, by this cascade taken alone.
    """

    price: float
    bound_points: float


class Capacity(Record):
    """What a rate of texts keeps busy by the profile, each text computed by itself; the mean, without reserves.

    Attributes:
        mobile, edge, cloud: Seconds of computing a second: busy cores, if the profile is of one core.
        edge_requests_s, cloud_requests_s: Requests a second.
        edge_mbit_s, cloud_mbit_s: What the devices send, in 10^6 bits a second.
        money_hour: What is paid to others in an hour, in the profile's currency.
    """

    mobile: float
    edge: float
    cloud: float
    edge_requests_s: float
    cloud_requests_s: float
    edge_mbit_s: float
    cloud_mbit_s: float
    money_hour: float


class Offer(Record):
    """The cheapest that can be promised within a tolerance; costs, shares and drop are those of the certifying rows.

    Attributes:
        max_drop_points: What is promised: the accuracy lies at most so many points under all-cloud's.
        policy: Which; all-cloud where no cascade can be promised.
        cost: Mean cost, in the plan's unit.
        cost_vs_cloud: cost / cost of all-cloud.
        latency_ms: How long the device waits for an answer, in the mean over these texts, by the plan's profile.
        exit_zero_share: How many were answered before the first layer; part of the mobile share.
        drop_points: What was lost against all-cloud on these rows.
        bound_points: What is not exceeded, with the plan's assurance, by this cascade taken alone.
        stopped: At which cascade the tests stopped, by its price and by its bound; None where none failed.
        capacity: What the plan's rate takes; None without one.
    """

    max_drop_points: float
    policy: Literal["dimec-cascade", "all-cloud"]
    price: float | None
    mobile_layers: int | None = None
    edge_layers: int | None = None
    cost: float
    cost_vs_cloud: float
    latency_ms: float
    shares: TierShares
    exit_zero_share: float
    drop_points: float
    bound_points: float
    shortage: Shortage | None = None
    stopped: Stop | None = None
    capacity: Capacity | None = None


class Plan(Tabular):
    """What a run can promise. Each offer's promise stands alone: they do not hold all at once with this assurance.

    Attributes:
        over: On how many texts to come it is counted; None for the long run.
        n_cuts: How many cuts were compared, by the choosing half.
        n_choosing: Validation rows that fitted and ordered the cascades.
        n_certifying: Rows that tested them and nothing else: of validation, or those that were given.
        certified_on: Where the rows come from that were given to certify; None for validation.
        cloud_accuracy: All-cloud's accuracy on the certifying rows.
        cloud_cost: In the plan's unit.
        unit: What costs are in: lambda, or a unit of the profile, for a text of the mean length.
        latency_profile: Name of the profile that latencies are estimated by: this one, or else the default.
        offers: One per tolerance; with a budget, one.
        rate: How many texts a second the capacities are for.
        cloud_capacity: What they take where the cloud answers all.
    """

    rows_in: ClassVar[str] = "offers"
    shown_columns: ClassVar[Sequence[str]] = (
        *("max_drop_points", "policy", "cost", "cost_vs_cloud", "latency_ms"),
        *("shares_mobile", "shares_edge", "shares_cloud", "drop_points", "bound_points"),
    )

    task: str
    assurance: float
    over: int | None = None
    n_cuts: int = 1
    n_choosing: int
    n_certifying: int
    certified_on: str | None = None
    cloud_accuracy: float
    cloud_cost: float
    budget: float | None = None
    unit: Unit = "lambda"
    profile: str | None = None
    currency: str | None = None
    latency_profile: str
    offers: tuple[Offer, ...]
    rate: float | None = None
    cloud_capacity: Capacity | None = None

    def headline(self) -> str:
        """Say what can be promised at what share of the cloud's cost."""
        offered = ", ".join(
            f"{each.max_drop_points:g} points at {100 * each.cost_vs_cloud:.0f} %"
            for each in self.offers
        )
        return (
            f"{self.task}: with {100 * self.assurance:.0f} % assurance, by {self.n_certifying:,} rows, at most "
            f"{offered} of the cloud's cost"
        )


def plan(run: Run, options: PlanOptions, *, progress: Progress = SILENT) -> Plan:
    """Say what accuracy a run can promise against all-cloud, and at what cost.

    Raises:
        RunError: If its model is too small for three tiers.
        OptionError: If a number is not allowed, both a drop and a budget are given, nothing is so cheap, the
            profile cannot be used, or rows of ``data`` trained the run or chose in it.
        DataError: If ``data`` cannot be used.
    """
    asked = options.max_drop
    max_drops = MENU if asked is None else asked if isinstance(asked, tuple) else (asked,)
    assurance = Assurance(options.assurance, options.over)
    billing = Billing.of(options.profile, options.unit, costs=options.costs)
    models: Mapping[Tier, TierModel] = {}
    if options.has_models:
        if options.data is not None:
            raise OptionError(
                "--data has rows that the other models on tiers were not asked about: leave it out, or them"
            )
        # It loads an HTTP client, which a plan of the run alone does without.
        from dimec.evaluation.other_models import line_up

        found = line_up(run, options, billing, table=None, progress=progress)
        run, models, billing = found.run, found.models, found.billing
    costs = fitting_costs(billing, options.costs, run.validation)
    compared: Sequence[Cut] = run.cuts(
        options.cuts, mobile_layers=options.mobile_layers, edge_layers=options.edge_layers
    )
    calibration, compared = with_models(run_calibration(run, costs=costs), compared, models)
    certifying, source = None, None
    if options.data is not None:
        # It loads torch, which a plan by validation does without.
        from dimec.deploying.certifying import read_certifying

        rows, certifying = read_certifying(
            run, options.data, columns=options, option="--data", progress=progress
        )
        source = rows.source
    ladder = build_ladder(
        calibration,
        cuts=compared,
        certifying=certifying,
        n_labelled=run.n_labelled,
        progress=progress,
    )
    made = make_plan(
        ladder,
        task=run.config.task.name,
        max_drops=max_drops,
        assurance=assurance,
        budget=options.budget,
        billing=billing,
        rate=options.rate,
    )
    return made.model_copy(update={"certified_on": source})


def make_plan(
    ladder: Ladder,
    *,
    task: str,
    max_drops: Sequence[float] = MENU,
    assurance: Assurance = DEFAULT_ASSURANCE,
    budget: float | None = None,
    billing: Billing | None = None,
    rate: float | None = None,
) -> Plan:
    """Say what can be promised, and at what cost.

    Args:
        max_drops: The tolerances, in points.
        budget: The share of all-cloud's cost that may be spent, instead of tolerances: the answer is the smallest
            drop that can be promised for it.
        rate: Texts a second, whose capacity is told.

    Raises:
        OptionError: If the budget is not allowed, or nothing is so cheap.
    """
    timing = Billing.of_latency(billing)
    meter = Meter.of(timing, ladder.certifying, costs=ladder.costs)
    cloud = [Step(Tier.CLOUD, ladder.certifying.encoder.n_layers)]
    teller = _Teller(ladder, assurance, meter, rate, cloud)
    return Plan(
        task=task,
        assurance=assurance.level,
        over=assurance.over,
        n_cuts=ladder.n_cuts,
        n_choosing=ladder.n_choosing,
        n_certifying=len(ladder.cloud_right),
        cloud_accuracy=float(ladder.cloud_right.mean()),
        cloud_cost=ladder.cloud_cost,
        budget=budget,
        unit="lambda" if billing is None else billing.unit,
        profile=None if billing is None else billing.profile.name,
        currency=None if billing is None else billing.profile.money.currency,
        latency_profile=timing.profile.name,
        offers=tuple(map(teller.offer, max_drops)) if budget is None else (teller.within(budget),),
        rate=rate,
        cloud_capacity=teller.of_cloud(),
    )


@dataclass(frozen=True, eq=False)
class _Teller:
    """Tells offers of a ladder."""

    ladder: Ladder
    assurance: Assurance
    meter: Meter
    rate: float | None
    cloud: Sequence[Step]

    def of_cloud(self) -> Capacity | None:
        """Tell what the rate takes where the cloud answers all."""
        spent = self.meter.steps(self.cloud)
        return self._capacity(lambda: self.meter.loads_of(self.cloud), spent)

    def _capacity(self, loads: Callable[[], Mapping[Tier, Load]], spent: Spent) -> Capacity | None:
        rate = self.rate
        if rate is None:
            return None
        assert spent.measured is not None
        found = loads()
        edge, cloud = found[Tier.EDGE], found[Tier.CLOUD]
        return Capacity(
            mobile=rate * found[Tier.MOBILE].computing_ms / 1000,
            edge=rate * edge.computing_ms / 1000,
            cloud=rate * cloud.computing_ms / 1000,
            edge_requests_s=rate * edge.asked,
            cloud_requests_s=rate * cloud.asked,
            edge_mbit_s=rate * edge.bytes_sent * 8e-6,
            cloud_mbit_s=rate * cloud.bytes_sent * 8e-6,
            money_hour=3600 * rate * float(spent.measured[MONEY].mean()),
        )

    def offer(self, points: float) -> Offer:
        """Tell the cheapest that can be promised within a tolerance."""
        kept = self.ladder.certified(points, self.assurance)
        if kept:
            offer = self._of_rung(kept[-1], points)
        else:
            offer = self._all_cloud(points, self.ladder.shortage(points, self.assurance))
        if len(kept) == len(self.ladder.rungs):
            return offer
        failed = self.ladder.rungs[len(kept)]
        stop = Stop(price=failed.price, bound_points=failed.bound_points(self.assurance))
        return offer.model_copy(update={"stopped": stop})

    def within(self, budget: float) -> Offer:
        """Tell the dearest cascade that the budget allows: one test, its bound is the promise."""
        if 1 <= budget < math.inf:
            return self._all_cloud(0.0, None)
        rung = self.ladder.affordable(budget)
        return self._of_rung(rung, rung.bound_points(self.assurance))

    def _of_rung(self, rung: Rung, points: float) -> Offer:
        shares, by_words = answered_by(rung.played)
        cost = float(rung.played.costs.mean())
        spent = self.meter.replay(rung.policy, rung.played)
        return Offer(
            max_drop_points=points,
            policy="dimec-cascade",
            price=rung.price,
            mobile_layers=rung.policy.depths.mobile,
            edge_layers=rung.policy.depths.edge,
            cost=cost,
            cost_vs_cloud=cost / self.ladder.cloud_cost,
            latency_ms=spent.cost,
            shares=shares,
            exit_zero_share=by_words,
            drop_points=100 * rung.outcomes.drop,
            bound_points=rung.bound_points(self.assurance),
            capacity=self._capacity(lambda: self.meter.loads(rung.policy, rung.played), spent),
        )

    def _all_cloud(self, points: float, shortage: Shortage | None) -> Offer:
        return Offer(
            max_drop_points=points,
            policy="all-cloud",
            price=None,
            cost=self.ladder.cloud_cost,
            cost_vs_cloud=1.0,
            latency_ms=self.meter.steps(self.cloud).cost,
            shares=TierShares(mobile=0.0, edge=0.0, cloud=1.0),
            exit_zero_share=0.0,
            drop_points=0.0,
            bound_points=0.0,
            shortage=shortage,
            capacity=self.of_cloud(),
        )
