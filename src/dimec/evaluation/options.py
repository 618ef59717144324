"""The options of an evaluation, and those that plans and exports share with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, InstanceOf, model_validator

from dimec.core.errors import OptionError
from dimec.core.guard_settings import GUARDED, GuardSettings
from dimec.core.options import (
    AUTO_ENGINE,
    DATA,
    DataSource,
    EngineChoice,
    LabelledColumns,
    Options,
    PathText,
    Spread,
    flags_of,
    option,
    parts,
)
from dimec.core.tiers import Tier
from dimec.costs.model import DEFAULT_PRICE, CostModel
from dimec.costs.pricing import Unit
from dimec.costs.profiles import READY, CostProfile

SHUFFLES = 5
"""Over how many orders of the samples results of bandits are averaged."""
DIAL = "Accuracy"
DEFAULT_DROP = 0.5
"""The points under all-cloud that may be lost where the user says nothing."""
_TIERS = tuple(Tier)
COSTS, TIERS, GUARD, STATISTICS = "Costs", "Tiers", f"Guard of {GUARDED}", "Statistics"
MODELS = "Other models on tiers"

_of_costs, _of_tiers, _of_guard, _of_statistics, _of_dial, _of_models = (
    partial(option, group=each) for each in (COSTS, TIERS, GUARD, STATISTICS, DIAL, MODELS)
)
_model = partial(_of_models, metavar="MODEL", cli=str)
Model = PathText | Callable[[Sequence[Any]], Any] | None
PRICES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0)
"""What a frontier tries by default: from ignoring cost to a full model worth all of a confidence."""

PRICE_HELP = "How much accuracy you would give up to save compute; 0 ignores cost."
_USUAL_GUARD = GuardSettings()


def policy_names() -> list[str]:
    """Return the names of all policies, and ``all``; for a shell, so they are loaded only when it asks."""
    from dimec.policies import POLICIES

    return [*POLICIES, "all"]


_policies = partial(
    option, flag="--policy", basic=True, metavar="NAME", cli=list[str], known=policy_names
)

_PRICES_OF_COSTS = tuple(
    field.name
    for field in fields(CostModel)
    if not field.name.endswith("_work") and field.name != "held_against"
)


def _read_costs(value: object) -> object:
    """Read NAME=NUMBER pairs over the papers' prices."""
    if not isinstance(value, list):
        return value
    values: dict[str, Any] = {}
    for change in value:
        name, _, number = str(change).partition("=")
        try:
            values[name] = float(number)
        except ValueError:
            name = ""
        if name not in _PRICES_OF_COSTS:
            raise OptionError(
                f"--cost {change}: it must be NAME=NUMBER with one of the names "
                f"{', '.join(_PRICES_OF_COSTS)}"
            )
    return CostModel(**values) if values else None


def _write_costs(costs: CostModel) -> list[str]:
    usual = CostModel()
    return [
        f"{name}={getattr(costs, name):g}"
        for name in _PRICES_OF_COSTS
        if getattr(costs, name) != getattr(usual, name)
    ]


class CostOptions(Options):
    """What everything costs."""

    costs: Annotated[InstanceOf[CostModel] | None, BeforeValidator(_read_costs)] = _of_costs(
        None,
        f"Change a price of the papers' cost model, such as to_cloud=6; names: {', '.join(_PRICES_OF_COSTS)}.",
        flag="--cost",
        metavar="NAME=λ",
        cli=list[str],
        words=_write_costs,
    )
    profile: PathText | InstanceOf[CostProfile] | None = _of_costs(
        None,
        f"Hardware and links that say what everything costs: {', '.join(READY)}, or a file of your own.",
        basic=True,
        metavar="NAME|FILE",
        cli=str,
    )
    unit: Unit = _of_costs(
        "lambda",
        "What costs are reported in. Other than in lambda (λ, one edge layer on one text), policies are fitted by the "
        "profile's prices in this unit.",
        basic=True,
    )


