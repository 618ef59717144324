"""The options of plans, exports and sites; they load neither torch nor scipy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from dimec.core.errors import OptionError
from dimec.core.guard_settings import GUARDED
from dimec.core.options import (
    DATA,
    DataSource,
    HiddenType,
    HiddenTypeOption,
    LabelledColumns,
    Options,
    option,
)
from dimec.core.tiers import TIERS, Tier
from dimec.costs.model import DEFAULT_PRICE
from dimec.evaluation.options import (
    COSTS,
    PRICE_HELP,
    CostOptions,
    CutOptions,
    DialOptions,
    GuardOptions,
    ModelOptions,
    policy_names,
)

PROMISE, DEVICE = "Promise", "Files"
_of_promise, _of_files, _of_costs, _of_data = (
    partial(option, group=each) for each in (PROMISE, DEVICE, COSTS, DATA)
)
Rate = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
Points = Annotated[float, Field(ge=0, lt=100, allow_inf_nan=False)]
USUAL_ASSURANCE = 0.95
CASCADES = ("dimec-cascade", GUARDED)
"""The policies that a drop can choose, and of which promises are made."""


class PromiseOptions(CutOptions, CostOptions, LabelledColumns):
    """What is to be promised, of which cuts and costs, and where the columns of certifying rows are."""

    text_column: str | None = _of_data(
        None, "Column of the (first) text.", shown_default="that of the fit"
    )
    label_column: str | None = _of_data(
        None, "Column of the label.", shown_default="that of the fit"
    )
    over: int | None = _of_promise(
        None,
        "Guarantee the drop measured on the next N texts instead of the long-run drop.",
        metavar="N",
    )
    budget: float | None = _of_promise(
        None,
        "The reverse question: the smallest drop that can be promised for this share of the cost of all-cloud.",
        basic=True,
        metavar="SHARE",
    )

    @model_validator(mode="after")
    def _ask_one_question(self) -> Self:
        asked = "max_drop" in self.model_fields_set and getattr(self, "max_drop", None) is not None
        if asked and self.budget is not None:
            raise ValueError("--max-drop and --budget ask for opposite things: give one of them")
        return self


class PlanOptions(ModelOptions, PromiseOptions):
    """What a user chooses for a plan."""

    max_drop: Points | tuple[Points, ...] | None = _of_promise(
        None,
        "Points of accuracy that may be lost against sending everything to the cloud, such as 0.5.",
        basic=True,
        metavar="POINTS",
        cli=float,
        shown_default="a menu",
    )
    assurance: float = _of_promise(
        USUAL_ASSURANCE,
        "Probability with which each promise holds, for data like the certifying rows.",
    )
    data: DataSource | None = _of_data(
        None,
        "Further labelled rows to certify on, which the run has never seen; all of validation chooses then.",
        metavar="FILE",
        shown_default="half of validation",
    )
    rate: Rate | None = _of_costs(
        None,
        "Texts a second: also say what cores, network and money they take, by --profile.",
        metavar="N",
    )

    @model_validator(mode="after")
    def _rate_has_a_profile(self) -> Self:
        if self.rate is not None and self.profile is None:
            raise ValueError(
                "--rate needs --profile: `dimec profile BUNDLE --costs FILE` measures this machine"
            )
        return self


def read_tiers(names: object) -> object:
    """Read which tiers are meant: names, separated by commas or in a list, or ``all``.

    Raises:
        OptionError: If a name is no tier.
    """
    if not isinstance(names, str | Sequence):
        return names
    words = names.split(",") if isinstance(names, str) else list(names)
    words = [str(word).strip() for word in words]
    if words == ["all"]:
        return TIERS
    unknown = [word for word in words if word not in set(TIERS)]
    if unknown:
        raise OptionError(
            f"--quantize {unknown[0]!r}: choose from {', '.join(TIERS)}, several with commas, or all"
        )
    return tuple(tier for tier in TIERS if tier in words)


class ExportOptions(DialOptions, GuardOptions, ModelOptions, PromiseOptions):
    """What a user chooses for an export."""

    assurance: float | None = _of_promise(
        None,
        "Promise --max-drop with this probability, such as 0.95, instead of expecting it.",
        basic=True,
        metavar="SHARE",
    )
    certify: DataSource | None = _of_data(
        None,
        "Further labelled rows to certify a promise on, which the run has never seen; all of validation chooses then.",
        metavar="FILE",
        shown_default="half of validation",
    )
    policy: str = option(
        "dimec-cascade",
        "What routes on the device; a learned bottleneck by its kind, or by its name, such as bottlefit-l2w16.",
        basic=True,
        metavar="NAME",
        known=lambda: policy_names()[:-1],
    )
    quantize: Annotated[tuple[Tier, ...], BeforeValidator(read_tiers)] = _of_files(
        (),
        "Store weights as 8-bit integers: all, or tiers such as mobile,edge. Policies are then fitted again on what "
        "the exported files answer.",
        basic=True,
        metavar="TIERS",
        cli=str,
    )
    tails: bool = _of_files(
        False,
        "Let tiers resume from hidden states that others send, as splitee and its kin need. Policies behind a learned "
        "bottleneck always do. A hidden state protects no privacy and is larger than the text.",
    )
    hidden_type: HiddenTypeOption | None = _of_files(
        None,
        "With --tails: number format in which hidden states are sent, fp16 or fp32.",
        metavar="TYPE",
        shown_default="fp16",
        cli=str,
    )
    price: float | None = _of_costs(
        None,
        f"{PRICE_HELP} Instead of --max-drop; policies other than cascades are always fitted at a price.",
        shown_default=f"found by --max-drop, for others {DEFAULT_PRICE:g}",
        ge=0,
        allow_inf_nan=False,
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if "max_drop" in self.model_fields_set and self.policy not in CASCADES:
            raise ValueError(
                f"--max-drop chooses among cascades, and --policy {self.policy} is none: leave out one of them"
            )
        if self.like is not None and self.promises:
            raise ValueError(
                f"--like {self.like}: a promise is tested on rows that all count alike, and weights that are "
                "themselves estimated would void the test: leave it out, or certify on labelled rows like those to come"
            )
        if self.like is not None and self.policy != CASCADES[0]:
            raise ValueError(
                f"--like {self.like}: only {CASCADES[0]} is fitted by weighed rows, and --policy is {self.policy}: "
                "leave out one of them"
            )
        if self.hidden_type is not None and not self.tails:
            raise ValueError(
                "--hidden-type says in which format hidden states are sent: give --tails too"
            )
        if self.certify is not None and not self.promises:
            raise ValueError(
                f"--certify {self.certify} certifies a promise: give --assurance, --over or --budget too"
            )
        return self

    @property
    def promises(self) -> bool:
        """Whether a promise is asked for, rather than an expectation."""
        return any(each is not None for each in (self.assurance, self.over, self.budget))

    @property
    def datatype(self) -> HiddenType | None:
        """What hidden states are sent as; None where none are."""
        return (self.hidden_type or "FP16") if self.tails else None


class WebOptions(Options):
    """What a user chooses for a site."""

    edge: str | None = option(
        None,
        "URL of the edge tier's server as browsers reach it; . is the server that serves the site.",
        basic=True,
        metavar="URL",
        shown_default="none",
    )
    cloud: str | None = option(
        None, "The same of the cloud tier.", basic=True, metavar="URL", shown_default="none"
    )
    title: str | None = option(
        None, "What the page calls itself.", shown_default="dimec and the task's name"
    )
    examples: Annotated[tuple[str, ...], BeforeValidator(tuple)] = option(
        (),
        "A text to try, of at most 300 characters; for pairs two with a tab between; may be repeated.",
        flag="--example",
        metavar="TEXT",
        cli=list[str],
    )
    points: Annotated[tuple[str, ...], BeforeValidator(tuple)] = option(
        (),
        "Another operating point: a bundle of the same model with another policy; may be repeated.",
        flag="--point",
        metavar="NAME=BUNDLE",
        cli=list[str],
    )
    page: Path | None = option(
        None,
        "Folder of the built page.",
        shown_default="that of dimec[web], or of a checkout after `make web`",
    )
