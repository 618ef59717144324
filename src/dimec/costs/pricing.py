"""What traces cost by a profile: milliseconds, bytes sent, joules and money per text; and the cost model they make.

Steps and lengths go in, arrays over texts come out. Each part of a trace (a layer, a request, a shipped hidden state)
has its price in all four units at once, and a trace is the sum of its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import OptionError
from dimec.core.tiers import Step, Tier
from dimec.costs.model import CostModel
from dimec.costs.profiles import CostProfile, MobileFigures, Values

Unit = Literal["lambda", "ms", "bytes", "joules", "money"]
MEASURED_UNITS: tuple[Unit, ...] = ("ms", "bytes", "joules", "money")
UNITS: tuple[Unit, ...] = ("lambda", *MEASURED_UNITS)

LOGIT_BYTES = 4
"""An answer is one float32 a class."""
HIDDEN_BYTES = 2
"""Hidden states travel as 16-bit floats."""


MS, BYTES, JOULES, MONEY = range(len(MEASURED_UNITS))
Measured = NDArray[np.float64]
"""What texts, or a part of their way, cost: [4, n], in the order of `MEASURED_UNITS`.

First how long the device waits for the answer, in milliseconds; then what it sends, headers and what is sent again
included; what it takes from its battery, on top of idling; and what is paid to others, in the profile's currency.
"""


def measured(
    ms: Values,
    bytes_sent: Values | float = 0.0,
    joules: Values | float = 0.0,
    money: Values | float = 0.0,
) -> Measured:
    """Put together what a part costs."""
    return np.stack(np.broadcast_arrays(ms, bytes_sent, joules, money))


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """The texts that are priced.

    Attributes:
        n_tokens: [n] float64, special tokens included.
        payload_bytes: [n] float64, their token ids.
        state_bytes: [n] float64, their hidden states behind a learned bottleneck; None without one, where a hidden
            state travels whole.
    """

    n_tokens: Values
    payload_bytes: Values
    state_bytes: Values | None = None

    @classmethod
    def of(
        cls,
        n_tokens: NDArray[np.integer],
        payload_bytes: NDArray[np.integer],
        state_bytes: NDArray[np.integer] | None = None,
    ) -> Texts:
        """Take the columns of an exit table, and of a bottleneck's."""
        states = None if state_bytes is None else state_bytes.astype(np.float64)
        return cls(n_tokens.astype(np.float64), payload_bytes.astype(np.float64), states)

    @property
    def mean(self) -> Texts:
        """One text of the mean length: [1]."""
        return self._each(lambda column: column.mean(keepdims=True))

    def take(self, rows: NDArray[np.integer] | NDArray[np.bool_]) -> Texts:
        """Return some of them."""
        return self._each(lambda column: column[rows])

    def _each(self, change: Callable[[Values], Values]) -> Texts:
        states = None if self.state_bytes is None else change(self.state_bytes)
        return Texts(change(self.n_tokens), change(self.payload_bytes), states)

    def __len__(self) -> int:
        return len(self.n_tokens)


@dataclass(frozen=True, slots=True)
class Load:
    """What a text asks of a tier in the mean, however long it takes by the clock.

    Attributes:
        asked: How often the device asks it; 0 for the device itself.
    """

    asked: float = 0.0
    computing_ms: float = 0.0
    bytes_sent: float = 0.0


