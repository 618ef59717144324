"""From a run to a bundle and back to an evaluation; what cannot be exported, and what quantising changes."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.commands import Here
from tests.forked import forked
from tests.inputs import write_rows
from tests.servers import wait_for
from tests.unit.test_model_families import FAMILIES, build

from dimec import api
from dimec.bundle import Bundle, load_bundle
from dimec.bundle.choosing import Profile
from dimec.bundle.engines import ENGINES, TierEngine, TokenBatch, open_session, sessions
from dimec.bundle.engines.tier import EMBEDDING
from dimec.bundle.tabulate import read_samples, tabulate_bundle
from dimec.cli.export import show
from dimec.core.errors import MissingExtraError, OptionError, RunError
from dimec.core.progress import Progress
from dimec.core.tiers import TIERS, Tier
from dimec.costs.model import CostModel
from dimec.data import load_dataset
from dimec.data.builtin import reviews
from dimec.deploying import graphs
from dimec.deploying.compose import compose
from dimec.deploying.export_report import ExportReport
from dimec.deploying.ladder import run_calibration
from dimec.evaluation.options import SetupOptions
from dimec.evaluation.setup import EvaluationSetup
from dimec.policies import View
from dimec.policies.cascade import DimecCascade
from dimec.policies.replay import replay
from dimec.runs.run import Run
from dimec.runtime.device.device import Device
from dimec.training.model import MultiExitEncoder, Pooling
from dimec.training.texts import split_texts

NARROW = {"num_hidden_layers": 2}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled file that the run has not seen in this shape."""
    path = tmp_path_factory.mktemp("data") / "more.jsonl"
    return write_rows(path, reviews().take(np.arange(40)))


@pytest.fixture(scope="module")
def quantized(
    tiny_run: Run, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bundle, ExportReport]:
    folder = tmp_path_factory.mktemp("bundles") / "quantized"
    report = api.export(tiny_run, out=folder, policy="dimec-dc-fixed", quantize="mobile")
    return load_bundle(folder), report


