"""Study `embeddings`: do embeddings of easy, medium and hard samples lie apart? A picture and measures.

The measures are of a run's pools, as JSON values: sizes, spreads, silhouettes, and the AUC of the router. Every one
comes with that of pools shuffled over the samples.

A silhouette compares a sample's mean distance to its own pool with that to the nearest other one: 1 is a pool of its
own, 0 lies between two, below 0 is nearer to another. Of a structure one speaks from 0.25 on (Kaufman and Rousseeuw).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dimec.core.extras import needs_training
from dimec.core.metrics import auc, interval
from dimec.policies import Policy
from dimec.policies.centroids import Centroids
from dimec.policies.pools import EASY, HARD, MEDIUM, POOL_NAMES
from dimec.reporting.results import Verdict
from dimec.runs.exit_table import ExitTable
from dimec.runs.run import Run
from dimec.studies.base import Findings, Study
from dimec.studies.measures import N_RESAMPLES, ends, mean_interval, notes_on
from dimec.studies.pools import METHODS, MOST, drawn_rows, pools_of
from dimec.studies.study_runs import StudyRuns
from dimec.studies.verdicts import ruling_of, verdict

DIGITS = 3  # silhouettes, distances and AUCs are kept to the thousandth
PERPLEXITY = 30.0
N_SHUFFLES = 20
STRUCTURE = 0.25  # the least silhouette that counts as a structure


@Study
def embeddings(runs: StudyRuns, found: Findings) -> None:
    """Measure the pools of every task and seed, and draw those of the first seed."""
    parts: list[dict[str, Any]] = []
    points: list[dict[str, Any]] = []
    for task in runs.each_task("Embeddings"):
        for run in runs.seeds(task):
            parts += runs.part("separation", run, _separations)
            if run.config.options.seed == 0:
                points += runs.part("picture", run, _picture)
    _with_picture(parts, points)
    flat = [_rounded(part) for part in parts]
    found.add("separation", flat, structure=STRUCTURE, shuffles=N_SHUFFLES)
    names = ("task", "policy", "seed")
    of_pools = [
        {name: part[name] for name in names} | each for part in parts for each in part["pools"]
    ]
    found.add("pools", list(map(_rounded, of_pools)))
    found.add("router", flat, shuffles=N_SHUFFLES)
    found.add("pictures", points)
    found.verdicts += [_clear(parts), _medium(parts)]
    found.note()
    cut = {part["task"]: part["n"] for part in parts if part["n_measured"] < part["n"]}
    found.notes += [
        f"{task}: {MOST:,} of {n:,} validation samples were drawn (seed 0) for silhouettes and picture."
        for task, n in cut.items()
    ]
    found.notes += notes_on(runs)


def _separations(runs: StudyRuns, run: Run) -> list[dict[str, Any]]:
    calibration = runs.setup(run).calibration(runs.options.price)
    fitted = [kind.fit(calibration) for kind in METHODS.values()]
    return [_separation(run, policy, pools_of(policy, calibration)) for policy in fitted]


def _picture(runs: StudyRuns, run: Run) -> list[dict[str, Any]]:
    """Lay out the validation embeddings, at most `MOST` of them, with the pools of both methods."""
    table = run.validation
    rows = drawn_rows(len(table))
    calibration = runs.setup(run).calibration(runs.options.price)
    pools = {kind.method: pools_of(kind.fit(calibration), calibration) for kind in METHODS.values()}
    places = _t_sne(table.embeddings[rows])
    places /= np.abs(places).max()  # a layout has no unit: every task fills its panel
    return [
        {
            "task": run.config.task.name,
            "x": float(x),
            "y": float(y),
            "pool_dc": POOL_NAMES[pools["dc"][row]],
            "pool_ee": POOL_NAMES[pools["ee"][row]],
            "row_id": int(table.row_ids[row]),
            "label": table.label_names[table.labels[row]],
            "tokens": int(table.n_tokens[row]),
        }
        for row, (x, y) in zip(rows.tolist(), places, strict=True)
    ]


def _t_sne(embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
    """Lay embeddings [n, width] out in the plane: [n, 2]."""
    with needs_training():
        from sklearn.manifold import TSNE
    perplexity = min(PERPLEXITY, (len(embeddings) - 1) / 3)
    places = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(embeddings)
    return np.asarray(places, dtype=np.float64)


def _separation(run: Run, policy: Policy, pools: NDArray[np.int8]) -> dict[str, Any]:
    table = run.validation
    rows = drawn_rows(len(table))
    apart = distances(table.embeddings[rows])
    chosen = pools[rows]
    shuffles = permuted(chosen)
    return {
        "task": run.config.task.name,
        "policy": policy.name,
        "seed": run.config.options.seed,
        "point": ", ".join(
            f"{name} = {value:.3g}" for name, value in policy.operating_point().items()
        ),
        "n": len(table),
        "n_measured": len(rows),
        "easy_hard": silhouette(apart, chosen, among=(EASY, HARD)),
        **_range(
            "easy_hard_shuffled",
            (silhouette(apart, shuffled, among=(EASY, HARD)) for shuffled in shuffles),
        ),
        "all_three": silhouette(apart, chosen),
        **_range("all_three_shuffled", (silhouette(apart, shuffled) for shuffled in shuffles)),
        "pools": _pools(table, pools, apart, chosen),
        **_router(run.test, table, policy, pools),
    }


def _pools(
    table: ExitTable, pools: NDArray[np.int8], apart: NDArray[np.float32], chosen: NDArray[np.int8]
) -> list[dict[str, Any]]:
    """Measure each pool: size, spread, silhouette, and distance to the other centroids."""
    spread = to_own_centroid(table.embeddings, pools)
    shuffled = [(order, to_own_centroid(table.embeddings, order)) for order in permuted(pools)]
    own = _by_pool(apart, chosen)
    own_shuffled = [_by_pool(apart, order) for order in permuted(chosen)]
    centroids = {
        pool: table.embeddings[pools == pool].mean(axis=0, dtype=np.float64)
        for pool in np.unique(pools).tolist()
    }
    found = []
    for pool, name in enumerate(POOL_NAMES):
        here = pools == pool
        row: dict[str, Any] = {
            "pool": name,
            "n": int(here.sum()),
            "share": float(here.mean()),
            **dict.fromkeys(("spread", "silhouette", *(f"to_{each}" for each in POOL_NAMES))),
            **ends(None, "spread_"),
            **_range("spread_shuffled", ()),
            **_range("silhouette_shuffled", ()),
        }
        if pool in centroids:
            values = spread[here]
            row["spread"] = float(values.mean())
            row |= ends(mean_interval(values, rng=np.random.default_rng(0)), "spread_")
            row |= _range(
                "spread_shuffled", (float(each[order == pool].mean()) for order, each in shuffled)
            )
            if pool in own:
                row["silhouette"] = own[pool]
                row |= _range("silhouette_shuffled", (each[pool] for each in own_shuffled))
            for other, centroid in centroids.items():
                if other != pool:
                    gap = np.linalg.norm(centroids[pool] - centroid)
                    row[f"to_{POOL_NAMES[other]}"] = float(gap)
        found.append(row)
    return found


def _by_pool(apart: NDArray[np.float32], pools: NDArray[np.integer]) -> dict[int, float]:
    """Return each pool's mean silhouette among all pools; empty where there is a single pool."""
    names = np.unique(pools).tolist()
    if len(names) < 2:
        return {}
    each = silhouettes(apart, pools)
    return {pool: float(each[pools == pool].mean()) for pool in names}


