"""Hidden states between tiers: what a manifest says of them, and what they travel as.

A learned bottleneck would be one `HiddenType` more: its codec on the device, its restoring graph in the tier, and what
both need to know in `Tails`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from dimec.errors import OptionError
from dimec.tiers import Tier

HiddenType = Literal["FP16", "FP32"]
"""What hidden states travel as, in the protocol's names."""

HIDDEN_BYTES: dict[HiddenType, int] = {"FP16": 2, "FP32": 4}
"""Bytes of a value of each."""

Layers = tuple[Annotated[int, Field(ge=1, le=1024)], ...]


class Tails(BaseModel):
    """The hidden states at which a run is handed from one tier to another.

    Attributes:
        layers: After which layers: on mobile those whose hidden state it ships, elsewhere those it resumes from.
        width: Values per token.
        datatype: What a device sends them as; a tier takes either.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: Layers = Field(min_length=1, max_length=1024)
    width: int = Field(ge=1, le=2**20)
    datatype: HiddenType = "FP16"

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


def hidden_type(tails: bool | str) -> HiddenType | None:
    """Read what hidden states are to travel as: FP16 where True says no more; None where they are not to travel.

    Raises:
        OptionError: If they cannot travel so.
    """
    if isinstance(tails, bool):
        return "FP16" if tails else None
    types: dict[str, HiddenType] = {"fp16": "FP16", "fp32": "FP32"}
    if tails.lower() not in types:
        raise OptionError(f"hidden states cannot travel as {tails!r}: choose fp16 or fp32")
    return types[tails.lower()]
