"""The main job with the real backbone, in processes of its own: what `make demo` runs, and a fit on real texts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from dimec.runs.run import Run


def dimec(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dimec", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
        env={key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"},
    )


def test_the_demo_fits_evaluates_and_runs_its_tiers(tmp_path: Path) -> None:
    done = dimec("demo", "--out", "demo", "--epochs", "1", "--texts", "150", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "validation accuracy by exit" in done.stderr
    scores = {
        name: float(value)
        for name, value in re.findall(r"^(.+?)  +([\d.]+) ", done.stdout, flags=re.MULTILINE)
    }
    ways = ("recommended", "full model (all-cloud)", "edge alone", "device alone", "words alone")
    assert set(ways) <= set(scores)
    assert re.search(r"^(Recommended|You need no tiers|The edge alone)", done.stdout, re.MULTILINE)
    # 4 % of the built-in labels are noise: the full model must learn, and exceed guessing by far
    assert scores["full model (all-cloud)"] > 75
    assert "150 texts by dimec-cascade" in done.stdout
    assert "servers ended with 0 (edge), 0 (cloud)" in done.stdout


def test_real_texts_are_learnt_and_routed(data_root: Path, tmp_path: Path) -> None:
    done = dimec(
        "fit", "sst2", "--data", str(data_root / "glue" / "sst2"), "--out", "run",
        "--max-rows", "3000", "--epochs", "1", "--split", "grouped", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = Run.open(tmp_path / "run")
    accuracies = run.test.right.mean(axis=0)
    majority = max(run.test.labels.mean(), 1 - run.test.labels.mean())
    assert accuracies[-1] > majority + 0.1
    shifted = data_root / "shift" / "cr"
    stopped = dimec("evaluate", "run", "--data", str(shifted), cwd=tmp_path)
    assert stopped.returncode == 2
    assert "--skip-empty" in stopped.stderr
    evaluated = dimec(
        "evaluate", "run", "--data", str(shifted), "--skip-empty", "--json", cwd=tmp_path
    )
    assert evaluated.returncode == 0, evaluated.stderr
    document = json.loads(evaluated.stdout)
    assert document["n"] == 3771
    assert (tmp_path / "run" / "evaluation" / "data-cr.json").exists()
