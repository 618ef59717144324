"""Easy, medium and hard samples: how many there are, which tiers they go to, and the data map that shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import RunError
from dimec.core.extras import needs_training
from dimec.core.metrics import auc
from dimec.core.tiers import TIERS
from dimec.policies import Calibration, Policy, Searched
from dimec.policies.dimec_dc import DimecDcFixed
from dimec.policies.dimee import DimeeFixed
from dimec.policies.pools import POOL_NAMES, cartography, cartography_pools, sure_exits
from dimec.policies.replay import replay
from dimec.runs.run import Run
from dimec.studies.base import Findings, Study
from dimec.studies.measures import averaged, notes_on, part_shares
from dimec.studies.published import notes
from dimec.studies.study_runs import StudyRuns
from dimec.studies.verdicts import pool_claims

if TYPE_CHECKING:
    from dimec.training.texts import SplitName

METHODS: dict[str, type[Searched]] = {kind.name: kind for kind in (DimecDcFixed, DimeeFixed)}
MOST = 3_000  # the most points of a map or a picture; of a larger split a random sample is shown
_LONGEST = 200


@Study
def pools(runs: StudyRuns, found: Findings) -> None:
    """Count pools on validation and tiers on test, at the points that the search chose."""
    rows = []
    for task in runs.each_task("Study pools"):
        rows += averaged(runs, task, "pools", _shares, key=("policy", "what"))
    found.verdicts += pool_claims(rows)
    found.add("pools", rows)
    for method in METHODS:
        own = [row for row in rows if row["policy"] == method]
        parts = part_shares(own, of=("task", "policy", "what"), parts=POOL_NAMES, what="pool")
        found.add("pool-shares-{method}", parts, method=method)
    found.notes += [
        f"Paper {each.paper} prints {100 * each.easy:.2f} % easy, {100 * each.medium:.2f} % medium and "
        f"{100 * each.hard:.2f} % hard for {each.task} with {each.backbone}."
        for each in notes().pool_shares
    ]
    found.notes += notes_on(runs)


def pools_of(policy: Policy, calibration: Calibration) -> NDArray[np.int8]:
    """Return the validation samples' pools [n] at the operating point of a policy of `METHODS`."""
    at = policy.operating_point()
    table, depths = calibration.table, calibration.depths[policy.method]
    if policy.method == "ee":
        return sure_exits(table, depths=depths, **at)[0]
    samples = cartography(table, layer=depths.mobile, spread=calibration.spread)
    return cartography_pools(samples, **at)


def drawn_rows(n: int) -> NDArray[np.int64]:
    """Return which of n samples are drawn: all, or `MOST` drawn with seed 0, in their order."""
    return np.sort(np.random.default_rng(0).permutation(n)[:MOST])


def _shares(runs: StudyRuns, run: Run) -> list[dict[str, Any]]:
    setup = runs.setup(run)
    calibration = setup.calibration(runs.options.price)
    rows = []
    for name, kind in METHODS.items():
        policy = kind.fit(calibration)
        at = policy.operating_point()
        pools = pools_of(policy, calibration)
        tiers = replay(policy, setup.table, costs=setup.costs).tiers
        for what, found in (("pools of validation rows", pools), ("tiers of test rows", tiers)):
            counted = np.bincount(found, minlength=3) / len(found)
            rows.append(
                {
                    "policy": name,
                    "what": what,
                    **dict(zip(POOL_NAMES, counted.tolist(), strict=True)),
                    "alpha": at["alpha"],
                    "beta": at.get("beta"),
                    "n": len(found),
                }
            )
    return rows


@Study
def datamap(runs: StudyRuns, found: Findings) -> None:
    """Draw variability against confidence of the validation rows of each task's first seed."""
    points, regions = {}, []
    for task in runs.each_task("Study datamap"):
        points[task], of_pools = _data_map(runs, runs.run(task))
        regions += of_pools
    found.add("regions", regions)
    for task, rows in points.items():
        found.add("map-{task}", rows, task=task)
    found.note(most=MOST)
    found.notes += notes_on(runs)


def _data_map(runs: StudyRuns, run: Run) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the points of a run's map, and what its pools hold."""
    table = run.validation
    calibration = runs.setup(run).calibration(runs.options.price)
    depths = calibration.depths["dc"]
    alpha, beta = DimecDcFixed.search_in(calibration).point
    samples = cartography(table, layer=depths.mobile)
    pools = cartography_pools(samples, alpha=alpha, beta=beta)
    texts = kept_texts(run, "validation", longest=_LONGEST)
    epochs = table.dynamics.correct.shape[1] if table.dynamics is not None else 0
    drawn = drawn_rows(len(table)).tolist()
    points = [
        {
            "task": run.config.task.name,
            "text": texts[row] if texts else f"row {table.row_ids[row]}",
            "label": table.label_names[table.labels[row]],
            "confidence": round(float(samples.confidence[row]), 5),
            "variability": round(float(samples.variability[row]), 5),
            "correctness": f"{samples.correctness[row]} of {epochs}",
            "pool": POOL_NAMES[pools[row]],
        }
        for row in sorted(drawn, key=lambda row: -samples.correctness[row])
    ]
    regions = []
    for place, pool in enumerate(POOL_NAMES):
        inside = pools == place
        if not inside.any():
            continue
        right = table.right[inside]
        regions.append(
            {
                "task": run.config.task.name,
                "pool": pool,
                "share": float(inside.mean()),
                "confidence": float(samples.confidence[inside].mean()),
                "variability": float(samples.variability[inside].mean()),
                **{
                    str(tier): float(right[:, table.exit(depths.of(tier))].mean()) for tier in TIERS
                },
                "length_auc": auc(table.n_tokens.astype(float), inside),
                "n": int(inside.sum()),
            }
        )
    return points, regions


def kept_texts(run: Run, split: SplitName, *, longest: int) -> list[str]:
    """Return a split's texts, cut to so many characters; none where the run kept none."""
    if not (run.folder / "texts.parquet").exists():
        return []
    with needs_training():
        from dimec.training.texts import split_texts
    try:
        kept = split_texts(run, split)
    except RunError:
        return []
    second = kept.second or [""] * len(kept.first)
    whole = (
        f"{first} | {other}" if other else first
        for first, other in zip(kept.first, second, strict=True)
    )
    return [text if len(text) <= longest else text[: longest - 1] + "…" for text in whole]
