"""A learned bottleneck from the command line: learnt, exported, served, shipped through and evaluated without torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.servers import tier_server

from dimec.data import reviews
from dimec.runs.run import Run

DATASET = reviews(40, seed=11)
LEAN = "import sys; sys.modules['torch'] = None; "
"""A device has no torch: with this, importing it fails as if there were none."""


def dimec(*arguments: str | Path, before: str = "") -> str:
    program = f"{before}from dimec.cli import main; main()"
    strict = ("-W", "error") if before else ()  # torch warns of itself
    done = subprocess.run(
        [sys.executable, *strict, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "300"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def answers(printed: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in printed.splitlines()]


def what(found: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return [(each["label"], each["tier"], each["layer"], each["cost"]) for each in found]


def test_from_compress_to_answers_over_a_socket(tiny_run: Run, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    width = ("--layer", "1", "--width", "4")
    dimec("compress", run, "--kind", "bottlenet", *width, "--max-rows", "60", "--epochs", "1")
    bundle = tmp_path / "bundle"
    assert "bottlenet-l1w4" in dimec("export", run, "--out", bundle, "--policy", "bottlenet")
    names = DATASET.task.label_names
    texts = tmp_path / "texts.jsonl"
    with texts.open("w", encoding="utf-8") as file:
        for text, label in zip(DATASET.first, DATASET.labels, strict=True):
            file.write(json.dumps({"text": text, "label": names[label]}) + "\n")
    assert "through the bottleneck bottlenet-l1w4" in dimec("doctor", bundle, before=LEAN)
    command = ("classify", bundle, "--file", texts, "--json")
    in_process = answers(dimec(*command, before=LEAN))
    with tier_server("cloud", bundle) as cloud:
        served = answers(dimec(*command, "--cloud", cloud.url, before=LEAN))
        assert len(cloud.logged("request", status=200, from_layer=1)) == len(DATASET)
        assert cloud.stop() == 0
        alone = answers(dimec(*command, "--cloud", cloud.url, before=LEAN))
    assert what(served) == what(in_process)
    assert {(each["tier"], each["layer"], each["degraded"]) for each in served} == {
        ("cloud", 4, None)
    }
    table = json.loads(dimec("evaluate", bundle, "--data", texts, "--json", before=LEAN))
    row = next(each for each in table["rows"] if each["policy"] == "bottlenet-l1w4")
    right = [
        each["label"] == names[label] for each, label in zip(served, DATASET.labels, strict=True)
    ]
    assert abs(row["accuracy"] - sum(right) / len(right)) < 1e-9
    assert abs(row["cost"] - served[0]["cost"]) < 1e-9
    # the cloud is gone: the edge of the bundle answers from the tokens
    assert {each["tier"] for each in alone} == {"edge"}
    assert all("so the edge tier answered" in each["degraded"] for each in alone)
