"""Folders that are whole or not there, and what the next writer does about those that a kill left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dimec.core.files import replacing

WRITER = """
import os, shutil, signal, sys, time
from pathlib import Path
from dimec.core.files import replacing

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

target, when = Path(sys.argv[1]), sys.argv[2]
rename = Path.rename
if when == "between the renames":
    Path.rename = lambda path, to: (rename(path, to), die())
if when == "removing":
    def rmtree(path, **_):
        next(path.iterdir()).unlink()
        die()
    shutil.rmtree = rmtree
with replacing(target) as folder:
    (folder / "a").write_text("new")
    (folder / "b").write_text("new")
    if when == "writing":
        print("ready", flush=True)
        time.sleep(600)
"""


def started(target: Path, when: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(target), when], stdout=subprocess.PIPE, text=True
    )


def kill(target: Path, when: str) -> list[Path]:
    """Let a process be killed while it replaces a folder; return what it left beside it."""
    process = started(target, when)
    with process:
        assert process.stdout is not None
        if when == "writing":
            assert process.stdout.readline() == "ready\n"
            process.kill()
    assert process.returncode == -signal.SIGKILL
    left = sorted(path for path in target.parent.iterdir() if path != target)
    assert left
    assert all(path.name.startswith(f".{target.name}.{process.pid}-") for path in left)
    return left


def write(target: Path, text: str) -> None:
    with replacing(target) as folder:
        for name in ("a", "b"):
            (folder / name).write_text(text)


def read(target: Path) -> list[str]:
    return [path.read_text() for path in sorted(target.iterdir())]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle.v1"
    write(folder, "old")
    assert list(tmp_path.iterdir()) == [folder]
    return folder


def test_what_a_killed_writer_left_is_cleared_away(target: Path) -> None:
    (partial,) = kill(target, "writing")
    assert partial.suffix == ".partial"
    assert read(target) == ["old", "old"]
    write(target, "third")
    assert list(target.parent.iterdir()) == [target]
    assert read(target) == ["third", "third"]


def test_a_writer_that_lives_is_left_alone(target: Path) -> None:
    process = started(target, "writing")
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        write(target, "third")
        (partial,) = (path for path in target.parent.iterdir() if path != target)
        assert read(partial) == ["new", "new"]
        process.kill()
    with replacing(target) as outer:
        write(target, "inner")
        assert outer.is_dir()
    assert list(target.parent.iterdir()) == [target]


def test_a_folder_that_had_stepped_aside_is_put_back(target: Path) -> None:
    old, partial = kill(target, "between the renames")
    assert (old.suffix, partial.suffix) == (".old", ".partial")
    assert not target.exists()
    assert read(old) == ["old", "old"]
    with pytest.raises(KeyboardInterrupt), replacing(target):
        assert read(target) == ["old", "old"]
        raise KeyboardInterrupt
    assert list(target.parent.iterdir()) == [target]
    assert read(target) == ["old", "old"]


def test_a_folder_that_has_taken_the_place_since_is_kept(target: Path) -> None:
    kill(target, "between the renames")
    target.mkdir()
    (target / "a").write_text("mine")
    with pytest.raises(KeyboardInterrupt), replacing(target):
        raise KeyboardInterrupt
    assert read(target) == ["mine"]
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("moved", [False, True])
def test_one_that_was_being_removed_never_comes_back(target: Path, moved: bool) -> None:
    (old,) = kill(target, "removing")
    assert old.suffix == ".old"
    assert read(old) == ["old"]  # half of it
    assert read(target) == ["new", "new"]
    if moved:
        target.rename(target.with_name("elsewhere"))
    with pytest.raises(KeyboardInterrupt), replacing(target):
        assert target.exists() is not moved
        raise KeyboardInterrupt
    assert not old.exists()


def test_a_replacement_that_fails_leaves_the_folder_there(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def fails(path: Path, to: Path) -> Path:
        if path.suffix == ".partial":
            raise OSError("the disk is gone")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="the disk is gone"):
        write(target, "new")
    assert list(target.parent.iterdir()) == [target]
    assert read(target) == ["old", "old"]


def test_nothing_else_is_touched(target: Path) -> None:
    (partial,) = kill(target, "writing")
    stem = partial.stem  # of a process that is gone
    others = [
        f"{stem}.backup",
        stem,
        f".{target.name}.notes.partial",
        f".{target.name}.{os.getppid()}-abcdefgh.partial",  # a process that lives
        stem.replace("v1", "v12") + ".partial",
        stem.replace("v1", "v1.2") + ".old",
        stem.replace(".v1", "xv1") + ".partial",
        stem.removeprefix(".") + ".partial",
    ]
    for name in others:
        (target.parent / name).mkdir()
    file = target.parent / (stem[:-8] + "abcdefgh.partial")
    file.write_text("no folder")
    link = target.parent / (stem[:-8] + "abcdefgi.partial")
    link.symlink_to(target.parent / others[0])
    # Of a process with this very id, as it comes again in a container.
    (target.parent / f".{target.name}.{os.getpid()}-abcdefgh.partial").mkdir()
    write(target, "third")
    left = {path.name for path in target.parent.iterdir()}
    assert left == {*others, file.name, link.name, target.name}
