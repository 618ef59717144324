"""Would features notice a shift earlier than confidence does? Every candidate by the guard's own test, one at a time.

A run fitted on one data set meets its own test split first and another set of the same task after it (in `DIMEC_DATA`).
Each candidate is a number in [0, 1] that a device has before the first layer, or nearly: what is measured is after how
many samples of the other set the test by betting that guards confidence is sure, against the same reference
(validation) and at the same rate of false alarms. A feature may also change where nothing is in danger, so two parts of
the run's own test split are met too: its longer half, and all of one class with a third of the others.

    DIMEC_DATA=data DIMEC_RUNS=runs python benchmarks/bench_drift_features.py [--shuffles 5] [sst2:shift/cr ...]
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench_shift import COSTS, PAIRS, Spy, known, stream_of
from dimec.core.tiers import Tier
from dimec.evaluation import replay
from dimec.evaluation.options import SetupOptions
from dimec.evaluation.setup import EvaluationSetup
from dimec.policies import Calibration
from dimec.policies.betting import FRACTIONS
from dimec.policies.cascade_statistics import walk
from dimec.policies.dimec_dc import DimecDcFixed
from dimec.policies.drift import drifts
from dimec.policies.guard_settings import GuardSettings
from dimec.policies.guarded import DimecGuarded
from dimec.runs.exit_table import ExitTable, TierTables
from dimec.runs.run import Run

DRIFT_RUN = GuardSettings().drift_run

Values = NDArray[np.float64]


class Candidates:
    """Numbers in [0, 1] of every sample, fitted on validation where they need something to be held against."""

    def __init__(self, calibration: Calibration, guarded: DimecGuarded) -> None:
        self._cascade = guarded.rungs[0].cascade
        self._centroids = DimecDcFixed.fit(calibration).centroids
        self._mean = calibration.table.embeddings.mean(axis=0)
        self._ranks: dict[str, Values] = {}

    def of(self, table: ExitTable) -> dict[str, Values]:
        first = next(walk(self._cascade, TierTables.of_all(table).with_exit_zero))
        assert table.unseen is not None
        unseen = table.unseen.astype(float)
        to_mean = np.linalg.norm(table.embeddings - self._mean, axis=1)
        to_nearest = self._centroids.distances(table.embeddings).min(axis=-1)
        found = {
            "confidence at exit zero": first.pooled.max(axis=1),
            "share of unseen words": unseen,
        }
        ranked = {
            "token count": table.n_tokens.astype(float),
            "unseen words, ranked": unseen,
            "distance to validation's mean": to_mean,
            "distance to nearest centroid": to_nearest,
        }
        for kind in range(first.pooled.shape[1]):
            found[f"probability of class {kind}"] = first.pooled[:, kind]
        # A rank among validation's values has a mean of one half and no outliers, whatever its unit.
        return found | {name: self._rank(name, values) for name, values in ranked.items()}

    def _rank(self, name: str, values: Values) -> Values:
        known = self._ranks.setdefault(name, np.sort(values))  # validation comes first
        low, high = (np.searchsorted(known, values, side=side) for side in ("left", "right"))
        return (low + high) / (2 * len(known))


class Watch:
    """The guard's test of one number, or of several at its rate of false alarms for all of them together."""

    def __init__(self, reference: Mapping[str, Values], names: list[str]) -> None:
        self.names = names
        sums = [
            (len(reference[name]), reference[name].sum(), (reference[name] ** 2).sum())
            for name in names
        ]
        self._references = np.array(sums, dtype=float)
        self._limit = math.log(2 * len(names) * DRIFT_RUN)

    def alarms(self, stream: Mapping[str, Values]) -> list[int]:
        """After how many samples it is sure; it starts again after every alarm."""
        wealth, found = np.zeros((len(self.names), 2, len(FRACTIONS))), []
        columns = [stream[name].tolist() for name in self.names]
        for at, values in enumerate(zip(*columns, strict=True)):
            sides = [
                drifts(value, own, bets, validation=own[0], limit=self._limit, falls=True)
                for value, own, bets in zip(values, self._references, wealth, strict=True)
            ]
            if sides != [None] * len(sides):
                found.append(at + 1)
                wealth[:] = 0.0
        return found


def taken(values: Mapping[str, Values], rows: NDArray[np.integer]) -> dict[str, Values]:
    return {name: each[rows] for name, each in values.items()}


def disagreement(guarded: DimecGuarded, table: ExitTable) -> float:
    tables = TierTables.of_all(table).with_exit_zero
    cloud = tables.of(Tier.CLOUD)
    sure = cloud.predictions[:, cloud.exit(cloud.n_layers)]
    differ = sum(
        int((stand.labels != sure[stand.answered]).sum())
        for stand in walk(guarded.rungs[0].cascade, tables)
    )
    return 100 * differ / len(table)


