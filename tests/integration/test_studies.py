"""Studies on small real runs: what they reuse, what they leave, and what their numbers must equal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.notes import Notes
from tests.results import assert_whole

from dimec import api
from dimec.core.errors import OptionError, RunError
from dimec.costs.model import CostModel
from dimec.evaluation.setup import EvaluationSetup
from dimec.policies import POLICIES, Searched
from dimec.reporting.results import Tunable, Use, WhatIf, read_result, read_rows, read_whatif
from dimec.runs.run import Run
from dimec.studies import sweeps
from dimec.studies.options import StudyOptions
from dimec.studies.published import notes
from dimec.studies.reproduction import reproduction
from dimec.studies.study_runs import StudyRuns
from dimec.studies.whatif import whatif

SMALL: dict[str, Any] = {"tasks": ("reviews",), "max_rows": 600, "epochs": 2, "seeds": 1}


def chosen(row: Tunable, prices: Use, *, unit: float) -> tuple[float, float]:
    """Apply the rule of `Tunable`: return score and cost on the test rows."""

    def cost(use: Use) -> float:
        return float(sum(getattr(prices, name) * getattr(use, name) for name in Use.model_fields))

    def merit(place: int) -> tuple[float, float, int]:
        choice = row.choices[place]
        reward = (choice.validation_confidence or 0.0) - unit * cost(choice.validation_use)
        return (-round(reward, 12), cost(choice.validation_use), place)

    best = row.choices[min(range(len(row.choices)), key=merit)]
    return best.score, cost(best.use)


@pytest.fixture(scope="module")
def tables(tiny_run: Run) -> WhatIf:
    return whatif(EvaluationSetup.of(tiny_run), price=0.1)


@pytest.mark.parametrize(
    ("price", "changes"),
    [
        (0.1, {}),
        (0.02, {"to_cloud": 9.0}),
        (0.6, {"mobile_layer": 0.4, "edge_layer": 2.5}),
        (0.3, {"cloud_layer": 0.1, "to_edge": 0.0}),
        (0.0, {}),
    ],
)
def test_a_table_at_other_prices_is_what_an_evaluation_says_there(
    tiny_run: Run, tables: WhatIf, price: float, changes: dict[str, Any]
) -> None:
    model = CostModel(**changes)
    expected = {row.policy: row for row in api.evaluate(tiny_run, price=price, costs=model).rows}
    prices = Use(**{name: getattr(model.prices, name) for name in Use.model_fields})
    searched = {name for name, policy in POLICIES.items() if issubclass(policy, Searched)}
    assert {row.name for row in tables.rows if row.kind == "policy"} == searched
    for row in tables.rows:
        score, cost = chosen(row, prices, unit=model.unit_price(tables.n_layers, price=price))
        assert score == pytest.approx(expected[row.name].score, abs=1e-9), row.name
        assert cost == pytest.approx(expected[row.name].cost, abs=1e-9), row.name


@pytest.fixture(scope="module")
def made(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with runs and the result of a study that had to fit one."""
    folder = tmp_path_factory.mktemp("studies")
    api.study(
        "main", out=folder / "main", runs=folder / "runs", backbone=str(tiny_backbone), **SMALL
    )
    return folder


def test_main_leaves_tables_and_what_if(made: Path) -> None:
    result = read_result(made / "main")
    assert [run.task for run in result.runs] == ["reviews"]
    systems = read_rows(made / "main", "systems")
    evaluation = api.evaluate(result.runs[0].folder, price=0.1)
    by_name = {row.policy: row for row in evaluation.rows}
    assert {row["policy"] for row in systems} == set(by_name)
    for row in systems:
        assert row["cost"] == pytest.approx(by_name[row["policy"]].cost)
        assert row["random_at_cost"] == by_name[row["policy"]].random_at_cost
    pairs = read_rows(made / "main", "pairs")
    moved = next(row for row in pairs if row["policy"] == "dimee-adaptive")
    fixed, adaptive = by_name["dimee-fixed"], by_name["dimee-adaptive"]
    assert moved["difference"] == pytest.approx((adaptive.score or 0) - (fixed.score or 0))
    assert moved["low"] <= moved["difference"] <= moved["high"]
    (tables,) = read_whatif(made / "main")
    assert isinstance(tables, WhatIf)
    assert tables.task == "reviews"
    # reviews is no task of the papers: nothing was printed of it
    assert "published" not in {table.name for table in result.tables}


def test_a_run_that_exists_is_read_whatever_its_name(made: Path, tiny_backbone: Path) -> None:
    (folder,) = (made / "runs").iterdir()
    renamed = folder.rename(made / "runs" / "of-last-week")
    heard = Notes()
    options = {**SMALL, "backbone": str(tiny_backbone), "runs": made / "runs"}
    result, _ = api.study("tiers", out=made / "tiers", progress=heard, **options)
    assert [run.folder for run in result.runs] == [str(renamed)]
    assert not [line for line in heard.said if line.startswith("fitting")]


