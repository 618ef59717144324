"""A corpus from its files to its answers: what is to be done, by whom, and what came of it."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dimec.bundle import Bundle, TierManifest, load_bundle
from dimec.core.errors import DataError, OptionError
from dimec.core.outputs import check_output_folder, holding
from dimec.core.progress import SILENT, Progress
from dimec.core.tiers import TIERS, Step, Tier
from dimec.core.untrusted import Record
from dimec.corpus.asking import Asked, Bill, Books, Ledger, asked_models
from dimec.corpus.blocks import Corpus
from dimec.corpus.labelling import Labeller, Work
from dimec.corpus.on_ray import RayBooks, cluster, count_on_ray, label_on_ray
from dimec.corpus.options import BulkOptions
from dimec.corpus.store import Store
from dimec.policies import Policy
from dimec.policies.cascade import DimecCascade
from dimec.runtime.device.stages import can_run
from dimec.runtime.device.state import policy_fingerprint


class CorpusPromise(Record):
    """What is promised of the answers to a corpus.

    Attributes:
        max_drop_points: Their accuracy lies at most so many points under all-cloud's on this corpus.
        assurance: The probability with which that holds.
        sampled: How many rows were drawn.
        differing: On how many of them the operating point that was taken, or a safer one, differs from all-cloud.
        allowed: How many would have passed.
        point: Which operating point was taken, from the safest on; -1 is all-cloud.
        expected_cost: Its mean cost on the sample, in lambda.
    """

    max_drop_points: float
    assurance: float
    sampled: int = Field(ge=0)
    differing: int = Field(ge=0)
    allowed: int = Field(ge=-1)
    point: int = Field(ge=-1)
    expected_cost: float


class BulkSummary(Record):
    """What came of a corpus.

    Attributes:
        rows: The rows that have an answer.
        errors: The rows that have none, but a reason.
        degraded: The rows whose answer another tier had to give, since a model gave none.
        files: How many files they are from.
        shares: The share of the answers that each tier gave.
        cost: Their mean cost, in lambda or in ``currency``.
        currency: What costs are in; None for lambda.
        cost_vs_cloud: The same as a share of all-cloud's.
        asked: What the answers of other models came to, by tier.
        promise: What is promised; None where nothing was asked for.
        sentence: All of it in words.
    """

    rows: int
    errors: int
    degraded: int
    files: int
    shares: dict[Tier, float]
    cost: float
    currency: str | None
    cost_vs_cloud: float
    asked: dict[Tier, Bill]
    promise: CorpusPromise | None
    sentence: str


def label_corpus(
    bundle: Path, options: BulkOptions, *, out: str, progress: Progress = SILENT
) -> BulkSummary:
    """Label a corpus, or go on with it where a process was killed.

    Raises:
        BundleError: If the bundle cannot be used.
        DataError: If there is no corpus, or a file cannot be read.
        OptionError: If the policy learns, no promise can be made of it, ``out`` holds another job, or a tier's model
            refuses everything or would cost more than may be spent.
    """
    bundle = bundle.resolve()
    opened = load_bundle(bundle)
    policy = opened.mobile.policy()
    _check(opened, policy, options)
    asked = asked_models(opened, options)
    with ExitStack() as stack:
        if "://" not in out:
            data = None if "://" in options.data else options.data
            check_output_folder(out, inputs={"--data": data, "BUNDLE": bundle})
            out = str(Path(out).absolute())
            stack.enter_context(holding(out, doing="labelling a corpus into"))
        corpus = Corpus.of(
            options.data,
            options,
            id_column=options.id_column,
            pairs=opened.mobile.manifest.task.pairs,
        )
        store = Store(out)
        store.begin(_job(opened, policy, corpus, options, asked))
        if options.ray is not None:
            stack.enter_context(cluster(options.ray))
        books: Books | None = None
        if asked:
            kind: type[Ledger | RayBooks] = Ledger if options.ray is None else RayBooks
            books = kind(
                store.place,
                asked,
                n_classes=len(opened.mobile.manifest.label_names),
                max_spend=options.max_spend,
            )
            stack.callback(books.close)
        work = Work(
            bundle,
            store.place,
            corpus.paths,
            options.engine,
            1 if options.ray is not None and options.threads is None else options.threads,
            asked=asked,
            books=books,
        )
        return _Run(opened.mobile.manifest, corpus, store, options, work, progress).all()


def _check(bundle: Bundle, policy: Policy, options: BulkOptions) -> None:
    if policy.learns or not can_run(policy):
        raise OptionError(
            f"the policy {policy.name} of {bundle.folder} learns from texts, or ships hidden states, so that answers "
            "hang on their order: export one that does not, such as dimec-cascade"
        )
    if options.max_drop is None:
        return
    if asked := bundle.mobile.manifest.asked:
        raise OptionError(
            f"--max-drop {options.max_drop:g}: the {next(iter(asked))} tier of {bundle.folder} is another model, whose "
            "answers are not promised about a corpus: leave it out, or export with --assurance"
        )
    if not isinstance(policy, DimecCascade):
        raise OptionError(
            f"--max-drop {options.max_drop:g} chooses among operating points of dimec-cascade, and {bundle.folder} "
            f"holds {policy.name}: leave it out, or export a cascade"
        )
    quantized = [tier for tier in TIERS if (part := bundle.of(tier)) and part.manifest.quantized]
    if quantized:
        raise OptionError(
            f"--max-drop {options.max_drop:g}: the {quantized[0]} tier of {bundle.folder} has 8-bit weights, and its "
            "answers hang on the batch, so that a sample does not tell what the corpus gets: leave it out, or export "
            "without --quantize"
        )


def _job(
    bundle: Bundle,
    policy: Policy,
    corpus: Corpus,
    options: BulkOptions,
    asked: tuple[Asked, ...],
) -> dict[str, Any]:
    models = {str(each.tier): each.whose for each in asked}
    return {
        **({"model": models} if models else {}),
        "format": 1,
        "bundle": f"{bundle.mobile.manifest.model_fingerprint} {policy_fingerprint(policy)}",
        "corpus": f"sha256:{corpus.fingerprint}",
        "text_column": options.text_column,
        "pair_column": options.pair_column,
        "id_column": options.id_column,
        "skip_empty": options.skip_empty,
        "max_drop": options.max_drop,
        "assurance": options.assurance,
        "engine": options.engine,
    }


@dataclass(frozen=True)
class _Run:
    """The steps of one job; each leaves what it found in the store, and is not taken twice."""

    manifest: TierManifest
    corpus: Corpus
    store: Store
    options: BulkOptions
    work: Work
    progress: Progress

    @property
    def cloud_cost(self) -> float:
        return self.manifest.costs.of([Step(Tier.CLOUD, self.manifest.n_layers)])

    def all(self) -> BulkSummary:
        """Count, promise where that is asked for, label, and sum up."""
        counts = self._counts()
        n_rows = sum(each for each, _ in counts)
        if not sum(good for _, good in counts):
            raise DataError(
                f"--data {self.corpus.place}: no row of it holds a text: check --text-column"
            )
        promise = None
        if self.options.max_drop is not None:
            promise = self._promise(counts)
        work = self.work if promise is None else replace(self.work, policy=promise.point)
        self._label(work, None, n_rows, "Labelling")
        summary = self._summary(promise)
        self.store.finish(summary.model_dump(mode="json"))
        return summary

    def _counts(self) -> list[tuple[int, int]]:
        kept = self.store.document("counts.json")
        if kept is None:
            n_files = len(self.corpus.paths)
            with self.progress.stage("Counting rows", n_files) as advance:
                if self.options.ray is not None:
                    kept = count_on_ray(self.corpus)
                    advance(n_files)
                else:
                    kept = []
                    for file in range(n_files):
                        kept.append(self.corpus.count(file))
                        advance(1)
            self.store.keep("counts.json", kept)
        return [(int(n_rows), int(n_good)) for n_rows, n_good in kept]

    def _label(
        self, work: Work, only: dict[int, NDArray[np.int64]] | None, n_rows: int, what: str
    ) -> None:
        """Label every block that has no part yet."""
        done = self.store.done(work.kind)
        there = sum(part.num_rows for part in self.store.parts(work.kind, ["row"]))
        left = max(0, n_rows - there)
        if done:
            self.progress.say(f"Going on after {len(done):,} blocks.")
        with self.progress.stage(what, left) as advance:
            for n in self._labelled(work, done, only):
                advance(n)

    def _labelled(
        self, work: Work, done: set[str], only: dict[int, NDArray[np.int64]] | None
    ) -> Iterator[int]:
        """Label blocks, and give the rows of each."""
        if self.options.ray is not None:
            yield from label_on_ray(
                self.corpus, work, done=done, only=only, workers=self.options.workers
            )
            return
        labeller = Labeller(work)
        try:
            for file in range(len(self.corpus.paths)) if only is None else only:
                rows = None if only is None else only[file]
                for block in self.corpus.blocks(file, done=done, only=rows):
                    yield labeller(block)
        finally:
            labeller.close()

    def _promise(self, counts: list[tuple[int, int]]) -> CorpusPromise:
        """Draw the sample, have all-cloud answer it, and take the cheapest operating point that passes."""
        from dimec.deploying.corpus import DOUBTS, last_passing, most_differing, sample_size

        kept = self.store.document("promise.json")
        if kept is not None:
            return CorpusPromise.model_validate(kept)
        max_drop, assurance = self.options.max_drop, self.options.assurance
        assert max_drop is not None
        sizes = np.array([n_rows for n_rows, _ in counts])
        n_rows, n_good = int(sizes.sum()), sum(good for _, good in counts)
        # Rows without an answer are drawn too, and never differ: what may differ is a share of the others.
        share = max_drop / 100 * n_good / n_rows
        n = sample_size(n_rows, max_drop=share, assurance=assurance)
        # The same for the same job, so that a killed one goes on with its sample.
        job = hashlib.sha256(repr(self.store.document("job.json")).encode()).digest()
        drawn = np.sort(np.random.default_rng(list(job)).choice(n_rows, n, replace=False))
        begins = np.concatenate([[0], np.cumsum(sizes)])
        file = np.searchsorted(begins, drawn, side="right") - 1
        only = {int(each): drawn[file == each] - begins[each] for each in np.unique(file).tolist()}
        work = replace(self.work, kind="sample")
        self._label(work, only, n, "Asking all-cloud about a sample")
        parts = list(self.store.parts("sample", ["differs", "costs"]))
        differs, costs = (
            np.array([row for part in parts for row in part[name].to_pylist()], dtype=kind).reshape(
                -1, len(DOUBTS)
            )
            for name, kind in (("differs", bool), ("costs", float))
        )
        most = most_differing(n_rows, n, max_drop=share, assurance=assurance)
        last = last_passing(differs.T, most)
        # All that pass keep the promise together, and all-cloud always does: the cheapest of them is taken.
        n_passing = 0 if last is None or not len(costs) else last + 1
        passing = costs[:, :n_passing].mean(axis=0).tolist() if n_passing else []
        cost = min([self.cloud_cost, *passing])
        point = [self.cloud_cost, *passing].index(cost) - 1
        promise = CorpusPromise(
            max_drop_points=max_drop,
            assurance=assurance,
            sampled=n,
            differing=int(differs[:, : point + 1].any(axis=1).sum()),
            allowed=most,
            point=point,
            expected_cost=cost,
        )
        self.store.keep("promise.json", promise.model_dump(mode="json"))
        return promise

    def _summary(self, promise: CorpusPromise | None) -> BulkSummary:
        tiers: Counter[str] = Counter()
        cost, errors, degraded = 0.0, 0, 0
        for part in self.store.parts("answers", ["tier", "cost", "degraded"]):
            answered = [each for each in part["tier"].to_pylist() if each is not None]
            tiers.update(answered)
            errors += part.num_rows - len(answered)
            degraded += part.num_rows - part["degraded"].null_count
            cost += math.fsum(each for each in part["cost"].to_pylist() if each is not None)
        n = tiers.total()
        mean = cost / n
        shares = {tier: tiers[tier] / n for tier in TIERS}
        said = ", ".join(f"{tier} {shares[tier]:.0%}" for tier in TIERS)
        sentence = (
            f"{n:,} rows of {len(self.corpus.paths):,} files labelled: {said}; cost {self._money(mean)} a row, "
            f"{mean / self.cloud_cost:.0%} of all-cloud's"
        )
        bills = {} if self.work.books is None else self.work.books.bills()
        for tier, bill in bills.items():
            sentence += (
                f"; {bill.answers:,} answers of the {tier}'s model came to {self._money(bill.cost)}"
            )
        if degraded:
            sentence += (
                f"; {degraded:,} rows were answered by another tier, since the model gave no answer"
            )
        if errors:
            sentence += f"; {errors:,} rows have no answer but an error"
        if promise is not None:
            sentence += f". {_promised(promise)}"
        return BulkSummary(
            rows=n,
            errors=errors,
            degraded=degraded,
            files=len(self.corpus.paths),
            shares=shares,
            cost=mean,
            currency=self.manifest.currency,
            cost_vs_cloud=mean / self.cloud_cost,
            asked=bills,
            promise=promise,
            sentence=f"{sentence}.",
        )

    def _money(self, cost: float) -> str:
        currency = self.manifest.currency
        return f"{cost:.2f} λ" if currency is None else f"{cost:.4g} {currency}"


def _promised(promise: CorpusPromise) -> str:
    if promise.point < 0:
        return (
            f"All-cloud answered everything: by {promise.sampled:,} sampled rows no cheaper operating point can be "
            f"promised within {promise.max_drop_points:g} points"
        )
    return (
        f"With {100 * promise.assurance:g} % assurance the accuracy on this corpus is at most "
        f"{promise.max_drop_points:g} points under all-cloud's: of {promise.sampled:,} sampled rows "
        f"{promise.differing:,} were answered otherwise, and {promise.allowed:,} were allowed"
    )
