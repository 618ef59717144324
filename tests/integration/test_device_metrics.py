"""What a device counts: scraped from an application's registry, and written to a file by `dimec classify`."""

from __future__ import annotations

import threading
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.parser import text_string_to_metric_families
from tests.misbehaving import dead_url
from tests.servers import tier_server

from dimec.bundle import Bundle
from dimec.core.errors import OptionError
from dimec.core.guard_settings import GuardSettings
from dimec.core.tiers import TIERS, Tier
from dimec.data import reviews
from dimec.policies import Calibration, Policy
from dimec.policies.guarded import DimecGuarded
from dimec.policies.random import Random
from dimec.runs.run import Run
from dimec.runtime.device import metrics as device_metrics
from dimec.runtime.device.device import Device
from dimec.runtime.device.metrics import MetricsFile
from dimec.runtime.device.options import DeviceSettings

TEXTS = list(reviews(60, seed=7).first)
SETTINGS = DeviceSettings(threads=1, deadline_ms=60_000, attempts=1)

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parsed(page: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[f"dimec_device_{name}", tuple(sorted(labels.items()))]


def scraped(device: Device) -> Samples:
    registry = CollectorRegistry()
    registry.register(device.metrics)
    return parsed(generate_latest(registry).decode())


@pytest.fixture
def anywhere(tiny_run: Run) -> Policy:
    """Give a policy that sends texts to every tier."""
    return Random.fit(Calibration(tiny_run.validation, tiny_run.config.depths))


def test_an_application_serves_them_from_its_own_registry(
    tiny_bundle: Bundle, anywhere: Policy
) -> None:
    with (
        tier_server("edge", tiny_bundle.folder) as edge,
        Device(tiny_bundle, policy=anywhere, edge=edge.url, settings=SETTINGS) as device,
    ):
        registry = CollectorRegistry()
        registry.register(device.metrics)
        answers = device.classify(TEXTS)
        server, thread = start_http_server(0, addr="127.0.0.1", registry=registry)
        try:
            url = f"http://127.0.0.1:{server.server_port}/metrics"
            with urllib.request.urlopen(url) as response:
                found = parsed(response.read().decode())
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
        traffic = device.traffic[Tier.EDGE]
    told = Counter(str(answer.tier) for answer in answers)
    assert len(told) == 3
    for tier in map(str, TIERS):
        assert value(found, "answers_total", tier=tier) == told[tier]
        assert value(found, "answer_seconds_count", tier=tier) == told[tier]
        spent = sum(answer.latency_ms for answer in answers if answer.tier == tier) / 1_000
        assert value(found, "answer_seconds_sum", tier=tier) == pytest.approx(spent)
    assert value(found, "cost_lambda_total") == pytest.approx(sum(each.cost for each in answers))
    assert value(found, "requests_total", tier="edge") == traffic.requests == told["edge"]
    assert value(found, "sent_bytes_total", tier="edge") == traffic.sent_bytes > 0
    assert value(found, "received_bytes_total", tier="edge") == traffic.received_bytes > 0
    assert not [name for name, _ in found if "guard" in name or name.endswith("degraded_total")]


def test_what_went_wrong_is_counted_by_kind(tiny_bundle: Bundle, anywhere: Policy) -> None:
    dead = dead_url()
    alone = Bundle(tiny_bundle.folder, tiny_bundle.mobile, None, None)
    settings = SETTINGS.model_copy(update={"opens_after": 3})
    with Device(alone, policy=anywhere, edge=dead, settings=settings) as device:
        answers = device.classify(TEXTS)
        found = scraped(device)
    degraded = {
        tuple(dict(labels).values()): n
        for (name, labels), n in found.items()
        if name == "dimec_device_degraded_total"
    }
    assert sum(degraded.values()) == sum(answer.degraded is not None for answer in answers)
    assert set(degraded) == {("unreachable", "edge"), ("resting", "edge"), ("no_tier", "cloud")}


def test_a_guard_tells_its_health(tiny_run: Run, tiny_bundle: Bundle) -> None:
    guard = GuardSettings(audit_rate=0.5)
    policy = DimecGuarded.fit(Calibration(tiny_run.validation, tiny_run.config.depths, guard=guard))
    with Device(tiny_bundle, policy=policy, settings=SETTINGS) as device:
        answers = device.classify(TEXTS)
        found, health = scraped(device), device.guard
    assert value(found, "guard_samples_total") == len(TEXTS)
    assert value(found, "guard_audits_total") == health["audits"] > 0
    assert value(found, "guard_differing_total") == health["differing"]
    for by in ("drift", "audits"):
        assert value(found, "guard_alarms_total", by=by) == health[f"alarms_by_{by}"]
    for name in ("rung", "rungs", "allowed_disagreement", "suspects"):
        assert value(found, f"guard_{name}") == health[name]
    assert value(found, "alarmed_total") == sum(each.alarm is not None for each in answers)


def test_the_file_is_kept_fresh_and_whole(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_metrics, "WRITE_EVERY_S", 0.001)
    folder, away, warned = tmp_path / "metrics", tmp_path / "away", threading.Event()
    folder.mkdir()
    path = folder / "dimec.prom"
    with Device(tiny_bundle, settings=SETTINGS) as device:
        with MetricsFile(path, device.metrics, warn=lambda _: warned.set()):
            device.classify(TEXTS[:20])
            seen = 0.0
            while seen < 20:  # it is written by itself
                found = parsed(path.read_text())
                seen = sum(value(found, "answers_total", tier=tier) for tier in map(str, TIERS))
            assert not warned.is_set()
            folder.rename(away)
            assert warned.wait(60)
            away.rename(folder)
            device.classify(TEXTS[20:])
        assert parsed(path.read_text()) == scraped(device)
        with (
            pytest.raises(OptionError, match="--metrics-file"),
            MetricsFile(away / "dimec.prom", device.metrics, warn=print),
        ):
            pass
