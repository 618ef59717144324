"""What else could stand where exit zero stands: candidates fitted on the training rows of finished runs, side by side.

For each run folder (with its texts): hashed token n-grams as the product has them, without pairs of neighbours, of
words instead of the tokenizer's pieces, logistic regression on the mean embedding, both together, k nearest neighbours
among the mean embeddings, and two that rank samples without classifying them: nearest whitened centroid (PCA-64) of
the cartography pools, and ridge regression of the training rows' mean true-label probability on hashed n-grams.
Settings are chosen on a tenth of the training rows. own, mobile, last: AUC for "it is right", "the mobile exit is
right", "the last exit is right". cost and score are those of `dimec-cascade` at the default price, with the candidate
as its exit zero, charged alike whatever it is; on the validation rows its borders were fitted. us: one text at a time
from its token ids, the embedding included where it is needed, and for words without finding them.

    python benchmarks/bench_exit_zero.py RUN ... [--rows 20000]
"""

from __future__ import annotations

import argparse
import re
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags, hstack
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge

from dimec.core.metrics import auc, confusion, score
from dimec.core.tiers import Depths, method_depths, softmax
from dimec.costs.model import CostModel
from dimec.data import TextDataset, tokenize
from dimec.data.tasks import Task
from dimec.evaluation import replay
from dimec.policies import Calibration
from dimec.policies.cascade import DimecCascade
from dimec.runs.exit_table import ExitTable
from dimec.runs.exit_zero import N_BUCKETS, features
from dimec.runs.run import Run
from dimec.training.model import load_model
from dimec.training.texts import split_texts

SPLITS = ("validation", "test")
STRENGTHS = (1.0, 10.0)
NEIGHBOURS = (10, 40, 160)
RIDGES = (1.0, 10.0)
TIMED = 200

Floats = NDArray[np.floating]
Ids = NDArray[np.integer]


@dataclass(frozen=True, eq=False)
class Rows:
    """Some texts in every form that a candidate reads."""

    labels: NDArray[np.int64]
    pieces: list[Ids]
    words: list[Ids]
    embeddings: Floats


@dataclass(frozen=True, eq=False)
class Candidate:
    """A fitted candidate: what it says about rows, logits or a score for "easy", and its work on one training row."""

    name: str
    say: Callable[[Rows], Floats]
    n_bytes: int
    one: Callable[[int], object]


