"""``dimec demo``: from built-in texts to three real tiers, one of which is killed on the way.

All of it is what a deployment would run: `dimec serve` in two processes, the device in this one, HTTP between them.
The edge server is killed with ``SIGKILL`` a third of the way and started again after two thirds.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.live import Live
from rich.table import Table

import dimec
from dimec.cli.console import ConsoleProgress, err, open_table, out, say_json
from dimec.cli.generate import AsJson
from dimec.cli.table import change, percent, print_recommendation
from dimec.core.errors import DimecError
from dimec.core.extras import needs_training
from dimec.core.tiers import TIERS, Answer, Step, Tier
from dimec.costs.model import DEFAULT_PRICE

if TYPE_CHECKING:
    from dimec.runs.run import Run

READY_S = 120.0
STOP_S = 20.0


@dataclass
class Summary:
    """What the demonstration came to so far.

    Attributes:
        reference_cost: What the full model on the device costs a text, in lambda.
        all_cloud_accuracy: That of the full model on the same texts.
        all_cloud_cost: What sending every text to the cloud costs, in lambda.
        right: Whether each of the answers is right.
        events: What was done to the servers, by the number of answers at that time.
        sent_bytes: What the device sent to each server.
        requests: How many requests it sent to each.
        exit_codes: What the servers ended with when they were told to stop.
    """

    policy: str
    reference_cost: float
    all_cloud_accuracy: float
    all_cloud_cost: float
    answers: list[Answer] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    events: list[tuple[int, str]] = field(default_factory=list)
    sent_bytes: dict[Tier, int] = field(default_factory=dict)
    requests: dict[Tier, int] = field(default_factory=dict)
    exit_codes: dict[Tier, int] = field(default_factory=dict)

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


def demonstrate(
    run: Run, bundle: Path, *, limit: int, seen: Callable[[Summary], object]
) -> Summary:
    """Classify held-out texts of a run by its bundle, over servers of which one is killed and started again.

    Args:
        run: The run that the bundle was exported from, with its texts.
        bundle: The bundle.
        limit: How many texts at most.
        seen: Called after every answer.

    Raises:
        DimecError: If a server does not become ready.
    """
    from dimec.bundle import load_bundle
    from dimec.runtime.device.device import Device

    with needs_training():
        from dimec.training.texts import split_texts
    held_out = split_texts(run, "test")
    texts = held_out.first[:limit]
    truth = [held_out.task.label_names[label] for label in held_out.labels[: len(texts)].tolist()]
    kill_at, restart_at = len(texts) // 3, 2 * len(texts) // 3
    costs = load_bundle(bundle).mobile.manifest.costs
    with contextlib.ExitStack() as opened:
        work = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        edge = opened.enter_context(contextlib.closing(_Server(Tier.EDGE, bundle, work)))
        cloud = opened.enter_context(contextlib.closing(_Server(Tier.CLOUD, bundle, work)))
        device = opened.enter_context(Device(bundle, edge=edge.url, cloud=cloud.url))
        summary = Summary(
            policy=device.policy.name,
            reference_cost=device.reference_cost,
            all_cloud_accuracy=float(run.test.right[: len(texts), -1].mean()),
            all_cloud_cost=costs.of([Step(Tier.CLOUD, run.config.n_layers)]),
        )
        for answer in device.stream(texts):
            summary.right.append(answer.label == truth[answer.index])
            summary.answers.append(answer)
            if len(summary.answers) == kill_at:
                edge.process.kill()
                edge.process.wait()
                summary.events.append((kill_at, "edge server killed"))
            elif len(summary.answers) == restart_at:
                edge.start()
                summary.events.append((restart_at, "edge server started again"))
            seen(summary)
        for tier, each in device.traffic.items():
            summary.sent_bytes[tier] = each.sent_bytes
            summary.requests[tier] = each.requests
        device.close()
        summary.exit_codes = {each.tier: each.close() for each in (edge, cloud)}
    return summary


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

    def close(self) -> int:
        """Let it drain and return what it ended with."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()


