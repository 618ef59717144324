"""Option records: each option of a verb is told once, with its help, its limits and its default.

The command line, the functions of `dimec.api` and a run's own config read the same record: a pydantic model whose
fields are made by `option`. `checked` builds one of plain values, `command_line` writes it as a user would type it.
"""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
)
from pydantic.fields import FieldInfo

from dimec.core.errors import DataError, OptionError, shown

EngineName = Literal["onnxruntime", "openvino"]
"""What runs exported graphs."""

EngineChoice = Literal["auto", "onnxruntime", "openvino"]
"""An engine, or the fastest one by the bundle's profile."""

AUTO_ENGINE = "what `dimec profile` has found the fastest on this machine, else onnxruntime"

HiddenType = Literal["FP16", "FP32"]
"""What hidden states travel as where they travel as they are, in the protocol's names."""

HiddenTypeOption = Annotated[
    HiddenType,
    BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value),
]
"""The same as an option, which may be written fp16 too."""

Spread = Literal["deviation", "variance"]
"""What the threshold β of data cartography is held against. The notes write a variance in eq. 2 and grids that fit a
deviation."""

DATA = "Data"
"""The group of the options that say what is read."""


@dataclass(frozen=True, slots=True)
class OptionFacts:
    """What the command line needs to know of an option beside its type, its default and its help.

    Attributes:
        group: Its heading in ``--help-all``.
        basic: Whether ``--help`` shows it.
        flag: Its name on the command line where that is not the field's; of a switch also ``--on/--off``.
        metavar: What stands for its value.
        shown_default: The default as the help has it, where that is decided later.
        argument: Whether it is given by its place instead of a flag.
        hidden: Whether only Python and files can set it.
        cli: Its type on the command line where that is not the field's. A list is an option that is repeated.
        words: Writes a value as it is given on the command line.
        known: Lists values for a shell to complete; others may be allowed.
    """

    group: str = ""
    basic: bool = False
    flag: str | None = None
    metavar: str | None = None
    shown_default: str | None = None
    argument: bool = False
    hidden: bool = False
    cli: Any = None
    words: Callable[[Any], list[str]] | None = None
    known: Callable[[], Iterable[str]] | None = None


_LIMITS = ("ge", "gt", "le", "lt", "allow_inf_nan")


def option(default: Any = ..., help: str = "", **told: Any) -> Any:  # noqa: ANN401  as pydantic's Field
    """Declare a field of a record: its default, its help, pydantic's limits by name, and `OptionFacts`."""
    limits = {name: told.pop(name) for name in _LIMITS if name in told}
    field = Field(default, description=help, **limits)
    field.metadata.append(OptionFacts(**told))
    return field


def bare(kind: Any) -> Any:  # noqa: ANN401  types
    """Return a type, or a union of types, without what validates it."""
    if get_origin(kind) is Annotated:
        return bare(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return reduce(or_, map(bare, get_args(kind)))
    return kind


def facts(field: FieldInfo | None) -> OptionFacts:
    """Return what was declared of a field; the defaults where nothing was, or there is none."""
    declared = [] if field is None else field.metadata
    return next((each for each in declared if isinstance(each, OptionFacts)), OptionFacts())


PathText = Annotated[
    str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)
]
"""A path, or a name, given as either type of Python."""


class Frame(str):
    """Rows in memory, under a name that says what they are: it stands where a path may stand.

    Attributes:
        rows: A frame of pandas or polars, a table of pyarrow, a `datasets.Dataset`, or a list of mappings.
    """

    rows: Any

    @classmethod
    def of(cls, rows: Sized) -> Frame:
        """Take rows."""
        frame = cls(f"{type(rows).__name__} of {len(rows):,} rows")
        frame.rows = rows
        return frame


def in_memory(value: Any) -> Any:  # noqa: ANN401  whatever is given
    """Return a `Frame` of what holds rows under names; any other value as it is.

    Raises:
        DataError: If it is a mapping of splits, such as a `DatasetDict`.
    """
    if isinstance(value, Mapping):
        if hasattr(value, "column_names"):
            raise DataError(
                f"a {type(value).__name__} holds the splits {', '.join(map(str, value))}: give one of them"
            )
        return value
    if isinstance(value, list | tuple):
        listed = value and all(isinstance(each, Mapping) for each in value)
        return Frame.of(value) if listed else value
    named = hasattr(value, "column_names") or (
        hasattr(value, "columns") and hasattr(value, "__arrow_c_stream__")
    )
    return Frame.of(value) if named and isinstance(value, Sized) else value


def _source(value: object, read: ValidatorFunctionWrapHandler) -> object:
    found = in_memory(value)
    if isinstance(found, Frame):
        return found
    if not isinstance(value, str | Path | None):
        raise ValueError(
            "give a path, a frame of pandas or polars, a datasets.Dataset, or a list of dicts"
        )
    return read(str(value) if isinstance(value, Path) else value)


