"""Decision rules, one per file. To add one: write its file, and add its class to `POLICIES` below."""

from collections.abc import Sequence

from dimec.core.errors import OptionError
from dimec.policies.adaee import AdaEe
from dimec.policies.base import Calibration, MissingInput, Policy, Searched, View
from dimec.policies.beem import Beem
from dimec.policies.berxit import Berxit
from dimec.policies.bottleneck import BottleFit, BottleNet, BottleNetPp
from dimec.policies.cascade import DimecCascade
from dimec.policies.cde import Cde
from dimec.policies.dee import Dee
from dimec.policies.deebert import DeeBert
from dimec.policies.dimec_dc import DimecDcAdaptive, DimecDcFixed
from dimec.policies.dimee import DimeeAdaptive, DimeeFixed
from dimec.policies.early_exit import EarlyExit
from dimec.policies.guarded import DimecGuarded
from dimec.policies.lee import Lee
from dimec.policies.neurosurgeon import Neurosurgeon
from dimec.policies.pabee import Pabee
from dimec.policies.random import Random
from dimec.policies.replay import Replay, replay
from dimec.policies.splitee import ISplitEe, SplitEe, SplitEeS
from dimec.policies.store import load_policies, save_policies
from dimec.policies.uat import Uat
from dimec.policies.uee_ucb import UeeUcb

POLICIES: dict[str, type[Policy]] = {
    policy.name: policy
    for policy in (
        DimecDcFixed,
        DimecDcAdaptive,
        DimeeFixed,
        DimeeAdaptive,
        Random,
        DeeBert,
        EarlyExit,
        Pabee,
        Berxit,
        Beem,
        Uat,
        Cde,
        AdaEe,
        SplitEe,
        SplitEeS,
        ISplitEe,
        Neurosurgeon,
        UeeUcb,
        Lee,
        Dee,
        BottleNet,
        BottleNetPp,
        BottleFit,
        DimecCascade,
        DimecGuarded,
    )
}


def named(names: Sequence[str] | None = None) -> dict[str, type[Policy]]:
    """Return the named policies, by default all of them.

    Raises:
        OptionError: If a name is unknown.
    """
    names = list(POLICIES) if names is None else names
    unknown = [name for name in names if name not in POLICIES]
    if unknown:
        raise OptionError(
            f"unknown policy {', '.join(unknown)}: choose from {', '.join(POLICIES)}, or leave --policy out for all"
        )
    return {name: POLICIES[name] for name in names}


def fit_policies(calibration: Calibration, names: Sequence[str] | None = None) -> dict[str, Policy]:
    """Fit the named policies, by default all of them, as far as the calibration lacks nothing for them.

    Raises:
        OptionError: If a name is unknown.
    """
    return {
        name: policy.fit(calibration)
        for name, policy in named(names).items()
        if policy.missing_input(calibration) is None
    }


__all__ = [
    "POLICIES",
    "Calibration",
    "MissingInput",
    "Policy",
    "Replay",
    "Searched",
    "View",
    "fit_policies",
    "load_policies",
    "named",
    "replay",
    "save_policies",
]
