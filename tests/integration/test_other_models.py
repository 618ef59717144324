"""Models of others on the device and the edge, by every prefix; and an evaluation that is killed."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.chat_endpoint import KEY, chat_endpoint, write_rows
from tests.forked import forked
from tests.servers import PATIENCE_S, tier_server, wait_for

from dimec import api
from dimec.bundle import Bundle, load_bundle
from dimec.core.errors import OptionError
from dimec.core.tiers import Step, Tier
from dimec.costs.billing import fitting_costs
from dimec.endpoints.prices import PriceList
from dimec.evaluation.options import ModelOptions
from dimec.evaluation.other_models import line_up
from dimec.policies.replay import replay
from dimec.runs.exit_table import TierTables
from dimec.runs.run import Run
from dimec.runtime.device.device import Device
from dimec.runtime.device.options import DeviceSettings
from dimec.training.texts import RunTexts


@pytest.fixture(scope="module")
def static_model(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a classifier on static embeddings by its own library; its weights are drawn."""
    from model2vec import StaticModel
    from model2vec.inference import StaticModelPipeline
    from model2vec.inference.mlp import Activation, Layer, MLPHead
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tiny_run.model_folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    draws = np.random.default_rng(0)
    vectors = draws.normal(size=(tokenizer.get_vocab_size(), 8)).astype(np.float32)
    layer = Layer(weight=draws.normal(size=(2, 8)).astype(np.float32), bias=np.zeros(2, np.float32))
    head = MLPHead(
        layers=[layer], activation=Activation.SOFTMAX, classes=np.array(["Positive", "negative"])
    )
    folder = tmp_path_factory.mktemp("static")
    StaticModelPipeline(StaticModel(vectors, tokenizer), head).save_pretrained(str(folder))
    return folder


def test_a_static_classifier_on_the_device(tiny_run: Run, static_model: Path) -> None:
    """Its classes go by their names, in whatever order it has them."""
    from model2vec.inference import StaticModelPipeline

    given = ModelOptions(mobile_model=f"static:{static_model}")
    found = line_up(tiny_run, given, None, table=tiny_run.test)
    table = found.models[Tier.MOBILE].table
    texts = list(RunTexts(tiny_run).of("test").first)
    said = StaticModelPipeline.from_pretrained(static_model).predict(texts)
    assert [tiny_run.config.task.label_names[each] for each in table.predictions[:, 0]] == [
        each.lower() for each in said
    ]
    assert found.models[Tier.MOBILE].layer_work == 0
    assert found.billing is None
    evaluation = api.evaluate(tiny_run, mobile_model=f"static:{static_model}")
    assert evaluation.recommendation is not None
    row = next(row for row in evaluation.rows if row.policy == "all-mobile+models")
    assert row.score == pytest.approx((table.predictions[:, 0] == table.labels).mean())
    assert row.cost == 0


def test_a_tier_of_a_bundle_says_what_the_run_says(tiny_run: Run, tiny_export: Bundle) -> None:
    found = line_up(
        tiny_run,
        ModelOptions(edge_model=f"bundle:{tiny_export.folder}#edge"),
        None,
        table=tiny_run.test,
    )
    model = found.models[Tier.EDGE]
    for made, own in ((model.validation, tiny_run.validation), (model.table, tiny_run.test)):
        places = [own.layers.index(layer) for layer in made.layers]
        np.testing.assert_allclose(made.logits, own.logits[:, places], atol=1e-4)
    assert model.layer_work == pytest.approx(1, abs=0.5)  # a narrow layer, and its exit


