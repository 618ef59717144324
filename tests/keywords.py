"""Writes ``src/dimec/keywords.py`` from the option records: ``python -m tests.keywords > src/dimec/keywords.py``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from dimec import api
from dimec.core.options import DataSource, HiddenTypeOption, PathText
from dimec.core.tiers import Tier
from dimec.corpus.options import BulkOptions
from dimec.deploying.options import ExportOptions, PlanOptions
from dimec.evaluation.options import EvaluateOptions, FrontierOptions
from dimec.runs.compressed import CompressOptions
from dimec.runs.run import FitOptions
from dimec.runtime.device.options import LoadOptions
from dimec.studies.options import ReportOptions, StudyOptions

RECORDS: dict[str, tuple[type[BaseModel], Any]] = {
    "Fit": (FitOptions, api.fit),
    "Compress": (CompressOptions, api.compress),
    "Evaluate": (EvaluateOptions, api.evaluate),
    "Frontier": (FrontierOptions, api.frontier),
    "Plan": (PlanOptions, api.plan),
    "Study": (StudyOptions, api.study),
    "Report": (ReportOptions, api.report),
    "Export": (ExportOptions, api.export),
    "Bulk": (BulkOptions, api.bulk),
    "Load": (LoadOptions, None),
}
_GIVEN = {
    DataSource: ["Data"],
    PathText: ["str", "Path"],
    HiddenTypeOption: ['Literal["FP16", "FP32", "fp16", "fp32"]'],
}
"""What may be given for what a record keeps, where a validator takes more."""
_READ = {
    "parts": ["str"],
    "read_tiers": ["str"],
    "_number_or_auto": ['Literal["auto"]'],
    "_read_costs": ["Sequence[str]"],
}
"""The same, by the name of the validator."""

HEAD = '''"""The keyword arguments of `dimec`'s functions, for editors and type checkers: those of the option records.

Written by ``python -m tests.keywords`` from the records; a test holds the two equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, Required, TypeAlias, TypedDict

from dimec.core.guard_settings import GuardSettings
from dimec.costs.model import CostModel
from dimec.costs.profiles import CostProfile


class _Columns(Protocol):
    """A frame of pandas or polars, a table of pyarrow."""

    def __arrow_c_stream__(self, requested_schema: object = ...) -> object: ...


class _Dataset(Protocol):
    """A Dataset of Hugging Face's."""

    @property
    def column_names(self) -> Any: ...  # noqa: ANN401  a list, or one for each split


Data: TypeAlias = str | Path | _Columns | _Dataset | Sequence[Mapping[str, Any]] | Mapping[str, Any]
"""Labelled rows: a path, or what holds them in memory."""
'''


def words(kind: Any) -> list[str]:
    """Return the types that may be given for a type of a record."""
    if kind in _GIVEN:
        return _GIVEN[kind]
    if get_origin(kind) is Annotated:
        inner, *told = get_args(kind)
        more = [
            _READ.get(getattr(each, "func", each).__name__, [])
            for each in told
            if hasattr(each, "func")
        ]
        return [*words(inner), *(word for each in more for word in each)]
    if get_origin(kind) in (Union, UnionType):
        return [word for each in get_args(kind) for word in words(each)]
    if get_origin(kind) is tuple:
        return [f"Sequence[{words(get_args(kind)[0])[0]}]"]
    if get_origin(kind) is Literal:
        return ["Literal[" + ", ".join(f'"{each}"' for each in get_args(kind)) + "]"]
    if get_origin(kind) is Callable:
        return ["Callable[[Sequence[Any]], Any]"]
    if kind is Path:
        return ["str", "Path"]
    if kind is Tier:
        return ["str"]
    return ["None" if kind is NoneType else kind.__name__]


def page() -> str:
    """Return the module's text: a class for each record, below one for each record that several of them extend."""
    parts: dict[str, str] = {}
    for name, (record, function) in RECORDS.items():
        # A verb's own parameters, such as the task of a fit.
        _add(parts, record, f"{name}Keywords", own={"task"} if function is api.fit else set())
    return HEAD + "".join(parts.values())


def _add(parts: dict[str, str], record: type[BaseModel], name: str, *, own: set[str]) -> None:
    """Add the class of a record, after those of the records that it extends."""
    above = [each for each in record.__bases__ if issubclass(each, BaseModel) and each.model_fields]
    for each in above:
        _add(parts, each, f"_{each.__name__}", own=set())
    bases = ", ".join(f"_{each.__name__}" for each in above) or "TypedDict"
    lines = [f"\n\nclass {name}({bases}, total=False):"]
    if not name.startswith("_"):
        lines.append(f'    """Those of `{record.__name__}`."""\n')
    known = {field: said for each in above for field, said in _said(each).items()}
    for field, said in _said(record).items():
        assert known.get(field, said) == said  # a class cannot change what it extends
        if field not in own and field not in known:
            lines.append(f"    {field}: {said}")
    parts[name] = "\n".join(lines) + "\n"


def _said(record: type[BaseModel]) -> dict[str, str]:
    """Return what may be given for each field of a record."""
    hints = get_type_hints(record, include_extras=True)
    found: dict[str, str] = {}
    for field, info in record.model_fields.items():
        given = sorted(dict.fromkeys(words(hints[field])), key=lambda each: each == "None")
        said = " | ".join(given)
        found[field] = f"Required[{said}]" if info.is_required() else said
    return found


if __name__ == "__main__":
    sys.stdout.write(page())
