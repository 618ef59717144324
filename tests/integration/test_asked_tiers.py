"""A tier whose server asks another model: exported, served and asked over real sockets, by processes of their own."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tests.chat_endpoint import KEY, PRICE, Endpoint, asking, write_rows
from tests.commands import dimec
from tests.misbehaving import BadServer, Behaviour, dead_url, free_port, http, never, writes
from tests.servers import TierServer, client_of, metric, tier_server, wait_for

from dimec import api
from dimec.bundle import Bundle, load_bundle
from dimec.core.errors import BundleError, OptionError
from dimec.core.options import checked
from dimec.core.tiers import Answer, Tier
from dimec.endpoints.chat import PROMPT
from dimec.policies.replay import Replay
from dimec.runs.run import Run
from dimec.runtime.device.device import Device
from dimec.runtime.device.options import DeviceSettings
from dimec.training.texts import RunTexts


@dataclass
class Deployed:
    """A run whose cloud is a language model, with everything that stands around it."""

    run: Run
    played: Replay
    bundle: Bundle
    endpoint: Endpoint
    server: TierServer

    @property
    def texts(self) -> list[str]:
        return list(RunTexts(self.run).of("test").first)[:60]


@pytest.fixture(scope="module")
def deployed(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("asked")
    environment = {"OPENAI_API_KEY": KEY}
    with asking(tiny_run, folder) as asked, pytest.MonkeyPatch.context() as patch:
        api.export(asked.run, out=folder / "bundle", price=0.15, **asked.about)
        bundle = load_bundle(folder / "bundle")
        played = asked.played(bundle, 60)
        patch.delenv("OPENAI_API_KEY")
        with tier_server("cloud", bundle.folder, *asked.model, environment=environment) as server:
            yield Deployed(asked.run, played, bundle, asked.endpoint, server)


def classify(deployed: Deployed, url: str | None, **settings: Any) -> list[Answer]:
    made = DeviceSettings(threads=1, attempts=1, **settings)
    with Device(deployed.bundle, cloud=url, settings=made) as device:
        return device.classify(deployed.texts)


def test_live_answers_are_those_of_the_evaluation(deployed: Deployed) -> None:
    """Labels and tiers agree with the replay over what the model said; what is billed is what it counted."""
    n_before = deployed.endpoint.n_answers
    with client_of(deployed.server) as client:
        billed_before = metric(client, "dimec_billed_total")
        answers = classify(deployed, deployed.server.url)
        billed = metric(client, "dimec_billed_total") - billed_before
    assert not any(each.degraded for each in answers)
    names, played = deployed.bundle.mobile.manifest.label_names, deployed.played
    assert [each.label for each in answers] == [names[each] for each in played.predictions]
    tiers = [list(Tier).index(each.tier) for each in answers]
    assert tiers == played.tiers.tolist()
    asked = [each for each in answers if each.tier is Tier.CLOUD]
    assert 0 < len(asked) < len(answers)
    assert deployed.endpoint.n_answers - n_before == len(asked)
    filled = len(PROMPT.format(classes="", examples="", text="").split())
    for each in asked:
        words = len(deployed.texts[each.index].split())
        classes = 2 * len(names)  # a dash and a name
        assert each.cost == pytest.approx(1e-3 * (filled + classes + words) + 2e-3)
    assert sum(each.cost for each in answers) == pytest.approx(billed)
    assert all(each.cost == 0 for each in answers if each.tier is not Tier.CLOUD)


def test_the_key_is_nowhere(deployed: Deployed) -> None:
    files = [path for path in deployed.bundle.folder.rglob("*") if path.is_file()]
    files.append(deployed.run.folder / "answers.sqlite")
    assert not any(KEY.encode() in path.read_bytes() for path in files)
    assert KEY not in json.dumps(deployed.server.log)
    assert not any(path.suffix == ".onnx" for path in files if path.parent.name == "cloud")


def test_a_wrong_key_costs_accuracy_and_is_told_to_nobody(deployed: Deployed) -> None:
    """The endpoint repeats the key that it refuses."""
    wrong = {"OPENAI_API_KEY": "sk-another-one"}
    model = ("--model", f"chat:{deployed.endpoint.url}#m")
    with tier_server("cloud", deployed.bundle.folder, *model, environment=wrong) as server:
        answers = classify(deployed, server.url)
    degraded = [each for each in answers if each.degraded]
    assert degraded
    assert all(each.tier is not Tier.CLOUD for each in degraded)
    assert "sk-another-one" not in json.dumps(server.log) + repr(answers)
    assert server.logged("no answer of the model")


def test_a_key_is_sent_to_nobody_whom_only_the_bundle_names(
    deployed: Deployed, tmp_path: Path
) -> None:
    n_before, folder = deployed.endpoint.n_answers, deployed.bundle.folder
    with tier_server("cloud", folder, environment={"OPENAI_API_KEY": KEY}) as server:
        answers = classify(deployed, server.url)
        assert len(server.logged("asks")) == 1
    assert any(each.degraded for each in answers)
    assert deployed.endpoint.n_answers == n_before  # it wants a key and had none
    (tmp_path / "key").write_text(KEY)
    command = ("serve", "cloud", folder, "--port", "0", "--model-key-file", tmp_path / "key")
    assert KEY not in dimec(*command, code=2).stderr


def test_without_a_server_the_device_answers(deployed: Deployed) -> None:
    for url in (None, dead_url()):
        answers = classify(deployed, url)
        wanted = int((deployed.played.tiers == 2).sum())
        assert sum(each.degraded is not None for each in answers) == wanted
        assert all(each.cost == 0 for each in answers)


def said(content: object, **usage: int) -> bytes:
    message = {"role": "assistant", "content": content}
    return http(200, json.dumps({"choices": [{"message": message}], "usage": usage}).encode())


@pytest.fixture(scope="module")
def misbehaving(deployed: Deployed) -> Iterator[tuple[BadServer, TierServer]]:
    with BadServer(never) as bad:
        options = ("--model", f"chat:{bad.url}#m", "--max-deadline-ms", "3000")
        with tier_server("cloud", deployed.bundle.folder, *options) as server:
            yield bad, server


@pytest.mark.parametrize(
    ("behaviour", "words", "bill"),
    [
        (never, "504", 0.0),
        (writes(http(200, b"<html>busy</html>")), "502", 0.0),
        (writes(http(200, b'{"choices": 1}')), "502", 0.0),
        (writes(http(200, b'{"choices": [{"mess'), close=True), "502", 0.0),
        (writes(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{", close=True), "502", 0.0),
        (writes(http(500, b"oh no")), "502", 0.0),
        (writes(http(404, b"no such model")), "502", 0.0),
        (writes(said('{"class": "neutral"}', prompt_tokens=5)), "no class", 5e-3),
        (writes(said('{"class": "posi', prompt_tokens=5)), "no class", 5e-3),
        (writes(said("As a language model, I", prompt_tokens=2)), "no class", 2e-3),
    ],
)
def test_whatever_the_model_does_costs_accuracy_and_never_an_answer(
    deployed: Deployed,
    misbehaving: tuple[BadServer, TierServer],
    behaviour: Behaviour,
    words: str,
    bill: float,
) -> None:
    """The first text that needs the cloud is answered by what this device has read of it, and pays what was billed."""
    bad, server = misbehaving
    bad.behaviour = behaviour
    first = int(np.flatnonzero(deployed.played.tiers == 2)[0])
    settings = DeviceSettings(threads=1, attempts=1, deadline_ms=2_000)
    with Device(deployed.bundle, cloud=server.url, settings=settings) as device:
        [answer] = device.classify([deployed.texts[first]])
    assert answer.degraded is not None
    assert words in answer.degraded or (words == "504" and "in time" in answer.degraded)
    assert answer.tier is not Tier.CLOUD
    assert answer.cost == pytest.approx(bill)


def test_a_model_that_is_busy_is_left_alone_for_as_long_as_it_asks(
    deployed: Deployed, misbehaving: tuple[BadServer, TierServer]
) -> None:
    """429 upstream is 429 here, with its Retry-After; a device then asks for nothing, and pays nothing."""
    bad, server = misbehaving
    bad.behaviour = writes(http(429, b"slow down", retry_after="7"))
    with client_of(server) as client:
        texts = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a film"]}
        refused = client.post("/v2/models/cloud/infer", json={"inputs": [texts]})
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "7"
    n_asked = len(bad.requests)
    answers = classify(deployed, server.url, deadline_ms=2_000, in_flight=1)
    degraded = [each for each in answers if each.degraded]
    assert degraded
    assert all("overloaded" in (each.degraded or "") for each in degraded)
    assert len(bad.requests) - n_asked == 1
    assert all(each.cost == 0 for each in answers)


def test_many_texts_are_asked_at_once(deployed: Deployed) -> None:
    """A request of many texts keeps so many questions open as are allowed, and no more."""
    most, now = 0, 0

    async def slowly(request: Any, writer: asyncio.StreamWriter) -> None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.1)
        now -= 1
        writer.write(said('{"class": "positive"}'))

    with BadServer(slowly) as bad:
        options = ("--model", f"chat:{bad.url}#m", "--at-once", "3", "--model-price", "0.25")
        with (
            tier_server("cloud", deployed.bundle.folder, *options) as server,
            client_of(server) as client,
        ):
            texts = {"name": "text", "datatype": "BYTES", "shape": [9], "data": ["a film"] * 9}
            answer = client.post("/v2/models/cloud/infer", json={"inputs": [texts]}).json()
            assert answer["parameters"]["billed"] == pytest.approx(9 * 0.25)
            assert answer["outputs"][0]["shape"] == [9, 1, 2]
            about = client.get("/v2/models/cloud").json()
            assert about["inputs"][0]["datatype"] == "BYTES"
    assert most == 3


def test_what_cannot_be_served_or_exported_is_refused(
    deployed: Deployed, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    from dimec.runtime.server.asking import AskingService
    from dimec.runtime.server.settings import ServeOptions

    for folder, model in (
        (tiny_bundle.folder, "chat:http://localhost:1#m"),
        (deployed.bundle.folder, "run:somewhere"),
        (deployed.bundle.folder, "chat:http://me:secret@localhost:1#m"),
    ):
        settings = ServeOptions(tier="cloud", bundle=folder, model=model)
        with pytest.raises(OptionError) as caught:
            asyncio.run(AskingService(settings, token=None).load())
        assert "secret" not in str(caught.value)
    with pytest.raises(OptionError):
        checked(ServeOptions, {"tier": "device", "bundle": tmp_path, "at_once": 2})
    cloud = deployed.bundle.cloud
    assert cloud is not None
    given: dict[str, Any] = {"cloud_model": cloud.asked_model().address, "model_price": PRICE}
    for refused in ({"policy": "deebert"}, {"tails": True}, {"mobile_model": deployed.run.folder}):
        with pytest.raises(OptionError):
            api.export(deployed.run, out=tmp_path / "other", price=0.1, **given, **refused)
    with pytest.raises(BundleError):
        api.evaluate(deployed.bundle.folder, data=write_rows(deployed.run, tmp_path / "rows.csv"))
    damaged = shutil.copytree(deployed.bundle.folder, tmp_path / "damaged")
    (damaged / "cloud" / "model.json").write_text("{}")
    with pytest.raises(BundleError):
        load_bundle(damaged)


@pytest.fixture
def proxy(deployed: Deployed, tmp_path: Path) -> Iterator[str]:
    """Start LiteLLM's proxy in front of the endpoint, from an environment of its own, or skip."""
    command = os.environ.get("DIMEC_LITELLM") or shutil.which("litellm")
    if not command:
        pytest.skip(
            "pip install 'litellm[proxy]' into an environment of its own and name its command, "
            "bin/litellm, in DIMEC_LITELLM to run this test"
        )
    model = {"model": "openai/m", "api_base": deployed.endpoint.url, "api_key": KEY}
    config = {
        "model_list": [{"model_name": "ours", "litellm_params": model}],
        "litellm_settings": {"num_retries": 0, "drop_params": True},
        "general_settings": {"master_key": "sk-of-the-proxy"},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    port = free_port()
    process = subprocess.Popen(
        [command, "--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},  # it would ask the internet
    )
    url = f"http://127.0.0.1:{port}"

    def is_alive() -> bool:
        assert process.poll() is None
        try:
            return httpx.get(f"{url}/health/liveliness", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    try:
        wait_for(is_alive, "the proxy")
        yield url
    finally:
        process.kill()
        process.wait(60)


def test_litellm_stands_between(deployed: Deployed, proxy: str, tmp_path: Path) -> None:
    """The proxy's own key is in a file, its answers are the endpoint's, and its usage is what is billed."""
    (tmp_path / "key").write_text("sk-of-the-proxy\n")
    options = (
        *("--model", f"chat:{proxy}/v1#ours", "--model-key-file", str(tmp_path / "key")),
        *("--model-price", PRICE),
    )
    with tier_server("cloud", deployed.bundle.folder, *options) as server:
        answers = classify(deployed, server.url, deadline_ms=60_000)
    names = deployed.bundle.mobile.manifest.label_names
    assert not any(each.degraded for each in answers)
    assert [names.index(each.label) for each in answers] == deployed.played.predictions.tolist()
    assert all(each.cost > 0.02 for each in answers if each.tier is Tier.CLOUD)
    assert "sk-of-the-proxy" not in json.dumps(server.log)
