"""The page of a run: what to deploy, what it costs and loses, which texts it answers where, and how sure it is.

The dial chooses on validation (`dimec.evaluation.dial`); every figure but the tolerance's is of held-out rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dimec.core.metrics import bootstrap_interval, metric_words, score
from dimec.core.progress import SILENT, Progress
from dimec.core.tiers import EXIT_ZERO, TIERS, Tier
from dimec.costs.model import DEFAULT_PRICE
from dimec.evaluation.classes import class_details
from dimec.evaluation.cuts import fit_cascades
from dimec.evaluation.dial import Candidate, Choice, fit
from dimec.evaluation.recommendation import AT_COST, FULL_MODEL, Reached, basis, reached, sentence
from dimec.evaluation.results import ClassDetails, Evaluation
from dimec.evaluation.setup import EvaluationSetup
from dimec.policies import Replay, replay
from dimec.policies.betting import wilson
from dimec.policies.cascade import DimecCascade
from dimec.reporting.results import Choice as Point
from dimec.reporting.results import Result, Tunable, WhatIf
from dimec.runs.baselines import baseline_warnings
from dimec.runs.run import Run
from dimec.studies.base import Findings, write_findings
from dimec.studies.measures import ends
from dimec.studies.pools import kept_texts
from dimec.studies.study_runs import used_run
from dimec.studies.whatif import controls, reached_by, record

BINS = 10  # bins of a reliability figure, each with as many texts as the others
SHOWN = 10  # how many texts of each part are shown
LONGEST = 160  # how many characters of a text are shown
MANY_CLASSES = 20  # from more classes than this no picture of the confusions is drawn
PARTS = ("words alone", "the device's layers", "the edge", "the cloud")
"""What may answer a text, from the cheapest."""

_OWN, _CASCADES = "recommended", "cascades"
_CONTROLS = ("all-mobile", "all-edge", "all-cloud", "exit-zero")


def page_of_run(
    run: Run,
    *,
    max_drop: float,
    like: str | Path | None = None,
    out: Path,
    command: str,
    progress: Progress = SILENT,
) -> Result:
    """Find what a run's page shows, and leave it in a folder.

    Raises:
        RunError: If the run's model is too small for three tiers.
        MissingExtraError: If an install is missing.
    """
    setup = EvaluationSetup.of(run, progress=progress)
    choice = setup.choose(max_drop, like=like, progress=progress)
    evaluation = setup.evaluate(price=DEFAULT_PRICE, choice=choice, progress=progress)
    told = setup.recommend(choice, max_drop, like=like, progress=progress)
    tried = dict(_replays(setup, choice, progress))
    own = tried[choice.candidate]
    parts = _parts(own)
    found = Findings("run")
    found.add("ways", [_way(each) for each in reached(evaluation)])
    found.add("curve", _curve(setup, evaluation, choice, tried))
    found.add("shares", _shares(parts))
    details = class_details(setup.table, own.predictions, confidence=own.confidence)
    found.add("classes", _classes(details), ranked=_ranked(details))
    found.add("confusion", _confusion(details))
    bins, errors = _reliability(setup, own)
    found.add("calibration", bins, own=errors[_OWN], full=errors[FULL_MODEL])
    texts = kept_texts(run, "test", longest=LONGEST)
    found.add("answers", _answers(setup, own, parts, texts) if texts else [])
    found.note(n=f"{told.n_test:,}", n_validation=f"{told.n_validation:,}")
    if choice.care is not None:
        found.whatif.append(_whatif(setup, choice, tried, max_drop, care=choice.care))
    depths = choice.candidate.depths
    task = run.config.task.name
    return write_findings(
        found,
        out,
        title=f"{task}: {run.folder.name}",
        about=" ".join([*baseline_warnings(run), basis(told)]),
        recommendation=sentence(told),
        command=command,
        settings={
            "max_drop": max_drop,
            "policy": told.policy,
            "price": told.price,
            "cut": f"{depths.mobile}/{depths.edge}/{depths.cloud}",
        },
        runs=(used_run(run),),
    )


def _replays(
    setup: EvaluationSetup, choice: Choice, progress: Progress
) -> Iterator[tuple[Candidate, Replay]]:
    """Fit every way that was compared on all of validation, and replay it on the held-out rows."""
    calibration = replace(setup.calibration(DEFAULT_PRICE), weights=choice.weights)
    cascades = [each for each in choice.candidates if each.price is not None]
    fitted = fit_cascades(
        calibration,
        [each.cut for each in cascades],
        [each.price for each in cascades if each.price is not None],
        like=calibration.table.predictions[:, -1],
        progress=progress,
    )
    policies: dict[Candidate, DimecCascade] = dict(zip(cascades, fitted, strict=True))
    for each in choice.candidates:
        policy = policies.get(each) or fit(each, calibration)
        yield each, replay(policy, setup.table, costs=setup.costs)


def _way(each: Reached) -> dict[str, Any]:
    told = {"name": each.name, "score": each.score, **ends(each.ci95), "drop": each.drop}
    return told | {"cost": each.cost, "cost_vs_cloud": each.cost_vs_cloud}


def _curve(
    setup: EvaluationSetup,
    evaluation: Evaluation,
    choice: Choice,
    tried: Mapping[Candidate, Replay],
) -> list[dict[str, Any]]:
    """Return the cascades along their prices at the cut that was chosen, each way alone, and what was chosen."""
    metric, table = setup.run.config.task.metric, setup.table
    all_cloud = choice.candidates[-1].cost
    rows = []
    for each, played in tried.items():
        if each.price is None or each.depths != choice.candidate.depths:
            continue
        matrix = table.confusion(played.predictions)
        rng = np.random.default_rng(setup.options.seed)
        cost = float(played.costs.mean())
        rows.append(
            {
                "name": _CASCADES,
                "price": each.price,
                "score": float(score(metric, matrix)),
                **ends(bootstrap_interval(metric, matrix, rng=rng)),
                "cost": cost,
                "cost_vs_cloud": cost / all_cloud,
            }
        )
    alone = [_way(each) for each in reached(evaluation) if each.name != AT_COST]
    return [{"price": None, **row, "recommended": row["name"] == _OWN} for row in (*rows, *alone)]


def _parts(played: Replay) -> NDArray[np.int64]:
    """Return which of `PARTS` answered: [n]."""
    on_device = played.tiers == TIERS.index(Tier.MOBILE)
    words = on_device & (played.layers == EXIT_ZERO.layer)
    return np.where(words, 0, played.tiers.astype(np.int64) + 1)


def _shares(parts: NDArray[np.int64]) -> list[dict[str, Any]]:
    return [
        {"texts": "texts", "part": name, "share": float((parts == place).mean())}
        for place, name in enumerate(PARTS)
        if (parts == place).any()
    ]


def _classes(details: ClassDetails) -> list[dict[str, Any]]:
    """Return recall, precision and F1 of each class, the full model's beside those of what was chosen."""
    rows = []
    for each in details.rows:
        row: dict[str, Any] = {"label": each.name, "n": each.support}
        for whose, found in (("full", each.full_model), ("own", each.recommended)):
            row |= {f"{what}_{whose}": value for what, value in found or ()}
        rows.append(row | {"recall_change": row["recall_own"] - row["recall_full"]})
    return rows


