"""The notebook of examples/, run in a kernel of its own, and the page that it makes, opened in a real browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from playwright.sync_api import Browser
from tests.browser import Study, open_page, shown_rows, without_browser

from dimec import api
from dimec.evaluation.recommendation import sentence
from dimec.reporting.results import read_whatif
from dimec.runs.run import Run

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """Give the folder that the notebook ran in, and its code cells' outputs."""
    folder = tmp_path_factory.mktemp("notebook")
    said = run_notebook("fit_evaluate_report", folder)
    assert len(said) == 6
    return folder, [*said.values()]


def run_notebook(name: str, folder: Path) -> dict[str, Any]:
    """Run a notebook in a folder and return the outputs of its code cells, by their ids."""
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)  # type: ignore[no-untyped-call]
    assert not any(cell.get("outputs") for cell in notebook.cells)  # what is kept would grow old
    where = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=where).execute()
    return {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}


# The kernel's client closes its sockets when it is collected.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_notebook_says_what_it_promises(executed: tuple[Path, list[Any]]) -> None:
    folder, said = executed
    texts = ["".join(output.get("text", "") for output in outputs) for outputs in said]
    assert any("dimee-fixed" in text and "random at its cost" in text for text in texts)
    assert any("image/svg+xml" in output.get("data", {}) for outputs in said for output in outputs)
    evaluation = api.evaluate(folder / "runs" / "notebook", max_drop=2)
    assert evaluation.recommendation is not None
    assert sentence(evaluation.recommendation) in texts[-1]
    beside = folder / "runs" / "notebook" / "report"
    assert {path.suffix for path in (beside / "figures").iterdir()} == {".png", ".svg"}


@without_browser
def test_the_pages_sliders_give_what_an_evaluation_gives(
    executed: tuple[Path, list[Any]], browser: Browser
) -> None:
    """The whole way: fitted, replayed, written, drawn; then asked again of the run itself."""
    run = executed[0] / "runs" / "notebook"
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
