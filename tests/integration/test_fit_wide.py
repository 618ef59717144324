"""Fits in two processes that `torchrun` starts, which talk by gloo: what they end with, and what a kill leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tests.integration.test_training import assert_same_run
from tests.servers import wait_for

from dimec.core.errors import RunError
from dimec.runs.run import Run
from dimec.training.processes import Processes

HERE = Path(__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
OPTIONS = ("--pooling", "mean", "--max-length", "24", "--head-learning-rate", "0.01")


def started(command: list[str], **told: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        **told,
    )


def ended(command: list[str], *, code: int = 0) -> str:
    process = started(command)
    said = process.communicate(timeout=240)[1]
    assert process.returncode == code, said
    return said


def rows_of(run: Run) -> np.ndarray[Any, Any]:
    known = [run.splits["train"], run.validation.row_ids, run.test.row_ids]
    return np.concatenate([np.asarray(each) for each in known])


def test_two_processes_end_where_one_does(tiny_backbone: Path, tmp_path: Path) -> None:
    script = str(HERE / "without_dropout.py")
    # The last training batch has a single row, so that one of the two has none.
    fit = ["fit", "reviews", "--backbone", str(tiny_backbone), *OPTIONS, "--learning-rate", "0.002"]
    fit += ["--max-rows", "3001", "--batch-size", "16", "--epochs", "1", "--out"]
    ended([sys.executable, script, *fit, str(tmp_path / "one")])
    ended([*TORCHRUN, script, *fit, str(tmp_path / "two")])
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
        pq.read_table(run.folder / "dynamics.parquet").to_pydict() for run in (two, one)
    )
    assert ours["row_id"] == theirs["row_id"]
    np.testing.assert_allclose(ours["true_probability_4"], theirs["true_probability_4"], atol=0.005)


def test_a_fit_goes_on_after_one_of_its_processes_is_killed(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    fit = [*TORCHRUN, "-m", "dimec", "fit", "reviews", "--backbone", str(tiny_backbone), *OPTIONS]
    fit += ["--max-rows", "1200", "--epochs", "3", "--out"]
    folder = tmp_path / "killed"
    process = started([*fit, str(folder)], start_new_session=True)
    try:
        first = folder / "checkpoint" / "epoch-1"
        wait_for(lambda: first.exists() or process.poll() is not None, str(first))
        os.kill(child_of(process.pid, rank=1), signal.SIGKILL)
        assert process.wait(timeout=120) != 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    with pytest.raises(RunError):
        Run.open(folder)
    assert "resuming after epoch" in ended([*fit, str(folder)])
    ended([*fit, str(tmp_path / "unbroken")])
    assert_same_run(Run.open(folder), Run.open(tmp_path / "unbroken"))


@pytest.mark.parametrize("other", ["none", "another"])
def test_processes_with_other_data_are_refused(
    other: str, tiny_backbone: Path, tmp_path: Path
) -> None:
    for rank in ("0", "1") if other == "another" else ("0",):
        rows = "".join(f"good {rank} {n},yes\nbad {n},no\n" for n in range(30))
        (tmp_path / f"rows-{rank}.csv").write_text(f"text,label\n{rows}")
    fit = f"{sys.executable} -m dimec fit words --data {tmp_path}/rows-$RANK.csv --backbone {tiny_backbone}"
    command = [*TORCHRUN, "--no-python", "sh", "-c", f"{fit} --out {tmp_path}/run"]
    said = ended(command, code=1)  # the launcher's own, whatever theirs
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


def child_of(launcher: int, *, rank: int) -> int:
    """Return the process of a rank that a launcher started."""
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == launcher and f"RANK={rank}" in (place / "environ").read_text().split("\0"):
                return int(place.name)
        except OSError:
            continue
    raise AssertionError(f"no process of rank {rank}")