def _router(
    test: ExitTable, validation: ExitTable, policy: Policy, pools: NDArray[np.int8]
) -> dict[str, Any]:
    """Measure how well the router ranks the test samples that the mobile exit gets right."""
    exit_ = test.exit(policy.depths.mobile)
    right, confidence = test.right[:, exit_], test.confidence[:, exit_]
    ranking = policy.routing_score(test.embeddings)
    rng = np.random.default_rng(0)
    shuffled = (
        Centroids.of_pools(validation.embeddings, order).preference(test.embeddings)
        for order in permuted(pools)
    )
    return {
        "n_test": len(test),
        "auc": None if ranking is None else auc(ranking, right),
        **ends(None if ranking is None else auc_interval(ranking, right, rng=rng), "auc_"),
        **_range("auc_shuffled", (None if each is None else auc(each, right) for each in shuffled)),
        "auc_confidence": auc(confidence, right),
        **ends(auc_interval(confidence, right, rng=rng), "auc_confidence_"),
    }


def _range(name: str, values: Iterable[float | None]) -> dict[str, float | None]:
    """Return the mean of values with the smallest and the largest; None where one of them is missing."""
    found = list(values)
    known = [value for value in found if value is not None]
    if len(known) < len(found) or not known:
        return {name: None, **ends(None, f"{name}_")}
    return {name: float(np.mean(known)), **ends((min(known), max(known)), f"{name}_")}


def _with_picture(parts: list[dict[str, Any]], points: Sequence[Mapping[str, Any]]) -> None:
    """Add the picture's silhouettes to the parts of the first seed, and None to the others."""
    drawn: dict[tuple[str, str, int], float | None] = {}
    for task in dict.fromkeys(point["task"] for point in points):
        own = [point for point in points if point["task"] == task]
        apart = distances(np.array([(point["x"], point["y"]) for point in own]))
        for name, kind in METHODS.items():
            pools = np.array([POOL_NAMES.index(point[f"pool_{kind.method}"]) for point in own])
            drawn[task, name, 0] = silhouette(apart, pools, among=(EASY, HARD))
    for part in parts:
        part["easy_hard_picture"] = drawn.get((part["task"], part["policy"], part["seed"]))


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: round(value, DIGITS) if isinstance(value, float) and name != "share" else value
        for name, value in row.items()
        if name != "pools"
    }


