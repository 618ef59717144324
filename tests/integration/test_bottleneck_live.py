"""Learned bottlenecks live: exported, shipped as bytes, restored by a tier, and equal to a replay of the same files."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from tests import servers
from tests.bundles import check_replay, with_tails
from tests.inputs import write_rows
from tests.misbehaving import BadServer, Honest, dead_url
from tests.servers import (
    PATIENCE_S,
    TierServer,
    logits_of,
    tier_server,
    tokens,
)
from tests.servers import run as run_command
from typer.testing import CliRunner

from dimec import api
from dimec.bundle import Bundle, load_bundle, load_tier
from dimec.bundle.engines import TierEngine, TokenBatch
from dimec.bundle.tabulate import read_samples, tabulate_bundle
from dimec.cli.app import app
from dimec.cli.export import show
from dimec.core.errors import BundleError, OptionError
from dimec.core.progress import SILENT
from dimec.core.tiers import TIERS, Answer, Step, Tier
from dimec.data import reviews
from dimec.deploying.export_report import ExportReport
from dimec.policies import POLICIES, Calibration
from dimec.policies.bottleneck import BottleNet
from dimec.policies.replay import replay
from dimec.policies.splitee import SplitEe
from dimec.runs.codes import Code
from dimec.runs.compressed import compressed_in
from dimec.runs.exit_table import Restored, TierTables
from dimec.runs.run import Run
from dimec.runtime.device.device import Device
from dimec.runtime.device.options import DeviceSettings
from dimec.runtime.wire import (
    decode_request,
)
from dimec.training.batching import Rows
from dimec.training.model import load_model
from dimec.training.tabulate import load_split, tabulate_through

MOBILE, EDGE, CLOUD = Tier
DATASET = reviews(60, seed=7)
TEXTS = list(DATASET.first)
LEARNT: dict[str, dict[str, Any]] = {
    "bottlefit-l2w4": {"kind": "bottlefit", "width": 4},
    "bottlenet-l2w3p2q8": {"kind": "bottlenet", "width": 3, "pool": 2, "levels": 8},
    "bottlenet-pp-l2w3-era20": {
        "kind": "bottlenet-pp", "width": 3, "channel": "erasure", "erasure_rate": 0.2, "draws": 1,
    },
}  # fmt: skip
POOLED = "bottlenet-l2w3p2q8"
ONE_THREAD = DeviceSettings(threads=1, deadline_ms=60_000)
QUICK = DeviceSettings(threads=1, deadline_ms=20_000, backoff_ms=1, open_s=30)
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Made:
    """A bundle with a bottleneck, its report, and what its files say of the texts."""

    bundle: Bundle
    report: ExportReport
    tables: TierTables

    @property
    def restored(self) -> Restored:
        assert self.tables.restored is not None
        return self.tables.restored


@pytest.fixture(scope="module")
def run(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Give a copy of the tiny run with a bottleneck of each kind that can be live."""
    folder = tmp_path_factory.mktemp("compress") / "run"
    shutil.copytree(tiny_run.folder, folder)
    found = Run.open(folder)
    for chosen in LEARNT.values():
        api.compress(found, layer=2, max_rows=60, epochs=1, **chosen)
    return found


