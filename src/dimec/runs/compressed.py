"""A run's learned bottlenecks: what `dimec compress` leaves in ``RUN/compressed/NAME``, and how it is found again.

```
config.json                          what was trained: options, resolved; a `CompressedConfig`
weights.safetensors                  encoder, decoder, and of the tail what training has changed
exits/{validation,test}.safetensors  exit tables of the layers behind the split, made through the bottleneck
scores.json                          accuracy and bytes beside the run's own; a `Scores`
metrics.jsonl                        a line per epoch
checkpoint/                          only while it is not finished
```

An exit table's ``payload_bytes`` are here what the sample's compressed hidden state takes. The device's layers are the
run's own, so the same device serves every other policy too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from dimec.core.errors import OptionError, RunError
from dimec.core.options import Options, command_line, option
from dimec.core.untrusted import Record, read_json, trusting_nothing
from dimec.runs.codes import Code, Kind
from dimec.runs.exit_table import ExitTable, Restored
from dimec.runs.run import Precision, Run

FORMAT = 1
FOLDER = "compressed"
DEFAULT_LEVELS = 32

Channel = Literal["awgn", "erasure"]

_of_training = partial(option, group="Training")


_OF_KIND: dict[str, tuple[str, Any]] = {
    "pool": ("bottlenet", 1),
    "levels": ("bottlenet", DEFAULT_LEVELS),
    "channel": ("bottlenet-pp", "awgn"),
    "snr_db": ("bottlenet-pp over awgn", 10.0),
    "erasure_rate": ("bottlenet-pp over erasure", 0.01),
    "draws": ("bottlenet-pp", 5),
    "temperature": ("bottlefit", 1.0),
    "label_share": ("bottlefit", 0.5),
}
"""The options of a single kind, or of one channel of it, and their defaults there; elsewhere they are None."""


def _of_kind(name: str, help: str, **limits: Any) -> Any:  # noqa: ANN401  as `option` has it
    """Declare an option of `_OF_KIND`."""
    whose, default = _OF_KIND[name]
    shown = default if isinstance(default, str) else f"{default:g}"
    return option(None, f"{whose}: {help}", group="Of one kind", shown_default=shown, **limits)


class CompressOptions(Options):
    """Everything that a user chooses for a bottleneck; None is the default of the kind, or nothing."""

    kind: Kind = option(..., "The system that the bottleneck follows.", basic=True)
    layer: int = option(..., "The last layer on the device; it needs an exit.", basic=True, ge=1)
    width: int = option(
        ..., "Numbers sent per token, in place of the hidden state.", basic=True, ge=1
    )
    pool: int | None = _of_kind("pool", "how many neighbouring tokens become one.", ge=1, le=8)
    levels: int | None = _of_kind(
        "levels",
        "values that a number can take; fewer compress better and lose more.",
        ge=2,
        le=256,
    )
    channel: Channel | None = _of_kind(
        "channel", "what the channel adds: noise on symbols, or erased bits."
    )
    snr_db: float | None = _of_kind("snr_db", "signal-to-noise ratio in dB.", ge=-20, le=60)
    erasure_rate: float | None = _of_kind(
        "erasure_rate", "share of bits that are lost.", ge=0, lt=1
    )
    draws: int | None = _of_kind(
        "draws", "draws of the channel that scores are averaged over.", ge=1, le=100
    )
    temperature: float | None = _of_kind(
        "temperature", "temperature of the teacher's logits.", gt=0, le=100
    )
    label_share: float | None = _of_kind(
        "label_share",
        "weight of the labels in the loss of the second stage; the rest is the teacher's logits.",
        ge=0,
        le=1,
    )
    max_rows: int = _of_training(8000, "Training rows of the run to learn from.", basic=True, ge=10)
    epochs: int = _of_training(5, "Epochs of each stage.", basic=True, ge=1, le=100)
    batch_size: int = _of_training(32, "Rows in a batch.", ge=1, le=1024)
    learning_rate: float = _of_training(
        5e-5, "Peak learning rate of the layers behind the bottleneck.", gt=0, le=1
    )
    bottleneck_learning_rate: float = _of_training(
        1e-3, "Peak learning rate of the bottleneck.", gt=0, le=1
    )
    seed: int = _of_training(0, "Seed of every random choice.", ge=0)
    precision: Precision = _of_training(
        "auto", "Number format of training; auto takes bf16 where the hardware has it."
    )

    def resolved(self) -> Self:
        """Return the options with the kind's defaults in them.

        Raises:
            OptionError: If an option belongs to another kind or channel.
        """
        whole: str = self.kind
        if self.kind == "bottlenet-pp":
            whole = f"{self.kind} over {self.channel or _OF_KIND['channel'][1]}"
        chosen = {}
        for name, (whose, default) in _OF_KIND.items():
            given = getattr(self, name)
            if whose in (self.kind, whole):
                chosen[name] = default if given is None else given
            elif given is not None:
                raise OptionError(
                    f"--{name.replace('_', '-')} {given} means nothing for {whole}: leave it out"
                )
        return self.model_copy(update=chosen)

    @property
    def code(self) -> Code:
        """How its numbers travel as bytes, of resolved options; over awgn nothing of the kind is sent."""
        return Code(self.kind, self.width, pool=self.pool or 1, levels=self.levels or 256)

    @property
    def name(self) -> str:
        """The folder's name: kind, layer and width, then what else shapes it."""
        name = f"{self.kind}-l{self.layer}w{self.width}"
        if self.pool not in (None, 1):
            name += f"p{self.pool}"
        if self.levels not in (None, DEFAULT_LEVELS):
            name += f"q{self.levels}"
        if self.channel == "awgn":
            name += f"-snr{self.snr_db:g}"
        if self.channel == "erasure" and self.erasure_rate is not None:
            name += f"-era{100 * self.erasure_rate:g}"
        return name


