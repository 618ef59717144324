"""How rows are to be shared out: the kind of split, and the sizes of its parts in percent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

SplitKind = Literal["auto", "random", "grouped", "time"]
SPLIT_KINDS: tuple[SplitKind, ...] = get_args(SplitKind)

SplitMade = Literal["random", "grouped", "time", "files"]
"""How a data set was split; by files where no row was left to share out."""

Sizes = tuple[int, int, int]
SIZES: Sizes = (80, 10, 10)
"""Percent of the rows for training, validation and test, where nothing else is asked for."""


@dataclass(frozen=True, slots=True)
class SplitChoice:
    """What `--split` says.

    Attributes:
        kind: How rows are shared out; auto is random or grouped, by what the rows share.
        sizes: Percent of the rows for training, validation and test.
    """

    kind: SplitKind = "auto"
    sizes: Sizes = SIZES

    def __str__(self) -> str:
        """Write it as an option; sizes only where they are not the usual ones."""
        if self.sizes == SIZES:
            return self.kind
        return f"{self.kind}:{'/'.join(map(str, self.sizes))}"

    @classmethod
    def read(cls, text: str) -> SplitChoice:
        """Read an option such as ``grouped``, ``70/15/15`` or ``grouped:70/15/15``.

        Raises:
            ValueError: If it says neither a kind nor sizes.
        """
        first, colon, rest = text.strip().partition(":")
        if not colon and first in SPLIT_KINDS:
            return cls(first)
        name, sizes = (first, rest) if colon else ("auto", first)
        numbers = [int(part) if part.strip().isdecimal() else 0 for part in sizes.split("/")]
        if name not in SPLIT_KINDS or len(numbers) != 3 or min(numbers) < 1 or sum(numbers) != 100:
            raise ValueError(
                f"it must be {', '.join(SPLIT_KINDS)}, or the sizes of training, validation and test in whole "
                "percent that add up to 100, such as 70/15/15 or grouped:70/15/15"
            )
        return cls(name, (numbers[0], numbers[1], numbers[2]))


def read_split(value: object) -> object:
    """Write what a user chose as `SplitChoice` writes it; a validator.

    Raises:
        ValueError: If it is no choice.
    """
    return str(SplitChoice.read(value)) if isinstance(value, str) else value
