"""What a plan is worth on rows that it never saw: the run's test rows, and data from elsewhere.

For each run, with its own cut and with every `--cuts`: the cascade that `dimec plan RUN --max-drop POINTS` takes
at several assurances, and what it loses against all-cloud, at which share of its cost, on the certifying rows, on the
test rows and on every `--data`. At an assurance of 0.5 a plan is what validation holds likelier than not; nothing else
chooses. The drop has a 95 % interval from a paired bootstrap over the rows.

Beside them what cascades of this cut would have reached that know these rows: fitted on four fifths of them, asked the
fifth, the cheapest that keeps the drop. No plan can be held to that; it says how much of the cost is the shift's, and
how much the exits'.

    python benchmarks/bench_plan.py RUN [RUN ...] [--max-drop 0.5] [--cuts all] [--data data/shift/cr]
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from bench_cascade import Answers, all_cloud, answers, difference, named
from dimec.core.tiers import Depths
from dimec.deploying.ladder import LADDER, Ladder, build_ladder, run_calibration
from dimec.deploying.promise import Assurance
from dimec.evaluation.cuts import Cut, cross_fit
from dimec.evaluation.options import SetupOptions
from dimec.evaluation.setup import EvaluationSetup
from dimec.policies import Calibration
from dimec.runs.exit_table import ExitTable
from dimec.runs.run import Run

ASSURANCES = (0.5, 0.8, 0.95)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a folder that `dimec fit` made")
    parser.add_argument("--max-drop", type=float, default=0.5, metavar="POINTS")
    parser.add_argument("--cuts", action="append", help="beside the run's own; several times")
    parser.add_argument("--data", action="append", default=[], help="data from elsewhere")
    given = parser.parse_args()
    for folder in given.runs:
        run = Run.open(Path(folder))
        tables = {"test": run.test}
        for data in given.data:
            tables[Path(data).name] = EvaluationSetup.of(
                run, SetupOptions(data=data, skip_empty=True)
            ).table
        promised: dict[Depths, None] = {}
        for cuts in (None, *(given.cuts or ())):
            ladder = build_ladder(run_calibration(run), cuts=run.cuts(cuts))
            promised |= report(folder, cuts or "its own", ladder, tables, max_drop=given.max_drop)
        print(f"\n== {folder}, knowing the rows")
        for depths in promised:
            cut: Cut = {"ee": depths}
            for name, table in tables.items():
                print(f"{name}, cut {named(cut)}: {known(table, cut, given.max_drop)}", flush=True)


def report(
    folder: str, cuts: str, ladder: Ladder, tables: Mapping[str, ExitTable], *, max_drop: float
) -> dict[Depths, None]:
    """Print what is promised and what becomes of it; return where these cascades cut, each once."""
    print(f"\n== {folder}, cuts: {cuts}, at most {max_drop:g} points under all-cloud", flush=True)
    promised: dict[Depths, None] = {}
    for level in ASSURANCES:
        kept = ladder.certified(max_drop, Assurance(level))
        if not kept:
            print(f"{level:g}: all-cloud")
            continue
        rung = kept[-1]
        promised[rung.policy.depths] = None
        spent = rung.played.costs.mean() / ladder.cloud_cost
        print(
            f"{level:g}: price {rung.price:.3g}, cut {named({'ee': rung.policy.depths})}; on the "
            f"{rung.outcomes.n:,} certifying rows {100 * rung.outcomes.drop:+.2f} at {spent:.3f}"
        )
        for name, table in tables.items():
            ours = answers(rung.policy, table, "accuracy")
            print(
                f"      {name} ({len(table):,}): all-cloud {all_cloud(table, 'accuracy').score:.2f}, "
                f"{against_cloud(ours)}",
                flush=True,
            )
    return promised


def against_cloud(ours: Answers) -> str:
    cloud = all_cloud(ours.table, "accuracy")
    return f"drop {difference(cloud, ours):+.2f} at {ours.cost / cloud.cost:.3f}"


def known(table: ExitTable, cut: Cut, max_drop: float) -> str:
    """Say what the cheapest cascade that keeps the drop loses, fitted on four fifths of these rows for the fifth."""
    cloud = all_cloud(table, "accuracy")
    crossed = cross_fit(Calibration(table, cut), [cut], LADDER, like=cloud.labels)[0]
    fitted = [
        Answers(table, "accuracy", said, cost)
        for said, cost in zip(crossed.labels, crossed.costs, strict=True)
    ]
    kept = [each for each in fitted if cloud.score - each.score <= max_drop]
    if not kept:
        return "none keeps the drop"
    return against_cloud(min(kept, key=lambda each: each.cost))


if __name__ == "__main__":
    main()
