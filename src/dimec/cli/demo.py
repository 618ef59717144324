"""``dimec demo``: from built-in texts to three real tiers, one of which is killed on the way.

All of it is what a deployment would run: `dimec serve` in two processes, the device in this one, HTTP between them.
The edge server is killed with ``SIGKILL`` a third of the way and started again after two thirds.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.live import Live
from rich.table import Table

from dimec import api
from dimec.bundle import load_bundle
from dimec.cli.console import ConsoleProgress, err, out, say_json
from dimec.cli.generate import AsJson
from dimec.cli.table import change, percent, print_evaluation
from dimec.core.errors import DimecError
from dimec.core.extras import needs_training
from dimec.core.tiers import TIERS, Answer, Step, Tier
from dimec.runs.run import Run

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
    from dimec.runtime.device.device import Device

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
                [sys.executable, "-m", "dimec", *arguments],
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


def demo(
    folder: Annotated[Path, typer.Option("--out", help="Where the run and the bundle go.")] = Path(
        "runs/demo"
    ),
    epochs: Annotated[int, typer.Option(help="Epochs of training.")] = 3,
    texts: Annotated[int, typer.Option(help="Held-out texts to classify, at most.", min=3)] = 600,
    as_json: AsJson = False,
) -> None:
    """Fit MiniLM on the built-in reviews, export it, and classify held-out texts over three tiers on this machine.

    Edge and cloud run as servers in processes of their own, the device in this one. The edge is killed a third of the
    way and started again after two thirds: every text is answered all the same. The built-in data is generated: it
    shows that everything works and proves nothing else.

    **Example**: `dimec demo`
    """
    progress = ConsoleProgress()
    run = api.fit("reviews", out=folder / "run", epochs=epochs, progress=progress)
    if not as_json:
        print_evaluation(api.evaluate(run, progress=progress), console=out)
        out.print()
    bundle = folder / "bundle"
    api.export(run, out=bundle, progress=progress)
    progress.say("starting the edge and the cloud as servers of their own")
    if err.is_terminal:
        with Live(console=err, refresh_per_second=8, transient=True) as live:
            summary = demonstrate(
                run, bundle, limit=texts, seen=lambda tally: live.update(_live(tally, texts))
            )
    else:
        with progress.stage("Classifying over three tiers", texts) as advance:
            summary = demonstrate(run, bundle, limit=texts, seen=lambda tally: advance(1))
    if as_json:
        say_json(json.dumps(_document(summary), indent=2))
    else:
        _print(summary)
        out.print(
            f"\nNext: `dimec serve edge {bundle} --port 8101`, `dimec serve cloud {bundle} --port 8102`, then "
            f"`dimec classify {bundle} --edge http://127.0.0.1:8101 --cloud http://127.0.0.1:8102 "
            '"a gripping film"`.',
            markup=False,
        )


def _live(tally: Tally, total: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("texts", "mobile", "edge", "cloud", "accuracy", "cost", "degraded", ""):
        table.add_column(column, justify="right")
    table.add_row(
        f"{len(tally.answers)}/{total}",
        *(f"{100 * tally.share(tier):.0f} %" for tier in TIERS),
        percent(tally.accuracy),
        f"{tally.cost:.2f} λ",
        str(sum(tally.degraded.values())),
        tally.events[-1][1] if tally.events else "",
    )
    return table


def _print(summary: Summary) -> None:
    tally = summary.tally
    out.print(
        f"{len(tally.answers)} texts by {summary.policy} over mobile (this process), edge and cloud (a server each):",
        markup=False,
    )
    out.print()
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for column in ("tier", "answers", "median ms", "p95 ms", "requests", "bytes sent"):
        table.add_column(column, justify="left" if column == "tier" else "right")
    for tier in TIERS:
        latency = tally.latency_ms(tier)
        table.add_row(
            str(tier),
            f"{100 * tally.share(tier):.0f} %",
            *(("", "") if latency is None else (f"{each:.1f}" for each in latency)),
            str(summary.requests.get(tier, "")),
            f"{summary.sent_bytes[tier]:,}" if tier in summary.sent_bytes else "",
        )
    out.print(table)
    out.print()
    out.print(
        f"accuracy {percent(tally.accuracy)} (all-cloud {percent(summary.all_cloud_accuracy)}) at {tally.cost:.2f} λ a "
        f"text: {change(tally.cost / summary.all_cloud_cost - 1)} against all-cloud, "
        f"{change(tally.cost / summary.reference_cost - 1)} against bert-on-mobile",
        markup=False,
    )
    for number, event in tally.events:
        out.print(f"after {number} texts: {event}", markup=False)
    for reason, count in tally.degraded.items():
        out.print(f"degraded, {count} of {len(tally.answers)}: {reason}", markup=False)
    out.print(
        "servers ended with "
        + ", ".join(f"{code} ({tier})" for tier, code in summary.exit_codes.items()),
        style="dim",
        markup=False,
    )


def _document(summary: Summary) -> dict[str, object]:
    tally = summary.tally
    return {
        "policy": summary.policy,
        "n": len(tally.answers),
        "accuracy": tally.accuracy,
        "cost": tally.cost,
        "all_cloud_accuracy": summary.all_cloud_accuracy,
        "all_cloud_cost": summary.all_cloud_cost,
        "reference_cost": summary.reference_cost,
        "shares": {str(tier): tally.share(tier) for tier in TIERS},
        "latency_ms": {
            str(tier): dict(zip(("median", "p95"), latency, strict=True))
            for tier in TIERS
            if (latency := tally.latency_ms(tier)) is not None
        },
        "requests": {str(tier): count for tier, count in summary.requests.items()},
        "sent_bytes": {str(tier): count for tier, count in summary.sent_bytes.items()},
        "events": [{"after": number, "event": event} for number, event in tally.events],
        "degraded": tally.degraded,
        "exit_codes": {str(tier): code for tier, code in summary.exit_codes.items()},
        "answers": [asdict(answer) for answer in tally.answers],
    }