def test_parts_are_computed_once_for_the_same_run(made: Path, tiny_backbone: Path) -> None:
    options = StudyOptions(**SMALL, backbone=str(tiny_backbone), runs=made / "runs")
    runs = StudyRuns(options, tasks=("reviews",), out=made / "parts-of")
    run = runs.run("reviews")
    calls: list[int] = []

    def make(*_: object) -> list[int]:
        calls.append(1)
        return [len(calls)]

    assert runs.part("some", run, make) == runs.part("some", run, make) == [1]
    dearer = StudyRuns(
        options.model_copy(update={"price": 0.7}), tasks=("reviews",), out=made / "parts-of"
    )
    assert dearer.part("some", run, make) == [2]
    (kept,) = (made / "parts-of" / "parts").glob("some-*.json")
    kept.write_text(kept.read_text()[:-20])
    assert runs.part("some", run, make) == [3]


@pytest.mark.parametrize("name", ["costs", "pools", "datamap", "thresholds", "frontier", "layers"])
def test_every_study_leaves_a_result(
    name: str, made: Path, tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "FACTORS", (0.25, 1.0, 4.0))
    monkeypatch.setattr(sweeps, "PRICES", (0.0, 0.1, 0.7))
    options = {**SMALL, "backbone": str(tiny_backbone), "runs": made / "runs"}
    result, folder = api.study(name, out=made / name, **options)
    assert assert_whole(folder) == result


def test_varying_one_cost_keeps_lambda(made: Path) -> None:
    rows = read_rows(made / "costs", "costs-reviews")
    exits = [row for row in rows if row["policy"] == "early-exit"]
    # At factor 1 all five are the papers' cost model.
    assert len({row["cost"] for row in exits if row["factor"] == 1}) == 1
    by_mobile = {row["factor"]: row["cost"] for row in exits if row["varied"] == "λ_m"}
    assert by_mobile[min(by_mobile)] < by_mobile[max(by_mobile)]


def test_the_map_holds_texts_only_where_the_run_kept_them(made: Path) -> None:
    points = read_rows(made / "datamap", "map-reviews")
    assert all(" " in point["text"] for point in points)
    assert {point["pool"] for point in points} <= {"easy", "medium", "hard"}


def test_the_command_of_a_result_makes_it_again(made: Path) -> None:
    command = read_result(made / "main").command
    assert command.startswith("dimec study main ")
    assert "--tasks reviews" in command and "--max-rows 600" in command


def test_the_page_of_the_reproduction_has_every_claim_and_ruling(made: Path) -> None:
    result = read_result(made / "main")
    page = reproduction([made / "main"])
    for claim in notes().claims:
        assert f"| {claim.text} | {claim.source} | " in page
    for verdict in result.verdicts:
        ruling = verdict.ruling.replace("the price", "price")
        assert f"| {verdict.claim} | {verdict.source} | `main` | {ruling} |" in page
    (run,) = result.runs
    assert f"| {run.epochs} | {run.batch_size} | {run.learning_rate:g}, " in page
    assert max(len(line) for line in page.splitlines() if not line.startswith(("#", "|"))) <= 100


def test_a_page_has_an_earlier_pages_rulings_and_pictures(made: Path, tmp_path: Path) -> None:
    earlier = tmp_path / "earlier.md"
    claim = notes().claims[0]
    earlier.write_text(f"| {claim.text} | {claim.source} | **holds in part** | `main` |\n")
    figures = tmp_path / "figures"
    page = reproduction([made / "main", made / "pools"], earlier=earlier, figures=figures)
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {claim.text} ")]
    now = next(each for each in read_result(made / "main").verdicts if each.claim == claim.text)
    ruling = now.ruling.replace("the price", "price")
    assert line.endswith(f"| `main` | holds in part | {ruling} |")
    drawn = sorted(path.name for path in figures.iterdir())
    assert drawn == [f"pools-{name}-fixed-4-layers.svg" for name in ("dimec-dc", "dimee")]
    assert all(name in page for name in drawn)
    assert all("<svg" in (figures / name).read_text() for name in drawn)


def test_an_unknown_study_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="mian"):
        api.study("mian", out=tmp_path)


def test_a_root_without_the_task_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "sst2").mkdir()
    with pytest.raises(OptionError, match=r"--data .*cola.*sst2"):
        api.study(
            "pools", tasks=("cola",), data=tmp_path, out=tmp_path / "out", runs=tmp_path / "runs"
        )


def test_a_damaged_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="dimec study NAME"):
        read_result(tmp_path)
    (tmp_path / "result.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(RunError, match=r"result\.json"):
        read_result(tmp_path)
