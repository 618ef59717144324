"""Models of others on the tiers: what they say of a run's rows, and what they cost.

Each tier may hold one. In the cloud it stands as one more layer behind the encoder, which may then lie on the device as
a whole; all that is fitted, chosen and promised is against its answers: they are all-cloud. On the device and the edge
it stands in place of the encoder's first layers. An answer that names no class counts as wrong.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dimec.bundle.manifest import FORMAT, AskedModel
from dimec.bundle.tokenizer import TierTokenizer
from dimec.core.errors import BundleError, MissingExtraError, OptionError, shown
from dimec.core.extras import needs_training
from dimec.core.progress import SILENT, Progress
from dimec.core.tiers import TIERS, Tier
from dimec.core.untrusted import read_bounded, trusting_nothing
from dimec.costs.billing import Billing
from dimec.costs.profiles import CostProfile, Speed, TierFigures, load_profile
from dimec.data import TextDataset
from dimec.data.logged import read_logged
from dimec.endpoints.asking import ask_all
from dimec.endpoints.http import Access
from dimec.endpoints.kept import FILE, Kept
from dimec.endpoints.opening import Address, open_endpoint
from dimec.endpoints.prices import Price, PriceList
from dimec.endpoints.said import Classes, Question, Text
from dimec.evaluation.options import ModelOptions
from dimec.evaluation.tier_models import SplitName, TierModel, layer_weights, read_tier_model
from dimec.runs.exit_table import ExitTable, logits_of
from dimec.runs.run import Run

if TYPE_CHECKING:
    from dimec.training.texts import RunTexts

HOSTED = "laptop"
"""The profile of what is no model of others, where none is given: its edge costs nothing."""
_FEWEST = 30
_MOST_PROMPT_BYTES = 2**20
_NO_TIME = Speed(gflops=1e12, layer_overhead_ms=0.0, embedding_layers=0.0)
_LOCAL = ("run", "hf", "bundle", "static")


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


@dataclass(frozen=True, eq=False)
class Others:
    """A run with models of others on its tiers.

    Attributes:
        run: The run, with the cloud's model as its last layer; its tables hold the rows that all models answered.
        models: What stands on the device and the edge.
        billing: What prices calls and everything else.
        asked: Of the edge and the cloud, what a server needs to ask their models; empty of a tier that is none.
    """

    run: Run
    models: Mapping[Tier, TierModel] = field(default_factory=dict)
    billing: Billing | None = None
    asked: Mapping[Tier, AskedModel] = field(default_factory=dict)


def line_up(
    run: Run,
    options: ModelOptions,
    billing: Billing | None,
    *,
    table: ExitTable | None,
    dataset: TextDataset | None = None,
    progress: Progress = SILENT,
) -> Others:
    """Return a run with the models that options put on its tiers, and what prices their calls.

    Args:
        run: The run.
        options: Which models, how they are asked and what they cost.
        billing: What prices everything else.
        table: What the run's exits say of the rows that are evaluated, the run's test split from then on; None where
            nothing is evaluated, so that models are asked about validation alone.
        dataset: Those rows, where they are not the test split.
        progress: Progress reporter.

    Raises:
        OptionError: If there is no such model, it has other classes, or too few rows have an answer.
        UnreachableError: If an endpoint gives no answer.
        DataError: If logged answers cannot be read.
        RunError: If what the run keeps is damaged.
        BundleError: If a bundle cannot be read.
    """
    splits: dict[SplitName, ExitTable] = {"validation": run.validation}
    if table is not None:
        splits["test"] = table
    readers = {
        tier: _Reader(run, options, tier, given, splits, dataset, progress)
        for tier in TIERS
        if (given := options.model_of(tier)) is not None
    }
    priced = {tier: each for tier, each in readers.items() if each.is_priced}
    if priced and "unit" in options.model_fields_set and getattr(options, "unit", "") == "lambda":
        flag = f"--{next(iter(priced))}-model"
        raise OptionError(
            f"--unit lambda prices layers of the encoder, and {flag} has none of these: leave it out, or choose money "
            "or ms"
        )
    tables: dict[SplitName, ExitTable] = {}
    held: dict[Tier, dict[SplitName, ExitTable]] = {tier: {} for tier in readers}
    found: dict[Tier, list[Answers]] = {tier: [] for tier in priced}
    for split, own in splits.items():
        said = {tier: each.about(split, len(own)) for tier, each in readers.items()}
        answers = {tier: each for tier, each in said.items() if isinstance(each, Answers)}
        rows = reduce(np.intersect1d, (each.rows for each in answers.values()), np.arange(len(own)))
        _check_rows(readers, split, len(own), rows, answers, progress)
        own = tables[split] = own.take(rows) if len(rows) < len(own) else own
        for tier, each in said.items():
            if isinstance(each, ExitTable):
                held[tier][split] = each.take(rows) if len(rows) < len(each) else each
                continue
            found[tier].append(each)
            probabilities = each.probabilities[np.searchsorted(each.rows, rows)]
            probabilities = _wrong_where_silent(probabilities, own.labels)
            if tier is Tier.CLOUD:
                tables[split] = own.before(probabilities)
            else:
                logits = logits_of(probabilities)[:, None]
                held[tier][split] = replace(own, layers=(1,), logits=logits, dynamics=None)
    for of_split in (tables, *held.values()):
        if "test" not in of_split and "validation" in of_split:
            of_split["test"] = of_split["validation"].take(np.arange(0))
    if Tier.CLOUD in readers:
        run = run.before(readers[Tier.CLOUD].name, tables["validation"], tables["test"])
    else:
        run = run.with_tables(tables["validation"], tables["test"])
    fees = {tier: _fee(each) for tier, each in found.items()}
    if fees:
        billing = _billing(billing, found, fees)
    models: dict[Tier, TierModel] = {
        tier: TierModel(each.name, held[tier]["validation"], held[tier]["test"], each.layer_work)
        for tier, each in readers.items()
        if tier is not Tier.CLOUD
    }
    asked: dict[Tier, AskedModel] = {
        tier: each.asked(1.0 if (fee := fees[tier]) is None else fee)
        for tier, each in priced.items()
        if tier is not Tier.MOBILE
    }
    return Others(run, models, billing, asked)


def _check_rows(
    readers: Mapping[Tier, _Reader],
    split: SplitName,
    n: int,
    rows: NDArray[np.int64],
    answers: Mapping[Tier, Answers],
    progress: Progress,
) -> None:
    for tier, each in answers.items():
        left_out = n - len(each.rows)
        progress.say(
            f"{readers[tier].name}: {len(each.rows):,} answers about {split}"
            + (f", {left_out:,} rows are left out" if left_out else "")
            + f"; {each.abstained:,} named no class and count as wrong" * (each.abstained > 0)
        )
    if answers and len(rows) < _FEWEST:
        names = " and ".join(readers[tier].name for tier in answers)
        raise OptionError(
            f"{names} answers {len(rows)} rows of {split}, and at least {_FEWEST} are needed: log or ask more"
        )


def _wrong_where_silent(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Where no class has a probability, spread it over those that are wrong."""
    silent = np.flatnonzero(probabilities.sum(axis=1) == 0)
    found = probabilities.copy()
    found[silent] = 1 / max(1, probabilities.shape[1] - 1)
    found[silent, labels[silent]] = 0
    return found


