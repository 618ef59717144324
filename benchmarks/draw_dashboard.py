"""Draw the panels of deploy/grafana-dashboard.json as Prometheus answers them: three real servers, one of them lost.

Every panel's queries are asked of a real Prometheus that scrapes a device, an edge and a cloud server under load. The
cloud is killed after a third of the time and started again after another. The lines are drawn by Altair, in the
dashboard's order and with its titles and legends: Grafana itself is not run.

    DIMEC_BUNDLE=... python benchmarks/draw_dashboard.py docs/figures/dashboard.svg [--seconds 120]

The bundle's policy should be dimec-guarded (`dimec export RUN --policy dimec-guarded --audit-rate 0.1`), or the panels
of the promise stay empty. Prometheus is Debian's package.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import altair as alt
import httpx

from dimec.reporting.theme import PALETTES, config
from subject import some_bundle, some_texts

DASHBOARD = Path(__file__).parents[1] / "deploy" / "grafana-dashboard.json"
WINDOWS = {"$__rate_interval": "15s", "$__range": "2m"}
PORTS = {"device": 18100, "edge": 18101, "cloud": 18102}
GAP_S = 3.0
PROMETHEUS = "http://127.0.0.1:18190"
FACTORS = {
    "percentunit": (100.0, "%"),
    "bytes": (2.0**-20, "MiB"),
    "Bps": (1e-3, "kB/s"),
    "s": (1e3, "ms"),
}


def serve(stack: ExitStack, tier: str, bundle: Path, *options: str) -> subprocess.Popen[bytes]:
    """Start a server and wait until it is ready."""
    command = [
        sys.executable,
        "-m",
        "dimec",
        "serve",
        tier,
        str(bundle),
        "--port",
        str(PORTS[tier]),
    ]
    process = stack.enter_context(
        subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    )
    stack.callback(process.kill)
    assert process.stdout is not None
    if not process.stdout.readline():
        raise SystemExit(f"dimec serve {tier} did not start")
    return process


def watch(stack: ExitStack, folder: Path) -> None:
    """Start a Prometheus that scrapes the servers each second."""
    targets = [f"127.0.0.1:{port}" for port in PORTS.values()]
    job = {"job_name": "dimec", "static_configs": [{"targets": targets}]}
    document = {"global": {"scrape_interval": "1s"}, "scrape_configs": [job]}
    (folder / "prometheus.yml").write_text(json.dumps(document), encoding="utf-8")
    command = ["prometheus", f"--config.file={folder}/prometheus.yml"]
    command += [f"--storage.tsdb.path={folder}/data", f"--web.listen-address={PROMETHEUS[7:]}"]
    quiet = subprocess.DEVNULL
    stack.callback(stack.enter_context(subprocess.Popen(command, stdout=quiet, stderr=quiet)).kill)


def measure(bundle: Path, folder: Path, seconds: float) -> list[list[dict[str, Any]]]:
    """Send texts for so long, the cloud being away in the middle; return the points of every panel."""
    texts, _ = some_texts(20_000)
    over = threading.Event()
    urls = {tier: f"http://127.0.0.1:{port}" for tier, port in PORTS.items()}

    def send() -> None:
        with httpx.Client(base_url=urls["device"], timeout=60) as client:
            for first in range(0, len(texts) - 8, 8):
                if over.wait(0.1):
                    return
                inputs = [[each] for each in texts[first : first + 8]]
                client.post("/predict", json={"inputs": inputs})
                if first % 400 == 0:
                    client.post("/predict", json={})  # refused

    with ExitStack() as stack:
        serve(stack, "edge", bundle)
        cloud = serve(stack, "cloud", bundle)
        serve(stack, "device", bundle, "--edge", urls["edge"], "--cloud", urls["cloud"])
        watch(stack, folder)
        sender = threading.Thread(target=send)
        sender.start()
        time.sleep(seconds / 3)
        cloud.kill()
        time.sleep(seconds / 3)
        serve(stack, "cloud", bundle)
        time.sleep(seconds / 3)
        points = [ask(panel, time.time() - seconds + 5) for panel in panels()]
        over.set()
        sender.join()
    return points


def panels() -> list[dict[str, Any]]:
    """Return the dashboard's panels of lines."""
    found = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return [each for each in found if each["type"] == "timeseries"]


