"""The data map: variability against confidence of every validation row, coloured by correctness (paper 1 §1.2, §3)."""

from __future__ import annotations

from typing import Any

import numpy as np

from dimec.core.errors import RunError
from dimec.core.extras import needs_training
from dimec.core.metrics import auc
from dimec.policies.dimec_dc import DimecDcFixed
from dimec.policies.pools import cartography, cartography_pools
from dimec.reporting.results import Column, Figure, Table
from dimec.runs.run import Run
from dimec.studies.base import Findings, Study
from dimec.studies.measures import N, notes_on
from dimec.studies.pools import POOLS
from dimec.studies.study_runs import StudyRuns

MOST = 3_000
"""Points of a map; a larger split is drawn from."""
_LONGEST = 200


def make(shop: StudyRuns) -> Findings:
    """Draw the map of each task's first seed."""
    found = Findings()
    runs, points, regions = [], [], []
    with shop.progress.stage("Study datamap", len(shop.tasks)) as advance:
        for task in shop.tasks:
            run = shop.run(task)
            runs.append(run)
            of_task, of_pools = data_map(shop, run)
            points += of_task
            regions += of_pools
            advance(1)
    found.add(
        Table(
            name="regions",
            title="What the regions of the map hold",
            about="Pools at the thresholds that the search chose. The accuracies are of the exits of the kept epoch, "
            "on the same validation rows.",
            columns=(
                Column(name="pool", title="pool", quantity="text"),
                Column(name="share", title="share", quantity="share"),
                Column(name="confidence", title="mean confidence", quantity="score"),
                Column(name="variability", title="mean variability", quantity="number"),
                Column(name="mobile", title="mobile right", quantity="score"),
                Column(name="edge", title="edge right", quantity="score"),
                Column(name="cloud", title="cloud right", quantity="score"),
                Column(
                    name="length_auc",
                    title="AUC of length",
                    quantity="score",
                    about="How well a text's length tells this pool from the rest; 50 is chance.",
                ),
                N,
            ),
            group="task",
            source="paper 1 §1.2, §1.3",
        ),
        regions,
    )
    for task in shop.tasks:
        found.add(
            Table(name=f"map-{task}", title=f"The data map of {task}"),
            [row for row in points if row["task"] == task],
            Figure(
                name=f"map-{task}",
                title=f"Data map of {task}",
                about="A point for each validation row: how its true label's probability varies over the epochs, and "
                "its mean; the hue is the number of epochs in which the mobile exit was right. Easy rows lie top left, "
                "hard ones bottom left, those that waver to the right.",
                table=f"map-{task}",
                kind="points",
                x="variability",
                y="confidence",
                color="correctness",
                x_title="variability (standard deviation over epochs)",
                y_title="confidence (mean probability of the true label)",
                y_quantity="number",
                color_title="epochs right",
                hover=("text", "label", "confidence", "variability", "correctness", "pool"),
                source="paper 1 §1.2",
            ),
        )
    found.notes.append(
        f"At most {MOST:,} rows of a map, drawn by seed 0. The map holds the samples' texts, where the run kept them: "
        "it is as private as they are."
    )
    found.notes += notes_on(runs)
    return found


def data_map(shop: StudyRuns, run: Run) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the points of a run's map, and what its pools hold."""
    table = run.validation
    calibration = shop.testbed(run).calibration(shop.options.price)
    depths = calibration.depths["dc"]
    alpha, beta = DimecDcFixed.search_in(calibration).point
    samples = cartography(table, layer=depths.mobile)
    pools = cartography_pools(samples, alpha=alpha, beta=beta)
    texts = _texts(run)
    epochs = table.dynamics.correct.shape[1] if table.dynamics is not None else 0
    drawn = np.sort(np.random.default_rng(0).permutation(len(table))[:MOST])
    points = [
        {
            "task": run.config.task.name,
            "text": texts[row] if texts else f"row {table.row_ids[row]}",
            "label": table.label_names[table.labels[row]],
            "confidence": round(float(samples.confidence[row]), 5),
            "variability": round(float(samples.variability[row]), 5),
            "correctness": f"{samples.correctness[row]} of {epochs}",
            "pool": POOLS[pools[row]],
        }
        for row in sorted(drawn.tolist(), key=lambda row: -samples.correctness[row])
    ]
    regions = []
    for place, pool in enumerate(POOLS):
        inside = pools == place
        if not inside.any():
            continue
        right = {
            str(tier): float(table.right[inside, table.exit(layer)].mean())
            for tier, layer in (
                ("mobile", depths.mobile),
                ("edge", depths.edge),
                ("cloud", depths.cloud),
            )
        }
        regions.append(
            {
                "task": run.config.task.name,
                "pool": pool,
                "share": float(inside.mean()),
                "confidence": float(samples.confidence[inside].mean()),
                "variability": float(samples.variability[inside].mean()),
                **right,
                "length_auc": auc(table.n_tokens.astype(float), inside),
                "n": int(inside.sum()),
            }
        )
    return points, regions


def _texts(run: Run) -> list[str]:
    """Return the validation rows' texts, cut to what fits a hint; none where the run kept none."""
    if not (run.folder / "texts.parquet").exists():
        return []
    with needs_training():
        from dimec.training.texts import split_texts
    try:
        kept = split_texts(run, "validation")
    except RunError:
        return []
    second = kept.second or [""] * len(kept.first)
    whole = (
        f"{first} | {other}" if other else first
        for first, other in zip(kept.first, second, strict=True)
    )
    return [text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…" for text in whole]


STUDY = Study(
    name="datamap",
    title="The data map",
    about="Where do a task's samples lie by their training dynamics at the mobile exit, and what do the three regions "
    "of the map hold?",
    source="paper 1 §1.2, §3",
    tasks=("sst2", "cola", "mrpc"),
    make=make,
)