def _ranked(details: ClassDetails) -> str:
    """Say how well confidence ranks each of two classes; nothing of more."""
    return "".join(
        f" Average precision of {each.name}: {100 * full:.1f} of the full model, {100 * own:.1f} of what is "
        "recommended."
        for each in details.rows
        if each.recommended is not None
        and (full := each.full_model.average_precision) is not None
        and (own := each.recommended.average_precision) is not None
    )


def _confusion(details: ClassDetails) -> list[dict[str, Any]]:
    """Return which share of each class's texts gets which answer; nothing where there are too many to draw."""
    names = [each.name for each in details.rows]
    counts = details.recommended_confusion
    if counts is None or len(names) > MANY_CLASSES:
        return []
    return [
        {"label": name, "answer": answer, "count": count, "share": count / max(1, sum(row))}
        for name, row in zip(names, counts, strict=True)
        for answer, count in zip(names, row, strict=True)
    ]


def _reliability(
    setup: EvaluationSetup, own: Replay
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the share of right answers by confidence in bins, and the expected calibration errors in points."""
    table = setup.table
    answers = {
        _OWN: (own.confidence, own.predictions == table.labels),
        FULL_MODEL: (table.confidence[:, -1], table.right[:, -1]),
    }
    rows: list[dict[str, Any]] = []
    errors = {}
    for name, (confidence, right) in answers.items():
        order = np.argsort(confidence, kind="stable")
        bins = [each for each in np.array_split(order, BINS) if len(each)]
        own_rows = [_bin(name, confidence[each], right[each]) for each in bins]
        gaps = [abs(row["right"] - row["confidence"]) * row["n"] for row in own_rows]
        errors[name] = f"{100 * sum(gaps) / len(table):.1f}"
        rows += own_rows
    lowest = min(row["confidence"] for row in rows)
    same: dict[str, Any] = {"name": "as sure as right", **ends(None), "n": None}
    rows += [{**same, "confidence": each, "right": each} for each in (lowest, 1.0)]
    return rows, errors


def _bin(name: str, confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> dict[str, Any]:
    """Return a bin, with the 95 % interval of Wilson (1927) about its share of right answers."""
    return {
        "name": name,
        "confidence": float(confidence.mean()),
        "right": float(right.mean()),
        **ends(wilson(int(right.sum()), len(right))),
        "n": len(right),
    }


def _answers(
    setup: EvaluationSetup, own: Replay, parts: NDArray[np.int64], texts: list[str]
) -> list[dict[str, Any]]:
    """Return drawn texts of each part: half of them wrong, where so many are."""
    table = setup.table
    right = own.predictions == table.labels
    order = np.random.default_rng(0).permutation(len(table))
    rows = []
    for place, name in enumerate(PARTS):
        here = order[parts[order] == place]
        if not len(here):
            continue
        wrong, good = here[~right[here]], here[right[here]]
        n_wrong = min(len(wrong), max(SHOWN // 2, SHOWN - len(good)))
        title = f"{name}: {len(here):,} texts, {100 * right[here].mean():.1f} % right"
        rows += [
            {
                "part": title,
                "text": texts[row],
                "label": table.label_names[table.labels[row]],
                "answer": table.label_names[own.predictions[row]],
                "right": "right" if right[row] else "wrong",
                "confidence": float(own.confidence[row]),
            }
            for row in [*wrong[:n_wrong], *good[: SHOWN - n_wrong]]
        ]
    return rows


def _whatif(
    setup: EvaluationSetup,
    choice: Choice,
    tried: Mapping[Candidate, Replay],
    max_drop: float,
    *,
    care: float,
) -> WhatIf:
    """Return the ways that were compared, for other costs and another tolerance."""
    task, table = setup.run.config.task, setup.table
    alone = controls(setup, choice.candidate.depths)
    points = []
    for each, played in tried.items():
        at = {}
        if each.price is not None:
            cut = {"device": float(each.depths.mobile), "edge": float(each.depths.edge)}
            at = {"price": each.price, **cut}
        points.append(
            Point(
                name=each.way,
                at=at,
                bound_points=each.drop + care * each.error,
                validation_use=record(each.use),
                **reached_by(setup, played),
            )
        )
    return WhatIf(
        task=task.name,
        n=len(table),
        metric=metric_words(task.metric, table.label_names),
        n_layers=table.n_layers,
        price=DEFAULT_PRICE,
        max_drop=max_drop,
        prices=record(setup.costs.prices),
        rows=(
            Tunable(name=_OWN, kind="policy", choices=tuple(points)),
            *(each for each in alone if each.name in _CONTROLS),
        ),
    )
