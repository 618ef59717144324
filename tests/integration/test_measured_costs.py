"""Measured costs from end to end: what a replay predicts and what live tiers take, and the commands that tell it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.bundles import table_of
from tests.commands import Here
from tests.inputs import unsourced, write_rows
from tests.relay import delayed
from tests.servers import tier_server

from dimec.bundle import Bundle
from dimec.bundle.choosing import Measurement, Profile
from dimec.bundle.engines.hardware import machine
from dimec.bundle.profiling import Case, cost_profile, measure
from dimec.core.tiers import TIERS, Tier
from dimec.costs.billing import Billing
from dimec.costs.pricing import MS, Texts
from dimec.costs.profiles import READY, CostProfile, load_profile
from dimec.data import reviews
from dimec.evaluation.meter import Meter
from dimec.evaluation.results import Evaluation, Frontier
from dimec.policies.replay import replay
from dimec.runs.exit_table import TierTables
from dimec.runs.run import Run
from dimec.runtime.device.device import Device
from dimec.runtime.device.options import DeviceSettings
from dimec.studies.options import StudyOptions
from dimec.studies.running import STUDIES
from dimec.studies.study_runs import StudyRuns

ROUND_TRIP_MS = {Tier.EDGE: 250.0, Tier.CLOUD: 600.0}
WITHIN = 0.5
"""How far a live median may be from the predicted one, as a share of the latter: the delays are most of both."""


@pytest.fixture(scope="module")
def machine_profile(tiny_bundle: Bundle) -> CostProfile:
    """Give a profile with this machine's times, measured now, and links of these delays."""
    measurements: list[Measurement] = []
    for tier in TIERS:
        held = tiny_bundle.of(tier)
        assert held is not None
        for length in (8, 32):
            how: dict[str, Any] = {
                "engine": "onnxruntime",
                "threads": 1,
                "batch": 1,
                "seconds": 0.05,
            }
            measurements.append(measure(Case(folder=str(held.folder), length=length, **how)))
    profile = Profile(
        format=1,
        model_fingerprint=tiny_bundle.mobile.manifest.model_fingerprint,
        machine=machine(),
        versions={},
        measurements=tuple(measurements),
    )
    filled = cost_profile(profile, name="here", base=load_profile("laptop"))
    fast = {"uplink_bps": 1e9, "downlink_bps": 1e9, "loss": 0.0}
    return filled.changed(
        **{
            f"to_{tier}__{name}": value
            for tier, delay in ROUND_TRIP_MS.items()
            for name, value in {**fast, "round_trip_ms": delay}.items()
        }
    )


def test_a_replay_predicts_what_live_tiers_take(
    tiny_bundle: Bundle, machine_profile: CostProfile
) -> None:
    texts = list(reviews(40, seed=7).first)
    with (
        tier_server("edge", tiny_bundle.folder) as edge,
        tier_server("cloud", tiny_bundle.folder) as cloud,
        delayed(edge.ready["port"], round_trip_ms=ROUND_TRIP_MS[Tier.EDGE]) as to_edge,
        delayed(cloud.ready["port"], round_trip_ms=ROUND_TRIP_MS[Tier.CLOUD]) as to_cloud,
        Device(
            tiny_bundle,
            edge=to_edge,
            cloud=to_cloud,
            settings=DeviceSettings(threads=1, deadline_ms=60_000, in_flight=1),
        ) as device,
    ):
        answers = device.classify(texts)
        policy = device.policy.fresh()
    assert {answer.degraded for answer in answers} == {None}
    table = table_of(tiny_bundle, texts)
    costs = tiny_bundle.mobile.manifest.costs
    played = replay(policy, table, costs=costs)
    assert [answer.tier for answer in answers] == [TIERS[tier] for tier in played.tiers]
    meter = Meter.of(Billing(machine_profile, "ms"), TierTables(table), costs=costs)
    predicted = meter.replay(policy, played).measured
    assert predicted is not None
    live = np.array([answer.latency_ms for answer in answers])
    medians = {}
    for place, tier in enumerate(TIERS):
        rows = np.flatnonzero(played.tiers == place)
        assert len(rows) >= 3, f"{tier} answers too few of these texts to say anything"
        medians[tier] = float(np.median(live[rows])), float(np.median(predicted[MS, rows]))
    for tier, delay in ROUND_TRIP_MS.items():
        took, said = medians[tier]
        assert said >= delay
        assert abs(took - said) <= WITHIN * said, f"{tier}: {took:.1f} ms, predicted {said:.1f}"
    # the tiers come in the predicted order
    assert sorted(TIERS, key=lambda tier: medians[tier][0]) == list(TIERS)
    assert sorted(TIERS, key=lambda tier: medians[tier][1]) == list(TIERS)


# --- commands


