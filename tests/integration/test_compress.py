"""Bottlenecks of a tiny run: what a training leaves, what a stop in it changes, what an evaluation makes of it."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.commands import Here
from tests.inputs import write_rows
from tests.notes import Notes

from dimec import api
from dimec.core.errors import InputError, OptionError, RunError
from dimec.data import load_dataset
from dimec.runs.compressed import Compressed, compressed_in
from dimec.runs.exit_table import ExitTable
from dimec.runs.run import Run
from dimec.training.tabulate import load_split, tabulate_compressed
from dimec.training.texts import split_texts

CHOSEN: dict[str, Any] = {
    "kind": "bottlefit", "layer": 2, "width": 4, "max_rows": 120, "epochs": 2, "learning_rate": 1e-3,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Give a copy of the tiny run that bottlenecks may be put into."""
    folder = tmp_path_factory.mktemp("compress") / "run"
    shutil.copytree(tiny_run.folder, folder)
    return Run.open(folder)


@pytest.fixture(scope="module")
def made(run: Run) -> Compressed:
    return api.compress(run, **CHOSEN)


@pytest.fixture
def copied(run: Run, made: Compressed, tmp_path: Path) -> Run:
    """Give a copy of the run with its bottleneck, to be damaged."""
    shutil.copytree(run.folder, tmp_path / "run")
    return Run.open(tmp_path / "run")


def test_what_a_training_leaves(run: Run, made: Compressed) -> None:
    assert made.folder == run.folder / "compressed" / "bottlefit-l2w4"
    there = {path.relative_to(made.folder).as_posix() for path in made.folder.rglob("*.*")}
    assert there == {
        "config.json", "metrics.jsonl", "scores.json", "weights.safetensors",
        "exits/validation.safetensors", "exits/test.safetensors",
    }  # fmt: skip
    config = json.loads((made.folder / "config.json").read_text())
    assert config["options"]["temperature"] == 1.0 and config["options"]["label_share"] == 0.5
    assert config["bytes_per_token"] == 4 and config["n_train"] == 120
    lines = (made.folder / "metrics.jsonl").read_text().splitlines()
    stages = [json.loads(line)["stage"] for line in lines]
    assert stages == ["states", "states", "distillation", "distillation"]
    for split in ("validation", "test"):
        table = ExitTable.load(made.folder / "exits" / f"{split}.safetensors")
        own: ExitTable = getattr(run, split)
        assert table.layers == (3, 4)
        np.testing.assert_array_equal(table.row_ids, own.row_ids)
        np.testing.assert_array_equal(table.labels, own.labels)
        np.testing.assert_array_equal(table.n_tokens, own.n_tokens)
        # the device is the run's own
        np.testing.assert_allclose(table.embeddings, own.embeddings, atol=1e-5)
        np.testing.assert_array_equal(table.payload_bytes, own.n_tokens * 4 + 8)
        scores = getattr(made.scores, split)
        assert scores.accuracy == pytest.approx(table.right.mean(axis=0))
        assert scores.uncompressed == pytest.approx(own.right[:, 2:].mean(axis=0))
        assert scores.bytes_hidden == pytest.approx(2 * 32 * own.n_tokens.mean())
        assert scores.bytes_tokens == pytest.approx(own.payload_bytes.mean())


def test_only_what_changed_is_kept_and_read_back(run: Run, made: Compressed) -> None:
    kept = load_file(made.folder / "weights.safetensors")
    assert {name.split(".")[0] for name in kept} == {"bottleneck", "tail"}
    assert not [name for name in kept if "embeddings" in name]
    split = load_split(run, made)
    layers = split.student.adapter
    for index in range(4):
        ours, own = (
            torch.cat([each.flatten() for each in adapter.layer_module(index).parameters()])
            for adapter in (layers, split.model.adapter)
        )
        assert torch.equal(ours, own) is (index < 2)
    again = tabulate_compressed(run, made, split_texts(run, "test"))
    saved = made.saved(run, "test").table
    np.testing.assert_allclose(again.logits, saved.logits, atol=1e-4)
    np.testing.assert_array_equal(again.payload_bytes, saved.payload_bytes)


