"""The exit table: what every trained exit said about every sample of a split.

It is the seam between training and everything after it. Training, or tabulating a new file, ends by writing one;
pools, policies and evaluation read arrays only. On disk it is one safetensors file, no pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import FailFast, Field

from dimec.core.errors import ContractError, RunError
from dimec.core.metrics import Metric, confusion, score
from dimec.core.tensors import (
    ArraySpecs,
    Header,
    check_arrays,
    fits,
    read_arrays,
    widened,
    write_tensors,
)
from dimec.core.tiers import Step, Tier, softmax
from dimec.core.untrusted import trusting_nothing

FORMAT = 1
_LEAST = 1e-6
"""What a class counts as probable at least where another model's answer rules it out."""

Array = TypeVar("Array", bound=NDArray[Any])


@dataclass(frozen=True, eq=False)
class Dynamics:
    """How the exits saw the samples while they were trained.

    Attributes:
        true_probability: [n, epochs, exits] float32, the probability of the true label, p_{i,e}.
        correct: [n, epochs, exits] bool, whether the true label was the most probable one.
    """

    true_probability: NDArray[np.float32]
    correct: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ExitTable:
    """What every exit said about every sample of a split, in stream order.

    Attributes:
        layers: The exits' layers, ascending; the last is the backbone's depth. Only `with_exit_zero` has a 0 there.
        logits: [n, exits, classes] float32.
        labels: [n] int64, the true classes.
        embeddings: [n, width] float32, mean embeddings before any encoder layer.
        n_tokens: [n] int32, special tokens included.
        payload_bytes: [n] int32, what offloading the sample's token ids sends.
        row_ids: [n] int64, rows of the source.
        exit_zero: [n, classes] float32, the logits of exit zero; None where the model has none.
        unseen: [n] float32, the share of each text's features of which exit zero knows nothing; None where it has none.
    """

    layers: tuple[int, ...]
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    embeddings: NDArray[np.float32]
    n_tokens: NDArray[np.int32]
    payload_bytes: NDArray[np.int32]
    row_ids: NDArray[np.int64]
    label_names: tuple[str, ...]
    dynamics: Dynamics | None = None
    exit_zero: NDArray[np.float32] | None = None
    unseen: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        n, exits, classes = self.logits.shape
        if exits != len(self.layers) or classes != len(self.label_names):
            raise ContractError(
                f"logits of shape {self.logits.shape} do not fit {len(self.layers)} exits and "
                f"{len(self.label_names)} classes"
            )
        wanted = _wanted(exits, classes, n=n)
        for name, array in self._arrays().items():
            if not fits(array, wanted[name][1]):
                raise ContractError(
                    f"{name} of shape {array.shape} does not fit {n} samples, {exits} exits and {classes} classes"
                )
            if name in _FINITE and not np.isfinite(array).all():
                raise ContractError(f"an exit table must hold finite {name}")
        if tuple(sorted(set(self.layers))) != self.layers:
            raise ContractError(f"the exits' layers must ascend, not {self.layers}")
        if n and not (self.labels.min() >= 0 and self.labels.max() < classes):
            raise ContractError(f"a label is outside 0..{classes - 1}")
        if self.unseen is not None and not ((self.unseen >= 0) & (self.unseen <= 1)).all():
            raise ContractError("unseen must hold shares from 0 to 1")
        seen = self.dynamics
        if seen is not None and seen.true_probability.shape != seen.correct.shape:
            raise ContractError("the arrays of an exit table's dynamics must have one shape")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def n_layers(self) -> int:
        """Depth of the backbone, l: the last exit's layer."""
        return self.layers[-1]

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.label_names)

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """[n, exits, classes], each exit's softmax."""
        return _read_only(softmax(self.logits))

    @cached_property
    def predictions(self) -> NDArray[np.int64]:
        """[n, exits], each exit's most probable class; the first of equals."""
        return _read_only(self.logits.argmax(axis=2))

    @cached_property
    def confidence(self) -> NDArray[np.float64]:
        """[n, exits], the largest probability of each exit, C_i."""
        return _read_only(self.probabilities.max(axis=2))

    @cached_property
    def right(self) -> NDArray[np.bool_]:
        """[n, exits], whether the exit's most probable class is the true one."""
        return _read_only(self.predictions == self.labels[:, None])

    @cached_property
    def with_exit_zero(self) -> ExitTable:
        """The table with exit zero as the exit after layer 0, without dynamics; itself where there is none."""
        if self.exit_zero is None:
            return self
        return replace(
            self,
            layers=(0, *self.layers),
            logits=np.concatenate([self.exit_zero[:, None], self.logits], axis=1),
            dynamics=None,
            exit_zero=None,
        )

    def before(self, probabilities: NDArray[np.float64]) -> ExitTable:
        """Return the table with another model's answers as one more exit, after the last, without dynamics.

        ``probabilities`` [n, classes] are that model's.
        """
        logits = logits_of(probabilities)
        return replace(
            self,
            layers=(*self.layers, self.n_layers + 1),
            logits=np.concatenate([self.logits, logits[:, None]], axis=1),
            dynamics=None,
        )

    def confusion(self, answers: NDArray[np.integer]) -> NDArray[np.int64]:
        """Count the samples by true class (rows) and answer (columns), given the answers, classes [n]."""
        return confusion(self.labels, answers, n_classes=self.n_classes)

    def score(self, metric: Metric, answers: NDArray[np.integer]) -> float:
        """Return the score of answers to these samples, classes [n], in a metric: a fraction of 1."""
        return float(score(metric, self.confusion(answers)))

    def exit(self, layer: int) -> int:
        """Return the position of the exit after ``layer``.

        Raises:
            ContractError: If there is no exit there.
        """
        if layer not in self.layers:
            raise ContractError(
                f"no exit after layer {layer}: the exits are after layers {list(self.layers)}"
            )
        return self.layers.index(layer)

    def take(self, rows: NDArray[np.integer] | NDArray[np.bool_]) -> ExitTable:
        """Return the table of the given rows, in their order."""
        taken = {name: array[rows] for name, array in self._arrays().items()}
        return self._of(self.layers, self.label_names, taken)

    def joined(self, other: ExitTable) -> ExitTable:
        """Return these rows and then another table's of the same exits, without dynamics.

        Exit zero is there where both tables have it.

        Raises:
            ContractError: If the exits are others.
        """
        if (other.layers, other.label_names) != (self.layers, self.label_names):
            raise ContractError("tables of other exits or classes cannot be joined")
        theirs = other._arrays()
        both = {
            name: np.concatenate([array, theirs[name]])
            for name, array in self._arrays().items()
            if name in theirs and name not in _DYNAMICS
        }
        return self._of(self.layers, self.label_names, both)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays that it has, by name."""
        arrays = {name: getattr(self, name) for name in _wanted(1, 1) if name not in _DYNAMICS}
        if self.dynamics is not None:
            arrays |= vars(self.dynamics)
        return {name: array for name, array in arrays.items() if array is not None}

    @classmethod
    def _of(
        cls, layers: tuple[int, ...], label_names: tuple[str, ...], arrays: dict[str, NDArray[Any]]
    ) -> ExitTable:
        """Return a table of the arrays that `_arrays` gives."""
        recorded = [arrays.pop(name) for name in _DYNAMICS if name in arrays]
        dynamics = Dynamics(*recorded) if recorded else None
        return cls(layers=layers, label_names=label_names, dynamics=dynamics, **arrays)

    def save(self, path: Path, *, small: bool = False) -> None:
        """Write the table as one safetensors file; it is whole or not there.

        ``small`` keeps real numbers in half precision and classes in bytes where they fit, which `load` widens again.
        """
        arrays = self._arrays()
        if small:
            arrays = {name: _narrowed(array) for name, array in arrays.items()}
        header = {
            "format": FORMAT,
            "layers": list(self.layers),
            "label_names": list(self.label_names),
        }
        write_tensors(path, arrays, header=header)

    @classmethod
    def load(cls, path: Path) -> ExitTable:
        """Read a table.

        Raises:
            RunError: If the file is missing, is no exit table, is truncated, or has a newer format.
        """
        with trusting_nothing(path, RunError, remedy="fit the run again"):
            header, tensors = read_arrays(path, _Header, known=FORMAT)
            wanted = _wanted(len(header.layers), len(header.label_names))
            tensors = widened(tensors, wanted)
            check_arrays(tensors, wanted, optional=_OPTIONAL)
            return cls._of(header.layers, header.label_names, tensors)


def _narrowed(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype.kind == "f":
        most = float(np.finfo(np.float16).max)
        half: NDArray[Any] = np.clip(array, -most, most).astype(np.float16)
        return half
    for kind in (np.uint8, np.uint16, np.int32):
        limits = np.iinfo(kind)
        if array.dtype.kind == "i" and (
            not array.size or (limits.min <= array.min() and array.max() <= limits.max)
        ):
            return array.astype(kind)
    return array


def logits_of(probabilities: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return another model's probabilities [..., classes] as logits, none of them infinite."""
    return np.log(np.maximum(probabilities, _LEAST)).astype(np.float32)


