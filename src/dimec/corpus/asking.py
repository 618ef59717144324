"""Tiers of a corpus whose model is of others: an endpoint is asked, each answer is paid for once, up to a sum of money.

A job has one `Ledger`, in the process of the command, also where workers are on other machines: it keeps the answers in
``OUT/asked`` and counts the money. An `AskedTier` stands in a worker's device in place of the tier's server.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from dimec.bundle import Bundle, TierBundle
from dimec.core.errors import OptionError, OverloadedError, RefusedError, UnreachableError, quoted
from dimec.core.tiers import TIERS, Tier, softmax
from dimec.core.untrusted import Record
from dimec.corpus.options import BulkOptions
from dimec.corpus.store import Store
from dimec.endpoints.asking import Spending
from dimec.endpoints.http import Access, Endpoint
from dimec.endpoints.kept import Kept
from dimec.endpoints.opening import Address, open_endpoint, read_key
from dimec.endpoints.prices import Price
from dimec.endpoints.said import Question, Said, Text
from dimec.runs.exit_table import logits_of
from dimec.runtime.device.client import Ask, Client, Outcome, Traffic
from dimec.runtime.device.resilience import Breaker, Failure, Fault
from dimec.runtime.wire import TEXT

if TYPE_CHECKING:
    from dimec.corpus.on_ray import RayBooks

Books: TypeAlias = "Ledger | RayBooks"
"""A ledger, wherever it is."""

FOLDER = "asked"
_LEFT_ALONE_S = 30.0
_LONGEST_ALONE_S = 600.0
_WRONG_FOR_ALL = (401, 403, 404)
"""Refusals that do not hang on the text."""
_LONGEST_OPEN_S = 180.0
"""A question that is open for longer is of a worker that died."""
_LOOKS_AGAIN_S = 0.05


class Turn(Enum):
    """What a worker is to do about a text that nothing is kept of."""

    ASK = auto()
    WAIT = auto()
    """Another question about it is open."""


class StoppedError(OptionError):
    """The job asks nobody any more: the money does not reach, or the endpoint refuses everybody."""


class Bill(Record):
    """What the answers of a tier's model came to.

    Attributes:
        answers: How many there are; rows with the same text share one.
        cost: What they cost, in the bundle's currency.
    """

    answers: int = Field(ge=0)
    cost: float = Field(ge=0)


@dataclass(frozen=True, slots=True)
class Asked:
    """The model of others that a tier asks.

    Attributes:
        price: What an answer costs; None where each costs ``fee``.
        fee: What an answer costs in the mean, in the bundle's currency.
        at_once: How many questions a worker has open at a time.
        key: What the endpoint knows its customer by.
    """

    tier: Tier
    address: Address
    question: Question
    price: Price | None
    fee: float
    at_once: int
    key: str | None = field(repr=False)

    @property
    def whose(self) -> str:
        """Whose answers they are: those of a chat's model are the same wherever it runs."""
        chat = self.address.kind == "chat"
        return f"chat#{self.address.model}" if chat else str(self.address)

    def bill(self, said: Said) -> float:
        """Return what an answer cost."""
        return self.bill_of(1, said.tokens_in, said.tokens_out)

    def bill_of(self, n: int, tokens_in: int, tokens_out: int) -> float:
        """Return what n answers cost that read and wrote so many tokens together."""
        if self.price is None:
            return self.fee * n
        return self.price.of_answers(n, tokens_in, tokens_out)

    def open(self, part: TierBundle, bundle: Bundle) -> Endpoint:
        """Return what asks; nothing is sent yet."""
        return open_endpoint(
            self.address,
            self.question,
            part.manifest.label_names,
            pairs=part.manifest.task.pairs,
            access=Access(key=self.key, connections=self.at_once),
            encode=bundle.mobile.tokenizer().ids if self.address.kind == "oip" else None,
        )


