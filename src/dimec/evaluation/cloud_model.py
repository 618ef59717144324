"""Another model in the cloud: what it says of a run's rows, what it costs, and the run with it as the last layer.

The encoder is then what may answer before that model. All that is fitted, chosen and promised is against its answers:
they are all-cloud. An answer that names no class counts as wrong.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dimec.core.errors import OptionError, shown
from dimec.core.extras import needs_training
from dimec.core.progress import SILENT, Progress
from dimec.core.untrusted import read_bounded, trusting_nothing
from dimec.costs.billing import Billing
from dimec.costs.profiles import CostProfile, Speed, TierFigures, load_profile
from dimec.data import TextDataset
from dimec.data.logged import read_logged
from dimec.endpoints.asking import Price, ask_all
from dimec.endpoints.chat import PAIR_PROMPT, PROMPT, ChatEndpoint
from dimec.endpoints.kept import FILE, Kept
from dimec.endpoints.predict import PredictEndpoint
from dimec.endpoints.said import Classes, Endpoint, Text
from dimec.evaluation.options import CloudModelOptions
from dimec.evaluation.tier_models import SplitName, read_tier_model
from dimec.runs.exit_table import ExitTable
from dimec.runs.run import Run

HOSTED = "laptop"
"""The profile of what is not the model, where none is given: its edge costs nothing."""
_FEWEST = 30
_MOST_PROMPT_BYTES = 2**20
_NO_TIME = Speed(gflops=1e12, layer_overhead_ms=0.0, embedding_layers=0.0)


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model says about rows.

    Attributes:
        rows: Which rows of the asked ones have an answer.
        probabilities: [rows, classes].
        abstained: How many answers named no class.
        cost: [rows], dollars; None where nobody says.
        ms: [rows].
    """

    rows: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    abstained: int
    cost: NDArray[np.float64] | None
    ms: NDArray[np.float64]


def with_cloud_model(
    run: Run,
    options: CloudModelOptions,
    billing: Billing | None,
    *,
    table: ExitTable | None,
    dataset: TextDataset | None = None,
    progress: Progress = SILENT,
) -> tuple[Run, Billing]:
    """Return a run with another model in the cloud, and what prices its calls.

    Args:
        run: The run.
        options: Which model, how it is asked and what it costs.
        billing: What prices everything else.
        table: What the run's exits say of the rows that are evaluated, the run's test split from then on; None where
            nothing is evaluated, so that the model is asked about validation alone.
        dataset: Those rows, where they are not the test split.
        progress: Progress reporter.

    Raises:
        OptionError: If there is no such model, it has other classes, or too few rows have an answer.
        UnreachableError: If an endpoint gives no answer.
        DataError: If logged answers cannot be read.
        RunError: If what the run keeps is damaged.
    """
    if billing is not None and billing.unit == "lambda":
        raise OptionError(
            "--unit lambda prices layers of the encoder, and --cloud-model has none of these: leave it out, or choose "
            "money or ms"
        )
    model = _Model(run, options, progress)
    tables: dict[SplitName, ExitTable] = {"validation": run.validation}
    if table is not None:
        tables["test"] = table
    found: list[Answers] = []
    extended: list[ExitTable] = []
    for split, own in tables.items():
        answers = model.about(split, dataset if split == "test" else None)
        kept = own.take(answers.rows)
        behind = kept.before(_wrong_where_silent(answers.probabilities, kept.labels))
        extended.append(behind)
        found.append(answers)
        left_out = len(own) - len(kept)
        without = f"; {answers.abstained:,} named no class and count as wrong" * (
            answers.abstained > 0
        )
        progress.say(
            f"{model.name}: {len(kept):,} answers about {split}"
            + (f", {left_out:,} rows are left out" if left_out else "")
            + without
        )
        if len(kept) < _FEWEST:
            raise OptionError(
                f"{model.name} answers {len(kept)} rows of {split}, and at least {_FEWEST} are needed: log or ask more"
            )
    if table is None:
        extended.append(extended[0].take(np.arange(0)))
    validation, test = extended
    return run.before(model.name, validation, test), _billing(billing, found)