class CompressedConfig(Record):
    """What was trained, resolved: a compressed folder's ``config.json``.

    Attributes:
        options: What was chosen, the kind's defaults filled in.
        bytes_per_token: What a token takes at a fixed rate, before any lossless code: a byte a number.
        model_fingerprint: SHA-256 of the run's model, which its device and its tail come from.
    """

    format: int
    options: CompressOptions
    name: str
    hidden_width: int
    bytes_per_token: float
    n_train: int
    model_fingerprint: str
    versions: dict[str, str]


class SplitScores(Record):
    """Accuracy and bytes of one split, beside the run's own.

    Attributes:
        layers: The exits behind the split.
        accuracy: Of each of these exits, through the bottleneck; of a random channel the first draw, as in the table.
        uncompressed: Accuracy of the same exits in the run.
        score: Of the last exit in the task's metric.
        draws: Accuracy of the last exit in each draw of the channel; empty without one.
        bytes_compressed: Mean bytes of a sample's compressed hidden state.
        bytes_hidden: Mean bytes of its hidden state in fp16.
        bytes_tokens: Mean bytes of its token ids.
    """

    n: int
    layers: tuple[int, ...]
    accuracy: tuple[float, ...]
    uncompressed: tuple[float, ...]
    score: float
    uncompressed_score: float
    draws: tuple[float, ...]
    bytes_compressed: float
    bytes_hidden: float
    bytes_tokens: float


class Scores(Record):
    """What a bottleneck came to: a compressed folder's ``scores.json``."""

    validation: SplitScores
    test: SplitScores


@dataclass(frozen=True)
class Compressed:
    """A compressed folder of a run."""

    folder: Path
    config: CompressedConfig

    @classmethod
    def open(cls, folder: Path) -> Compressed:
        """Open a compressed folder, finished or not.

        Raises:
            RunError: If there is none, or a newer version wrote it.
        """
        config = read_compressed_config(folder)
        if config is None:
            raise RunError(f"{folder} holds no bottleneck: it has no config.json; {_REMEDY}")
        return cls(folder, config)

    @property
    def remedy(self) -> str:
        """What to do where one of its files is damaged."""
        return _remedy(self.folder)

    @property
    def kind(self) -> Kind:
        """Which system it was learnt by."""
        return self.config.options.kind

    @property
    def finished(self) -> bool:
        """Whether its training came to its end."""
        return (self.folder / "exits" / "test.safetensors").exists()

    @cached_property
    def scores(self) -> Scores:
        """Accuracy and bytes of both splits."""
        path = self.folder / "scores.json"
        with trusting_nothing(path, RunError, remedy=self.remedy, missing=_REMEDY):
            return read_json(path, Scores)

    def restored(self, table: ExitTable) -> Restored:
        """Return a table that was made through it as what tiers can read."""
        options = self.config.options
        return Restored(options.kind, self.config.name, options.width, options.layer, table)

    def saved(self, run: Run, split: Literal["validation", "test"]) -> Restored:
        """Return what its exits say about a split of its run.

        Raises:
            RunError: If the table cannot be read, or is of other rows than the run's.
        """
        path = self.folder / "exits" / f"{split}.safetensors"
        try:
            table = ExitTable.load(path)
        except RunError as exc:
            raise RunError(f"{path} is missing or damaged: {self.remedy}") from exc
        own = run.table(split)
        after = tuple(each for each in own.layers if each > self.config.options.layer)
        if (
            table.layers != after
            or not np.array_equal(table.row_ids, own.row_ids)
            or not np.array_equal(table.labels, own.labels)
        ):
            raise RunError(f"{path} is not about the rows and exits of {run.folder}: {self.remedy}")
        return self.restored(table)


_REMEDY = "give `dimec compress` its options with --restart"


def _remedy(folder: Path) -> str:
    return f"delete {folder}, or {_REMEDY}"


def read_compressed_config(folder: Path) -> CompressedConfig | None:
    """Return the configuration in a compressed folder; None where there is none.

    Raises:
        RunError: If it cannot be read, or if a newer version wrote it.
    """
    path = folder / "config.json"
    with trusting_nothing(path, RunError, remedy=_remedy(folder)):
        return read_json(path, CompressedConfig, known=FORMAT) if path.exists() else None


def compressed_in(run: Run) -> list[Compressed]:
    """Return a run's compressed folders, by name, finished or not.

    Raises:
        RunError: If one cannot be read.
    """
    folder = run.folder / FOLDER
    if not folder.is_dir():
        return []
    there = sorted(each for each in folder.iterdir() if (each / "config.json").exists())
    return [Compressed.open(each) for each in there]


def compress_command(run: Run, options: CompressOptions) -> str:
    """Return the command line that trains a bottleneck with these options, or goes on with it."""
    usual = CompressOptions(
        kind=options.kind, layer=options.layer, width=options.width, channel=options.channel
    ).resolved()
    own = {
        name: None
        for name in _OF_KIND
        if name != "channel" and getattr(options, name) == getattr(usual, name)
    }
    if options.channel == "awgn":
        own["channel"] = None
    return command_line("compress", options.model_copy(update=own), str(run.folder))
