"""``dimec doctor``: what this machine can do, and what is missing."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dimec.bundle.engines.hardware import machine
from dimec.cli.checkup import Check, checkup
from dimec.cli.console import out, say_json
from dimec.cli.options import AsJson

_MARKS = {"ok": "[green]ok[/]     ", "missing": "[yellow]missing[/]", "broken": "[red]broken[/] "}


def doctor(
    bundle: Annotated[
        Path | None,
        typer.Argument(metavar="[BUNDLE]", help="A bundle to verify and to run a text through."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what is installed here, what the processor can do, and whether a bundle is whole and runs.

    Ends with 0 where the base install works and the bundle, if one is given, is sound; optional parts may be missing.

    **Example**: `dimec doctor bundles/sst2`
    """
    checks = checkup(bundle)
    here = machine()
    if as_json:
        say_json(_document({"python": platform.python_version(), "machine": asdict(here)}, checks))
    else:
        memory = "" if here.memory_bytes is None else f", {here.memory_bytes / 2**30:.0f} GiB"
        out.print(f"{here.system}, {here.architecture}, Python {platform.python_version()}")
        out.print(f"{here.processor}, {here.cores} cores{memory}", markup=False)
        out.print()
        for check in checks:
            out.print(_MARKS[check.status], end=" ", markup=True)
            out.print(f"{check.what}: {check.detail}", markup=False, soft_wrap=True)
            if check.remedy:
                out.print(f"        {check.remedy}", markup=False, soft_wrap=True)
    if any(check.status == "broken" for check in checks):
        raise typer.Exit(2)


def _document(facts: dict[str, object], checks: list[Check]) -> str:
    return json.dumps({**facts, "checks": [asdict(check) for check in checks]}, indent=2)
