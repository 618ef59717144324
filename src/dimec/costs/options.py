"""The options of a profile: what is measured of the tiers on a machine."""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import BeforeValidator, Field

from dimec.core.options import EngineName, Options, option, parts
from dimec.core.tiers import Tier

LENGTHS = (16, 32, 128)
"""How many tokens a text has by default, as far as the encoder takes them."""

Threads = Annotated[int, Field(ge=1, le=1024)]
Batch = Annotated[int, Field(ge=1, le=65_536)]


class ProfileOptions(Options):
    """What a user chooses for a profile."""

    tiers: tuple[Tier, ...] = option(
        (),
        "A tier; may be repeated.",
        flag="--tier",
        basic=True,
        shown_default="all that are there",
        cli=list[Tier],
    )
    engines: tuple[EngineName, ...] = option(
        (),
        "An engine; may be repeated.",
        flag="--engine",
        basic=True,
        shown_default="all that are installed",
        metavar="|".join(get_args(EngineName)),
        cli=list[str],
    )
    threads: Annotated[tuple[Threads, ...], BeforeValidator(parts)] = option(
        (1,), "Threads that a run may use.", basic=True, metavar="N,N,…", cli=str
    )
    lengths: Annotated[tuple[int, ...], BeforeValidator(parts)] = option(
        (),
        "Tokens of a text.",
        basic=True,
        metavar="N,N,…",
        shown_default=",".join(map(str, LENGTHS)),
        cli=str,
    )
    batches: Annotated[tuple[Batch, ...], BeforeValidator(parts)] = option(
        (1, 32), "Texts in a run.", basic=True, metavar="N,N,…", cli=str
    )
    seconds: float = option(
        1.0, "Seconds that each case is timed, after a warm-up.", basic=True, gt=0, le=600
    )
