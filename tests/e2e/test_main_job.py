"""The main job with the real backbone: what `make demo` and the notebooks of examples/ do, and a fit on real texts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pyarrow.parquet as pq
import pytest
from nbclient import NotebookClient
from playwright.sync_api import Browser
from tests.browser import Study, open_page, shown_rows, without_browser

from dimec import api
from dimec.evaluation.recommendation import sentence
from dimec.reporting.results import read_whatif
from dimec.runs.run import Run

EXAMPLES = Path(__file__).parents[2] / "examples"


def dimec(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "dimec", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
        env={key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"},
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder that the demonstration and then the first notebook run in."""
    return tmp_path_factory.mktemp("main")


@pytest.fixture(scope="module")
def demo(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the demonstration with the options of the first notebook's fit."""
    options = ("--epochs", "2", "--max-rows", "3000", "--texts", "150")
    return dimec("demo", "--out", "demo", *options, cwd=folder)


@pytest.fixture(scope="module")
def executed(demo: object, folder: Path) -> tuple[Path, list[Any]]:
    """Give the run of the first notebook, which finds the demonstration's fit, and its code cells' outputs."""
    run = shutil.copytree(folder / "demo" / "run", folder / "runs" / "notebook")
    said = run_notebook("fit_evaluate_report", folder)
    assert len(said) == 6
    return run, [*said.values()]


def run_notebook(name: str, folder: Path) -> dict[str, Any]:
    """Run a notebook in a folder and return the outputs of its code cells, by their ids."""
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    assert not any(cell.get("outputs") for cell in notebook.cells)  # what is kept would grow old
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    return {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


def test_the_demo_fits_evaluates_and_runs_its_tiers(
    demo: subprocess.CompletedProcess[str],
) -> None:
    assert "validation accuracy by exit" in demo.stderr
    scores = {
        name: float(value)
        for name, value in re.findall(r"^(.+?)  +([\d.]+) ", demo.stdout, flags=re.MULTILINE)
    }
    ways = ("recommended", "full model (all-cloud)", "edge alone", "device alone", "words alone")
    assert set(ways) <= set(scores)
    assert re.search(r"^(Recommended|You need no tiers|The edge alone)", demo.stdout, re.MULTILINE)
    # 4 % of the built-in labels are noise: the full model must learn, and exceed guessing by far
    assert scores["full model (all-cloud)"] > 75
    assert "150 texts by dimec-cascade" in demo.stdout
    assert "servers ended with 0 (edge), 0 (cloud)" in demo.stdout


# The kernel's client closes its sockets when it is collected.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_notebook_says_what_it_promises(executed: tuple[Path, list[Any]]) -> None:
    run, said = executed
    texts = ["".join(output.get("text", "") for output in outputs) for outputs in said]
    assert any("dimee-fixed" in text and "random at its cost" in text for text in texts)
    assert any("image/svg+xml" in output.get("data", {}) for outputs in said for output in outputs)
    evaluation = api.evaluate(run, max_drop=2)
    assert evaluation.recommendation is not None
    assert sentence(evaluation.recommendation) in texts[-1]
    assert {path.suffix for path in (run / "report" / "figures").iterdir()} == {".png", ".svg"}


@without_browser
def test_the_pages_sliders_give_what_an_evaluation_gives(
    executed: tuple[Path, list[Any]], browser: Browser
) -> None:
    """The whole way: fitted, replayed, written, drawn; then asked again of the run itself."""
    run = executed[0]
    study = Study(run / "report" / "report.html", read_whatif(run / "report"))
    for opened in open_page(browser, study):
        told = api.evaluate(run, max_drop=2).recommendation
        assert told is not None
        shown = shown_rows(opened)
        own = shown["recommended"]
        assert float(own["score"]) == pytest.approx(told.score, abs=1e-9)
        assert float(own["drop"]) == pytest.approx(told.test_drop_points, abs=1e-9)
        assert float(own["cost"]) == pytest.approx(told.cost, abs=1e-9)
        assert float(own["edge"]) == pytest.approx(told.shares.edge, abs=1e-9)
        assert json.loads(own["at"]).get("price") == told.price
        assert {"all-cloud", "all-edge", "all-mobile", "exit-zero"} == {*shown} - {"recommended"}


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # as above
def test_a_frame_becomes_a_classifier(tmp_path: Path) -> None:
    said = run_notebook("your_own_data", tmp_path)
    assert "stderr" in {output.get("name") for output in said["fit"]}  # its bars
    (shown,) = (each["data"]["text/html"] for each in said["evaluate"] if "data" in each)
    assert "recommended" in shown and "<table>" in shown
    assert "'tier': " in said["call"][-1]["data"]["text/plain"]
    assert "'score': " in "".join(output.get("text", "") for output in said["serve"])
    assert "negative  positive" in said["proba"][-1]["data"]["text/plain"]
    card = "".join(output["text"] for output in said["save"])
    fingerprint = Run.open(tmp_path / "runs" / "tickets").config.data_fingerprint
    assert fingerprint in card and "| this bundle |" in card


def test_real_texts_are_learnt_and_routed(data_root: Path, tmp_path: Path) -> None:
    dimec(
        "fit", "sst2", "--data", str(data_root / "glue" / "sst2"), "--out", "run",
        "--max-rows", "3000", "--epochs", "1", "--split", "grouped", cwd=tmp_path,
    )  # fmt: skip
    run = Run.open(tmp_path / "run")
    accuracies = run.test.right.mean(axis=0)
    majority = max(run.test.labels.mean(), 1 - run.test.labels.mean())
    assert accuracies[-1] > majority + 0.1
    shifted = pq.read_table(data_root / "shift" / "cr" / "all.parquet")[:800]  # one has no text
    pq.write_table(shifted, tmp_path / "cr.parquet")
    found = dimec("evaluate", "run", "--data", "cr.parquet", "--skip-empty", "--json", cwd=tmp_path)
    assert json.loads(found.stdout)["n"] == 799
    assert (tmp_path / "run" / "evaluation" / "data-cr.json").exists()