class Row:
    """What one way of watching made of the streams."""

    def __init__(self, name: str, means: tuple[float, ...] = ()) -> None:
        self.name, self.means = name, means
        self.delays: list[float] = []
        self.early, self.met = 0, 0
        self.harmless: list[str] = []

    def turn(self, alarms: list[int], at: int) -> None:
        """Take the alarms of a stream that turns after ``at`` samples."""
        self.delays.append(next((each - at for each in alarms if each > at), math.inf))

    def calm(self, alarms: list[int], n: int) -> None:
        """Take those of a stream that is like validation."""
        self.early, self.met = self.early + len(alarms), self.met + n

    def part(self, alarms: list[int]) -> None:
        """Take those of a part of the own test split."""
        self.harmless.append(f"after {alarms[0]}" if alarms else "none")

    def show(self) -> None:
        means = "".join(f"{mean:6.3f} " for mean in self.means)
        delay = "".join(
            f"{'never' if at == math.inf else f'{at:.0f}':>6} "
            for at in (float(np.median(self.delays)), max(self.delays))
        )
        parts = "".join(f"{each:>13}" for each in self.harmless)
        print(f"{self.name:36}{means:21}{delay} {self.early:3} in {self.met:,}{parts}")


def measure(run: Run, shift: Path, *, price: float, shuffles: int, repeats: int) -> None:
    table = EvaluationSetup.of(run, SetupOptions(data=shift, skip_empty=True)).table
    validation, test = known(run, "validation"), replace(known(run, "test"), dynamics=None)
    calibration = Calibration(validation, run.config.depths, price=price)
    guarded = DimecGuarded.fit(calibration)
    candidates = Candidates(calibration, guarded)
    reference, own, other = (candidates.of(each) for each in (validation, test, table))
    n = len(test)
    draws = [np.random.default_rng([1, seed]) for seed in range(shuffles)]
    turns = [(each.permutation(n), each.permutation(len(table))) for each in draws]
    calms = [np.random.default_rng([2, seed]).permutation(n) for seed in range(repeats)]
    longer = np.flatnonzero(test.n_tokens > np.median(test.n_tokens))
    odd = np.flatnonzero((test.labels == 0) | (np.arange(n) % 3 == 0))
    parts = [np.random.default_rng(3).permutation(rows) for rows in (longer, odd)]
    print(
        f"disagreement: allowed {100 * guarded.allowed:.2f}, test split {disagreement(guarded, test):.2f}, its longer "
        f"half ({len(longer):,}) {disagreement(guarded, test.take(longer)):.2f}, more of one class ({len(odd):,}) "
        f"{disagreement(guarded, test.take(odd)):.2f}, {shift.name} ({len(table):,}) "
        f"{disagreement(guarded, table):.2f} (%)"
    )
    print(f"{'':36}{'mean of':21}{'delay':15}false alarms    longer half    class mix")
    print(f"{'':36}{'valid. test  other':21}median  most")

    # A table without unseen shares is one of before they were kept: there the guard watches confidence alone.
    blind = DimecGuarded.fit(replace(calibration, table=replace(validation, unseen=None)))
    settings = replace(guarded.settings, audit_rate=0.0)

    def guards(policy: DimecGuarded, stream: ExitTable) -> list[int]:
        spy = Spy.on(policy, settings)
        replay(spy, stream, costs=COSTS)
        return [at for at, _ in spy.moves]

    for name, policy in (("guard: confidence alone", blind), ("guard: and unseen words", guarded)):
        row = Row(name)
        for first, then in turns:
            row.turn(guards(policy, stream_of(test.take(first), table.take(then))), n)
        for order in calms[:5]:
            row.calm(guards(policy, test.take(order)), n)
        for rows in parts:
            row.part(guards(policy, test.take(rows)))
        row.show()

    classes = [name for name in reference if name.startswith("probability")]
    words = "share of unseen words"
    confidence = "confidence at exit zero"
    groups = [[name] for name in reference]
    groups += [[confidence, words], [confidence, *classes], [confidence, words, "token count"]]
    for names in groups:
        watch = Watch(reference, names)
        alone = len(names) == 1
        row = Row(
            names[0] if alone else f"{names[0]}, {names[1]}" + ", ..." * (len(names) > 2),
            tuple(each[names[0]].mean() for each in (reference, own, other)) if alone else (),
        )
        for first, then in turns:
            left, right = taken(own, first), taken(other, then)
            joined = {name: np.concatenate([left[name], right[name]]) for name in names}
            row.turn(watch.alarms(joined), n)
        for order in calms:
            row.calm(watch.alarms(taken(own, order)), n)
        for rows in parts:
            row.part(watch.alarms(taken(own, rows)))
        row.show()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("pairs", nargs="*", default=list(PAIRS))
    options.add_argument("--shuffles", type=int, default=5)
    options.add_argument("--repeats", type=int, default=30, help="orders that count false alarms")
    options.add_argument("--price", type=float, default=0.1)
    given = options.parse_args()
    runs, data = Path(os.environ["DIMEC_RUNS"]), Path(os.environ["DIMEC_DATA"])
    for pair in given.pairs:
        name, shift = pair.split(":")
        print(f"\n== {name}, then {shift}; price {given.price:g}, {given.shuffles} orders")
        measure(
            Run.open(runs / name),
            data / shift,
            price=given.price,
            shuffles=given.shuffles,
            repeats=given.repeats,
        )


if __name__ == "__main__":
    main()
