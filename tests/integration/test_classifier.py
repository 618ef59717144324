"""`Classifier`: like a pipeline of transformers, like a classifier of scikit-learn, on the hub and back."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from sklearn.base import is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import SkipTestWarning
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import get_scorer
from sklearn.utils.estimator_checks import check_estimator
from sklearn.utils.validation import check_is_fitted
from tests.bundles import check_probabilities
from tests.hub import TOKEN, hub_server
from tests.servers import tier_server

import dimec
from dimec.bundle import Bundle
from dimec.core.errors import DataError, OptionError
from dimec.core.tiers import Tier
from dimec.data import reviews
from dimec.runs.run import Run

TEXTS = list(reviews(40, seed=5).first)[:30]


@pytest.fixture(scope="module")
def clf(tiny_bundle: Bundle) -> Iterator[dimec.Classifier]:
    with dimec.Classifier.from_pretrained(tiny_bundle.folder, threads=1) as found:
        yield found


def test_it_is_called_as_a_pipeline_of_transformers_is(clf: dimec.Classifier) -> None:
    from transformers import (
        AutoTokenizer,
        BertConfig,
        BertForSequenceClassification,
        pipeline,
    )

    from dimec.training.model import find_backbone

    tokenizer = AutoTokenizer.from_pretrained(find_backbone("minilm"))
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    theirs = pipeline(
        "text-classification", BertForSequenceClassification(config), tokenizer=tokenizer
    )

    def shape(found: Any) -> Any:
        if isinstance(found, dict):
            assert {type(found["label"]), type(found["score"])} == {str, float}
            return "dict"
        return [shape(each) for each in found]

    for given in (TEXTS[0], TEXTS[:3], {"text": TEXTS[0]}):
        for options in ({}, {"top_k": 1}, {"top_k": 2}, {"top_k": None}):
            assert shape(clf(given, **options)) == shape(theirs(given, **options)), options
    ours = clf(iter(TEXTS))
    assert isinstance(ours, Iterator)
    said = [each["score"] for each in clf(TEXTS)]
    assert [each["score"] for each in ours] == pytest.approx(said)
    for options in ({}, {"top_k": 2}):
        for given in (TEXTS[0], TEXTS):
            assert asyncio.run(clf.acall(given, **options)) == clf(given, **options)


def test_results_say_what_answers_say(clf: dimec.Classifier) -> None:
    answers = clf.device.classify(TEXTS)
    check_probabilities(answers, clf.device.label_names)
    for answer, [best, other] in zip(answers, clf(TEXTS, top_k=None), strict=True):
        assert (best["label"], best["score"]) == (answer.label, answer.confidence)
        assert other["score"] == min(answer.probabilities)
        assert best["label"] != other["label"]
        for each in (best, other):
            for name in ("tier", "layer", "cost", "degraded"):
                assert each[name] == getattr(answer, name)
    with pytest.raises(OptionError, match="top_k"):
        clf(TEXTS, top_k=0)


def test_scikit_learn_takes_it_for_a_classifier(clf: dimec.Classifier) -> None:
    assert list(clf.classes_) == sorted(clf.device.label_names)
    probabilities = clf.predict_proba(TEXTS)
    assert probabilities.shape == (30, 2)
    labels = clf.classes_[probabilities.argmax(axis=1)]
    assert list(clf.predict(TEXTS)) == list(labels)
    assert clf.score(TEXTS, labels) == 1.0
    assert is_classifier(clf)
    check_is_fitted(clf)
    for name in ("accuracy", "f1_macro", "neg_log_loss", "roc_auc"):
        assert np.isfinite(get_scorer(name)(clf, TEXTS, labels))
    with pytest.warns(SkipTestWarning):  # the others fit numbers
        (check,) = check_estimator(FrozenEstimator(clf), on_fail=None)
    assert check["status"] == "passed"
    calibrated = CalibratedClassifierCV(FrozenEstimator(clf), method="sigmoid", cv=2)
    assert (calibrated.fit(np.array(TEXTS), labels).predict(TEXTS) == labels).mean() > 0.9


def test_what_holds_texts_is_read(clf: dimec.Classifier) -> None:
    expected = clf.predict_proba(TEXTS)
    frame = pd.DataFrame({"id": range(30), "review": TEXTS}, index=range(5, 35))
    held: list[Any] = [
        tuple(TEXTS),
        np.array(TEXTS),
        np.array(TEXTS, dtype=object)[:, None],
        frame,
        frame["review"],
        frame[["review"]],
        pl.from_pandas(frame),
        pl.Series(TEXTS),
        pa.table({"review": TEXTS}),
        pa.array(TEXTS),
        datasets.Dataset.from_dict({"text": TEXTS[::-1]}).select(range(29, -1, -1)),
        [{"text": text} for text in TEXTS],
        ({"text": text} for text in TEXTS),
    ]
    for each in held:
        np.testing.assert_allclose(clf.predict_proba(each), expected, atol=1e-5)


@pytest.mark.parametrize(
    "given",
    [
        *("a text", 3, [1.5], {"a": 1}, pd.Series(["x", None])),
        pd.DataFrame({"a": ["x"], "b": ["y"]}),
        datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["x"]})}),
    ],
)
def test_what_holds_none_is_refused_in_one_sentence(clf: dimec.Classifier, given: Any) -> None:
    with pytest.raises(DataError) as caught:
        clf.predict(given)
    assert "\n" not in str(caught.value)


def test_a_fit_is_refused(clf: dimec.Classifier) -> None:
    with pytest.raises(OptionError, match=r"dimec\.fit"):
        clf.fit(TEXTS, TEXTS)


def test_tiers_may_be_servers(clf: dimec.Classifier, tiny_bundle: Bundle) -> None:
    with tier_server("cloud", tiny_bundle.folder) as server:
        opened = dimec.Classifier.from_pretrained(
            tiny_bundle.folder, cloud=server.url, threads=1, deadline_ms=60_000
        )
        with opened as asking:
            found = asking.predict_proba(TEXTS)
            assert asking.device.traffic[Tier.CLOUD].requests > 0
            assert server.url not in repr(asking) and "cloud" in repr(asking)
    np.testing.assert_allclose(found, clf.predict_proba(TEXTS), atol=1e-5)


def test_saved_it_is_the_same_and_says_what_it_is(
    clf: dimec.Classifier, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    folder = tmp_path / "saved"
    clf.save_pretrained(folder, license="apache-2.0", language=["en"], examples=["a # --- text"])
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.widget == [{"text": "a # --- text"}]
    assert tiny_bundle.mobile.manifest.provenance.data_fingerprint in card.text
    (folder / "README.md").write_text("mine")
    (folder / "notes.txt").write_text("mine too")
    clf.save_pretrained(folder)
    assert {(folder / name).read_text() for name in ("README.md", "notes.txt")} == {
        "mine",
        "mine too",
    }
    with dimec.Classifier.from_pretrained(folder, threads=1) as again:
        assert again(TEXTS) == clf(TEXTS)
    for other in (tiny_bundle.folder, tiny_bundle.folder.parent, Path(__file__).parent):
        with pytest.raises(OptionError):
            clf.save_pretrained(other)


def test_a_run_is_exported_first_and_its_card_has_the_recommendation(
    tiny_run: Run, tmp_path: Path
) -> None:
    with dimec.Classifier.from_pretrained(tiny_run, threads=1) as clf:
        assert clf.predict(TEXTS[:2]).shape == (2,)
        clf.save_pretrained(tmp_path / "saved")
    found = dimec.evaluate(tiny_run).recommendation
    assert found is not None
    card = huggingface_hub.ModelCard.load(tmp_path / "saved" / "README.md")
    assert f"| this bundle | {100 * found.score:.2f} |" in card.text
    assert card.data.eval_results[0].metric_value == round(found.score, 4)
    assert tiny_run.config.data_fingerprint in card.text
    kept = (tmp_path / "saved" / "export.json").read_text()
    assert "/" not in json.loads(kept)["bundle"]


WORK = """
import json, sys
import dimec
from dimec.core.errors import DimecError

