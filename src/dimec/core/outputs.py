"""Where a command may write: never over what it reads, one process at a time, and removing only what dimec wrote."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path, PurePath

from dimec.core.errors import OptionError, OutputError
from dimec.core.files import lock

Inputs = Mapping[str, str | Path | None]
"""What a command reads, by the option that names it; a name on the hub, say, is passed over."""

_OF_FILES = {
    *(".csv", ".tsv", ".txt", ".json", ".jsonl", ".parquet", ".md", ".rst", ".html", ".pdf"),
    *(".onnx", ".safetensors", ".py", ".toml", ".yaml", ".yml", ".zip", ".gz", ".tar"),
}
_OF_NOTES = {"", ".md", ".rst", ".txt"}


def check_output_folder(out: str | Path, *, inputs: Inputs | None = None) -> None:
    """Refuse a folder to write to, before any work, that is a file or holds what the command reads.

    A name that is new, but is a file's by its looks, is taken for a mistake.

    Raises:
        OptionError: If it is one.
        OutputError: If it may not be written to.
    """
    place = _real(out)
    if place.exists() and not place.is_dir():
        raise OptionError(f"--out {out} is a file: give a folder")
    _check_writable(out, place)
    read = _read(inputs)
    for option, given, path in read:
        if path.exists() and _lies_in(path, place):
            raise OptionError(
                f"{option} {given} lies in --out {out}, where this command writes and replaces: give another folder"
            )
    if place.exists() or not place.parent.is_dir():
        return
    if place.suffix.lower() in _OF_FILES:
        raise OptionError(
            f"--out {out} is to be a folder and has the name of a file: leave {place.suffix} out"
        )
    own = {path for _, _, path in read}
    for other in place.parent.iterdir():
        alike = other.name.lower() == place.name.lower() or (
            other.stem.lower() == place.name.lower() and other.suffix.lower() in _OF_NOTES
        )
        if alike and other.is_file() and _real(other) not in own:
            raise OptionError(
                f"--out {out} is to be a folder, and the file {other.name} stands there: give another name"
            )


def check_replaceable(
    out: str | Path, what: str, is_one: Callable[[Path], bool], *, inputs: Inputs | None = None
) -> None:
    """Refuse a folder to replace by another one that `check_output_folder` refuses, or that cannot give its place.

    Args:
        what: What it may hold, and nothing else.
        is_one: Tells whether it does.
        inputs: What the command reads.

    Raises:
        OptionError: If something is mounted there, or it holds something else.
        OutputError: If it, or the folder above it, may not be written to.
    """
    check_output_folder(out, inputs=inputs)
    place = _real(out)
    if os.path.ismount(place) or str(place) in _mounts():
        raise OptionError(
            f"--out {out} is a mount point, which cannot be replaced in one step: give a folder in it, such as "
            f"{place / 'bundle'}"
        )
    _check_writable(out, place.parent)
    if place.exists() and any(place.iterdir()) and not is_one(place):
        raise OptionError(
            f"--out {out} holds something else than a {what}: give an empty or a new folder"
        )


def check_output_file(
    out: str | Path,
    *,
    option: str = "--out",
    inputs: Inputs | None = None,
    own: Collection[str] = (),
    beside: Collection[str] = (),
) -> None:
    """Refuse a file to write, before any work, that is a folder or what the command reads, through links too.

    Args:
        inputs: What is read. A file within a folder that is read is refused as well, unless it is new.
        own: Names, as globs, that an earlier output has, which may be replaced; without any every file may be.
        beside: What the command appends to the name for files of its own.

    Raises:
        OptionError: If it is one.
        OutputError: If it may not be written.
    """
    place = _real(out)
    if place.is_dir():
        raise OptionError(f"{option} {out} is a folder: give a file")
    if place.exists() and not place.is_file():
        raise OptionError(f"{option} {out} is no regular file: give one, or a new name")
    if own and place.exists() and not any(fnmatchcase(place.name, each) for each in own):
        raise OptionError(
            f"{option} {out} is there and was not written by this command, which writes {', '.join(own)}: give "
            "another file"
        )
    _check_writable(out, place, option=option)
    written = [place.with_name(place.name + end) for end in ("", ".partial", *beside)]
    for name, given, path in _read(inputs):
        within = path.is_dir() and place.exists() and _lies_in(place, path)
        if within or any(_same(path, each) for each in written):
            what = f"a file of {name}" if within else name
            raise OptionError(
                f"{option} {out} would be written over {what} {given}, which is read: give another file"
            )


@contextmanager
def holding(folder: str | Path, *, doing: str) -> Iterator[None]:
    """Keep other processes out of a folder until the block or the process ends.

    A missing folder is made, and removed again if it stays empty. A file system without locks keeps nobody out.

    Raises:
        OptionError: If another process is at it.
        OutputError: If the folder cannot be made.
    """
    place = _real(folder)
    made = [each for each in (place, *place.parents) if not each.exists()]
    descriptor = _locked(place)
    if descriptor is None:
        raise OptionError(
            f"another process is {doing} {folder}: wait until it ends, or give another folder"
        )
    try:
        yield
    finally:
        for each in made:  # it fails for the first that is in use
            with suppress(OSError):
                each.rmdir()
        if descriptor >= 0:
            os.close(descriptor)


def _locked(place: Path) -> int | None:
    """Return an open, locked folder; None where another process holds it, -1 where folders cannot be opened."""
    while True:
        try:
            place.mkdir(parents=True, exist_ok=True)
            descriptor = -1 if os.name == "nt" else os.open(place, os.O_RDONLY)
        except FileNotFoundError:
            continue  # its last holder has just removed it
        except OSError as exc:
            raise OutputError(
                f"--out {place} cannot be made ({exc.strerror}): give another folder"
            ) from exc
        locked = None if descriptor < 0 else lock(descriptor)
        if locked is None:
            return descriptor
        # Its last holder may have removed it in between; another folder of that name is not the one that is locked.
        with suppress(FileNotFoundError):
            if locked and os.path.samestat(os.fstat(descriptor), place.stat()):
                return descriptor
        os.close(descriptor)
        if not locked:
            return None


def remove_written(
    folder: Path, patterns: Collection[str], *, except_for: Collection[str] = ()
) -> None:
    """Remove the files of a folder that match, and folders in it that are then empty; what others put there stays.

    Args:
        folder: The folder, which stays; nothing happens where it is missing.
        patterns: Globs of paths in the folder; ``*`` stands for a part of one name. A link in place of a folder that
            they go through is removed, what it leads to is not.

    Raises:
        OutputError: If something cannot be removed.
    """
    own = [each for each in _files(folder) if _is_own(folder, each, patterns)]
    own = [each for each in own if each.as_posix() not in except_for]
    above = {parent for each in own for parent in each.parents if parent.parts}
    try:
        for each in own:
            (folder / each).unlink(missing_ok=True)
        for parent in sorted(above, key=lambda path: -len(path.parts)):
            try:
                (folder / parent).rmdir()
            except OSError as exc:
                if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                    raise
    except OSError as exc:
        raise OutputError(
            f"{exc.filename} cannot be removed ({exc.strerror}): see to the rights, or give another folder"
        ) from exc


def others_in(folder: Path, patterns: Collection[str]) -> list[Path]:
    """Return the files of a folder, as paths in it, that match none of the patterns of `remove_written`."""
    return [each for each in _files(folder) if not _is_own(folder, each, patterns)]


def keep_others(folder: Path, patterns: Collection[str], *, into: Path) -> None:
    """Copy what others put into a folder to the one that is to take its place; what is there already stays."""
    for each in others_in(folder, patterns):
        target = into / each
        if not os.path.lexists(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(folder / each, target, follow_symlinks=False)


def _files(folder: Path) -> Iterator[Path]:
    """Give the files of a folder, and links to folders, which are not followed, as paths in it."""

    def refuse(exc: OSError) -> None:
        if not isinstance(exc, FileNotFoundError):
            raise OutputError(f"{exc.filename} cannot be looked into ({exc.strerror})") from exc

    for place, folders, files in os.walk(os.path.realpath(folder), onerror=refuse):
        here = Path(place)
        for name in (*files, *(each for each in folders if (here / each).is_symlink())):
            yield (here / name).relative_to(os.path.realpath(folder))


def _is_own(folder: Path, path: PurePath, patterns: Collection[str]) -> bool:
    parts = (*path.parts[:-1], path.name.removesuffix(".partial"))
    leads_away = (folder / path).is_symlink() and (folder / path).is_dir()
    for pattern in patterns:
        wanted = PurePath(pattern).parts
        reaches = len(parts) == len(wanted) or (leads_away and len(parts) < len(wanted))
        if reaches and all(map(fnmatchcase, parts, wanted)):
            return True
    return False


def _real(path: str | Path) -> Path:
    return Path(os.path.realpath(path))


def _read(inputs: Inputs | None) -> list[tuple[str, str | Path, Path]]:
    """Give what is read: the option, its value, and where that leads."""
    given = (inputs or {}).items()
    return [(name, value, _real(value)) for name, value in given if value is not None]


def _same(one: Path, other: Path) -> bool:
    """Say whether two paths are one file, by its name or by another of its names."""
    if one == other:
        return True
    try:
        return one.samefile(other)
    except OSError:
        return False


def _lies_in(path: Path, folder: Path) -> bool:
    return any(_same(each, folder) for each in (path, *path.parents))


def _check_writable(out: str | Path, place: Path, *, option: str = "--out") -> None:
    """Refuse a place below a file, or one that may not be written to."""
    there = next(each for each in (place, *place.parents) if each.exists())
    if there != place and not there.is_dir():
        raise OptionError(f"{option} {out} lies below {there}, which is a file: give another place")
    if not os.access(there, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        raise OutputError(
            f"{option} {out} may not be written by this user, {there} being closed to it: see to the rights, or give "
            "another place"
        )


def _mounts() -> set[str]:
    """Return where this system mounts something, which a folder bound to another one does not show otherwise."""
    try:
        text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    places = (line.split(" ")[4] for line in text.splitlines() if line.count(" ") > 4)
    return {place.replace("\\040", " ").replace("\\011", "\t") for place in places}
