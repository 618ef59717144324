"""Where Neurosurgeon cuts an encoder, and when that moves: against bandwidth and load, under the ready profiles.

No text is classified: a cut is chosen by the profile and the texts' mean length alone. The run gives that length; the
ready profiles price an encoder of any width, so that larger ones than the run's are asked about too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from dimec.costs.model import CostModel
from dimec.costs.pricing import Pricer, Texts
from dimec.costs.profiles import READY, CostProfile, load_profile
from dimec.policies.neurosurgeon import best_partition, partition
from dimec.reporting.results import Column, Figure, Table
from dimec.runs.run import Run
from dimec.studies.base import Findings, Study
from dimec.studies.measures import notes_on
from dimec.studies.study_runs import StudyRuns

Aim = Literal["ms", "joules"]

UPLINKS_BPS = tuple(float(f"{10 ** (third / 3):.3g}") for third in range(9, 28))
LOADS = tuple(2.0**power for power in range(-2, 11))
AIMS: dict[Aim, str] = {"ms": "latency", "joules": "energy"}
_MILLI: dict[Aim, float] = {"ms": 1.0, "joules": 1000.0}


@dataclass(frozen=True)
class Encoder:
    """The shape of an encoder."""

    name: str
    n_layers: int
    width: int


LARGER = (Encoder("BERT-base", 12, 768), Encoder("BERT-large", 24, 1024))


def make(shop: StudyRuns) -> Findings:
    """Choose the cut at every bandwidth and at every load."""
    found = Findings()
    runs = []
    with shop.progress.stage("Study partition", len(shop.tasks)) as advance:
        for task in shop.tasks:
            run = shop.run(task)
            runs.append(run)
            rows = shop.part("partition", run, partial(sweep, run))
            _report(found, task, rows)
            advance(1)
    found.notes.append(
        "Cuts are by the mean length of the task's texts; a layer, wherever, costs the same as the next one. "
        "Bandwidth is the cloud link's; the downlink keeps its ratio to the uplink. Loads multiply the cloud's times."
    )
    found.notes += notes_on(runs)
    return found


def sweep(run: Run) -> list[dict[str, Any]]:
    """Return a row for each ready profile, encoder, aim, and bandwidth or load; those as the profile has them too."""
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
    pricer = Pricer.of(profile, width=encoder.width, n_classes=n_classes)
    costs: CostModel = pricer.cost_model(aim, texts)
    layers = tuple(range(encoder.n_layers + 1))
    spent = [_MILLI[aim] * costs.of(partition(layer, encoder.n_layers)) for layer in layers]
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
        {**row, **_moves(rows, row), "unit": "ms" if row["aim"] == "latency" else "mJ"}
        for row in rows
        if row["varied"] == "nothing"
    ]
    found.add(_table(task), usual)
    for varied, x_title in (
        ("uplink", "uplink, powers of ten of bit/s"),
        ("load", "load of the cloud, powers of two"),
    ):
        log = np.log10 if varied == "uplink" else np.log2
        swept = [{**row, "x": float(log(row["value"]))} for row in rows if row["varied"] == varied]
        for aim in AIMS.values():
            name = f"partition-{varied}-{aim}-{task}"
            found.add(
                Table(name=name, title=f"{task}: the cut for least {aim} as drawn"),
                [row for row in swept if row["aim"] == aim],
                Figure(
                    name=name,
                    title=f"{task}: where the encoder is cut for least {aim}, against the {varied}",
                    about="The share of layers that run on the device, a panel for each profile, a line for each "
                    "encoder: 100 % sends nothing, 0 % sends the token ids.",
                    table=name,
                    kind="lines",
                    x="x",
                    y="on_device",
                    color="encoder",
                    facet="profile",
                    x_title=x_title,
                    y_title="layers on the device",
                    y_quantity="share",
                    hover=("profile", "encoder", "layer", "best", "tokens", "device", "between"),
                ),
            )
    for aim, unit in (("latency", "ms"), ("energy", "mJ")):
        name = f"partition-{aim}-{task}"
        found.add(
            Table(name=name, title=f"{task}: {aim} of three cuts as drawn"),
            _ways(rows, aim),
            Figure(
                name=name,
                title=f"{task}: {aim} of this run's encoder against the uplink",
                about="A panel for each profile; lines for sending the token ids, for all layers on the device, and "
                "for the best cut in between, which ships a hidden state. The lowest one is what Neurosurgeon takes.",
                table=name,
                kind="lines",
                x="x",
                y="y",
                color="way",
                facet="profile",
                x_title="uplink, powers of ten of bit/s",
                y_title=f"powers of ten of {unit} a text",
                y_quantity="number",
                hover=("profile", "way", "cost", "layer"),
            ),
        )
    inner = [row for row in rows if 0 < row["on_device"] < 1]
    found.notes.append(
        f"{task}: of {len(rows):,} choices {len(inner):,} are a cut in between, which ships a hidden state; the others "
        "send the token ids or nothing."
    )


def _ways(rows: list[dict[str, Any]], aim: str) -> list[dict[str, Any]]:
    """Return what sending tokens, nothing or a hidden state costs at each bandwidth."""
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
    """Return from which bandwidth on the token ids are sent, and up to which load; None where they never are."""
    same = ("profile", "encoder", "aim")
    alike = [row for row in rows if all(row[name] == usual[name] for name in same)]

    def sent(varied: str) -> list[float]:
        return [row["value"] for row in alike if row["varied"] == varied and row["layer"] == 0]

    uplinks, loads = sent("uplink"), sent("load")
    return {
        "from_kbps": min(uplinks) / 1000 if uplinks else None,
        "up_to_load": max(loads) if loads else None,
    }


def _table(task: str) -> Table:
    return Table(
        name=f"partition-{task}",
        title=f"{task}: where Neurosurgeon cuts under the ready profiles",
        about="At each profile's own links and load. Layer 0 sends the token ids, the encoder's last layer sends "
        "nothing. Costs are milliseconds, or thousandths of a joule of the device's battery, a text.",
        columns=(
            Column(name="encoder", title="encoder", quantity="text"),
            Column(name="aim", title="least", quantity="text"),
            Column(name="layer", title="cut after layer", quantity="count"),
            Column(name="tokens", title="token ids", quantity="cost"),
            Column(name="device", title="all on the device", quantity="cost"),
            Column(
                name="between",
                title="best in between",
                quantity="cost",
                about="The cheapest cut that ships a hidden state.",
            ),
            Column(name="unit", title="unit", quantity="text"),
            Column(
                name="from_kbps",
                title="ids from kbit/s",
                quantity="number",
                about="The smallest uplink that was tried at which the token ids are sent.",
            ),
            Column(
                name="up_to_load",
                title="ids up to load",
                quantity="number",
                about="The largest load of the cloud that was tried at which they are.",
            ),
        ),
        group="profile",
    )


STUDY = Study(
    name="partition",
    title="Where to cut one encoder for all samples",
    about="Neurosurgeon cuts the encoder where latency or energy is least. Where is that under measured costs, and "
    "when does it move with the link or with the cloud's load? What does the best cut in between, which ships a hidden "
    "state, cost beside sending the token ids?",
    source="",
    tasks=("sst2", "mrpc"),
    make=make,
)
