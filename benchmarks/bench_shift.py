"""What shift does to a promise, and who notices: fixed and adaptive centroids, the cascade, and the guarded cascade.

A run fitted on one data set meets another one of the same task (in `DIMEC_DATA`), and a stream that is the run's own
test split first and the other set after it. Nothing is fitted on the other set; its labels only score. River's ADWIN,
which compares a stream with its own past, is asked about the same first confidence where river is installed.

    DIMEC_DATA=data DIMEC_RUNS=runs python benchmarks/bench_shift.py [--shuffles 5] [sst2:shift/cr ...]
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dimec.core.guard_settings import GuardSettings
from dimec.core.tiers import Step, Tier
from dimec.costs.model import CostModel
from dimec.evaluation.options import SetupOptions
from dimec.evaluation.setup import EvaluationSetup
from dimec.policies import POLICIES, Calibration, Policy
from dimec.policies.guarded import DimecGuarded
from dimec.policies.replay import replay
from dimec.runs.exit_table import ExitTable, TierTables

COSTS = CostModel()
NEVER = float("inf")
PAIRS = ("sst2:shift/cr", "mnli:shift/sick", "qqp:glue/mrpc")


class Spy(DimecGuarded):
    """Notes after how many samples it moved; a replay works with the spy itself."""

    moves: list[tuple[int, int]]

    @classmethod
    def on(cls, policy: DimecGuarded, settings: GuardSettings) -> Spy:
        spy: Spy = policy.fresh()  # type: ignore[assignment]
        spy.__class__ = cls
        spy.guard, spy.moves = settings, []
        return spy

    def fresh(self) -> Spy:
        return self

    def _move(self, rung: int) -> None:
        self.moves.append((int(self._learnt["seen"][0]), rung))
        super()._move(rung)


def accuracy(predictions: NDArray[np.int64], table: ExitTable) -> float:
    return 100 * float((predictions == table.labels).mean())


def cloud_of(table: ExitTable) -> NDArray[np.int64]:
    tables = TierTables.of_all(table).with_exit_zero
    cloud = tables.of(Tier.CLOUD)
    return cloud.predictions[:, cloud.exit(cloud.n_layers)]


def guards(policy: DimecGuarded) -> Iterator[tuple[str, GuardSettings]]:
    yield "guarded", policy.guard
    yield "guarded, drift alone", replace(policy.guard, audit_rate=0.0)
    yield "guarded, audits alone", replace(policy.guard, drift_run=NEVER)
    yield "guarded, recalibrates", replace(policy.guard, recalibrates=True)
    yield (
        "recalibration, no moves",
        replace(policy.guard, recalibrates=True, drift_run=NEVER, audit_run=NEVER),
    )


def shifted(policies: dict[str, Policy], guarded: DimecGuarded, table: ExitTable, n: int) -> None:
    """Print a row per rule: means over shuffles of the stream."""
    clouds = accuracy(cloud_of(table), table)
    all_cloud = COSTS.of([Step(Tier.CLOUD, table.n_layers)])
    orders = [np.random.default_rng(each).permutation(len(table)) for each in range(n)]
    print(f"{'rule':26} {'acc':>6} {'drop':>6} {'cost':>6}  moves: (after samples, to rung)")
    print(f"{'all-cloud':26} {clouds:6.2f} {0:6.2f} {all_cloud:6.2f}")

    def row(name: str, rules: list[Policy], note: str = "") -> None:
        scores, costs = [], []
        for rule, order in zip(rules, orders, strict=True):
            stream = table.take(order)
            played = replay(rule, stream, costs=COSTS)
            scores.append(accuracy(played.predictions, stream))
            costs.append(played.costs.mean())
        moves = "; ".join(
            " ".join(f"{at}>{to}" for at, to in rule.moves) or "none"
            for rule in rules
            if isinstance(rule, Spy)
        )
        score = float(np.mean(scores))
        print(
            f"{name:26} {score:6.2f} {clouds - score:6.2f} {np.mean(costs):6.2f}  {moves or note}"
        )

    for name, policy in policies.items():
        row(name, [policy] * n)
    for name, settings in guards(guarded):
        spies = [Spy.on(guarded, replace(settings, seed=each)) for each in range(n)]
        row(name, list(spies))
        if settings.recalibrates:
            print(f"{'':26} scale {np.mean([spy.scale for spy in spies]):.2f}")


def stream_of(first: ExitTable, then: ExitTable) -> ExitTable:
    joined = first.joined(then)
    return replace(joined, row_ids=np.arange(len(joined), dtype=np.int64))


def adwin(policy: DimecGuarded, table: ExitTable) -> list[int] | None:
    """Return where river's ADWIN sees the first point's pooled confidence change."""
    try:
        from river.drift import ADWIN
    except ImportError:
        return None
    from dimec.policies.replay import walk_groups

    cascade = policy.rungs[0].cascade
    _, first, *_ = walk_groups(cascade, TierTables.of_all(table).with_exit_zero, COSTS)
    confidence = cascade.answer_group(first.group).confidence
    detector, found = ADWIN(delta=0.002), []
    for place, value in enumerate(confidence.tolist()):
        detector.update(value)
        if detector.drift_detected:
            found.append(place)
    return found


def turned(guarded: DimecGuarded, own: ExitTable, other: ExitTable, n: int) -> None:
    """Print when the turn of a stream is noticed, and false alarms before it."""
    print(f"{len(own):,} of the test split, then {len(other):,} of the other set")
    for kind in ("guarded", "guarded, drift alone", "guarded, audits alone", "adwin"):
        early, delays, missed = 0, [], 0
        for seed in range(n):
            draws = np.random.default_rng([1, seed])
            first = own.take(draws.permutation(len(own)))
            stream = stream_of(first, other.take(draws.permutation(len(other))))
            if kind == "adwin":
                places = adwin(guarded, stream)
                if places is None:
                    break
            else:
                spy = Spy.on(guarded, replace(dict(guards(guarded))[kind], seed=seed))
                replay(spy, stream, costs=COSTS)
                places = [at for at, _ in spy.moves]
            early += sum(at <= len(own) for at in places)
            after = [at - len(own) for at in places if at > len(own)]
            delays += after[:1]
            missed += not after
        if delays or missed:
            delay = f"median {np.median(delays):.0f}, most {max(delays)}" if delays else "never"
            print(
                f"  {kind:24} noticed after {delay}; not noticed {missed} of {n}; "
                f"{early} false alarms in {n * len(own):,} samples"
            )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("pairs", nargs="*", default=list(PAIRS))
    options.add_argument("--shuffles", type=int, default=5)
    options.add_argument("--price", type=float, default=0.1)
    given = options.parse_args()
    runs, data = Path(os.environ["DIMEC_RUNS"]), Path(os.environ["DIMEC_DATA"])
    for pair in given.pairs:
        name, shift = pair.split(":")
        bed = EvaluationSetup.of(runs / name, SetupOptions(data=str(data / shift), skip_empty=True))
        calibration = Calibration(bed.run.validation, bed.depths, price=given.price)
        names = ("dimec-dc-fixed", "dimec-dc-adaptive", "dimec-cascade")
        policies = {each: POLICIES[each].fit(calibration) for each in names}
        guarded = DimecGuarded.fit(calibration)
        print(f"\n== {name} on {shift}, price {given.price:g}, {given.shuffles} orders")
        differ = ", ".join(f"{100 * rung.disagreement:.2f}" for rung in guarded.rungs)
        print(
            f"disagreement on validation by rung {differ}; allowed {100 * guarded.allowed:.2f} (all in %)"
        )
        shifted(policies, guarded, bed.table, given.shuffles)
        turned(guarded, bed.run.test, bed.table, given.shuffles)


if __name__ == "__main__":
    main()
