"""The studies of embeddings, shift, ablation and a large encoder, on tiny encoders: what they leave, when they stop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tests.conftest import untrained_bert
from tests.results import assert_whole

from dimec import api
from dimec.core.errors import OptionError
from dimec.data import load_dataset
from dimec.reporting.results import Result, read_rows
from dimec.studies import large, shift
from dimec.studies.ablation import training_table
from dimec.studies.measures import PAPER_POLICIES
from dimec.studies.options import StudyOptions
from dimec.studies.running import STUDIES, run_study
from dimec.studies.study_runs import StudyRuns

SIZE = 300


def write_csv(path: Path, rows: Sequence[tuple[str, int]]) -> None:
    path.parent.mkdir(parents=True)
    pd.DataFrame(rows, columns=["sentence", "label"]).to_csv(path, index=False)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with tasks of single texts, and one beside it with customer reviews sorted by label."""
    root = tmp_path_factory.mktemp("studies") / "glue"
    reviews = load_dataset("reviews")
    rows = list(zip(reviews.first, reviews.labels.tolist(), strict=True))
    for task in ("sst2", "cola"):
        write_csv(root / task / "train.csv", rows[:SIZE])
    others = sorted(rows[SIZE : SIZE + 120], key=lambda row: row[1])
    write_csv(root.parent / "shift" / "cr" / "all.csv", others)
    return root


