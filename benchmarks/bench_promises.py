"""How often is a promise of agreement with a paid model broken, and how many calls are left? Beside others.

    pip install bargain && pip install --no-deps tracer-llm
    python benchmarks/bench_promises.py RUN[=OTHER] [RUN[=OTHER] ...] [--splits 200] [--rows 2000]

Runs may also be named in DIMEC_RUNS, with colons between them. TRACER and BARGAIN take many times as long as the
others: --tracer 10 and --bargain 40 give them fewer splits.

The last tier of RUN=OTHER is the run OTHER, and the device holds the whole encoder of RUN; that of RUN alone is its
whole encoder, of which the device holds the first half. Every call of the last tier is paid, everything else is free,
as with a language model behind an encoder of one's own: the cost is the share of texts that the last tier answers.

The rows are ROWS of validation and test of RUN, which trained neither run. Each split draws one half of them as the
log of what the last tier has answered, and holds the systems against the other half, the texts to come. No label is
used: what is promised is that at most DROP of the answers differ from the last tier's, with 95 % assurance. `broken`
counts splits in which more of the texts to come differ.

- dimec: the cheapest cascade that `dimec plan --over` certifies on half of the log; the other half fits.
- FrugalGPT (Chen, Zaharia, Zou 2023): its rule, a scorer and thresholds. For each exit of the device a logistic
  regression on the exit's sorted probabilities says whether its answer agrees; the thresholds are those with the fewest
  calls that keep within DROP on the log. It promises nothing.
- TRACER (tracer-llm): its pipelines at a target agreement of 1 - DROP, its surrogates the linear ones, on sentence
  embeddings of MiniLM, which cost nothing here. Its word is about the answers that it gives itself; `own` counts that.
- BARGAIN: its accuracy query over the device's last exit. It has no log: it pays for the texts that it samples. It
  takes seconds a split.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dimec.core.tiers import Depths, Tier
from dimec.costs.model import CostModel
from dimec.deploying.ladder import build_ladder
from dimec.deploying.promise import Assurance
from dimec.evaluation.cuts import Cut
from dimec.policies import Calibration
from dimec.policies.replay import replay
from dimec.runs.exit_table import ExitTable
from dimec.runs.run import Run
from dimec.training.texts import RunTexts

DROPS = (0.01, 0.02, 0.05, 0.1)
LEVEL = 0.95
CALLS = CostModel(
    mobile_layer=0.0,
    edge_layer=0.0,
    cloud_layer=0.0,
    to_edge=0.0,
    to_cloud=1.0,
    exit_zero=0.0,
    held_against=Tier.CLOUD,
)
SLOW = ("gbt", "xgb", "rf", "et", "dt", "mlp_1h", "mlp_2h")
"""TRACER's surrogates that take minutes over so many splits; its linear ones are left."""

Rows = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Task:
    """A run's rows, the last tier's answers for labels.

    Attributes:
        table: The device's exits, and the last tier's answer behind them.
        depths: Where they are.
        embeddings: [n, width], sentence embeddings.
        accuracy: Of the device's last exit and of the last tier, by the true labels.
    """

    name: str
    table: ExitTable
    depths: Depths
    embeddings: NDArray[np.float32]
    accuracy: tuple[float, float]

    @property
    def said(self) -> NDArray[np.int64]:
        return self.table.labels


@dataclass(frozen=True, eq=False)
class Played:
    """What a system does on the texts to come: which of them it leaves to the last tier, and what it answers."""

    asked: NDArray[np.bool_]
    answers: NDArray[np.int64]
    own_word_broken: bool | None = None


def both(run: Run) -> ExitTable:
    """Join validation and test."""
    joined = run.validation.joined(run.test)
    return replace(joined, row_ids=np.arange(len(joined), dtype=np.int64))


def read_task(given: str, n_rows: int) -> Task:
    """Read a run, and the run that is its last tier."""
    folder, _, other = given.partition("=")
    run = Run.open(folder)
    table = both(run)
    if other:
        last = both(Run.open(other))
        if not np.array_equal(last.labels, table.labels):
            raise SystemExit(f"{folder} and {other} have other validation and test rows")
        said, held = last.probabilities[:, -1], table.layers
    else:
        half = table.n_layers // 2
        said = table.probabilities[:, -1]
        held = tuple(layer for layer in table.layers if layer <= half)
    places = [table.layers.index(layer) for layer in held]
    own = replace(table, layers=held, logits=np.ascontiguousarray(table.logits[:, places]))
    right = (own.right[:, -1].mean(), (said.argmax(axis=1) == table.labels).mean())
    full = replace(own.before(said), labels=said.argmax(axis=1))
    depths = Depths(held[-1], held[-1], held[-1] + 1, cloud_model=True)
    rows = np.sort(np.random.default_rng(0).permutation(len(full))[:n_rows])
    accuracy = float(right[0]), float(right[1])
    return Task(run.config.task.name, full.take(rows), depths, embed(run)[rows], accuracy)


