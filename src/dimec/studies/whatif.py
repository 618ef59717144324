"""The data of a table at other prices: every operating point of every policy, replayed once.

A cost is the product of what is used and what that costs, so a page can price these points anew without the samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dimec.core.tiers import EXIT_ZERO, TIERS, Depths, Step, Tier
from dimec.costs.model import Use as UseOf
from dimec.evaluation.controls import majority, single_exit
from dimec.evaluation.setup import EvaluationSetup
from dimec.policies import POLICIES, Calibration, Replay, Searched
from dimec.policies.replay import replay
from dimec.reporting.results import Choice, Tunable, Use, WhatIf


def whatif(setup: EvaluationSetup, *, price: float) -> WhatIf:
    """Replay every point of every policy's grid over the test rows, and the controls."""
    calibration = setup.calibration(price)
    policies = [
        _tunable(setup, calibration, policy)
        for policy in POLICIES.values()
        if issubclass(policy, Searched) and policy.missing_input(calibration) is None
    ]
    return WhatIf(
        task=setup.run.config.task.name,
        n=len(setup.table),
        metric=setup.run.config.task.metric,
        n_layers=setup.table.n_layers,
        price=price,
        prices=record(setup.costs.prices),
        rows=(*policies, *controls(setup, setup.depths["dc"])),
    )


def _tunable(setup: EvaluationSetup, calibration: Calibration, policy: type[Searched]) -> Tunable:
    search = policy.search_in(calibration)
    confidence = search.confidence.ravel()
    used = search.use.reshape(len(confidence), -1)
    choices = []
    for place, point in enumerate(search.points):
        fitted = policy.at(calibration, *point)
        choices.append(
            Choice(
                at=dict(islice(fitted.operating_point().items(), len(point))),
                validation_confidence=float(confidence[place]),
                validation_use=record(UseOf(*used[place].tolist())),
                **reached_by(setup, replay(fitted, setup.table, costs=setup.costs)),
            )
        )
    return Tunable(name=policy.name, kind="policy", choices=tuple(choices))


def reached_by(setup: EvaluationSetup, played: Replay) -> dict[str, Any]:
    """Return the fields of a `Choice` that say what a replay used, which tiers answered, and how well."""
    shares = (float((played.tiers == place).mean()) for place in range(len(TIERS)))
    return {"use": record(played.use), **_reached(setup, played.predictions, shares)}


def _reached(
    setup: EvaluationSetup, answers: NDArray[np.int64], shares: Iterable[float]
) -> dict[str, Any]:
    table, metric = setup.table, setup.run.config.task.metric
    scores = {"score": table.score(metric, answers), "accuracy": table.score("accuracy", answers)}
    return {"shares": tuple(shares), **scores}


def controls(setup: EvaluationSetup, depths: Depths) -> list[Tunable]:
    """Return each tier alone, exit zero, the full model on the device, and the most common class."""
    table, costs = setup.table, setup.costs
    steps: dict[str, Step | None]
    steps = {f"all-{tier}": Step(tier, depths.of(tier)) for tier in TIERS}
    if table.exit_zero is not None:
        steps["exit-zero"] = EXIT_ZERO
    steps["bert-on-mobile"] = Step(Tier.MOBILE, table.n_layers)
    steps["majority"] = None
    rows = []
    for name, step in steps.items():
        alone = majority(table) if step is None else single_exit(table, step, costs=costs)
        use = record(UseOf.of([step] if step else []))
        shares = (float(tier is (step.tier if step else Tier.MOBILE)) for tier in TIERS)
        reached = _reached(setup, alone.predictions, shares)
        only = Choice(at={}, validation_use=use, use=use, **reached)
        rows.append(Tunable(name=name, kind="control", choices=(only,)))
    return rows


def record(use: UseOf) -> Use:
    """Return what is used, or its prices, as the panel reads it: hidden states are not shipped there."""
    return Use(**{name: getattr(use, name) for name in Use.model_fields})
