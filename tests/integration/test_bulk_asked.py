"""A corpus whose cloud is a language model: each answer is paid for once, whatever is killed, and up to a sum."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.chat_endpoint import KEY, Endpoint, asking
from tests.integration.test_bulk import COMMAND, answers
from tests.misbehaving import dead_url

import dimec
from dimec import api
from dimec.bundle import Bundle, load_bundle
from dimec.core.errors import OptionError
from dimec.core.tiers import Tier
from dimec.corpus import asking as corpus_asking
from dimec.corpus import blocks
from dimec.corpus.asking import Ledger, Turn, asked_models
from dimec.corpus.options import BulkOptions
from dimec.endpoints.said import Said
from dimec.runs.run import Run
from dimec.training.texts import RunTexts

AT_ONCE = 4
N_FILES = 6


@dataclass
class Asked:
    """A bundle whose cloud asks a model, a corpus of many files, and what the bundle makes of it."""

    bundle: Path
    corpus: Path
    endpoint: Endpoint
    labels: list[str]
    tiers: list[str]
    n_asked: int

    def options(self, **changed: Any) -> dict[str, Any]:
        model = f"cloud=chat:{self.endpoint.url}#m"
        return {"data": self.corpus, "model": [model], "at_once": AT_ONCE, **changed}


@pytest.fixture(scope="module")
def asked(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    folder = tmp_path_factory.mktemp("asked")
    texts = list(RunTexts(tiny_run).of("test").first)
    corpus = folder / "corpus"
    corpus.mkdir()
    doubled = [*texts, *texts[:30]]
    for file, part in enumerate(np.array_split(np.arange(len(doubled)), N_FILES)):
        found = {"text": [doubled[row] for row in part]}
        pq.write_table(pa.table(found), corpus / f"{file}.parquet")
    with asking(tiny_run, folder, wait_s=0.05) as given:
        api.export(given.run, out=folder / "bundle", price=0.15, **given.about)
        bundle = load_bundle(folder / "bundle")
        played, names = given.played(bundle), bundle.mobile.manifest.label_names
        labels = [names[each] for each in played.predictions]
        tiers = [str(list(Tier)[each]) for each in played.tiers]
        labels, tiers = ([*each, *each[:30]] for each in (labels, tiers))
        of_cloud = {text for text, tier in zip(doubled, tiers, strict=True) if tier == "cloud"}
        assert 10 < len(of_cloud) < len(texts)
        yield Asked(bundle.folder, corpus, given.endpoint, labels, tiers, len(of_cloud))


def check(asked: Asked, out: Path) -> None:
    found = answers(out)
    assert [row["label"] for row in found] == asked.labels
    assert [row["tier"] for row in found] == asked.tiers
    assert {row["degraded"] for row in found} == {None}
    assert all((row["cost"] > 0.02) == (row["tier"] == "cloud") for row in found)
    files = [path for path in out.rglob("*") if path.is_file()]
    assert not any(KEY.encode() in path.read_bytes() for path in files)


def test_each_text_is_asked_about_once_and_the_summary_says_what_was_billed(
    asked: Asked, tmp_path: Path
) -> None:
    before = asked.endpoint.n_answers
    done = dimec.bulk(asked.bundle, out=tmp_path / "out", **asked.options())
    assert asked.endpoint.n_answers - before == asked.n_asked
    check(asked, tmp_path / "out")
    assert done.degraded == done.errors == 0
    assert done.asked[Tier.CLOUD].answers == asked.n_asked
    costs = {row["cost"] for row in answers(tmp_path / "out")}
    assert done.asked[Tier.CLOUD].cost > max(costs) * asked.n_asked / 2
    assert done.currency == "USD" and f"{done.asked[Tier.CLOUD].cost:.4g} USD" in done.sentence
    again = dimec.bulk(asked.bundle, out=tmp_path / "out", **asked.options())
    assert again == done and asked.endpoint.n_answers - before == asked.n_asked


def test_money_stops_the_job_between_two_answers(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No answer that was paid for is lost, none is paid for twice, and the bill is within the sum."""
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 16)
    before, out = asked.endpoint.n_answers, tmp_path / "out"
    with pytest.raises(OptionError, match="--max-spend"):
        dimec.bulk(asked.bundle, out=out, **asked.options(max_spend=0.5))
    spent = asked.endpoint.n_answers - before
    assert 0 < spent < asked.n_asked
    done = dimec.bulk(asked.bundle, out=out, **asked.options(max_spend=1_000))
    assert asked.endpoint.n_answers - before == asked.n_asked
    assert spent * done.asked[Tier.CLOUD].cost / asked.n_asked < 0.6
    check(asked, out)


def killed(asked: Asked, out: Path, *options: str) -> None:
    """Run the command, and kill it with -9 once some answers were paid for."""
    before = asked.endpoint.n_answers
    model = asked.options()["model"][0]
    process = subprocess.Popen(
        [
            *(*COMMAND, "bulk", str(asked.bundle), "--data", str(asked.corpus), "--out", str(out)),
            *("--model", model, "--at-once", str(AT_ONCE), *options),
        ],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "DIMEC_STRICT": ""},
    )
    while asked.endpoint.n_answers - before < 12 and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()


