"""Study `embeddings`: whether embeddings of easy, medium and hard samples lie apart, in a picture and in numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from dimec.policies.pools import EASY, HARD, MEDIUM, POOL_NAMES
from dimec.reporting.results import Column, Figure, Table, Verdict
from dimec.runs.run import Run
from dimec.studies.base import Findings, Study
from dimec.studies.measures import notes_on
from dimec.studies.pool_measures import METHODS, MOST_SAMPLES, picture_of, separation_of
from dimec.studies.rulings import ruling_of, verdict
from dimec.studies.separation import N_SHUFFLES, STRUCTURE, distances, silhouette
from dimec.studies.study_runs import StudyRuns

DIGITS = 3
"""Silhouettes, distances and AUCs are kept to the thousandth."""
SOURCE = "paper 1 §6.4, paper 2 §4.2"


def make(shop: StudyRuns) -> Findings:
    """Measure every task's pools, draw the first seed's."""
    found = Findings()
    parts: list[dict[str, Any]] = []
    points: list[dict[str, Any]] = []
    runs: list[Run] = []
    with shop.progress.stage("Embeddings", len(shop.tasks)) as advance:
        for task in shop.tasks:
            for run in shop.seeds(task):
                runs.append(run)
                bed = shop.testbed(run)
                parts += shop.part(
                    "separation", run, partial(separation_of, bed, shop.options.price)
                )
                if run.config.options.seed == 0:
                    points += shop.part(
                        "picture", run, partial(picture_of, bed, shop.options.price)
                    )
            advance(1)
    _with_picture(parts, points)
    found.add(_separation_table(), [_flat(part) for part in parts])
    found.add(_pools_table(), [row for part in parts for row in _pool_rows(part)])
    found.add(_router_table(), [_flat(part) for part in parts])
    found.add(Table(name="pictures", title="The points of the pictures"), points, *_pictures())
    found.verdicts += [_clear(parts), _medium(parts)]
    found.notes += [*_notes(parts), *notes_on(runs)]
    return found


def _with_picture(parts: list[dict[str, Any]], points: Sequence[Mapping[str, Any]]) -> None:
    """Add the silhouettes in the picture to the parts of the first seed."""
    for task in dict.fromkeys(point["task"] for point in points):
        own = [point for point in points if point["task"] == task]
        apart = distances(np.array([(point["x"], point["y"]) for point in own]))
        for method, policy in METHODS.items():
            pools = np.array([POOL_NAMES.index(point[f"pool_{method}"]) for point in own])
            value = silhouette(apart, pools, among=(EASY, HARD))
            for part in parts:
                if (part["task"], part["policy"], part["seed"]) == (task, policy, 0):
                    part["easy_hard_picture"] = value


_INTERVALS = ("auc_interval", "auc_confidence_interval", "spread_interval")
_RANGES = (
    "easy_hard_shuffled",
    "all_three_shuffled",
    "auc_shuffled",
    "spread_shuffled",
    "silhouette_shuffled",
)


def _flat(part: Mapping[str, Any]) -> dict[str, Any]:
    """Turn intervals and ranges into columns of their own."""
    row = {key: value for key, value in part.items() if key != "pools"}
    for name in _INTERVALS:
        if name in row:
            low, high = row.pop(name) or (None, None)
            value = name.removesuffix("_interval")
            row |= {f"{value}_low": low, f"{value}_high": high}
    for name in _RANGES:
        if name in row:
            mean, low, high = row[name] or (None, None, None)
            row |= {name: mean, f"{name}_low": low, f"{name}_high": high}
    row.setdefault("easy_hard_picture", None)
    return {
        name: round(value, DIGITS) if isinstance(value, float) and name != "share" else value
        for name, value in row.items()
    }


def _pool_rows(part: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for pool in part["pools"]:
        empty = dict.fromkeys(
            (
                "spread",
                "spread_interval",
                "spread_shuffled",
                "silhouette",
                "silhouette_shuffled",
                "to_easy",
                "to_medium",
                "to_hard",
            )
        )
        row = {"task": part["task"], "policy": part["policy"], "seed": part["seed"]}
        rows.append(_flat(row | empty | pool))
    return rows


def _with_range(name: str, title: str, about: str = "", *, quantity: Any = "number") -> Column:  # noqa: ANN401  a Quantity
    return Column(
        name=name,
        title=title,
        quantity=quantity,
        about=about,
        low=f"{name}_low",
        high=f"{name}_high",
    )


_WHO = (
    Column(name="policy", title="pools of", quantity="text"),
    Column(name="seed", title="seed", quantity="count", about="Of the fit."),
)


def _separation_table() -> Table:
    return Table(
        name="separation",
        title="Do the pools lie apart?",
        about=(
            "Silhouettes of the pools of validation embeddings: 1 is a cluster of its own, 0 none, below 0 is "
            f"nearer to another pool; from {STRUCTURE} on one speaks of a structure. They are measured in the "
            "embeddings' own space. Beside them the same pools shuffled over the samples, mean and range of "
            f"{N_SHUFFLES} shuffles: what pools that mean nothing look like. The picture's silhouette is that of "
            "the t-SNE layout, which moves points apart or together and proves nothing."
        ),
        columns=(
            *_WHO,
            Column(name="point", title="thresholds", quantity="text"),
            Column(
                name="n_measured",
                title="samples",
                quantity="count",
                about="At most 3,000 are drawn.",
            ),
            Column(name="easy_hard", title="easy against hard", quantity="number"),
            _with_range("easy_hard_shuffled", "shuffled", "Mean, least and largest."),
            Column(name="all_three", title="all three", quantity="number"),
            _with_range("all_three_shuffled", "shuffled", "Mean, least and largest."),
            Column(name="easy_hard_picture", title="in the picture", quantity="number"),
        ),
        group="task",
        source=SOURCE,
    )


def _pools_table() -> Table:
    return Table(
        name="pools",
        title="How far each pool spreads",
        about=(
            "Spread is the mean distance of a pool's validation embeddings to their own centroid, with its "
            "interval, and with pools shuffled over the samples. A pool's silhouette is the mean over its samples, "
            "all three pools counted: the lower, the more it overlaps with the others. Distances are between "
            "centroids: hold them against the spread."
        ),
        columns=(
            *_WHO,
            Column(name="pool", title="pool", quantity="text"),
            Column(name="n", title="samples", quantity="count"),
            Column(name="share", title="share", quantity="share"),
            _with_range("spread", "spread"),
            _with_range("spread_shuffled", "shuffled", "Mean, least and largest."),
            Column(name="silhouette", title="silhouette", quantity="number"),
            _with_range("silhouette_shuffled", "shuffled", "Mean, least and largest."),
            *(
                Column(name=f"to_{name}", title=f"to {name}", quantity="number")
                for name in POOL_NAMES
            ),
        ),
        group="task",
        source=SOURCE,
    )


def _router_table() -> Table:
    return Table(
        name="router",
        title="What the centroids know about the mobile exit",
        about=(
            "Area under the curve for ranking the test samples that the mobile exit gets right: 0.5 is chance. The "
            "router ranks by d(hard) - d(easy). Shuffled are centroids of pools shuffled over the validation "
            f"samples: mean and range of {N_SHUFFLES}. The mobile exit's own confidence is what running its layers "
            "tells."
        ),
        columns=(
            *_WHO,
            Column(name="n_test", title="samples", quantity="count"),
            _with_range("auc", "router"),
            _with_range("auc_shuffled", "shuffled pools", "Mean, least and largest."),
            _with_range("auc_confidence", "confidence of the mobile exit"),
        ),
        group="task",
        source=SOURCE,
    )


def _pictures() -> Iterator[Figure]:
    for method, policy in METHODS.items():
        paper, section = (1, "6.4") if method == "dc" else (2, "4.2")
        yield Figure(
            name=f"embeddings-{method}",
            title=f"Validation embeddings by pool of {policy}",
            about=(
                "Each point is a validation sample's mean embedding before any layer, laid out by t-SNE (perplexity "
                "30, seed 0), with the hue of its pool. Clusters here need not be clusters in the embeddings' own "
                "space: read the silhouettes."
            ),
            table="pictures",
            kind="points",
            x="x",
            y="y",
            color=f"pool_{method}",
            facet="task",
            hover=("row_id", "label", "tokens"),
            x_title="t-SNE, first",
            y_title="t-SNE, second",
            color_title="pool",
            y_quantity="number",
            source=f"paper {paper} §{section}",
        )


def _clear(parts: Sequence[Mapping[str, Any]]) -> Verdict:
    """Judge "clear separation": a structure in the embeddings' own space, on every task and seed."""
    known = [part for part in parts if part["easy_hard"] is not None]
    clear = [part for part in known if part["easy_hard"] >= STRUCTURE]
    cases = [
        f"{part['task']}, {part['policy']}, seed {part['seed']}: silhouette of easy against hard "
        f"{part['easy_hard']:.3f} (shuffled pools {_spelt(part['easy_hard_shuffled'])}; a structure begins at "
        f'{STRUCTURE}); the router\'s AUC for "the mobile exit is right" is {_auc(part)}.'
        for part in known
    ]
    values = [part["easy_hard"] for part in known]
    most = f"; the largest is {max(values):.3f}" if values else ""
    summary = (
        f"In {len(clear)} of {len(known)} cases (task, method, seed) the silhouette of easy against hard reaches "
        f"{STRUCTURE}, where one speaks of a structure{most}."
    )
    ruling = ruling_of(len(clear), of=len(known))
    return verdict("clear-separation", ruling, [summary], cases=cases)


