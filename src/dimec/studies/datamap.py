"""The data map: variability against confidence of every validation row, coloured by correctness (paper 1 §1.2, §3)."""

from __future__ import annotations

from typing import Any

import numpy as np

from dimec.core.errors import RunError
from dimec.core.extras import needs_training
from dimec.core.metrics import auc
from dimec.core.tiers import TIERS
from dimec.policies.dimec_dc import DimecDcFixed
from dimec.policies.pools import cartography, cartography_pools
from dimec.runs.run import Run
from dimec.studies.base import Findings, Study
from dimec.studies.measures import notes_on
from dimec.studies.pools import POOLS
from dimec.studies.study_runs import StudyRuns

MOST = 3_000
"""The most points of a map; of a larger split a random sample is shown."""
_LONGEST = 200


def make(runs: StudyRuns) -> Findings:
    """Draw the map of each task's first seed."""
    found = Findings("datamap")
    points, regions = {}, []
    for task in runs.each_task("Study datamap"):
        points[task], of_pools = data_map(runs, runs.run(task))
        regions += of_pools
    found.add("regions", regions)
    for task, rows in points.items():
        found.add("map-{task}", rows, task=task)
    found.notes.append(
        f"At most {MOST:,} rows of a map, drawn by seed 0. The map holds the samples' texts, where the run kept them: "
        "it is as private as they are."
    )
    found.notes += notes_on(runs)
    return found


def data_map(runs: StudyRuns, run: Run) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the points of a run's map, and what its pools hold."""
    table = run.validation
    calibration = runs.setup(run).calibration(runs.options.price)
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
            str(tier): float(table.right[inside, table.exit(depths.of(tier))].mean())
            for tier in TIERS
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
    """Return the validation rows' texts, cut for a tooltip; none where the run kept none."""
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


STUDY = Study.of("datamap", make)
