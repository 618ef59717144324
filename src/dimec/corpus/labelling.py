"""What a worker does: a bundle's tiers over one block, stage by stage, and the part that comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dimec.bundle import load_bundle
from dimec.bundle.tabulate import Samples, tabulate_bundle
from dimec.core.options import EngineName
from dimec.core.tiers import Step, Tier
from dimec.corpus.asking import Asked, Books, asking
from dimec.corpus.blocks import Block
from dimec.corpus.store import Kind, Store
from dimec.policies.cascade import DimecCascade
from dimec.policies.replay import replay
from dimec.runtime.device.device import Device
from dimec.runtime.device.options import DeviceSettings

_PATIENCE_MS = 1e9
"""Nobody waits for one text: a model that is asked has its own limits."""

ANSWERS = pa.schema(
    [
        ("file", pa.string()),
        ("row", pa.int64()),
        ("id", pa.string()),
        ("label", pa.string()),
        ("confidence", pa.float32()),
        ("tier", pa.string()),
        ("layer", pa.int16()),
        ("cost", pa.float32()),
        ("degraded", pa.string()),
        ("error", pa.string()),
    ]
)
"""The columns of the answers; a row that could not be classified has an ``error`` and no answer, and one whose answer
another tier had to give says why as ``degraded``."""


@dataclass(frozen=True, slots=True)
class Work:
    """What every worker is told.

    Attributes:
        bundle: The bundle's folder, the same on every machine.
        out: Where the parts go.
        paths: The corpus's files.
        kind: Of which parts the blocks are; to the sample all-cloud and all operating points answer.
        policy: The index of the operating point that answers, -1 for all-cloud; None for the bundle's own policy.
        asked: The models of others that tiers ask.
        books: Who keeps their answers; None where there are none.
    """

    bundle: Path
    out: str
    paths: tuple[str, ...]
    engine: EngineName
    threads: int | None
    kind: Kind = "answers"
    policy: int | None = None
    asked: tuple[Asked, ...] = ()
    books: Books | None = None


class Labeller:
    """Writes the part of each block that it is given."""

    def __init__(self, work: Work) -> None:
        """Open the bundle, and read what the sample's rows were answered."""
        self._work = work
        self._store = Store(work.out)
        self._bundle = load_bundle(work.bundle, verify=False)
        self._known: dict[tuple[int, int], tuple[str, float]] = {}
        own = self._bundle.mobile.policy()
        if work.kind == "sample" or work.policy is not None:
            assert isinstance(own, DimecCascade)
            from dimec.deploying.corpus import all_cloud, operating_points

            self._points = operating_points(own)
            own = all_cloud(own) if work.policy in (None, -1) else self._points[work.policy]
        if work.policy is not None:
            columns = ["file", "row", "label", "confidence"]
            for part in self._store.parts("sample", columns):
                file, row, label, confidence = (part[each].to_pylist() for each in columns)
                self._known |= zip(
                    zip(file, row, strict=True), zip(label, confidence, strict=True), strict=True
                )
        settings = DeviceSettings(
            engine=work.engine,
            threads=work.threads,
            in_flight=max((each.at_once for each in work.asked), default=None),
            deadline_ms=_PATIENCE_MS,
        )
        self._device = Device(
            self._bundle,
            policy=own,
            settings=settings,
            asking=asking(self._bundle, work.asked, work.books),
        )
        manifest = self._bundle.mobile.manifest
        self._last = Step(Tier.CLOUD, manifest.n_layers)
        self._cloud_cost = manifest.costs.of([self._last])

    def __call__(self, block: Block) -> int:
        """Answer the rows of a block, write its part, and return how many rows it has."""
        columns = block.rows.to_pydict()
        good = [at for at, error in enumerate(columns["error"]) if error is None]
        answer = self._sampled if self._work.kind == "sample" else self._answered
        self._store.add(self._work.kind, block.name, answer(block, columns, good))
        return int(block.rows.num_rows)

    def _answered(self, block: Block, columns: dict[str, list[Any]], good: list[int]) -> pa.Table:
        known = {at: self._known.get((block.file, columns["row"][at])) for at in good}
        unknown = [at for at in good if known[at] is None]
        firsts, seconds = columns["first"], columns["second"]
        pairs = self._device.pairs
        answers = self._device.classify(
            [(firsts[at], seconds[at]) if pairs else firsts[at] for at in unknown]
        )
        cells: dict[int, tuple[object, ...]] = {
            at: (
                *(each.label, each.confidence, str(each.tier), each.layer, each.cost),
                each.degraded,
            )
            for at, each in zip(unknown, answers, strict=True)
        }
        last = str(self._last.tier), self._last.layer, self._cloud_cost, None
        cells |= {at: (*said, *last) for at, said in known.items() if said is not None}
        none = (None,) * 6
        rows = [cells.get(at, none) for at in range(block.rows.num_rows)]
        found = [[self._work.paths[block.file]] * len(rows), columns["row"], columns["id"]]
        found += [list(each) for each in zip(*rows, strict=True)]
        return pa.table([*found, columns["error"]], schema=ANSWERS)

    def _sampled(self, block: Block, columns: dict[str, list[Any]], good: list[int]) -> pa.Table:
        """Say what all-cloud answers, where each operating point answers otherwise, and what that costs."""
        manifest = self._bundle.mobile.manifest
        rows = np.array([columns["row"][at] for at in good], dtype=np.int64)
        labels, differs, costs = [], np.zeros((0, 0), dtype=bool), np.zeros((0, 0))
        confidence: list[float] = []
        if good:
            firsts = [columns["first"][at] for at in good]
            seconds = [columns["second"][at] for at in good] if self._device.pairs else None
            tokens = self._bundle.mobile.tokenizer().encode(firsts, seconds)
            samples = Samples(tokens, np.zeros(len(good), dtype=np.int64), rows)
            tables = tabulate_bundle(
                self._bundle, samples, engine=self._work.engine, threads=self._work.threads
            )
            last = tables.of(Tier.CLOUD)
            said = last.predictions[:, -1]
            labels = [manifest.label_names[each] for each in said.tolist()]
            confidence = last.confidence[:, -1].tolist()
            played = [replay(each, tables, costs=manifest.costs) for each in self._points]
            differs = np.stack([each.predictions != said for each in played], axis=1)
            costs = np.stack([each.costs for each in played], axis=1)
        return pa.table(
            {
                "file": pa.array([block.file] * len(good), pa.int64()),
                "row": pa.array(rows, pa.int64()),
                "label": pa.array(labels, pa.string()),
                "confidence": pa.array(confidence, pa.float32()),
                "differs": pa.array(differs.tolist(), pa.list_(pa.bool_())),
                "costs": pa.array(costs.tolist(), pa.list_(pa.float32())),
            }
        )

    def close(self) -> None:
        """Close the device."""
        self._device.close()