def _auc(part: Mapping[str, Any]) -> str:
    if part["auc"] is None:
        return "unknown, since a pool is empty"
    low, high = part["auc_interval"]
    confidence = part["auc_confidence"]
    return f"{part['auc']:.3f} ({low:.3f} to {high:.3f}), that of its confidence {confidence:.3f}"


def _spelt(found: Sequence[float] | None) -> str:
    return "unknown" if found is None else f"{found[0]:.3f}, {found[1]:.3f} to {found[2]:.3f}"


def _medium(parts: Sequence[Mapping[str, Any]]) -> Verdict:
    """Judge "medium overlaps more and spreads more": each half, against both other pools and beyond chance."""
    cases, overlapping, spreading, tested = [], 0, 0, 0
    for part in parts:
        easy, medium, hard = (part["pools"][pool] for pool in (EASY, MEDIUM, HARD))
        if any("silhouette" not in pool for pool in (easy, medium, hard)):
            cases.append(
                f"{part['task']}, {part['policy']}, seed {part['seed']}: a pool is empty, nothing to compare."
            )
            continue
        tested += 1
        by_chance = medium["silhouette_shuffled"][1]
        overlaps = medium["silhouette"] < min(easy["silhouette"], hard["silhouette"], by_chance)
        spreads = medium["spread_interval"][0] > max(
            pool["spread_interval"][1] for pool in (easy, hard)
        )
        overlapping += overlaps
        spreading += spreads
        numbers = ", ".join(
            f"{pool['pool']} {pool['silhouette']:.3f} and {pool['spread']:.3f}"
            for pool in (easy, medium, hard)
        )
        cases.append(
            f"{part['task']}, {part['policy']}, seed {part['seed']}: silhouettes and spreads are {numbers}; medium "
            f"({by_chance:.3f} at the least in shuffled pools) {'overlaps' if overlaps else 'does not overlap'} "
            "most and "
            f"{'spreads most, beyond the intervals' if spreads else 'does not spread most beyond the intervals'}."
        )
    summary = (
        f"Of {tested} cases (task, method, seed) the medium pool overlaps most, and more than in any of {N_SHUFFLES} "
        f"shuffles of the pools, in {overlapping}; it spreads most, beyond the intervals, in {spreading}."
    )
    ruling = ruling_of(overlapping + spreading, of=2 * tested)
    return verdict("medium-overlap", ruling, [summary], cases=cases)


def _notes(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = [
        "Pools are those of the validation split at each policy's own operating point; the router is judged on test.",
        "Pictures are of seed 0. Every seed is a fit and a split of its own, so that its validation samples are "
        "others.",
    ]
    cut = {part["task"]: part["n"] for part in parts if part["n_measured"] < part["n"]}
    notes += [
        f"{task}: {MOST_SAMPLES:,} of {n:,} validation samples were drawn (seed 0) for silhouettes and picture."
        for task, n in cut.items()
    ]
    return notes


STUDY = Study(
    name="embeddings",
    title="Do easy and hard samples lie apart before any layer has run?",
    about=(
        "Both methods route by the nearest centroid of mean embeddings. That can work as far as embeddings of easy "
        "and hard samples lie apart. The papers show a picture; this study draws it, measures what it shows in the "
        "space that the router sees, and holds it against pools shuffled over the samples."
    ),
    source=SOURCE,
    tasks=("sst2", "cola", "mrpc"),
    make=make,
)
