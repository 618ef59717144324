"""What a model of others says about a text, and how it is asked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import Field

from dimec.core.errors import OptionError, shown
from dimec.core.untrusted import Record

Text = tuple[str, ...]
"""One text, or the two of a pair."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a model said about one text.

    Attributes:
        probabilities: One a class; None where it named no class.
        ms: How long the answer took.
        tokens_in, tokens_out: What was read and written, by the endpoint's own count.
    """

    probabilities: tuple[float, ...] | None
    ms: float
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes of a run, and other names that a model has for them."""

    names: tuple[str, ...]
    aliases: Mapping[str, str]

    @classmethod
    def of(cls, names: Sequence[str], changes: Sequence[str]) -> Classes:
        """Read ``OLD=NEW`` pairs, OLD a model's name of the run's class NEW.

        Raises:
            OptionError: If a pair is none, or names no class.
        """
        aliases = {}
        for change in changes:
            old, equals, new = change.rpartition("=")
            if not equals or not old or new not in names:
                raise OptionError(
                    f"--map {shown(change)}: give the model's name of a class, = and one of {', '.join(names)}"
                )
            aliases[old.strip().casefold()] = new
        return cls(tuple(names), aliases)

    def find(self, name: str) -> int | None:
        """Return the place of the class that a name means, whatever its case; None where it means none."""
        plain = name.strip().casefold()
        wanted = self.aliases.get(plain, plain).casefold()
        found = [place for place, own in enumerate(self.names) if own.casefold() == wanted]
        return found[0] if len(found) == 1 else None

    def spread(self, masses: Mapping[str, float]) -> tuple[float, ...] | None:
        """Return probabilities of the classes from those of names; None where no class is named.

        Raises:
            OptionError: If a name means no class.
        """
        found = [0.0] * len(self.names)
        for name, mass in masses.items():
            place = self.find(name)
            if place is None:
                raise OptionError(
                    f"the model has the class {shown(name)}, and the run has {', '.join(self.names)}: say which it "
                    "means with --map OLD=NEW"
                )
            found[place] += mass if math.isfinite(mass) and mass > 0 else 0.0
        total = sum(found)
        return tuple(each / total for each in found) if total > 0 else None

    def one(self, place: int) -> tuple[float, ...]:
        """Return probabilities that are all of one class."""
        return tuple(float(place == each) for each in range(len(self.names)))


class Question(Record):
    """How an endpoint is asked about a text, whoever asks.

    Attributes:
        prompt: Of a chat, with the fields ``{text}``, ``{text2}``, ``{classes}``, ``{examples}``; None for the usual
            one.
        aliases: The model's names of classes, and the run's.
    """

    prompt: str | None = Field(default=None, max_length=2**20)
    examples: tuple[tuple[tuple[str, ...], str], ...] = Field(default=(), max_length=100_000)
    aliases: dict[str, str] = Field(default_factory=dict, max_length=100_000)