def demo(
    folder: Annotated[Path, typer.Option("--out", help="Where the run and the bundle go.")] = Path(
        "runs/demo"
    ),
    epochs: Annotated[int, typer.Option(help="Epochs of training.")] = 3,
    max_rows: Annotated[int | None, typer.Option(help="Reviews to fit on, at most.")] = None,
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
    run = dimec.fit(
        "reviews", out=folder / "run", epochs=epochs, max_rows=max_rows, progress=progress
    )
    if not as_json:
        print_recommendation(dimec.evaluate(run, progress=progress))
        out.print(
            f"\nThe demonstration exports the cascade at price {DEFAULT_PRICE:g} whatever is recommended, so that "
            "every tier has texts to answer.\n",
            style="dim",
        )
    bundle = folder / "bundle"
    dimec.export(run, out=bundle, price=DEFAULT_PRICE, progress=progress)
    progress.say("starting the edge and the cloud as servers of their own")
    if err.is_terminal:
        with Live(console=err, refresh_per_second=8, transient=True) as live:
            summary = demonstrate(
                run, bundle, limit=texts, seen=lambda so_far: live.update(_live(so_far, texts))
            )
    else:
        with progress.stage("Classifying over three tiers", texts) as advance:
            summary = demonstrate(run, bundle, limit=texts, seen=lambda so_far: advance(1))
    if as_json:
        say_json(json.dumps(_document(summary), indent=2))
    else:
        _print(summary)
        out.print(
            f"\nNext: `dimec serve edge {bundle} --port 8101`, `dimec serve cloud {bundle} --port 8102`, then "
            f"`dimec classify {bundle} --edge http://127.0.0.1:8101 --cloud http://127.0.0.1:8102 "
            '"a gripping film"`.',
        )
        _offer_page(bundle, folder / "site")


def _offer_page(bundle: Path, site: Path) -> None:
    """Write the site of a bundle where the page is built, and say how it is opened here and on a phone."""
    from dimec.deploying.options import WebOptions
    from dimec.deploying.site import built_page, write_site

    if built_page() is None:
        return
    here = "http://127.0.0.1:8101"
    examples = ("a gripping film", "two hours too long")
    options = WebOptions(edge=".", cloud="http://127.0.0.1:8102", examples=examples)
    write_site(bundle, site, options)
    _say(
        "\nThe page that is the mobile tier",
        f"dimec serve cloud {bundle} --port 8102 --allow-origin {here} &",
        f"dimec serve edge {bundle} --port 8101 --site {site}",
        f"then open {here}/",
    )
    # A page that works offline has to come over HTTPS, from anywhere but this very machine.
    host = _own_address()
    own = "--host 0.0.0.0 --token-file TOKEN --tls-certificate CERTIFICATE --tls-key KEY"
    _say(
        "On a phone in the same network, with a token and a certificate that the phone trusts",
        f"dimec web {bundle} --out {site} --edge . --cloud https://{host}:8102",
        f"dimec serve cloud {bundle} --port 8102 --allow-origin https://{host}:8101 {own} &",
        f"dimec serve edge {bundle} --port 8101 --site {site} {own}",
        f"then open https://{host}:8101/ there",
    )


def _say(heading: str, *lines: str) -> None:
    """Print lines that can be copied as they are."""
    out.print(f"{heading}:")
    for line in lines:
        out.print(f"    {line}", soft_wrap=True)


def _own_address() -> str:
    """Return the address that other machines of the network reach this one by, as far as it is known here."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # of documents: it is only looked up which way leads there
        return str(probe.getsockname()[0])
    return socket.gethostname()


def _live(summary: Summary, total: int) -> Table:
    table = open_table("texts", *TIERS, "accuracy", "cost", "degraded", "")
    table.add_row(
        f"{len(summary.answers)}/{total}",
        *(f"{100 * summary.share(tier):.0f} %" for tier in TIERS),
        percent(summary.accuracy),
        f"{summary.cost:.2f} λ",
        str(sum(summary.degraded.values())),
        summary.events[-1][1] if summary.events else "",
    )
    return table


def _print(summary: Summary) -> None:
    n = len(summary.answers)
    out.print(
        f"{n} texts by {summary.policy} over mobile (this process), edge and cloud (servers):"
    )
    out.print()
    columns = ("answers", "median ms", "p95 ms", "requests", "bytes sent")
    table = open_table("tier", *columns, left=("tier",))
    for tier in TIERS:
        latency = summary.latency_ms(tier)
        table.add_row(
            str(tier),
            f"{100 * summary.share(tier):.0f} %",
            *(("", "") if latency is None else (f"{each:.1f}" for each in latency)),
            str(summary.requests.get(tier, "")),
            f"{summary.sent_bytes[tier]:,}" if tier in summary.sent_bytes else "",
        )
    out.print(table)
    out.print()
    out.print(
        f"accuracy {percent(summary.accuracy)} (all-cloud {percent(summary.all_cloud_accuracy)}) at "
        f"{summary.cost:.2f} λ a text: {change(summary.cost / summary.all_cloud_cost - 1)} against all-cloud, "
        f"{change(summary.cost / summary.reference_cost - 1)} against bert-on-mobile",
    )
    for number, event in summary.events:
        out.print(f"after {number} texts: {event}")
    for reason, count in summary.degraded.items():
        out.print(f"degraded, {count} of {n}: {reason}")
    out.print(
        "servers ended with "
        + ", ".join(f"{code} ({tier})" for tier, code in summary.exit_codes.items()),
        style="dim",
    )


def _document(summary: Summary) -> dict[str, object]:
    told = asdict(summary)
    del told["right"]
    return told | {
        "n": len(summary.answers),
        "accuracy": summary.accuracy,
        "cost": summary.cost,
        "shares": {tier: summary.share(tier) for tier in TIERS},
        "latency_ms": {
            tier: dict(zip(("median", "p95"), latency, strict=True))
            for tier in TIERS
            if (latency := summary.latency_ms(tier)) is not None
        },
        "events": [{"after": number, "event": event} for number, event in summary.events],
        "degraded": summary.degraded,
    }
