"""What replays and single exits cost: by the cost model, and sample by sample by a profile where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

from dimec.core.tiers import Step, Tier
from dimec.costs.billing import Billing
from dimec.costs.model import CostModel
from dimec.costs.pricing import MEASURED_UNITS, Load, Measured, Pricer, Texts, Unit
from dimec.evaluation.results import Amount, Measures
from dimec.policies import Policy, Replay
from dimec.runs.exit_table import TierTables

_Z95 = 1.96


@dataclass(frozen=True, eq=False)
class Spent:
    """What samples cost.

    Attributes:
        cost: The mean, in the unit that costs are reported in.
        measured: What each costs by the profile, in the order of the table; None without a profile.
    """

    cost: float
    measured: Measured | None

    @classmethod
    def mean_of(cls, several: Sequence[Spent]) -> Spent:
        """Return the mean of what the same samples cost several times."""
        measured = [each.measured for each in several if each.measured is not None]
        mean = reduce(add, measured) * (1 / len(measured)) if measured else None
        return cls(float(np.mean([each.cost for each in several])), mean)

    @property
    def measures(self) -> Measures | None:
        """Means with intervals, in every unit of the profile."""
        if self.measured is None:
            return None
        ms, bytes_sent, joules, money = map(_amount, self.measured)
        return Measures(ms=ms, bytes_sent=bytes_sent, joules=joules, money=money)


@dataclass(frozen=True, eq=False)
class Meter:
    """Prices what happens to the samples of a table."""

    costs: CostModel
    unit: Unit
    pricer: Pricer | None
    texts: Texts

    @classmethod
    def of(cls, billing: Billing | None, tables: TierTables, *, costs: CostModel) -> Meter:
        """Meter the samples of a table.

        Raises:
            OptionError: If the profile is of another encoder.
        """
        table = tables.encoder
        states = None if tables.restored is None else tables.restored.table.payload_bytes
        texts = Texts.of(table.n_tokens, table.payload_bytes, states)
        if billing is None:
            return cls(costs, "lambda", None, texts)
        return cls(costs, billing.unit, billing.pricer(table, costs=costs), texts)

    def steps(self, steps: Sequence[Step]) -> Spent:
        """Price answering every sample after the same steps."""
        everyone = np.zeros(len(self.texts), dtype=np.int64)
        return self._spent(self.costs.of(steps), [steps], everyone)

    def replay(
        self, policy: Policy, played: Replay, *, order: NDArray[np.integer] | None = None
    ) -> Spent:
        """Price a replay of the table, or of its rows in another order."""
        cost = float(played.costs.mean())
        embeds = policy.reads_embedding
        return self._spent(cost, played.traces, played.took, embeds=embeds, order=order)

    def loads(self, policy: Policy, played: Replay) -> dict[Tier, Load]:
        """Return what a replay asks of each tier; there is a profile."""
        assert self.pricer is not None
        embeds = policy.reads_embedding
        return self.pricer.loads(played.traces, played.took, self.texts, embeds=embeds)

    def loads_of(self, steps: Sequence[Step]) -> dict[Tier, Load]:
        """Return what answering every sample after the same steps asks of each tier; there is a profile."""
        assert self.pricer is not None
        return self.pricer.loads([steps], np.zeros(len(self.texts), np.int64), self.texts)

    def choice(self, steps: Sequence[Step], picks: NDArray[np.integer]) -> Spent:
        """Price answering sample i after ``steps[picks[i]]``."""
        ways = [[step] for step in steps]
        cost = float(np.array([self.costs.of(way) for way in ways])[picks].mean())
        return self._spent(cost, ways, picks)

    def _spent(
        self,
        cost: float,
        traces: Sequence[Sequence[Step]],
        took: NDArray[np.integer],
        *,
        embeds: bool = False,
        order: NDArray[np.integer] | None = None,
    ) -> Spent:
        """Price what each sample took, where the mean in lambda is known."""
        if self.pricer is None:
            return Spent(cost, None)
        texts = self.texts if order is None else self.texts.take(order)
        measured = self.pricer.traces(traces, took, texts, embeds=embeds)
        if order is not None:
            in_stream, measured = measured, np.zeros_like(measured)
            measured[:, order] = in_stream
        if self.unit != "lambda":
            cost = float(measured[MEASURED_UNITS.index(self.unit)].mean())
        return Spent(cost, measured)


def _amount(values: NDArray[np.float64]) -> Amount:
    mean = float(values.mean())
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    half = _Z95 * spread / len(values) ** 0.5
    return Amount(mean=mean, ci95=(mean - half, mean + half))