@dataclass(frozen=True, eq=False)
class Bench:
    """A run with its rows; ``fitting`` and ``choosing`` part the training rows."""

    run: Run
    train: Rows
    others: dict[str, Rows]
    frame: tuple[int, ...]
    true_probability: Floats
    mobile_right: NDArray[np.bool_]
    spread: Floats
    fitting: NDArray[np.int64]
    choosing: NDArray[np.int64]
    embed: Callable[[int], Floats]

    @property
    def n_classes(self) -> int:
        return len(self.run.config.task.label_names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--rows", type=int, default=20_000, help="training rows to use at most")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    for folder in arguments.runs:
        report(read(Run.open(folder), arguments.rows))


def read(run: Run, limit: int) -> Bench:
    """Tokenise and embed a run's texts, and read how it saw the training rows."""
    loaded = load_model(run.model_folder)
    table = loaded.model.adapter.embedding_table()
    task = run.config.task
    vocabulary: dict[str, int] = {}

    def rows(dataset: TextDataset) -> Rows:
        length = run.config.options.max_length
        tokens = tokenize(dataset, loaded.tokenizer, max_length=length)
        types = tokens.token_type_ids
        means = [
            table.mean(ids, None if types is None else types[row])
            for row, ids in enumerate(tokens.input_ids)
        ]
        texts = zip(dataset.first, dataset.second or [""] * len(dataset), strict=True)
        words = [_words(each, vocabulary, pairs=task.pairs) for each in texts]
        return Rows(dataset.labels, list(tokens.input_ids), words, np.stack(means))

    chosen, dynamics = _training_texts(run, limit)
    train = rows(chosen)
    order = np.random.default_rng(0).permutation(len(train.labels))
    held = len(order) // 10
    empty = ("", "") if task.pairs else ("",)
    return Bench(
        run,
        train,
        {split: rows(split_texts(run, split)) for split in SPLITS},  # type: ignore[arg-type]
        tuple(sorted(set(loaded.tokenizer(*empty)["input_ids"]))),
        *dynamics,
        order[held:],
        order[:held],
        lambda row: table.mean(train.pieces[row]),
    )


def _training_texts(run: Run, limit: int) -> tuple[TextDataset, tuple[Any, Any, Any]]:
    """Return training texts, and of each the mean, last correctness and spread of its dynamics at the mobile exit."""
    columns = pq.read_table(
        run.folder / "texts.parquet", filters=[("split", "=", "train")]
    ).to_pydict()
    task = run.config.task
    names = ("first", "second") if task.pairs else ("first",)
    dataset = TextDataset(
        task=Task(task.name, task.label_names, metric=task.metric, text_columns=names),
        first=tuple(columns["first"]),
        second=tuple(columns["second"]) if task.pairs else None,
        labels=np.array([task.label_names.index(label) for label in columns["label"]]),
        row_ids=np.array(columns["row_id"], dtype=np.int64),
        source="the training split",
    )
    rows = np.sort(np.random.default_rng(1).permutation(len(dataset))[:limit])
    dataset = dataset.take(rows)
    layer = _depths(run).mobile
    wanted = ("row_id", "epoch", f"true_probability_{layer}", f"correct_{layer}")
    kept = pq.read_table(run.folder / "dynamics.parquet", columns=list(wanted))
    ids, epochs, probability, correct = (np.asarray(kept[name]) for name in wanted)
    seen = np.isin(ids, dataset.row_ids)
    order = np.lexsort((epochs[seen], ids[seen]))
    shape = (len(dataset), -1)
    probability = probability[seen][order].reshape(shape)
    correct = correct[seen][order].reshape(shape)
    back = np.argsort(np.argsort(dataset.row_ids))
    return dataset, (
        probability.mean(axis=1)[back],
        correct[:, -1][back].astype(bool),
        probability.std(axis=1)[back],
    )


def _depths(run: Run) -> Depths:
    return method_depths("ee", run.config.n_layers)


def _words(texts: tuple[str, str], vocabulary: dict[str, int], *, pairs: bool) -> Ids:
    """Number the words of a text, or of two, in a frame of zeros."""
    ids = [0]
    for text in texts if pairs else texts[:1]:
        found = re.findall(r"\w+|[^\w\s]", text.lower())
        ids += [vocabulary.setdefault(word, len(vocabulary) + 1) for word in found] + [0]
    return np.array(ids)


# --- candidates


def hashed(bench: Bench, *, kind: str = "pieces", neighbours: bool = True) -> Counts:
    frame = bench.frame if kind == "pieces" else (0,)
    pairs = bench.run.config.task.pairs

    def of(ids: Ids) -> NDArray[np.uint32]:
        if neighbours:
            return features(ids, frame=frame, pairs=pairs)
        return _singles(ids, frame, pairs=pairs)

    return Counts(lambda rows: [of(ids) for ids in getattr(rows, kind)])


def _singles(ids: Ids, frame: tuple[int, ...], *, pairs: bool) -> NDArray[np.uint32]:
    """Return the buckets of single tokens: those of each alone, or shared, in the first and in the second text."""
    if not pairs:
        return features(ids, frame=frame, pairs=False)[: len(ids)]
    border = [place for place in range(1, len(ids) - 1) if ids[place] in frame]
    cut = border[0] if border else len(ids)
    a, b = set(ids[:cut].tolist()) - {*frame}, set(ids[cut:].tolist()) - {*frame}
    marked = [
        [4 * token + which for token in part] for which, part in enumerate((a & b, a - b, b - a))
    ]
    overlap = 3 + 4 * (10 * len(a & b) // max(1, len(a | b)))
    return (np.array(sum(marked, [overlap]), dtype=np.uint32) * np.uint32(0x9E3779B1)) >> np.uint32(
        14
    )


class Counts:
    """How often rows have each bucket, weighted and scaled as exit zero does; each set of rows is read once."""

    def __init__(self, buckets: Callable[[Rows], Sequence[NDArray[np.uint32]]]) -> None:
        self._buckets = buckets
        self._read: dict[int, csr_matrix] = {}
        self._weights: Floats = np.ones(N_BUCKETS)

    def fit(self, rows: Rows) -> None:
        """Take inverse document frequencies from some rows."""
        counts = self._counts(rows)
        seen = np.bincount(counts.indices, minlength=N_BUCKETS)
        self._weights = np.log((1 + counts.shape[0]) / (1 + seen)) + 1

    def matrix(self, rows: Rows) -> csr_matrix:
        counts = self._counts(rows)
        lengths = np.sqrt(np.maximum(counts @ self._weights**2, 1e-6))
        scaled: csr_matrix = (diags(1 / lengths) @ counts @ diags(self._weights)).tocsr()
        return scaled

    def one(self, rows: Rows, width: int) -> Callable[[int], object]:
        """Return the work on one row, with so many numbers to read of each bucket."""
        texts = [
            Rows(rows.labels[:1], [a], [b], rows.embeddings[:1])
            for a, b in zip(rows.pieces[:TIMED], rows.words, strict=False)
        ]
        read = np.ones((N_BUCKETS, width), dtype=np.float32)
        return lambda row: read.take(self._buckets(texts[row])[0], axis=0).sum(axis=0)

    def _counts(self, rows: Rows) -> csr_matrix:
        if id(rows) not in self._read:
            found = self._buckets(rows)
            ends = np.cumsum([0, *map(len, found)])
            columns = np.concatenate(found).astype(np.int32)
            shape = (len(found), N_BUCKETS)
            counts = csr_matrix((np.ones(len(columns)), columns, ends), shape=shape)
            counts.sum_duplicates()
            self._read[id(rows)] = counts
        return self._read[id(rows)]


def candidates(bench: Bench) -> Iterable[Candidate]:
    """Fit every candidate."""
    n_bytes = 2 * N_BUCKETS * (bench.n_classes + 1)
    pieces = hashed(bench)
    kinds = {
        "hashed pieces (ours)": pieces,
        "  without neighbours": hashed(bench, neighbours=False),
        "  words": hashed(bench, kind="words"),
    }
    for name, counts in kinds.items():
        counts.fit(bench.train)
        model = regression(bench, counts.matrix, STRENGTHS)
        yield Candidate(name, model, n_bytes, counts.one(bench.train, bench.n_classes + 1))
    centre = bench.train.embeddings.mean(axis=0)
    scale = bench.train.embeddings.std(axis=0) + 1e-6

    def dense(rows: Rows) -> Floats:
        scaled: Floats = (rows.embeddings - centre) / scale / np.sqrt(len(scale))
        return scaled

    width = 4 * len(scale) * (bench.n_classes + 2)
    head = np.ones((len(scale), bench.n_classes), dtype=np.float32)

    def headed(row: int) -> Floats:
        return bench.embed(row) @ head

    model = regression(bench, dense, (10.0, 100.0))
    yield Candidate("mean embedding", model, width, headed)
    hashing = pieces.one(bench.train, bench.n_classes + 1)
    yield Candidate(
        "hashed + mean embedding",
        regression(
            bench,
            lambda rows: hstack([pieces.matrix(rows), csr_matrix(dense(rows))]).tocsr(),
            STRENGTHS,
        ),
        n_bytes + width,
        lambda row: (hashing(row), headed(row)),
    )
    n_train = len(bench.train.labels)
    known = np.ones((n_train, len(scale)), dtype=np.float32)
    yield Candidate(
        "k-NN",
        neighbours(bench, dense),
        known.nbytes,
        lambda row: np.argpartition(known @ bench.embed(row), 40),
    )
    projection = np.ones((len(scale), 64), dtype=np.float32)
    pools = np.ones((3, 64), dtype=np.float32)
    yield Candidate(
        "whitened centroids",
        whitened(bench),
        projection.nbytes + pools.nbytes + 4 * len(scale),
        lambda row: np.linalg.norm(pools - bench.embed(row) @ projection, axis=1),
    )
    model = difficulty(bench, pieces)
    yield Candidate("regressed mean p", model, 4 * N_BUCKETS, pieces.one(bench.train, 2))


def microseconds(candidate: Candidate, n: int) -> float:
    """Return what one row takes: the best of five rounds."""
    best = np.inf
    for _ in range(5):
        begin = time.perf_counter()
        for row in range(n):
            candidate.one(row)
        best = min(best, (time.perf_counter() - begin) / n)
    return 1e6 * best


def regression(
    bench: Bench, matrix: Callable[[Rows], Any], strengths: Sequence[float]
) -> Callable[[Rows], Floats]:
    """Fit logistic regressions and keep the one with the least log loss on the choosing rows."""
    known, labels = matrix(bench.train), bench.train.labels
    fitting, choosing = bench.fitting, bench.choosing

    def fit(rows: NDArray[np.int64], strength: float) -> LogisticRegression:
        return LogisticRegression(C=strength, max_iter=200).fit(known[rows], labels[rows])

    losses = [
        log_loss(_logits(fit(fitting, each), known[choosing]), labels[choosing])
        for each in strengths
    ]
    model = fit(np.arange(len(labels)), strengths[int(np.argmin(losses))])
    return lambda rows: _logits(model, matrix(rows))


def _logits(model: LogisticRegression, matrix: object) -> Floats:
    margin = model.decision_function(matrix)
    both: Floats = np.stack([-margin, margin], axis=1) / 2 if margin.ndim == 1 else margin
    return both


def neighbours(bench: Bench, dense: Callable[[Rows], Floats]) -> Callable[[Rows], Floats]:
    """Vote among the nearest training rows by cosine; how many is chosen on the choosing rows."""
    known = _unit(dense(bench.train)).astype(np.float32)
    labels = bench.train.labels

    def votes(points: Floats, among: NDArray[np.int64], k: int) -> Floats:
        out = np.empty((len(points), bench.n_classes))
        for start in range(0, len(points), 500):
            near = points[start : start + 500].astype(np.float32) @ known[among].T
            best = labels[among][np.argpartition(-near, k, axis=1)[:, :k]]
            out[start : start + 500] = [
                np.bincount(each, minlength=bench.n_classes) for each in best
            ]
        shares: Floats = np.log((out + 1) / (k + bench.n_classes))
        return shares

    ours, truth = known[bench.choosing], labels[bench.choosing]
    ks = [k for k in NEIGHBOURS if k < len(bench.fitting)]
    losses = [log_loss(votes(ours, bench.fitting, k), truth) for k in ks]
    k, everyone = ks[int(np.argmin(losses))], np.arange(len(labels))
    return lambda rows: votes(_unit(dense(rows)), everyone, k)


def _unit(points: Floats) -> Floats:
    scaled: Floats = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-6)
    return scaled


def whitened(bench: Bench) -> Callable[[Rows], Floats]:
    """Score by d(hard) - d(easy) after PCA-64 with equal variances; alpha and beta by AUC on the choosing rows."""
    points = bench.train.embeddings.astype(np.float64)
    centre = points.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov((points - centre).T))
    projection = vectors[:, -64:] / np.sqrt(values[-64:])
    white = (points - centre) @ projection

    def centroids(rows: NDArray[np.int64], alpha: float, beta: float) -> Floats | None:
        sure = bench.true_probability[rows] >= alpha
        easy = sure & (bench.spread[rows] < beta)
        if min(easy.sum(), (~sure).sum()) < 5:
            return None
        return np.stack([white[rows][easy].mean(axis=0), white[rows][~sure].mean(axis=0)])

    def scores(at: Floats, pair: Floats) -> Floats:
        distances = np.linalg.norm(at[:, None] - pair, axis=2)
        nearer: Floats = distances[:, 1] - distances[:, 0]
        return nearer

    best, most = None, -1.0
    for alpha in (0.55, 0.6, 0.65, 0.7, 0.8):
        for beta in (0.05, 0.08, 0.11, 0.14, 0.17):
            pair = centroids(bench.fitting, alpha, beta)
            if pair is None:
                continue
            found = auc(scores(white[bench.choosing], pair), bench.mobile_right[bench.choosing])
            if found is not None and found > most:
                best, most = centroids(np.arange(len(points)), alpha, beta), found
    assert best is not None
    chosen = best
    return lambda rows: scores((rows.embeddings - centre) @ projection, chosen)


