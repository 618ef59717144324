"""Where Neurosurgeon cuts an encoder, at each bandwidth and load, under the ready profiles.

No text is classified: a cut is chosen by the profile and the texts' mean length alone. The run gives that length; the
ready profiles price an encoder of any width, so that larger ones than the run's are asked about too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dimec.costs.model import CostModel
from dimec.costs.pricing import Pricer, Texts
from dimec.costs.profiles import READY, CostProfile, load_profile
from dimec.policies.neurosurgeon import best_partition
from dimec.policies.neurosurgeon import partition as steps_of
from dimec.runs.run import Run
from dimec.studies.base import Findings, Study
from dimec.studies.measures import notes_on
from dimec.studies.study_runs import StudyRuns

Aim = Literal["ms", "joules"]

UPLINKS_BPS = tuple(float(f"{10 ** (third / 3):.3g}") for third in range(9, 28))
LOADS = tuple(2.0**power for power in range(-2, 11))
AIMS: dict[Aim, str] = {"ms": "latency", "joules": "energy"}
UNITS = {"latency": "ms", "energy": "mJ"}


@dataclass(frozen=True)
class Encoder:
    """The shape of an encoder."""

    name: str
    n_layers: int
    width: int


LARGER = (Encoder("BERT-base", 12, 768), Encoder("BERT-large", 24, 1024))


@Study
def partition(runs: StudyRuns, found: Findings) -> None:
    """Choose the cut at every bandwidth and at every load."""
    for task in runs.each_task("Study partition"):
        run = runs.run(task)
        _report(found, task, runs.part("partition", run, _sweep))
    found.note()
    found.notes += notes_on(runs)


def _sweep(_: StudyRuns, run: Run) -> list[dict[str, Any]]:
    """Return a row per ready profile, encoder, aim, and bandwidth or load, the profile's own included."""
    table = run.test
    texts = Texts.of(table.n_tokens, table.payload_bytes)
    own = Encoder("this run's", table.n_layers, table.embeddings.shape[1])
    rows = []
    for name in READY:
        profile = load_profile(name)
        for encoder in (own, *LARGER):
            for aim in AIMS:
                for varied, value, changed in _variants(profile):
                    row = _cut(changed, encoder, aim, texts, n_classes=table.n_classes)
                    rows.append({"profile": name, "varied": varied, "value": value, **row})
    return rows


def _variants(profile: CostProfile) -> Iterable[tuple[str, float, CostProfile]]:
    yield "nothing", 1.0, profile
    ratio = profile.to_cloud.downlink_bps / profile.to_cloud.uplink_bps
    for bps in UPLINKS_BPS:
        changed = profile.changed(to_cloud__uplink_bps=bps, to_cloud__downlink_bps=ratio * bps)
        yield "uplink", bps, changed
    for load in LOADS:
        yield "load", load, profile.changed(cloud__load=load)


def _cut(
    profile: CostProfile, encoder: Encoder, aim: Aim, texts: Texts, *, n_classes: int
) -> dict[str, Any]:
    pricer = Pricer(profile, width=encoder.width, n_classes=n_classes)
    costs: CostModel = pricer.cost_model(aim, texts)
    layers = tuple(range(encoder.n_layers + 1))
    scale = 1000.0 if aim == "joules" else 1.0
    spent = [scale * costs.of(steps_of(layer, encoder.n_layers)) for layer in layers]
    layer = best_partition(costs, layers)
    between = 1 + int(np.argmin(spent[1:-1]))
    return {
        "encoder": encoder.name,
        "aim": AIMS[aim],
        "layer": layer,
        "on_device": layer / encoder.n_layers,
        "best": spent[layer],
        "tokens": spent[0],
        "device": spent[-1],
        "between": spent[between],
        "between_layer": between,
    }


def _report(found: Findings, task: str, rows: list[dict[str, Any]]) -> None:
    usual = [
        {**row, **_moves(rows, row), "unit": UNITS[row["aim"]]}
        for row in rows
        if row["varied"] == "nothing"
    ]
    found.add("partition-{task}", usual, task=task)
    for varied, log, x_title in (
        ("uplink", np.log10, "uplink, powers of ten of bit/s"),
        ("load", np.log2, "load of the cloud, powers of two"),
    ):
        swept = [{**row, "x": float(log(row["value"]))} for row in rows if row["varied"] == varied]
        for aim in UNITS:
            drawn = [row for row in swept if row["aim"] == aim]
            words = {"task": task, "varied": varied, "aim": aim, "x_title": x_title}
            found.add("partition-{varied}-{aim}-{task}", drawn, **words)
    for aim, unit in UNITS.items():
        found.add("partition-{aim}-{task}", _ways(rows, aim), task=task, aim=aim, unit=unit)
    inner = [row for row in rows if 0 < row["on_device"] < 1]
    found.notes.append(
        f"{task}: of {len(rows):,} choices {len(inner):,} are a cut in between, which ships a hidden state; the others "
        "send the token ids or nothing."
    )


def _ways(rows: list[dict[str, Any]], aim: str) -> list[dict[str, Any]]:
    """Return the cost of sending tokens, nothing, or a hidden state at each bandwidth."""
    titles = {"tokens": "token ids", "device": "all on the device", "between": "best in between"}
    return [
        {
            "profile": row["profile"],
            "x": float(np.log10(row["value"])),
            "y": float(np.log10(row[way])),
            "cost": row[way],
            "layer": row["between_layer"] if way == "between" else None,
            "way": title,
        }
        for row in rows
        if row["varied"] == "uplink" and row["aim"] == aim and row["encoder"] == "this run's"
        for way, title in titles.items()
    ]


def _moves(rows: list[dict[str, Any]], usual: dict[str, Any]) -> dict[str, float | None]:
    """Return the least bandwidth and the largest load at which token ids are sent; None where they never are."""
    same = ("profile", "encoder", "aim")
    alike = [row for row in rows if all(row[name] == usual[name] for name in same)]

    def sent(varied: str) -> list[float]:
        return [row["value"] for row in alike if row["varied"] == varied and row["layer"] == 0]

    uplinks, loads = sent("uplink"), sent("load")
    return {
        "from_kbps": min(uplinks) / 1000 if uplinks else None,
        "up_to_load": max(loads) if loads else None,
    }
