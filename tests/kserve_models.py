"""What KServe's own models say of a resource: read from its wheel as text; importing it would bring its server."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

WHEEL = "kserve==0.21.0"
FOLDER = Path(__file__).parents[1] / "build" / "schemas"
_PLAIN = {"str": str, "int": int, "bool": bool, "float": float, "object": object}
_OTHERS = ("V1", "K8sIo", "Resource", "Knative")


def check(value: Any, kind: str, place: str = "") -> None:
    """Hold a value against a model: names of fields, and the types of what KServe itself defines."""
    if (inner := re.fullmatch(r"list\[(.+)\]", kind)) is not None:
        assert isinstance(value, list), place
        for index, each in enumerate(value):
            check(each, inner[1], f"{place}[{index}]")
    elif (inner := re.fullmatch(r"dict\(str, (.+)\)", kind)) is not None:
        assert isinstance(value, dict), place
        for name, each in value.items():
            check(each, inner[1], f"{place}.{name}")
    elif kind in _PLAIN:
        assert isinstance(value, _PLAIN[kind]), f"{place}: {value!r} is no {kind}"
    elif (fields := _fields(kind)) is not None:
        assert isinstance(value, dict), place
        for name, each in value.items():
            assert name in fields, f"{place}.{name}: {kind} has {sorted(fields)}"
            check(each, fields[name], f"{place}.{name}")
    else:  # Kubernetes' own, which its schemas hold
        assert kind.startswith(_OTHERS), f"{place}: {kind}"


@cache
def _fields(kind: str) -> dict[str, str] | None:
    """Return the fields of a model of KServe by their names in YAML, and the kinds of these."""
    if not (models := FOLDER / "kserve" / "models").is_dir():
        pytest.skip(f"needs KServe's models: pip install --no-deps --target build/schemas {WHEEL}")
    for path in models.glob(f"{kind[:2].lower()}*.py"):
        for part in ast.parse(path.read_text()).body:
            if isinstance(part, ast.ClassDef) and part.name == kind:
                told = {
                    each.targets[0].id: ast.literal_eval(each.value)
                    for each in part.body
                    if isinstance(each, ast.Assign) and isinstance(each.targets[0], ast.Name)
                }
                types, names = told["openapi_types"], told["attribute_map"]
                return {names[own]: types[own] for own in types}
    return None
