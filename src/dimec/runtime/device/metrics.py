"""What a device counts, for Prometheus; every name starts with ``dimec_device_``.

A `DeviceMetrics` is a custom collector: an application registers it in its own registry, and a command writes it to a
file for node_exporter's textfile collector.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Self

from prometheus_client import CollectorRegistry, Counter, Histogram, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from dimec.core.errors import OptionError
from dimec.core.tiers import TIERS, Answer, Tier

if TYPE_CHECKING:
    from dimec.runtime.device.device import Device

_SECONDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip

WRITE_EVERY_S = 15.0


_TRAFFIC = {
    "requests": "Requests sent to a tier's server.",
    "sent_bytes": "Bytes of their bodies.",
    "received_bytes": "Bytes of the bodies of the responses.",
}
_GUARD_COUNTS = {
    "samples": "Answers that the guard has learnt from.",
    "audits": "Samples that were audited.",
    "differing": "Audited samples that the cascade would have answered otherwise than the cloud.",
    "returns": "Moves back to a cheaper rung.",
}
_GUARD_GAUGES = {
    "rung": "Which rung is played: 0 is what was chosen.",
    "rungs": "How many there are; the last one is all-cloud.",
    "suspects": "1 while drift is suspected and more is audited.",
    "allowed_disagreement": "The share of answers that may differ from the cloud's.",
}


class DeviceMetrics:
    """The metrics of one device, as a collector: ``registry.register(device.metrics)``.

    A registry takes one device, since the names of two would be the same.
    """

    def __init__(self, device: Device) -> None:
        """Start at zero; traffic and the guard's health are read whenever somebody asks."""
        self._device = device
        self.restart()

    def restart(self) -> None:
        """Count from zero, as a forked process does."""
        registry = self._counted = CollectorRegistry()

        def counter(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"dimec_device_{name}", about, labels, registry=registry)

        answers = counter("answers", "Texts answered, by the tier that answered.", "tier")
        self._degraded = counter(
            "degraded",
            "Answers that were not as the policy wanted, by what went wrong first, and on which tier.",
            "tier",
            "reason",
        )
        self._alarmed = counter(
            "alarmed", "Answers while the policy played it safe for a danger to its promise."
        )
        self._cost = counter(
            "cost_lambda", "What all answers cost, in lambda, failed attempts included."
        )
        seconds = Histogram(
            "dimec_device_answer_seconds",
            "How long a text was worked on or waited for a server, by the tier that answered.",
            ["tier"],
            buckets=_SECONDS,
            registry=registry,
        )
        # Looked up once, and there from the start at zero.
        self._answers = {tier: answers.labels(str(tier)) for tier in TIERS}
        self._seconds = {tier: seconds.labels(str(tier)) for tier in TIERS}

    def answered(self, answer: Answer, trouble: tuple[Tier, str] | None) -> None:
        """Count an answer, and what went wrong first on its way."""
        self._answers[answer.tier].inc()
        self._seconds[answer.tier].observe(answer.latency_ms / 1_000)
        self._cost.inc(answer.cost)
        if trouble is not None:
            self._degraded.labels(str(trouble[0]), trouble[1]).inc()
        if answer.alarm is not None:
            self._alarmed.inc()

    def collect(self) -> Iterator[Metric]:
        """Give everything as it stands now; Prometheus' registries call it."""
        yield from self._counted.collect()
        traffic = self._device.traffic
        for name, about in _TRAFFIC.items():
            family = CounterMetricFamily(f"dimec_device_{name}", about, labels=["tier"])
            for tier, each in traffic.items():
                family.add_metric([str(tier)], getattr(each, name))
            yield family
        health = self._device.guard
        if not health:
            return
        for name, about in _GUARD_COUNTS.items():
            yield CounterMetricFamily(f"dimec_device_guard_{name}", about, value=health[name])
        alarms = CounterMetricFamily(
            "dimec_device_guard_alarms", "Moves to a safer rung, by what alarmed.", labels=["by"]
        )
        for by in ("drift", "audits"):
            alarms.add_metric([by], health[f"alarms_by_{by}"])
        yield alarms
        for name, about in _GUARD_GAUGES.items():
            yield GaugeMetricFamily(f"dimec_device_guard_{name}", about, value=float(health[name]))


class MetricsFile(AbstractContextManager["MetricsFile"]):
    """Keep a file of metrics fresh while it is entered: at once, every few seconds, and at the end.

    The file is replaced in one step, so that a reader never sees half of one.
    """

    def __init__(self, path: Path, metrics: DeviceMetrics, *, warn: Callable[[str], None]) -> None:
        """Take the path and the metrics; ``warn`` is told when a later write fails."""
        self._path, self._warn = path, warn
        self._registry = CollectorRegistry()
        self._registry.register(metrics)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="dimec-metrics", daemon=True)

    def __enter__(self) -> Self:
        """Write the file for the first time.

        Raises:
            OptionError: If it cannot be written.
        """
        try:
            write_to_textfile(str(self._path), self._registry)
        except OSError as exc:
            raise OptionError(
                f"--metrics-file {self._path} cannot be written ({exc.strerror or exc}): check path and rights"
            ) from exc
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Write the file for the last time."""
        self._over.set()
        self._thread.join()

    def _keep(self) -> None:
        over = failed = False
        while not over:
            over = self._over.wait(WRITE_EVERY_S)
            try:
                write_to_textfile(str(self._path), self._registry)
            except OSError as exc:  # a full disk costs no answer
                if not failed:
                    self._warn(
                        f"--metrics-file {self._path} could not be written: {exc.strerror or exc}"
                    )
                failed = True
            else:
                failed = False
