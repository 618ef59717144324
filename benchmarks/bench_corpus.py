"""Are promises about a corpus kept, and at what cost? Beside betting, and beside BARGAIN on the same tables.

    pip install bargain
    python benchmarks/bench_corpus.py RUN [RUN ...] [--rows 12000] [--runs 1000] [--bargain 5]

Runs may also be named in DIMEC_RUNS, with colons between them. The corpus of a run are up to ROWS rows of its data
that neither trained it nor are its validation. The cascade is fitted on validation at the price that the dial finds for
half a point, to be like all-cloud; a plain one is fitted as `dimec export` without an assurance does. Each of RUNS runs
draws another sample. Sampled texts cost what all-cloud costs; the cost is the mean over all texts of the corpus.

`broken` counts runs in which more texts than promised were answered otherwise than by all-cloud. `own best` is the
cheapest operating point that keeps the promise on this corpus. `betting` draws texts one by one, at most twice as many,
and goes to the next operating point whenever the wealth of a bet against more than what is allowed passes
1 / (1 - assurance).

BARGAIN (https://github.com/ucbepic/BARGAIN) has one proxy with a score, here the last exit of the device or the edge.
Every text pays for the proxy, those below the threshold and those that it samples for the cloud too. `same proxy` is
our test with thresholds on that score. BARGAIN takes minutes, so that it has a few runs.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dimec.core.tiers import Step, Tier
from dimec.data import load_dataset
from dimec.deploying.corpus import last_passing, most_differing, operating_points, sample_size
from dimec.deploying.ladder import run_calibration
from dimec.evaluation.dial import choose
from dimec.policies.cascade import DimecCascade
from dimec.policies.replay import replay
from dimec.runs.exit_table import ExitTable
from dimec.runs.run import Run
from dimec.training.tabulate import tabulate_dataset

DROPS = (0.005, 0.01, 0.02)
ASSURANCE = 0.95
FRACTIONS = np.array([0.05, 0.1, 0.25, 0.5, 0.75, 1.0])[:, None]

Ladder = tuple[NDArray[np.bool_], NDArray[np.float64]]
"""[points, n]: where each operating point differs from all-cloud, and its cost as a share of all-cloud's."""


def corpus_of(run: Run, n_rows: int) -> ExitTable:
    """Tabulate rows of a run's data that it has not seen; DIMEC_TABLES names a folder that keeps the tables."""
    kept = (
        Path(os.environ["DIMEC_TABLES"], f"{run.folder.name}-{n_rows}.safetensors")
        if ("DIMEC_TABLES" in os.environ)
        else None
    )
    if kept is not None and kept.exists():
        return ExitTable.load(kept)
    options = run.config.options
    rows = load_dataset(run.config.task.name, data=options.data, columns=options)
    seen = np.concatenate([run.splits["train"], run.splits["validation"]])
    free = np.random.default_rng(0).permutation(np.flatnonzero(~np.isin(rows.row_ids, seen)))
    table = tabulate_dataset(run, rows.take(np.sort(free[:n_rows])))
    if kept is not None:
        table.save(kept)
    return table


def by_cascade(cascade: DimecCascade, table: ExitTable, run: Run) -> Ladder:
    costs = run_calibration(run).costs
    all_cloud = costs.of([Step(Tier.CLOUD, table.n_layers)])
    played = [replay(point, table, costs=costs) for point in operating_points(cascade)]
    differs = np.stack([each.predictions != table.predictions[:, -1] for each in played])
    return differs, np.stack([each.costs for each in played]) / all_cloud


def by_proxy(tier: Tier, table: ExitTable, run: Run) -> Ladder:
    """Keep the answers of a tier's last exit that are surer than each of twenty thresholds."""
    costs, depth = run_calibration(run).costs, run.cut()[DimecCascade.method].of(tier)
    exit_ = table.exit(depth)
    rank = np.argsort(np.argsort(-table.confidence[:, exit_], kind="stable"))
    shares = np.arange(1, 21)[:, None] / 20
    kept = rank < shares * len(table)
    differs = kept & (table.predictions[:, exit_] != table.predictions[:, -1])
    proxy = costs.of([Step(tier, depth)]) / costs.of([Step(Tier.CLOUD, table.n_layers)])
    cost: NDArray[np.float64] = proxy + (~kept).astype(float)
    return differs, cost


def bet(differs: NDArray[np.bool_], n_rows: int, drop: float) -> tuple[int | None, int]:
    """Return the last operating point that passes, and how many texts were drawn until then or in vain."""
    n = differs.shape[1]
    allowed = math.floor(drop * n_rows + 1e-9)
    mean = (allowed + 1) / (n_rows - np.arange(n))
    last, drawn = None, 0
    for place, seen in enumerate(np.logical_or.accumulate(differs, axis=0)):
        with np.errstate(divide="ignore"):
            steps = np.log(np.where(seen, 1 - FRACTIONS, 1 + FRACTIONS * mean / (1 - mean)))
        wealth = np.exp(np.cumsum(steps, axis=1)).mean(axis=0)
        passing = np.flatnonzero(wealth >= 1 / (1 - ASSURANCE))
        if not len(passing):
            return last, n
        last, drawn = place, max(drawn, int(passing[0]) + 1)
    return last, drawn


