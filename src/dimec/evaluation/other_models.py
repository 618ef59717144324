"""Models of others on the tiers: what they say of a run's rows, and what they cost.

Each tier may hold one. In the cloud it stands as one more layer behind the encoder, which may then lie on the device as
a whole; all that is fitted, chosen and promised is against its answers: they are all-cloud. On the device and the edge
it stands in place of the encoder's first layers. An answer that names no class counts as wrong.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

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
from dimec.endpoints.opening import KINDS as ASKED_KINDS
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
_KINDS = (*_LOCAL, "table", *ASKED_KINDS)


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model says about rows.

    Attributes:
        rows: Which rows of the asked ones have an answer.
        probabilities: [rows, classes], zeros where an answer named no class.
        cost: [rows], dollars; None where nobody says.
        ms: [rows].
    """

    rows: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    cost: NDArray[np.float64] | None
    ms: NDArray[np.float64]

    @property
    def silent(self) -> NDArray[np.bool_]:
        """[rows], which answers named no class."""
        silent: NDArray[np.bool_] = self.probabilities.sum(axis=1) == 0
        return silent


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
        table: What the run's exits say of the rows that are evaluated, the run's test split from then on; None where
            nothing is evaluated, so that models are asked about validation alone.
        dataset: Those rows, where they are not the test split.

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
            probabilities = _wrong_where_silent(each, rows, own.labels)
            if tier is Tier.CLOUD:
                tables[split] = own.before(probabilities)
            else:
                held[tier][split] = _one_exit(own, probabilities)
    for of_split in (tables, *held.values()):
        if "test" not in of_split and "validation" in of_split:
            of_split["test"] = of_split["validation"].take(np.arange(0))
    if Tier.CLOUD in readers:
        run = run.before(readers[Tier.CLOUD].name, tables["validation"], tables["test"])
    else:
        run = run.with_tables(tables["validation"], tables["test"])
    # On the device an answer takes a call's time, and nobody is paid.
    fees: dict[Tier, float | None] = {
        tier: _fee(each) for tier, each in found.items() if tier is not Tier.MOBILE
    }
    if found:
        billing = _billing(billing, found, fees)
    models: dict[Tier, TierModel] = {
        tier: TierModel(each.name, held[tier]["validation"], held[tier]["test"], each.layer_work)
        for tier, each in readers.items()
        if tier is not Tier.CLOUD
    }
    asked: dict[Tier, AskedModel] = {
        tier: readers[tier].asked(1.0 if fee is None else fee) for tier, fee in fees.items()
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
        left_out, silent = n - len(each.rows), int(each.silent.sum())
        progress.say(
            f"{readers[tier].name}: {len(each.rows):,} answers about {split}"
            + (f", {left_out:,} rows are left out" if left_out else "")
            + (f"; {silent:,} named no class and count as wrong" if silent else "")
        )
    if answers and len(rows) < _FEWEST:
        names = " and ".join(readers[tier].name for tier in answers)
        raise OptionError(
            f"{names} answers {len(rows)} rows of {split}, and at least {_FEWEST} are needed: log or ask more"
        )


def _wrong_where_silent(
    answers: Answers, rows: NDArray[np.int64], labels: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the probabilities of rows; where an answer named no class, spread over those that are wrong."""
    places = np.searchsorted(answers.rows, rows)
    found, silent = answers.probabilities[places], np.flatnonzero(answers.silent[places])
    found[silent] = 1 / max(1, found.shape[1] - 1)
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
    unsaid = [tier for tier, fee in fees.items() if fee is None]
    said = [tier for tier, fee in fees.items() if fee is not None]
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
    """Gives what the model that an option names says about rows.

    Attributes:
        kind: What stands before the colon, or ``function``; empty for a run, a folder or a hub name without one.
        where: What stands behind the colon.
        runs_here: Whether it is a model with exits of its own, which is run over the rows.
        is_priced: Whether its answers have prices of their own, rather than those of layers.
    """

    run: Run
    options: ModelOptions
    tier: Tier
    given: Any  # a text, a path, or a function
    tables: Mapping[SplitName, ExitTable]
    dataset: TextDataset | None
    progress: Progress

    def __post_init__(self) -> None:
        self.option, self.name = f"--{self.tier}-model", str(self.given)
        self.address: Address | None = None
        kind, colon, where = self.name.partition(":")
        if callable(self.given):
            self.name = getattr(self.given, "__name__", "the function")
            self.kind, self.where = "function", ""
        elif colon and kind in _KINDS:
            self.kind, self.where = kind, where
            self.address = Address.of(self.name, option=self.option)
        else:
            self.kind, self.where = "", self.name
        self.runs_here = self.kind in ("", *_LOCAL)
        self.is_priced = self.tier is Tier.CLOUD or not self.runs_here
        if self.tier is Tier.MOBILE and self.address is not None:
            raise OptionError(
                f"{self.option} {self.name}: a device asks nobody there; give it to --edge-model or --cloud-model, or "
                "give run:, hf:, bundle:, static:, table: or, in Python, a function"
            )

    @property
    def layer_work(self) -> float:
        return 0.0 if self.is_priced else self._local.layer_work

    def about(self, split: SplitName, n: int) -> Answers | ExitTable:
        """Return the answers about a split, or about the rows that stand in for it; a table where it has exits."""
        rows, most = np.arange(n), self.options.ask_rows
        if most is not None and most < n:
            rows = np.sort(np.random.default_rng(0).permutation(n)[:most])
        if self.runs_here:
            own = self._local
            table = own.validation if split == "validation" else own.table
            if self.tier is not Tier.CLOUD:
                return table
            said = table.probabilities[rows, -1]
            return Answers(rows, said, self._cost(len(rows)), np.zeros(len(rows)))
        texts = _paired(self._dataset(split))
        asked = [texts[row] for row in rows]
        if self.kind == "function":
            return self._of_function(asked, rows)
        if self.kind == "table":
            return self._of_log(asked, rows)
        return self._of_endpoint(split, asked, rows)

    def asked(self, fee: float) -> AskedModel:
        """Return what a server needs to ask it."""
        address = self.address
        return AskedModel(
            format=FORMAT,
            name=self.kind or "function" if address is None else self.name,
            address=None if address is None else str(address),
            question=Question() if address is None else self._question,
            price=self._price,
            fee=fee,
        )

    @property
    def _classes(self) -> Classes:
        return Classes.of(self.run.config.task.label_names, self.options.map)

    @cached_property
    def _local(self) -> TierModel:
        """Read a model that runs here: its tables of validation and of the rows that are evaluated."""
        if self.kind == "bundle":
            return self._of_bundle()
        if self.kind == "static":
            return self._of_static()
        return read_tier_model(
            self.run,
            self.where,
            option=self.option,
            kind=self.kind,
            dataset=self.dataset,
            progress=self.progress,
        )

    def _of_bundle(self) -> TierModel:
        """Read a tier of a bundle: its graphs are run over the texts."""
        folder, sharp, tier = self.where.rpartition("#")
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
        folder = Path(self.where).expanduser()
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
        for split, own in self.tables.items():
            texts = list(self._dataset(split).first)
            scores = np.asarray(found.predict_proba(texts, use_multiprocessing=False))
            said = [
                self._classes.spread(dict(zip(names, row, strict=True))) for row in scores.tolist()
            ]
            tables.append(_one_exit(own, _stacked(said, own.n_classes)))
        return TierModel(self.name, tables[0], tables[-1], 0.0)

    def _cost(self, n: int) -> NDArray[np.float64] | None:
        """Return the price of calls that count no tokens."""
        if self.options.model_price is None:
            return None
        return np.full(n, Price.of(self.options.model_price).call)

    def _of_function(self, asked: Sequence[Text], rows: NDArray[np.int64]) -> Answers:
        """Ask a function of Python for the probabilities of all classes, [n, classes]."""
        plain = [text[0] if len(text) == 1 else text for text in asked]
        began = time.perf_counter()
        found = np.asarray(self.given(plain), dtype=np.float64)
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
        return Answers(rows, found, self._cost(len(rows)), np.full(len(rows), ms))

    def _of_log(self, asked: Sequence[Text], rows: NDArray[np.int64]) -> Answers:
        task, classes = self.run.config.task, self._classes
        logged = read_logged(Path(self.where), task.label_names, pairs=task.pairs)
        there = np.array([text in logged for text in asked], dtype=bool)
        told = [logged[text] for text in asked if text in logged]
        said = _stacked([classes.spread(each.masses) for each in told], len(task.label_names))
        costs = [each.cost for each in told]
        priced = self._cost(len(told)) if None in costs else np.array(costs, dtype=np.float64)
        ms = np.array([each.ms or 0.0 for each in told], dtype=np.float64)
        return Answers(rows[there], said, priced, ms)

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
        found = _stacked([each.probabilities for each in said], len(task.label_names))
        return Answers(rows, found, cost, np.array([each.ms for each in said]))

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
        texts = _paired(rows)
        by_class = [
            [
                (texts[row], name)
                for row in np.flatnonzero(rows.labels == label)[: self.options.shots]
            ]
            for label, name in enumerate(self.run.config.task.label_names)
        ]
        return [each for turn in zip_longest(*by_class) for each in turn if each is not None]


def _one_exit(own: ExitTable, probabilities: NDArray[np.float64]) -> ExitTable:
    """Return the table of a model of one layer that says so of the rows: [n, classes]."""
    return replace(own, layers=(1,), logits=logits_of(probabilities)[:, None], dynamics=None)


def _paired(dataset: TextDataset) -> list[Text]:
    """Return the texts of a data set, or its pairs."""
    if dataset.second is None:
        return [(each,) for each in dataset.first]
    return list(zip(dataset.first, dataset.second, strict=True))


def _stacked(said: Sequence[tuple[float, ...] | None], n_classes: int) -> NDArray[np.float64]:
    """Return [n, classes], a row of zeros where no class is named."""
    found = np.zeros((len(said), n_classes))
    for row, each in zip(found, said, strict=True):
        if each is not None:
            row[:] = each
    return found
