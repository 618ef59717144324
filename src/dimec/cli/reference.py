"""The reference page of the commands, made from the command line itself: ``python -m dimec.cli.reference > PAGE``."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from dimec.cli.app import VERBS, load_verb

_WIDTH = 98


def page() -> str:
    """Write the page."""
    lines = [
        "# Commands",
        "",
        "Written by `python -m dimec.cli.reference` from the option records; change those, not this page.",
        "`dimec COMMAND --help` shows the basic options (marked •), `--help-all` every one.",
        "The functions of `dimec` take the same options as keywords: `--max-drop 0.5` is `max_drop=0.5`.",
        "`--config FILE` reads them from a file under these names, `max_drop = 0.5`, in TOML or JSON, or in",
        "YAML where PyYAML is installed (`pip install pyyaml`); `--print-config` prints one in TOML. An",
        "environment variable holds one option of one command: `DIMEC_PLAN_MAX_DROP=0.5`.",
        "The command line wins over the file, and the file over the environment.",
        "`dimec --install-completion` lets the shell complete commands, options and their values.",
    ]
    for name in VERBS:
        command: Any = load_verb(name)
        lines += ["", f"## dimec {name}", "", *_about(command.help or "")]
        groups: dict[str, list[str]] = {}
        for each in command.params:
            if each.name != "help":
                group = getattr(each, "rich_help_panel", None) or "General"
                groups.setdefault(group, []).extend(_option(each))
        for group, told in groups.items():
            lines += ["", f"{group}:", "", *told]
    return "\n".join(lines) + "\n"


def _about(text: str) -> Iterator[str]:
    for index, paragraph in enumerate(text.split("\n\n")):
        if paragraph.startswith("All options:"):
            continue
        if index:
            yield ""
        if paragraph.startswith("**"):
            yield paragraph
        else:
            yield from textwrap.wrap(paragraph, _WIDTH, break_on_hyphens=False)


def _option(each: Any) -> list[str]:  # noqa: ANN401  typer keeps its click to itself
    argument = each.param_type_name == "argument"
    names = "/".join([*each.opts, *each.secondary_opts])
    name = (each.metavar or each.name.upper()) if argument else names
    if not argument and not each.is_flag:
        kind = each.type_descriptor.annotation
        values = "|".join(map(str, get_args(kind) if get_origin(kind) is Literal else ()))
        name += f" {each.metavar or values or kind.__name__.upper()}"
    told = [f"`{name}`{'' if argument or each.hidden else ' •'}: {each.help}"]
    shown = getattr(each, "show_default", False)
    default = shown if isinstance(shown, str) else each.default
    if each.required:
        told.append("Required.")
    elif shown and default is not None and default is not False:
        told.append(f"Default: {default}.")
    return textwrap.wrap(
        " ".join(told),
        _WIDTH,
        initial_indent="- ",
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


if __name__ == "__main__":
    sys.stdout.write(page())
