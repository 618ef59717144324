"""Profiles of hardware and links: what a measured cost model is made of, as one JSON file.

Ready ones come with the package; a user's own has the same layout, and `dimec profile --costs` writes the compute part
of this machine's. What each figure means, and how to write a profile: docs/reference/cost-profile.md.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from dimec.core.errors import OptionError
from dimec.core.tiers import Tier
from dimec.core.untrusted import Record, read_json, trusting_nothing

READY = ("phone-4g", "phone-wifi", "raspberry-pi", "laptop")
"""The profiles that come with the package."""

FLOPS_PER_MS = 1e6
"""How many operations a millisecond one GFLOP/s is."""

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
FromZero = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Values = NDArray[np.float64]


class Point(Record):
    """What one text of a length takes on a tier.

    Attributes:
        tokens: Its length, special tokens included.
        layer_joules: What one layer takes from the device's battery, in joules; without it, `MobileFigures.watts`
            times the time.
    """

    tokens: int = Field(ge=1)
    layer_ms: Positive
    embedding_ms: FromZero = 0.0
    layer_joules: FromZero | None = None


class Speed(Record):
    """How fast a tier runs an encoder layer of any width.

    Attributes:
        gflops: Sustained speed on one text, in 10^9 floating-point operations a second.
        layer_overhead_ms: What a layer takes whatever the length, in milliseconds.
        embedding_layers: What the embedding layer takes, as a share of an encoder layer.
    """

    gflops: Positive
    layer_overhead_ms: FromZero = 0.0
    embedding_layers: FromZero = 0.05


class TierFigures(Record):
    """How long layers take on a tier: measured points, or a speed.

    Attributes:
        points: Measured lengths, ascending; between and beyond them times are taken to be linear.
        speed: For encoders that nobody has measured there.
        load: Factor on all times there: 2 where the tier is so busy that everything takes twice as long.
    """

    points: tuple[Point, ...] | None = None
    speed: Speed | None = None
    load: Positive = 1.0

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.points is None) == (self.speed is None):
            raise ValueError("give either points or speed")
        if self.points is not None:
            lengths = [point.tokens for point in self.points]
            if not lengths or lengths != sorted(set(lengths)):
                raise ValueError("points must be one or more, their tokens ascending")
            known = {point.layer_joules is None for point in self.points}
            if len(known) > 1:
                raise ValueError("give layer_joules at all points or at none")
        return self

    def layer_ms(self, n_tokens: Values, *, width: int) -> Values:
        """Return what a layer takes for texts of these lengths, load included, in milliseconds: [n]."""
        if self.speed is not None:
            flops = layer_flops(n_tokens, width=width)
            unloaded = self.speed.layer_overhead_ms + flops / (self.speed.gflops * FLOPS_PER_MS)
        else:
            unloaded = self._between([point.layer_ms for point in self._points], n_tokens)
        return self.load * unloaded

    def embedding_ms(self, n_tokens: Values, *, width: int) -> Values:
        """Return what the embedding layer takes, load included, in milliseconds: [n]."""
        if self.speed is not None:
            return self.speed.embedding_layers * self.layer_ms(n_tokens, width=width)
        return self.load * self._between([point.embedding_ms for point in self._points], n_tokens)

    @property
    def _points(self) -> tuple[Point, ...]:
        assert self.points is not None  # where there is no speed
        return self.points

    def _between(self, values: list[float], n_tokens: Values) -> Values:
        """Interpolate; beyond the first and the last point go on as between the nearest two, never below 0."""
        x, y = np.array([float(point.tokens) for point in self._points]), np.array(values)
        if len(x) == 1:
            return np.full_like(n_tokens, y[0])
        at = np.clip(np.searchsorted(x, n_tokens, side="right") - 1, 0, len(x) - 2)
        slope = (y[at + 1] - y[at]) / (x[at + 1] - x[at])
        found: Values = np.maximum(y[at] + slope * (n_tokens - x[at]), 0.0)
        return found


class MobileFigures(TierFigures):
    """The device: how long layers take there, and what they take from its battery.

    Attributes:
        watts: What computing takes on top of idling.
    """

    watts: FromZero = 0.0
    exit_zero_ms: FromZero = 0.0

    def layer_joules(self, n_tokens: Values, *, width: int) -> Values:
        """Return what a layer takes from the battery for texts of these lengths, in joules: [n]."""
        if self.points is None or self.points[0].layer_joules is None:
            return self.watts * self.layer_ms(n_tokens, width=width) / 1000
        return self._between([point.layer_joules or 0.0 for point in self.points], n_tokens)


class Link(Record):
    """The way from the device to a tier and back.

    Attributes:
        round_trip_ms: There and back for a message without length, in milliseconds.
        loss: Share of what is sent that is lost and sent again, below 1.
        awake_watts: What the radio takes from the first byte of a request to the last of its answer, on top of idling.
        send_joules_per_byte: What sending a byte takes on top of that.
        request_joules: What a request takes whatever its length: waking the radio, its tail. 0 where it stays awake.
        request_bytes: What a request sends beside the token ids or the hidden state: headers, the tensors' description.
        response_bytes: What an answer brings beside the logits.
    """

    uplink_bps: Positive
    downlink_bps: Positive
    round_trip_ms: FromZero
    loss: Annotated[float, Field(ge=0, lt=1)] = 0.0
    awake_watts: FromZero = 0.0
    send_joules_per_byte: FromZero = 0.0
    receive_joules_per_byte: FromZero = 0.0
    request_joules: FromZero = 0.0
    request_bytes: FromZero = 0.0
    response_bytes: FromZero = 0.0


class Money(Record):
    """What is paid to others."""

    currency: str = "USD"
    edge_second: FromZero = 0.0
    edge_request: FromZero = 0.0
    cloud_second: FromZero = 0.0
    cloud_request: FromZero = 0.0


class CostProfile(Record):
    """A device, an edge server and a cloud, and the links between them.

    Attributes:
        width: The hidden width of the encoder whose times the points are; None where all tiers give a speed.
        sources: Where figures come from, by their path in the file, such as ``to_cloud.loss``; the source of a path
            holds for all figures below it that have none of their own.
    """

    format: Literal[1] = 1
    name: str = Field(min_length=1)
    about: str = ""
    width: int | None = Field(default=None, ge=1)
    mobile: MobileFigures
    edge: TierFigures
    cloud: TierFigures
    to_edge: Link
    to_cloud: Link
    money: Money = Field(default_factory=Money)
    sources: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.width is None and any(self.of(tier).points is not None for tier in Tier):
            raise ValueError("points hold for one encoder: give its hidden width as width")
        paths = [leaf.split(".") for leaf in leaves(self.model_dump(exclude={"sources"}))]
        known = {".".join(leaf[:end]) for leaf in paths for end in range(1, len(leaf) + 1)}
        for path in self.sources:
            if path not in known:
                raise ValueError(f"sources names {path}, which is no figure of this file")
        return self

    def of(self, tier: Tier) -> TierFigures:
        """Return a tier's figures."""
        return {Tier.MOBILE: self.mobile, Tier.EDGE: self.edge, Tier.CLOUD: self.cloud}[tier]

    def link(self, tier: Tier) -> Link:
        """Return the link to a tier that is not the device."""
        return {Tier.EDGE: self.to_edge, Tier.CLOUD: self.to_cloud}[tier]

    def changed(self, **figures: float) -> CostProfile:
        """Return a copy with other figures by their path, dots written as two underscores: ``to_cloud__loss=0.1``."""
        document = self.model_dump()
        for path, value in figures.items():
            *rooms, name = path.split("__")
            place = document
            for room in rooms:
                place = place[room]
            if name not in place:
                raise KeyError(path)
            place[name] = value
        return CostProfile.model_validate(document)


def layer_flops(n_tokens: Values, *, width: int) -> Values:
    """Return the operations of an encoder layer: 24 n d^2 for its matrices (inner width 4 d), 4 n^2 d for attention."""
    return 24 * n_tokens * width**2 + 4 * n_tokens**2 * width


def load_profile(name: str | Path) -> CostProfile:
    """Read a profile: a ready one by its name, or a file.

    Raises:
        OptionError: If there is neither, or the file is no profile.
    """
    path = Path(name)
    if str(name) in READY and not path.is_file():
        text = files("dimec.costs").joinpath("ready", f"{name}.json").read_text("utf-8")
        return CostProfile.model_validate_json(text)
    with trusting_nothing(
        path,
        OptionError,
        remedy=f"--profile {name} is no profile of costs; docs/reference/cost-profile.md has the layout",
        missing=f"give --profile a file, or one of {', '.join(READY)}",
    ):
        return read_json(path, CostProfile)


def leaves(value: object, path: str = "") -> list[str]:
    """Return the dotted paths of all values in nested dictionaries; a list is one value."""
    if not isinstance(value, dict):
        return [path]
    return [
        leaf
        for name, each in value.items()
        if each is not None
        for leaf in leaves(each, f"{path}.{name}" if path else name)
    ]
