"""What an export did to the answers: before it torch's, after it those of the exported files, on validation."""

from __future__ import annotations

from typing import Literal

from dimec.bundle.manifest import Promise
from dimec.core.metrics import Metric
from dimec.core.options import HiddenType
from dimec.core.tiers import Tier
from dimec.core.untrusted import Record
from dimec.costs.pricing import Unit
from dimec.evaluation.results import Recommendation


class TierChange(Record):
    """A tier's last exit on the validation split.

    Attributes:
        layers: How many of the encoder's layers it runs.
        score_before: By torch, in the task's metric.
        score_after: By the exported files; None where they were not run, since they compute what torch does.
        flipped: How many samples it labels otherwise than torch does; None likewise.
    """

    tier: Tier
    layers: int
    quantized: bool
    bytes: int
    score_before: float
    score_after: float | None = None
    flipped: int | None = None


class PolicyChange(Record):
    """The policy on the validation split, at its operating point.

    Attributes:
        cost: Mean cost, in lambda or in the report's currency.
    """

    operating_point: dict[str, float]
    score: float
    cost: float


class TailsReport(Record):
    """What was written for split computing.

    Attributes:
        bytes_per_token: What a token takes on the wire, behind a bottleneck before it is deflated and without a
            range; its id takes 2 to 8.
        resuming: After which layers each tier resumes.
        mobile_layers_added: The exits beyond the mobile tier's depth that the policy may split at.
        bytes_added: What their segments take on the device, and a bottleneck on device and cloud: all that is added.
    """

    datatype: HiddenType | Literal["UINT8"]
    bytes_per_token: float
    resuming: dict[Tier, tuple[int, ...]]
    mobile_layers_added: tuple[int, ...]
    bytes_added: int
    bottleneck: str | None = None


class ExportReport(Record):
    """What an export wrote.

    Attributes:
        n: Samples of the validation split.
        unit: What it was fitted in; costs here are in lambda all the same, but where a tier asks another model.
        currency: What they are in then.
        before: The policy fitted and replayed on torch's tables.
        after: Fitted again, and replayed, on tables made by the exported files; None where nothing is quantised.
        flipped: How many samples the policy then answers with another label; None likewise.
        recommendation: What the drop that was allowed chose, and what it does on the test split, by torch; None where
            a price or a promise chose.
    """

    bundle: str
    policy: str
    metric: Metric
    n: int
    price: float
    unit: Unit = "lambda"
    profile: str | None = None
    currency: str | None = None
    model_fingerprint: str
    tiers: tuple[TierChange, ...]
    before: PolicyChange
    after: PolicyChange | None = None
    flipped: int | None = None
    promise: Promise | None = None
    tails: TailsReport | None = None
    recommendation: Recommendation | None = None