def tell(name: str, ladder: Ladder, n_runs: int, drop: float, *, betting: bool = False) -> None:
    differs, costs = ladder
    n_rows = differs.shape[1]
    n = sample_size(n_rows, max_drop=drop, assurance=ASSURANCE)
    most = most_differing(n_rows, n, max_drop=drop, assurance=ASSURANCE)
    broken, paid, sizes = 0, [], []
    for number in range(n_runs):
        drawn = np.random.default_rng([number, 7]).permutation(n_rows)[: n * (1 + betting)]
        if betting:
            last, used = bet(differs[:, drawn], n_rows, drop)
            drawn = drawn[:used]
        else:
            last = last_passing(differs[:, drawn], most)
        cost, wrong = np.ones(n_rows), np.zeros(n_rows, dtype=bool)
        if last is not None:
            cost, wrong = costs[last].copy(), differs[last].copy()
        cost[drawn], wrong[drawn] = 1.0, False
        broken += int(wrong.sum()) > math.floor(drop * n_rows + 1e-9)
        paid.append(cost.mean())
        sizes.append(len(drawn))
    keeping = costs.mean(axis=1)[differs.mean(axis=1) <= drop]
    print(
        f"  {100 * drop:g} points, {name}: broken {broken} of {n_runs} ({100 * broken / n_runs:.1f} %); "
        f"{np.mean(sizes):,.0f} sampled; cost {100 * np.mean(paid):.1f} % of all-cloud's, own best "
        f"{100 * min([1.0, *keeping]):.1f} %",
        flush=True,
    )


def tell_bargain(tier: Tier, table: ExitTable, run: Run, n_runs: int, drop: float) -> None:
    from BARGAIN import BARGAIN_A, Oracle, Proxy

    said = table.predictions[:, -1]
    exit_ = table.exit(run.cut()[DimecCascade.method].of(tier))

    class Known(Proxy):  # type: ignore[misc]  # without types
        def get_preds_and_scores(
            self, rows: NDArray[np.int64], _: object
        ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
            return table.predictions[rows, exit_], table.confidence[rows, exit_]

    class Cloud(Oracle):  # type: ignore[misc]  # without types
        def get_pred(self, _: object, rows: NDArray[np.int64]) -> NDArray[np.int64]:
            return said[rows]

        def is_answer_correct(
            self, rows: NDArray[np.int64], _: object, answers: NDArray[np.int64]
        ) -> NDArray[np.bool_]:
            same: NDArray[np.bool_] = said[rows] == answers
            return same

    share = by_proxy(tier, table, run)[1][-1].mean()
    broken, paid = 0, []
    for number in range(n_runs):
        asked = BARGAIN_A(
            Known(), Cloud(), target=1 - drop, delta=1 - ASSURANCE, verbose=False, seed=number
        )
        answers, by_oracle = asked.process(np.arange(len(table)), return_oracle_usage=True)
        broken += int((np.array(answers) != said).sum()) > math.floor(drop * len(table) + 1e-9)
        paid.append(share + np.mean(by_oracle))
    print(
        f"  {100 * drop:g} points, BARGAIN over the {tier}'s last exit: broken {broken} of {n_runs}; cost "
        f"{100 * np.mean(paid):.1f} % of all-cloud's",
        flush=True,
    )


def measure(run: Run, *, n_rows: int, n_runs: int, n_bargain: int) -> None:
    table = replace(corpus_of(run, n_rows), dynamics=None)
    calibration = run_calibration(run)
    chosen = choose(
        calibration, run.cuts(None), metric=run.config.task.metric, max_drop=0.5, cascades_only=True
    )
    price = chosen.candidate.price or calibration.price
    said = run.validation.predictions[:, -1]
    print(
        f"{run.config.task.name}: {len(table):,} texts, {table.n_classes} classes, all-cloud "
        f"{100 * table.right[:, -1].mean():.2f}, price {price:.3g}",
        flush=True,
    )

    def ladders() -> Iterator[tuple[str, Ladder]]:
        for name, like in (("like all-cloud", said), ("plain", None)):
            [cascade] = DimecCascade.fit_at([price], calibration, like=like)
            yield f"cascade {name}", by_cascade(cascade, table, run)
        for tier in (Tier.MOBILE, Tier.EDGE):
            yield f"same proxy, the {tier}'s last exit", by_proxy(tier, table, run)

    tried = dict(ladders())
    for drop in DROPS:
        for name, ladder in tried.items():
            tell(name, ladder, n_runs, drop)
        tell(
            "cascade like all-cloud, betting",
            tried["cascade like all-cloud"],
            n_runs,
            drop,
            betting=True,
        )
        for tier in (Tier.MOBILE, Tier.EDGE) if n_bargain else ():
            tell_bargain(tier, table, run, n_bargain, drop)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folders", nargs="*", metavar="RUN")
    parser.add_argument("--rows", type=int, default=12_000)
    parser.add_argument("--runs", type=int, default=1_000)
    parser.add_argument("--bargain", type=int, default=0, metavar="RUNS")
    given = parser.parse_args()
    folders = given.folders or [
        each for each in os.environ.get("DIMEC_RUNS", "").split(":") if each
    ]
    if not folders:
        parser.error("name runs with exit zero, or set DIMEC_RUNS")
    for folder in folders:
        measure(Run.open(folder), n_rows=given.rows, n_runs=given.runs, n_bargain=given.bargain)


if __name__ == "__main__":
    main()
