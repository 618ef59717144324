"""The dial on rows that chose nothing: what it expects to lose, what new rows lose, and how often that is more.

The held-out rows of a run, validation and test, are halved anew for each split: one half chooses as `dimec evaluate`
does, the other half shows what was lost and what it cost. `--whole` keeps of the showing half only the rows whose text
is no part of another row's, such as SST-2's whole sentences among its phrases. `--data` shows other labelled rows
instead. `--like` tells a second line, of choices by rows that are weighed by how much they look like its texts.

    python benchmarks/bench_dial.py runs/sst2 runs/cola [--splits 20] [--max-drop 0.5,1] [--whole]
    python benchmarks/bench_dial.py runs/sst2 --data sentences.csv --like others.txt
"""

from __future__ import annotations

import argparse
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from dimec.core.options import TextColumns
from dimec.core.tiers import Step, Tier
from dimec.costs.model import CostModel
from dimec.evaluation.dial import choose
from dimec.evaluation.options import SetupOptions
from dimec.evaluation.setup import EvaluationSetup
from dimec.policies import Calibration
from dimec.policies.replay import replay
from dimec.runs.exit_table import ExitTable
from dimec.runs.run import Run
from dimec.training.texts import SplitName
from dimec.training.weighing import weigh_like
from subject import whole_rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--max-drop", default="0.5")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--data")
    parser.add_argument("--like")
    given = parser.parse_args()
    drops = [float(each) for each in given.max_drop.split(",")]
    print(
        f"{'run':14} {'metric':9} {'like':4} {'rows':>6} {'dial':>5} {'expected':>8} {'shown':>6} {'above':>6} "
        f"{'cost':>6}  ways"
    )
    for folder in given.runs:
        run = Run.of(folder)
        rows = run.validation.joined(run.test)
        shows: ExitTable | NDArray[np.bool_] = np.ones(len(rows), bool)
        if given.whole:
            shows = whole_rows(run)
        if given.data:
            shows = EvaluationSetup.of(run, SetupOptions(data=given.data)).table
        weights = [None, *([weighed(run, given.like)] if given.like else [])]
        for drop in drops:
            for each in weights:
                tell(run, rows, each, shows, drop, given.splits)


def weighed(run: Run, like: str) -> NDArray[np.float64]:
    """Weigh the rows of validation and test, each by themselves."""
    found = []
    tables: dict[SplitName, ExitTable] = {"validation": run.validation, "test": run.test}
    for split, table in tables.items():
        weights = weigh_like(run, like, split=split, columns=TextColumns())
        found.append(np.ones(len(table)) if weights is None else weights)
    return np.concatenate(found)


def tell(
    run: Run,
    rows: ExitTable,
    weights: NDArray[np.float64] | None,
    shows: ExitTable | NDArray[np.bool_],
    drop: float,
    splits: int,
) -> None:
    """Print a line for one run and one dial; ``shows`` says which rows of the other half do, or is other rows."""
    costs, cuts = CostModel(), run.cuts()
    metric = run.config.task.metric
    expected, shown, spent, ways = [], [], [], Counter[str]()
    for split in range(splits):
        order = np.random.default_rng(split).permutation(len(rows))
        one, two = np.sort(order[: len(rows) // 2]), np.sort(order[len(rows) // 2 :])
        new = shows if isinstance(shows, ExitTable) else rows.take(two[shows[two]])
        both = Calibration(rows, cuts[0], costs=costs, seed=split, weights=weights)
        calibration = both.take(one)
        choice = choose(calibration, cuts, metric=metric, max_drop=drop)
        played = replay(choice.policy, new, costs=costs)
        cloud, own = (
            new.score(metric, new.predictions[:, -1]),
            new.score(metric, played.predictions),
        )
        expected.append(choice.expected_drop)
        shown.append(100 * (cloud - own))
        spent.append(float(played.costs.mean()) / costs.of([Step(Tier.CLOUD, rows.n_layers)]))
        ways[choice.candidate.way] += 1
    print(
        f"{run.folder.name:14} {metric:9} {'no' if weights is None else 'yes':4} {len(new):6,} {drop:5.2f} "
        f"{np.mean(expected):8.2f} {np.mean(shown):6.2f} "
        f"{100 * np.mean(np.array(shown) > drop):4.0f} % {np.mean(spent):6.3f}  "
        f"{', '.join(f'{way} {count}' for way, count in ways.most_common())}",
        flush=True,
    )


if __name__ == "__main__":
    main()
