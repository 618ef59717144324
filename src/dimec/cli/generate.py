"""Commands made of option records: flags, help and groups are read from a record's fields.

An option comes from the command line, or from the file of ``--config``, or from an environment variable such as
``DIMEC_FIT_EPOCHS``; what stands first here wins.
"""

from __future__ import annotations

import inspect
import json
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.core import TyperCommand, TyperOption

from dimec.core.errors import OptionError, shown
from dimec.core.options import OptionFacts, bare, facts, flags_of
from dimec.core.untrusted import parse_json, parse_yaml, read_bounded, trusting_nothing

HELP_ALL = "--help-all"
PRINT_CONFIG = "--print-config"
_CONTEXT = "ctx"
_CONFIG, _PRINT = "config_file", "print_config"
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
                each.show_envvar = everything
            each.required = each.required and PRINT_CONFIG not in args
            _spare(each)
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


def _spare(parameter: Any) -> None:  # noqa: ANN401  as above
    """Keep typer from making a validator for an option that is not given: of many options they take long."""
    process = parameter.process_value

    def process_value(ctx: Any, value: Any) -> Any:  # noqa: ANN401
        alone = parameter.nargs == 1 and not parameter.multiple and parameter.callback is None
        return None if value is None and alone and not parameter.required else process(ctx, value)

    parameter.process_value = process_value


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
    verb = function.__name__.removesuffix("_")

    def run(**values: Any) -> None:  # noqa: ANN401  what typer has read
        context, file, only_print = (values.pop(each) for each in (_CONTEXT, _CONFIG, _PRINT))
        rest = {each.name: values.pop(each.name) for each in own}
        sources = {name: context.get_parameter_source(name).name for name in values}
        by_file = {
            name: value
            for name, value in context.meta.get(__name__, {}).items()
            if sources.get(name) != "COMMANDLINE"
        }
        given = {
            name: value for name, value in values.items() if sources[name] != "DEFAULT"
        } | by_file
        if only_print:
            _print_config(record, given)
            return
        for value in (*given.values(), *rest.values()):
            if file is not None and isinstance(value, Path) and value.resolve() == file.resolve():
                raise OptionError(f"--config {file} is given as another file too: give two files")
        function(given, **rest)

    keyword = inspect.Parameter.KEYWORD_ONLY
    fields = [
        inspect.Parameter(
            name,
            keyword,
            default=inspect.Parameter.empty if field.is_required() else _plain(field),
            annotation=Annotated[_type(field), _declared(record, name, field, verb=verb)],
        )
        for name, field in _open_fields(record).items()
    ]
    parameters = [
        inspect.Parameter(_CONTEXT, keyword, annotation=typer.Context),
        *(each.replace(kind=keyword) for each in own),
        *_of_files(record),
        *fields,
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads it
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    run.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\nAll options: `{HELP_ALL}`."
    app.command(verb, cls=_Verb)(run)


def _of_files(record: type[BaseModel]) -> list[inspect.Parameter]:
    """Return the options that read and print a file of options."""

    def read(ctx: typer.Context, path: Path | None) -> Path | None:
        if path is not None:
            found = ctx.meta[__name__] = _read_config(record, path)
            # What has to be given may stand in the file too.
            ctx.default_map = {
                name: value
                for name, value in found.items()
                if record.model_fields[name].is_required()
            }
        return path

    config = typer.Option(
        "--config",
        metavar="FILE",
        help="TOML or JSON file of options, or YAML where PyYAML is installed, by their names in Python. The command "
        "line wins over it, and it over the environment.",
        callback=read,
        is_eager=True,
        hidden=True,
    )
    show = typer.Option(
        PRINT_CONFIG, help="Print all options as such a file, and do nothing else.", hidden=True
    )
    kind = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(_CONFIG, kind, default=None, annotation=Annotated[Path | None, config]),
        inspect.Parameter(_PRINT, kind, default=False, annotation=Annotated[bool, show]),
    ]


def _open_fields(record: type[BaseModel]) -> dict[str, FieldInfo]:
    return {name: each for name, each in record.model_fields.items() if not facts(each).hidden}


def _read_config(record: type[BaseModel], path: Path) -> dict[str, Any]:
    """Read a file of options.

    Raises:
        OptionError: If it cannot be read, or names what is no option.
    """
    remedy = f"give --config a file such as {PRINT_CONFIG} prints"
    with trusting_nothing(path, OptionError, remedy=remedy):
        content = read_bounded(path)
        if path.suffix.lower() == ".json":
            document = parse_json(content)
        elif path.suffix.lower() in (".yaml", ".yml"):
            try:
                document = parse_yaml(content)
            except ModuleNotFoundError as exc:
                raise OptionError(
                    f"--config {path}: YAML is read by PyYAML: pip install pyyaml, or give the options in TOML or JSON"
                ) from exc
        else:
            document = tomllib.loads(content.decode())
        if not isinstance(document, dict):
            raise ValueError("it holds no options by name")
    fields = _open_fields(record)
    for name in document:
        if name not in fields:
            raise OptionError(
                f"--config {path}: there is no option {shown(name)}: choose from {', '.join(fields)}"
            )
    paths = {name for name, each in fields.items() if bare(each.annotation) in (Path, Path | None)}
    return {
        name: Path(value) if isinstance(value, str) and name in paths else value
        for name, value in document.items()
    }


def _print_config(record: type[BaseModel], given: Mapping[str, Any]) -> None:
    """Print the options in TOML; those that nobody gave are commented out, at their defaults."""
    for name, field in _open_fields(record).items():
        value = given.get(name, None if field.is_required() else field.default)
        # Strings, numbers, truth and lists are written in TOML as in JSON.
        written = "" if value is None else json.dumps(value, ensure_ascii=False, default=str)
        sys.stdout.write(
            f"# {field.description}\n{'' if name in given else '# '}{name} = {written}\n"
        )


def _type(field: FieldInfo) -> Any:  # noqa: ANN401  a type
    kind: Any = facts(field).cli or bare(field.annotation)
    return kind if field.is_required() or field.annotation is bool else kind | None


def _plain(field: FieldInfo) -> Any:  # noqa: ANN401  a default
    return field.default if isinstance(field.default, bool | int | float | str | Path) else None


def _declared(record: type[BaseModel], name: str, field: FieldInfo, *, verb: str) -> Any:  # noqa: ANN401  typer's
    """Return what typer is told of a field."""
    told = facts(field)
    if told.argument:
        return typer.Argument(
            help=field.description, metavar=told.metavar, autocompletion=_completes(told)
        )
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
        envvar=f"DIMEC_{verb}_{name}".upper(),
        autocompletion=_completes(told),
    )


def _completes(told: OptionFacts) -> Callable[[str], list[str]] | None:
    """Return what completes a value whose beginning is typed."""
    known = told.known
    if known is None:
        return None
    return lambda incomplete: [each for each in known() if each.startswith(incomplete)]


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
