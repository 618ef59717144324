"""The device: texts go in, `Answer`s come out, in order, by the policy of a bundle.

The mobile tier runs in-process. So do edge and cloud where no URL is given; else they are asked over HTTP. Replay runs
the same policy object, so that both give the same answers, tiers, layers and costs. Where a tier gives no answer
another one stands in, at last the mobile tier.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import logging
import os
import threading
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from dimec.bundle import Bundle, load_bundle
from dimec.bundle.choosing import chosen_engine
from dimec.bundle.engines import Session, TierEngine
from dimec.bundle.engines.hardware import usable_cores
from dimec.core.errors import DataError, OptionError, shown
from dimec.core.options import HiddenType
from dimec.core.tiers import TIERS, Answer, Tier
from dimec.policies import Policy, View
from dimec.runtime.device.client import (
    Ask,
    Client,
    Outcome,
    TierClient,
    Traffic,
    checked_token,
    checked_url,
    tls_context,
)
from dimec.runtime.device.loop import RequestLoop, closed_device, forkable, left_behind
from dimec.runtime.device.metrics import DeviceMetrics
from dimec.runtime.device.options import DeviceSettings
from dimec.runtime.device.sample import Sample, Text
from dimec.runtime.device.stages import can_run
from dimec.runtime.device.state import Keeper, policy_fingerprint
from dimec.runtime.device.stream import AHEAD, Stream

IN_FLIGHT = 16
log = logging.getLogger("dimec.device")

MANY = 256
"""Texts that are worth opening the graphs once more."""

MAX_CALLS = 32
"""How many `aclassify` run at a time; more wait."""


class Device(AbstractContextManager["Device"]):
    """Classify texts on the cheapest tier that the policy finds; thread-safe, and a context manager.

    Example:
        >>> with Device("bundles/reviews") as device:
        ...     [answer] = device.classify(["a gripping film"])
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        *,
        edge: str | None = None,
        cloud: str | None = None,
        token: str | None = None,
        state: str | Path | None = None,
        policy: Policy | None = None,
        settings: DeviceSettings | None = None,
        asking: Mapping[Tier, Callable[[], Client]] | None = None,
        at_need: bool = False,
    ) -> None:
        """Open a bundle.

        Args:
            bundle: A bundle, or its folder.
            edge: URL of the edge tier's server; in-process without it.
            cloud: URL of the cloud tier's server; in-process without it.
            token: The bearer token for both.
            state: Folder that keeps what a policy learns.
            policy: A policy instead of the bundle's own.
            settings: Everything else.
            asking: Makes what is asked in place of the servers of some tiers.
            at_need: Open each graph when a text first meets it: the first answer comes sooner, a later one later.

        Raises:
            BundleError: If the bundle cannot be used.
            OptionError: If a URL or setting cannot be used, or the policy ships hidden states and the bundle none.
            StateError: If the state is of another bundle, damaged, or in use.
        """
        bundle = bundle if isinstance(bundle, Bundle) else load_bundle(Path(bundle))
        self.settings = settings or DeviceSettings()
        policy = bundle.mobile.policy() if policy is None else policy
        _check_tails(policy, bundle, self.settings)
        token = checked_token(token)
        urls = {
            tier: checked_url(url, option=f"--{tier}", token=token, settings=self.settings)
            for tier, url in ((Tier.EDGE, edge), (Tier.CLOUD, cloud))
            if url is not None
        }
        tls = tls_context(self.settings) if urls else None
        held = {tier: part for tier in TIERS if (part := bundle.of(tier)) is not None}
        exits = {tier: part.layers for tier, part in held.items()}
        exit_zero = bundle.mobile.exit_zero()
        exits[Tier.MOBILE] = (0, *exits[Tier.MOBILE])
        shared: dict[str, Session] = {}
        engines = {
            tier: TierEngine(
                part,
                engine=chosen_engine(part, self.settings.engine, threads=self.settings.threads),
                threads=self.settings.threads,
                straight=_goes_straight(tier, policy, part.layers[-1]),
                shared=shared,
            )
            for tier, part in held.items()
            if tier not in urls and not part.asks
        }
        for engine in () if at_need else engines.values():
            engine.open()
        manifest, lock = bundle.mobile.manifest, threading.RLock()
        self.fingerprint = f"{manifest.model_fingerprint} {policy_fingerprint(policy)}"
        """What tells this bundle and its policy from others."""
        self._keeper: Keeper | None = None
        if state is not None and policy.learns:
            self._keeper = Keeper(
                Path(state),
                policy,
                model_fingerprint=manifest.model_fingerprint,
                every_updates=self.settings.snapshot_updates,
                every_s=self.settings.snapshot_s,
                lock=lock,
            )
            policy = self._keeper.policy
        # Nothing below can fail, so that nothing has to be closed again.
        self.policy, self.lock = policy, lock
        self.manifest, self.pairs = manifest, manifest.task.pairs
        self.label_names, self.asked = manifest.label_names, manifest.asked
        self.reference_cost = manifest.costs.reference(manifest.n_layers)
        """What the full model on this device costs, in lambda."""
        # What samples go by: tiers in this process, those that are servers, the layers of each tier's exits, and the
        # layer at which each ends where it stands in.
        self.engines, self.exits = engines, exits
        self._many: dict[Tier, TierEngine] = {}
        self.clients: dict[Tier, Client] = {}
        self.last = {
            tier: _last_exit(tier, policy, exits.get(tier, ()))
            for tier in TIERS
            if tier in engines or tier in urls or tier in (asking or {})
        }
        self.lines = {
            tier: [other for other in engines if held[tier].begins(held[other])][-1]
            for tier in engines
        }
        """Of each tier in this process the last one here that begins with its graphs, and goes on from its states."""
        self.tokenizer, self.exit_zero = bundle.mobile.tokenizer(), exit_zero
        self.hidden_type = self.settings.hidden_type or _hidden_type(bundle)
        self.code = None if manifest.tails is None else manifest.tails.code
        self._connect: dict[Tier, Callable[[], Client]] = {
            tier: partial(
                TierClient,
                tier,
                url,
                settings=self.settings,
                tls=tls,
                token=token,
                fingerprint=manifest.model_fingerprint,
                layers=exits.get(tier),
                n_classes=len(manifest.label_names),
            )
            for tier, url in urls.items()
        } | dict(asking or {})
        self.metrics = DeviceMetrics(self)
        """What this device counts, for Prometheus: ``registry.register(device.metrics)``."""
        self._session = uuid.uuid4().hex[:12]
        self._numbers = itertools.count()
        self._closed = False
        self._begin()
        forkable.add(self)

    def _begin(self) -> None:
        """Make what belongs to one process: the event loop, connections, threads."""
        self.pid = os.getpid()
        self._loop = RequestLoop()
        self.clients.update({tier: connect() for tier, connect in self._connect.items()})
        self._calls = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="dimec-call")
        clients = tuple(self.clients.values())
        self._finalizer = weakref.finalize(self, self._loop.close, clients)

    def forked(self) -> None:
        """Go on in a forked child, on connections of its own; what it learns there is not kept in a state's folder."""
        if self._closed:
            return
        self._finalizer.detach()
        left_behind.extend((self._loop, *self.clients.values()))
        self._begin()
        self._session = uuid.uuid4().hex[:12]
        self.metrics.restart()
        for engine in (*self.engines.values(), *self._many.values()):
            engine.forked()
        if self._keeper is not None:
            self._keeper.forked()
            self._keeper = None

    @property
    def traffic(self) -> dict[Tier, Traffic]:
        """The traffic with each tier's server so far."""
        return {tier: client.traffic for tier, client in self.clients.items()}

    @property
    def guard(self) -> dict[str, Any]:
        """The state of the policy's promise, for a policy that watches itself; empty for any other."""
        with self.lock:
            return self.policy.health()

    # --- classifying

    def classify(self, texts: Iterable[Text]) -> list[Answer]:
        """Classify texts and return their answers in the same order.

        Raises:
            DataError: If one of them is no text, or no pair where the task is about pairs; nothing is run then.
        """
        return list(self._stream(iter(self._checked(texts)), ahead=AHEAD, at_once=True))

    async def aclassify(self, texts: Iterable[Text]) -> list[Answer]:
        """Do what `classify` does without holding up the event loop; a call that is cancelled stops soon."""
        checked, stop = self._checked(texts), threading.Event()
        call = asyncio.get_running_loop().run_in_executor(
            self._calls,
            contextvars.copy_context().run,  # the caller's span is that of its texts too
            lambda: list(self._stream(iter(checked), ahead=AHEAD, at_once=True, stop=stop)),
        )
        try:
            return await call
        finally:
            stop.set()

    def stream(
        self, texts: Iterable[Text], *, in_flight: int | None = None, ahead: int | None = None
    ) -> Iterator[Answer]:
        """Classify texts as they come and give their answers in order, each as soon as it and those before are there.

        Texts that are all there are run in chunks, stage by stage, which takes a fraction of the time: those of a
        sequence, or of any iterable where ``ahead`` says how many may be read before the first is answered. A policy
        that learns meets texts one by one whatever ``ahead`` says. Where tiers are servers, an iterator without
        ``ahead`` is read in a thread of its own, so that no answer waits for the next text. What ``texts`` raises is
        raised here, behind the answers to all texts before it.

        Args:
            texts: The texts.
            in_flight: How many may wait for servers at once: by default what the settings say, else 1 for a policy
                that learns and 16 for any other. Without ``ahead`` no more than that are read ahead of the answers.
            ahead: How many are read ahead of the answers: by default 4,096 of a sequence without ``in_flight``.

        Raises:
            DataError: If one of them is no text; the answers to those before it have been given.
            OptionError: If ``in_flight`` or ``ahead`` is not at least 1.
        """
        _check_several(texts)
        for name, value in (("in_flight", in_flight), ("ahead", ahead)):
            if value is not None and value < 1:
                raise OptionError(f"{name} is {shown(value)}: give 1 or more")
        all_there = isinstance(texts, Sequence) and in_flight is None

        def as_they_come() -> Iterator[Text]:
            for index, text in enumerate(texts):
                yield self._check(text, index)

        return self._stream(
            as_they_come(),
            in_flight,
            ahead=ahead or (AHEAD if all_there else 1),
            apart=ahead is None and not isinstance(texts, Sequence),
        )

    def _stream(
        self,
        texts: Iterator[Text],
        in_flight: int | None = None,
        *,
        ahead: int,
        apart: bool = False,
        at_once: bool = False,
        stop: threading.Event | None = None,
    ) -> Iterator[Answer]:
        """Classify checked texts; ``apart`` reads them in a thread where an answer could wait for one."""
        limit = in_flight or self.settings.in_flight or (1 if self.policy.learns else IN_FLIGHT)
        return Stream(
            self,
            texts,
            requests=limit,
            ahead=ahead if can_run(self.policy) else 1,
            apart=apart and limit > 1 and bool(self.clients),
            at_once=at_once,
            stop=stop,
        ).answers()

    def sample(self, index: int, text: Text) -> Sample:
        """Return a checked text at its beginning, under a request id of its own.

        Raises:
            OptionError: If the device is closed.
        """
        if self._closed:
            raise closed_device()
        request_id = f"{self._session}-{next(self._numbers)}"
        return Sample(self, index, text, request_id=request_id)

    def engines_for(self, n_texts: int) -> tuple[Mapping[Tier, TierEngine], int]:
        """Return what runs so many texts, and how many batches of them at a time.

        All threads run one text. Many are run as batches side by side, one thread each, by graphs that are opened once
        more; not where the settings say how many threads there are, nor by OpenVINO, which runs one batch at a time.
        """
        cores = usable_cores()
        apart = all(engine.engine == "onnxruntime" for engine in self.engines.values())
        if self.settings.threads is not None or n_texts < MANY or cores == 1 or not apart:
            return self.engines, 1
        with self.lock:
            if not self._many:
                shared: dict[str, Session] = {}
                self._many = {
                    tier: engine.with_threads(1, shared=shared)
                    for tier, engine in self.engines.items()
                }
        return self._many, cores

    def ask(self, ask: Ask) -> Future[Outcome]:
        """Ask a tier's server, in the thread of the requests.

        Raises:
            OptionError: If the device is closed.
        """
        return self._loop.submit(self.clients[ask.tier].ask(ask))

    def _checked(self, texts: Iterable[Text]) -> list[Text]:
        _check_several(texts)
        return [self._check(text, index) for index, text in enumerate(texts)]

    def _check(self, text: Text, index: int) -> Text:
        """Return a text of this task; refuse anything else."""
        if self._closed:
            raise closed_device()
        parts: Sequence[object] = text if self.pairs and isinstance(text, tuple | list) else [text]
        if len(parts) != 1 + self.pairs or not all(isinstance(part, str) for part in parts):
            raise DataError(
                f"text {index} is {shown(text)}: this bundle takes "
                f"{'pairs of texts' if self.pairs else 'single texts'}"
            )
        try:
            "".join(map(str, parts)).encode()
        except UnicodeEncodeError as exc:
            raise DataError(
                f"text {index} holds half a character (a lone surrogate): mend it"
            ) from exc
        return text

    def learn(self, view: View) -> None:
        """Let the policy learn; called under its lock."""
        before = self.policy.alarm()
        self.policy.learn(view)
        now = self.policy.alarm()
        if now != before:
            log.warning(now or "no alarm any more: playing what was chosen")
        if self._keeper is not None:
            self._keeper.learnt()

    # --- the end

    def close(self) -> None:
        """Keep what was learnt and close all connections; calling it again does nothing.

        It waits for `aclassify`. `classify` and `stream` of other threads end with an `OptionError`.

        Raises:
            StateError: If what was learnt cannot be written.
        """
        if self._closed:
            return
        self._closed = True
        self._calls.shutdown()
        self._finalizer()
        if self._keeper is not None:
            self._keeper.close()

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


