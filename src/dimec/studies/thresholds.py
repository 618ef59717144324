"""The expected reward over the grids of thresholds, on validation (paper 1 §4.3, paper 2 §1.5 and §1.6)."""

from __future__ import annotations

from functools import partial
from typing import Any

from dimec.runs.run import Run
from dimec.studies.base import Findings, Study
from dimec.studies.measures import averaged, notes_on
from dimec.studies.pools import METHODS
from dimec.studies.study_runs import StudyRuns

_TABLES = {"dimec-dc-fixed": "reward-alpha-beta", "dimee-fixed": "reward-alpha"}


def make(runs: StudyRuns) -> Findings:
    """Show all points of both searches for every task."""
    found = Findings("thresholds")
    grids: dict[str, list[dict[str, Any]]] = {name: [] for name in METHODS}
    for task in runs.each_task("Study thresholds"):
        for name, rows in grids.items():
            points = averaged(runs, task, name, partial(grid, name=name), key=("alpha", "beta"))
            most = max(row["reward"] for row in points)
            rows += [
                {**row, "below": row["reward"] - most, "best": (row["chosen"] or 0) > 0}
                for row in points
            ]
    for name, rows in grids.items():
        found.add(_TABLES[name], rows)
    found.notes.append(
        f"λ is worth {runs.options.price:g} / (λ_m·l): at this price a full model on the mobile device costs "
        f"{runs.options.price:g} of confidence."
    )
    found.notes += notes_on(runs)
    return found


def grid(runs: StudyRuns, run: Run, *, name: str) -> list[dict[str, Any]]:
    """Return every point of a policy's search."""
    search = METHODS[name].search_in(runs.setup(run).calibration(runs.options.price))
    rewards, confidence, costs = (
        each.ravel().tolist() for each in (search.rewards, search.confidence, search.costs)
    )
    return [
        {
            "alpha": point[0],
            "beta": point[1] if len(point) > 1 else None,
            "reward": rewards[place],
            "confidence": confidence[place],
            "cost": costs[place],
            "chosen": float(point == search.point),
        }
        for place, point in enumerate(search.points)
    ]


STUDY = Study.of("thresholds", make)
