"""Another model on a tier: pairs of texts, token ids alone, audits of a guard, 8-bit weights beside it, a frontier."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import numpy as np
import pytest
from tests.bundles import fitted_to_pairs, with_policy
from tests.chat_endpoint import Asking, asking
from tests.servers import client_of, metric, tier_server

from dimec import api
from dimec.bundle import Bundle, load_bundle
from dimec.core.guard_settings import GuardSettings
from dimec.core.tiers import Answer, Tier
from dimec.deploying.corpus import all_cloud
from dimec.evaluation.options import ModelOptions
from dimec.evaluation.other_models import line_up
from dimec.policies.cascade import DimecCascade
from dimec.policies.replay import Replay, replay
from dimec.runs.run import Run
from dimec.runtime.device.device import Device
from dimec.runtime.device.options import DeviceSettings
from dimec.runtime.device.sample import Text
from dimec.training.texts import RunTexts

N = 40


@pytest.fixture(scope="module")
def asked(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asking]:
    with asking(tiny_run, tmp_path_factory.mktemp("asked")) as found:
        yield found


def texts_of(run: Run) -> list[Text]:
    rows = RunTexts(run).of("test")
    if rows.second is None:
        return [*rows.first[:N]]
    return [*zip(rows.first[:N], rows.second[:N], strict=True)]


def live(bundle: Bundle, url: str, texts: list[Text]) -> list[Answer]:
    settings = DeviceSettings(threads=1, attempts=1, deadline_ms=60_000)
    with Device(bundle, cloud=url, settings=settings) as device:
        return device.classify(texts)


def check(answers: list[Answer], bundle: Bundle, expected: Replay) -> None:
    names = bundle.mobile.manifest.label_names
    assert not any(each.degraded for each in answers)
    assert [each.label for each in answers] == [names[each] for each in expected.predictions]
    assert [list(Tier).index(each.tier) for each in answers] == expected.tiers.tolist()
    assert sum(each.tier is Tier.CLOUD for each in answers) > 0


def test_pairs_of_texts_are_asked_about(tiny_backbone: Path, tmp_path: Path) -> None:
    (tmp_path / "fitted").mkdir()
    fitted, _ = fitted_to_pairs(tiny_backbone, tmp_path / "fitted")
    with asking(fitted, tmp_path) as asked:
        api.export(asked.run, out=tmp_path / "bundle", price=0.05, **asked.about)
        bundle, texts = load_bundle(tmp_path / "bundle"), texts_of(asked.run)
        expected = asked.played(bundle)
        with tier_server("cloud", bundle.folder, *asked.model) as server:
            answers = live(bundle, server.url, texts)
    assert len(expected.predictions) == len(texts)
    check(answers, bundle, expected)


def test_a_guard_has_its_audits_answered_by_the_model(asked: Asking, tmp_path: Path) -> None:
    """An audited text is answered by the model, and billed like any other."""
    guard = GuardSettings(audit_rate=0.5)
    about = {**asked.about, "policy": "dimec-guarded", "guard": guard}
    api.export(asked.run, out=tmp_path / "bundle", price=0.3, **about)
    bundle, texts = load_bundle(tmp_path / "bundle"), texts_of(asked.run)
    before = asked.endpoint.n_answers
    with tier_server("cloud", bundle.folder, *asked.model) as server, client_of(server) as client:
        settings = DeviceSettings(threads=1, attempts=1, deadline_ms=60_000)
        with Device(bundle, cloud=server.url, settings=settings) as device:
            answers = device.classify(texts)
            health = device.guard
        billed = metric(client, "dimec_billed_total")
    of_cloud = [each for each in answers if each.tier is Tier.CLOUD]
    assert not any(each.degraded for each in answers)
    assert 0 < len(of_cloud) == asked.endpoint.n_answers - before
    assert sum(each.cost for each in answers) == pytest.approx(billed)
    assert health["audits"] > 0


def test_eight_bit_weights_on_the_device_beside_a_model_in_the_cloud(
    asked: Asking, tmp_path: Path
) -> None:
    about = {**asked.about, "quantize": "all"}
    report = api.export(asked.run, out=tmp_path / "bundle", price=0.15, **about)
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.mobile.manifest.quantized and report.currency == "USD"
    assert bundle.cloud is not None and bundle.cloud.asks
    before = asked.endpoint.n_answers
    with tier_server("cloud", bundle.folder, *asked.model) as server:
        answers = live(bundle, server.url, texts_of(asked.run))
    of_cloud = [each for each in answers if each.tier is Tier.CLOUD]
    assert not any(each.degraded for each in answers)
    assert 0 < len(of_cloud) == asked.endpoint.n_answers - before < N
    labels = RunTexts(asked.run).of("test").labels
    names = bundle.mobile.manifest.label_names
    assert all(names[labels[each.index]] == each.label for each in of_cloud)


def test_a_frontier_pays_for_the_model_at_every_price(asked: Asking) -> None:
    found = api.frontier(
        asked.run, prices=(0.0, 0.1, 1.0), policies=("dimec-cascade",), **asked.about
    )
    costs = []
    for each in found.evaluations:
        assert each.unit == "money" and each.currency == "USD"
        [row] = [row for row in each.rows if row.policy == "dimec-cascade"]
        costs.append(row.cost)
    assert costs[0] > costs[-1] >= 0
    assert found.recommendation is not None


@contextlib.contextmanager
def ids_alone(url: str) -> Iterator[str]:
    """Stand before a tier's server, and hide that it takes texts, as servers of other makers do not."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            answer = httpx.get(f"{url}{self.path}")
            document = answer.json()
            kept = [each for each in document["inputs"] if each["datatype"] != "BYTES"]
            self.say(answer.status_code, json.dumps({**document, "inputs": kept}).encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            assert all(each["datatype"] != "BYTES" for each in json.loads(body)["inputs"])
            answer = httpx.post(f"{url}{self.path}", content=body, timeout=60)
            self.say(answer.status_code, answer.content)

        def say(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(60)


def test_a_server_that_takes_token_ids_alone(
    tiny_run: Run, tiny_export: Bundle, tmp_path: Path
) -> None:
    """Its tier's folder holds the tokenizer, with which the tier's server makes the ids."""
    run = Run.open(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    with (
        tier_server("edge", tiny_export.folder) as below,
        ids_alone(below.url) as url,
    ):
        about: dict[str, Any] = {"cloud_model": f"oip:{url}#edge", "model_price": "0.5"}
        api.export(run, out=tmp_path / "export", price=0.05, **about)
        exported = load_bundle(tmp_path / "export")
        own = exported.mobile.policy()
        assert isinstance(own, DimecCascade)
        bundle = with_policy(exported, tmp_path / "bundle", all_cloud(own))
        assert bundle.cloud is not None and bundle.cloud.asks
        with tier_server("cloud", bundle.folder, "--model", about["cloud_model"]) as server:
            answers = live(bundle, server.url, texts_of(run))
        table = line_up(run, ModelOptions(**about), None, table=run.test).run.test.take(
            np.arange(N)
        )
        costs = bundle.mobile.manifest.costs
        check(answers, bundle, replay(bundle.mobile.policy(), table, costs=costs))
        assert {each.cost for each in answers if each.tier is Tier.CLOUD} == {0.5}
