"""Fits of a tiny encoder on built-in texts: what a run folder holds, what a kill leaves, what a seed fixes."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tests.forked import forked
from tests.notes import Notes
from tests.servers import wait_for

from dimec import api
from dimec.core.errors import DataError, DimecError, OptionError, RunError
from dimec.core.options import checked
from dimec.core.progress import SILENT
from dimec.core.tiers import Depths
from dimec.costs.model import CostModel
from dimec.data import TextDataset, load_dataset
from dimec.data.likeness import Likeness
from dimec.policies import POLICIES, load_policies
from dimec.policies.pools import cartography
from dimec.runs.run import FitOptions, Run, SplitInfo
from dimec.training import search, tabulate_dataset
from dimec.training.batching import Rows
from dimec.training.epochs import exit_losses, sum_of_exit_losses
from dimec.training.fitting import exits_at_majority, sum_of_exit_divergences
from dimec.training.model import load_model
from dimec.training.prepare import prepare, read_dataset
from dimec.training.state import EpochLog, save_checkpoint
from dimec.training.tabulate import token_norms
from dimec.training.texts import RunTexts, split_texts


def options(backbone: Path, **changes: Any) -> dict[str, Any]:
    return {
        "backbone": str(backbone),
        "pooling": "mean",
        "max_rows": 300,
        "epochs": 3,
        "head_learning_rate": 0.01,
        **changes,
    }


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_model(run.model_folder).model.state_dict()


def assert_same_run(one: Run, two: Run) -> None:
    theirs = weights(two)
    for name, tensor in weights(one).items():
        assert torch.equal(tensor, theirs[name]), name
    for split in ("validation", "test"):
        a, b = getattr(one, split), getattr(two, split)
        np.testing.assert_array_equal(a.logits, b.logits)
        np.testing.assert_array_equal(a.row_ids, b.row_ids)
    a, b = one.validation.dynamics, two.validation.dynamics
    assert a is not None and b is not None
    np.testing.assert_array_equal(a.true_probability, b.true_probability)
    tables = [pq.read_table(run.folder / "dynamics.parquet") for run in (one, two)]
    assert tables[0].equals(tables[1])


def test_a_run_folder_holds_what_it_says(tiny_run: Run) -> None:
    folder = tiny_run.folder
    # what other tests evaluated of this run is none of the fit's
    assert sorted(path.name for path in folder.iterdir() if path.name != "evaluation") == [
        "config.json",
        "dynamics.parquet",
        "exit-zero.safetensors",
        "exits",
        "metrics.jsonl",
        "model",
        "router.json",
        "router.safetensors",
        "split.json",
        "texts.parquet",
    ]
    config = tiny_run.config
    assert config.exits == (1, 2, 3, 4)
    assert config.depths["dc"] == Depths(1, 2, 4)
    assert config.options.max_rows == 600
    assert len(config.data_fingerprint) == 64
    split = json.loads((folder / "split.json").read_text())
    ids = [set(split[name]) for name in ("train", "validation", "test")]
    assert [len(each) for each in ids] == [480, 60, 60]
    assert not (ids[0] & ids[1] or ids[0] & ids[2] or ids[1] & ids[2])
    assert set(tiny_run.test.row_ids) == ids[2]
    logs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [log["epoch"] for log in logs] == [1, 2]
    assert len(logs[0]["validation_scores"]) == 4
    texts = pq.read_table(folder / "texts.parquet").to_pylist()
    assert len(texts) == 600
    source = load_dataset("reviews")
    for row in texts[:20]:
        assert row["first"] == source.first[row["row_id"]]
        assert row["label"] == source.task.label_names[source.labels[row["row_id"]]]
    alone = {name for name, policy in POLICIES.items() if policy.bottleneck is None}
    assert set(load_policies(folder, POLICIES)) == alone
    assert not list(folder.rglob("*.pt")) and not list(folder.rglob("*.bin"))


def test_dynamics_of_train_and_validation(tiny_run: Run) -> None:
    table = pq.read_table(tiny_run.folder / "dynamics.parquet").to_pandas()
    assert table.groupby("split", observed=True).size().to_dict() == {
        "train": 480 * 2,
        "validation": 60 * 2,
    }
    probabilities = table[[f"true_probability_{layer}" for layer in (1, 2, 3, 4)]]
    assert probabilities.notna().all(axis=None)
    assert ((probabilities >= 0) & (probabilities <= 1)).all(axis=None)
    validation = tiny_run.validation
    assert validation.dynamics is not None
    for row in range(5):
        mine = table[table.row_id == validation.row_ids[row]].sort_values("epoch")
        np.testing.assert_allclose(
            mine["true_probability_2"], validation.dynamics.true_probability[row, :, 1]
        )
    # the epoch that was kept is one of those recorded: its table says the same as its dynamics
    best = int(np.argmax([log["validation_scores"][-1] for log in _logs(tiny_run)]))
    right = validation.dynamics.correct[:, best, -1]
    np.testing.assert_array_equal(right, validation.right[:, -1])
    assert cartography(validation, layer=1).confidence.shape == (60,)
    assert tiny_run.test.dynamics is None


def _logs(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def test_the_saved_model_says_what_the_table_says(tiny_run: Run) -> None:
    again = tabulate_dataset(tiny_run, load_dataset("reviews").take(tiny_run.test.row_ids))
    np.testing.assert_allclose(again.logits, tiny_run.test.logits, atol=1e-5)
    np.testing.assert_allclose(again.embeddings, tiny_run.test.embeddings, atol=1e-5)
    np.testing.assert_array_equal(again.n_tokens, tiny_run.test.n_tokens)


def test_exits_learn_to_weigh_tokens_unless_told_otherwise(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    chosen = options(tiny_backbone, epochs=1)
    del chosen["pooling"]
    run = api.fit("reviews", out=tmp_path / "default", **chosen)
    assert run.config.pooling == run.config.options.pooling == "attention"
    heads = load_model(run.model_folder).model.heads
    assert all(weights.any() for weights in heads.parameters())  # the queries start at zero
    again = tabulate_dataset(run, load_dataset("reviews").take(run.test.row_ids))
    np.testing.assert_allclose(again.logits, run.test.logits, atol=1e-5)


def test_killed_and_resumed_ends_with_the_same_weights(tiny_backbone: Path, tmp_path: Path) -> None:
    # that two stages go on too: test_two_stages.py
    chosen = options(
        tiny_backbone,
        max_rows=500,
        epochs=4,
        pooling="attention",
        r_drop=0.5,
        class_weight="positive=3",
    )
    flags = [
        part for key, value in chosen.items() for part in (f"--{key.replace('_', '-')}", str(value))
    ]
    folder = tmp_path / "killed"
    command = ("fit", "reviews", "--out", folder, *flags)
    for epoch in (1, 3):
        process = forked(*command, said=tmp_path / "said")
        try:
            written = folder / "checkpoint" / f"epoch-{epoch}"
            wait_for(lambda: written.exists() or process.poll() is not None, str(written))  # noqa: B023
        finally:
            process.kill()
        assert process.wait() == -signal.SIGKILL
        with pytest.raises(RunError, match="has not finished"):
            Run.open(folder)
    done = forked(*command, said=tmp_path / "said")
    assert done.wait() == 0
    assert "resuming after epoch" in (tmp_path / "said.err").read_text()
    unbroken = api.fit("reviews", out=tmp_path / "unbroken", **chosen)
    assert_same_run(Run.open(folder), unbroken)
    assert not (folder / "checkpoint").exists()


def test_a_damaged_checkpoint_is_refused(tiny_run: Run, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_run.folder, tmp_path / "run")
    (folder / "exits" / "test.safetensors").unlink()
    checkpoint = folder / "checkpoint" / "epoch-1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text('{"history": [], "best_epoch": 0}')
    (checkpoint / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(RunError, match="epoch-1"):
        api.fit("reviews", out=folder, **tiny_run.config.options.model_dump(exclude={"task"}))


def test_a_folder_that_a_killed_fit_emptied_goes(tmp_path: Path) -> None:
    (tmp_path / "epoch-1").mkdir()
    model = torch.nn.Linear(2, 2)
    log = EpochLog(1, 1.0, [0.5], [0.5], 1.0, 1.0, "joint")
    optimizers = (torch.optim.AdamW(model.parameters()),)
    save_checkpoint(
        tmp_path, history=[log, log], best_epoch=2, model=model, optimizers=optimizers, recorders={}
    )
    assert [each.name for each in tmp_path.iterdir()] == ["epoch-2"]


def test_a_finished_fit_is_left_alone(tiny_run: Run, tmp_path: Path) -> None:
    notes = Notes()
    chosen = tiny_run.config.options.model_dump(exclude={"task"})
    again = api.fit("reviews", out=tiny_run.folder, progress=notes, **chosen)
    assert again.config == tiny_run.config
    assert any("fitted already" in line for line in notes.said)
    with pytest.raises(OptionError, match=r"epochs \(2 there, 3 now\).*--restart"):
        api.fit("reviews", out=tiny_run.folder, **{**chosen, "epochs": 3})
    (tmp_path / "mine.txt").write_text("something else")
    with pytest.raises(OptionError, match="holds other files"):
        api.fit("reviews", out=tmp_path, **chosen)
    with pytest.raises(OptionError, match="holds other files"):
        api.fit("reviews", out=tmp_path, restart=True, **chosen)
    assert (tmp_path / "mine.txt").exists()


def test_data_that_changed_is_noticed(tiny_backbone: Path, tmp_path: Path) -> None:
    data = tmp_path / "mine.csv"
    lines = [f"{'good' if row % 2 else 'bad'} text number {row},{row % 2}" for row in range(60)]
    data.write_text("text,label\n" + "\n".join(lines) + "\n")
    chosen = options(tiny_backbone, epochs=1, max_rows=None, data=str(data))
    folder = tmp_path / "run"
    run = api.fit("mine", out=folder, **chosen)
    assert run.config.task.label_names == ("0", "1")
    (folder / "exits" / "test.safetensors").unlink()
    data.write_text("text,label\n" + "\n".join(reversed(lines)) + "\n")
    with pytest.raises(OptionError, match="changed since"):
        api.fit("mine", out=folder, **chosen)


def write_rows(path: Path, numbers: range, *, words: str = "text") -> str:
    """Write a file of rows that share no word but one."""
    lines = [f"{'good' if n % 2 else 'bad'} {words}{n},{n % 2}" for n in numbers]
    path.write_text("text,label\n" + "\n".join(lines) + "\n")
    return str(path)


def test_files_of_ones_own_validate_and_test(tiny_backbone: Path, tmp_path: Path) -> None:
    files = {
        "data": write_rows(tmp_path / "train.csv", range(60)),
        "validation": write_rows(tmp_path / "dev.csv", range(58, 80)),
        "test": write_rows(tmp_path / "test.csv", range(80, 100)),
    }
    chosen = options(tiny_backbone, epochs=1, max_rows=None, keep_texts=False, **files)
    notes = Notes()
    run = api.fit("mine", out=tmp_path / "run", progress=notes, **chosen)
    assert [each for each in notes.warned if "--validation" in each and "2 of its 22" in each]
    assert run.config.split == SplitInfo(kind="files", leaking_share=2 / 42, test_file=True)
    assert (len(run.validation), len(run.test)) == (22, 20)
    texts = RunTexts(run)
    assert texts.of("test").first[0] == "bad text80"
    assert texts.of("validation").first[-1] == "good text79"
    ids = [set(texts.of(name).row_ids.tolist()) for name in ("train", "validation", "test")]
    assert sum(map(len, ids)) == len(set.union(*ids)) == 102
    assert str(tmp_path / "test.csv") in api.evaluate(run, policies=["random"]).source
    write_rows(tmp_path / "test.csv", range(81, 101))
    (tmp_path / "run" / "exits" / "test.safetensors").unlink()
    with pytest.raises(OptionError, match="changed since"):
        api.fit("mine", out=tmp_path / "run", **chosen)


@pytest.mark.parametrize("name", ["validation", "test"])
def test_rows_that_train_validate_nothing(tmp_path: Path, name: str) -> None:
    data = write_rows(tmp_path / "train.csv", range(60))
    own = write_rows(tmp_path / "own.csv", range(40, 79))
    with pytest.raises(OptionError, match=f"--{name}"):
        read_dataset(checked(FitOptions, {"task": "mine", "data": data, name: own}))
    with pytest.raises(OptionError, match=f"--{name}"):
        read_dataset(checked(FitOptions, {"task": "mine", "data": data, name: tmp_path}))
    with pytest.raises(DataError, match=f"--{name}"):
        read_dataset(checked(FitOptions, {"task": "mine", "data": data, name: tmp_path / "no.csv"}))


def test_a_file_of_ones_own_has_the_labels_of_the_data(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "train.csv", range(60))
    (tmp_path / "own.csv").write_text("text,label\nsome other text,2\n")
    with pytest.raises(DataError) as caught:
        read_dataset(
            checked(FitOptions, {"task": "mine", "data": data, "test": tmp_path / "own.csv"})
        )
    assert caught.value.row == 2


def test_unreadable_times_are_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("text,label,day\na,0,2026-01-01\nb,1,soon\n")
    with pytest.raises(DataError) as caught:
        load_dataset("mine", data=path, time_column="day")
    assert caught.value.row == 3
    path.write_text("text,label,day\na,0,2026-01-02\nb,1,2026-01-01\n")
    times = load_dataset("mine", data=path, time_column="Day").times
    assert times is not None
    assert times[0] - times[1] == 86_400


def test_exits_only_where_tiers_end(tiny_backbone: Path, tmp_path: Path) -> None:
    chosen = options(tiny_backbone, epochs=1, exits="tiers", mobile_layers=2)
    run = api.fit("reviews", out=tmp_path / "run", **chosen)
    assert run.config.exits == (2, 3, 4)
    assert api.evaluate(run).rows
    with pytest.raises(OptionError, match=r"no exit after layer 1.*--exits all"):
        api.evaluate(run, mobile_layers=1)


@pytest.mark.parametrize("training", ["joint", "two-stage"])
def test_an_exit_at_the_majority_class_is_warned_of(
    tiny_backbone: Path, tmp_path: Path, training: str
) -> None:
    notes = Notes()
    still = {"learning_rate": 1e-9, "head_learning_rate": 1e-9}
    chosen = options(tiny_backbone, epochs=1, max_rows=100, training=training, **still)
    run = api.fit("reviews", out=tmp_path / "run", progress=notes, **chosen)
    stuck = exits_at_majority(run.validation)
    assert stuck
    (told,) = notes.warned
    assert ", ".join(map(str, stuck)) in told


def test_a_fit_that_diverges_says_so(
    tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(logits: torch.Tensor, truth: torch.Tensor, *_: None, **__: None) -> torch.Tensor:
        return sum_of_exit_losses(logits, truth) * float("inf")

    monkeypatch.setattr("dimec.training.fitting.sum_of_exit_losses", explode)
    with pytest.raises(DimecError, match=r"diverged in epoch 1.*--learning-rate"):
        api.fit("reviews", out=tmp_path / "run", **options(tiny_backbone))


def test_the_loss_is_the_sum_over_exits() -> None:
    logits = torch.randn(5, 3, 4)
    truth = torch.tensor([0, 1, 2, 3, 0])
    entropy = torch.nn.functional.cross_entropy
    each = [entropy(logits[:, exit], truth) for exit in range(3)]
    expected = torch.stack(each).sum().item()
    assert sum_of_exit_losses(logits, truth).item() == pytest.approx(expected, rel=1e-5)
    weights = torch.tensor([0.5, 2.0, 1.0, 1.0])
    rows = torch.stack([entropy(logits[:, exit], truth, reduction="none") for exit in range(3)])
    expected = (rows * weights[truth]).mean(1).sum().item()
    assert sum_of_exit_losses(logits, truth, weights).item() == pytest.approx(expected, rel=1e-5)
    by_depth = torch.tensor([0.5, 1.0, 1.5])
    expected = ((rows * weights[truth]).mean(1) * by_depth).sum().item()
    found = sum_of_exit_losses(logits, truth, weights, exit_weights=by_depth).item()
    assert found == pytest.approx(expected, rel=1e-5)


def test_exits_weighed_by_depth_on_one_pooler(tiny_backbone: Path, tmp_path: Path) -> None:
    given = options(tiny_backbone, pooling="pooler", exit_weights="depth")
    run = api.fit("reviews", out=tmp_path / "run", **given)
    model = load_model(run.model_folder).model
    poolers = [head[0] for head in model.heads.values()]  # type: ignore[index]
    assert len({id(each) for each in poolers}) == 1
    again = tabulate_dataset(run, RunTexts(run).of("test"))
    np.testing.assert_allclose(again.logits, run.test.logits, atol=1e-3)
    equal = api.fit("reviews", out=tmp_path / "equal", **{**given, "exit_weights": "equal"})
    assert not np.allclose(equal.test.logits, run.test.logits, atol=1e-3)
    with pytest.raises(OptionError, match="--pooling pooler"):
        api.fit("reviews", out=tmp_path / "no", **{**given, "training": "two-stage"})


def test_lengths_of_tokens_are_those_of_their_embeddings(tiny_run: Run) -> None:
    dataset = RunTexts(tiny_run).of("test")
    found = token_norms(tiny_run, dataset)
    table, model = tiny_run.test, load_model(tiny_run.model_folder).model
    assert found.shape == (len(table), tiny_run.config.max_length)
    assert ((found > 0).sum(axis=1) == table.n_tokens).all()
    row = int(table.n_tokens.argmin())
    tokens = Rows.tokenized(
        dataset,
        load_model(tiny_run.model_folder).tokenizer,
        max_length=found.shape[1],
        progress=SILENT,
    ).tokens.input_ids[row]
    ids = torch.from_numpy(tokens.astype(np.int64))[None]
    alone = model.eval().adapter.embed(ids, torch.ones_like(ids))[0].norm(dim=-1)
    np.testing.assert_allclose(found[row, : len(tokens)], alone.detach().numpy(), rtol=1e-4)


def test_the_losses_of_a_table_are_those_of_torch(tiny_run: Run) -> None:
    table = tiny_run.validation
    said, truth = torch.from_numpy(table.logits), torch.from_numpy(table.labels)
    for weights in (None, (0.5, 2.0)):
        found = exit_losses(table, weights)
        total = sum_of_exit_losses(said, truth, weights and torch.tensor(weights))
        assert sum(found) == pytest.approx(total.item(), rel=1e-5)
        assert len(found) == len(table.layers)


def test_r_drop_is_the_mean_of_both_divergences_summed_over_exits() -> None:
    first, second = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(1))
    p, q = first.log_softmax(-1), second.log_softmax(-1)
    divergence = partial(torch.nn.functional.kl_div, reduction="batchmean", log_target=True)
    expected = sum(
        (divergence(p[:, exit], q[:, exit]) + divergence(q[:, exit], p[:, exit])).item() / 2
        for exit in range(3)
    )
    assert sum_of_exit_divergences(first, second).item() == pytest.approx(expected, rel=1e-5)
    assert sum_of_exit_divergences(first, first).item() == 0


def test_with_r_drop_exits_agree_with_themselves_under_dropout(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    def disagreement(weight: float) -> float:
        chosen = options(tiny_backbone, epochs=3, max_rows=600, r_drop=weight)
        run = api.fit("reviews", out=tmp_path / f"weight-{weight:g}", **chosen)
        model = load_model(run.model_folder)
        texts = split_texts(run, "test").first
        batch = model.tokenizer(list(texts), padding=True, return_tensors="pt")
        model.model.train()
        torch.manual_seed(0)
        with torch.no_grad():
            twice = [model.model(**batch).logits for _ in range(2)]
        return float(sum_of_exit_divergences(*twice))

    assert disagreement(20.0) < disagreement(0.0)


def test_the_grid_is_searched_and_resumed(
    tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[TextDataset] = []
    compare = Likeness.of

    def counted(rows: TextDataset) -> Likeness:
        compared.append(rows)
        return compare(rows)

    monkeypatch.setattr(Likeness, "of", counted)
    small = partial(search, batch_sizes=(8, 16), learning_rates=(1e-5, 5e-5))
    chosen = FitOptions(task="reviews", **options(tiny_backbone, epochs=1, max_rows=120))
    folder = tmp_path / "searched"
    found = small(chosen, out=folder)
    assert len(found.trials) == 4
    assert len(compared) == 1  # the rows are the same for all trials
    scores = [trial.validation_scores[-1] for trial in found.trials]
    assert found.best == found.trials[int(np.argmax(scores))]
    assert found.run.config.options.learning_rate == found.best.learning_rate
    assert len(list((folder / "search").glob("*/model"))) == 1
    document = json.loads((folder / "search.json").read_text())
    assert len(document["trials"]) == 4

    # take one trial away, as if the search had been killed before it
    shutil.rmtree(folder / "search" / "batch-16-rate-5e-05")
    started = {
        path: path.stat().st_mtime_ns for path in (folder / "search").glob("*/metrics.jsonl")
    }
    again = small(chosen, out=folder)
    assert again.trials == found.trials
    for path, moment in started.items():
        assert path.stat().st_mtime_ns == moment
    with pytest.raises(OptionError, match="other options"):
        small(chosen.model_copy(update={"seed": 1}), out=folder)
    with pytest.raises(OptionError, match="holds something that is no search"):
        small(chosen, out=tmp_path)


def test_unfinished_and_damaged_runs(tiny_run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no config.json"):
        Run.open(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(tiny_run.folder, copy)
    text = (copy / "config.json").read_text()
    for spoilt in (text[:-20], text.replace('"seed"', '"sead"')):
        (copy / "config.json").write_text(spoilt)
        with pytest.raises(RunError, match=r"config\.json"):
            Run.open(copy)
    (copy / "config.json").write_text(text)
    table = copy / "exits" / "test.safetensors"
    os.truncate(table, 100)
    with pytest.raises(RunError, match="damaged"):
        api.evaluate(copy)
    for part in (copy / "model").glob("*.safetensors"):
        os.truncate(part, 100)
    data = tmp_path / "data.csv"
    data.write_text("text,label\nfine,positive\n")
    with pytest.raises(RunError):
        api.evaluate(copy, data=data)


def test_evaluating_another_data_set(tiny_run: Run, tmp_path: Path) -> None:
    data = tmp_path / "mine.jsonl"
    rows = [
        {"text": f"a fine thing {row}", "label": ("negative", "positive")[row % 2]}
        for row in range(9)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = api.evaluate(tiny_run, data=data)
    assert result.n == 9
    assert str(data) in result.source
    single = tmp_path / "single.csv"
    single.write_text("text,label\nall good,1\nquite good,1\n")
    coded = api.evaluate(tiny_run, data=single)
    assert coded.n == 2
    assert coded.label_mapping == {"1": "positive"}
    assert result.label_mapping == {}
    single.write_text("text,label\nall good,P\u200bositive\nquite good,\n")
    marked = api.evaluate(tiny_run, data=single, skip_unlabelled=True)
    assert marked.label_mapping == {"P\u200bositive": "positive"}
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("sentence1,sentence2,label\na,b,0\nc,d,1\n")
    with pytest.raises(DataError, match="one text per row"):
        api.evaluate(tiny_run, data=pairs)
    holes = tmp_path / "holes.csv"
    holes.write_text("text,label\nall good,1\n  ,0\nquite bad,0\n")
    with pytest.raises(DataError, match=r"line 3.*--skip-empty"):
        api.evaluate(tiny_run, data=holes)
    assert api.evaluate(tiny_run, data=holes, skip_empty=True).n == 2


def test_a_fit_tells_its_classes_and_those_that_look_alike(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    data = tmp_path / "mine.csv"
    labels = ["Login", "login", "login", "billing"] * 20
    data.write_text(
        "text;label\n" + "".join(f"text {row};{label}\n" for row, label in enumerate(labels))
    )
    for fold, counts in ((False, ("login 40", "Login 20")), (True, ("login 60", "billing 20"))):
        heard = Notes()
        given = {"task": "mine", "data": data, "backbone": tiny_backbone, "pooling": "mean"}
        options = checked(FitOptions, {**given, "fold_labels": fold})
        prepared = prepare(options, progress=heard)
        assert options.data == str(data)
        assert all(count in "\n".join(heard.said) for count in counts)
        assert ("--fold-labels" in "\n".join(heard.warned)) is not fold
        assert len(prepared.config.task.label_names) == 3 - fold


def test_the_length_is_chosen_from_the_training_rows(tiny_backbone: Path, tmp_path: Path) -> None:
    data = tmp_path / "mine.csv"
    texts = [f"text {row}" + " word" * (70 if row % 4 == 0 else 20) for row in range(80)]
    lines = [f"{text},{row % 2}\n" for row, text in enumerate(texts)]
    data.write_text("text,label\n" + "".join(lines))
    given = {"task": "mine", "data": data, "backbone": tiny_backbone, "split": "random"}
    chosen = prepare(checked(FitOptions, {**given, "max_length": "auto"}), progress=Notes())
    longest = max(int(rows.tokens.lengths.max()) for rows in chosen.rows.values())
    assert (chosen.config.options.max_length, chosen.config.share_cut) == (None, 0.0)
    assert chosen.config.auto_length is not None
    assert longest <= chosen.config.max_length == chosen.config.auto_length < longest + 8
    heard = Notes()
    cut = {"max_length": "40", "cut": "head-tail"}
    fixed = prepare(checked(FitOptions, {**given, **cut}), progress=heard)
    assert (fixed.config.max_length, fixed.config.auto_length) == (40, None)
    assert fixed.config.share_cut == 0.25
    assert any("25.0%" in each and "--max-length" in each for each in heard.warned)
    pairs = tmp_path / "pairs.csv"
    rows = "".join(f"a {row},b,{row % 2}\n" for row in range(80))
    pairs.write_text(f"sentence1,sentence2,label\n{rows}")
    refused = checked(FitOptions, {**given, "data": pairs, "cut": "head-tail"})
    with pytest.raises(OptionError, match="--cut"):
        prepare(refused, progress=Notes())
    for value in ("most", 3, 10_000):
        with pytest.raises(OptionError, match="--max-length"):
            checked(FitOptions, {**given, "max_length": value})


def test_depths_and_costs_can_be_asked_for(tiny_run: Run) -> None:
    result = api.evaluate(tiny_run, mobile_layers=2, edge_layers=3)
    assert {row.depths for row in result.rows if row.kind == "policy"} == {Depths(2, 3, 4)}
    dear = replace(CostModel(), to_cloud=100.0)
    costly = api.evaluate(tiny_run, costs=dear, policies=["random"])
    policies = [row.policy for row in costly.rows if row.kind == "policy"]
    assert policies == ["random", "recommended"]
    assert costly.rows[0].cost > result.rows[-1].cost
    with pytest.raises(OptionError, match="unknown policy"):
        api.evaluate(tiny_run, policies=["nope"])