def _check_several(texts: object) -> None:
    """Refuse what is no series of texts: one text, a table or a mapping, which would give its keys, and bytes."""
    if isinstance(texts, str):
        raise DataError(f"one text is given, {shown(texts)}: give a list of texts")
    ordered = isinstance(texts, Iterable) and not isinstance(
        texts, bytes | bytearray | memoryview | Mapping | Set
    )
    dimensions = getattr(texts, "shape", (0,))  # an array, a series or a frame of whatever library
    if not ordered or not isinstance(dimensions, tuple) or len(dimensions) != 1:
        raise DataError(
            f"a {type(texts).__name__} is given: give a list of texts, such as one column's values"
        )


def _last_exit(tier: Tier, policy: Policy, exits: Sequence[int]) -> int:
    """Return the layer at which a tier ends where it stands in: the deepest exit that the policy has there."""
    own = [step.layer for step in policy.endpoints() if step.tier is tier]
    wanted = max(own, default=policy.depths.of(tier))
    return max((layer for layer in exits if layer <= wanted), default=wanted)


def _goes_straight(tier: Tier, policy: Policy, last: int) -> bool:
    """Tell whether a policy stops on a tier nowhere but at its last exit, so that nothing is decided before."""
    return {step.layer for step in policy.endpoints() if step.tier is tier} - {0} == {last}


