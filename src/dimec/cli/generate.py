"""Commands made of option records: flags, help and groups are read from a record's fields."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.core import TyperCommand, TyperOption

from dimec.core.options import bare, facts, flags_of

HELP_ALL = "--help-all"
_CONTEXT = "ctx"
_LOW = (("ge", "from"), ("gt", "above"))
_HIGH = (("le", "to"), ("lt", "to below"))

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished fit.")]
BundleFolder = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="The folder of an export.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Restart = Annotated[
    bool,
    typer.Option(
        "--restart",
        help="Replace what is there of an earlier command instead of resuming it.",
        hidden=True,
    ),
]


class _Verb(TyperCommand):
    """A command whose ``--help`` shows the basic options and one example, and whose ``--help-all`` shows all."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401  typer keeps its click to itself
        everything = HELP_ALL in args
        for each in self.params:
            if isinstance(each, TyperOption):
                each.hidden = each.hidden and not everything
                each.rich_help_panel = each.rich_help_panel if everything else None
        if everything:
            args = ["--help"]
        else:
            paragraphs = (self.help or "").split("\n\n")
            self.help = "\n\n".join(
                each
                for each in paragraphs
                if not each.startswith("**") or each.startswith("**Example**")
            )
        return super().parse_args(ctx, args)


def add_verb(app: typer.Typer, record: type[BaseModel], function: Callable[..., None]) -> None:
    """Make a command of a record and a function.

    Args:
        app: What the command is added to.
        record: The options, made by `dimec.core.options.option`.
        function: Its first parameter is a dictionary of those options of the record that were given. Its others,
            such as ``--out`` or ``--json``, are of the command line alone and declared as typer has them. Its
            docstring is the help; paragraphs that begin with ``**Example**`` are in ``--help``, further ones that
            begin in bold only in ``--help-all``.
    """
    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]

    def run(**values: Any) -> None:  # noqa: ANN401  what typer has read
        context = values.pop(_CONTEXT)
        rest = {each.name: values.pop(each.name) for each in own}
        given = {
            name: value
            for name, value in values.items()
            if context.get_parameter_source(name).name != "DEFAULT"
        }
        function(given, **rest)

    keyword = inspect.Parameter.KEYWORD_ONLY
    fields = [
        inspect.Parameter(
            name,
            keyword,
            default=inspect.Parameter.empty if field.is_required() else _plain(field),
            annotation=Annotated[_type(field), _declared(record, name, field)],
        )
        for name, field in record.model_fields.items()
        if not facts(field).hidden
    ]
    parameters = [
        inspect.Parameter(_CONTEXT, keyword, annotation=typer.Context),
        *(each.replace(kind=keyword) for each in own),
        *fields,
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads it
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    run.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\nAll options: `{HELP_ALL}`."
    app.command(function.__name__.removesuffix("_"), cls=_Verb)(run)


def _type(field: FieldInfo) -> Any:  # noqa: ANN401  a type
    kind: Any = facts(field).cli or bare(field.annotation)
    return kind if field.is_required() or field.annotation is bool else kind | None


def _plain(field: FieldInfo) -> Any:  # noqa: ANN401  a default
    return field.default if isinstance(field.default, bool | int | float | str | Path) else None


def _declared(record: type[BaseModel], name: str, field: FieldInfo) -> Any:  # noqa: ANN401  typer's
    """Return what typer is told of a field."""
    told = facts(field)
    if told.argument:
        return typer.Argument(help=field.description, metavar=told.metavar)
    flag, off = flags_of(record, name)
    if field.annotation is bool and field.default:
        flag = f"{flag}/{off}"
    default: str | bool | None = told.shown_default
    if default is None and isinstance(field.default, tuple):
        default = ",".join(map(str, field.default)) or None
    if default is None:
        default = field.default not in (None, ()) and field.default is not False
    return typer.Option(
        flag,
        help=f"{field.description}{_allowed(field)}",
        metavar=told.metavar,
        show_default=default,
        hidden=not told.basic,
        rich_help_panel=told.group or None,
    )


def _allowed(field: FieldInfo) -> str:
    """Say which numbers are allowed."""
    limits: dict[str, Any] = {}
    for each in field.metadata:
        for name in ("ge", "gt", "le", "lt"):
            limits |= {name: getattr(each, name)} if hasattr(each, name) else {}
    low = next((f"{word} {limits[name]:,g}" for name, word in _LOW if name in limits), "")
    high = next((f"{word} {limits[name]:,g}" for name, word in _HIGH if name in limits), "")
    said = " ".join(part for part in (low, high) if part)
    return f" {said[:1].upper()}{said[1:]}." if said else ""