def embed(run: Run) -> NDArray[np.float32]:
    """Return MiniLM's own sentence embeddings; DIMEC_TABLES names a folder that keeps them."""
    kept = None
    if "DIMEC_TABLES" in os.environ:
        kept = Path(os.environ["DIMEC_TABLES"], f"{run.folder.name}-sentences.npy")
        if kept.exists():
            found: NDArray[np.float32] = np.load(kept)
            return found
    import torch
    from transformers import AutoModel, AutoTokenizer

    from dimec.training.model import find_backbone

    tokenizer = AutoTokenizer.from_pretrained(find_backbone("minilm"))
    model = AutoModel.from_pretrained(find_backbone("minilm")).eval()
    texts = RunTexts(run)
    parts = [texts.of("validation"), texts.of("test")]
    firsts = [text for part in parts for text in part.first]
    seconds = [text for part in parts for text in part.second or ()] or None
    found = np.zeros((len(firsts), model.config.hidden_size), dtype=np.float32)
    order = np.argsort([len(text) for text in firsts])
    with torch.inference_mode():
        for rows in np.array_split(order, max(1, len(order) // 64)):
            pairs = None if seconds is None else [seconds[row] for row in rows]
            batch = tokenizer(
                [firsts[row] for row in rows],
                pairs,
                padding=True,
                truncation=True,
                max_length=run.config.max_length,
                return_tensors="pt",
            )
            mask = batch["attention_mask"][:, :, None]
            hidden = model(**batch).last_hidden_state * mask
            mean = hidden.sum(dim=1) / mask.sum(dim=1)
            found[rows] = torch.nn.functional.normalize(mean, dim=1).numpy()
    if kept is not None:
        np.save(kept, found)
    return found


def calibration_of(task: Task, log: Rows, seed: int) -> Calibration:
    depths: Cut = {"dc": task.depths, "ee": task.depths}
    return Calibration(task.table.take(log), depths, costs=CALLS, seed=seed)


def by_dimec(task: Task, log: Rows, coming: Rows, seed: int) -> dict[float, Played]:
    """Play the cheapest cascade that is certified for so many texts to come."""
    ladder = build_ladder(calibration_of(task, log, seed))
    table, found = task.table.take(coming), {}
    for drop in DROPS:
        kept = ladder.certified(100 * drop, Assurance(LEVEL, len(coming)))
        found[drop] = everything(task, coming)
        if kept:
            played = replay(kept[-1].policy, table, costs=CALLS)
            found[drop] = Played(played.tiers == 2, played.predictions)
    return found


def everything(task: Task, coming: Rows) -> Played:
    return Played(np.ones(len(coming), dtype=bool), task.said[coming])


def by_frugal(task: Task, log: Rows, coming: Rows, seed: int) -> dict[float, Played]:
    """Fit a scorer for the first and the last exit of the device, and search both thresholds."""
    from sklearn.linear_model import LogisticRegression

    table, said = task.table, task.said
    places = sorted({0, len(table.layers) - 2})
    scores = []
    for place in places:
        features = np.sort(table.probabilities[:, place], axis=1)[:, ::-1]
        agrees = table.predictions[:, place] == said
        scores.append(np.ones(len(said)))
        if 0 < agrees[log].mean() < 1:
            scorer = LogisticRegression(max_iter=1000).fit(features[log], agrees[log])
            scores[-1] = scorer.predict_proba(features)[:, 1]

    def play(limits: tuple[float, ...], rows: Rows) -> Played:
        asked, answers = np.ones(len(rows), dtype=bool), said[rows].copy()
        for place, score, limit in zip(places, scores, limits, strict=True):
            here = asked & (score[rows] >= limit)
            answers[here] = table.predictions[rows, place][here]
            asked &= ~here
        return Played(asked, answers)

    grids = [
        np.append(np.unique(np.quantile(score[log], np.linspace(0, 1, 41))), np.inf)
        for score in scores
    ]
    ways = np.stack(np.meshgrid(*grids), axis=-1).reshape(-1, len(grids))
    tried = [play(tuple(way), log) for way in ways]
    calls = np.array([each.asked.mean() for each in tried])
    wrong = np.array([(each.answers != said[log]).mean() for each in tried])
    found = {}
    for drop in DROPS:
        allowed = np.flatnonzero(wrong <= drop)
        found[drop] = play(tuple(ways[allowed[calls[allowed].argmin()]]), coming)
    return found


def by_tracer(task: Task, log: Rows, coming: Rows, seed: int) -> dict[float, Played]:
    """Fit TRACER's pipelines on sentence embeddings and the last tier's answers."""
    from tracer.fit.pipeline import fit_frontier, route_pipeline

    said, found = task.said, {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frontier, _ = fit_frontier(
            task.embeddings[log], said[log], [1 - drop for drop in DROPS], skip=SLOW
        )
        for item in frontier:
            drop = min(DROPS, key=lambda each: abs(1 - each - item["target"]))
            found[drop] = everything(task, coming)
            if item["best"] and item["best"]["stages"]:
                answers, handled, _ = route_pipeline(
                    item["best"]["stages"], task.embeddings[coming]
                )
                handled = np.asarray(handled, dtype=bool)
                answers = np.where(handled, answers, said[coming])
                agreed = (answers == said[coming])[handled]
                broken = bool(len(agreed) and agreed.mean() < 1 - drop)
                found[drop] = Played(~handled, answers, broken)
    return found


def by_bargain(task: Task, log: Rows, coming: Rows, seed: int) -> dict[float, Played]:
    """Let BARGAIN answer the texts to come; it samples among them, and needs no log."""
    from BARGAIN import BARGAIN_A, Oracle, Proxy

    table, said = task.table.take(coming), task.said[coming]
    place = len(table.layers) - 2

    class Known(Proxy):  # type: ignore[misc]  # without types
        def get_preds_and_scores(
            self, rows: Rows, _: object
        ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
            return table.predictions[rows, place], table.confidence[rows, place]

    class Last(Oracle):  # type: ignore[misc]  # without types
        def get_pred(self, _: object, rows: Rows) -> NDArray[np.int64]:
            return said[rows]

        def is_answer_correct(
            self, rows: Rows, _: object, answers: NDArray[np.int64]
        ) -> NDArray[np.bool_]:
            same: NDArray[np.bool_] = said[rows] == answers
            return same

    found = {}
    for drop in DROPS:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            asked = BARGAIN_A(
                Known(), Last(), target=1 - drop, delta=1 - LEVEL, verbose=False, seed=seed
            )
            answers, used = asked.process(np.arange(len(coming)), return_oracle_usage=True)
        found[drop] = Played(np.array(used, dtype=bool), np.array(answers))
    return found


SYSTEMS: dict[str, Callable[[Task, Rows, Rows, int], dict[float, Played]]] = {
    "dimec": by_dimec,
    "FrugalGPT's rule": by_frugal,
    "TRACER": by_tracer,
    "BARGAIN": by_bargain,
}


def measure(task: Task, n_splits: dict[str, int]) -> None:
    n = len(task.table)
    print(
        f"\n{task.name}: {n:,} rows, {task.table.n_classes} classes; the device's last exit agrees with the last "
        f"tier on {100 * task.table.right[:, -2].mean():.1f} %; accuracy {100 * task.accuracy[0]:.1f}, last tier "
        f"{100 * task.accuracy[1]:.1f}"
    )
    print("| differ at most | system | splits | calls, % | differ, % | broken | own word broken |")
    print("|---|---|---|---|---|---|---|")
    rows: dict[tuple[float, str], tuple[float, str]] = {}
    for name, play in SYSTEMS.items():
        calls: dict[float, list[float]] = {drop: [] for drop in DROPS}
        wrong: dict[float, list[float]] = {drop: [] for drop in DROPS}
        own: dict[float, list[bool]] = {drop: [] for drop in DROPS}
        for split in range(n_splits[name]):
            drawn = np.random.default_rng([split, 0x9A7]).permutation(n)
            log, coming = np.sort(drawn[: n // 2]), np.sort(drawn[n // 2 :])
            for drop, played in play(task, log, coming, split).items():
                calls[drop].append(float(played.asked.mean()))
                wrong[drop].append(float((played.answers != task.said[coming]).mean()))
                if played.own_word_broken is not None:
                    own[drop].append(played.own_word_broken)
        for drop in DROPS:
            if not calls[drop]:
                continue
            mean, spread = np.mean(calls[drop]), np.std(calls[drop])
            broken = int((np.array(wrong[drop]) > drop + 1e-12).sum())
            word = f"{sum(own[drop])} of {len(own[drop])}" if own[drop] else ""
            rows[drop, name] = (
                float(mean),
                (
                    f"| {100 * drop:g} % | {name} | {len(calls[drop])} | {100 * mean:.1f} ± {100 * spread:.1f} | "
                    f"{100 * np.mean(wrong[drop]):.2f} | {broken} ({100 * broken / len(calls[drop]):.1f} %) | {word} |"
                ),
            )
    for drop in DROPS:
        for name in SYSTEMS:
            if (drop, name) in rows:
                print(rows[drop, name][1], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    usual = [each for each in os.environ.get("DIMEC_RUNS", "").split(":") if each]
    parser.add_argument("runs", nargs="*", default=usual, metavar="RUN[=OTHER]")
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--tracer", type=int, help="splits of TRACER, by default all")
    parser.add_argument("--bargain", type=int, default=20, help="splits of BARGAIN")
    given = parser.parse_args()
    counts = dict.fromkeys(SYSTEMS, given.splits)
    counts |= {"BARGAIN": min(given.bargain, given.splits)}
    counts |= {"TRACER": given.splits if given.tracer is None else given.tracer}
    for name, package in (("TRACER", "tracer"), ("BARGAIN", "BARGAIN")):
        if find_spec(package) is None:
            print(f"{name} is not installed, and left out")
            counts[name] = 0
    if not given.runs:
        print("no runs: name some, or set DIMEC_RUNS")
    for each in given.runs:
        measure(read_task(each, given.rows), counts)


if __name__ == "__main__":
    main()