def _check_tails(policy: Policy, bundle: Bundle, settings: DeviceSettings) -> None:
    """Refuse a policy that ships hidden states from a bundle whose tiers do not ship or take them as it does."""
    resumed = {step.tier for step in policy.endpoints() if step.resumes}
    if not resumed:
        return
    parts = [
        bundle.mobile,
        *(part for tier in TIERS if tier in resumed and (part := bundle.of(tier))),
    ]
    ways = {part.tier: part.manifest.tails for part in parts}
    lacking = [tier for tier, tails in ways.items() if tails is None]
    if lacking:
        how = "export it by that policy" if policy.bottleneck else "export the run with --tails"
        raise OptionError(
            f"the policy {policy.name} ships hidden states, for which the {lacking[0]} tier of {bundle.folder} is not "
            f"made: {how}"
        )
    through = {tails.bottleneck and tails.bottleneck.kind for tails in ways.values() if tails}
    if through != {policy.bottleneck}:
        raise OptionError(
            f"the policy {policy.name} ships hidden states through {policy.bottleneck or 'no bottleneck'}, and "
            f"{bundle.folder} is made for {', '.join(str(each or 'none') for each in through)}"
        )
    if policy.bottleneck is None:
        return
    splits = {step.layer for step in policy.endpoints() if step.tier is Tier.MOBILE}
    ships = bundle.mobile.manifest.tails
    if ships is not None and splits != set(ships.layers):
        raise OptionError(
            f"the policy {policy.name} splits after layers {sorted(splits)}, and the bottleneck of {bundle.folder} "
            f"stands after {list(ships.layers)}"
        )
    if settings.hidden_type is not None:
        raise OptionError(
            f"hidden_type {settings.hidden_type}: behind a learned bottleneck hidden states travel as its bytes; "
            "leave it out"
        )


def _hidden_type(bundle: Bundle) -> HiddenType:
    tails = bundle.mobile.manifest.tails
    return "FP16" if tails is None or tails.datatype == "UINT8" else tails.datatype