def asked_models(bundle: Bundle, options: BulkOptions) -> tuple[Asked, ...]:
    """Return the models that the tiers of a bundle ask, as the options have it.

    Raises:
        OptionError: If an option is about a tier that asks none, an address or a key is none, or the price is missing
            that a sum of money needs.
    """
    tiers = [tier for tier in TIERS if tier in bundle.mobile.manifest.asked]
    addresses = _by_tier("--model", options.model, tiers, bundle)
    keys = _by_tier("--model-key-file", options.model_key_file, tiers, bundle)
    prices = _by_tier("--model-price", options.model_price, tiers, bundle)
    if options.max_spend is not None and not tiers:
        raise _asks_none("--max-spend", bundle)
    found = []
    for tier in tiers:
        part = bundle.of(tier)
        if part is None:
            raise OptionError(f"{bundle.folder} lacks its {tier} tier: give the whole bundle")
        model = part.asked_model()
        given = addresses.get(tier, model.address)
        address = None if given is None else Address.of(given, option="--model")
        if address is None:
            raise OptionError(
                f"the {tier} tier of {bundle.folder} was fitted to {given or model.name}, which is no endpoint: give "
                f"--model {tier}=chat:URL#MODEL, {tier}=tei:URL or {tier}=oip:URL#MODEL"
            )
        price = Price.of(prices[tier]) if tier in prices else model.price
        if options.max_spend is not None and price is None:
            raise OptionError(
                f"--max-spend needs the price of {address}: give --model-price {tier}=IN/OUT"
            )
        file = Path(keys[tier]) if tier in keys else None
        key = read_key(address, file, named=tier in addresses)
        found.append(Asked(tier, address, model.question, price, model.fee, options.at_once, key))
    return tuple(found)


def _by_tier(
    option: str, given: Sequence[str], tiers: Sequence[Tier], bundle: Bundle
) -> dict[Tier, str]:
    """Read ``TIER=VALUE`` of each tier that asks a model; where one tier does, its name may be left out."""
    if given and not tiers:
        raise _asks_none(option, bundle)
    found: dict[Tier, str] = {}
    for each in given:
        name, equals, value = each.partition("=")
        named = [tier for tier in TIERS if equals and tier == name]
        if not named and len(tiers) == 1:
            named, value = list(tiers), each
        if not named or named[0] not in tiers or not value or named[0] in found:
            raise OptionError(
                f"{option} {each}: give it once for each of {', '.join(tiers)}, as TIER=VALUE"
            )
        found[named[0]] = value
    return found


def _asks_none(option: str, bundle: Bundle) -> OptionError:
    return OptionError(
        f"{option}: all tiers of {bundle.folder} hold the encoder: export the run with --cloud-model, or leave it out"
    )


class Ledger:
    """The answers of a job that are paid for, and the money that it may spend; all calls are serialised.

    What workers call is async, since the ledger may be on another machine.
    """

    def __init__(
        self, place: str, asked: Sequence[Asked], *, n_classes: int, max_spend: float | None
    ) -> None:
        """Open what was kept under ``place``; at a URL it is copied here, and put back by `close`.

        Raises:
            RunError: If it cannot be used.
        """
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._asked, self._n_classes = {each.tier: each for each in asked}, n_classes
        self._spending, self._fault = Spending(max_spend), ""
        self._open: dict[tuple[Tier, str, Text], float] = {}  # since when each question is
        self._back: Store | None = None
        if "://" in place:
            self._back = Store(place)
            self._folder = Path(self._stack.enter_context(TemporaryDirectory(prefix="dimec-")))
            for tier in self._asked:
                content = self._back.content(f"{FOLDER}/{tier}.sqlite")
                if content is not None:
                    (self._folder / f"{tier}.sqlite").write_bytes(content)
        else:
            self._folder = Path(place, FOLDER)
            self._folder.mkdir(exist_ok=True)
        self._kept = {
            tier: self._stack.enter_context(Kept(self._folder / f"{tier}.sqlite"))
            for tier in self._asked
        }

    async def begin(self, tier: Tier, key: str, text: Text) -> Said | Turn:
        """Return what was said about a text before, or whose turn it is: a turn to ask opens a question.

        Raises:
            StoppedError: If nobody is asked any more.
        """
        with self._lock:
            found = self._kept[tier].find(key, text, n_classes=self._n_classes)
            if found is not None:
                return found
            if self._is_open((tier, key, text)):
                return Turn.WAIT
            if not self._fault:
                try:
                    self._spending.begin()
                except OptionError as exc:
                    self._fault = str(exc)
            if self._fault:
                raise StoppedError(f"{self._fault}; the same command goes on from there")
            self._open[tier, key, text] = time.monotonic()
            return Turn.ASK

    def _is_open(self, question: tuple[Tier, str, Text]) -> bool:
        since = self._open.get(question)
        return since is not None and time.monotonic() < since + _LONGEST_OPEN_S

    async def end(self, tier: Tier, key: str, text: Text, said: Said | None) -> None:
        """Close a question, and keep what was said, if anything was."""
        with self._lock:
            if said is not None:
                self._kept[tier].keep(key, text, said)
            self._spending.end(0.0 if said is None else self._asked[tier].bill(said))
            self._open.pop((tier, key, text), None)

    async def stop(self, fault: str) -> None:
        """Open no question any more."""
        with self._lock:
            self._fault = self._fault or fault

    def n_open(self) -> int:
        """Return how many questions are open, but for those of workers that died."""
        with self._lock:
            return sum(self._is_open(each) for each in self._open)

    def bills(self) -> dict[Tier, Bill]:
        """Return what all answers came to, those of earlier commands too."""
        with self._lock:
            totals = {tier: kept.total() for tier, kept in self._kept.items()}
        return {
            tier: Bill(answers=total[0], cost=self._asked[tier].bill_of(*total))
            for tier, total in totals.items()
        }

    def close(self) -> None:
        """Close the files, and put them where the job is."""
        with self._lock, self._stack:
            for kept in self._kept.values():
                kept.close()
            if self._back is not None:
                for tier in self._asked:
                    name = f"{tier}.sqlite"
                    self._back.put(f"{FOLDER}/{name}", (self._folder / name).read_bytes())


