"""Hidden states between tiers: what a manifest says of them, and how they are sent.

They are sent as numbers of 16 or 32 bits, or as the bytes of a learned bottleneck: the device reduces them, the tier
restores them and runs layers of its own that were trained behind the bottleneck.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dimec.core.options import HiddenType
from dimec.core.tiers import Tier
from dimec.core.untrusted import Record
from dimec.runs.codes import Code, Kind

HIDDEN_BYTES: dict[HiddenType | Literal["UINT8"], int] = {"UINT8": 1, "FP16": 2, "FP32": 4}
"""Bytes of a value of each."""

Layers = tuple[Annotated[int, Field(ge=1, le=1024)], ...]


class BundleBottleneck(Record):
    """A learned bottleneck, as far as its two ends need to know.

    Attributes:
        name: Which of the run's.
        kind: The system that it was learnt by; it says how numbers become bytes.
        pool: How many tokens in a row become one.
        levels: How many values a number has.
    """

    name: str = Field(min_length=1, max_length=200)
    kind: Kind
    pool: int = Field(default=1, ge=1, le=8)
    levels: int = Field(default=256, ge=2, le=256)


class Tails(Record):
    """The hidden states at which a run is handed from one tier to another.

    Attributes:
        layers: After which layers: on mobile those whose hidden state it ships, elsewhere those it resumes from.
        width: Values per token; behind a bottleneck those that it leaves of them.
        datatype: What a device sends them as; a tier takes FP16 and FP32, or UINT8 alone.
        bottleneck: What reduces them; null where they are sent as they are.
    """

    layers: Layers = Field(min_length=1, max_length=1024)
    width: int = Field(ge=1, le=2**20)
    datatype: HiddenType | Literal["UINT8"] = "FP16"
    bottleneck: BundleBottleneck | None = None

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if (self.bottleneck is not None) != (self.datatype == "UINT8"):
            raise ValueError("hidden states are UINT8 behind a bottleneck, and only there")
        if self.bottleneck is not None and len(self.layers) != 1:
            raise ValueError("a bottleneck stands after one layer")
        return self

    @property
    def code(self) -> Code | None:
        """How a reduced state becomes bytes; None where states are sent as they are."""
        own = self.bottleneck
        if own is None:
            return None
        return Code(own.kind, self.width, pool=own.pool, levels=own.levels)

    def check(self, tier: Tier, layers: Sequence[int], *, n_layers: int) -> None:
        """Hold them against the tier's exits.

        Raises:
            ValueError: If a run cannot be handed over there.
        """
        allowed = tails_of(tier, layers, n_layers=n_layers)
        if tuple(sorted(set(self.layers))) != self.layers or not {*self.layers} <= {*allowed}:
            raise ValueError(f"tails: layers {list(self.layers)} must ascend within {allowed}")


def tails_of(tier: Tier, layers: Sequence[int], *, n_layers: int) -> tuple[int, ...]:
    """Return the layers at which a tier with exits after ``layers`` can hand a run over, or take one over.

    A device hands over whatever leaves layers to run. Another tier takes over what leaves it an exit to read.
    """
    last = n_layers if tier is Tier.MOBILE else layers[-1]
    return tuple(layer for layer in layers if layer < last)
