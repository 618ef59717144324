"""The demonstration: tiers as processes of their own, held-out texts through the device, a tier killed on the way.

Everything in it is what a deployment would run: `dimec serve` in two processes, the device in this one, HTTP between
them. The edge server is killed with ``SIGKILL`` a third of the way and started again after two thirds.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dimec.bundle import load_bundle
from dimec.core.errors import DimecError
from dimec.core.extras import needs_training
from dimec.core.tiers import Answer, Step, Tier
from dimec.runs.run import Run
from dimec.runtime.device.device import Device

READY_S = 60.0
STOP_S = 20.0


@dataclass
class Tally:
    """What has come out so far.

    Attributes:
        answers: The answers, in the order of the texts.
        right: Whether each is right.
        events: What was done to the servers, by the number of answers at that time.
    """

    answers: list[Answer] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    events: list[tuple[int, str]] = field(default_factory=list)

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return float(np.mean(self.right))

    @property
    def cost(self) -> float:
        """Mean cost of an answer, in lambda."""
        return float(np.mean([answer.cost for answer in self.answers]))

    def share(self, tier: Tier) -> float:
        """Return the share of answers that a tier gave."""
        return float(np.mean([answer.tier is tier for answer in self.answers]))

    def latency_ms(self, tier: Tier) -> tuple[float, float] | None:
        """Return median and 95th percentile of a tier's answers; None where it gave none."""
        taken = [answer.latency_ms for answer in self.answers if answer.tier is tier]
        if not taken:
            return None
        median, p95 = np.quantile(taken, (0.5, 0.95))
        return float(median), float(p95)

    @property
    def degraded(self) -> dict[str, int]:
        """How many answers were degraded, by reason."""
        reasons = [answer.degraded for answer in self.answers if answer.degraded is not None]
        return {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}


@dataclass(frozen=True)
class Summary:
    """What the demonstration came to.

    Attributes:
        policy: The policy that routed.
        tally: The answers.
        all_cloud_accuracy: That of the full model on the same texts.
        all_cloud_cost: What asking the cloud for every text costs, in lambda.
        reference_cost: What the full model on the device costs.
        sent_bytes: What the device sent to each server.
        requests: How many requests it sent to each.
        exit_codes: What the servers ended with when they were told to stop.
    """

    policy: str
    tally: Tally
    all_cloud_accuracy: float
    all_cloud_cost: float
    reference_cost: float
    sent_bytes: dict[Tier, int]
    requests: dict[Tier, int]
    exit_codes: dict[Tier, int]


def demonstrate(
    run: Run,
    bundle: Path,
    *,
    limit: int,
    seen: Callable[[Tally], object] = lambda tally: None,
) -> Summary:
    """Classify held-out texts of a run by its bundle, over tier servers of which one is killed and started again.

    Args:
        run: The run that the bundle was exported from, with its texts.
        bundle: The bundle.
        limit: How many texts at most.
        seen: Called after every answer.

    Raises:
        DimecError: If a server does not become ready.
    """
    with needs_training():
        from dimec.training.texts import split_texts
    held_out = split_texts(run, "test")
    rows = range(min(limit, len(held_out)))
    texts = [
        held_out.first[row]
        if held_out.second is None
        else (held_out.first[row], held_out.second[row])
        for row in rows
    ]
    truth = [held_out.task.label_names[label] for label in held_out.labels[: len(texts)].tolist()]
    tally = Tally()
    kill_at, restart_at = len(texts) // 3, 2 * len(texts) // 3
    with contextlib.ExitStack() as servers:
        work = Path(servers.enter_context(tempfile.TemporaryDirectory()))
        edge = servers.enter_context(_server(Tier.EDGE, bundle, work))
        cloud = servers.enter_context(_server(Tier.CLOUD, bundle, work))
        with Device(bundle, edge=edge.url, cloud=cloud.url) as device:
            for answer in device.stream(texts):
                tally.right.append(answer.label == truth[answer.index])
                tally.answers.append(answer)
                if len(tally.answers) == kill_at:
                    edge.process.kill()
                    edge.process.wait()
                    tally.events.append((kill_at, "edge server killed"))
                elif len(tally.answers) == restart_at:
                    edge.start()
                    tally.events.append((restart_at, "edge server started again"))
                seen(tally)
            traffic = device.traffic
            policy = device.policy.name
            reference = device.reference_cost
        codes = {each.tier: each.stop() for each in (edge, cloud)}
    costs = load_bundle(bundle).mobile.manifest.costs
    return Summary(
        policy=policy,
        tally=tally,
        all_cloud_accuracy=float(run.test.right[: len(texts), -1].mean()),
        all_cloud_cost=costs.of([Step(Tier.CLOUD, run.config.n_layers)]),
        reference_cost=reference,
        sent_bytes={tier: each.sent_bytes for tier, each in traffic.items()},
        requests={tier: each.requests for tier, each in traffic.items()},
        exit_codes=codes,
    )


class _Server:
    """One `dimec serve` in a process of its own."""

    def __init__(self, tier: Tier, bundle: Path, work: Path) -> None:
        self.tier = tier
        self._bundle = bundle
        self._log = work / f"{tier}.log"
        self._ready = work / f"{tier}.json"
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it, on the port that it had, and wait until it is ready."""
        self._ready.unlink(missing_ok=True)
        arguments = ["serve", str(self.tier), str(self._bundle), "--threads", "1"]
        arguments += ["--port", str(self._port), "--ready-file", str(self._ready)]
        with self._log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from dimec.cli import main; main()", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + READY_S
        while not self._ready.exists():
            if self.process.poll() is not None or time.monotonic() > end:
                self.process.kill()
                said = self._log.read_text(encoding="utf-8").strip().splitlines()
                raise DimecError(
                    f"the {self.tier} server did not become ready: {said[-1] if said else 'it said nothing'}"
                )
            time.sleep(0.02)
        self._port = int(json.loads(self._ready.read_text(encoding="utf-8"))["port"])

    def stop(self) -> int:
        """Let it drain and return what it ended with."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()


@contextlib.contextmanager
def _server(tier: Tier, bundle: Path, work: Path) -> Iterator[_Server]:
    server = _Server(tier, bundle, work)
    try:
        yield server
    finally:
        server.stop()
