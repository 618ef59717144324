"""What answers of models of others cost, in dollars."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import Field

from dimec.core.errors import OptionError
from dimec.core.untrusted import Record, parse_json, read_json, trusting_nothing
from dimec.endpoints.said import Said


class Price(Record):
    """What an answer costs, in dollars: so much a call, and so much a million tokens in and out."""

    call: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    million_in: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    million_out: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    @classmethod
    def of(cls, text: str) -> Price:
        """Read ``IN/OUT``, dollars a million tokens, or dollars a call.

        Raises:
            OptionError: If it is neither.
        """
        try:
            numbers = [float(each) for each in text.split("/")]
            if len(numbers) > 2 or not all(0 <= each < float("inf") for each in numbers):
                raise ValueError
        except ValueError:
            raise OptionError(
                f"--model-price {text}: give dollars a million tokens, in and out, such as 0.15/0.6, or dollars a "
                "call, such as 0.0002"
            ) from None
        if len(numbers) == 1:
            return cls(call=numbers[0])
        return cls(million_in=numbers[0], million_out=numbers[1])

    def of_answer(self, said: Said) -> float:
        """Return what an answer cost, in dollars."""
        return self.of_answers(1, said.tokens_in, said.tokens_out)

    def of_answers(self, n: int, tokens_in: int, tokens_out: int) -> float:
        """Return what n answers cost that read and wrote so many tokens together, in dollars."""
        tokens = self.million_in * tokens_in + self.million_out * tokens_out
        return self.call * n + tokens / 1e6


class PriceList(Record):
    """What models cost on a day, by what endpoints call them.

    Attributes:
        source: Who says so.
        models: By the model's name.
    """

    format: Literal[1] = 1
    date: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    source: str = Field(default="the user", max_length=200)
    models: dict[str, Price] = Field(max_length=10_000)

    @classmethod
    def of(cls, path: str | Path | None) -> list[PriceList]:
        """Return the list of a file, where one is given, and the one that comes with the package.

        Raises:
            OptionError: If the file is no list of prices.
        """
        own = parse_json(files("dimec.endpoints").joinpath("prices.json").read_bytes(), cls)
        if path is None:
            return [own]
        file = Path(path)
        with trusting_nothing(
            file,
            OptionError,
            remedy='give --price-list a file such as {"date": "2026-11-30", "models": {"NAME": {"million_in": 0.15, '
            '"million_out": 0.6}}}',
        ):
            return [read_json(file, cls), own]

    def find(self, model: str) -> Price | None:
        """Return the price of a model, whatever its case, or that of its name behind a provider's and a slash."""
        plain = {name.casefold(): price for name, price in self.models.items()}
        name = model.casefold()
        return plain.get(name) or plain.get(name.rpartition("/")[2])
