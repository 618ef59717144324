"""The notebook of examples/, run from its first cell to its last in a kernel of its own."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples" / "fit_evaluate_report.ipynb"


# The kernel's client closes its sockets when it is collected.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    assert len(notebook.cells) == 10
    assert not any(cell.get("outputs") for cell in notebook.cells)  # what is kept would grow old
    NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    said = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    texts = ["".join(output.get("text", "") for output in outputs) for outputs in said]
    assert any("dimee-fixed" in text and "chance at its cost" in text for text in texts)
    assert any("image/svg+xml" in output.get("data", {}) for outputs in said for output in outputs)
    assert sum("hold" in line for text in texts for line in text.splitlines()) >= 5
    assert (tmp_path / "runs" / "notebook" / "report" / "report.html").stat().st_size > 100_000
