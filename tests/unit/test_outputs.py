"""Where commands may write: what is read, linked, mounted, held by others or not dimec's own is left alone."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models

from dimec.core.errors import OptionError, OutputError, RunError
from dimec.core.files import check_readable, replacing, write_atomically, write_json
from dimec.core.outputs import (
    check_output_file,
    check_output_folder,
    check_replaceable,
    holding,
    keep_others,
    remove_written,
)

Test = TypeVar("Test", bound=Callable[..., object])


def only_where(applies: bool) -> Callable[[Test], Test | None]:
    """Make a test only where it applies."""
    return lambda test: test if applies else None


def _may_mount() -> bool:
    with tempfile.TemporaryDirectory() as place:
        command = ["mount", "-t", "tmpfs", "tmpfs", place]
        if not ROOT or subprocess.run(command, check=False, capture_output=True).returncode:
            return False
        subprocess.run(["umount", place], check=True)
    return True


ROOT = os.geteuid() == 0
as_root = only_where(ROOT)
"""Another user is there for root alone."""
as_mounter = only_where(_may_mount())
"""A container's root may mount nothing."""

BIG = {"a": np.random.default_rng(0).normal(size=50_000)}


def _words(path: Path) -> None:
    vocabulary = {f"word{place}": place for place in range(20_000)}
    Tokenizer(models.WordLevel(vocabulary, unk_token="word0")).save(str(path))


WRITERS: dict[str, Callable[[Path], object]] = {
    "safetensors": lambda path: save_file(BIG, path),
    "parquet": lambda path: pq.write_table(pa.table(BIG), path),
    "tokenizer": _words,
    "bytes": lambda path: path.write_bytes(bytes(400_000)),
    "text": lambda path: path.write_text("x" * 400_000),
}


@contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def files_end_at(n_bytes: int) -> Iterator[None]:
    """Let no file of this process grow further, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """Give a folder that a small disk is mounted on."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(("mask", "rights"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_every_file_has_the_rights_of_the_umask(
    tmp_path: Path, kind: str, mask: int, rights: int
) -> None:
    with umask(mask):
        write_atomically(tmp_path / "alone", WRITERS[kind])
        with replacing(tmp_path / "folder") as partial:
            WRITERS[kind](partial / "within")
    for path in (tmp_path / "alone", tmp_path / "folder" / "within"):
        assert path.stat().st_mode & 0o777 == rights
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~mask


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_that_cannot_grow_is_an_error_of_ours_and_leaves_nothing(
    tmp_path: Path, kind: str
) -> None:
    (tmp_path / "alone").write_text("before")
    with files_end_at(50_000):
        with pytest.raises(OutputError, match="alone"):
            write_atomically(tmp_path / "alone", WRITERS[kind])
        with pytest.raises(OutputError, match="folder"), replacing(tmp_path / "folder") as partial:
            WRITERS[kind](partial / "within")
    assert [path.name for path in tmp_path.iterdir()] == ["alone"]
    assert (tmp_path / "alone").read_text() == "before"


def test_a_full_disk_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="alone"):
        write_atomically(tmp_path / "alone", lambda _: Path("/dev/full").write_bytes(b"x"))


def test_an_error_that_is_no_disk_s_stays_what_it_is(tmp_path: Path) -> None:
    def fails(path: Path) -> None:
        raise ValueError("nothing to do with it")

    with pytest.raises(ValueError, match="nothing to do"):
        write_atomically(tmp_path / "alone", fails)
    assert list(tmp_path.iterdir()) == []


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with replacing(tmp_path / "link") as partial:
        (partial / "new").write_text("new")
    (tmp_path / "file-link").symlink_to(tmp_path / "file")
    write_json(tmp_path / "file-link", [])
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "new").read_text() == "new"
    assert (tmp_path / "file-link").is_symlink()
    assert (tmp_path / "file").read_text() == "[]\n"


@pytest.mark.parametrize("end", ["", ".unfinished", ".partial"])
@pytest.mark.parametrize("by", ["itself", "symbolic link", "hard link", "linked folder"])
def test_a_file_that_is_read_is_not_written(tmp_path: Path, by: str, end: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    data = folder / f"x.jsonl{end}"
    data.write_text("{}")
    out = folder / "x.jsonl"
    if by == "symbolic link":
        (tmp_path / f"x.jsonl{end}").symlink_to(data)
        out = tmp_path / "x.jsonl" if not end else out
    elif by == "hard link":
        (tmp_path / f"x.jsonl{end}").hardlink_to(data)
        out = tmp_path / "x.jsonl"
    elif by == "linked folder":
        (tmp_path / "way").symlink_to(folder)
        out = tmp_path / "way" / "x.jsonl"
    with pytest.raises(OptionError, match="--file"):
        check_output_file(out, inputs={"--file": data}, beside=(".unfinished",))
    check_output_file(tmp_path / "y.jsonl", inputs={"--file": data}, beside=(".unfinished",))


def test_only_what_a_command_wrote_before_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "in" / "mobile").mkdir(parents=True)
    (tmp_path / "in" / "mobile" / "manifest.json").write_text("{}")
    (tmp_path / "README.md").write_text("mine")
    (tmp_path / "page.html").write_text("old")
    for out, own in (
        (tmp_path / "in" / "mobile" / "manifest.json", ("*.json",)),
        (tmp_path / "README.md", ("*.html",)),
        (tmp_path / "in", ()),
        (tmp_path / "README.md" / "below", ()),
        (Path("/dev/full"), ()),
    ):
        with pytest.raises(OptionError, match="--out"):
            check_output_file(out, inputs={"BUNDLE": tmp_path / "in"}, own=own)
    check_output_file(tmp_path / "page.html", own=("*.html",))


