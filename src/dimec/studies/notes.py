"""The notes' claims against the notes' own tables: computed from `published.json`, nothing is measured.

A claim's name goes in, sentences come out; a study's verdict puts them before what it has measured itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import product

import numpy as np

from dimec.core.tiers import TIERS, Step
from dimec.costs.model import CostModel
from dimec.studies.published import REFERENCE, PublishedRow, notes, published, published_depths

BACKBONES = ("bert-base", "bert-large")
OURS = ("Ours-F", "Ours-D")
_TABLES = tuple(product((1, 2), BACKBONES))


def notes_verdicts(claim_id: str) -> tuple[str, ...]:
    """Return what the notes' own tables say about a claim, a sentence with figures each."""
    return tuple(_EVIDENCE[claim_id]())


def _tier_costs(paper: int, backbone: str) -> tuple[list[float], float]:
    """Return what each tier costs alone, and what the full model on the device does, in lambda."""
    costs, depths = CostModel(), published_depths(paper=paper, backbone=backbone)
    alone = [costs.of([Step(tier, depths.of(tier))]) for tier in TIERS]
    return alone, costs.reference(depths.cloud)


def random_cost_change(*, paper: int, backbone: str) -> float:
    """Return the cost of drawing a tier uniformly, relative to the full model on the device."""
    alone, full = _tier_costs(paper, backbone)
    return float(np.mean(alone) / full - 1)


def shares_cost_change() -> float:
    """Return the cost of the pool shares printed for SST-2, relative to the full model on the device.

    It is what the cloud's charge, which the notes leave open, was inferred from.
    """
    (shares,) = notes().pool_shares
    alone, full = _tier_costs(shares.paper, shares.backbone)
    return float(np.dot([shares.easy, shares.medium, shares.hard], alone) / full - 1)


def cost_statements() -> tuple[str, ...]:
    """List where printed costs contradict the printed prices."""
    said = [
        f"The pool shares printed for SST-2 (71.04, 8.71 and 20.24 %) cost {_percent(shares_cost_change())} "
        "with one lambda charged for each layer in the cloud; the table prints -55 %."
    ]
    for paper, backbone in _TABLES:
        rows = published(paper=paper, backbone=backbone, system="Random")
        printed = [row.cost_change for row in rows]
        expected = random_cost_change(paper=paper, backbone=backbone)
        said.append(
            f"Paper {paper}, {_backbone(backbone)}: drawing a tier uniformly costs {_percent(expected)} "
            f"on every task; printed are {_percent(max(printed))} to {_percent(min(printed))}."
        )
    on_device = published(paper=2, system="Early-Exit")
    in_cloud = [row.beside("deebert", paper=1) for row in on_device]
    same = sum(
        (a.score, a.cost_change) == (b.score, b.cost_change)
        for a, b in zip(on_device, in_cloud, strict=True)
    )
    said.append(
        f"Early-Exit of paper 2, which runs on the device, has the very figures of DeeBERT of paper 1, which runs in "
        f"the cloud, in {same} of {len(on_device)} columns."
    )
    return (*said, *_cheapest_possible())


def _cheapest_possible() -> Iterable[str]:
    """List rows of paper 1 whose cost leaves next to nothing for edge and cloud."""
    for backbone in BACKBONES:
        (least, *_), full = _tier_costs(1, backbone)
        floor = least / full - 1
        for row in published(paper=1, backbone=backbone):
            if row.ours and row.cost_change < floor + 0.02:
                yield (
                    f"Paper 1, {_backbone(backbone)}, {_task(row.task)}: {row.system} is printed with "
                    f"{_percent(row.cost_change)}, where everything on the mobile tier costs {_percent(floor)} "
                    f"({least:g} of {full:g} lambda)."
                )