def difficulty(bench: Bench, counts: Counts) -> Callable[[Rows], Floats]:
    """Regress the training rows' mean true-label probability at the mobile exit on hashed n-grams."""
    known, truth = counts.matrix(bench.train), bench.true_probability

    def fit(rows: NDArray[np.int64], strength: float) -> Ridge:
        return Ridge(alpha=strength, solver="lsqr").fit(known[rows], truth[rows])

    errors = [
        np.square(
            fit(bench.fitting, each).predict(known[bench.choosing]) - truth[bench.choosing]
        ).mean()
        for each in RIDGES
    ]
    model = fit(np.arange(len(truth)), RIDGES[int(np.argmin(errors))])
    return lambda rows: np.asarray(model.predict(counts.matrix(rows)))


def log_loss(logits: Floats, labels: NDArray[np.int64]) -> float:
    said = np.maximum(softmax(logits)[np.arange(len(labels)), labels], 1e-12)
    return float(-np.log(said).mean())


# --- the table


def report(bench: Bench) -> None:
    """Print one line per candidate and split."""
    run, costs = bench.run, CostModel()
    print(f"\n{run.config.task.name}: {len(bench.train.labels)} training rows")
    print(
        f"{'':26}{'split':11}{'acc':>6}{'loss':>7}{'own':>6}{'mobile':>7}{'last':>6}{'cost':>7}{'score':>7}"
        f"{'us':>8}{'KiB':>8}"
    )
    depths = _depths(run)
    tables = {"validation": run.validation, "test": run.test}
    known = {split: table.exit_zero for split, table in tables.items()}
    if all(said is not None for said in known.values()):
        line_of(bench, "exit zero of the run", known, tables, depths, costs, None)
    for candidate in candidates(bench):
        said = {split: candidate.say(rows) for split, rows in bench.others.items()}
        line_of(bench, candidate.name, said, tables, depths, costs, candidate)