def _fee(found: Sequence[Answers]) -> float | None:
    """Return what an answer costs in the mean; None where nobody says."""
    costs = [each.cost for each in found if each.cost is not None]
    return float(np.concatenate(costs).mean()) if len(costs) == len(found) else None


def _billing(
    billing: Billing | None,
    found: Mapping[Tier, Sequence[Answers]],
    fees: Mapping[Tier, float | None],
) -> Billing:
    """Return what prices the calls at the mean of what they cost and took, and everything else as before."""
    profile = load_profile(HOSTED) if billing is None else billing.profile
    unsaid = [tier for tier, fee in fees.items() if fee is None and tier is not Tier.MOBILE]
    said = [tier for tier, fee in fees.items() if fee is not None and tier is not Tier.MOBILE]
    if said and unsaid:
        raise OptionError(
            f"the answers of --{said[0]}-model have a price, and those of --{unsaid[0]}-model have none: give both in "
            "a file of --price-list"
        )
    if fees.get(Tier.CLOUD) == 0:
        raise OptionError(
            "the model costs nothing by --model-price: give what it costs, or leave it out"
        )
    money: dict[str, Any] = {"currency": "calls"} if unsaid else {}
    about: dict[str, Any] = {}
    for tier, fee in fees.items():
        if tier is Tier.MOBILE:  # it has a call's time, and nobody to pay
            continue
        ms = float(np.concatenate([each.ms for each in found[tier]]).mean())
        link = profile.link(tier).model_copy(update={"round_trip_ms": ms})
        about |= {str(tier): TierFigures(speed=_NO_TIME), f"to_{tier}": link}
        money |= {f"{tier}_second": 0.0, f"{tier}_request": 1.0 if fee is None else fee}
    about["money"] = profile.money.model_copy(update=money)
    priced = CostProfile.model_validate(profile.model_copy(update=about).model_dump())
    unit = billing.unit if billing is not None and billing.unit != "lambda" else "money"
    return Billing(priced, unit)