def _saves(paper: int, *, points: float) -> Iterable[str]:
    """Check every printed row of a paper's method: more than 43 % saved at a smaller drop than ``points``?"""
    for backbone in BACKBONES:
        rows = [row for row in published(paper=paper, backbone=backbone) if row.ours]
        drops = [(row, _drop(row)) for row in rows]
        breaking = [
            f"{_task(row.task)} {row.system} ({_percent(row.cost_change)}, {_points(-drop)})"
            for row, drop in drops
            if not (drop < points and _whole_percent(row) < -43)
        ]
        yield (
            f"The notes' own table, {_backbone(backbone)}: {len(rows) - len(breaking)} of {len(rows)} printed rows "
            f"save more than 43 % at under {points:g} points"
            + (f"; these do not: {', '.join(breaking)}." if breaking else ".")
        )


def _adaptive() -> Iterable[str]:
    for paper in (1, 2):
        fixed, adaptive = (published(paper=paper, system=system) for system in OURS)
        pairs = list(zip(fixed, adaptive, strict=True))
        better = sum(b.score > a.score for a, b in pairs)
        cheaper = sum(b.cost_change < a.cost_change for a, b in pairs)
        dearer = [
            f"{_task(b.task)} on {_backbone(b.backbone)} ({_percent(a.cost_change)} fixed, "
            f"{_percent(b.cost_change)} adaptive)"
            for a, b in pairs
            if b.cost_change >= a.cost_change
        ]
        yield (
            f"The notes' own tables, paper {paper}: of {len(pairs)} pairs the adaptive kind scores higher in {better} "
            f"and costs less in {cheaper}" + (f"; not in {', '.join(dearer)}." if dearer else ".")
        )
    (odd,) = [row for row in notes().rows if row.doubt and "typing error" in row.doubt]
    yield (
        f"One pair is decided by {100 * odd.score:.1f} for {odd.system} on {_task(odd.task)} in paper "
        f"{odd.paper}, which looks like a typing error."
    )


def _baselines() -> Iterable[str]:
    """Name the printed baselines that are better or cheaper than a printed row of the method."""
    for (paper, backbone), system in product(_TABLES, OURS):
        found = [
            f"{_task(row.task)}: {other.system} {', '.join(ahead)}"
            for row in published(paper=paper, backbone=backbone, system=system)
            for other in published(paper=paper, backbone=backbone, task=row.task)
            if not other.ours and other.policy != REFERENCE and (ahead := _ahead(other, row))
        ]
        yield f"The notes' own table, paper {paper}, {_backbone(backbone)}: {system} has " + (
            f"baselines level with it or ahead: {'; '.join(found)}."
            if found
            else "no baseline level with it or ahead, in score or in cost."
        )


def _ahead(other: PublishedRow, row: PublishedRow) -> list[str]:
    ahead = []
    if other.score >= row.score:
        ahead.append(f"scores {100 * other.score:.1f} against {100 * row.score:.1f}")
    if other.cost_change <= row.cost_change:
        ahead.append(f"costs {_percent(other.cost_change)} against {_percent(row.cost_change)}")
    return ahead


def _better_than_full() -> Iterable[str]:
    rows = [row for row in published() if row.ours]
    better = [
        f"paper {row.paper}, {_backbone(row.backbone)}, {_task(row.task)} {row.system} "
        f"({100 * row.score:.1f} against {100 * (row.score + _drop(row) / 100):.1f})"
        for row in rows
        if _drop(row) < 0
    ]
    yield (
        f"The notes' own tables: {len(better)} of {len(rows)} printed rows score above the full model, by 0.1 points "
        f"each: {'; '.join(better)}."
    )


def _large() -> Iterable[str]:
    for paper, system in product((1, 2), OURS):
        large = published(paper=paper, backbone="bert-large", system=system)
        pairs = [(row, row.beside(row.policy, backbone="bert-base")) for row in large]
        more = sum(row.cost_change < base.cost_change for row, base in pairs)
        shown = ", ".join(
            f"{_task(row.task)} {_percent(base.cost_change)} to {_percent(row.cost_change)}"
            for row, base in pairs
        )
        above = sum(_whole_percent(row) < -70 for row in large)
        yield (
            f"The notes' own tables, paper {paper}, {system}: BERT-large saves more on {more} of {len(pairs)} "
            f"tasks that both have ({shown}); {above} of {len(large)} save more than 70 %."
        )