@pytest.fixture(scope="module")
def bundles(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    found = {}
    for name in LEARNT:
        folder = tmp_path_factory.mktemp("bundles") / name
        report = api.export(run, out=folder, policy=name)
        bundle = load_bundle(folder)
        tables = tabulate_bundle(bundle, read_samples(bundle.mobile, DATASET), threads=1)
        found[name] = Made(bundle, report, tables)
    return found


@pytest.fixture(params=LEARNT)
def made(request: pytest.FixtureRequest, bundles: dict[str, Made]) -> Made:
    return bundles[request.param]


@pytest.fixture
def pooled(bundles: dict[str, Made]) -> Made:
    return bundles[POOLED]


@pytest.fixture(scope="module")
def cloud(bundles: dict[str, Made]) -> Iterator[TierServer]:
    """Serve the pooled one's cloud."""
    with tier_server("cloud", bundles[POOLED].bundle.folder) as server:
        yield server


def check(answers: list[Answer], made: Made) -> None:
    """Hold answers against a replay of the bundle's policy."""
    check_replay(answers, made.bundle.mobile.policy(), made.tables, made.bundle, within=1e-6)


# --- what is written


def test_every_kind_is_here() -> None:
    kinds = {policy.bottleneck for policy in POLICIES.values()} - {None}
    assert {chosen["kind"] for chosen in LEARNT.values()} == kinds


def test_the_manifests_say_what_both_ends_need(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, report = made.bundle, made.report
    assert bundle.edge is not None and bundle.cloud is not None
    name = made.restored.name
    chosen = LEARNT[name]
    code = Code(
        chosen["kind"],
        chosen["width"],
        pool=chosen.get("pool", 1),
        levels=chosen.get("levels", 256),
    )
    for tier in (bundle.mobile, bundle.cloud):
        tails = tier.manifest.tails
        assert tails is not None and tails.bottleneck is not None
        assert (tails.layers, tails.datatype, tails.bottleneck.name) == ((2,), "UINT8", name)
        assert tails.code == code
    assert bundle.edge.manifest.tails is None
    assert bundle.mobile.manifest.policy == chosen["kind"]
    assert bundle.mobile.layers == (1, 2)
    assert bundle.mobile.also == ("reduce.onnx",)
    assert bundle.cloud.also == ("restore.onnx", "restored-3.onnx", "restored-4.onnx")
    files = bundle.cloud.manifest.files
    # it was trained behind the bottleneck, and the tokens' own layers are still there
    assert files["restored-4.onnx"].sha256 != files["segment-4.onnx"].sha256
    assert report.tails is not None and report.tails.bottleneck == name
    added = [bundle.mobile.manifest.files[each].bytes for each in bundle.mobile.also]
    added += [files[each].bytes for each in bundle.cloud.also]
    beyond = bundle.mobile.manifest.files["segment-2.onnx"].bytes
    assert report.tails.bytes_added == sum(added) + beyond
    show(report)
    printed = " ".join(capsys.readouterr().out.split())
    assert "cloud what restores and layers of its own behind it" in printed
    assert f"numbers a token travel as bytes ({name})" in printed


def test_the_files_say_what_torch_says(made: Made, run: Run) -> None:
    (compressed,) = (each for each in compressed_in(run) if each.config.name == made.restored.name)
    loaded, split = load_model(run.model_folder), load_split(run, compressed)
    if compressed.kind == "bottlenet-pp":
        split.bottleneck.worst = 0.0  # type: ignore[assignment]  # live, no bit is erased
    max_length = run.config.max_length
    rows = Rows.tokenized(DATASET, loaded.tokenizer, max_length=max_length, progress=SILENT)
    (wanted,) = tabulate_through(split, rows, seed=0)
    ours = made.restored.table
    assert ours.layers == wanted.layers == (3, 4)
    # a number between two levels may be rounded otherwise, and is a little of what is left of a state
    off = np.abs(ours.logits - wanted.logits).max(axis=(1, 2))
    assert np.median(off) < 1e-4 and off.max() < 0.2
    np.testing.assert_allclose(ours.payload_bytes, wanted.payload_bytes, atol=2)
    assert np.abs(ours.logits - made.tables.encoder.logits[:, 2:]).max() > 1e-3


def test_what_restores_is_listed_and_whole(pooled: Made, tmp_path: Path) -> None:
    folder = shutil.copytree(pooled.bundle.folder / "cloud", tmp_path / "cloud")
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    without = {name: info for name, info in document["files"].items() if name != "restore.onnx"}
    path.write_text(json.dumps({**document, "files": without}))
    with pytest.raises(BundleError, match=r"restore\.onnx is not listed"):
        load_tier(folder)
    path.write_text(json.dumps(document))
    (folder / "restore.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"restore\.onnx"):
        load_tier(folder)


def test_what_cannot_be_exported_is_one_sentence(run: Run, tmp_path: Path) -> None:
    folder = shutil.copytree(run.folder, tmp_path / "run")
    short: dict[str, Any] = {"layer": 2, "max_rows": 40, "epochs": 1}
    api.compress(folder, kind="bottlefit", width=3, **short)
    api.compress(folder, kind="bottlenet-pp", width=2, draws=1, **short)
    half = folder / "compressed" / "bottlefit-l2w4"
    (half / "exits" / "test.safetensors").unlink()
    copied = Run.open(folder)
    out = tmp_path / "bundle"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"policy": "bottlenet-pp-l2w2-snr10"}, "channel erasure"),
        ({"policy": "bottlenet-pp"}, "2 bottlenecks of that kind; name one of bottlenet-pp-l2w2-s"),
        ({"policy": "bottlefit-l2w4"}, "was stopped: `dimec compress .* goes on"),
        ({"policy": "bottlefit-l2w9"}, "choose from"),
        ({"policy": POOLED, "quantize": "mobile"}, "quantise all of them, or none"),
        (
            {"policy": POOLED, "tails": True, "hidden_type": "fp32"},
            "--hidden-type fp32: .* leave it out",
        ),
        ({"policy": POOLED, "max_drop": 1.0}, "chooses among cascades"),
        ({"policy": POOLED, "assurance": 0.9}, "promises are made of dimec-cascade"),
    ]
    for options, says in cases:
        with pytest.raises(OptionError, match=says) as caught:
            api.export(copied, **{"out": out, **options})
        assert "\n" not in str(caught.value)
    path = folder / "compressed" / POOLED / "config.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "model_fingerprint": "other"}))
    with pytest.raises(OptionError, match=r"another model .* --restart"):
        api.export(copied, out=out, policy=POOLED)
    assert not out.exists()