def test_a_folder_that_holds_what_is_read_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "deep").mkdir(parents=True)
    (out / "deep" / "data.csv").write_text("text,label\n")
    (tmp_path / "link").symlink_to(out)
    (tmp_path / "data.csv").symlink_to(out / "deep" / "data.csv")
    for data in (out, out / "deep", out / "deep" / "data.csv", tmp_path / "data.csv"):
        for place in (out, tmp_path / "link"):
            with pytest.raises(OptionError, match="--data"):
                check_output_folder(place, inputs={"--data": str(data)})
    check_output_folder(out, inputs={"--data": str(tmp_path), "--backbone": "minilm"})


def test_a_folder_with_a_file_s_name_is_refused(tmp_path: Path) -> None:
    for name in ("README", "notes.md", "tickets.csv"):
        (tmp_path / name).write_text("mine")
    for name in ("README", "readme", "README/bundle", "notes", "Notes", "x.onnx", "new.html"):
        with pytest.raises(OptionError, match="--out"):
            check_output_folder(tmp_path / name)
    check_output_folder("~no user has this name/out")
    for name in ("tickets", "bundle.v1", "other"):  # a run may be called as its data are
        check_output_folder(tmp_path / name)
    assert len(list(tmp_path.iterdir())) == 3


@as_mounter
def test_a_mount_point_is_refused_before_the_work(mounted: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--out"):
        check_replaceable(mounted, "bundle", Path.is_dir)
    (tmp_path / "link").symlink_to(mounted)
    with pytest.raises(OptionError, match="--out"):
        check_replaceable(tmp_path / "link", "bundle", Path.is_dir)
    check_replaceable(mounted / "bundle", "bundle", Path.is_dir)


@as_mounter
def test_a_mount_of_the_same_disk_is_refused_too(tmp_path: Path) -> None:
    place = tmp_path / "a place"
    (tmp_path / "other").mkdir()
    place.mkdir()
    subprocess.run(["mount", "--bind", str(tmp_path / "other"), str(place)], check=True)
    try:
        with pytest.raises(OptionError, match="--out"):
            check_replaceable(place, "bundle", Path.is_dir)
    finally:
        subprocess.run(["umount", str(place)], check=True)


HOLDER = """
import sys, time
from dimec.core.outputs import holding
with holding(sys.argv[1], doing="fitting"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_one_process_holds_a_folder_until_it_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        (tmp_path / "link").symlink_to(folder)
        for place in (folder, tmp_path / "link"):
            with pytest.raises(OptionError, match="another process"), holding(place, doing="x"):
                pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    with holding(folder, doing="fitting"):
        (folder / "kept").write_text("")
    assert folder.is_dir()


def test_a_folder_that_nothing_came_of_goes_again(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bad"), holding(tmp_path / "a" / "b", doing="fitting"):
        raise ValueError("bad")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with holding(tmp_path / "mine", doing="fitting"):
        pass
    assert (tmp_path / "mine").is_dir()


OWN = ("config.json", "exits/*.safetensors", "checkpoint/epoch-*/state.json")


def test_only_what_matches_is_removed(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    gone = ("config.json", "config.json.partial", "checkpoint/epoch-1/state.json")
    stay = ("notes.txt", "exits.csv", "deep/config.json", "checkpoint/epoch-1/mine")
    for name in (*gone, *stay):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    elsewhere.mkdir()
    (elsewhere / "test.safetensors").write_text("")
    (folder / "exits").symlink_to(elsewhere)
    remove_written(folder, OWN)
    left = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert left == set(stay)
    assert not (folder / "exits").exists()
    assert (elsewhere / "test.safetensors").exists()
    remove_written(tmp_path / "missing", OWN)


def test_what_others_put_there_is_carried_over(tmp_path: Path) -> None:
    for name in ("config.json", "mine/notes.txt"):
        (tmp_path / "old" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "old" / name).write_text("old")
    (tmp_path / "new").mkdir()
    keep_others(tmp_path / "old", OWN, into=tmp_path / "new")
    left = [path.relative_to(tmp_path / "new").as_posix() for path in (tmp_path / "new").rglob("*")]
    assert sorted(left) == ["mine", "mine/notes.txt"]


@contextmanager
def another_user() -> Iterator[None]:
    """Be somebody with no rights but those that everybody has."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


@pytest.fixture
def closed() -> Iterator[Path]:
    """Give a folder that everybody may look into and only its owner write to; pytest's own nobody else may see."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        yield Path(place)


@as_root
def test_what_may_not_be_removed_written_or_read_is_an_error(closed: Path) -> None:
    folder = closed
    (folder / "config.json").write_text("{}")
    (folder / "config.json").chmod(0o600)
    with another_user():
        with pytest.raises(OutputError, match=r"config\.json"):
            remove_written(folder, OWN)
        with pytest.raises(OutputError, match="new"):
            write_json(folder / "new", {})
        with pytest.raises(OutputError, match="--out"):
            check_output_folder(folder / "new")
        with pytest.raises(RunError, match=r"config\.json"):
            check_readable(folder / "config.json", fault=RunError)
        check_readable(folder / "missing", fault=RunError)
    assert (folder / "config.json").exists()
