"""What `dimec evaluate` and `dimec frontier` share: which samples, costs and tiers, and where the result is kept."""

from __future__ import annotations

from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from dimec.cli.options import DATA_PANEL
from dimec.core.errors import OptionError
from dimec.core.files import write_atomically
from dimec.core.outputs import check_output_file
from dimec.core.progress import Progress
from dimec.costs.model import CostModel
from dimec.costs.profiles import READY
from dimec.evaluation.rows import SHUFFLES
from dimec.policies.guard_settings import GUARDED, GuardSettings

COSTS_PANEL = "Costs"
TIERS_PANEL = "Tiers"
GUARD_PANEL = f"Guard of {GUARDED}"
_USUAL_GUARD = GuardSettings()

COST_NAMES = tuple(
    field.name
    for field in fields(CostModel)
    if not field.name.endswith("_work") and field.name != "held_against"
)


class UnitName(StrEnum):
    """What costs are told in."""

    lambda_ = "lambda"
    ms = "ms"
    bytes = "bytes"
    joules = "joules"
    money = "money"


class SpreadName(StrEnum):
    """What beta is held against."""

    deviation = "deviation"
    variance = "variance"


RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished fit.")]
RunOrBundle = Annotated[
    Path, typer.Argument(metavar="RUN|BUNDLE", help="The folder of a finished fit, or of a bundle.")
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="A labelled file or folder instead of the test split.", rich_help_panel=DATA_PANEL
    ),
]
PolicyNames = Annotated[
    list[str] | None,
    typer.Option("--policy", help="A policy, or all; may be given several times. Default: all."),
]
Cost = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=λ",
        help=f"Change a price, such as to_cloud=6; names: {', '.join(COST_NAMES)}.",
        rich_help_panel=COSTS_PANEL,
    ),
]
ProfileName = Annotated[
    str | None,
    typer.Option(
        "--profile",
        metavar="NAME|FILE",
        help=f"Hardware and links that say what everything costs: {', '.join(READY)}, or a file of your own.",
        show_default=False,
        rich_help_panel=COSTS_PANEL,
    ),
]
CostUnit = Annotated[
    UnitName,
    typer.Option(
        "--unit",
        help="What costs are told in. Other than in lambda, policies are fitted by the profile's prices in that unit.",
        rich_help_panel=COSTS_PANEL,
    ),
]
Spread = Annotated[
    SpreadName, typer.Option(help="What β is held against in data cartography's pools.")
]
MobileLayers = Annotated[
    int | None,
    typer.Option(help="Layers on the device, instead of the run's.", rich_help_panel=TIERS_PANEL),
]
EdgeLayers = Annotated[
    int | None,
    typer.Option(help="Layers on the edge, instead of the run's.", rich_help_panel=TIERS_PANEL),
]
Cuts = Annotated[
    str | None,
    typer.Option(
        metavar="M/E,…|all",
        help="Compare cuts, such as 2/3,3/4 for two or three layers on the device and three or four on the edge: "
        "validation takes the best one.",
        show_default=False,
        rich_help_panel=TIERS_PANEL,
    ),
]
MobileModel = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="Another classifier on the device: a run, a folder in Hugging Face's layout, or a hub name. "
        "Adds rows marked +models.",
        rich_help_panel=TIERS_PANEL,
    ),
]
EdgeModel = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL", help="Another classifier on the edge.", rich_help_panel=TIERS_PANEL
    ),
]
AuditRate = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="The share of all samples that also runs in the cloud, and is answered there.",
        show_default=f"{_USUAL_GUARD.audit_rate:g}",
        rich_help_panel=GUARD_PANEL,
    ),
]
Slack = Annotated[
    float | None,
    typer.Option(
        metavar="POINTS",
        help="How many points more of the answers than on validation may differ from the cloud's.",
        show_default=f"{100 * _USUAL_GUARD.slack:g}",
        rich_help_panel=GUARD_PANEL,
    ),
]
Recalibrate = Annotated[
    bool,
    typer.Option(
        "--recalibrate",
        help="Let audits scale confidence down where it promises too much.",
        rich_help_panel=GUARD_PANEL,
    ),
]
Shuffles = Annotated[
    int, typer.Option(help="Orders of the samples over which bandits are averaged.")
]
DEFAULT_SHUFFLES = SHUFFLES
Seed = Annotated[int, typer.Option(help="Seed of random routing, shuffles and intervals.")]


def cost_model(changes: list[str] | None) -> CostModel | None:
    """Read NAME=NUMBER pairs over the papers' prices; None where there are none.

    Raises:
        OptionError: If a pair is none, or its name is unknown.
    """
    if not changes:
        return None
    values: dict[str, Any] = {}
    for change in changes:
        name, _, number = change.partition("=")
        try:
            values[name] = float(number)
        except ValueError:
            name = ""
        if name not in COST_NAMES:
            raise OptionError(
                f"--cost {change}: it must be NAME=NUMBER with one of the names {', '.join(COST_NAMES)}"
            )
    return CostModel(**values)


def guard_settings(
    audit_rate: float | None, slack: float | None, *, recalibrate: bool
) -> GuardSettings | None:
    """Read how closely a guarded cascade is to watch itself; None where nothing is said.

    Raises:
        OptionError: If a number is not allowed.
    """
    if audit_rate is None and slack is None and not recalibrate:
        return None
    return GuardSettings(
        audit_rate=_USUAL_GUARD.audit_rate if audit_rate is None else audit_rate,
        slack=_USUAL_GUARD.slack if slack is None else slack / 100,
        recalibrates=recalibrate,
    )


def keep(document: str, folder: Path, name: str, *, data: Path | None, progress: Progress) -> None:
    """Write a JSON document into a run's evaluation folder; a folder that may not be written is only warned of."""
    path = folder / "evaluation" / f"{name}{f'data-{data.stem}' if data else 'test'}.json"
    try:
        check_output_file(path, inputs={"--data": data})
        write_atomically(
            path, lambda partial: partial.write_text(document + "\n", encoding="utf-8")
        )
    except (OSError, OptionError) as exc:
        progress.warn(f"the result could not be kept in {path}: {exc}")
