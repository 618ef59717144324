"""What a fit, a search and an export do to the folders they are given, and who can read what they leave."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.commands import Here
from tests.unit.test_outputs import another_user, as_root, files_end_at

from dimec import api
from dimec.bundle import Bundle, load_bundle
from dimec.core.errors import (
    BundleError,
    DataError,
    InputError,
    MissingExtraError,
    OptionError,
    OutputError,
    RunError,
)
from dimec.core.outputs import holding
from dimec.policies import POLICIES, load_policies
from dimec.runs.run import FitOptions, Run
from dimec.runtime.device.device import Device
from dimec.training import search
from dimec.training.model import load_model
from dimec.training.texts import split_texts


def options(backbone: Path, **changes: Any) -> dict[str, Any]:
    chosen = {"pooling": "mean", "max_rows": 60, "epochs": 1, "batch_size": 32}
    return {"backbone": str(backbone), **chosen, **changes}


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_restart_removes_what_the_fit_wrote_and_follows_links(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    place, link = tmp_path / "place", tmp_path / "link"
    place.mkdir()
    link.symlink_to(place)
    run = api.fit("reviews", out=link, **options(tiny_backbone))
    first = (place / "model" / "model.safetensors").read_bytes()
    assert link.is_symlink()
    assert run.config.options.seed == 0
    mine = [place / "notes.txt", place / "exits" / "mine.csv", place / "evaluation" / "mine.txt"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    (place / "evaluation" / "test.json").write_text("{}")
    data = place / "mine.csv"
    data.write_text("text,label\n" + "".join(f"text {row},{row % 2}\n" for row in range(60)))
    for out in (place, link):
        with pytest.raises(OptionError, match="--data"):
            api.fit("mine", out=out, restart=True, data=str(data))
        with pytest.raises(OptionError, match="--backbone"):
            api.fit("mine", out=out, restart=True, backbone=str(place / "model"))
    with pytest.raises(DataError):
        api.fit("mine", out=link, restart=True, data=str(tmp_path / "nowhere.csv"))
    with holding(place, doing="fitting"):
        for restart in (False, True):
            with pytest.raises(OptionError, match="another process"):
                api.fit("reviews", out=link, restart=restart, **options(tiny_backbone))
    (place / "model" / "mine.txt").write_text("mine")
    with pytest.raises(OptionError, match=r"mine\.txt"):
        api.fit("reviews", out=link, restart=True, **options(tiny_backbone, seed=9))
    (place / "model" / "mine.txt").unlink()
    assert Run.open(place).config.options.seed == 0  # nothing was touched so far
    again = api.fit("reviews", out=link, restart=True, **options(tiny_backbone, seed=9))
    assert again.config.options.seed == 9
    assert link.is_symlink()
    assert Run.open(place).config == again.config
    assert (place / "model" / "model.safetensors").read_bytes() != first
    assert all(path.read_text() == "mine" for path in mine)
    assert data.exists()
    assert not (place / "evaluation" / "test.json").exists()


def test_a_full_disk_ends_a_fit_with_a_sentence_and_it_goes_on_later(
    tiny_backbone: Path, tmp_path: Path, here: Here
) -> None:
    folder = tmp_path / "run"
    chosen = [
        word
        for name, value in options(tiny_backbone).items()
        for word in ("--" + name.replace("_", "-"), str(value))
    ]
    with files_end_at(1_000_000):
        said = here("fit", "reviews", "--out", folder, *chosen, code=2).err
    assert "epoch-1 cannot be written" in " ".join(said.split())
    assert {path.relative_to(folder).as_posix() for path in files_of(folder)} == {
        "config.json",
        "metrics.jsonl",
    }
    assert Run.open(api.fit("reviews", out=folder, **options(tiny_backbone)).folder).test


@pytest.mark.parametrize("limit", [30_000, 300_000, 2_000_000])
def test_a_full_disk_leaves_no_half_bundle(tiny_run: Run, tmp_path: Path, limit: int) -> None:
    with files_end_at(limit), pytest.raises(OutputError, match="bundle"):
        api.export(tiny_run, out=tmp_path / "bundle", policy="dimec-dc-fixed")
    assert list(tmp_path.iterdir()) == []


def test_a_search_is_held_and_removes_its_own(tiny_backbone: Path, tmp_path: Path) -> None:
    chosen = FitOptions(task="reviews", **options(tiny_backbone))
    folder = tmp_path / "searched"

    def found(seed: int) -> Run:
        point = chosen.model_copy(update={"seed": seed})
        found = search(
            point, out=folder, batch_sizes=(32,), learning_rates=(1e-5,), restart=seed > 0
        )
        return found.run

    found(0)
    for name in ("notes.txt", "search/notes.txt"):
        (folder / name).write_text("mine")
    with holding(folder, doing="fitting"), pytest.raises(OptionError, match="another process"):
        found(1)
    (folder / "own.csv").write_text("text,label\nfine,0\n")
    own = chosen.model_copy(update={"validation": str(folder / "own.csv")})
    with pytest.raises(OptionError, match="--validation"):
        search(own, out=folder, restart=True)
    assert found(1).config.options.seed == 1
    assert (folder / "notes.txt").exists()
    assert (folder / "search" / "notes.txt").exists()


def test_an_export_leaves_links_and_other_files(
    tiny_run: Run, tiny_export: Bundle, tmp_path: Path
) -> None:
    place, link = tmp_path / "place", tmp_path / "link"
    shutil.copytree(tiny_export.folder, place)
    link.symlink_to(place)
    for name in ("notes.txt", "mobile/notes.txt"):
        (place / name).write_text("mine")
    (place / "mobile" / "segment-9.onnx").write_text("of an earlier export")
    with holding(place, doing="exporting to"), pytest.raises(OptionError, match="another process"):
        api.export(tiny_run, out=link, policy="dimec-dc-fixed")
    api.export(tiny_run, out=link, policy="dimec-dc-fixed")
    assert link.is_symlink()
    assert load_bundle(place).mobile.manifest.policy == "dimec-dc-fixed"
    assert (place / "notes.txt").read_text() == (place / "mobile" / "notes.txt").read_text()
    assert not (place / "mobile" / "segment-9.onnx").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "place"]


def test_an_export_never_replaces_its_run(
    tiny_run: Run, tiny_export: Bundle, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_export.folder, bundle)
    shutil.copytree(tiny_run.folder, bundle / "run")
    with pytest.raises(OptionError, match="RUN"):
        api.export(bundle / "run", out=bundle)
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "FILE"):
        with pytest.raises(OptionError, match="--out"):
            api.export(tiny_run, out=out)
        with pytest.raises(OptionError, match="--out"):
            api.fit("reviews", out=out)
    assert (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "FILE").exists()


@pytest.mark.parametrize("through", ["itself", "link", "mark", "standard input"])
def test_classify_never_empties_its_input(
    tiny_bundle: Bundle, tmp_path: Path, through: str, here: Here
) -> None:
    texts = tmp_path / ("x.jsonl.unfinished" if through == "mark" else "x.jsonl")
    texts.write_text('{"text": "fine"}\n')
    out, source = tmp_path / "x.jsonl", ["--file", str(texts)]
    if through == "link":
        out = tmp_path / "link.jsonl"
        out.symlink_to(texts)
    kept = os.dup(0)
    try:
        if through == "standard input":
            source = ["-"]
            with texts.open() as file:
                os.dup2(file.fileno(), 0)
        classify = ("classify", tiny_bundle.folder, *source)
        assert "--out" in here(*classify, "--out", out, "--restart", code=2).err
        assert "--metrics-file" in here(*classify, "--metrics-file", texts, code=2).err
    finally:
        os.dup2(kept, 0)
        os.close(kept)
    manifest = tiny_bundle.folder / "mobile" / "manifest.json"
    before = manifest.read_bytes()
    here("classify", tiny_bundle.folder, "fine", "--out", manifest, "--restart", code=2)
    here("profile", tiny_bundle.folder, "--out", manifest, code=2)
    assert manifest.read_bytes() == before
    assert texts.read_text() == '{"text": "fine"}\n'


def test_a_report_says_what_is_missing_before_it_computes(
    tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(tiny_run.folder, folder)
    with pytest.raises(OptionError, match="--out"):
        api.report(folder, out=folder / "config.json")
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(MissingExtraError):
        api.report(folder)
    assert not (folder / "report").exists()


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("config.json", Run.open),
        ("model/exits.json", lambda folder: load_model(folder / "model")),
        ("router.json", lambda folder: load_policies(folder, POLICIES)),
    ],
)
def test_a_run_of_a_newer_version_asks_for_one(
    tiny_run: Run,
    tmp_path: Path,
    name: str,
    read: Any,
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(tiny_run.folder, folder)
    document = json.loads((folder / name).read_text())
    newer = {**document, "format": document.get("format", 1) + 1, "invented": {"later": True}}
    (folder / name).write_text(json.dumps(newer))
    with pytest.raises(RunError, match="install a newer dimec"):
        read(folder)


@contextmanager
def for_everybody(source: Path) -> Iterator[Path]:
    """Copy a folder with its rights to a place that everybody may go to; to pytest's own nobody else may."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        shutil.copytree(source, Path(place) / "copy")
        yield Path(place) / "copy"