@pytest.mark.parametrize("tier", ["device", "edge"])
def test_a_server_of_the_protocol_holds_the_cloud(
    tiny_run: Run, tiny_export: Bundle, tmp_path: Path, tier: str
) -> None:
    run = Run.open(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    with tier_server(tier, tiny_export.folder) as server:
        given = ModelOptions(cloud_model=f"oip:{server.url}#{tier}", ask_rows=40)
        found = line_up(run, given, None, table=None)
    asked = found.run.validation
    texts = RunTexts(run).of("validation")
    chosen = np.flatnonzero(np.isin(texts.row_ids, asked.row_ids))
    assert len(chosen) == 40
    if tier == "edge":
        edge = tiny_run.validation
        last = edge.predictions[np.isin(edge.row_ids, asked.row_ids)]
        assert tiny_export.edge is not None
        wanted = last[:, edge.layers.index(tiny_export.edge.layers[-1])]
    else:
        with Device(tiny_export) as device:
            names = tiny_run.config.task.label_names
            answers = device.classify([texts.first[place] for place in chosen])
            wanted = np.array([names.index(each.label) for each in answers])
    np.testing.assert_array_equal(asked.predictions[:, -1], wanted)


def test_a_small_model_on_the_edge_and_a_log_in_the_cloud(tiny_run: Run, tmp_path: Path) -> None:
    """Both have prices, each its own; both are exported, and the edge is served alone."""
    run = Run.open(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    rows = write_rows(run, tmp_path / "rows.csv")
    log = tmp_path / "log.csv"
    with rows.open(newline="") as file, log.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["text", "answer", "cost"])
        writer.writerows([row["text"], row["label"], 0.5] for row in csv.DictReader(file))
    prices = tmp_path / "prices.json"
    listed = {"date": "2026-01-01", "models": {"small": {"million_in": 1000, "million_out": 0}}}
    prices.write_text(json.dumps(listed))
    with pytest.MonkeyPatch.context() as patch, chat_endpoint(rows) as endpoint:
        patch.setenv("OPENAI_API_KEY", KEY)
        small: dict[str, Any] = {
            "edge_model": f"chat:{endpoint.url}#org/Small",
            "price_list": prices,
        }
        found = line_up(
            run, ModelOptions(**small, cloud_model=f"table:{log}"), None, table=run.test
        )
        assert found.billing is not None
        money = found.billing.profile.money
        assert money.cloud_request == 0.5
        assert 0.01 < money.edge_request < 0.1
        assert found.asked[Tier.CLOUD].address is None
        costs = fitting_costs(found.billing, None, found.run.validation)
        assert costs.of([Step(Tier.EDGE, 1)]) == pytest.approx(money.edge_request)
        plan = api.plan(run, max_drop=20.0, **small, cloud_model=f"table:{log}")
        assert plan.offers[0].policy == "dimec-cascade"
        assert plan.unit == "money"
        with pytest.raises(OptionError):  # one has a price, the other has none
            api.plan(run, edge_model=f"chat:{endpoint.url}#other", cloud_model=f"table:{log}")
        both = {**small, "cloud_model": f"table:{log}"}
        report = api.export(run, out=tmp_path / "bundle", price=0.15, **both)
        assert report.currency == "USD"
        bundle = load_bundle(tmp_path / "bundle")
        manifest = bundle.mobile.manifest
        assert manifest.asked == pytest.approx(
            {Tier.EDGE: money.edge_request, Tier.CLOUD: 0.5}, rel=0.1
        )
        tables = TierTables(found.run.test, {Tier.EDGE: found.models[Tier.EDGE].table})
        played = replay(bundle.mobile.policy(), tables, costs=manifest.costs)
        texts = list(RunTexts(run).of("test").first)
        environment, model = {"OPENAI_API_KEY": KEY}, ("--model", str(small["edge_model"]))
        patient = DeviceSettings(deadline_ms=60_000)
        with (
            tier_server("edge", bundle.folder, *model, environment=environment) as server,
            Device(bundle, edge=server.url, settings=patient) as device,
        ):
            answers = device.classify(texts)
    names = manifest.label_names
    here = np.flatnonzero(played.tiers != 2)  # no server of the cloud was given
    said = np.array([names.index(each.label) for each in answers])
    np.testing.assert_array_equal(said[here], played.predictions[here])
    asked = {place for place in here if answers[place].tier is Tier.EDGE}
    assert asked
    assert all(0.01 < answers[place].cost < 0.2 for place in asked)
    assert all(each.degraded for place, each in enumerate(answers) if place not in set(here))


def test_the_list_of_prices_is_dated_and_can_be_overridden(tmp_path: Path) -> None:
    (own,) = PriceList.of(None)
    assert len(own.models) >= 10
    assert all(price.million_in > 0 for price in own.models.values())
    name, price = next(iter(own.models.items()))
    assert own.find(f"vendor/{name.upper()}") == price
    assert own.find("no such model") is None
    (tmp_path / "prices.json").write_text('{"date": "today", "models": {}}')
    with pytest.raises(OptionError):
        PriceList.of(tmp_path / "prices.json")


def test_a_killed_evaluation_goes_on_and_pays_once(tiny_run: Run, tmp_path: Path) -> None:
    """SIGKILL after some answers: only those that were open then are asked about again."""
    run = Run.open(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    rows = write_rows(run, tmp_path / "rows.csv")
    texts = {text for split in ("validation", "test") for text in RunTexts(run).of(split).first}
    with chat_endpoint(rows, wait_s=0.05) as endpoint:
        asked = ("--at-once", "2", "--cloud-model", f"chat:{endpoint.url}#m")
        command = ("evaluate", run.folder, *asked, "--json")
        said = tmp_path / "said.json"
        killed = forked(*command, said=said, OPENAI_API_KEY=KEY)
        wait_for(lambda: endpoint.n_answers >= 10, "ten answers")
        killed.kill()
        killed.wait()
        n_before = endpoint.n_answers
        assert n_before < len(texts)
        done = forked(*command, said=said, OPENAI_API_KEY=KEY)
        assert done.wait(PATIENCE_S) == 0, said.with_suffix(".err").read_text()
        assert json.loads(said.read_text())["unit"] == "money"
        assert len(texts) <= endpoint.n_answers <= len(texts) + 2