@dataclass(eq=False)
class _Reader:
    """Gives what the model that an option names says about rows."""

    run: Run
    options: ModelOptions
    tier: Tier
    given: Any  # a text, a path, or a function
    tables: Mapping[SplitName, ExitTable]
    dataset: TextDataset | None
    progress: Progress

    def __post_init__(self) -> None:
        if self.tier is Tier.MOBILE and self.address is not None:
            raise OptionError(
                f"{self.option} {self.name}: a device asks nobody there; give it to --edge-model or --cloud-model, or "
                "give run:, hf:, bundle:, static:, table: or, in Python, a function"
            )

    @property
    def option(self) -> str:
        return f"--{self.tier}-model"

    @property
    def name(self) -> str:
        if callable(self.given):
            return getattr(self.given, "__name__", "the function")
        return str(self.given)

    @property
    def address(self) -> Address | None:
        return None if callable(self.given) else Address.of(self.name, option=self.option)

    @property
    def _kind(self) -> str:
        """Return the prefix of what is given; empty for a run, a folder or a hub name without one."""
        kind, colon, _ = self.name.partition(":")
        known = (*_LOCAL, "table", "chat", "tei", "oip")
        return kind if colon and kind in known and not callable(self.given) else ""

    @property
    def _where(self) -> str:
        return self.name.removeprefix(f"{self._kind}:" if self._kind else "")

    @property
    def is_priced(self) -> bool:
        """Whether its answers have prices of their own, rather than those of layers."""
        return self.tier is Tier.CLOUD or not self._runs_here

    @property
    def _runs_here(self) -> bool:
        """Whether it is a model with exits of its own, which is run over the rows."""
        return not callable(self.given) and self._kind in ("", *_LOCAL)

    @property
    def layer_work(self) -> float:
        if self.is_priced or self._kind == "static":
            return 0.0
        return self._local.layer_work

    def about(self, split: SplitName, n: int) -> Answers | ExitTable:
        """Return the answers about a split, or about the rows that stand in for it; a table where it has exits."""
        rows = np.arange(n)
        if self._runs_here:
            own = self._local
            table = own.validation if split == "validation" else own.table
            if self.tier is not Tier.CLOUD:
                return table
            rows = self._drawn(rows)
            said = table.probabilities[rows, -1]
            return Answers(rows, said, 0, self._cost(len(rows)), np.zeros(len(rows)))
        texts = self._texts(split)
        rows = self._drawn(rows)
        asked = [texts[row] for row in rows]
        if callable(self.given):
            return self._of_function(self.given, asked, rows)
        if self._kind == "table":
            return self._of_log(Path(self._where), asked, rows)
        return self._of_endpoint(split, asked, rows)

    def asked(self, fee: float) -> AskedModel:
        """Return what a server needs to ask it."""
        address = self.address
        return AskedModel(
            format=FORMAT,
            name=self.name if self._kind in ("chat", "tei", "oip") else self._kind or "function",
            address=None if address is None else str(address),
            question=self._question if address is not None else Question(),
            price=self._price,
            fee=fee,
        )

    def _drawn(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        most = self.options.ask_rows
        if most is None or most >= len(rows):
            return rows
        return np.sort(np.random.default_rng(0).permutation(len(rows))[:most])

    def _texts(self, split: SplitName) -> list[Text]:
        return _paired(self._dataset(split))

    @property
    def _classes(self) -> Classes:
        return Classes.of(self.run.config.task.label_names, self.options.map)

    @cached_property
    def _local(self) -> TierModel:
        """Read a model that runs here: its tables of validation and of the rows that are evaluated."""
        read = {"bundle": self._of_bundle, "static": self._of_static}.get(self._kind)
        return self._of_classifier() if read is None else read()

    def _of_classifier(self) -> TierModel:
        return read_tier_model(
            self.run,
            self._where,
            option=self.option,
            kind=self._kind,
            dataset=self.dataset,
            progress=self.progress,
        )

    def _of_bundle(self) -> TierModel:
        """Read a tier of a bundle: its graphs are run over the texts."""
        folder, sharp, tier = self._where.rpartition("#")
        if not sharp or tier not in set(TIERS):
            raise OptionError(
                f"{self.option} {self.name}: give bundle:FOLDER#TIER with one of the tiers {', '.join(TIERS)}"
            )
        from dimec.bundle import load_tier
        from dimec.bundle.engines.tier import segment_name
        from dimec.bundle.tabulate import read_samples, tabulate_tier

        held = load_tier(Path(folder).expanduser() / tier)
        manifest, task = held.manifest, self.run.config.task
        if held.asks:
            raise BundleError(f"{held.folder} holds no graphs: its server asks another model")
        order = [self._classes.find(name) for name in manifest.label_names]
        if sorted(each for each in order if each is not None) != list(range(len(task.label_names))):
            raise OptionError(
                f"{self.option} {self.name} has the classes {', '.join(manifest.label_names)}, and the run "
                f"{', '.join(task.label_names)}: give a bundle of the same classes, or say which are the same by --map"
            )
        places = np.argsort(np.array(order, dtype=np.int64))
        self.progress.warn(
            f"{self.option} {self.name}: nothing tells whether it was trained on rows that it is judged on"
        )
        tables = []
        for split, own in self.tables.items():
            rows = self._dataset(split)
            samples = read_samples(held, rows, progress=self.progress)
            made = tabulate_tier(held, samples, progress=self.progress)
            table = replace(
                made, logits=made.logits[:, :, places], label_names=task.label_names, dynamics=None
            )
            # Words are read by the run's own exit zero.
            tables.append(replace(table, exit_zero=own.exit_zero, unseen=own.unseen))
        own_weights = layer_weights(self.run.model_folder / "config.json", fault=OptionError)
        held_bytes = sum(manifest.files[segment_name(each)].bytes for each in held.layers)
        weights = held_bytes / (1 if manifest.quantized else 4) / held.layers[-1]
        return TierModel(self.name, tables[0], tables[-1], weights / own_weights)

    def _of_static(self) -> TierModel:
        """Read a classifier on static embeddings, by model2vec itself; safetensors alone."""
        folder = Path(self._where).expanduser()
        if not (folder / "head.safetensors").is_file():
            raise OptionError(
                f"{self.option} {self.name}: {folder} holds no head.safetensors: give the folder of a model2vec "
                "classifier, version 0.10 or newer; older ones and SetFit's are pickled code: load such a one in "
                "Python and give its function"
            )
        try:
            from model2vec.inference import StaticModelPipeline
        except ModuleNotFoundError as exc:
            raise MissingExtraError(f"{self.option} static:", "static") from exc
        with trusting_nothing(folder, OptionError, remedy="save it again by model2vec"):
            found = StaticModelPipeline.from_pretrained(folder)
            names = [str(each) for each in ([] if found.classes_ is None else found.classes_)]
        if self.run.config.task.pairs or not names:
            raise OptionError(f"{self.option} {self.name}: it must classify single texts")
        tables = []
        for split in self.tables:
            texts = list(self._dataset(split).first)
            scores = np.asarray(found.predict_proba(texts, use_multiprocessing=False))
            said = [
                self._classes.spread(dict(zip(names, row, strict=True))) for row in scores.tolist()
            ]
            own = self.tables[split]
            logits = logits_of(_stacked(said, own.n_classes))[:, None]
            tables.append(replace(own, layers=(1,), logits=logits, dynamics=None))
        return TierModel(self.name, tables[0], tables[-1], 0.0)

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
                f"{self.tier}_model returned {shown(found)} of shape {found.shape}: it must return probabilities of "
                f"shape {wanted}, in the order {', '.join(classes)}"
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
        self, split: SplitName, asked: Sequence[Text], rows: NDArray[np.int64]
    ) -> Answers:
        address, price, task = self.address, self._price, self.run.config.task
        assert address is not None
        if self.options.max_spend is not None and price is None:
            raise OptionError(
                f"--max-spend needs the price of {self.name}: give --model-price, or a --price-list that has it"
            )
        variable = "OPENAI_API_KEY" if address.kind == "chat" else "DIMEC_TOKEN"
        endpoint = open_endpoint(
            address,
            self._question,
            task.label_names,
            pairs=task.pairs,
            access=Access(key=os.environ.get(variable), connections=self.options.at_once),
            encode=self._tokenizer.ids if address.kind == "oip" else None,
        )
        with Kept(self.run.folder / FILE) as kept:
            said = ask_all(
                endpoint,
                asked,
                kept,
                n_classes=len(task.label_names),
                at_once=self.options.at_once,
                price=price,
                max_spend=self.options.max_spend,
                progress=self.progress,
                what=f"Asking about {split}",
            )
        cost = None if price is None else np.array([price.of_answer(each) for each in said])
        probabilities = [each.probabilities for each in said]
        return _answers(
            rows, probabilities, cost, [each.ms for each in said], len(task.label_names)
        )

    @cached_property
    def _price(self) -> Price | None:
        """Return what its answers cost, where anybody says."""
        options = self.options
        if options.model_price is not None:
            return Price.of(options.model_price)
        if self.address is None or not self.address.model:
            return None
        for prices in PriceList.of(options.price_list):
            if (found := prices.find(self.address.model)) is not None:
                self.progress.say(
                    f"{self.name}: {found.million_in:g} and {found.million_out:g} dollars a million tokens, in and "
                    f"out, by the prices of {prices.date} ({prices.source})"
                )
                return found
        return None

    @cached_property
    def _question(self) -> Question:
        prompt = None
        if self.options.prompt is not None:
            file = Path(self.options.prompt)
            with trusting_nothing(file, OptionError, remedy="give --prompt a text in UTF-8"):
                prompt = read_bounded(file, limit=_MOST_PROMPT_BYTES).decode()
        return Question(
            prompt=prompt, examples=tuple(self._examples()), aliases=dict(self._classes.aliases)
        )

    @cached_property
    def _tokenizer(self) -> TierTokenizer:
        config = self.run.config
        return TierTokenizer(
            self.run.model_folder / "tokenizer.json",
            max_length=config.max_length,
            cut=config.options.cut,
            pad_id=0,
            pairs=config.task.pairs,
            token_types=True,
        )

    def _dataset(self, split: SplitName) -> TextDataset:
        dataset = self.dataset if split == "test" else None
        return self._run_texts.of(split) if dataset is None else dataset

    @cached_property
    def _run_texts(self) -> RunTexts:
        with needs_training():
            from dimec.training.texts import RunTexts
        return RunTexts(self.run, progress=self.progress)

    def _examples(self) -> list[tuple[Text, str]]:
        """Return the first training rows of each class, the classes in turn."""
        if not self.options.shots:
            return []
        rows = self._run_texts.of("train")
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
    probabilities = _stacked(said, n_classes)
    abstained = sum(each is None for each in said)
    return Answers(rows, probabilities, abstained, cost, np.array(ms, dtype=np.float64))


def _stacked(said: Sequence[tuple[float, ...] | None], n_classes: int) -> NDArray[np.float64]:
    """Return [n, classes], a row of zeros where no class is named."""
    found = np.zeros((len(said), n_classes))
    for row, each in zip(found, said, strict=True):
        if each is not None:
            row[:] = each
    return found