# Positions that start behind the padding id; shared weights, narrow embeddings; rotary positions;
# a bias by distance.
@pytest.mark.parametrize(
    ("name", "pooling"),
    [
        *(("roberta", Pooling.CLS), ("albert", Pooling.ATTENTION)),
        *(("modernbert", Pooling.CLS), ("mpnet", Pooling.ATTENTION)),
    ],
)
def test_other_families_say_what_torch_says(
    name: str, pooling: Pooling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace, traced = graphs._trace, Counter[Path]()

    def counted(*how: Any) -> Any:
        traced[how[-1]] += 1
        return trace(*how)

    monkeypatch.setattr(graphs, "_trace", counted)
    kind, special = FAMILIES[name]
    _, adapter = build(kind, **{**special, **NARROW})
    model = MultiExitEncoder(adapter, exits=(1, 2), n_classes=3, pooling=pooling).eval()
    for weights in model.heads.parameters():
        torch.nn.init.normal_(weights)  # untrained attention is the mean
    graphs.export_graphs(model, tmp_path)
    assert len(traced) == 2 + (name == "modernbert")  # else both layers share one
    segments = [tmp_path / "segment-1.onnx", tmp_path / "segment-2.onnx"]
    compose(tmp_path / "embedding.onnx", segments, tmp_path / "tier.onnx")
    session = open_session(tmp_path / "tier.onnx", threads=1)
    pad_id = int(adapter.config.pad_token_id)
    draws = np.random.default_rng(0)
    for lengths in ([5, 20, 1], [3]):
        mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
        ids = np.where(mask, draws.integers(5, 100, mask.shape), pad_id)
        types = np.zeros_like(ids) if adapter.accepts_token_types else None
        batch = TokenBatch(ids, mask, types)
        (logits,) = session.run(batch.named())
        with torch.inference_mode():
            wanted = model(**{key: torch.tensor(each) for key, each in batch.named().items()})
        np.testing.assert_allclose(logits, wanted.logits.numpy(), atol=1e-4)


def test_a_bundle_answers_a_file_as_its_run_does(
    tiny_run: Run, tiny_bundle: Bundle, file: Path
) -> None:
    bed = EvaluationSetup.of(tiny_run, SetupOptions(data=file))
    dataset = load_dataset("reviews", data=file, label_names=tiny_run.config.task.label_names)
    samples = read_samples(tiny_bundle.mobile, dataset)
    tables = tabulate_bundle(tiny_bundle, samples, threads=1)
    assert not tables.models  # all tiers hold the same graphs
    np.testing.assert_allclose(tables.encoder.logits, bed.table.logits, atol=1e-4)
    np.testing.assert_allclose(tables.encoder.embeddings, bed.table.embeddings, atol=1e-5)
    np.testing.assert_array_equal(tables.encoder.payload_bytes, bed.table.payload_bytes)
    policy = tiny_bundle.mobile.policy()
    by_run = replay(policy, bed.table, costs=bed.costs)
    by_bundle = replay(policy, tables, costs=tiny_bundle.mobile.manifest.costs)
    exits = set(zip(by_run.tiers.tolist(), by_run.layers.tolist(), strict=True))
    assert exits == {(0, 1), (1, 1), (1, 2), (2, 4)}
    for part in ("predictions", "tiers", "layers", "costs"):
        np.testing.assert_array_equal(getattr(by_bundle, part), getattr(by_run, part))


def test_where_an_encoder_is_cut_is_up_to_who_exports_it(tiny_run: Run, tmp_path: Path) -> None:
    api.export(tiny_run, out=tmp_path / "cut", price=0.01, mobile_layers=2, edge_layers=3)
    bundle = load_bundle(tmp_path / "cut")
    held = [part.layers for tier in TIERS if (part := bundle.of(tier)) is not None]
    assert held == [(1, 2), (1, 2, 3), (1, 2, 3, 4)]
    bed = EvaluationSetup.of(tiny_run, SetupOptions(mobile_layers=2, edge_layers=3))
    expected = replay(DimecCascade.fit(bed.calibration(0.01)), tiny_run.test, costs=bed.costs)
    with Device(bundle) as device:
        answers = device.classify(split_texts(tiny_run, "test").first)
    assert [TIERS.index(answer.tier) for answer in answers] == expected.tiers.tolist()
    assert [answer.layer for answer in answers] == expected.layers.tolist()
    assert len({answer.layer for answer in answers}) > 1


def test_the_whole_encoder_fits_on_the_device_and_asks_no_server(
    tiny_run: Run, tmp_path: Path
) -> None:
    api.export(tiny_run, out=tmp_path / "alone", price=0.01, cuts="4/4")
    (cut,) = tiny_run.cuts("4/4")
    calibration = replace(run_calibration(tiny_run, price=0.01), depths=cut)
    expected = replay(DimecCascade.fit(calibration), tiny_run.test, costs=CostModel())
    with Device(tmp_path / "alone") as device:
        answers = device.classify(split_texts(tiny_run, "test").first)
    assert {answer.tier for answer in answers} == {Tier.MOBILE}
    assert [answer.layer for answer in answers] == expected.layers.tolist()
    assert max(expected.layers) > 2
    np.testing.assert_allclose([answer.cost for answer in answers], expected.costs)


def test_an_export_takes_what_an_evaluation_recommends(tiny_run: Run, tmp_path: Path) -> None:
    report = api.export(tiny_run, out=tmp_path / "bundle", max_drop=20, cuts="1/2,4/4")
    told = api.evaluate(tiny_run, max_drop=20, cuts="1/2,4/4").recommendation
    assert report.recommendation == told
    assert report.promise is None
    policy = load_bundle(tmp_path / "bundle").mobile.policy()
    played = replay(policy, tiny_run.test, costs=CostModel())
    assert told is not None
    assert played.costs.mean() == pytest.approx(told.cost)
    assert (played.predictions == tiny_run.test.labels).mean() == pytest.approx(told.score)


def test_a_policy_is_exported_as_it_is_fitted_in_milliseconds(
    tiny_run: Run, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"profile": "phone-4g", "unit": "ms"}
    report = api.export(tiny_run, out=tmp_path / "ms", price=0.02, **asked)
    assert (report.unit, report.profile) == ("ms", "phone-4g")
    bundle = load_bundle(tmp_path / "ms")
    by_ms, by_lambda = (
        DimecCascade.fit(EvaluationSetup.of(tiny_run, SetupOptions(**how)).calibration(0.02)).points
        for how in (asked, {})
    )
    policy = bundle.mobile.policy()
    assert isinstance(policy, DimecCascade)
    assert policy.points == by_ms != by_lambda
    assert bundle.mobile.manifest.costs == CostModel()  # what an answer costs is told in lambda
    with pytest.raises(OptionError, match="--profile"):
        api.export(tiny_run, out=tmp_path / "none", unit="ms")


def test_evaluating_a_bundle_prints_what_its_run_prints(
    tiny_run: Run, tiny_export: Bundle, file: Path
) -> None:
    price = tiny_export.mobile.manifest.price
    of_run = api.evaluate(tiny_run, data=file, policies=["dimec-dc-fixed"], price=price)
    of_bundle = api.evaluate(tiny_export.folder, data=file)
    # Nothing in an evaluation is finer than the answers, but for the router's distances behind the AUC.
    own = {"not_run", "classes", "warnings", "summary"}
    assert of_bundle.model_dump(exclude=own) == of_run.model_dump(exclude=own)
    assert of_bundle.classes is not None
    assert of_run.classes is not None
    for row, same in zip(of_bundle.classes.rows, of_run.classes.rows, strict=True):
        assert row.support == same.support
        assert row.full_model.f1 == pytest.approx(same.full_model.f1)
        assert row.recommended is not None
    policy = of_bundle.rows[0]
    matrix = np.array(of_bundle.classes.recommended_confusion)
    assert np.trace(matrix) / of_bundle.n == pytest.approx(policy.accuracy)
    assert of_bundle.summary is not None
    assert f"{100 * policy.cost_vs_cloud:.0f} %" in of_bundle.summary


def test_a_bundle_takes_nothing_that_its_policy_was_fitted_to(
    tiny_bundle: Bundle, file: Path
) -> None:
    bundle = tiny_bundle.folder
    with pytest.raises(OptionError, match="--data FILE"):
        api.evaluate(bundle)
    with pytest.raises(OptionError, match="dimee-fixed alone"):
        api.evaluate(bundle, data=file, policies=["random"])
    fitted_to: dict[str, Any] = {
        **{"price": 0.3, "mobile_layers": 2, "edge_model": "x"},
        **{"max_drop": 2.0, "cuts": "1/2"},
    }
    for name, value in fitted_to.items():
        with pytest.raises(OptionError, match=f"--{name.replace('_', '-')}"):
            api.evaluate(bundle, data=file, **{name: value})


def test_quantising_fits_again_on_what_is_deployed(
    tiny_run: Run, quantized: tuple[Bundle, ExportReport], file: Path
) -> None:
    bundle, report = quantized
    assert [tier.quantized for tier in report.tiers] == [True, False, False]
    assert report.after is not None
    assert report.flipped is not None
    assert bundle.edge is not None
    sizes = [tier.manifest.files[EMBEDDING].bytes for tier in (bundle.mobile, bundle.edge)]
    assert sizes[0] < sizes[1] / 3
    # The embedding is 8-bit too, so the centroids are not those of the run.
    theirs = api.evaluate(tiny_run, policies=["dimec-dc-fixed"]).rows[0]
    assert theirs.operating_point is not None
    assert report.before.operating_point == theirs.operating_point
    again = bundle.mobile.policy()
    assert again.operating_point() == report.after.operating_point
    dataset = load_dataset("reviews", data=file, label_names=bundle.mobile.manifest.label_names)
    tables = tabulate_bundle(bundle, read_samples(bundle.mobile, dataset))
    assert set(tables.models) == {Tier.MOBILE}
    assert np.abs(tables.embeddings - tables.encoder.embeddings).max() > 1e-4
    evaluation = api.evaluate(bundle.folder, data=file)
    names = [row.policy for row in evaluation.rows]
    assert names[0] == "dimec-dc-fixed"
    assert {"all-mobile", "oracle", "bert-on-mobile", "majority"} < set(names)


def test_a_quantised_sample_is_read_alone(quantized: tuple[Bundle, ExportReport]) -> None:
    bundle, _ = quantized
    dataset = reviews().take(np.arange(6))
    together = tabulate_bundle(bundle, read_samples(bundle.mobile, dataset)).of(Tier.MOBILE)
    backwards = dataset.take(np.arange(6)[::-1])
    apart = tabulate_bundle(bundle, read_samples(bundle.mobile, backwards)).of(Tier.MOBILE)
    np.testing.assert_array_equal(together.logits, apart.logits[::-1])


class _Killed(Progress):
    """Ends the export once its folder is there."""

    @contextmanager
    def stage(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        raise KeyboardInterrupt
        yield


def test_an_export_that_is_stopped_leaves_nothing(tiny_run: Run, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        api.export(tiny_run, out=tmp_path / "bundle", progress=_Killed())
    assert not list(tmp_path.iterdir())


def test_an_export_that_is_killed_is_cleared_away_by_the_next(
    tiny_run: Run, tiny_export: Bundle, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = shutil.copytree(tiny_export.folder, tmp_path / "bundle")
    said = tmp_path_factory.mktemp("said") / "out"
    process = forked("export", tiny_run.folder, "--out", out, said=said)
    wait_for(lambda: list(tmp_path.glob(".bundle.*/.pieces")), "the export's hidden folder")
    process.kill()
    assert process.wait() == -signal.SIGKILL
    (left,) = tmp_path.glob(".bundle.*")
    assert left.name.startswith(f".bundle.{process.pid}-")
    before = tiny_export.mobile.manifest.model_fingerprint
    assert load_bundle(out).mobile.manifest.model_fingerprint == before
    api.export(tiny_run, out=out)
    assert list(tmp_path.iterdir()) == [out]


def test_what_cannot_be_exported_is_one_sentence(tiny_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "diary.txt").write_text("mine")
    (tmp_path / "file").write_text("")
    cases: list[tuple[dict[str, object], str]] = [
        ({"policy": "splitee"}, "--tails"),
        ({"policy": "nope"}, "choose from"),
        ({"quantize": "moon"}, "mobile, edge, cloud"),
        ({"price": -1.0}, "--price"),
        ({"out": tmp_path / "full"}, "something else than a bundle"),
        ({"out": tmp_path / "file"}, "is a file"),
    ]
    for options, says in cases:
        with pytest.raises(OptionError, match=says):
            api.export(tiny_run, **{"out": out, **options})  # type: ignore[arg-type]
    with pytest.raises(RunError, match="no run"):
        api.export(tmp_path / "nowhere", out=out)
    assert not out.exists()


def test_quantising_needs_the_texts(tiny_run: Run, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in tiny_run.folder.iterdir():
        if path.name != "texts.parquet":
            (bare / path.name).symlink_to(path)
    with pytest.raises(OptionError, match="--keep-texts"):
        api.export(bare, out=tmp_path / "bundle", quantize="all")


def test_a_profile_says_what_every_layer_takes(
    tiny_bundle: Bundle, tmp_path: Path, here: Here
) -> None:
    path = tmp_path / "profile.json"
    said = here(
        "profile", tiny_bundle.folder, "--tier", "edge", "--engine", "onnxruntime",
        "--lengths", "5", "--batches", "2", "--seconds", "0.01", "--out", path, "--json",
    ).out  # fmt: skip
    profile = Profile.model_validate_json(path.read_text())
    assert profile == Profile.model_validate_json(said)
    (measured,) = profile.measurements
    assert (measured.tier, measured.batch, measured.length) == (Tier.EDGE, 2, 5)
    assert len(measured.layer_ms) == 2
    assert min(measured.layer_ms) > 0
    assert measured.runs >= 10
    assert profile.model_fingerprint == tiny_bundle.mobile.manifest.model_fingerprint
    for option, value in (("--lengths", "500"), ("--threads", "0"), ("--batches", "many")):
        assert option in here("profile", tiny_bundle.folder, option, value, code=2).err


def test_the_doctor_runs_a_bundle_and_finds_what_is_broken(
    tiny_bundle: Bundle, tmp_path: Path, here: Here
) -> None:
    assert here("doctor", tiny_bundle.folder).out.count("whole") == len(TIERS)
    assert json.loads(here("doctor", "--json").out)
    assert "dimec export RUN" in here("doctor", tmp_path, code=2).out


def test_the_export_prints_what_quantising_changed(
    quantized: tuple[Bundle, ExportReport], capsys: pytest.CaptureFixture[str]
) -> None:
    _, report = quantized
    show(report)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 100
    assert "int8" in printed
    assert "dimec-dc-fixed before" in printed
    assert "dimec-dc-fixed after" in printed
    assert f"of {report.n}" in printed


def test_the_command_line_evaluates_a_bundle_by_an_engine_and_keeps_the_result(
    tiny_run: Run,
    tiny_export: Bundle,
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    here: Here,
) -> None:
    folder = shutil.copytree(tiny_export.folder, tmp_path / "bundle")
    command = ("evaluate", folder, "--data", file, "--json", "--engine")
    scores = {}
    for engine in ENGINES:
        document = json.loads(here(*command, engine).out)
        assert document["n"] == 40
        assert json.loads((folder / "evaluation" / "data-more.json").read_text()) == document
        scores[engine] = document["rows"][0]["score"]
    # OpenVINO's bfloat16, where the CPU has it, may turn a sample or two of the 40.
    assert scores["openvino"] == pytest.approx(scores["onnxruntime"], abs=0.06)
    assert "--data" in here("evaluate", folder, code=2).err
    refused = here("evaluate", tiny_run.folder, "--engine", "onnxruntime", code=2)
    assert "--engine onnxruntime" in refused.err
    # None makes an import fail as if there were no such package
    monkeypatch.setitem(sys.modules, "openvino", None)
    sessions._openvino_core.cache_clear()
    with pytest.raises(MissingExtraError):
        api.evaluate(folder, data=file, engine="openvino")


def test_the_documented_example_routes_as_the_policy_does(tiny_bundle: Bundle) -> None:
    docs = Path(__file__).parents[2] / "docs"
    page = (docs / "reference" / "bundle.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    text = reviews().first[3]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(tiny_bundle.folder), text],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    mobile = tiny_bundle.mobile
    engine = TierEngine(mobile, threads=1)
    batch = mobile.tokenizer().encode([text]).batch()
    step = mobile.policy().decide(View(embedding=engine.embed(batch)[1][0]))
    assert step is not None
    label = mobile.manifest.label_names[int(engine.infer(batch)[0, -1].argmax())]
    assert said == {"tier": str(step.tier), "mobile_label": label}