@dataclass(frozen=True)
class Pricer:
    """Prices parts of traces, and whole ones, by a profile.

    Attributes:
        work: What a layer takes on a tier relative to one of the encoder, where it holds another model.

    Raises:
        OptionError: If the profile's times were measured with an encoder of another width.
    """

    profile: CostProfile
    width: int
    n_classes: int
    work: Mapping[Tier, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.profile.width not in (None, self.width):
            raise OptionError(
                f"the profile {self.profile.name} was measured with an encoder {self.profile.width} wide, and this one "
                f"is {self.width} wide: measure it with dimec profile BUNDLE --costs FILE, or take a ready profile"
            )

    # --- parts

    def layer(self, tier: Tier, texts: Texts) -> Measured:
        """Price one layer on a tier."""
        figures = self.profile.of(tier)
        part = self._computing(tier, figures.layer_ms(texts.n_tokens, width=self.width))
        if isinstance(figures, MobileFigures):
            part[JOULES] = figures.layer_joules(texts.n_tokens, width=self.width)
        return part * self.work.get(tier, 1.0)

    def embedding(self, tier: Tier, texts: Texts) -> Measured:
        """Price the embedding layer on a tier."""
        return self._computing(
            tier, self.profile.of(tier).embedding_ms(texts.n_tokens, width=self.width)
        )

    def exit_zero(self, texts: Texts) -> Measured:
        """Price a reading of exit zero."""
        return self._computing(
            Tier.MOBILE, np.full(len(texts), self.profile.mobile.exit_zero_ms, dtype=np.float64)
        )

    def request(self, tier: Tier, texts: Texts) -> Measured:
        """Price a request without a payload and its answer: the round trip, headers, the logits."""
        link, money = self.profile.link(tier), self.profile.money
        again = 1 / (1 - link.loss)
        n = len(texts)
        sent = self._sending(tier, np.full(n, link.request_bytes))
        received = self._receiving(
            tier, np.full(n, link.response_bytes + LOGIT_BYTES * self.n_classes)
        )
        waiting_ms = np.full(n, link.round_trip_ms * again)
        fee = money.edge_request if tier is Tier.EDGE else money.cloud_request
        joules = link.awake_watts * waiting_ms / 1000 + link.request_joules
        return sent + received + measured(waiting_ms, joules=joules, money=fee)

    def tokens(self, tier: Tier, texts: Texts) -> Measured:
        """Price sending the token ids."""
        return self._sending(tier, texts.payload_bytes)

    def state(self, came_from: Tier, to: Tier, texts: Texts) -> Measured:
        """Price a hidden state on its way: down from a tier that is not the device, up to one that is not."""
        size = texts.state_bytes
        if size is None:
            size = HIDDEN_BYTES * self.width * texts.n_tokens
        part = measured(np.zeros(len(texts)))
        if came_from is not Tier.MOBILE:
            part += self._receiving(came_from, size)
        if to is not Tier.MOBILE:
            part += self._sending(to, size)
        return part

    def _computing(self, tier: Tier, ms: Values) -> Measured:
        """Price a time of computing: on the device by its watts, elsewhere by waiting and by the second."""
        if tier is Tier.MOBILE:
            return measured(ms, joules=self.profile.mobile.watts * ms / 1000)
        money = self.profile.money
        second = money.edge_second if tier is Tier.EDGE else money.cloud_second
        joules = self.profile.link(tier).awake_watts * ms / 1000
        return measured(ms, joules=joules, money=second * ms / 1000)

    def _sending(self, tier: Tier, size: Values) -> Measured:
        """Price bytes to a tier: each is sent 1 / (1 - loss) times on the average."""
        link = self.profile.link(tier)
        sent = size / (1 - link.loss)
        ms = 8000 * sent / link.uplink_bps
        joules = link.send_joules_per_byte * sent + link.awake_watts * ms / 1000
        return measured(ms, sent, joules)

    def _receiving(self, tier: Tier, size: Values) -> Measured:
        link = self.profile.link(tier)
        came = size / (1 - link.loss)
        ms = 8000 * came / link.downlink_bps
        joules = link.receive_joules_per_byte * came + link.awake_watts * ms / 1000
        return measured(ms, joules=joules)

    # --- wholes

    def trace(self, steps: Sequence[Step], texts: Texts, *, embeds: bool = False) -> Measured:
        """Price what texts cost that all take these steps.

        A tier that is entered is asked once, whatever steps follow there. It embeds the tokens, unless the step resumes
        from a shipped hidden state.

        Args:
            embeds: Whether the device embeds the tokens before anything else, since the policy looks at that.
        """
        parts = (part for _, _, part in self._parts(steps, texts, embeds=embeds))
        return sum(parts, measured(np.zeros(len(texts))))

    def _parts(
        self, steps: Sequence[Step], texts: Texts, *, embeds: bool
    ) -> Iterator[tuple[Tier, Literal["asking", "sending", "computing"], Measured]]:
        """Give the parts of a trace, each with its tier: that which computes, or which is asked and sent something."""
        before: Step | None = None
        embedded = embeds
        if embeds:
            yield Tier.MOBILE, "computing", self.embedding(Tier.MOBILE, texts)
        for tier, group in groupby(steps, key=lambda step: step.tier):
            visit = list(group)
            resumed = before if visit[0].resumes else None
            layers = visit[-1].layer - (resumed.layer if resumed else 0)
            if tier is not Tier.MOBILE:
                yield tier, "asking", self.request(tier, texts)
            if resumed is not None:
                yield tier, "sending", self.state(resumed.tier, tier, texts)
            elif tier is not Tier.MOBILE:
                yield tier, "sending", self.tokens(tier, texts)
            if resumed is None and layers and not (tier is Tier.MOBILE and embedded):
                yield tier, "computing", self.embedding(tier, texts)
                embedded = embedded or tier is Tier.MOBILE
            yield tier, "computing", self.layer(tier, texts) * layers
            read = sum(step.layer == 0 for step in visit)
            yield Tier.MOBILE, "computing", self.exit_zero(texts) * read
            before = visit[-1]

    def loads(
        self,
        traces: Sequence[Sequence[Step]],
        took: NDArray[np.integer],
        texts: Texts,
        *,
        embeds: bool = False,
    ) -> dict[Tier, Load]:
        """Return what texts ask of each tier in the mean, where text i took ``traces[took[i]]``."""
        found = {tier: [0.0, 0.0, 0.0] for tier in Tier}
        for place, steps in enumerate(traces):
            own = texts.take(np.flatnonzero(took == place))
            for tier, what, part in self._parts(steps, own, embeds=embeds):
                found[tier][0] += len(own) * (what == "asking")
                found[tier][1] += float(part[MS].sum()) * (what == "computing")
                found[tier][2] += float(part[BYTES].sum())
        return {tier: Load(*(each / len(texts) for each in sums)) for tier, sums in found.items()}

    def traces(
        self,
        traces: Sequence[Sequence[Step]],
        took: NDArray[np.integer],
        texts: Texts,
        *,
        embeds: bool = False,
    ) -> Measured:
        """Price what each text cost, where text i took ``traces[took[i]]``."""
        whole = measured(np.zeros(len(texts)))
        for place, steps in enumerate(traces):
            rows = np.flatnonzero(took == place)
            whole[:, rows] = self.trace(steps, texts.take(rows), embeds=embeds)
        return whole

    def cost_model(self, unit: Unit, texts: Texts) -> CostModel:
        """Return the cost model whose prices are this profile's in one unit, for a text of the mean length.

        Layers have the encoder's own work here. The embedding layer, for which a cost model has no price, is left
        out. What the device does is free in bytes and money: there, costs are held against the full model in the cloud.

        Raises:
            OptionError: If nothing costs anything in this unit, or the unit is lambda.
        """
        if unit == "lambda":
            raise OptionError("lambda is no unit of a profile: choose ms, bytes, joules or money")
        one = texts.mean

        def price(part: Measured) -> float:
            return float(part[MEASURED_UNITS.index(unit), 0])

        plain = replace(self, work={})
        model = {f"{tier}_layer": price(plain.layer(tier, one)) for tier in Tier}
        model["exit_zero"] = price(plain.exit_zero(one))
        for tier in (Tier.EDGE, Tier.CLOUD):
            tokens, state = plain.tokens(tier, one), plain.state(Tier.MOBILE, tier, one)
            model[f"to_{tier}"] = price(plain.request(tier, one) + tokens)
            model[f"state_to_{tier}"] = max(price(state) - price(tokens), 0.0)
        held_against = Tier.MOBILE if unit in ("ms", "joules") else Tier.CLOUD
        decisive = ("mobile_layer",) if held_against is Tier.MOBILE else ("cloud_layer", "to_cloud")
        if not any(model[name] for name in decisive):
            what = {"joules": "mobile.watts or layer_joules", "money": "money.cloud_second"}
            raise OptionError(
                f"--unit {unit}: the profile {self.profile.name} has no prices in this unit; set "
                f"{what.get(unit, 'its figures')}, or choose another unit"
            )
        return CostModel(**model, held_against=held_against)