class ModelOptions(Options):
    """Models of others on the tiers."""

    cloud_model: Model = _model(
        None,
        "Another model in the cloud, such as a language model, which answers what the encoder leaves undecided: "
        "chat:URL#MODEL (OpenAI's chat completions; the key is read from OPENAI_API_KEY), tei:URL "
        "(text-embeddings-inference), oip:URL#MODEL (Open Inference Protocol), table:FILE (answers that were logged), "
        "run:FOLDER, hf:FOLDER|NAME (a sequence classifier), bundle:FOLDER#TIER, static:FOLDER (model2vec). Costs are "
        "then money, or calls.",
        shown_default="the whole encoder",
    )
    edge_model: Model = _model(
        None, "Another model on the edge, given likewise.", shown_default="the encoder"
    )
    mobile_model: Model = _model(
        None,
        "Another model on the device: run:, hf:, bundle:, static: or table:.",
        shown_default="the encoder",
    )
    prompt: PathText | None = _of_models(
        None,
        "A file with the prompt of a chat: its fields are {text}, {text2}, {classes} and {examples}.",
        metavar="FILE",
        shown_default="asks for the name of a class",
    )
    shots: int = _of_models(
        0, "Training rows of each class that a chat sees as {examples}.", ge=0, le=100
    )
    map: tuple[str, ...] = _of_models(
        (),
        "A class of the model, and the run's class that it means; may be repeated.",
        metavar="OLD=NEW",
        cli=list[str],
    )
    model_price: str | None = _of_models(
        None,
        "What the model costs: dollars a million tokens, in and out, such as 0.15/0.6, or dollars a call, such as "
        "0.0002.",
        metavar="IN/OUT|CALL",
        shown_default="by --price-list; else calls are counted",
    )
    price_list: PathText | None = _of_models(
        None,
        "A file with prices of models, dollars a million tokens, which count before those that come with dimec.",
        metavar="FILE",
        shown_default="none",
    )
    max_spend: float | None = _of_models(
        None,
        "Dollars that the command may spend; it stops there, and goes on when it is given again.",
        metavar="DOLLARS",
        gt=0,
    )
    ask_rows: int | None = _of_models(
        None,
        "Ask about so many rows of each split, drawn at random.",
        metavar="N",
        shown_default="all",
        ge=30,
    )
    at_once: int = _of_models(8, "Questions that are open at a time.", ge=1, le=256)

    @model_validator(mode="after")
    def _has_a_model(self) -> Self:
        about = set(ModelOptions.model_fields) - {f"{tier}_model" for tier in _TIERS}
        if self.has_models:
            return self
        for name in sorted(about & self.model_fields_set):
            flag, _ = flags_of(type(self), name)
            raise ValueError(
                f"{flag} is for another model on a tier: give --cloud-model or --edge-model too, or leave it out"
            )
        return self

    @property
    def has_models(self) -> bool:
        """Whether some tier holds a model of others."""
        return any(self.model_of(tier) is not None for tier in _TIERS)

    def model_of(self, tier: Tier) -> Any:  # noqa: ANN401  what a user gives
        """Return what a tier is to hold; None for the encoder."""
        return getattr(self, f"{tier}_model")


class DialOptions(Options):
    """What accuracy may be given up."""

    max_drop: float = _of_dial(
        DEFAULT_DROP,
        "Points of the task's score that may be lost against sending everything to the cloud.",
        basic=True,
        metavar="POINTS",
        ge=0,
        lt=100,
        allow_inf_nan=False,
    )

    like: PathText | None = _of_dial(
        None,
        "Texts like those to come, without labels, a table or one a line: validation rows that look like them count "
        "more where the recommendation is chosen.",
        metavar="FILE",
    )

    @model_validator(mode="after")
    def _finds_the_price(self) -> Self:
        for name in ("max_drop", "like"):
            if name in self.model_fields_set and getattr(self, "price", None) is not None:
                flag = f"--{name.replace('_', '-')}"
                raise ValueError(
                    f"{flag} is for a choice that finds the price itself: leave out --price, or {flag}"
                )
        return self


