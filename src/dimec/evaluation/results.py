"""What an evaluation says, as it stands in ``--json`` and in a run's ``evaluation/*.json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PlainSerializer

from dimec.core.metrics import Metric
from dimec.core.tabular import Tabular
from dimec.core.tiers import TIERS, Depths
from dimec.core.untrusted import Record
from dimec.costs.pricing import MEASURED_UNITS, Unit

Interval = tuple[float, float]
Way = Literal["dimec-cascade", "words-only", "all-mobile", "all-edge", "all-cloud"]
"""What may be recommended."""


def _layers(depths: Depths) -> dict[str, int]:
    return {str(tier): depths.of(tier) for tier in TIERS}


Layers = Annotated[Depths, PlainSerializer(_layers)]
"""The tiers' last layers, written by tier."""


class TierShares(Record):
    """The share of samples that each tier answered."""

    mobile: float
    edge: float
    cloud: float

    @classmethod
    def of(cls, shares: NDArray[np.float64]) -> Self:
        """Take them in the order of `TIERS`: [3]."""
        return cls(**dict(zip(TIERS, shares.tolist(), strict=True)))


class Learning(Record):
    """What a policy that learns to choose among arms came to, over shuffles of the stream.

    Rewards are the common one, r = C - lambda cost, so that no label is looked at. The regret is what always playing
    the best arm would have earned more on this stream, summed over the samples; negative where a policy that tells
    samples apart earns more than any arm.

    Attributes:
        reward: Mean reward a sample.
        best_arm: The arm that earns most on these samples.
        best_arm_reward: Its mean reward a sample.
        regret: Mean regret over the whole stream.
    """

    shuffles: int
    score_sd: float
    accuracy_sd: float
    cost_sd: float
    reward: float
    best_arm: str
    best_arm_reward: float
    regret: float
    regret_sd: float


class NotRun(Record):
    """A policy that could not be run, and the command that would make it run."""

    policy: str
    needs: str
    command: str


class Amount(Record):
    """A mean over the samples, and its 95 % interval: 1.96 standard errors to either side."""

    mean: float
    ci95: Interval


class Measures(Record):
    """What a row costs a sample by a profile.

    Attributes:
        ms: How long the device waits for the answer, in milliseconds.
        bytes_sent: What the device sends.
        joules: What it takes from the device's battery, on top of idling.
        money: What is paid to others, in the profile's currency.
    """

    ms: Amount
    bytes_sent: Amount
    joules: Amount
    money: Amount

    def of(self, unit: Unit) -> Amount:
        """Return the amount in a unit other than lambda."""
        return (self.ms, self.bytes_sent, self.joules, self.money)[MEASURED_UNITS.index(unit)]


class Recommendation(Record):
    """What to deploy, chosen on validation, and what it does on held-out rows.

    Attributes:
        price: What the cascade is fitted at; None for a constant way.
        undecided: Whether a cheaper way looks good enough, and validation has too few rows to tell.
        n_effective: How many rows of equal weight tell as much as these did by their weights; None without weights.
        expected_drop_points: The drop on rows like those of validation, corrected for the choice.
        n_test: The held-out rows that everything below is about.
        score: Its score there, a fraction of 1.
        test_drop_ci95: Its 95 % bootstrap interval, paired by rows.
        test_drop_like_points: The difference where these rows are weighed as those that chose were.
        cost: Mean cost, in lambda.
        cost_vs_cloud: cost / cost of all-cloud.
        exit_zero_share: How many were answered by words alone; part of the mobile share.
        latency_ms: How long the device waits for an answer, in the mean, by the profile.
        falls: The classes that pay for the drop: points of recall that each loses.
        cloud_model: What stands in the cloud in place of the whole encoder; None where nothing does.
    """

    policy: Way
    max_drop_points: float
    price: float | None
    depths: Layers
    on_device_alone: bool
    undecided: bool
    metric: Metric
    n_validation: int
    n_effective: float | None = None
    expected_drop_points: float
    expected_drop_ci95: Interval
    n_test: int
    score: float
    cloud_score: float
    test_drop_points: float
    test_drop_ci95: Interval
    test_drop_like_points: float | None = None
    test_drop_like_ci95: Interval | None = None
    cost: float
    cost_vs_cloud: float
    shares: TierShares
    exit_zero_share: float
    latency_ms: float
    cloud_latency_ms: float
    latency_profile: str
    falls: dict[str, float] = Field(default_factory=dict)
    cloud_model: str | None = None


class ClassScores(Record):
    """What answers reach on one class, fractions of 1; 0 where they would divide by zero.

    The average precision is how well confidence ranks the class above the other one; None where there are not two.
    """

    precision: float
    recall: float
    f1: float
    average_precision: float | None = None


class ClassDetail(Record):
    """One class.

    Attributes:
        support: How many of the texts are of it.
        recommended: What the recommended way reaches, or a bundle's policy; None where nothing is recommended.
    """

    name: str
    support: int
    full_model: ClassScores
    recommended: ClassScores | None


