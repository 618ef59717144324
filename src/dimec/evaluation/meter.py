"""What replays and single exits cost by a profile, sample by sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dimec.core.tiers import Step
from dimec.costs.billing import Billing
from dimec.costs.model import CostModel
from dimec.costs.pricing import Measured, Pricer, Texts, Unit
from dimec.evaluation.results import Amount, Measures
from dimec.policies import Policy, Replay
from dimec.runs.exit_table import TierTables

_Z95 = 1.96


@dataclass(frozen=True, eq=False)
class Meter:
    """Prices what happens to the samples of a table.

    Attributes:
        unit: The unit that costs are reported in.
        pricer: Prices traces.
        texts: The samples, as the encoder reads them.
    """

    unit: Unit
    pricer: Pricer
    texts: Texts

    @classmethod
    def of(cls, billing: Billing, tables: TierTables, *, costs: CostModel) -> Meter:
        """Meter the samples of a table.

        Raises:
            OptionError: If the profile is of another encoder.
        """
        table = tables.encoder
        restored = tables.restored
        states = None if restored is None else restored.table.payload_bytes
        texts = Texts.of(table.n_tokens, table.payload_bytes, states)
        return cls(billing.unit, billing.pricer(table, costs=costs), texts)

    def steps(self, steps: Sequence[Step]) -> Measured:
        """Price answering every sample after the same steps: [n]."""
        return self.pricer.trace(steps, self.texts)

    def replay(
        self, policy: Policy, played: Replay, *, order: NDArray[np.integer] | None = None
    ) -> Measured:
        """Price a replay: [n], in the order of the table where the replay had another."""
        texts = self.texts if order is None else self.texts.take(order)
        spent = self.pricer.traces(
            played.traces,
            played.took,
            texts,
            embeds=policy.reads_embedding,
        )
        if order is None:
            return spent
        sorted_back = Measured.zeros(len(texts))
        sorted_back.put(order, spent)
        return sorted_back

    def choice(self, steps: Sequence[Step], picks: NDArray[np.integer]) -> Measured:
        """Price answering sample i after ``steps[picks[i]]``: [n]."""
        return self.pricer.traces([[step] for step in steps], picks, self.texts)

    def mean(self, spent: Measured) -> float | None:
        """Return the mean in the unit that costs are reported in; None in lambda, which the cost model reports."""
        return None if self.unit == "lambda" else float(spent.of(self.unit).mean())


def measures(spent: Measured) -> Measures:
    """Return means with intervals."""
    return Measures(
        ms=_amount(spent.ms),
        bytes_sent=_amount(spent.bytes_sent),
        joules=_amount(spent.joules),
        money=_amount(spent.money),
    )


def _amount(values: NDArray[np.float64]) -> Amount:
    mean = float(values.mean())
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    half = _Z95 * spread / len(values) ** 0.5
    return Amount(mean=mean, ci95=(mean - half, mean + half))