class DepthOptions(Options):
    """Where the encoder is cut."""

    mobile_layers: int | None = _of_tiers(
        None, "The last layer on the device.", shown_default="the run's"
    )
    edge_layers: int | None = _of_tiers(
        None, "The last layer on the edge.", shown_default="the run's"
    )


class CutOptions(DepthOptions):
    """Among which cuts one may be chosen."""

    cuts: str | None = _of_tiers(
        None,
        "Cuts to compare, such as 2/3,3/4 for two or three layers on the device and three or four on the edge; "
        "validation chooses the best. all compares every pair; 6/6 of 6 layers puts the whole encoder on the device.",
        metavar="M/E,…|all",
        shown_default="one more layer on the edge than on the device, and all on the device",
    )


class GuardOptions(Options):
    """How closely dimec-guarded watches itself."""

    audit_rate: float | None = _of_guard(
        None,
        "Share of the texts that the cloud also answers, to check the policy.",
        metavar="SHARE",
        shown_default=f"{_USUAL_GUARD.audit_rate:g}",
    )
    slack: float | None = _of_guard(
        None,
        "How many points more of the answers than on validation may differ from the cloud's.",
        metavar="POINTS",
        shown_default=f"{100 * _USUAL_GUARD.slack:g}",
    )
    recalibrate: bool = _of_guard(False, "Let audits lower confidences that turn out too high.")

    guard: InstanceOf[GuardSettings] | None = option(
        None, "All settings of the guard, of which the options above change some.", hidden=True
    )

    @property
    def guard_settings(self) -> GuardSettings | None:
        """The settings; None where none is given.

        Raises:
            OptionError: If a number is not allowed.
        """
        changes: dict[str, Any] = {}
        if self.audit_rate is not None:
            changes["audit_rate"] = self.audit_rate
        if self.slack is not None:
            changes["slack"] = self.slack / 100
        if self.recalibrate:
            changes["recalibrates"] = True
        return replace(self.guard or _USUAL_GUARD, **changes) if changes else self.guard


class SetupOptions(GuardOptions, DepthOptions, ModelOptions, CostOptions, LabelledColumns):
    """What an evaluation is about, at whatever price."""

    data: DataSource | None = option(
        None,
        "A labelled file or folder to evaluate on.",
        group=DATA,
        basic=True,
        metavar="FILE",
        shown_default="the run's test split",
    )
    policies: tuple[str, ...] = _policies(
        (), "A policy, or all; may be repeated.", shown_default="all"
    )
    spread: Spread = _of_statistics(
        "deviation",
        "What the threshold β of data cartography bounds: the standard deviation or the variance of confidences.",
    )
    shuffles: int = _of_statistics(
        SHUFFLES, "Orders of the samples that results of bandits are averaged over."
    )
    seed: int = _of_statistics(0, "Seed of random routing, shuffles and intervals.", ge=0)


class EvaluateOptions(DialOptions, CutOptions, SetupOptions):
    """What a user chooses for an evaluation."""

    policies: tuple[str, ...] = _policies(
        (),
        "A policy to show beside the recommendation, or all; may be repeated.",
        shown_default="none",
    )
    every_policy: bool = option(
        False, "Show every policy with every control.", flag="--all", basic=True
    )
    price: float | None = _of_costs(
        None,
        f"{PRICE_HELP} For the policies that are shown; with it nothing is recommended. A bundle has its own.",
        shown_default=f"{DEFAULT_PRICE:g}",
        ge=0,
        allow_inf_nan=False,
    )
    engine: EngineChoice | None = _of_tiers(
        None, f"What runs the graphs of a bundle: auto is {AUTO_ENGINE}.", shown_default="auto"
    )


class FrontierOptions(DialOptions, SetupOptions):
    """What a user chooses for a frontier."""

    prices: Annotated[tuple[float, ...], BeforeValidator(parts)] = _of_costs(
        PRICES,
        "Prices to fit and replay at, with commas: how much accuracy you would give up to save compute.",
        basic=True,
        metavar="P,P,…",
        cli=str,
    )