# --- the device does what replay does


def test_in_process(made: Made) -> None:
    with Device(made.bundle, settings=ONE_THREAD) as device:
        check(device.classify(TEXTS), made)


def test_over_a_server(pooled: Made, cloud: TierServer) -> None:
    mobile = pooled.bundle.mobile
    alone = Bundle(pooled.bundle.folder, mobile, None, None)  # all that a phone holds
    with Device(alone, cloud=cloud.url, settings=ONE_THREAD) as device:
        check(device.classify(TEXTS), pooled)
        assert device.traffic[CLOUD].requests == len(TEXTS)
    assert not cloud.logged("fault")


def test_what_is_sent_is_what_replay_counts(made: Made) -> None:
    assert made.bundle.cloud is not None
    with (
        BadServer(Honest(made.bundle.cloud)) as server,
        Device(made.bundle, cloud=server.url, settings=ONE_THREAD) as device,
    ):
        check(list(device.stream(TEXTS, in_flight=1)), made)
    table = made.restored.table
    for request, size, n_tokens in zip(
        server.requests, table.payload_bytes, table.n_tokens, strict=True
    ):
        asked = decode_request(request.headers, request.body)
        assert set(asked.inputs) == {"code", "attention_mask"}
        assert asked.parameters["from_layer"] == 2
        assert asked.inputs["code"].dtype == np.uint8
        assert asked.inputs["code"].shape == (1, size)
        assert asked.inputs["attention_mask"].shape == (1, n_tokens)