DataSource = Annotated[str, WrapValidator(_source)]
"""Labelled rows: a path, given as either type of Python, or a `Frame`."""


def parts(value: object) -> object:
    """Split a text at its commas; a validator for options that take several values."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


class Options(BaseModel):
    """A record of options; unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    @field_validator("*")
    @classmethod
    def _can_be_kept(cls, value: object) -> object:
        # Python has bytes of the command line that are no UTF-8 as half characters, which no JSON file can hold.
        texts = value if isinstance(value, tuple) else (value,)
        if any(
            "\ud800" <= each <= "\udfff" for text in texts if isinstance(text, str) for each in text
        ):
            raise ValueError("it must be text in UTF-8: rename the file")
        return value


class TextColumns(Options):
    """Where the texts of a file are."""

    text_column: str | None = option(
        None,
        "Column of the (first) text.",
        group=DATA,
        basic=True,
        shown_default="found by its name",
    )
    pair_column: str | None = option(None, "Column of the second text.", group=DATA)
    skip_empty: bool = option(False, "Leave out rows without text instead of stopping.", group=DATA)


class LabelledColumns(TextColumns):
    """Where the texts and labels of a file are."""

    label_column: str | None = option(
        None, "Column of the label.", group=DATA, basic=True, shown_default="found by its name"
    )
    skip_unlabelled: bool = option(
        False, "Leave out rows without label instead of stopping.", group=DATA
    )


Record = TypeVar("Record", bound=BaseModel)
Function = TypeVar("Function", bound=Callable[..., object])


def flags_of(record: type[BaseModel], name: str) -> tuple[str, str]:
    """Return an option's name on the command line, and of a switch that is on by default what turns it off."""
    told = facts(record.model_fields.get(name))
    if told.argument:
        return told.metavar or name.upper(), ""
    on, _, off = (told.flag or "--" + name.replace("_", "-")).partition("/")
    return on, off or on.replace("--", "--no-", 1)


def checked(record: type[Record], values: Mapping[str, Any]) -> Record:
    """Build a record of plain values.

    Raises:
        OptionError: If a name is unknown or a value is not allowed; names the first one.
    """
    try:
        return record.model_validate(dict(values))
    except ValidationError as exc:
        fault = exc.errors()[0]
        message = fault["msg"].removeprefix("Value error, ")
        message = re.sub("^Input should ", "it must ", message).partition(", unable to ")[0]
        if not fault["loc"]:
            raise OptionError(message) from exc
        name = str(fault["loc"][0])
        if fault["type"] == "extra_forbidden":
            known = [each for each, field in record.model_fields.items() if not facts(field).hidden]
            raise OptionError(
                f"there is no option {shown(name)}: choose from {', '.join(known)}"
            ) from exc
        flag, _ = flags_of(record, name)
        if fault["type"] == "missing":
            raise OptionError(f"{flag} is missing: give it") from exc
        raise OptionError(f"{flag} {shown(fault['input'])}: {message}") from exc


def command_line(verb: str, options: BaseModel, *arguments: str, **last: object) -> str:
    """Write a command as a user would type it: only options that are not at their default.

    Args:
        arguments: What follows the verb.
        last: Options that take the place of the record's, or are of the command line alone, such as ``out``.
    """
    record = type(options)
    values: dict[str, Any] = {
        name: getattr(options, name)
        for name, field in record.model_fields.items()
        if not facts(field).hidden and getattr(options, name) != field.default
    }
    given: list[str] = []
    flagged: list[str] = []
    for name, value in {**values, **last}.items():
        told = facts(record.model_fields.get(name))
        on, off = flags_of(record, name)
        if told.argument:
            given.append(str(value))
        elif isinstance(value, bool):
            flagged.append(on if value else off)
        elif told.words is not None:
            flagged += [word for each in told.words(value) for word in (on, each)]
        elif get_origin(told.cli) is list:
            flagged += [word for each in value for word in (on, str(each))]
        else:
            several = isinstance(value, tuple)
            flagged += [on, ",".join(map(str, value)) if several else str(value)]
    return shlex.join(["dimec", verb, *given, *arguments, *flagged])


def takes(record: type[BaseModel]) -> Callable[[Function], Function]:
    """Show the options of a record in the signature and the docstring of a function that has them as keywords."""

    def show(function: Function) -> Function:
        own = inspect.signature(function)
        kept = [each for each in own.parameters.values() if each.kind is not each.VAR_KEYWORD]
        fields = {
            name: field for name, field in record.model_fields.items() if name not in own.parameters
        }
        options = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.is_required() else field.default,
                annotation=bare(field.annotation),
            )
            for name, field in fields.items()
        ]
        signature = own.replace(parameters=[*kept, *options])
        function.__signature__ = signature  # type: ignore[attr-defined]  # inspect reads it
        told = "\n".join(f"    {name}: {field.description}" for name, field in fields.items())
        function.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\nOptions:\n{told}\n"
        return function

    return show