class ClassDetails(Record):
    """Every class, in the order of the codes.

    Attributes:
        full_model_confusion: Counts by true class (rows) and all-cloud's answer (columns); None for many classes.
        recommended_confusion: The same of the recommended way, where there is one.
    """

    rows: list[ClassDetail]
    full_model_confusion: list[list[int]] | None
    recommended_confusion: list[list[int]] | None


class Row(Record):
    """One policy or control. A field that means nothing for a row is None, where it is not plain why with a reason.

    Scores and accuracies are fractions of 1, costs are in the evaluation's unit.

    Attributes:
        cost_change: cost / reference - 1.
        cost_vs_cloud: cost / cost of all-cloud.
        random_at_shares: Score expected of its tiers shuffled over the samples, each tier with its last exit; of its
            exits, where it picks exits.
        random_at_shares_ci95: Where 95 % of such shuffles of these very samples land.
        random_at_cost: Score of the best random mixture of single exits at its cost.
        random_at_cost_ci95: Where 95 % of such random assignments land.
        oracle_at_cost: The largest accuracy at its cost.
        gap_closed: On accuracy, 0 at random at its cost and 1 at the oracle at its cost.
        auc_mobile_right: How well its router ranks the samples that the mobile exit gets right.
        operating_point: The thresholds that it ran at.
        shipped_bytes: Mean bytes of the compressed hidden state that it ships; None without a learned bottleneck.
        learning: Where it learns arms on the stream: the spread over shuffles, whose mean the row has, and regret.
        measured: What it costs in every unit of the profile, where there is one.
        null_because: Why a field is None where one might expect a figure.
    """

    policy: str
    kind: Literal["policy", "control"]
    score: float | None
    score_ci95: Interval | None
    accuracy: float
    accuracy_ci95: Interval
    cost: float
    cost_change: float
    cost_vs_cloud: float
    shares: TierShares | None = None
    random_at_shares: float | None = None
    random_at_shares_ci95: Interval | None = None
    random_at_cost: float | None = None
    random_at_cost_ci95: Interval | None = None
    oracle_at_cost: float | None = None
    gap_closed: float | None = None
    auc_mobile_right: float | None = None
    depths: Layers | None = None
    operating_point: dict[str, float] | None = None
    shipped_bytes: float | None = None
    learning: Learning | None = None
    measured: Measures | None = None
    null_because: dict[str, str] = Field(default_factory=dict)


class Evaluation(Tabular):
    """A table of policies and controls on one set of samples.

    Attributes:
        source: Where the samples come from, in words.
        price: What the full model on the mobile device costs in units of confidence.
        reference_cost: That model's cost, 1.00 of the papers' cost column; the full model's in the cloud in a unit in
            which the device works for nothing.
        label_mapping: Which class each label of the samples was taken for that is no class's name, such as a code.
        models: Which tiers held another model than a prefix of the encoder, in the rows marked +models.
        recommendation: What to deploy, the row ``recommended``; None where a price was given, or a bundle.
        summary: In one sentence what the policy of a bundle loses and costs; None of a run.
        classes: What the full model and the recommendation, or a bundle's policy, reach on each class.
        warnings: Where the full model is no better than answers that need no model: on validation, of a bundle on the
            samples.
    """

    shown_columns: ClassVar[Sequence[str]] = (
        *("policy", "score", "score_low", "score_high", "cost", "cost_vs_cloud"),
        *("shares_mobile", "shares_edge", "shares_cloud", "random_at_cost"),
    )

    task: str
    source: str
    n: int
    metric: Metric
    price: float
    reference_cost: float
    unit: Unit = "lambda"
    profile: str | None = None
    currency: str | None = None
    label_mapping: dict[str, str] = Field(default_factory=dict)
    models: dict[str, str] = Field(default_factory=dict)
    rows: list[Row]
    not_run: list[NotRun] = Field(default_factory=list)
    recommendation: Recommendation | None = None
    summary: str | None = None
    classes: ClassDetails | None = None
    warnings: list[str] = Field(default_factory=list)

    def headline(self) -> str:
        """Say what was evaluated, and what is recommended or what a bundle reaches."""
        said = f"{self.task}: {self.n:,} texts, {self.metric}, {len(self.rows)} rows"
        if (found := self.recommendation) is not None:
            said += (
                f"; recommended: {found.policy}, {100 * found.score:.2f} at {100 * found.cost_vs_cloud:.0f} % of the "
                f"cloud's cost, the full model {100 * found.cloud_score:.2f}"
            )
        return f"{said}; {self.summary}" if self.summary else said


class Frontier(Record):
    """Evaluations of the same policies on the same samples at several prices, ascending.

    Attributes:
        evaluations: One per price, controls included; in each the row ``recommended``, which has a price of its own.
    """

    evaluations: list[Evaluation]
    recommendation: Recommendation