def test_stopped_after_every_epoch_it_ends_with_the_same_weights(
    tiny_run: Run, made: Compressed, tmp_path: Path
) -> None:
    shutil.copytree(tiny_run.folder, tmp_path / "run")
    folder = tmp_path / "run"
    for done in range(4):
        stop = Notes(stops=True)
        with pytest.raises(KeyboardInterrupt):
            api.compress(folder, progress=stop, **CHOSEN)
        stage = "stage 1/2 (states)" if done <= 2 else "stage 2/2 (distillation)"
        resuming = f"resuming after epoch {(done - 1) % 2 + 1} of 2, {stage}"
        assert (resuming in stop.said) == (done > 0)
    # half a training is no row, and the command that goes on is named
    table = api.evaluate(folder, policies=["random", "bottlefit"])
    waiting = next(each for each in table.not_run if each.policy == "bottlefit-l2w4")
    words = shlex.split(waiting.command)
    assert words[:2] == ["dimec", "compress"] and "--max-rows" in words and "--seed" not in words
    finished = api.compress(folder, **CHOSEN)
    ours, theirs = (load_file(each.folder / "weights.safetensors") for each in (finished, made))
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    tables = [each.folder / "exits" / "test.safetensors" for each in (finished, made)]
    one, two = (ExitTable.load(path) for path in tables)
    np.testing.assert_array_equal(one.logits, two.logits)
    assert not (finished.folder / "checkpoint").exists()


def test_the_same_again_is_there_already_and_others_have_their_own_folder(
    run: Run, made: Compressed, here: Here
) -> None:
    notes = Notes()
    written = (made.folder / "weights.safetensors").stat().st_mtime_ns
    api.compress(run, progress=notes, **CHOSEN)
    assert "is there already" in notes.said[-1]
    assert (made.folder / "weights.safetensors").stat().st_mtime_ns == written
    flags = [
        part for name, value in CHOSEN.items() for part in (f"--{name.replace('_', '-')}", value)
    ]
    document = json.loads(here("compress", run.folder, *flags, "--json").out)
    assert document["scores"] == made.scores.model_dump(mode="json")
    assert f"{100 * made.scores.test.accuracy[-1]:.2f}" in here("compress", run.folder, *flags).out
    with pytest.raises(OptionError, match=r"epochs \(2 there, 3 now\).*--restart"):
        api.compress(run, **{**CHOSEN, "epochs": 3})
    short: dict[str, Any] = {"layer": 2, "max_rows": 40, "epochs": 1}
    channel = api.compress(
        run, kind="bottlenet-pp", width=3, channel="erasure", erasure_rate=0.2, draws=3, **short
    )
    packed = api.compress(run, kind="bottlenet", width=3, pool=2, levels=8, **short)
    names = ["bottlefit-l2w4", "bottlenet-l2w3p2q8", "bottlenet-pp-l2w3-era20"]
    assert [each.config.name for each in compressed_in(run)] == names
    assert len(channel.scores.test.draws) == 3 and not packed.scores.test.draws
    assert channel.scores.test.draws[0] == channel.scores.test.accuracy[-1]
    sizes = packed.saved(run, "test").table.payload_bytes
    assert 0 < sizes.mean() < channel.saved(run, "test").table.payload_bytes.mean()
    table = api.evaluate(run, every_policy=True)
    rows = {row.policy: row for row in table.rows}
    assert set(names) <= set(rows)
    for name in names:
        row = rows[name]
        # half of the four layers on the device, one transfer, the other half
        assert row.cost == 1.5 * 2 + 3 + 2
        assert row.shipped_bytes is not None and row.shipped_bytes > 0
        assert row.random_at_cost is not None
        assert row.random_at_cost >= rows["all-cloud"].accuracy - 1e-9
    assert rows["bottlefit-l2w4"].accuracy == pytest.approx(made.scores.test.accuracy[-1])


