"""A split policy live, over servers on loopback, against its replay: equal answers, and what travels.

A run is exported with `--tails`; edge and cloud are `dimec serve` processes; the device streams the
held-out texts in the order of the run's test table. Replay reads a table that the exported files made. Equal is what
both say of a text: label, tier, exit and cost; accuracy and mean cost are the live ones, with replay's behind. Then
every text is shipped at every split, and once as token ids, which is what any of it must beat. With names of the run's
learned bottlenecks each of these is exported and run in place of the split policies, beside FP16 at its split and token
ids; "code" is what replay counts of a state, and what the tensor of a request holds.

    python benchmarks/bench_split_live.py RUN [TEXTS] [BOTTLENECK …]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dimec
from bench_server import dimec_server
from dimec.bundle import Bundle, load_bundle
from dimec.bundle.hidden import HiddenType
from dimec.bundle.tabulate import read_samples, tabulate_bundle
from dimec.core.tiers import TIERS, Step, Tier
from dimec.data import TextDataset
from dimec.deploying.planning import run_calibration
from dimec.evaluation import replay
from dimec.policies import Policy
from dimec.policies.cascade import DimecCascade, Point
from dimec.policies.splitee import SplitEe, SplitEeS
from dimec.runs.compressed import compressed_in
from dimec.runs.exit_table import TierTables
from dimec.runs.run import Run
from dimec.runtime.device.device import Device
from dimec.runtime.device.options import DeviceSettings
from dimec.runtime.device.sample import Text
from dimec.training.texts import split_texts

KINDS = (SplitEe, SplitEeS)  # i-splitee is splitee-s at one price
TYPES: tuple[HiddenType, ...] = ("FP32", "FP16")


@dataclass(frozen=True)
class Compared:
    """A stream against its replay."""

    n: int
    labels: int
    tiers: int
    exits: int
    costs: int
    off: float
    accuracy: tuple[float, float]
    cost: tuple[float, float]
    offloaded: int
    sent_bytes: float
    code_bytes: float | None

    def line(self, name: str, kind: str) -> str:
        equal = f"{self.labels:8,}{self.tiers:8,}{self.exits:8,}{self.costs:8,}"
        rest = "".join(
            f"{100 * self.accuracy[i]:8.2f}{self.cost[i]:7.3f}" for i in range(len(self.cost))
        )
        sent = f"{self.sent_bytes:12,.0f}" if self.offloaded else f"{'':12}"
        code = "" if self.code_bytes is None else f"{self.code_bytes:9,.1f}"
        return (
            f"{name:16}{kind:6}{self.n:6,}{equal}{self.off:12.1e}{rest}{self.offloaded:8,}{sent}"
            + code
        )


def main() -> None:
    run = Run.open(sys.argv[1])
    dataset = split_texts(run, "test")
    given = sys.argv[2:]
    if given and given[0].isdecimal():
        dataset = dataset.take(np.arange(int(given.pop(0))))
    texts: Sequence[Text] = (
        dataset.first
        if dataset.second is None
        else list(zip(dataset.first, dataset.second, strict=True))
    )
    print(f"{run.config.task.name}, test split; equal to replay of n: labels, tiers, exits, costs;")
    print("largest difference of confidence; texts offloaded; bytes of a request's body")
    print(
        f"{'policy':16}{'wire':6}{'n':>6}{'labels':>8}{'tiers':>8}{'exits':>8}{'costs':>8}", end=""
    )
    print(
        f"{'confidence':>12}{'acc.':>8}{'cost':>7}{'replay':>8}{'cost':>7}{'sent':>8}{'bytes':>12}"
        + (f"{'code':>9}" if given else "")
    )
    for name in given:
        through(run, name, dataset, texts)
    with TemporaryDirectory() as scratch:
        dimec.export(run, out=f"{scratch}/bundle", policy="splitee", tails=True)
        bundle = load_bundle(Path(scratch) / "bundle")
        calibration = run_calibration(run, price=bundle.mobile.manifest.price)
        samples = read_samples(bundle.mobile, dataset)
        tables = tabulate_bundle(bundle, samples)
        with served(bundle) as urls:
            for rule in KINDS if not given else ():
                for kind in TYPES:
                    policy = rule.fit(calibration)
                    print(
                        compare(bundle, policy, kind, texts, tables, urls).line(rule.name, kind),
                        flush=True,
                    )
            for name, arm in every_split(bundle):
                if given and name not in {f"all at layer {layer}" for layer in splits(run, given)}:
                    continue
                print(
                    compare(bundle, arm, "FP16", texts, tables, urls).line(name, "FP16"),
                    flush=True,
                )
            whole = Step(Tier.CLOUD, bundle.mobile.manifest.n_layers)
            tokens = DimecCascade(
                bundle.mobile.manifest.depths, [Point((whole,), (1.0,), (None,), ())]
            )
            print(compare(bundle, tokens, "FP16", texts, tables, urls).line("token ids", ""))
        print(f"tokens of a text, special ones included: {samples.tokens.lengths.mean():.1f}")


def through(run: Run, name: str, dataset: TextDataset, texts: Sequence[Text]) -> None:
    """Run every text through a learned bottleneck."""
    with TemporaryDirectory() as scratch:
        dimec.export(run, out=f"{scratch}/bundle", policy=name)
        bundle = load_bundle(Path(scratch) / "bundle")
        tables = tabulate_bundle(bundle, read_samples(bundle.mobile, dataset))
        with served(bundle) as urls:
            compared = compare(bundle, bundle.mobile.policy(), None, texts, tables, urls)
        print(compared.line(name, "UINT8"), flush=True)


def splits(run: Run, names: Sequence[str]) -> set[int]:
    """Return the layers after which bottlenecks stand."""
    return {each.config.options.layer for each in compressed_in(run) if each.config.name in names}


@contextmanager
def served(bundle: Bundle) -> Iterator[dict[str, str]]:
    """Serve edge and cloud, a process each."""
    with (
        dimec_server("edge", bundle.folder) as (edge, _),
        dimec_server("cloud", bundle.folder) as (cloud, _),
    ):
        yield {"edge": f"http://127.0.0.1:{edge}", "cloud": f"http://127.0.0.1:{cloud}"}


def every_split(bundle: Bundle) -> Iterator[tuple[str, Policy]]:
    """Give a rule per split that ships every text there; from the last layer there is nothing to ship."""
    policy: Any = bundle.mobile.policy()
    policy.alpha = 1.1
    for name, arm in list(policy.arms().items())[:-1]:
        yield f"all at {name}", arm


def compare(
    bundle: Bundle,
    policy: Policy,
    kind: HiddenType | None,
    texts: Sequence[Text],
    tables: TierTables,
    urls: dict[str, str],
) -> Compared:
    played = replay(policy, tables, costs=bundle.mobile.manifest.costs)
    settings = settings_for(kind)
    with Device(bundle, policy=policy.fresh(), settings=settings, **urls) as device:
        answers = list(device.stream(texts))
        traffic = list(device.traffic.values())
    assert not any(answer.degraded for answer in answers)
    names = bundle.mobile.manifest.label_names
    labels = np.array([names.index(each.label) for each in answers])
    confidence = np.array([answer.confidence for answer in answers])
    requests = sum(each.requests for each in traffic)
    restored = tables.restored
    return Compared(
        n=len(texts),
        labels=equal(labels, played.predictions),
        tiers=equal([TIERS.index(each.tier) for each in answers], played.tiers),
        exits=equal([each.layer for each in answers], played.layers),
        costs=int(np.isclose([each.cost for each in answers], played.costs).sum()),
        accuracy=(
            equal(labels, tables.encoder.labels) / len(texts),
            equal(played.predictions, tables.encoder.labels) / len(texts),
        ),
        cost=(float(np.mean([each.cost for each in answers])), float(played.costs.mean())),
        off=float(np.abs(confidence - played.confidence).max()),
        offloaded=requests,
        sent_bytes=sum(each.sent_bytes for each in traffic) / max(requests, 1),
        code_bytes=None if restored is None else float(restored.table.payload_bytes.mean()),
    )


def settings_for(kind: HiddenType | None) -> DeviceSettings:
    return DeviceSettings(hidden_type=kind, threads=1, deadline_ms=60_000)


def equal(ours: Sequence[int] | NDArray[np.integer], theirs: NDArray[np.integer]) -> int:
    return int((np.array(ours) == theirs).sum())


if __name__ == "__main__":
    main()