def test_a_quantised_bundle_restores_too(run: Run, tmp_path: Path) -> None:
    report = api.export(run, out=tmp_path / "b", policy="bottlefit", quantize="all", tails=True)
    assert report.after is not None and report.flipped is not None
    bundle = load_bundle(tmp_path / "b")
    tables = tabulate_bundle(bundle, read_samples(bundle.mobile, DATASET), threads=1)
    made = Made(bundle, report, tables)
    with (
        tier_server("cloud", bundle.folder) as cloud,
        Device(bundle, cloud=cloud.url, settings=ONE_THREAD) as device,
    ):
        # an int8 answer depends on what shares its batch, so that each text goes alone
        check(list(device.stream(TEXTS, in_flight=1)), made)


def test_an_evaluation_names_its_row_as_the_runs_does(pooled: Made, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", DATASET)
    mobile, restored = pooled.bundle.mobile, pooled.restored
    found = api.evaluate(pooled.bundle.folder, data=path)
    row = next(each for each in found.rows if each.kind == "policy")
    assert row.policy == restored.name
    played = replay(mobile.policy(), pooled.tables, costs=mobile.manifest.costs)
    assert row.accuracy == pytest.approx((played.predictions == DATASET.labels).mean())
    assert row.shipped_bytes == pytest.approx(restored.table.payload_bytes.mean())
    assert row.random_at_cost is not None


def test_commands_of_a_device_need_no_torch(pooled: Made, tmp_path: Path) -> None:
    folder, rows = str(pooled.bundle.folder), str(write_rows(tmp_path / "rows.jsonl", DATASET))
    commands = [["doctor", folder], ["evaluate", folder, "--data", rows]]
    commands += [["classify", folder, "--file", rows, "--json"]]
    program = """
import json, sys
sys.modules["torch"] = None
from dimec.cli.app import app
for command in json.loads(sys.argv[1]):
    app(command, standalone_mode=False)
"""
    done = run_command([sys.executable, "-W", "error", "-c", program, json.dumps(commands)])
    assert done.returncode == 0, done.stderr
    assert f"through the bottleneck {POOLED}" in done.stdout
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == len(TEXTS)
    assert {(each["tier"], each["layer"], each["degraded"]) for each in lines} == {
        ("cloud", 4, None)
    }


def test_the_doctor_says_what_a_tier_ships_and_restores(pooled: Made, tiny_export: Bundle) -> None:
    done = CliRunner().invoke(app, ["doctor", str(pooled.bundle.folder), "--json"])
    assert done.exit_code == 0, done.output
    said = {each["what"]: each["detail"] for each in json.loads(done.stdout)["checks"]}
    mobile, edge, cloud = (said[str(pooled.bundle.folder / tier)] for tier in TIERS)
    through = f"hidden states after layers 2 through the bottleneck {POOLED}, 3 numbers as bytes"
    assert f"tails: ships {through}" in mobile
    assert f"tails: resumes from {through}" in cloud
    assert "no tails" in edge
    plain = CliRunner().invoke(app, ["doctor", str(tiny_export.folder)])
    assert plain.stdout.count("no tails") == len(TIERS)


def test_devices_and_policies_that_do_not_fit_are_refused(
    pooled: Made, tiny_run: Run, tiny_export: Bundle, tmp_path: Path
) -> None:
    split = SplitEe.fit(Calibration(tiny_run.validation, tiny_run.config.depths))
    with pytest.raises(OptionError, match=r"through no bottleneck, and .* made for bottlenet"):
        Device(pooled.bundle, policy=split)
    plain = with_tails(tiny_export, tmp_path / "split", split)
    behind = BottleNet(tiny_run.config.depths["ee"], layer=2, width=3)
    with pytest.raises(OptionError, match=r"through bottlenet, and .* made for none"):
        Device(plain, policy=behind)
    with pytest.raises(OptionError, match=r"mobile tier .* is not made: export it by that policy"):
        Device(tiny_export, policy=behind)
    elsewhere = BottleNet(tiny_run.config.depths["ee"], layer=1, width=3)
    with pytest.raises(OptionError, match=r"splits after layers \[1\], .* stands after \[2\]"):
        Device(pooled.bundle, policy=elsewhere)
    with pytest.raises(OptionError, match=r"hidden_type FP32: .* leave it out"):
        Device(pooled.bundle, settings=QUICK.model_copy(update={"hidden_type": "FP32"}))


# --- drills


def stood_in(answer: Answer, made: Made, row: int) -> None:
    """Expect the device's own exit at the split: the edge of so small a model is no deeper."""
    table = made.tables.encoder
    assert (answer.tier, answer.layer) == (MOBILE, 2)
    assert answer.label == table.label_names[table.predictions[row, table.exit(2)]]
    assert str(answer.degraded).endswith("so the mobile tier answered")


def test_without_a_cloud_the_next_best_tier_answers(pooled: Made) -> None:
    bundle = pooled.bundle
    dead = dead_url()
    costs = bundle.mobile.manifest.costs
    split, last = Step(MOBILE, 2), Step(CLOUD, 4, resumes=True)
    once = costs.of([split, last]) - costs.of([split])
    for without, url, attempts in (
        (bundle, dead, QUICK.attempts),
        (replace(bundle, cloud=None), None, 0),
        (replace(bundle, edge=None, cloud=None), dead, 0),  # it asks for the cloud's layers first
    ):
        with Device(without, settings=QUICK, cloud=url) as device:
            answers = list(device.stream(TEXTS[:3], in_flight=1))
        for row, answer in enumerate(answers):
            stood_in(answer, pooled, row)
        assert answers[0].cost == pytest.approx(costs.of([split]) + attempts * once)


# --- the server


def coded(made: Made, inputs: Arrays) -> Arrays:
    """Run a prefix and reduce it, row by row, as devices do; rows are filled up with zeros."""
    device, code = TierEngine(made.bundle.mobile, threads=1), code_of(made)
    mask = inputs["attention_mask"]
    hidden, _ = device.embed(TokenBatch.of(inputs))
    for layer in (1, 2):
        hidden, _ = device.segment(layer, hidden, mask)
    rows = [
        code.pack(device.reduce(code.pooled(state[:n])[None])[0])
        for state, n in zip(hidden, mask.sum(axis=1).tolist(), strict=True)
    ]
    longest = max(map(len, rows))
    filled = np.stack([np.frombuffer(row.ljust(longest, b"\0"), np.uint8) for row in rows])
    return {"code": filled, "attention_mask": mask}


ask = partial(servers.ask, tier="cloud")


def code_of(made: Made) -> Code:
    tails = made.bundle.mobile.manifest.tails
    assert tails is not None and tails.code is not None
    return tails.code


def test_rows_of_any_length_share_a_request(pooled: Made, cloud: TierServer) -> None:
    assert pooled.bundle.cloud is not None
    engine, code = TierEngine(pooled.bundle.cloud, threads=1), code_of(pooled)
    inputs = tokens(4, 9, 30, 5)
    sent = coded(pooled, inputs)
    with httpx.Client(base_url=cloud.url, timeout=PATIENCE_S) as client:
        together = logits_of(ask(client, sent, from_layer=2))
        np.testing.assert_array_equal(
            logits_of(ask(client, sent, binary=False, from_layer=2)), together
        )
        early = logits_of(ask(client, sent, from_layer=2, exit_threshold=0.0))
        of_tokens = logits_of(ask(client, inputs))
    assert np.isnan(together[:, :2]).all()
    assert np.isnan(early[:, 3]).all() and not np.isnan(early[:, 2]).any()
    for row, n in enumerate(inputs["attention_mask"].sum(axis=1).tolist()):
        numbers = code.unpack(sent["code"][row].tobytes(), n_tokens=n)
        hidden = engine.restore(numbers[None], n_tokens=n)
        mask = np.ones((1, n), dtype=np.int64)
        alone = engine.resume(hidden, mask, from_layer=2, restored=True)
        np.testing.assert_allclose(together[row, 2:], alone[0, 2:], atol=1e-5)
    # tokens are still answered by the weights that were trained for them
    np.testing.assert_allclose(of_tokens, engine.infer(TokenBatch.of(inputs)), atol=1e-5)


def test_bad_codes_are_told_what_is_wrong(pooled: Made, cloud: TierServer) -> None:
    good = coded(pooled, tokens(4, 6))
    code, mask = good["code"], good["attention_mask"]
    own = code_of(pooled)
    holes = mask.copy()
    holes[1, 2] = 0

    def row_of(data: bytes) -> Arrays:
        one = {"code": np.frombuffer(data, np.uint8)[None], "attention_mask": mask[1:]}
        return one

    bomb = own.pack(np.zeros((2_000_000, own.width), dtype=np.float32))
    assert len(bomb) < 10_000
    long = {"code": code[:1], "attention_mask": np.ones((1, 129), "i8")}
    many = {"code": np.ones((257, 2), "u1"), "attention_mask": np.ones((257, 2), "i8")}
    state = {"hidden": np.ones((2, 6, 32), "f2"), "attention_mask": mask}
    wrong: list[tuple[Arrays, Any, int, str]] = [
        (good, None, 400, "from_layer"),
        *((good, layer, 400, "from_layer") for layer in (0, 1, 3, 2.0, True, "2")),
        ({"code": code}, 2, 400, "attention_mask"),
        ({**good, "input_ids": mask}, 2, 400, "input_ids"),
        (state, 2, 400, "code"),
        ({**good, "code": code.astype(np.int8)}, 2, 400, "UINT8 [rows, bytes]"),
        ({**good, "code": code[None]}, 2, 400, "UINT8 [rows, bytes]"),
        ({**good, "code": code[:1]}, 2, 400, "attention_mask"),
        ({**good, "attention_mask": mask.astype("f4")}, 2, 400, "attention_mask"),
        ({**good, "attention_mask": mask * 2}, 2, 400, "0..1"),
        ({**good, "attention_mask": mask * 0}, 2, 400, "row 0 of attention_mask"),
        ({**good, "attention_mask": holes}, 2, 400, "attention_mask"),
        ({name: array[:0] for name, array in good.items()}, 2, 400, "code"),
        ({**good, "code": code[:, :0]}, 2, 400, "row 0 of code"),
        ({**good, "attention_mask": mask[:, :4]}, 2, 400, "row 1 of code"),
        (row_of(bomb), 2, 400, "row 0 of code"),
        (row_of(b"\xff" * 40), 2, 400, "row 0 of code"),
        (row_of(code[1].tobytes() + b"\x01"), 2, 400, "row 0 of code"),
        (row_of(Code("bottlenet", 3).pack(np.ones((3, 3), "f4"))), 2, 400, "row 0 of code"),
        (long, 2, 413, "128"),
        (many, 2, 413, "256"),
    ]
    with httpx.Client(base_url=cloud.url, timeout=PATIENCE_S) as client:
        for sent, layer, status, told in wrong:
            response = ask(client, sent, **({} if layer is None else {"from_layer": layer}))
            assert response.status_code == status, (response.text, told)
            assert told in response.json()["error"]
            assert "\n" not in response.json()["error"]
        assert ask(client, good, from_layer=2).status_code == 200
    assert not cloud.logged("fault")


def test_the_model_says_what_it_takes(cloud: TierServer) -> None:
    with httpx.Client(base_url=cloud.url, timeout=PATIENCE_S) as client:
        described = client.get("/v2/models/cloud").json()
        assert described["inputs"][-1] == {"name": "code", "datatype": "UINT8", "shape": [-1, -1]}
        assert json.loads(described["parameters"]["resumes_from"]) == [2]
        page = client.get("/docs").text
        assert f"code UINT8 [rows, bytes] of the bottleneck {POOLED}" in page
        assert "can be inverted" in page
