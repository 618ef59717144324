"""DeeBERT's training in two stages: what learns when, which epochs are kept, and what a stop in between changes."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.integration.test_training import assert_same_run, options, weights
from tests.notes import Notes

from dimec import api
from dimec.core.errors import OptionError
from dimec.data import load_dataset
from dimec.runs.run import FitOptions, Run
from dimec.training import search, tabulate_dataset
from dimec.training.fitting import STAGES, FitStage, build_optimizers
from dimec.training.model import MultiExitEncoder, Pooling, load_backbone, load_model, save_model
from dimec.training.state import EpochLog

BACKBONE, EXITS = STAGES["two-stage"]


def history_of(run: Run) -> list[EpochLog]:
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    return [EpochLog(**json.loads(line)) for line in lines]


@pytest.fixture(scope="module")
def chosen(tiny_backbone: Path) -> dict[str, Any]:
    # rates at which the four-layer encoder's scores differ from epoch to epoch
    return options(tiny_backbone, training="two-stage", epochs=3, learning_rate=1e-3)


@pytest.fixture(scope="module")
def notes() -> Notes:
    return Notes()


@pytest.fixture(scope="module")
def run(chosen: dict[str, Any], notes: Notes, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("two-stages") / "run"
    return api.fit("reviews", out=folder, progress=notes, **chosen)


def test_each_epoch_says_its_stage(run: Run, notes: Notes) -> None:
    history = history_of(run)
    assert [(log.stage, log.epoch) for log in history] == [
        (stage, epoch) for stage in ("backbone", "exits") for epoch in (1, 2, 3)
    ]
    epochs = [line for line in notes.said if line.startswith("epoch ")]
    for line, log in zip(epochs, history, strict=True):
        number = 1 if log.stage == "backbone" else 2
        assert line.startswith(f"epoch {log.epoch}/3, stage {number}/2 ({log.stage})  loss")
        # the exits that learn, and no others
        assert ("  1: " in line, "  4: " in line) == (number == 2, number == 1)
    kept = [line for line in notes.said if line.startswith("keeping epoch")]
    assert len(kept) == 2
    assert kept[0].startswith(f"keeping epoch {BACKBONE.best(history).epoch}, stage 1/2")
    assert kept[1].startswith(f"keeping epoch {EXITS.best(history).epoch}, stage 2/2")


def test_the_first_stage_is_judged_by_the_last_exit_the_second_by_the_others() -> None:
    scores = [[0.9, 0.9, 0.5], [0.2, 0.2, 0.7], [0.2, 0.2, 0.7], [0.1, 0.6, 0.7], [0.5, 0.1, 0.9]]
    stages = ["backbone", "backbone", "backbone", "exits", "exits"]
    history = [
        EpochLog(epoch, 1.0, each, [0.5] * 3, 1.0, 1.0, stage)
        for epoch, each, stage in zip((1, 2, 3, 1, 2), scores, stages, strict=True)
    ]
    assert BACKBONE.best(history) is history[1]  # the first of equals
    assert EXITS.best(history) is history[3]
    joint = [
        EpochLog(n, 1.0, each, [0.5] * 3, 1.0, 1.0, "joint")
        for n, each in enumerate(scores, start=1)
    ]
    assert STAGES["joint"][0].best(joint).epoch == 5


def test_of_equal_scores_the_least_validation_loss_is_kept() -> None:
    losses = [[0.1, 0.1, 0.9], [0.9, 0.1, 0.4], [0.1, 0.1, 0.4]]
    for stage, kept in ((STAGES["joint"][0], 2), (BACKBONE, 2), (EXITS, 1)):
        history = [
            EpochLog(epoch, 1.0, [0.9] * 3, each, 1.0, 1.0, stage.name)
            for epoch, each in enumerate(losses, start=1)
        ]
        assert stage.best(history).epoch == kept


@pytest.mark.parametrize("stage", [*STAGES["joint"], BACKBONE, EXITS], ids=lambda stage: stage.name)
def test_gradients_go_where_a_stage_sends_them(tiny_backbone: Path, stage: FitStage) -> None:
    adapter = load_backbone(str(tiny_backbone)).adapter
    model = MultiExitEncoder(adapter, exits=(1, 2, 4), n_classes=2, pooling=Pooling.MEAN).train()
    stage.freeze(model)
    graphs: list[bool] = []
    for module in adapter.model.get_submodule("encoder.layer").children():
        module.register_forward_hook(lambda _, __, hidden: graphs.append(hidden.requires_grad))
    ids = torch.arange(2000, 2012).reshape(2, 6)
    model(ids, torch.ones_like(ids)).logits[:, stage.exits].sum().backward()
    assert graphs == [stage.backbone] * 4  # frozen layers build nothing to go back through
    learning = {"joint": {"1", "2", "4"}, "backbone": {"4"}, "exits": {"1", "2"}}[stage.name]
    expected = {f"heads.{layer}.1.{kind}" for layer in learning for kind in ("weight", "bias")}
    if stage.backbone:
        expected |= {name for name, _ in model.named_parameters() if name.startswith("adapter.")}
    named = dict(model.named_parameters())
    assert {name for name, each in named.items() if each.grad is not None} == expected
    moved = [
        parameter
        for optimizer in build_optimizers(model, FitOptions(task="reviews"))
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    assert len(moved) == len(expected)
    assert {id(each) for each in moved} == {id(named[name]) for name in expected}


def test_dynamics_are_those_of_the_second_stage(run: Run) -> None:
    dynamics = run.validation.dynamics
    assert dynamics is not None
    probability = dynamics.true_probability
    assert probability.shape == (30, 3, 4)
    assert not np.isnan(probability).any()
    # the last exit no longer learns, the others do
    assert (probability[:, :, 3] == probability[:, :1, 3]).all()
    for exit in range(3):
        assert (probability[:, 0, exit] != probability[:, 2, exit]).any()
    history = history_of(run)
    for log in history[3:]:
        assert log.validation_scores[-1] == BACKBONE.best(history).validation_scores[-1]
    # the table is that of the kept epoch
    kept = EXITS.best(history).epoch - 1
    np.testing.assert_array_equal(dynamics.correct[:, kept], run.validation.right)


def test_stopped_after_every_epoch_it_ends_with_the_same_weights(
    run: Run, chosen: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "stopped"
    for done in range(6):
        stop = Notes(stops=True)
        with pytest.raises(KeyboardInterrupt):
            api.fit("reviews", out=folder, progress=stop, **chosen)
        place = "stage 1/2 (backbone)" if done <= 3 else "stage 2/2 (exits)"
        resuming = f"resuming after epoch {(done - 1) % 3 + 1} of 3, {place}"
        assert (resuming in stop.said) == (done > 0)
        if done == 2:
            best = BACKBONE.best(history_of(Run(folder, run.config))).epoch
            first = load_file(folder / "checkpoint" / f"epoch-{best}" / "model.safetensors")
    assert_same_run(api.fit("reviews", out=folder, **chosen), run)

    # backbone and last exit are those that the first stage kept
    final = weights(run)
    others = {name for name in final if name.startswith(("heads.1.", "heads.2.", "heads.3."))}
    assert {name for name in final if not torch.equal(final[name], first[name])} == others
    before = tmp_path / "before"
    shutil.copytree(run.folder, before)
    loaded = load_model(run.model_folder)
    loaded.model.load_state_dict(first)
    save_model(
        loaded.model,
        before / "model",
        tokenizer=loaded.tokenizer,
        label_names=loaded.label_names,
    )
    rows = load_dataset("reviews").take(run.validation.row_ids)
    table = tabulate_dataset(Run.open(before), rows)
    np.testing.assert_allclose(table.logits[:, 3], run.validation.logits[:, 3], atol=1e-5)
    assert not np.allclose(table.logits[:, 0], run.validation.logits[:, 0], atol=1e-3)


def test_a_search_judges_by_what_the_second_stage_keeps(
    chosen: dict[str, Any], tmp_path: Path
) -> None:
    point = FitOptions(task="reviews", **{**chosen, "epochs": 2, "max_rows": 120})
    small = partial(search, batch_sizes=(8, 16), learning_rates=(1e-3,))
    found = small(point, out=tmp_path / "searched")
    for trial in found.trials:
        lines = (found.run.folder / "search" / trial.name / "metrics.jsonl").read_text()
        logs = [json.loads(line) for line in lines.splitlines()][2:]
        means = [np.mean(log["validation_scores"][:-1]) for log in logs]
        assert trial.best_epoch == int(np.argmax(means)) + 1
        assert list(trial.validation_scores) == logs[trial.best_epoch - 1]["validation_scores"]
    assert found.best.validation_scores[-1] == max(
        trial.validation_scores[-1] for trial in found.trials
    )


def test_other_training_is_another_fit(run: Run, chosen: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=r"training \(two-stage there, joint now\).*--restart"):
        api.fit("reviews", out=run.folder, **{**chosen, "training": "joint"})