class _Header(Header):
    layers: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = Field(min_length=1)
    label_names: Annotated[tuple[str, ...], FailFast()] = Field(min_length=1)


_DYNAMICS = ("true_probability", "correct")
_OPTIONAL = (*_DYNAMICS, "exit_zero", "unseen")
_FINITE = ("logits", "embeddings", "exit_zero")


def _wanted(exits: int, classes: int, *, n: int | None = None) -> ArraySpecs:
    """Return type and shape of what a table of ``n`` samples may hold."""
    return {
        "logits": (np.float32, (n, exits, classes)),
        "labels": (np.int64, (n,)),
        "embeddings": (np.float32, (n, None)),
        "n_tokens": (np.int32, (n,)),
        "payload_bytes": (np.int32, (n,)),
        "row_ids": (np.int64, (n,)),
        "exit_zero": (np.float32, (n, classes)),
        "unseen": (np.float32, (n,)),
        "true_probability": (np.float32, (n, None, exits)),
        "correct": (np.bool_, (n, None, exits)),
    }


@dataclass(frozen=True, eq=False)
class Restored:
    """What the cloud's exits say where the hidden state came through a learned bottleneck.

    Attributes:
        kind: The system that it was learnt by: the policy that it is for.
        width: How many numbers of a token are shipped.
        after: The layer on the device whose hidden state is shipped.
        table: The exits after that layer. Its ``payload_bytes`` are those of the compressed hidden state.
    """

    kind: str
    name: str
    width: int
    after: int
    table: ExitTable

    def __post_init__(self) -> None:
        if self.table.layers[0] <= self.after:
            raise ContractError(
                f"what was restored after layer {self.after} has no exit after layer {self.table.layers[0]}"
            )

    def take(self, rows: NDArray[np.integer] | NDArray[np.bool_]) -> Restored:
        """Return the given rows, in their order."""
        return replace(self, table=self.table.take(rows))