def _pools(before: str, after: str = "") -> Iterable[str]:
    (shares,) = notes().pool_shares
    listed = f"{shares.easy:.2%} easy, {shares.medium:.2%} medium, {shares.hard:.2%} hard"
    yield f"The notes show {before}: {listed}.{after}"


def _drop_range() -> Iterable[str]:
    for backbone in BACKBONES:
        rows = [row for row in published(paper=1, backbone=backbone) if row.ours]
        found = {f"{_task(row.task)} {row.system}": _drop(row) for row in rows}
        outside = [f"{name} {drop:g}" for name, drop in found.items() if not 0.2 <= drop <= 0.6]
        yield (
            f"The notes' own table, paper 1, {_backbone(backbone)}: {len(rows) - len(outside)} of {len(rows)} printed "
            "rows lie 0.2 to 0.6 points below the full model"
            + (f"; these do not: {', '.join(outside)}." if outside else ".")
        )


def _cloud_dearest() -> Iterable[str]:
    for paper, backbone in _TABLES:
        alone, full = _tier_costs(paper, backbone)
        each = ", ".join(f"{tier} {cost:g}" for tier, cost in zip(TIERS, alone, strict=True))
        yield (
            f"The notes' own prices, paper {paper}, {_backbone(backbone)}, one lambda charged for each layer in the "
            f"cloud: {each} lambda; the full model on the device {full:g}."
        )


def _figure(what: str) -> Callable[[], Iterable[str]]:
    return lambda: (f"The notes show {what} in a figure without numbers, intervals or a control.",)


_EVIDENCE: dict[str, Callable[[], Iterable[str]]] = {
    "cost-paper-1": lambda: _saves(1, points=0.5),
    "cost-paper-2": lambda: _saves(2, points=0.3),
    "outperforms-baselines": _baselines,
    "adaptive-beats-fixed": _adaptive,
    "adapts-to-shift": lambda: ("The notes show no test on shifted data.",),
    "better-than-full": _better_than_full,
    "larger-savings-large": _large,
    "clear-separation": _figure("the embeddings of QNLI and SST-2"),
    "medium-overlap": _figure("the embeddings of QNLI and SST-2"),
    "robust-to-costs": _figure("scores and costs at other prices"),
    "mobile-price": _figure("scores and costs at other prices"),
    "cloud-transfer-price": _figure("scores and costs at other prices"),
    "edge-price": _figure("scores and costs at other prices"),
    "tier-order": _figure("the scores of the single tiers"),
    "cloud-dearest": _cloud_dearest,
    "overthinking": lambda: (
        "The notes name it as the reason for scores above the full model and count no samples.",
    ),
    "drop-range": _drop_range,
    "bell-shape": lambda: _pools(
        "the clusters in a figure without numbers. The one data set in numbers, SST-2, has its smallest share in the "
        "middle"
    ),
    "harder-data": lambda: _pools(
        "the pools' shares in a figure without numbers; in numbers there is SST-2 alone",
        " RTE stands in no table.",
    ),
}


def _drop(row: PublishedRow) -> float:
    """Return the points that a row loses against the full model, in the tenths that are printed."""
    return round(100 * (row.beside(REFERENCE).score - row.score), 1)


def _whole_percent(row: PublishedRow) -> int:
    return round(100 * row.cost_change)


def _percent(change: float) -> str:
    text = f"{100 * change:+.1f}".removesuffix(".0")
    return f"{text} %"


def _points(points: float) -> str:
    return f"{points:+.1f} points"


def _backbone(name: str) -> str:
    return name.replace("bert", "BERT")


def _task(name: str) -> str:
    return {"sst2": "SST-2", "cola": "CoLA"}.get(name, name.upper())