def line_of(
    bench: Bench,
    name: str,
    said: dict[str, Any],
    tables: dict[str, ExitTable],
    depths: Depths,
    costs: CostModel,
    candidate: Candidate | None,
) -> None:
    classifies = said["test"].ndim == 2
    policy = None
    if classifies:
        ours = {
            split: replace(tables[split], exit_zero=said[split].astype(np.float32))
            for split in SPLITS
        }
        both = {"dc": depths, "ee": depths}
        policy = DimecCascade.fit(Calibration(ours["validation"], both, costs=costs))  # type: ignore[arg-type]
    for split in SPLITS:
        table = tables[split]
        mobile = table.right[:, table.exit(depths.mobile)]
        last = table.right[:, table.exit(table.n_layers)]
        cells = [f"{name:26}" if split == SPLITS[0] else " " * 26, f"{split:11}"]
        if policy is not None:
            probabilities = softmax(said[split])
            sure, own = (
                probabilities.max(axis=1),
                probabilities.argmax(axis=1) == table.labels,
            )
            played = replay(policy, ours[split], costs=costs)
            matrix = confusion(table.labels, played.predictions, n_classes=bench.n_classes)
            reached = score(bench.run.config.task.metric, matrix)
            cells += [f"{100 * own.mean():6.1f}{log_loss(said[split], table.labels):7.3f}"]
            cells += [_hundredth(auc(sure, own), 6)]
        else:
            sure = said[split]
            cells += [f"{'':19}"]
        cells += [_hundredth(auc(sure, mobile), 7), _hundredth(auc(sure, last), 6)]
        cells += (
            [f"{played.costs.mean():7.2f}{100 * reached:7.2f}"]
            if policy is not None
            else [" " * 14]
        )
        if candidate is not None and split == SPLITS[0]:
            took = microseconds(candidate, min(TIMED, len(bench.train.labels)))
            cells += [f"{took:8.1f}{candidate.n_bytes / 1024:8.0f}"]
        print("".join(cells).rstrip(), flush=True)


def _hundredth(value: float | None, width: int) -> str:
    return f"{'':>{width}}" if value is None else f"{100 * value:{width}.1f}"


if __name__ == "__main__":
    main()