def test_an_evaluation_of_other_data_goes_through_the_bottleneck(
    run: Run, made: Compressed, tmp_path: Path
) -> None:
    texts = split_texts(run, "test")
    file = write_rows(tmp_path / "rows.jsonl", texts)
    table = api.evaluate(run, data=file, policies=["bottlefit"])
    assert table.n == len(texts)
    rows = {row.policy: row for row in table.rows}
    assert rows["bottlefit-l2w4"].accuracy == pytest.approx(made.scores.test.accuracy[-1], abs=0.05)
    assert {"all-cloud", "majority"} <= set(rows)


def test_without_a_bottleneck_the_command_is_named(tiny_run: Run) -> None:
    table = api.evaluate(tiny_run, policies=["random", "bottlenet-pp"])
    missing = next(each for each in table.not_run if each.policy == "bottlenet-pp")
    assert missing.needs == "a learned bottleneck"
    first, second = missing.command.split(" && ")
    words = shlex.split(first)
    assert words == [
        "dimec", "compress", str(tiny_run.folder), "--kind", "bottlenet-pp", "--layer", "1",
        "--width", "16",
    ]  # fmt: skip
    assert shlex.split(second) == ["dimec", "evaluate", str(tiny_run.folder), "--all"]
    with pytest.raises(OptionError, match="bottlefit needs a learned bottleneck"):
        api.evaluate(tiny_run, policies=["bottlefit"])
    with pytest.raises(OptionError, match=r"needs a learned bottleneck.*`dimec compress"):
        api.export(tiny_run, out="nowhere", policy="bottlefit")


def refused(error: type[InputError], message: str, run: Run, **changes: Any) -> None:
    """Expect one sentence."""
    with pytest.raises(error, match=message) as caught:
        api.compress(run, **{**CHOSEN, **changes})
    assert "\n" not in str(caught.value)


def test_what_cannot_be_is_said_in_a_sentence(tiny_run: Run) -> None:
    refused(OptionError, r"--layer 4: .*\[1, 2, 3\]", tiny_run, layer=4)
    refused(OptionError, "--width 64 is no reduction", tiny_run, width=64)
    refused(OptionError, "--snr-db 3.0 means nothing for bottlefit", tiny_run, snr_db=3.0)
    refused(OptionError, "--kind", tiny_run, kind="bottle")
    assert not (tiny_run.folder / "compressed").exists()


@pytest.mark.parametrize("file", ["config.json", "exits/test.safetensors"])
def test_a_damaged_folder_is_named(copied: Run, file: str) -> None:
    path = copied.folder / "compressed" / "bottlefit-l2w4" / file
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RunError, match=r"bottlefit-l2w4.*--restart") as caught:
        api.evaluate(copied, policies=["random", "bottlefit"])
    assert "\n" not in str(caught.value)


def test_damaged_weights_and_a_table_of_another_run_are_named(copied: Run) -> None:
    made = Compressed.open(copied.folder / "compressed" / "bottlefit-l2w4")
    weights = made.folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(RunError, match=r"weights.safetensors is damaged.*--restart"):
        load_split(copied, made)
    rows = np.arange(len(copied.test) - 1)
    made.saved(copied, "test").table.take(rows).save(made.folder / "exits" / "test.safetensors")
    with pytest.raises(RunError, match="not about the rows and exits"):
        made.saved(copied, "test")


def test_without_kept_texts_the_data_are_read_again(tiny_run: Run, tmp_path: Path) -> None:
    shutil.copytree(tiny_run.folder, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    (run.folder / "texts.parquet").unlink()
    short = {**CHOSEN, "max_rows": 20, "epochs": 1}
    found = api.compress(run, **short)
    assert found.config.n_train == 20
    np.testing.assert_array_equal(found.saved(run, "test").table.row_ids, run.test.row_ids)
    assert (
        load_dataset("reviews").fingerprint != run.config.data_fingerprint
    )  # --max-rows drew some
    document = json.loads((run.folder / "config.json").read_text())
    document["data_fingerprint"] = "0" * 64
    (run.folder / "config.json").write_text(json.dumps(document))
    refused(OptionError, "has changed since its fit", Run.open(run.folder), width=5)
    document["options"]["data"] = "gone.csv"
    (run.folder / "config.json").write_text(json.dumps(document))
    refused(OptionError, "keeps no texts .* cannot be read", Run.open(run.folder), width=5)
