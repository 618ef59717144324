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

import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Self, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from dimec.core.errors import OptionError, RunError
from dimec.core.untrusted import read_json, trusting_nothing
from dimec.runs.codes import Code, Kind
from dimec.runs.exit_table import ExitTable, Restored
from dimec.runs.run import Run

FORMAT = 1
FOLDER = "compressed"
DEFAULT_LEVELS = 32

Channel = Literal["awgn", "erasure"]
Model = TypeVar("Model", bound=BaseModel)


class CompressOptions(BaseModel):
    """Everything that a user chooses for a bottleneck; None is what the kind has by default, or does not have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    layer: int = Field(ge=1)
    width: int = Field(ge=1)
    pool: int | None = Field(default=None, ge=1, le=8)
    """bottlenet: how many tokens in a row become one."""
    levels: int | None = Field(default=None, ge=2, le=256)
    """bottlenet: how many of the 256 levels of a byte are used; fewer are lossier and pack better."""
    channel: Channel | None = None
    """bottlenet-pp: what lies between encoder and decoder."""
    snr_db: float | None = Field(default=None, ge=-20, le=60)
    erasure_rate: float | None = Field(default=None, ge=0, lt=1)
    draws: int | None = Field(default=None, ge=1, le=100)
    """bottlenet-pp: over how many draws of the channel the scores are averaged."""
    temperature: float | None = Field(default=None, gt=0, le=100)
    """bottlefit: of the teacher's logits."""
    label_share: float | None = Field(default=None, ge=0, le=1)
    """bottlefit: how much of the second stage's loss is on labels, the rest on the teacher's logits."""
    max_rows: int = Field(default=8000, ge=10)
    epochs: int = Field(default=5, ge=1, le=100)
    batch_size: int = Field(default=32, ge=1, le=1024)
    learning_rate: float = Field(default=5e-5, gt=0, le=1)
    bottleneck_learning_rate: float = Field(default=1e-3, gt=0, le=1)
    seed: int = Field(default=0, ge=0)
    precision: Literal["auto", "bf16", "fp32"] = "auto"

    def resolved(self) -> Self:
        """Return the options with the kind's defaults in them.

        Raises:
            OptionError: If an option belongs to another kind or channel.
        """
        defaults: dict[str, object] = {
            "bottlenet": {"pool": 1, "levels": DEFAULT_LEVELS},
            "bottlenet-pp": {"channel": self.channel or "awgn", "draws": 5},
            "bottlefit": {"temperature": 1.0, "label_share": 0.5},
        }[self.kind]  # type: ignore[assignment]
        if self.kind == "bottlenet-pp":
            noise = {"awgn": ("snr_db", 10.0), "erasure": ("erasure_rate", 0.01)}
            name, value = noise[str(defaults["channel"])]
            defaults[name] = value
        for name in _OF_SOME:
            if name not in defaults and getattr(self, name) is not None:
                whose = (
                    f"{self.kind} over {defaults['channel']}"
                    if "channel" in defaults
                    else self.kind
                )
                raise OptionError(
                    f"--{name.replace('_', '-')} {getattr(self, name)} means nothing for {whose}: leave it out"
                )
        chosen = {name: getattr(self, name) for name in defaults if getattr(self, name) is not None}
        return self.model_copy(update={**defaults, **chosen})

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


_OF_SOME = (
    "pool",
    "levels",
    "channel",
    "snr_db",
    "erasure_rate",
    "draws",
    "temperature",
    "label_share",
)


class CompressedConfig(BaseModel):
    """What was trained, resolved: a compressed folder's ``config.json``.

    Attributes:
        options: What was chosen, the kind's defaults filled in.
        name: The folder's name.
        hidden_width: Width of the hidden state, d.
        bytes_per_token: What a token takes at a fixed rate, before any lossless code: a byte a number.
        n_train: How many training rows it learnt from.
        model_fingerprint: SHA-256 of the run's model, which its device and its tail come from.
        versions: Of the libraries that trained it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    options: CompressOptions
    name: str
    hidden_width: int
    bytes_per_token: float
    n_train: int
    model_fingerprint: str
    versions: dict[str, str]


class SplitScores(BaseModel):
    """Accuracy and bytes of one split, beside the run's own.

    Attributes:
        n: How many samples.
        layers: The exits behind the split.
        accuracy: Of each of these exits, through the bottleneck; of a random channel the first draw, as in the table.
        uncompressed: Accuracy of the same exits in the run.
        score: Of the last exit in the task's metric.
        uncompressed_score: The run's.
        draws: Accuracy of the last exit in each draw of the channel; empty without one.
        bytes_compressed: Mean bytes of a sample's compressed hidden state.
        bytes_hidden: Mean bytes of its hidden state in fp16.
        bytes_tokens: Mean bytes of its token ids.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

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


class Scores(BaseModel):
    """What a bottleneck came to: a compressed folder's ``scores.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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
        found = _read(self.folder / "scores.json", Scores)
        if found is None:
            raise RunError(f"{self.folder / 'scores.json'} is missing: {_REMEDY}")
        return found

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
            raise RunError(f"{path} is missing or damaged: {_remedy(self.folder)}") from exc
        own = run.validation if split == "validation" else run.test
        after = tuple(each for each in own.layers if each > self.config.options.layer)
        if (
            table.layers != after
            or not np.array_equal(table.row_ids, own.row_ids)
            or not np.array_equal(table.labels, own.labels)
        ):
            raise RunError(
                f"{path} is not about the rows and exits of {run.folder}: {_remedy(self.folder)}"
            )
        return self.restored(table)


_REMEDY = "give `dimec compress` its options with --restart"


def _remedy(folder: Path) -> str:
    return f"delete {folder}, or {_REMEDY}"


def read_compressed_config(folder: Path) -> CompressedConfig | None:
    """Return the configuration in a compressed folder; None where there is none.

    Raises:
        RunError: If it cannot be read, or if a newer version wrote it.
    """
    return _read(folder / "config.json", CompressedConfig, known=FORMAT)


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
    words = ["dimec", "compress", str(run.folder)]
    given = CompressOptions(kind=options.kind, layer=options.layer, width=options.width).resolved()
    for name, value in options.model_dump().items():
        if name in ("kind", "layer", "width") or value != getattr(given, name):
            words += ["--" + name.replace("_", "-"), str(value)]
    return shlex.join(words)


def _read(path: Path, kind: type[Model], *, known: int | None = None) -> Model | None:
    with trusting_nothing(path, RunError, remedy=_remedy(path.parent)):
        return read_json(path, kind, known=known) if path.exists() else None
