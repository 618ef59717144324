"""Fits in two processes, as `torchrun` starts them, which talk by gloo: what they end with, and what a kill leaves."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.forked import Forked, forked
from tests.integration.test_training import assert_same_run
from tests.misbehaving import free_port
from tests.servers import wait_for

from dimec.core.errors import RunError
from dimec.runs.run import Run
from dimec.training.processes import Processes

HERE = Path(__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
LIMIT_S = 240
OPTIONS = ("--pooling", "mean", "--max-length", "24", "--head-learning-rate", "0.01")


def both(*fits: Sequence[object], folder: Path) -> list[Forked]:
    """Start both processes of a fit with what the launcher tells them."""
    told = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        forked(*fits[rank], said=folder / f"{rank}", RANK=str(rank), LOCAL_RANK=str(rank), **told)
        for rank in (0, 1)
    ]


def ended(processes: Sequence[Forked], folder: Path, *, failed: bool = False) -> str:
    """Wait for both processes and return their errors."""
    codes = [process.wait(LIMIT_S) for process in processes]
    said = "".join((folder / f"{rank}.err").read_text() for rank in (0, 1))
    assert [*map(bool, codes)] == [failed] * 2, said
    return said


def rows_of(run: Run) -> np.ndarray[Any, Any]:
    known = [run.splits["train"], run.validation.row_ids, run.test.row_ids]
    return np.concatenate([np.asarray(each) for each in known])


def test_two_processes_end_where_one_does(tiny_backbone: Path, tmp_path: Path) -> None:
    script = str(HERE / "without_dropout.py")
    # The last training batch has a single row, so that one of the two has none.
    fit = ["fit", "reviews", "--backbone", str(tiny_backbone), *OPTIONS, "--learning-rate", "0.002"]
    fit += ["--max-rows", "3001", "--batch-size", "16", "--epochs", "1", "--out"]
    alone = forked(*fit, tmp_path / "one", said=tmp_path / "alone", program="tests.without_dropout")
    command = [*TORCHRUN, script, *fit, str(tmp_path / "two")]
    launched = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert launched.returncode == 0, launched.stderr
    assert alone.wait(LIMIT_S) == 0, (tmp_path / "alone.err").read_text()
    one, two = Run.open(tmp_path / "one"), Run.open(tmp_path / "two")
    assert len(one.splits["train"]) % 16 == 1
    assert two.config.device.startswith("2 processes")
    rows = rows_of(two)
    assert len(np.unique(rows)) == len(rows) == 3001
    np.testing.assert_array_equal(rows, rows_of(one))
    for split in ("validation", "test"):
        ours, theirs = getattr(two, split), getattr(one, split)
        np.testing.assert_allclose(ours.logits, theirs.logits, atol=0.02)
        scores = ours.right.mean(), theirs.right.mean()  # of all rows and exits: 4 x 300
        assert abs(scores[0] - scores[1]) < 0.003
    ours, theirs = (
        pq.read_table(each.folder / "dynamics.parquet").to_pydict() for each in (two, one)
    )
    assert ours["row_id"] == theirs["row_id"]
    np.testing.assert_allclose(ours["true_probability_4"], theirs["true_probability_4"], atol=0.005)


def test_a_fit_goes_on_after_one_of_its_processes_is_killed(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    fit = ["fit", "reviews", "--backbone", tiny_backbone, *OPTIONS, "--max-rows", "600"]
    fit += ["--epochs", "3", "--out"]
    folder = tmp_path / "killed"
    first, second = processes = both(*[[*fit, folder]] * 2, folder=tmp_path)
    written = folder / "checkpoint" / "epoch-1"
    wait_for(lambda: written.exists() or first.poll() is not None, str(written))
    second.kill()
    assert "another process" in ended(processes, tmp_path, failed=True)
    with pytest.raises(RunError):
        Run.open(folder)
    again = ended(both(*[[*fit, folder]] * 2, folder=tmp_path), tmp_path)
    assert "resuming after epoch" in again
    ended(both(*[[*fit, tmp_path / "unbroken"]] * 2, folder=tmp_path), tmp_path)
    assert_same_run(Run.open(folder), Run.open(tmp_path / "unbroken"))


@pytest.mark.parametrize("other", ["none", "another"])
def test_processes_with_other_data_are_refused(
    other: str, tiny_backbone: Path, tmp_path: Path
) -> None:
    for rank in ("0", "1") if other == "another" else ("0",):
        rows = "".join(f"good {rank} {n},yes\nbad {n},no\n" for n in range(30))
        (tmp_path / f"rows-{rank}.csv").write_text(f"text,label\n{rows}")
    fit = ["fit", "words", "--backbone", tiny_backbone, "--out", tmp_path / "run", "--data"]
    fits = [[*fit, tmp_path / f"rows-{rank}.csv"] for rank in (0, 1)]
    said = ended(both(*fits, folder=tmp_path), tmp_path, failed=True)
    (error,) = [line for line in said.splitlines() if line.startswith("Error: ")]
    assert "process 1 of 2" in error
    assert not (tmp_path / "run").exists()


def test_shares_of_a_batch_are_all_of_it() -> None:
    for n in (7, 3, 2):
        shares = [Processes(count=3, index=each).share(np.arange(n) + 5) for each in range(3)]
        assert sum(weight for _, weight in shares) == pytest.approx(1)
        counted = [rows for rows, weight in shares if weight]
        np.testing.assert_array_equal(np.sort(np.concatenate(counted)), np.arange(n) + 5)
        assert all(len(rows) for rows, _ in shares)
