"""Classify text on the cheapest of three tiers that will get it right: mobile, edge or cloud.

``dimec.fit`` trains a multi-exit encoder into a run folder, ``dimec.search`` tries the papers' grid,
``dimec.evaluate`` replays every policy over a run's held-out split, ``dimec.frontier`` does so at several prices,
``dimec.compress`` learns a bottleneck for split computing in a run, ``dimec.plan`` says what accuracy can be promised
at what cost, ``dimec.study`` reruns the papers' tables and figures,
``dimec.report`` makes a page of a study or a run, and ``dimec.export`` makes a bundle of it, which devices
and servers run. ``dimec.Classifier`` opens a bundle, or a run, and classifies, ``dimec.bulk`` labels a corpus.
They are loaded on first use: ``import dimec`` is quick and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dimec.api import (
        bulk,
        compress,
        evaluate,
        export,
        fit,
        frontier,
        plan,
        report,
        search,
        study,
    )
    from dimec.classifier import Classifier
    from dimec.core.version import __version__

__all__ = [
    "Classifier",
    "__version__",
    "bulk",
    "compress",
    "evaluate",
    "export",
    "fit",
    "frontier",
    "plan",
    "report",
    "search",
    "study",
]


def __getattr__(name: str) -> object:
    """Load a public name on first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    rooms = {"__version__": "dimec.core.version", "Classifier": "dimec.classifier"}
    found: object = getattr(import_module(rooms.get(name, "dimec.api")), name)
    return found


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})