@pytest.fixture(scope="module")
def run(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(tiny_run.folder, tmp_path_factory.mktemp("measured") / "run")


@pytest.mark.parametrize(
    ("unit", "words"),
    [
        ("ms", "in ms by the profile phone-4g"),
        ("bytes", "bytes that the device sends"),
        ("joules", "mJ of the device's battery"),
        ("money", "USD a thousand texts"),
    ],
)
def test_tables_are_told_in_a_unit(run: Path, unit: str, words: str, here: Here) -> None:
    measured = ("--profile", "phone-4g", "--unit", unit)
    chosen = ("--policy", "deebert", "--policy", "neurosurgeon", *measured)
    told = " ".join(here("evaluate", run, *chosen).out.split())
    assert words in told
    assert "±" in told
    found = Evaluation.model_validate_json(here("evaluate", run, *chosen, "--json").out)
    assert (found.unit, found.profile) == (unit, "phone-4g")
    for row in found.rows:
        assert row.measured is not None
        assert row.measured.ms.ci95[0] <= row.measured.ms.mean <= row.measured.ms.ci95[1]


def test_frontiers_and_plans_are_told_in_a_unit(run: Path, here: Here) -> None:
    measured = ("--profile", "phone-4g", "--unit", "joules")
    chosen = ("--policy", "deebert", "--prices", "0.01,0.5")
    swept = here("frontier", run, *chosen, *measured, "--json").out
    assert {each.unit for each in Frontier.model_validate_json(swept).evaluations} == {"joules"}
    planned = json.loads(here("plan", run, *measured, "--json").out)
    assert (planned["unit"], planned["profile"]) == ("joules", "phone-4g")
    assert "mean length" in " ".join(here("plan", run, *measured).out.split())


def test_in_lambda_a_profile_changes_nothing_but_adds_its_measures(run: Path, here: Here) -> None:
    chosen = ("evaluate", run, "--policy", "dimee-fixed", "--json")
    plain = Evaluation.model_validate_json(here(*chosen).out)
    added = Evaluation.model_validate_json(here(*chosen, "--profile", "laptop").out)
    assert [row.model_copy(update={"measured": None}) for row in added.rows] == list(plain.rows)
    assert all(row.measured is not None for row in added.rows)


def test_a_bundle_is_told_in_a_unit_too(tiny_bundle: Bundle, tmp_path: Path, here: Here) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", reviews(40, seed=9))
    folder = shutil.copytree(tiny_bundle.folder, tmp_path / "bundle")
    measured = ("--profile", "laptop", "--unit", "ms")
    told = here("evaluate", folder, "--data", rows, *measured, "--json").out
    assert Evaluation.model_validate_json(told).unit == "ms"


def test_a_profile_of_this_machine(
    tiny_bundle: Bundle, run: Path, tmp_path: Path, here: Here
) -> None:
    costs = tmp_path / "here.json"
    bundle = str(tiny_bundle.folder)
    few = ("--engine", "onnxruntime", "--lengths", "8,16", "--seconds", "0.02")
    kept = ("--out", str(tmp_path / "profile.json"), "--costs", str(costs))
    tiers = ("--tier", "mobile", "--tier", "cloud", "--batches", "1")
    told = here("profile", bundle, *few, *kept, *tiers).out
    assert "to be edited" in told
    found, base = load_profile(costs), load_profile("laptop")
    assert (found.name, found.width) == ("here", 32)
    assert found.mobile.points is not None and found.cloud.points is not None
    assert [point.tokens for point in found.mobile.points] == [8, 16]
    assert found.mobile.watts == base.mobile.watts
    assert found.edge == base.edge
    assert found.to_cloud == base.to_cloud
    assert unsourced(found) == []
    measured = Profile.model_validate_json((tmp_path / "profile.json").read_text())
    first = measured.measurements[0]
    assert found.mobile.points[0].layer_ms == pytest.approx(np.mean(first.layer_ms))
    texts = Texts(np.array([8.0]), np.array([16.0]))
    layers = Billing(found, "ms").pricer(Run.open(run).test).layer(Tier.MOBILE, texts)
    assert layers[MS, 0] == pytest.approx(np.mean(first.layer_ms))
    assert "--batches" in here("profile", bundle, *few, *kept, "--batches", "4", code=2).err


def test_a_study_plots_the_cut_against_bandwidth_and_load(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StudyRuns, "run", lambda *_, **__: tiny_run)
    runs = StudyRuns(StudyOptions(seeds=1), tasks=("reviews",), out=tmp_path)
    found = STUDIES["partition"].make(runs)
    assert len(found.figures) == 6
    for figure in found.figures:
        columns = found.rows[figure.table][0]
        names = (figure.x, figure.y, figure.color, figure.facet, *figure.hover)
        assert {name for name in names if name} <= set(columns)
    usual = found.rows["partition-reviews"]
    assert {row["profile"] for row in usual} == set(READY)
    for row in usual:
        assert row["best"] == pytest.approx(min(row["tokens"], row["device"], row["between"]))
    # a phone keeps a tiny encoder to itself, and gives a large one away where the link allows it
    large = found.rows["partition-uplink-latency-reviews"]
    on_phone = [
        (row["x"], row["layer"])
        for row in large
        if (row["profile"], row["encoder"]) == ("phone-wifi", "BERT-large")
    ]
    layers = [layer for _, layer in sorted(on_phone)]
    assert (layers[0], layers[-1]) == (24, 0)
    assert layers == sorted(layers, reverse=True)
    tiny = {row["layer"] for row in large if row["encoder"] == "this run's"}
    assert tiny == {4}
    loads = [
        row["layer"]
        for row in sorted(found.rows["partition-load-latency-reviews"], key=lambda row: row["x"])
        if (row["profile"], row["encoder"]) == ("phone-wifi", "BERT-large")
    ]
    assert loads == sorted(loads)
    assert (loads[0], loads[-1]) == (0, 24)