def ask(panel: dict[str, Any], began: float) -> list[dict[str, Any]]:
    """Ask Prometheus for a panel's lines, in the panel's unit."""
    factor, _ = FACTORS.get(panel["fieldConfig"]["defaults"].get("unit"), (1.0, ""))
    points = []
    for target in panel["targets"]:
        expression = target["expr"]
        for name, window in WINDOWS.items():
            expression = expression.replace(name, window)
        wanted = {"query": expression, "start": began, "end": time.time(), "step": 2}
        found = httpx.get(f"{PROMETHEUS}/api/v1/query_range", params=wanted).json()
        for line in found["data"]["result"]:
            labels = line["metric"] | {"instance": named(line["metric"].get("instance", ""))}
            legend = target.get("legendFormat", "")
            for label, value in labels.items():
                legend = legend.replace("{{" + label + "}}", value)
            before = math.inf
            for at, value in line["values"]:
                if math.isfinite(float(value)):
                    if at - before > GAP_S:  # no line over a time without values
                        points.append({"second": at - began - 1, "value": None, "line": legend})
                    point = {"second": at - began, "value": factor * float(value), "line": legend}
                    points.append(point)
                    before = at
    return points


def named(instance: str) -> str:
    """Return the tier of an address that was scraped."""
    return next((t for t, port in PORTS.items() if instance.endswith(f":{port}")), instance)


def drawn(panel: dict[str, Any], points: list[dict[str, Any]], away: tuple[float, float]) -> Any:  # noqa: ANN401  a chart
    """Draw a panel; the time without cloud is shaded."""
    defaults = panel["fieldConfig"]["defaults"]
    _, unit = FACTORS.get(defaults.get("unit"), (1.0, ""))
    stacked = defaults["custom"]["stacking"]["mode"] == "normal"
    mark = alt.MarkDef("area", opacity=0.7) if stacked else alt.MarkDef("line", strokeWidth=1.5)
    shade = alt.Chart(alt.InlineData([{"from": away[0], "to": away[1]}]))
    shade = shade.mark_rect(opacity=0.12, color="#4D4D4D").encode(x="from:Q", x2="to:Q")
    lines = alt.Chart(alt.InlineData(points), mark=mark).encode(
        x=alt.X(
            "second:Q",
            title=None,
            axis=alt.Axis(tickCount=4, format="~s", labelExpr="datum.label + ' s'"),
        ),
        y=alt.Y(
            "value:Q",
            title=unit or None,
            stack=True if stacked else None,
            axis=alt.Axis(tickCount=4),
        ),
        color=alt.Color(
            "line:N",
            scale=alt.Scale(range=list(PALETTES["light"][:-1])),
            legend=alt.Legend(
                title=None, orient="bottom", columns=2, labelFontSize=9, symbolSize=40
            ),
        ),
    )
    return alt.layer(shade, lines).properties(width=270, height=120, title=panel["title"])


def main() -> None:
    """Measure and draw."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=120.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, some_bundle() as bundle:
        found = measure(bundle.folder, Path(scratch), given.seconds)
    away = (given.seconds / 3 - 5, 2 * given.seconds / 3 - 5)
    for panel, points in zip(panels(), found, strict=True):
        lines = {each["line"] for each in points}
        print(f"{panel['title']:30} {len(points):5} points of {len(lines)} lines")
    charts = [
        drawn(panel, points, away) for panel, points in zip(panels(), found, strict=True) if points
    ]
    rows = [
        alt.hconcat(*charts[n : n + 3]).resolve_scale(color="independent")
        for n in range(0, len(charts), 3)
    ]
    page = alt.vconcat(*rows).resolve_scale(color="independent")
    page.configure(**{**config("light"), "background": "white"}).save(given.out)


if __name__ == "__main__":
    main()