class AskedTier(Client):
    """Asks a model in place of a tier's server; equal texts are asked about once, by whichever worker meets one first.

    A model that cannot be reached is left alone for a while, and texts get their answers without it.
    """

    def __init__(self, asked: Asked, part: TierBundle, bundle: Bundle, books: Books) -> None:
        """Take whom to ask, the tier and its bundle, and who keeps the answers."""
        self.tier, self.layers = asked.tier, part.layers
        self.traffic = Traffic()
        self._asked, self._books = asked, books
        self._endpoint = asked.open(part, bundle)
        self._breaker = Breaker(
            opens_after=asked.at_once, open_s=_LEFT_ALONE_S, max_open_s=_LONGEST_ALONE_S
        )
        self.lasting: set[asyncio.Task[Any]] = set()

    async def ask(self, ask: Ask) -> Outcome:
        """Ask about one text.

        Raises:
            StoppedError: If the job asks nobody any more.
        """
        began = time.monotonic()
        text = tuple(map(str, ask.inputs[TEXT].ravel().tolist()))
        task = asyncio.create_task(self._answered(text))
        self.lasting.add(task)
        task.add_done_callback(self.lasting.discard)
        found = await asyncio.shield(task)
        elapsed_s = time.monotonic() - began
        if isinstance(found, Failure):
            return Outcome(None, (found,), 1, elapsed_s)
        billed = self._asked.bill(found)
        if found.probabilities is None:
            return Outcome(None, (Failure(Fault.SILENT),), 1, elapsed_s, billed)
        probabilities: NDArray[np.float64] = softmax(logits_of(np.array(found.probabilities)))
        return Outcome({ask.layer: probabilities}, (), 1, elapsed_s, billed)

    async def _answered(self, text: Text) -> Said | Failure:
        key = self._endpoint.key
        while (found := await self._books.begin(self.tier, key, text)) is Turn.WAIT:
            await asyncio.sleep(_LOOKS_AGAIN_S)
        if isinstance(found, Said):
            return found
        said: Said | None = None
        try:
            given = self._breaker.admit()
            if given is None:
                last = self._breaker.last
                return Failure(Fault.RESTING, "" if last is None else quoted(last.detail))
            self.traffic.requests += 1
            try:
                said = await self._endpoint.ask(text)
            except UnreachableError as exc:
                busy = isinstance(exc, OverloadedError)
                fault = Fault.OVERLOADED if busy else Fault.UNREACHABLE
                failure = Failure(fault, quoted(str(exc)))
                self._breaker.failed(given, failure)
                return failure
            except OptionError as exc:
                self._breaker.left(given)
                cause = exc.__cause__
                if isinstance(cause, RefusedError) and cause.status not in _WRONG_FOR_ALL:
                    return Failure(Fault.REFUSED, quoted(str(exc)))
                await self._books.stop(str(exc))
                raise StoppedError(str(exc)) from exc
            self._breaker.succeeded(given)
            return said
        finally:
            await self._books.end(self.tier, key, text, said)

    async def close(self) -> None:
        """Wait for the questions that are open, whose answers are paid for, and close the connections."""
        await asyncio.gather(*self.lasting, return_exceptions=True)
        await self._endpoint.close()


def asking(
    bundle: Bundle, asked: Sequence[Asked], books: Books | None
) -> dict[Tier, Callable[[], Client]]:
    """Return what makes the clients of a device's tiers that ask models."""
    found: dict[Tier, Callable[[], Client]] = {}
    for each in asked:
        part = bundle.of(each.tier)
        assert part is not None and books is not None  # as `asked_models` has checked
        found[each.tier] = partial(AskedTier, each, part, bundle, books)
    return found
