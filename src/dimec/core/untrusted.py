"""Reading files that anyone may have written: whatever one holds ends in its values, or in one sentence.

Every loader reads its bytes here and works on them within `trusting_nothing`. Sizes, depth and the number of members
are bounded before anything is parsed, and nothing but a regular file is opened: a pipe would be waited for.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar, overload

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from dimec.core.errors import InputError, MissingExtraError, quoted

MAX_JSON_BYTES = 16 * 2**20
MAX_COUNT = 2**53
"""The largest count that every reader of JSON has exactly; no device learns from so many samples."""

_MAX_DEPTH = 64
_MAX_YAML_BYTES = 2**18
"""It is parsed in Python, some hundred kilobytes a second."""
# A validator collects every fault there is, at some 30 microseconds each.
_MAX_MEMBERS = 20_000
# A text without an end is one too: it would be sought again behind each of its quotes.
_STRUCTURE = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{}:]', re.DOTALL)
_STOPS = (KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError)

Value = TypeVar("Value")


class Record(BaseModel):
    """What a JSON file, or a part of one, may hold; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class _NewerError(Exception):
    """A file of a format that this version does not know."""


@contextmanager
def trusting_nothing(
    path: Path, fault: type[InputError], *, remedy: str, missing: str | None = None
) -> Iterator[None]:
    """Turn whatever goes wrong with a file into one ``fault`` that names it and says what to do.

    ``remedy`` is for a damaged file, ``missing`` for a missing one, by default the same. A panic of a library in Rust
    is caught too, which is no `Exception`. A ``fault`` that is raised within passes, as does a missing extra.
    """
    try:
        yield
    except _STOPS:
        raise
    except BaseException as exc:
        if isinstance(exc, fault | MissingExtraError):
            raise
        raise fault(_sentence(path, exc, remedy=remedy, missing=missing or remedy)) from exc


def _sentence(path: Path, exc: BaseException, *, remedy: str, missing: str) -> str:
    if isinstance(exc, _NewerError):
        return f"{path} {exc}: install a newer dimec"
    if isinstance(exc, FileNotFoundError | NotADirectoryError):
        return f"{path} is missing: {missing}"
    if isinstance(exc, OSError) and exc.strerror:
        return f"{path} cannot be read ({quoted(exc.strerror)}): check what it is and its rights"
    return f"{path} is damaged ({reason(exc)}): {remedy}"


def reason(exc: BaseException) -> str:
    """Say in a few words what an error is about; of several faults that a validator found, the first."""
    if isinstance(exc, ValidationError):
        first = exc.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        said = first["msg"].removeprefix("Value error, ")
        return f"{quoted(place)}: {quoted(said[:1].lower() + said[1:])}"
    if isinstance(exc, KeyError):
        return f"{quoted(str(exc))} is missing"
    lines = str(exc).strip().splitlines()
    return quoted(lines[0]) if lines else type(exc).__name__


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file, and wait for nothing else.

    Raises:
        OSError: If it is missing, unreadable, or a pipe, a device, a socket or a folder.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "it is no regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_bounded(path: Path, *, limit: int = MAX_JSON_BYTES) -> bytes:
    """Read a regular file of at most ``limit`` bytes.

    Raises:
        OSError: As `open_regular` does.
        ValueError: If it is larger.
    """
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    return content


@overload
def read_json(
    path: Path, kind: type[Value], *, known: int | None = None, limit: int = MAX_JSON_BYTES
) -> Value: ...


@overload
def read_json(
    path: Path, kind: None = None, *, known: int | None = None, limit: int = MAX_JSON_BYTES
) -> Any: ...  # noqa: ANN401  any JSON value


def read_json(
    path: Path, kind: Any = None, *, known: int | None = None, limit: int = MAX_JSON_BYTES
) -> Any:  # any JSON value
    """Read a JSON file, within `trusting_nothing`; see `parse_json`."""
    return parse_json(read_bounded(path, limit=limit), kind, known=known)


def parse_json(
    content: bytes,
    kind: Any = None,  # noqa: ANN401  a type, or any other form of one
    *,
    known: int | None = None,
    members: int = _MAX_MEMBERS,
) -> Any:  # noqa: ANN401  any JSON value
    """Parse a JSON document in UTF-8, within `trusting_nothing`.

    Args:
        kind: What it must be, strictly: no number in quotes, no truth value for a number. None leaves it as it is.
        known: The newest format that can be read; the document is then an object whose ``format`` is 1 to this.
        members: How many members its objects may have together, where it has a kind.

    Raises:
        ValueError: If it is no JSON, nested too deeply, or holds a number that is not finite, or is not of its kind.
    """
    _check_structure(content, members=members if kind is not None else None)
    document = json.loads(content.decode(), parse_constant=_finite, parse_float=_finite)
    if known is not None:  # before the unknown keys of a newer format are called an alteration
        found = document.get("format") if isinstance(document, dict) else None
        if type(found) is not int or found < 1:  # a truth value is an int
            raise ValueError("it says no format")
        if found > known:
            raise _NewerError(f"has format {quoted(str(found))}, this version reads up to {known}")
    if kind is None:
        return document
    return TypeAdapter(kind).validate_json(content, strict=True)


def parse_yaml(content: bytes) -> Any:  # noqa: ANN401  any value of YAML
    """Parse a YAML document in UTF-8, within `trusting_nothing`: plain values alone, and nothing that repeats itself.

    Raises:
        ModuleNotFoundError: If PyYAML is not installed.
        ValueError: If it is no YAML, too large, nested too deeply, or has an anchor or an alias, which may stand for
            any amount.
    """
    import yaml

    if len(content) > _MAX_YAML_BYTES:
        raise ValueError(f"it has more than {_MAX_YAML_BYTES:,} bytes")
    text, depth = content.decode(), 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if getattr(event, "anchor", None) is not None:
                raise ValueError("it has an anchor or an alias")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > _MAX_DEPTH:
                raise ValueError(f"it is nested more than {_MAX_DEPTH} levels deep")
        return yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise ValueError(" ".join(str(exc).split())) from exc


def _check_structure(content: bytes, *, members: int | None) -> None:
    depth = found = 0
    for match in _STRUCTURE.finditer(content):
        token = content[match.start()]
        if token in b"[{":
            depth += 1
            if depth > _MAX_DEPTH:
                raise ValueError(f"it is nested more than {_MAX_DEPTH} levels deep")
        elif token in b"]}":
            depth -= 1
        elif token in b":":
            found += 1
            if members is not None and found > members:
                raise ValueError(f"it has more than {members:,} members")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{quoted(text)} is not finite")
    return value