def _clear(parts: Sequence[Mapping[str, Any]]) -> Verdict:
    """Judge "clear separation": a structure in the embeddings' own space, on every task and seed."""
    known = [part for part in parts if part["easy_hard"] is not None]
    clear = [part for part in known if part["easy_hard"] >= STRUCTURE]
    cases = [
        f"{_case(part)}: silhouette of easy against hard "
        f"{part['easy_hard']:.3f} (shuffled pools {_shuffled(part)}; a structure begins at "
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


def _case(part: Mapping[str, Any]) -> str:
    return f"{part['task']}, {part['policy']}, seed {part['seed']}"


def _auc(part: Mapping[str, Any]) -> str:
    if part["auc"] is None:
        return "unknown, since a pool is empty"
    between = f"{part['auc_low']:.3f} to {part['auc_high']:.3f}"
    return f"{part['auc']:.3f} ({between}), that of its confidence {part['auc_confidence']:.3f}"


def _shuffled(part: Mapping[str, Any]) -> str:
    if part["easy_hard_shuffled"] is None:
        return "unknown"
    low, high = part["easy_hard_shuffled_low"], part["easy_hard_shuffled_high"]
    return f"{part['easy_hard_shuffled']:.3f}, {low:.3f} to {high:.3f}"


def _medium(parts: Sequence[Mapping[str, Any]]) -> Verdict:
    """Judge "medium overlaps more and spreads more": each half, against both other pools and beyond chance."""
    cases, overlapping, spreading, tested = [], 0, 0, 0
    for part in parts:
        easy, medium, hard = (part["pools"][pool] for pool in (EASY, MEDIUM, HARD))
        if any(pool["silhouette"] is None for pool in (easy, medium, hard)):
            cases.append(f"{_case(part)}: a pool is empty, nothing to compare.")
            continue
        tested += 1
        by_chance = medium["silhouette_shuffled_low"]
        overlaps = medium["silhouette"] < min(easy["silhouette"], hard["silhouette"], by_chance)
        spreads = medium["spread_low"] > max(pool["spread_high"] for pool in (easy, hard))
        overlapping += overlaps
        spreading += spreads
        numbers = ", ".join(
            f"{pool['pool']} {pool['silhouette']:.3f} and {pool['spread']:.3f}"
            for pool in (easy, medium, hard)
        )
        cases.append(
            f"{_case(part)}: silhouettes and spreads are {numbers}; medium "
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


def distances(points: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the L2 distance of every two points: [n, n] for [n, width]."""
    with needs_training():
        from sklearn.metrics import euclidean_distances
    centred = points.astype(np.float64) - points.mean(axis=0)
    single: NDArray[np.float32] = euclidean_distances(centred).astype(np.float32)
    return single


def silhouettes(apart: NDArray[np.floating], pools: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return each sample's silhouette [n] from distances [n, n] and pools [n]; 0 for a pool's only sample."""
    with needs_training():
        from sklearn.metrics import silhouette_samples
    if len(np.unique(pools)) == len(pools):  # which scikit-learn refuses
        return np.zeros(len(pools))
    found: NDArray[np.float64] = silhouette_samples(apart, pools, metric="precomputed")
    return found


def silhouette(
    apart: NDArray[np.floating], pools: NDArray[np.integer], *, among: tuple[int, ...] = (0, 1, 2)
) -> float | None:
    """Return the mean silhouette of some pools' samples among one another; None with fewer than two pools."""
    rows = np.flatnonzero(np.isin(pools, among))
    if len(np.unique(pools[rows])) < 2:
        return None
    return float(silhouettes(apart[np.ix_(rows, rows)], pools[rows]).mean())


def to_own_centroid(
    embeddings: NDArray[np.floating], pools: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Return each sample's distance to the centroid of its own pool: [n]."""
    apart = Centroids.of_pools(embeddings, pools).distances(embeddings)
    return np.take_along_axis(apart, pools[:, None].astype(np.intp), axis=1)[:, 0]


def auc_interval(
    ranking: NDArray[np.floating], positive: NDArray[np.bool_], *, rng: np.random.Generator
) -> tuple[float, float] | None:
    """Return the 95 % percentile bootstrap interval of an AUC over resampled samples; None without both kinds."""
    if positive.all() or not positive.any():
        return None
    draws = (rng.integers(0, len(ranking), len(ranking)) for _ in range(N_RESAMPLES))
    found = [auc(ranking[rows], positive[rows]) for rows in draws]
    return interval(np.array([each for each in found if each is not None]))


def permuted(pools: NDArray[np.integer]) -> list[NDArray[np.integer]]:
    """Return pools shuffled over the samples, to compare with."""
    rng = np.random.default_rng(0)
    return [rng.permutation(pools) for _ in range(N_SHUFFLES)]