def use_run(folder: Path) -> None:
    run = Run.open(folder)
    assert len(run.validation) and len(run.test)
    assert run.exit_zero.frame
    load_model(run.model_folder)
    split_texts(run, "validation")
    assert run.splits


def use_bundle(folder: Path) -> None:
    load_bundle(folder)
    with Device(folder) as device:
        assert len(list(device.classify(["fine"]))) == 1


@as_root
def test_another_user_can_use_a_run_and_a_bundle(tiny_run: Run, tiny_export: Bundle) -> None:
    for source, use in ((tiny_run.folder, use_run), (tiny_export.folder, use_bundle)):
        assert {path.stat().st_mode & 0o777 for path in files_of(source)} == {0o644}
        with for_everybody(source) as folder:
            use(folder)  # so that everything is imported
            with another_user():
                use(folder)


@as_root
def test_a_file_that_may_not_be_read_is_called_so(tiny_run: Run, tiny_export: Bundle) -> None:
    names = {
        tiny_run.folder: (
            *("config.json", "exits/test.safetensors", "exits/validation.safetensors"),
            *("exit-zero.safetensors", "model/model.safetensors", "model/exits.safetensors"),
            *("model/exits.json", "model/tokenizer.json", "model/config.json"),
            *("texts.parquet", "split.json"),
        ),
        tiny_export.folder: tuple(
            path.relative_to(tiny_export.folder).as_posix()
            for path in files_of(tiny_export.folder)
            if path.name != "export.json"  # a model card is made from it; no device reads it
        ),
    }
    kinds: list[tuple[Path, Any, type[InputError]]] = [
        (tiny_run.folder, use_run, RunError),
        (tiny_export.folder, use_bundle, BundleError),
    ]
    for source, use, fault in kinds:
        with for_everybody(source) as folder:
            use(folder)
            for name in names[source]:
                (folder / name).chmod(0o600)
                with another_user(), pytest.raises(fault, match="cannot be read") as caught:
                    use(folder)
                assert name in str(caught.value)
                assert "missing" not in str(caught.value)
                (folder / name).chmod(0o644)
            folder.chmod(0o700)
            with another_user(), pytest.raises(fault, match="cannot be read"):
                use(folder)
