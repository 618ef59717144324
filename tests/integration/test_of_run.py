"""The page of a run: its figures are those of an evaluation, its texts those of the run."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support
from tests.results import assert_whole

from dimec import api
from dimec.core.errors import OptionError
from dimec.evaluation.recommendation import sentence
from dimec.evaluation.results import Evaluation
from dimec.reporting.results import read_result, read_rows, read_whatif
from dimec.runs.run import Run
from dimec.studies.of_run import BINS, LONGEST, PARTS, SHOWN
from dimec.studies.pools import kept_texts

MAX_DROP = 5


@pytest.fixture(scope="module")
def run(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Give a copy of the tiny run with its page."""
    folder = tmp_path_factory.mktemp("of-run") / "tiny"
    shutil.copytree(tiny_run.folder, folder)
    api.report(folder, max_drop=MAX_DROP)
    return Run.open(folder)


@pytest.fixture(scope="module")
def report(run: Run) -> Path:
    return run.folder / "report"


@pytest.fixture(scope="module")
def evaluation(run: Run) -> Evaluation:
    return api.evaluate(run, max_drop=MAX_DROP)


def test_it_recommends_what_an_evaluation_recommends(report: Path, evaluation: Evaluation) -> None:
    result = assert_whole(report)
    assert evaluation.recommendation is not None
    assert result.recommendation == sentence(evaluation.recommendation)
    assert result.recommendation in (report / "report.html").read_text(encoding="utf-8")
    assert result.verdicts == ()
    assert f"--max-drop {MAX_DROP}" in result.command


def test_its_rows_are_those_of_an_evaluation(report: Path, evaluation: Evaluation) -> None:
    rows = {row["name"]: row for row in read_rows(report, "ways")}
    assert len(rows) == 6
    by_name = {row.policy: row for row in evaluation.rows}
    named = {"recommended": "recommended", "edge alone": "all-edge", "words alone": "exit-zero"}
    for name, policy in named.items():
        assert rows[name]["score"] == by_name[policy].score
        assert rows[name]["cost"] == by_name[policy].cost
    own = by_name["recommended"]
    assert rows["random at its cost"]["score"] == own.random_at_cost
    cloud = by_name["all-cloud"]
    assert own.score is not None and cloud.score is not None
    assert rows["recommended"]["drop"] == pytest.approx(cloud.score - own.score)
    curve = read_rows(report, "curve")
    (marked,) = [row for row in curve if row["recommended"]]
    assert (marked["score"], marked["cost"]) == (own.score, own.cost)
    assert sum(row["name"] == "cascades" for row in curve) > 3


def test_classes_are_measured_as_scikit_learn_measures_them(report: Path, run: Run) -> None:
    table = run.test
    names = ("precision", "recall", "f1")
    theirs = precision_recall_fscore_support(
        table.labels, table.predictions[:, -1], zero_division=0.0
    )
    for label, row in enumerate(read_rows(report, "classes")):
        assert row["label"] == table.label_names[label]
        assert row["n"] == theirs[3][label]
        for place, name in enumerate(names):
            assert row[f"{name}_full"] == pytest.approx(theirs[place][label])
    confusions = read_rows(report, "confusion")
    assert sum(row["count"] for row in confusions) == len(table)


def test_parts_answer_what_the_recommendation_says(report: Path, evaluation: Evaluation) -> None:
    shares = {row["part"]: row["share"] for row in read_rows(report, "shares")}
    assert set(shares) <= set(PARTS)
    assert sum(shares.values()) == pytest.approx(1)
    told = evaluation.recommendation
    assert told is not None
    assert shares.get(PARTS[0], 0) == pytest.approx(told.exit_zero_share)
    assert shares.get(PARTS[3], 0) == pytest.approx(told.shares.cloud)


def test_bins_of_the_calibration_hold_as_many_texts_each(report: Path, run: Run) -> None:
    rows = [row for row in read_rows(report, "calibration") if row["n"] is not None]
    for name in {row["name"] for row in rows}:
        own = [row for row in rows if row["name"] == name]
        counts = [row["n"] for row in own]
        assert len(own) == BINS
        assert sum(counts) == len(run.test)
        assert max(counts) - min(counts) <= 1
        assert [row["confidence"] for row in own] == sorted(row["confidence"] for row in own)
        right = np.average([row["right"] for row in own], weights=counts)
        assert all(row["low"] <= row["right"] + 1e-9 <= row["high"] + 2e-9 for row in own)
        if name != "recommended":
            assert right == pytest.approx(run.test.right[:, -1].mean())


def test_texts_are_the_runs_own_and_of_every_part(report: Path, run: Run) -> None:
    rows = read_rows(report, "answers")
    texts = kept_texts(run, "test", longest=LONGEST)
    of_text = {text: place for place, text in enumerate(texts)}
    for row in rows:
        assert len(row["text"]) <= LONGEST
        label = run.test.labels[of_text[row["text"]]]
        assert row["label"] == run.test.label_names[label]
        assert row["right"] == ("right" if row["label"] == row["answer"] else "wrong")
    counts = Counter(row["part"] for row in rows)
    assert max(counts.values()) <= SHOWN
    assert len(counts) == len(read_rows(report, "shares"))


def test_without_texts_there_are_none_to_show(run: Run, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(run.folder, bare, ignore=shutil.ignore_patterns("texts.parquet", "report"))
    api.report(bare, max_drop=MAX_DROP)
    result = read_result(bare / "report")
    assert "answers" not in {table.name for table in result.tables}


def test_the_panel_holds_every_way_that_was_compared(report: Path, evaluation: Evaluation) -> None:
    (panel,) = read_whatif(report)
    own, *controls = panel.rows
    assert (own.name, panel.max_drop) == ("recommended", MAX_DROP)
    assert {each.name for each in controls} == {"all-mobile", "all-edge", "all-cloud", "exit-zero"}
    allowed = [each for each in own.choices if (each.bound_points or 0) <= MAX_DROP]
    told = evaluation.recommendation
    assert told is not None
    assert (allowed[0].name, allowed[0].at.get("price")) == (told.policy, told.price)
    assert allowed[0].score == pytest.approx(told.score)
    assert own.choices[-1].name == "all-cloud"


def test_a_tolerance_is_for_runs_alone(report: Path) -> None:
    with pytest.raises(OptionError, match="--max-drop"):
        api.report(report, max_drop=1)
