"""Trackers of a fit, by TensorBoard and MLflow themselves, on files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.commands import Here

from dimec import api
from dimec.core.errors import OptionError
from dimec.training.trackers import wanted_trackers


def test_a_fit_tells_tensorboard_and_mlflow(
    tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    out = tmp_path / "run"
    run = api.fit(
        "reviews",
        out=out,
        backbone=str(tiny_backbone),
        max_rows=60,
        max_length=16,
        epochs=2,
        report_to="tensorboard,mlflow",
    )
    written = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    [tracked] = mlflow.MlflowClient().search_runs(["0"])
    assert tracked.data.params["epochs"] == "2"
    wanted: dict[str, list[Any]] = {"train/loss": [line["loss"] for line in written]}
    for place, layer in enumerate(run.config.exits):
        for what in ("score", "loss"):
            key = "validation_scores" if what == "score" else "validation_losses"
            wanted[f"validation/{what}/exit-{layer}"] = [line[key][place] for line in written]
    for name, values in wanted.items():
        assert [each.value for each in events.Scalars(name)] == pytest.approx(values)
        assert [each.step for each in events.Scalars(name)] == [1, 2]
        assert tracked.data.metrics[name] == pytest.approx(values[-1])
    assert events.Scalars("train/learning_rate")[0].value > 0


def test_unknown_trackers_and_missing_ones_are_refused(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = here("fit", "reviews", "--out", tmp_path / "run", "--report-to", "paper", code=2)
    assert "--report-to" in said.err and not (tmp_path / "run" / "config.json").exists()
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(OptionError, match="wandb"):
        wanted_trackers("tensorboard, wandb")
    assert wanted_trackers("") == ()