open_ = lambda name, **options: dimec.Classifier.from_pretrained(name, threads=1, **options)
said = []
for each in json.load(sys.stdin):
    try:
        verb, *rest = each
        if verb == "push":
            said.append(open_(rest[0]).push_to_hub(rest[1], **rest[2]))
        else:
            said.append(open_(rest[0], **rest[1])(["a gripping film", "dull"]))
    except DimecError as exc:
        said.append([type(exc).__name__, exc.exit_code, str(exc)])
print(json.dumps(said))
"""


def in_another_process(steps: list[Any], cache: Path, **environment: str) -> list[Any]:
    """Push and open in a process that has the hub's address from its environment, as users give it."""
    done = subprocess.run(
        [sys.executable, "-c", WORK],
        input=json.dumps(steps),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", **environment},
    )
    assert done.returncode == 0, done.stderr
    said: list[Any] = json.loads(done.stdout)
    return said


def test_on_the_hub_and_back(
    clf: dimec.Classifier, tiny_bundle: Bundle, tiny_export: Bundle, tmp_path: Path
) -> None:
    mine, theirs = str(tiny_bundle.folder), str(tiny_export.folder)
    expected = clf(["a gripping film", "dull"])
    name = "me/tickets"
    with hub_server() as hub:
        of_hub = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}
        cache = tmp_path / "cache"
        pushed, opened = in_another_process(
            [["push", mine, name, {"license": "mit"}], ["open", name, {}]], cache, **of_hub
        )
        commit, files = hub.repositories[name][-1]
        assert pushed.endswith(commit)
        assert opened == expected
        card = files["README.md"]
        assert b'license: "mit"' in card
        assert not any(each.startswith(("profile", ".")) for each in files)
        suffixes = {Path(each).suffix for each, content in files.items() if len(content) > 2**20}
        assert suffixes <= {".onnx", ".safetensors", ".json"}
        files["edge/segment-9.onnx"] = b"of an earlier bundle"
        files["README.md"] = b"mine"
        hub.sizes["mobile/embedding.onnx"] = 2**31 + 1
        steps = [
            ["push", theirs, name, {}],
            ["open", name, {"revision": commit}],
            ["open", name, {"revision": "v9"}],
            ["open", "me/nothing", {}],
            ["open", "no name at all", {}],
            ["push", mine, name, {"token": "of another"}],
            ["push", mine, "me/a b", {}],
        ]
        told = in_another_process(steps, tmp_path / "other", **of_hub)
        newest = hub.repositories[name][-1][1]
    assert newest["README.md"] == b"mine"
    assert "edge/segment-9.onnx" not in newest
    assert newest["mobile/policy.json"] != files["mobile/policy.json"]
    assert told[0].startswith(hub.url)
    assert [each[0] for each in told[1:]] == ["OptionError"] + 5 * ["UnreachableError"]
    # The hub is gone: the cache serves what it holds, and anything else is told in a sentence.
    steps = [["open", name, {}], ["open", "me/others", {}], ["push", mine, name, {}]]
    held, missing, refused = in_another_process(steps, cache, **of_hub)
    assert held == expected
    offline = in_another_process(steps[:2], cache, **of_hub, HF_HUB_OFFLINE="1")
    assert offline[0] == expected
    for each in (*told[1:], missing, refused, offline[1]):
        assert each[1] == 2
        assert "\n" not in each[2]


def test_results_are_tables_in_notebooks_and_frames(tiny_run: Run) -> None:
    evaluation = dimec.evaluate(tiny_run, policies=["dimee-fixed"])
    frame = evaluation.to_pandas()
    assert list(frame["policy"]) == [row.policy for row in evaluation.rows]
    assert list(frame["cost"]) == [row.cost for row in evaluation.rows]
    low, high = evaluation.rows[0].accuracy_ci95
    assert (frame["accuracy_low"][0], frame["accuracy_high"][0]) == (low, high)
    assert {*evaluation.shown_columns} <= {*frame.columns}
    (table,) = pd.read_html(io.StringIO(evaluation._repr_html_()), flavor="lxml")
    assert list(table["policy"]) == list(frame["policy"])
    plan = dimec.plan(tiny_run)
    assert list(plan.to_pandas()["bound_points"]) == [each.bound_points for each in plan.offers]
    assert {*plan.shown_columns} <= {*plan.to_pandas().columns}
    for each in (evaluation, plan, tiny_run):
        assert "\n" not in repr(each) and len(repr(each)) < 300
        assert tiny_run.config.task.name in str(each)
