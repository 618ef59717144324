"""The command line in processes of its own: output, exit codes, and never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dimec.policies import POLICIES
from dimec.runs import Run


def dimec(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", "from dimec.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
    )


@pytest.mark.parametrize("command", [[], ["fit"], ["evaluate"], ["quickstart"]])
def test_every_command_explains_itself_with_an_example(command: list[str]) -> None:
    done = dimec(*command, "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout
    if command:
        assert "Example" in done.stdout


def test_version() -> None:
    assert dimec("--version").stdout.startswith("dimec ")


def test_the_table_fits_a_hundred_columns(tiny_run: Run) -> None:
    done = dimec("evaluate", str(tiny_run.folder))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    for name in (
        *POLICIES,
        "all-mobile",
        "all-edge",
        "all-cloud",
        "bert-on-mobile",
        "oracle",
        "majority",
    ):
        assert any(line.startswith(name) for line in lines)


def test_json_holds_the_documented_fields(tiny_run: Run) -> None:
    done = dimec("evaluate", str(tiny_run.folder), "--policy", "dimec-dc-fixed", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert set(document) == {"task", "source", "n", "metric", "price", "reference_cost", "rows"}
    row = document["rows"][0]
    assert set(row) == {
        "policy", "kind", "score", "score_ci95", "accuracy", "accuracy_ci95", "cost", "cost_change",
        "cost_vs_cloud", "shares", "random_at_shares", "random_at_shares_ci95", "random_at_cost",
        "random_at_cost_ci95", "oracle_at_cost", "gap_closed", "auc_mobile_right", "depths",
        "operating_point", "null_because",
    }  # fmt: skip
    assert set(row["shares"]) == set(row["depths"]) == {"mobile", "edge", "cloud"}
    kept = json.loads((tiny_run.folder / "evaluation" / "test.json").read_text())
    assert kept == document


def test_bad_usage_and_bad_input_end_with_2_and_no_traceback(tiny_run: Run, tmp_path: Path) -> None:
    binary = tmp_path / "data.csv"
    binary.write_bytes(bytes(range(256)))
    unlabelled = tmp_path / "unlabelled.csv"
    unlabelled.write_text("text\nfine\n")
    run, out = str(tiny_run.folder), str(tmp_path / "out")
    cases: list[tuple[list[str], str]] = [
        (["evaluate", str(tmp_path / "nowhere")], "no run"),
        (["evaluate", run, "--policy", "nope"], "choose from"),
        (["evaluate", run, "--price", "-1"], "--price"),
        (["evaluate", run, "--cost", "to_moon=3"], "to_cloud"),
        (["evaluate", run, "--cost", "to_cloud=far"], "NAME=NUMBER"),
        (["evaluate", run, "--mobile-layers", "4"], "--mobile-layers"),
        (["evaluate", run, "--data", str(tmp_path / "nowhere.csv")], "nowhere.csv"),
        (["evaluate", run, "--data", str(binary)], "data.csv"),
        (["evaluate", run, "--data", str(unlabelled)], "label"),
        (["fit", "reviews", "--out", out, "--epochs", "0"], "--epochs"),
        (["fit", "reviews", "--out", out, "--backbone", str(tmp_path)], str(tmp_path)),
        (["fit", "reviews", "--out", out, "--max-length", "4000"], "--max-length"),
        (["fit", "reviews", "--out", out, "--mobile-layers", "6"], "--mobile-layers"),
        (["fit", "sst2", "--out", out], "--data"),
        (["fit", "reviews", "--out", str(binary)], "is a file"),
        (["fit", "reviews"], "--out"),
        (["fit", "reviews", "--out", out, "--split", "odd"], "--split"),
        (["nonsense"], "nonsense"),
    ]  # fmt: skip
    for arguments, remedy in cases:
        done = dimec(*arguments)
        message = done.stdout + done.stderr
        assert done.returncode == 2, (arguments, message)
        assert "Traceback" not in message, (arguments, message)
        assert remedy in message.replace("\n", " "), (arguments, message)
        assert done.stdout == "", arguments
    assert not Path(out).exists()


def test_a_place_that_cannot_be_written_ends_with_2(tmp_path: Path, tiny_backbone: Path) -> None:
    # a file where a folder would have to be: it cannot be written to, not even by root
    (tmp_path / "file").write_text("")
    done = dimec(
        "fit", "reviews", "--out", str(tmp_path / "file" / "run"), "--backbone", str(tiny_backbone)
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "Not a directory" in done.stderr
