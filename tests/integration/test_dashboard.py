"""The Grafana dashboard of `deploy/`: a real Prometheus scrapes real servers under load and answers every panel."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.bundles import with_policy
from tests.misbehaving import free_port
from tests.servers import PATIENCE_S, client_of, tier_server, wait_for

from dimec.bundle import Bundle
from dimec.core.guard_settings import GuardSettings
from dimec.data import reviews
from dimec.policies import Calibration
from dimec.policies.guarded import DimecGuarded
from dimec.runs.run import Run

TEXTS = list(reviews(40, seed=5).first)
DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana-dashboard.json"
_WINDOWS = {"$__rate_interval": "1m", "$__range": "5m"}


def expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    return [
        re.sub("|".join(map(re.escape, _WINDOWS)), lambda found: _WINDOWS[found[0]], each["expr"])
        for panel in panels
        for each in panel.get("targets", [])
    ]


@contextmanager
def prometheus(folder: Path, *targets: str) -> Iterator[httpx.Client]:
    """Run a Prometheus that scrapes servers each second; gives a client of its API."""
    if shutil.which("prometheus") is None:
        pytest.skip("needs prometheus: apt-get install prometheus")
    job = {"job_name": "dimec", "static_configs": [{"targets": list(targets)}]}
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [job]}
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    port = free_port()
    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as client:
            yield client
    finally:
        process.kill()
        process.wait(PATIENCE_S)


def finite(client: httpx.Client, expression: str) -> Any:
    """Return what a query gives that is a number; nothing while Prometheus starts or has too little."""
    try:
        document = client.get("/api/v1/query", params={"query": expression}).json()
    except (httpx.HTTPError, ValueError):
        return None
    assert document["status"] == "success", (expression, document)
    return [each for each in document["data"]["result"] if math.isfinite(float(each["value"][1]))]


def test_every_panel_has_an_answer(tiny_run: Run, tiny_bundle: Bundle, tmp_path: Path) -> None:
    guard = GuardSettings(audit_rate=0.5)
    policy = DimecGuarded.fit(Calibration(tiny_run.validation, tiny_run.config.depths, guard=guard))
    folder = with_policy(tiny_bundle, tmp_path / "guarded", policy).folder
    with (
        tier_server("edge", folder) as edge,
        tier_server("cloud", folder) as cloud,
        tier_server("device", folder, "--edge", edge.url, "--cloud", cloud.url) as device,
        prometheus(tmp_path, edge.address, cloud.address, device.address) as client,
        client_of(device) as caller,
    ):
        over = threading.Event()

        def load() -> None:
            while not over.wait(0.2):
                caller.post("/predict", json={"inputs": TEXTS})
                caller.post("/predict", json={})  # refused
                httpx.post(
                    f"{edge.url}/v2/models/edge/infer",
                    json={
                        "inputs": [
                            {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}
                        ]
                    },
                )

        thread = threading.Thread(target=load)
        thread.start()
        try:
            audits = "dimec_device_guard_audits_total"
            wait_for(lambda: finite(client, f"rate({audits}[1m]) > 0"), "audits")
            cloud.process.kill()  # from now on answers are degraded
            for expression in expressions():
                wait_for(partial(finite, client, expression), expression)
        finally:
            over.set()
            thread.join()
