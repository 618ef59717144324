"""The unit in which costs are reported and policies fitted, and what that asks of a profile."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dimec.core.errors import OptionError
from dimec.costs.model import CostModel
from dimec.costs.pricing import UNITS, Pricer, Texts, Unit
from dimec.costs.profiles import READY, CostProfile, load_profile
from dimec.runs.exit_table import ExitTable

LATENCY_PROFILE = "phone-4g"
"""What milliseconds are estimated by where no profile is given."""


@dataclass(frozen=True)
class Billing:
    """A profile, and the unit that costs are reported in.

    Attributes:
        unit: In lambda, policies are fitted by the papers' cost model and the profile only says what they cost by it.
    """

    profile: CostProfile
    unit: Unit

    @property
    def currency(self) -> str:
        """What its costs are in, where that is money; else the unit."""
        return self.profile.money.currency if self.unit == "money" else self.unit

    @classmethod
    def of(
        cls, profile: CostProfile | str | Path | None, unit: Unit, *, costs: CostModel | None = None
    ) -> Billing | None:
        """Read what a user asks for; None where that is lambda and no profile.

        Raises:
            OptionError: If a unit other than lambda has no profile or comes with prices in lambda, or is none; or if
                there is no such profile.
        """
        if unit not in UNITS:
            raise OptionError(f"--unit {unit}: choose from {', '.join(UNITS)}")
        if profile is None:
            if unit != "lambda":
                raise OptionError(
                    f"--unit {unit} needs a profile of hardware and links: give --profile with a file or one of "
                    f"{', '.join(READY)}"
                )
            return None
        if unit != "lambda" and costs is not None:
            raise OptionError(
                f"--cost changes prices in lambda, and --unit {unit} takes all prices from the profile: leave one out, "
                "or change the profile"
            )
        return cls(profile if isinstance(profile, CostProfile) else load_profile(profile), unit)

    @classmethod
    def of_latency(cls, billing: Billing | None) -> Billing:
        """Return what milliseconds are estimated by: a user's profile, or `LATENCY_PROFILE` where there is none."""
        return cls(load_profile(LATENCY_PROFILE) if billing is None else billing.profile, "ms")

    def pricer(self, table: ExitTable, *, costs: CostModel | None = None) -> Pricer:
        """Return what prices the traces of a table; ``costs`` says what a layer of another model on a tier takes.

        Raises:
            OptionError: If the profile is of another encoder.
        """
        work = {} if costs is None else costs.work
        return Pricer(self.profile, table.embeddings.shape[1], table.n_classes, work)


def fitting_costs(billing: Billing | None, costs: CostModel | None, table: ExitTable) -> CostModel:
    """Return what policies are fitted by: the user's costs, the profile's at a table's mean length, or the papers'.

    Raises:
        OptionError: If the profile has no prices in the unit, or is of another encoder.
    """
    if billing is None or billing.unit == "lambda":
        return costs or CostModel()
    texts = Texts.of(table.n_tokens, table.payload_bytes)
    return billing.pricer(table).cost_model(billing.unit, texts)