def _wrong_where_silent(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Where no class has a probability, spread it over those that are wrong."""
    silent = np.flatnonzero(probabilities.sum(axis=1) == 0)
    found = probabilities.copy()
    found[silent] = 1 / max(1, probabilities.shape[1] - 1)
    found[silent, labels[silent]] = 0
    return found


def _billing(billing: Billing | None, found: Sequence[Answers]) -> Billing:
    """Return what prices the calls at the mean of what they cost and took, and everything else as before."""
    profile = load_profile(HOSTED) if billing is None else billing.profile
    ms = float(np.concatenate([each.ms for each in found]).mean())
    costs = [each.cost for each in found if each.cost is not None]
    fee = float(np.concatenate(costs).mean()) if len(costs) == len(found) else 1.0
    if fee == 0:
        raise OptionError(
            "the model costs nothing by --model-price: give what it costs, or leave it out"
        )
    money = profile.money.model_copy(update={"cloud_second": 0.0, "cloud_request": fee})
    if not costs:
        money = money.model_copy(update={"currency": "calls"})
    about: dict[str, Any] = {
        "cloud": TierFigures(speed=_NO_TIME),
        "to_cloud": profile.to_cloud.model_copy(update={"round_trip_ms": ms}),
        "money": money,
    }
    priced = CostProfile.model_validate(profile.model_copy(update=about).model_dump())
    return Billing(priced, "money" if billing is None else billing.unit)


@dataclass(frozen=True)
class _Model:
    """Gives what the model that the options name says about rows."""

    run: Run
    options: CloudModelOptions
    progress: Progress

    @property
    def name(self) -> str:
        given = self.options.cloud_model
        return given if isinstance(given, str) else getattr(given, "__name__", "the function")

    def about(self, split: SplitName, dataset: TextDataset | None) -> Answers:
        """Return the answers about a split, or about the rows that stand in for it."""
        n = len(self.run.table(split)) if dataset is None else len(dataset)
        rows = np.arange(n)
        if self.options.ask_rows is not None and self.options.ask_rows < n:
            rows = np.sort(np.random.default_rng(0).permutation(n)[: self.options.ask_rows])
        given = self.options.cloud_model
        if isinstance(given, str) and not given.startswith(("chat:", "tei:", "table:")):
            return self._of_classifier(given, split, dataset, rows)
        texts = self._texts(split, dataset)
        asked = [texts[row] for row in rows]
        if not isinstance(given, str):
            assert given is not None
            return self._of_function(given, asked, rows)
        kind, _, where = given.partition(":")
        if kind == "table":
            return self._of_log(Path(where), asked, rows)
        return self._of_endpoint(self._endpoint(kind, where), split, asked, rows)

    def _texts(self, split: SplitName, dataset: TextDataset | None) -> list[Text]:
        if dataset is None:
            with needs_training():
                from dimec.training.texts import RunTexts
            dataset = RunTexts(self.run, progress=self.progress).of(split)
        return _paired(dataset)

    @property
    def _classes(self) -> Classes:
        return Classes.of(self.run.config.task.label_names, self.options.map)

    def _of_classifier(
        self, given: str, split: SplitName, dataset: TextDataset | None, rows: NDArray[np.int64]
    ) -> Answers:
        read = read_tier_model(
            self.run, given, option="--cloud-model", dataset=dataset, progress=self.progress
        )
        table = read.validation if split == "validation" else read.table
        probabilities = table.probabilities[rows, -1]
        return Answers(rows, probabilities, 0, self._cost(len(rows)), np.zeros(len(rows)))

    def _cost(self, n: int) -> NDArray[np.float64] | None:
        """Return the price of calls that count no tokens."""
        if self.options.model_price is None:
            return None
        return np.full(n, Price.of(self.options.model_price).call)

    def _of_function(
        self,
        ask: Callable[[Sequence[Any]], ArrayLike],
        asked: Sequence[Text],
        rows: NDArray[np.int64],
    ) -> Answers:
        """Ask a function of Python for the probabilities of all classes, [n, classes]."""
        plain = [text[0] if len(text) == 1 else text for text in asked]
        began = time.perf_counter()
        found = np.asarray(ask(plain), dtype=np.float64)
        ms = 1000 * (time.perf_counter() - began) / max(1, len(rows))
        classes = self.run.config.task.label_names
        wanted = (len(rows), len(classes))
        if found.shape != wanted or not np.isfinite(found).all() or (found < 0).any():
            raise OptionError(
                f"cloud_model returned {shown(found)} of shape {found.shape}: it must return probabilities of shape "
                f"{wanted}, in the order {', '.join(classes)}"
            )
        totals = found.sum(axis=1, keepdims=True)
        found = np.divide(found, totals, out=np.zeros_like(found), where=totals > 0)
        silent = int((totals == 0).sum())
        return Answers(rows, found, silent, self._cost(len(rows)), np.full(len(rows), ms))

    def _of_log(self, path: Path, asked: Sequence[Text], rows: NDArray[np.int64]) -> Answers:
        task, classes = self.run.config.task, self._classes
        logged = read_logged(path, task.label_names, pairs=task.pairs)
        there = np.array([text in logged for text in asked], dtype=bool)
        told = [logged[text] for text in asked if text in logged]
        said = [classes.spread(each.masses) for each in told]
        costs = [each.cost for each in told]
        priced = self._cost(len(told)) if None in costs else np.array(costs, dtype=np.float64)
        return _answers(
            rows[there], said, priced, [each.ms or 0.0 for each in told], len(task.label_names)
        )

    def _of_endpoint(
        self, endpoint: Endpoint, split: SplitName, asked: Sequence[Text], rows: NDArray[np.int64]
    ) -> Answers:
        price = None if self.options.model_price is None else Price.of(self.options.model_price)
        if self.options.max_spend is not None and price is None:
            raise OptionError("--max-spend needs --model-price, which says what an answer costs")
        n_classes = len(self.run.config.task.label_names)
        with Kept(self.run.folder / FILE) as kept:
            said = ask_all(
                endpoint,
                asked,
                kept,
                n_classes=n_classes,
                at_once=self.options.at_once,
                price=price,
                max_spend=self.options.max_spend,
                progress=self.progress,
                what=f"Asking about {split}",
            )
        cost = None if price is None else np.array([price.of_answer(each) for each in said])
        probabilities = [each.probabilities for each in said]
        return _answers(rows, probabilities, cost, [each.ms for each in said], n_classes)

    def _endpoint(self, kind: str, where: str) -> Endpoint:
        url, _, model = where.partition("#")
        if not url.startswith(("http://", "https://")) or (kind == "chat") != bool(model):
            raise OptionError(
                f"--cloud-model {self.name}: give chat:URL#MODEL or tei:URL with an http or https address, such as "
                "chat:http://localhost:8000/v1#llama"
            )
        if kind == "tei":
            return PredictEndpoint(url, self._classes, token=os.environ.get("DIMEC_TOKEN"))
        prompt = PAIR_PROMPT if self.run.config.task.pairs else PROMPT
        if self.options.prompt is not None:
            file = Path(self.options.prompt)
            with trusting_nothing(file, OptionError, remedy="give --prompt a text in UTF-8"):
                prompt = read_bounded(file, limit=_MOST_PROMPT_BYTES).decode()
        return ChatEndpoint(
            url,
            model,
            self._classes,
            prompt=prompt,
            examples=self._examples(),
            key=os.environ.get("OPENAI_API_KEY"),
        )

    def _examples(self) -> list[tuple[Text, str]]:
        """Return the first training rows of each class, the classes in turn."""
        if not self.options.shots:
            return []
        with needs_training():
            from dimec.training.texts import RunTexts
        rows = RunTexts(self.run, progress=self.progress).of("train")
        names = self.run.config.task.label_names
        texts = _paired(rows)
        shown_rows = [np.flatnonzero(rows.labels == label).tolist() for label in range(len(names))]
        return [
            (texts[places[shot]], name)
            for shot in range(self.options.shots)
            for places, name in zip(shown_rows, names, strict=True)
            if shot < len(places)
        ]


def _paired(dataset: TextDataset) -> list[Text]:
    """Return the texts of a data set, or its pairs."""
    if dataset.second is None:
        return [(each,) for each in dataset.first]
    return list(zip(dataset.first, dataset.second, strict=True))


def _answers(
    rows: NDArray[np.int64],
    said: Sequence[tuple[float, ...] | None],
    cost: NDArray[np.float64] | None,
    ms: Sequence[float],
    n_classes: int,
) -> Answers:
    probabilities = np.zeros((len(rows), n_classes))
    for row, each in zip(probabilities, said, strict=True):
        if each is not None:
            row[:] = each
    abstained = sum(each is None for each in said)
    return Answers(rows, probabilities, abstained, cost, np.array(ms, dtype=np.float64))