@pytest.fixture(scope="session")
def options(data: Path, tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return {
        "tasks": ("sst2",),
        "data": data,
        "backbone": str(tiny_backbone),
        "epochs": 2,
        "seeds": 1,
        "runs": tmp_path_factory.mktemp("study-runs"),
    }


def run(name: str, options: dict[str, Any], out: Path) -> tuple[Result, StudyRuns]:
    given = StudyOptions(**options)
    run_study(name, given, out=out)
    return assert_whole(out), StudyRuns(given, tasks=STUDIES[name].tasks, out=out)


def test_embeddings(options: dict[str, Any], tmp_path: Path) -> None:
    result, runs = run("embeddings", options, tmp_path)
    n = len(runs.run("sst2").validation)
    points = read_rows(tmp_path, "pictures")
    assert len(points) == n
    pools = read_rows(tmp_path, "pools")
    assert len(pools) == 6
    for policy, column in (("dimec-dc-fixed", "pool_dc"), ("dimee-fixed", "pool_ee")):
        own = {row["pool"]: row["n"] for row in pools if row["policy"] == policy}
        assert sum(own.values()) == n
        assert own == {pool: sum(each[column] == pool for each in points) for pool in own}
    (dc, _) = read_rows(tmp_path, "router")
    assert dc["auc"] is None or dc["auc_low"] <= dc["auc"] <= dc["auc_high"]
    assert [verdict.claim.split()[2] for verdict in result.verdicts] == ["easy", "medium"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}
    again, _ = run("embeddings", options, tmp_path)
    assert again == result
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").iterdir()}


def test_shift(options: dict[str, Any], tmp_path: Path) -> None:
    result, runs = run("shift", {**options, "tasks": ("sst2", "mnli")}, tmp_path)
    assert [used.task for used in result.runs] == ["sst2"]
    scores = read_rows(tmp_path, "scores")
    places = dict.fromkeys(row["where"] for row in scores)
    assert list(places) == ["sst2, its own test split", "sst2 on customer reviews (CR)"]
    assert {row["n"] for row in scores} == {len(runs.run("sst2").test), 120}
    assert {row["policy"] for row in scores} >= {*shift.SYSTEMS, "all-cloud", "bert-on-mobile"}
    pairs = read_rows(tmp_path, "adaptive")
    assert len(pairs) == 2 * 2 * 2
    at = {(row["where"], row["policy"]): row for row in scores}
    for row in pairs:
        fixed, moved = (
            at[row["where"], f"{row['method']}-{kind}"] for kind in ("fixed", "adaptive")
        )
        assert fixed["score"] == pytest.approx(row["fixed"])
        assert fixed["mobile"] == pytest.approx(row["fixed_mobile"])
        assert row["difference_low"] <= row["difference"] <= row["difference_high"]
        if row["order"] == "as they come":
            assert moved["score"] == pytest.approx(row["adaptive"])
            assert moved["random_at_cost"] == pytest.approx(row["random_at_cost"])
    assert any("neighbouring rows have the same label" in note for note in result.notes)
    assert any("mnli on sick: left out" in note for note in result.notes)
    assert len(result.verdicts) == 2


def test_shift_stops_where_nothing_can_be_tested(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cola"):
        run("shift", {**options, "tasks": ("cola",)}, tmp_path)
    with pytest.raises(OptionError, match="--data"):
        run("shift", {**options, "data": None}, tmp_path)
    with pytest.raises(OptionError, match="--data"):
        run("shift", {**options, "tasks": ("mnli",)}, tmp_path)


def test_ablation(options: dict[str, Any], tmp_path: Path) -> None:
    result, _ = run("ablation", options, tmp_path)
    rows = read_rows(tmp_path, "ablation")
    assert len({row["group"] for row in rows}) == 11
    dc = [row for row in rows if row["policy"] == "dimec-dc-fixed"]
    usual = [row for row in dc if "(usual)" in row["variant"]]
    assert len(usual) == 10
    arms = [row for row in rows if row["policy"] == "adaee"]
    assert [row["variant"] for row in arms] == ["step of 0.1 (usual)", "step of 0.2"]
    lengths = [row for row in rows if row["variant"] == "lengths of the tokens'"]
    assert {row["policy"] for row in lengths} == {"dimec-dc-fixed", "dimee-fixed"}
    # every usual row is the same policy on the same rows
    assert len({(row["score"], row["cost"], row["point"], row["auc"]) for row in usual}) == 1
    moved = next(row for row in dc if row["variant"] == "centred")
    assert (moved["score"], moved["cost"]) == (usual[0]["score"], usual[0]["cost"])
    assert {row["variant"] for row in rows if row["group"] == "where exits are"} == {
        "all (usual)",
        "tiers",
    }
    assert len(result.runs) == 7  # the usual run, and one for each refit
    assert all(used.seed == 0 for used in result.runs)
    for row in rows:
        assert row["against_full_low"] <= row["against_full_high"]


def test_paper_ones_methods_stand_on_its_own_loss_too(
    options: dict[str, Any], tmp_path: Path
) -> None:
    own = StudyRuns(StudyOptions(**options), tasks=("sst2",), out=tmp_path)
    fits = {exits: own.run("sst2", exits=exits) for exits in ("tiers", "all")}
    result, _ = run("main", {**options, "fitted": True}, tmp_path)
    rows = read_rows(tmp_path, "own-loss")
    assert [(row["exits"], row["policy"]) for row in rows] == [
        (exits, f"dimec-dc-{kind}") for exits in fits for kind in ("fixed", "adaptive")
    ]
    for row in rows:
        said = {each.policy: each for each in api.evaluate(fits[row["exits"]], price=0.1).rows}
        policy, full = said[row["policy"]], said["all-cloud"]
        assert (row["score"], row["full"]) == (policy.score, full.score)
        assert row["against_full"] == pytest.approx(row["score"] - row["full"])
        assert row["against_full_low"] <= row["against_full"] <= row["against_full_high"]
    # The other tables are of the fit with an exit after every layer.
    assert "own-loss" in {table.name for table in result.tables}
    assert {row["n"] for row in read_rows(tmp_path, "systems")} == {len(fits["all"].test)}


def test_training_rows_are_those_of_the_split(options: dict[str, Any], tmp_path: Path) -> None:
    runs = StudyRuns(StudyOptions(**options), tasks=("sst2",), out=tmp_path)
    fitted = runs.run("sst2")
    table = training_table(fitted)
    held = {*fitted.validation.row_ids.tolist(), *fitted.test.row_ids.tolist()}
    assert set(table.row_ids.tolist()) == set(range(SIZE)) - held
    dynamics = table.dynamics
    assert dynamics is not None and fitted.validation.dynamics is not None
    epochs = fitted.validation.dynamics.correct.shape[1]
    assert dynamics.correct.shape == (len(table), epochs, len(table.layers))
    # an exit is right in training where it gives the true label more than half of two classes
    assert ((dynamics.true_probability > 0.5) == dynamics.correct).mean() > 0.99


@pytest.fixture(scope="session")
def deep_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with an untrained BERT of 24 very narrow layers."""
    return untrained_bert(tmp_path_factory.mktemp("deep") / "untrained-24", layers=24, width=16)


def test_large(
    options: dict[str, Any],
    deep_backbone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changes = {"tasks": ("cola",), "backbone": str(deep_backbone), "epochs": 1, "max_rows": 150}
    result, _ = run("large", options | changes, tmp_path)
    assert [used.n_layers for used in result.runs] == [24]
    rows = {row["policy"]: row for row in read_rows(tmp_path, "large")}
    for policy in ("dimec-dc-fixed", "dimee-adaptive"):
        assert rows[policy]["depths"] == "6/12/24"
    assert rows["dimec-dc-adaptive"]["printed"] == 0.589
    assert rows["dimec-dc-adaptive"]["printed_change"] == -0.71
    assert rows["dimee-fixed"]["printed_drop"] == pytest.approx(-0.006)
    assert rows["bert-on-mobile"]["printed"] == 0.595
    assert rows["all-cloud"]["printed"] is None
    (verdict,) = result.verdicts
    assert verdict.ruling == "could not be tested"
    assert "untrained-24 is not BERT-large" in verdict.evidence[-1]
    # what it would say of the real one: the changes measured, against those printed for BERT-base
    monkeypatch.setattr(large, "is_real", lambda backbone: True)
    result, _ = run("large", options | changes, tmp_path)
    (verdict,) = result.verdicts
    saving = sum(
        rows[policy]["cost_change"] < printed
        for policy, printed in zip(PAPER_POLICIES, (-0.45, -0.50, -0.42, -0.43), strict=True)
    )
    assert verdict.evidence[-1].startswith(f"{saving} of 4 rows save more here")
    assert len(verdict.cases) == 4


def test_large_needs_24_layers(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="24 layers"):
        run("large", options, tmp_path)
    assert large.is_real("bert-large-uncased") and large.is_real("/models/bert-large-cased")
    assert not large.is_real("minilm")