def test_a_killed_job_pays_again_at_most_for_what_was_open(asked: Asked, tmp_path: Path) -> None:
    before, out = asked.endpoint.n_answers, tmp_path / "out"
    killed(asked, out)
    assert 0 < asked.endpoint.n_answers - before < asked.n_asked
    done = dimec.bulk(asked.bundle, out=out, **asked.options())
    assert done.asked[Tier.CLOUD].answers == asked.n_asked
    assert asked.endpoint.n_answers - before <= asked.n_asked + AT_ONCE
    check(asked, out)


def test_at_a_url_what_was_paid_for_is_kept_there(asked: Asked, tmp_path: Path) -> None:
    import fsspec

    before = asked.endpoint.n_answers
    with pytest.raises(OptionError, match="--max-spend"):
        dimec.bulk(asked.bundle, out="memory://asked", **asked.options(max_spend=0.5))
    dimec.bulk(asked.bundle, out="memory://asked", **asked.options())
    assert asked.endpoint.n_answers - before == asked.n_asked
    fsspec.filesystem("memory").get("/asked", str(tmp_path / "out"), recursive=True)
    check(asked, tmp_path / "out")


def test_a_model_that_is_down_costs_accuracy_and_no_row(asked: Asked, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = dimec.bulk(asked.bundle, out=out, **asked.options(model=[f"cloud=chat:{dead_url()}#m"]))
    found = answers(out)
    assert [row["tier"] == "cloud" for row in found] == [False] * len(asked.tiers)
    assert [row["degraded"] is not None for row in found] == [
        tier == "cloud" for tier in asked.tiers
    ]
    assert all(row["label"] and row["cost"] == 0 for row in found)
    assert done.degraded == asked.tiers.count("cloud")
    assert done.asked[Tier.CLOUD].cost == done.asked[Tier.CLOUD].answers == 0


def test_a_key_that_is_refused_stops_the_job_and_is_told_to_nobody(
    asked: Asked, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("sk-another-one")
    with pytest.raises(OptionError) as caught:
        dimec.bulk(asked.bundle, out=tmp_path / "out", **asked.options(model_key_file=[str(key)]))
    assert "sk-another-one" not in str(caught.value) and "401" in str(caught.value)
    key.write_text(f"{KEY}\n")
    about = asked.options(model_key_file=[f"cloud={key}"])
    dimec.bulk(asked.bundle, out=tmp_path / "out", **about)
    check(asked, tmp_path / "out")


@pytest.mark.parametrize(
    "wrong",
    [
        {"model": ["edge=chat:http://localhost:1#m"]},
        {"model": ["cloud=run:somewhere"]},
        {"model": ["chat:http://localhost:1#m", "cloud=chat:http://localhost:1#m"]},
        {"model": [], "model_key_file": ["cloud=/nowhere"]},
        {"model_price": ["cloud=much"]},
        {"max_drop": 1.0},
    ],
)
def test_what_cannot_be_asked_is_refused(
    asked: Asked, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    with pytest.raises(OptionError):
        dimec.bulk(asked.bundle, out=tmp_path / "out", **asked.options(**wrong))


def test_a_bundle_that_asks_nobody_takes_none_of_it(
    asked: Asked, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    wrongs: list[dict[str, Any]] = [
        {"max_spend": 1.0},
        {"model": ["cloud=chat:http://localhost:1#m"]},
    ]
    for wrong in wrongs:
        with pytest.raises(OptionError):
            dimec.bulk(tiny_bundle.folder, out=tmp_path / "out", data=asked.corpus, **wrong)


def test_of_workers_that_meet_a_text_one_asks_and_the_others_wait(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = asked_models(load_bundle(asked.bundle), BulkOptions(**asked.options()))
    ledger = Ledger(str(tmp_path), models, n_classes=2, max_spend=None)
    one, other = ((Tier.CLOUD, "key", (text,)) for text in ("a text", "another"))

    async def work() -> None:
        assert await ledger.begin(*one) is await ledger.begin(*other) is Turn.ASK
        assert await ledger.begin(*one) is Turn.WAIT
        assert ledger.n_open() == 2
        said = Said((0.25, 0.75), 1.0, tokens_in=2, tokens_out=3)
        await ledger.end(*one, said)
        await ledger.end(*other, None)  # no answer: whoever waits asks
        assert await ledger.begin(*one) == said
        assert await ledger.begin(*other) is Turn.ASK
        monkeypatch.setattr(corpus_asking, "_LONGEST_OPEN_S", 0.0)  # that worker has died
        assert ledger.n_open() == 0
        assert await ledger.begin(*other) is Turn.ASK

    asyncio.run(work())
    assert ledger.bills()[Tier.CLOUD].answers == 1
    ledger.close()


@pytest.mark.filterwarnings("default")  # Ray warns of its own code
def test_workers_on_ray_share_what_is_paid_for(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One job is killed, one stopped by its money, and the third goes on."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # 15 by default, which starves on a busy machine
    before, out = asked.endpoint.n_answers, tmp_path / "out"
    killed(asked, out, "--ray", "local", "--workers", "2")
    lost = 2 * AT_ONCE
    with pytest.raises(OptionError, match="--max-spend"):
        dimec.bulk(asked.bundle, out=out, **asked.options(ray="local", workers=2, max_spend=0.5))
    assert 0 < asked.endpoint.n_answers - before < asked.n_asked
    done = dimec.bulk(asked.bundle, out=out, **asked.options(ray="local", workers=2))
    assert done.asked[Tier.CLOUD].answers == asked.n_asked
    assert asked.endpoint.n_answers - before <= asked.n_asked + lost
    check(asked, out)
