"""The expected reward over the grids of thresholds, on validation (paper 1 §4.3, paper 2 §1.5 and §1.6)."""

from __future__ import annotations

from functools import partial
from typing import Any

from dimec.reporting.results import Column, Figure, Table
from dimec.runs.run import Run
from dimec.studies.base import Findings, Study
from dimec.studies.measures import SEEDS, notes_on, over_seeds
from dimec.studies.pools import METHODS
from dimec.studies.study_runs import StudyRuns

_COLUMNS = (
    Column(
        name="reward",
        title="reward",
        quantity="score",
        about="Expected r = C - λ·cost on validation, × 100.",
    ),
    Column(name="confidence", title="confidence", quantity="score", about="Expected C, × 100."),
    Column(name="cost", title="cost", quantity="cost", about="Expected, in λ.", spread="cost_sd"),
    Column(
        name="chosen",
        title="chosen",
        quantity="share",
        about="Share of the seeds that choose this point.",
    ),
    SEEDS,
)
_ALPHA = Column(name="alpha", title="α", quantity="number")
_BETA = Column(name="beta", title="β", quantity="number")


def make(shop: StudyRuns) -> Findings:
    """Lay open both searches for every task."""
    found = Findings()
    all_runs = []
    grids: dict[str, list[dict[str, Any]]] = {name: [] for name in METHODS}
    with shop.progress.stage("Study thresholds", len(shop.tasks)) as advance:
        for task in shop.tasks:
            runs = shop.seeds(task)
            all_runs += runs
            for name, rows in grids.items():
                seeds = [shop.part(name, run, partial(grid, shop, run, name)) for run in runs]
                averaged = over_seeds(seeds, key=("alpha", "beta"))
                most = max(row["reward"] for row in averaged)
                rows += [
                    {
                        "task": task,
                        **row,
                        "below": row["reward"] - most,
                        "best": (row["chosen"] or 0) > 0,
                    }
                    for row in averaged
                ]
            advance(1)
    hover = ("task", "reward", "confidence", "cost", "chosen")
    found.add(
        Table(
            name="reward-alpha-beta",
            title="Reward over α and β, DIMEC-DC",
            about="Each point makes pools of the validation rows; a pool is answered by its tier's last exit.",
            columns=(_ALPHA, _BETA, *_COLUMNS),
            group="task",
            source="paper 1 §4.3, eq. 4",
        ),
        grids["dimec-dc-fixed"],
        Figure(
            name="reward-surface",
            title="Expected reward over α × β",
            about="A field of 25 cells for each task, α across and β upwards, coloured by the expected reward on "
            "validation; the chosen cells are ringed.",
            table="reward-alpha-beta",
            kind="heat",
            x="alpha",
            y="beta",
            color="below",
            facet="task",
            marks="best",
            x_title="α",
            y_title="β",
            y_quantity="number",
            color_title="reward against the best, × 100",
            color_quantity="points",
            hover=("alpha", "beta", *hover),
            source="paper 1 §4.3",
        ),
    )
    found.add(
        Table(
            name="reward-alpha",
            title="Reward over α, DIMEE",
            about="Ten equidistant values from one over the number of classes to one.",
            columns=(_ALPHA, *_COLUMNS),
            group="task",
            source="paper 2 §1.6, eq. 3 to 7",
        ),
        grids["dimee-fixed"],
        Figure(
            name="reward-line",
            title="Expected reward over α",
            about="A line for each task: the expected reward on validation over DIMEE's ten thresholds; the chosen "
            "ones are ringed.",
            table="reward-alpha",
            kind="lines",
            x="alpha",
            y="reward",
            color="task",
            marks="best",
            x_title="α",
            y_title="reward × 100",
            hover=("alpha", *hover),
            source="paper 2 §1.6",
        ),
    )
    found.notes.append(
        f"λ is worth {shop.options.price:g} / (λ_m·l): at this price a full model on the mobile device costs "
        f"{shop.options.price:g} of confidence."
    )
    found.notes += notes_on(all_runs)
    return found


def grid(shop: StudyRuns, run: Run, name: str) -> list[dict[str, Any]]:
    """Return every point of a policy's search."""
    search = METHODS[name].search_in(shop.testbed(run).calibration(shop.options.price))
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


STUDY = Study(
    name="thresholds",
    title="Thresholds and rewards",
    about="How does the expected reward on validation change over the thresholds, and is the chosen point a peak or a "
    "corner of the grid?",
    source="paper 1 §4.3, paper 2 §1.5",
    tasks=("sst2", "cola", "mrpc"),
    make=make,
)
