"""``dimec evaluate``: route a split with every policy and print it beside the honest controls."""

from __future__ import annotations

from typing import Annotated

import typer

from dimec import api
from dimec.cli import testbed
from dimec.cli.console import ConsoleProgress, out, say_json
from dimec.cli.options import (
    AsJson,
    Engine,
    LabelColumn,
    PairColumn,
    SkipEmpty,
    SkipUnlabelled,
    TextColumn,
)
from dimec.cli.table import print_evaluation
from dimec.costs.model import DEFAULT_PRICE


def evaluate(
    folder: testbed.RunOrBundle,
    data: testbed.Data = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    skip_empty: SkipEmpty = False,
    skip_unlabelled: SkipUnlabelled = False,
    policy: testbed.PolicyNames = None,
    price: Annotated[
        float | None,
        typer.Option(
            help="What the full model on the device costs in units of confidence. A bundle has its own.",
            show_default=f"{DEFAULT_PRICE:g}",
            rich_help_panel=testbed.COSTS_PANEL,
        ),
    ] = None,
    cost: testbed.Cost = None,
    profile: testbed.ProfileName = None,
    unit: testbed.CostUnit = testbed.UnitName.lambda_,
    spread: testbed.Spread = testbed.SpreadName.deviation,
    mobile_layers: testbed.MobileLayers = None,
    edge_layers: testbed.EdgeLayers = None,
    mobile_model: testbed.MobileModel = None,
    edge_model: testbed.EdgeModel = None,
    engine: Annotated[
        Engine | None,
        typer.Option(
            help="What runs a bundle's graphs.",
            show_default="onnxruntime",
            rich_help_panel=testbed.TIERS_PANEL,
        ),
    ] = None,
    audit_rate: testbed.AuditRate = None,
    slack: testbed.Slack = None,
    recalibrate: testbed.Recalibrate = False,
    shuffles: testbed.Shuffles = testbed.DEFAULT_SHUFFLES,
    seed: testbed.Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Replay policies over the held-out split, or over a data set of yours, and set them beside the controls.

    Thresholds and pools come from the validation split alone. What is printed is kept in the evaluation folder.

    A bundle is evaluated on a data set of yours, by its exported files and without torch: its policy is fitted already.

    **Example**: `dimec evaluate runs/sst2`

    **A domain shift**: `dimec evaluate runs/sst2 --data reviews.csv --policy dimec-dc-fixed --price 0.2`

    **A bundle**: `dimec evaluate bundles/sst2 --data reviews.csv`

    **In milliseconds**: `dimec evaluate runs/sst2 --profile phone-4g --unit ms`

    **Audits of every twentieth sample**: `dimec evaluate runs/sst2 --policy dimec-guarded --audit-rate 0.05 --slack 2`

    **A smaller model on the device**: `dimec evaluate runs/sst2 --mobile-model runs/sst2-mobile`
    """
    progress = ConsoleProgress()
    evaluation = api.evaluate(
        folder,
        data=data,
        text_column=text_column,
        pair_column=pair_column,
        label_column=label_column,
        skip_empty=skip_empty,
        skip_unlabelled=skip_unlabelled,
        policies=policy or (),
        costs=testbed.cost_model(cost),
        profile=profile,
        unit=unit.value,
        price=price,
        engine=None if engine is None else engine.value,
        spread=spread.value,
        mobile_layers=mobile_layers,
        edge_layers=edge_layers,
        mobile_model=mobile_model,
        edge_model=edge_model,
        guard=testbed.guard_settings(audit_rate, slack, recalibrate=recalibrate),
        shuffles=shuffles,
        seed=seed,
        progress=progress,
    )
    document = evaluation.model_dump_json(indent=2)
    if as_json:
        say_json(document)
    else:
        print_evaluation(evaluation, console=out)
    testbed.keep(document, folder, "", data=data, progress=progress)
