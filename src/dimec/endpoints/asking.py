"""Asking an endpoint about many texts: each once, several at a time, up to a sum of money."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from dimec.core.errors import DimecError, OptionError
from dimec.core.progress import SILENT, Progress
from dimec.endpoints.http import Endpoint
from dimec.endpoints.kept import Kept
from dimec.endpoints.prices import Price
from dimec.endpoints.said import Said, Text


def ask_all(
    endpoint: Endpoint,
    texts: Sequence[Text],
    kept: Kept,
    *,
    n_classes: int,
    at_once: int = 8,
    price: Price | None = None,
    max_spend: float | None = None,
    progress: Progress = SILENT,
    what: str = "Asking",
) -> list[Said]:
    """Return what an endpoint says about each text, in their order; what is kept is not asked again.

    Equal texts are asked about once.

    Args:
        max_spend: Dollars that this call may spend; it stops before an answer as dear as the dearest so far would pass
            that.
        what: The name of the stage.

    Raises:
        OptionError: If the money does not reach, or the endpoint refuses the question.
        UnreachableError: If it gives no answer. Whatever was answered before is kept.
    """
    unique = list(dict.fromkeys(texts))
    found: dict[Text, Said] = {}
    for text in unique:
        said = kept.find(endpoint.key, text, n_classes=n_classes)
        if said is not None:
            found[text] = said
    missing = [text for text in unique if text not in found]
    priced = price or Price()
    spending = Spending(max_spend)

    async def ask(advance: Callable[[int], None]) -> None:
        waiting = iter(missing)

        async def work() -> None:
            for text in waiting:
                spending.begin()
                said = await endpoint.ask(text)
                spending.end(priced.of_answer(said))
                kept.keep(endpoint.key, text, said)
                found[text] = said
                advance(1)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(at_once, len(missing))):
                    group.create_task(work())
        finally:
            await endpoint.close()

    if missing:
        try:
            with progress.stage(what, len(missing)) as advance:
                _run(ask(advance))
        except BaseExceptionGroup as group:
            known, others = group.split(DimecError)
            if known is None or others is not None:
                raise
            fault = known.exceptions[0]
            assert isinstance(fault, DimecError)
            raise type(fault)(
                f"{fault}; {len(found):,} of {len(unique):,} answers are kept: the same command goes on from there"
            ) from fault
    return [found[text] for text in texts]


class Spending:
    """Counts the dollars that are spent, and those that open questions may cost."""

    def __init__(self, most: float | None) -> None:
        """Take the most that may be spent; None for whatever it takes."""
        self._most = most
        self._spent = self._dearest = 0.0
        self._open = 0

    def begin(self) -> None:
        """Open a question.

        Raises:
            OptionError: If the money might not reach for it.
        """
        likely = self._spent + self._dearest * (self._open + 1)
        if self._most is not None and likely > self._most:
            raise OptionError(
                f"--max-spend {self._most:g} is reached: {self._spent:.4g} dollars are spent"
            )
        self._open += 1

    def end(self, cost: float) -> None:
        """Close a question, whose answer cost so many dollars."""
        self._open -= 1
        self._spent += cost
        self._dearest = max(self._dearest, cost)


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end, in a notebook too, where a loop runs already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, work).result()