@dataclass(frozen=True, eq=False)
class TierTables:
    """What the exits on each tier said about the same samples.

    All tiers read one table while they hold prefixes of the same encoder; a tier that holds another model reads its
    own. From the tokens, the cloud always runs the whole encoder. Only where it resumes from a hidden state that came
    through a bottleneck, its exits say what stands in ``restored``.

    Attributes:
        restored: What the cloud's exits say where it resumes from a bottleneck; None where hidden states are shipped
            as they are, or not at all.
    """

    encoder: ExitTable
    models: Mapping[Tier, ExitTable] = field(default_factory=dict)
    restored: Restored | None = None

    def __post_init__(self) -> None:
        if Tier.CLOUD in self.models:
            raise ContractError("the cloud holds the whole encoder, no other model")
        if self.restored is not None:
            self._check_restored(self.restored)
        for tier, table in self.models.items():
            if not np.array_equal(table.labels, self.encoder.labels):
                raise ContractError(f"the table of the {tier} tier is about other samples")
            if table.n_classes != self.encoder.n_classes:
                raise ContractError(f"the table of the {tier} tier has other classes")

    def _check_restored(self, restored: Restored) -> None:
        table = restored.table
        if self.models:
            raise ContractError("a bottleneck restores hidden states of the encoder alone")
        if restored.after not in self.encoder.layers or table.n_layers != self.encoder.n_layers:
            raise ContractError(f"the bottleneck {restored.name} is of another encoder")
        if table.n_classes != self.encoder.n_classes or not np.array_equal(
            table.labels, self.encoder.labels
        ):
            raise ContractError(
                f"the table of the bottleneck {restored.name} is about other samples"
            )

    @classmethod
    def of_all(cls, tables: ExitTable | TierTables) -> TierTables:
        """Return tables as they are; a single one as what all tiers read."""
        return tables if isinstance(tables, TierTables) else cls(tables)

    def of(self, tier: Tier) -> ExitTable:
        """Return the table that a tier reads where it starts from the tokens."""
        return self.models.get(tier, self.encoder)

    def read_by(self, step: Step, *, after: int) -> ExitTable:
        """Return the table that a step reads, which goes on from layer ``after``.

        Raises:
            ContractError: If it resumes elsewhere than the bottleneck that stands between device and cloud.
        """
        restored = self.restored
        if restored is None or not step.resumes:
            return self.of(step.tier)
        if step.tier is not Tier.CLOUD or after != restored.after:
            raise ContractError(
                f"{step} goes on from layer {after}, and the bottleneck {restored.name} restores what the cloud goes "
                f"on from after layer {restored.after}"
            )
        return restored.table

    def __len__(self) -> int:
        return len(self.encoder)

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """[n, width], the mean embeddings that the device computes: those of the model that it holds."""
        return self.of(Tier.MOBILE).embeddings

    @cached_property
    def with_exit_zero(self) -> TierTables:
        """The tables with exit zero as the exit after layer 0, where they have one."""
        models = {tier: table.with_exit_zero for tier, table in self.models.items()}
        return TierTables(self.encoder.with_exit_zero, models, self.restored)

    def take(self, rows: NDArray[np.integer] | NDArray[np.bool_]) -> TierTables:
        """Return the tables of the given rows, in their order."""
        models = {tier: table.take(rows) for tier, table in self.models.items()}
        return TierTables(
            self.encoder.take(rows), models, self.restored and self.restored.take(rows)
        )


def _read_only(array: Array) -> Array:
    array.flags.writeable = False
    return array
