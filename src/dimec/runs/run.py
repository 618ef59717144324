"""The run folder: what a fit leaves behind, and how everything after it finds its parts again.

```
config.json                        what was run: options, data fingerprint, versions; a `RunConfig`
model/                             the encoder in Hugging Face's layout, its exits, its tokenizer
split.json                         row ids of the splits
texts.parquet                      the texts, unless switched off
exits/{validation,test}.safetensors  exit tables
dynamics.parquet                   training dynamics of the train and validation rows
router.json, router.safetensors    the fitted policies; not of a model of one or two layers
metrics.jsonl                      a line per epoch
evaluation/*.json                  what `dimec evaluate` printed
checkpoint/                        only while a fit is not finished
```
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, FailFast, Field, model_validator

from dimec.core.errors import OptionError, RunError
from dimec.core.files import check_readable
from dimec.core.metrics import METRICS, Metric, MetricName
from dimec.core.options import DATA, DataSource, LabelledColumns, PathText, option
from dimec.core.split_choice import SplitChoice, SplitMade, read_split
from dimec.core.tiers import Depths, Method, method_depths
from dimec.core.tokens import CutKind
from dimec.core.untrusted import Record, parse_json, read_bounded, read_json, trusting_nothing
from dimec.runs.exit_table import ExitTable
from dimec.runs.exit_zero import EXIT_ZERO_FILE, ExitZero

FORMAT = 1
_MAX_SPLIT_BYTES = 2**30

CHECKPOINT_FILES = ("checkpoint/epoch-*/*.safetensors", "checkpoint/epoch-*/state.json")
_TRAINED = ("config.json", "metrics.jsonl", "exits/*.safetensors", *CHECKPOINT_FILES)
SPLIT_FILE = "split.json"
COMPRESSED_FILES = (*_TRAINED, "weights.safetensors", "scores.json")
MODEL_FILES = (
    *("config.json", "*.safetensors", "model.safetensors.index.json", "exits.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab*", "merges.txt", "*.model"),
)
_FIT_FILES = (
    *_TRAINED,
    *(f"model/{each}" for each in MODEL_FILES),
    *(SPLIT_FILE, "texts.parquet", "dynamics.parquet", "router.json", "router.safetensors"),
    EXIT_ZERO_FILE,
)
RUN_FILES = (
    *_FIT_FILES,
    *(f"compressed/*/{each}" for each in COMPRESSED_FILES),
    *("evaluation/*test.json", "evaluation/*data-*.json"),
    *("report/result.json", "report/whatif.json", "report/report.html", "report/parts/*.json"),
    *(f"report/tables/*.{each}" for each in ("parquet", "csv", "md", "tex")),
    *("report/figures/*.svg", "report/figures/*.png"),
    "search.json",
    *(f"search/batch-*/{each}" for each in _FIT_FILES),
)
"""What this package writes into a run's folder, as globs: nothing else in it is ever removed."""

Training = Literal["joint", "two-stage"]
"""Whether all exits learn together, or the last one with the backbone and then the others."""
Precision = Literal["auto", "bf16", "fp32"]


class TaskInfo(Record):
    """What a run needs to know of its task, so that it can be read without the registry of tasks."""

    name: str
    label_names: Annotated[tuple[str, ...], FailFast()] = Field(min_length=1)
    metric: Metric
    pairs: bool


_data, _model, _training = (partial(option, group=each) for each in (DATA, "Model", "Training"))


def _number_or_auto(value: object) -> object:
    """Read what stands behind ``--max-length``; None is auto."""
    return None if value == "auto" else value


def _answers_classes(value: object) -> object:
    if value == "average-precision":
        raise ValueError(
            "it ranks texts, while a cascade answers classes: steer by the F1 of the class that is looked for, with "
            "--positive LABEL; evaluate shows average precision too where there are two classes"
        )
    return value


class FitOptions(LabelledColumns):
    """Everything that a user chooses for a fit."""

    task: str = option(
        ...,
        "sst2, cola, mrpc, qqp, qnli, mnli, rte, reviews (built in), or a name for your own --data.",
        argument=True,
        metavar="TASK",
    )
    data: DataSource | None = _data(
        None,
        "A labelled file (CSV, TSV, JSONL, parquet) or folder.",
        basic=True,
        metavar="FILE",
        shown_default="the hub, or the built-in data",
    )
    metric: Annotated[MetricName | None, BeforeValidator(_answers_classes)] = _data(
        None,
        "What the task is scored by.",
        metavar="|".join(METRICS),
        cli=str,
        shown_default="the task's own, else accuracy",
    )
    positive: str | None = _data(
        None,
        "The class that is looked for, such as fraud: the task is scored by the F1 of this class.",
        metavar="LABEL",
        shown_default="of F1: the second class",
    )
    validation: DataSource | None = _data(
        None,
        "A labelled file of your own for validation, with the columns and labels of --data.",
        metavar="FILE",
        shown_default="split off",
    )
    test: DataSource | None = _data(
        None,
        "A labelled file of your own for the test, with the columns and labels of --data.",
        metavar="FILE",
        shown_default="split off",
    )
    fold_labels: bool = _data(
        False,
        "Make one class of labels that look alike (case, width, invisible characters), under the most frequent "
        "spelling.",
    )
    backbone: PathText = _model(
        "minilm",
        "The pretrained encoder: minilm (works offline), a folder in Hugging Face's layout, or a hub name.",
        basic=True,
    )
    layers: int | None = _model(
        None,
        "Keep only the first layers of the backbone, for a smaller model.",
        shown_default="all",
        ge=1,
    )
    pooling: Literal["attention", "mean", "cls", "pooler"] | None = _model(
        "attention",
        "What an exit reads: all tokens by learned weights, their mean, (cls) the first token, or (pooler) the first "
        "token through a layer that all exits share.",
    )
    """None takes what the checkpoint was made with, mean or cls."""
    exits: Literal["all", "tiers"] = _model(
        "all", "Exits after every layer, or only after the last layer of each tier."
    )
    mobile_layers: int | None = _model(
        None, "Layers on the device.", shown_default="as in the papers", ge=1
    )
    edge_layers: int | None = _model(
        None, "Layers on the device and the edge.", shown_default="as in the papers", ge=2
    )
    training: Training = _training(
        "joint",
        "Train all exits together with the backbone, or first the backbone with the last exit and then the other "
        "exits on the frozen backbone.",
    )
    epochs: int = _training(
        5, "Epochs of each stage; the best one on validation is kept.", basic=True, ge=1, le=100
    )
    batch_size: int = _training(32, "Rows in a batch.", ge=1, le=1024)
    learning_rate: float = _training(5e-5, "Peak learning rate of the backbone.", gt=0, le=1)
    head_learning_rate: float = _training(1e-3, "Peak learning rate of the exits.", gt=0, le=1)
    exit_weights: Literal["equal", "depth"] = _training(
        "equal", "What exits weigh in the loss: the same, or exit i in proportion to i."
    )
    r_drop: float = _training(
        0.0,
        "Weight of R-Drop, such as 1: each row is read twice under dropout, and exits learn to answer the same both "
        "times. Takes twice as long.",
        ge=0,
        le=100,
    )
    class_weight: str = _training(
        "none",
        "What the rows of a class weigh in training: the same; balanced, each class the same in all; or the weights of "
        "some classes, the others 1.",
        metavar="none|balanced|NAME=W,…",
    )
    max_length: Annotated[int | None, BeforeValidator(_number_or_auto)] = _data(
        None,
        "How many tokens of a text the encoder reads; auto takes what covers 95 % of the training rows, from 16 to "
        "512. Exit zero reads the whole text.",
        metavar="N|auto",
        cli=str,
        shown_default="auto",
        ge=4,
        le=8192,
    )
    """None is auto."""
    cut: CutKind = _data(
        "head",
        "What is kept of a single text that is longer: its beginning, or (head-tail) the first three quarters and the "
        "last quarter of --max-length. Pairs take head.",
    )
    max_rows: int | None = _data(
        None, "Draw this many rows and ignore the others.", basic=True, ge=30
    )
    split: Annotated[str, BeforeValidator(read_split)] = _data(
        "auto",
        "How rows are split: random; grouped, which keeps rows together that are part of a longer row or nearly equal; "
        "time, the oldest for training; or auto, which is grouped where more than 5 % of the held-out rows of a random "
        "split are known from training. Sizes in percent may follow, such as grouped:70/15/15, or stand alone.",
        metavar="KIND[:T/V/E]",
    )
    time_column: str | None = _data(
        None,
        "With --split time: the column that says when a row was made, as ISO dates or numbers.",
    )
    seed: int = _training(0, "Seed of every random choice.", ge=0)
    precision: Precision = _training(
        "auto", "Number format of training; auto takes bf16 where the hardware has it."
    )
    keep_texts: bool = _data(
        True,
        "Keep a copy of the texts in the run, for reports and export --quantize.",
        flag="--keep-texts/--no-texts",
    )

    @property
    def split_choice(self) -> SplitChoice:
        """What ``split`` says."""
        return SplitChoice.read(self.split)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.pooling == "pooler" and self.training != "joint":
            raise ValueError(
                f"--training {self.training} freezes what exits share with --pooling pooler: leave out one of them"
            )
        by_time = self.split_choice.kind == "time"
        if by_time and self.time_column is None:
            raise ValueError(
                "--split time needs --time-column NAME, which says when a row was made"
            )
        if self.time_column is not None and not by_time:
            raise ValueError(f"--time-column {self.time_column} is for --split time: give that too")
        if self.validation is not None and self.test is not None and self.split != "auto":
            raise ValueError(
                f"--split {self.split} has nothing to split, since --validation and --test give both parts: leave "
                "out one of them"
            )
        return self


class SplitInfo(Record):
    """How the rows of a run were split, resolved.

    Attributes:
        kind: How; files where validation and test both are files of the user's own.
        leaking_share: The share of validation and test rows that equal a training row, are part of one or are nearly
            equal to one.
    """

    kind: SplitMade
    leaking_share: float = Field(ge=0, le=1)
    test_file: bool = False

    @property
    def words(self) -> str:
        """Say how the test rows were split off, and how many held-out rows are known."""
        own = "own file" if self.test_file else self.kind
        return f"{own}; {100 * self.leaking_share:.1f} % of held-out rows known from training"


class RunConfig(Record):
    """What was run, resolved: a run's ``config.json``.

    Attributes:
        n_layers: The layers of the model, after ``options.layers``.
        depths: Where each method cuts it; empty for a model of one or two layers, which no method can cut in three.
        class_weights: What a row of each class weighs in training, 1 in the mean over the rows; None for all the same.
        auto_length: What `--max-length auto` came to, in tokens; null where a number was given.
    """

    format: int
    options: FitOptions
    task: TaskInfo
    source: str
    data_fingerprint: str
    backbone_fingerprint: str
    n_layers: int
    exits: tuple[int, ...]
    depths: dict[Method, Depths]
    pooling: str
    device: str
    precision: str
    auto_length: int | None = Field(default=None, ge=4, le=8192)
    share_cut: float
    versions: dict[str, str]
    code_revision: str | None
    class_weights: tuple[float, ...] | None = None
    split: SplitInfo

    @model_validator(mode="after")
    def _has_a_length(self) -> Self:
        if self.auto_length is None and self.options.max_length is None:
            raise ValueError("auto_length is missing where options.max_length is null")
        return self

    @property
    def max_length(self) -> int:
        """How many tokens of a text the encoder reads."""
        length = self.options.max_length or self.auto_length
        assert length is not None
        return length


def differing(theirs: BaseModel, ours: BaseModel) -> str:
    """Say which options of the same kind differ, as an error has it."""
    there, now = theirs.model_dump(), ours.model_dump()
    return ", ".join(
        f"{key} ({there[key]} there, {now[key]} now)" for key in now if there[key] != now[key]
    )


@dataclass(frozen=True)
class Run:
    """A run folder."""

    folder: Path
    config: RunConfig
    cloud_model: str | None = None

    def before(self, name: str, validation: ExitTable, test: ExitTable) -> Run:
        """Return the run with another model in the cloud, which answers what the encoder leaves undecided.

        It stands as one more layer, which only the cloud has; so the edge, or the device, may hold the whole encoder.
        The tables have its answers as the exit after this layer (`ExitTable.before`).
        """
        last = self.config.n_layers + 1
        depths = {
            name: replace(own, cloud=last, cloud_model=True)
            for name, own in self.config.depths.items()
        }
        config = self.config.model_copy(
            update={"n_layers": last, "exits": (*self.config.exits, last), "depths": depths}
        )
        return Run(self.folder, config, name).with_tables(validation, test)

    def with_tables(self, validation: ExitTable, test: ExitTable) -> Run:
        """Return the run with other tables of its rows, or of some of them."""
        found = Run(self.folder, self.config, self.cloud_model)
        found.__dict__["validation"] = validation
        found.__dict__["test"] = test
        return found

    def __repr__(self) -> str:
        """Name the folder, the task and the encoder."""
        options, task = self.config.options, self.config.task
        return (
            f"Run({str(self.folder)!r}: {task.name}, {len(task.label_names)} classes, {options.backbone}, "
            f"{self.config.n_layers} layers)"
        )

    @classmethod
    def of(cls, run: Run | str | Path) -> Run:
        """Return a run, or the finished run of a folder."""
        return run if isinstance(run, Run) else cls.open(run)

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """Open a finished run.

        Raises:
            RunError: If there is none, if its fit has not finished, or if a newer version wrote it.
        """
        folder = Path(folder)
        config = read_config(folder)
        if config is None:
            raise RunError(
                f"{folder} is no run: it has no config.json; `dimec fit TASK --out {folder}` makes one"
            )
        last = folder / "exits" / "test.safetensors"
        check_readable(last, fault=RunError)
        if not last.exists():
            raise RunError(
                f"the fit of {folder} has not finished: give `dimec fit` the same options again to resume it"
            )
        return cls(folder, config)

    def cut(
        self, *, mobile_layers: int | None = None, edge_layers: int | None = None
    ) -> dict[Method, Depths]:
        """Return where each method cuts the encoder: at the run's own depths, or at others that have exits.

        Raises:
            RunError: If its model is too small for three tiers.
            OptionError: If a depth has no exit, or the depths do not grow from tier to tier.
        """
        n_layers = self.config.n_layers
        depths = dict(self.config.depths)
        if not depths:
            layers = "1 layer makes" if n_layers == 1 else f"{n_layers} layers make"
            raise RunError(
                f"{self.folder} cannot be used alone, since {layers} no three tiers: give it to the evaluation of "
                "another run, as --mobile-model or --edge-model"
            )
        if mobile_layers is not None or edge_layers is not None:
            for method, own in depths.items():
                made = method_depths(
                    method,
                    n_layers,
                    mobile=own.mobile if mobile_layers is None else mobile_layers,
                    edge=own.edge if edge_layers is None else edge_layers,
                )
                depths[method] = replace(made, cloud_model=own.cloud_model)
        for each in depths.values():
            for layer in (each.mobile, each.edge):
                if layer not in self.config.exits:
                    raise OptionError(
                        f"no exit after layer {layer}: this run has exits after layers {list(self.config.exits)}; "
                        "choose among them, or fit with --exits all"
                    )
        return depths

    def cuts(
        self,
        compared: str | None = None,
        *,
        mobile_layers: int | None = None,
        edge_layers: int | None = None,
    ) -> tuple[dict[Method, Depths], ...]:
        """Return the cuts among which one may be chosen, the one that `cut` returns first where it is among them.

        Without ``compared`` these are that cut and, where every layer has an exit and no depth is given, each number
        of layers on the device with one more on the edge, and the whole encoder on the device.

        Args:
            compared: The mobile and the edge tier's last layers, such as 2/3,3/4; or all. 6/6 of 6 layers puts the
                whole encoder on the device.

        Raises:
            RunError: If its model is too small for three tiers.
            OptionError: If a cut is none or cannot be had, or both ways are used.
        """
        own = self.cut(mobile_layers=mobile_layers, edge_layers=edge_layers)
        last = self.config.n_layers
        given = mobile_layers is not None or edge_layers is not None
        if compared is not None and given:
            raise OptionError(
                f"--cuts {compared} compares cuts, and --mobile-layers or --edge-layers sets one: leave out one of them"
            )
        whole = last if self.cloud_model is None else last - 1  # the encoder's own layers
        if compared is None:
            if given or len(self.config.exits) < last:
                return (own,)
            pairs = [(layer, layer + 1) for layer in range(1, last - 1)] + [(whole, whole)]
        elif compared == "all":
            layers = [layer for layer in self.config.exits if layer < last]
            pairs = [*combinations(layers, 2), (whole, whole)]
            if len(pairs) == 1:
                raise OptionError(
                    f"--cuts all: this run has exits after layers {list(self.config.exits)} alone, and a cut needs two "
                    "before the last; fit with --exits all"
                )
        else:
            pairs = [_read_cut(each) for each in compared.split(",")]
        try:
            found = [self._cut_at(mobile, edge) for mobile, edge in dict.fromkeys(pairs)]
        except OptionError as exc:
            raise OptionError(f"--cuts {compared}: {exc}") from exc
        if compared is None:
            found = [own, *(each for each in found if each != own)]
        return tuple(found)

    def _cut_at(self, mobile: int, edge: int) -> dict[Method, Depths]:
        last, other = self.config.n_layers, self.cloud_model is not None
        if mobile == edge == last - other:
            return dict.fromkeys(self.config.depths, Depths(mobile, edge, last, other))
        return self.cut(mobile_layers=mobile, edge_layers=edge)

    @property
    def model_folder(self) -> Path:
        """Where the encoder, its exits and its tokenizer are."""
        return self.folder / "model"

    @property
    def n_labelled(self) -> int:
        """How many labelled rows validation is a fixed share of: all that were shared out, or a file of its own.

        A small copy of a run has no ``split.json``: there it is computed from the sizes that were asked for.

        Raises:
            RunError: If ``split.json`` cannot be read.
        """
        options = self.config.options
        if options.validation is not None:
            return len(self.validation)
        if (self.folder / SPLIT_FILE).exists():
            train, held, test = (len(rows) for rows in self.splits.values())
        else:
            train, held, test = SplitChoice.read(options.split).sizes
        shared_out = train + held + (test if options.test is None else 0)
        return round(len(self.validation) * shared_out / held)

    @property
    def splits(self) -> dict[str, NDArray[np.int64]]:
        """The row ids of each split, from ``split.json``.

        Raises:
            RunError: If it cannot be read.
        """
        path = self.folder / SPLIT_FILE
        with trusting_nothing(path, RunError, remedy="fit the run again"):
            document = read_json(path, limit=_MAX_SPLIT_BYTES)
            names = ("train", "validation", "test")
            return {name: np.asarray(document[name], dtype=np.int64) for name in names}

    def epochs(self) -> list[dict[str, Any]]:
        """Return what was noted of each epoch.

        Raises:
            RunError: If it cannot be read.
        """
        path = self.folder / "metrics.jsonl"
        with trusting_nothing(path, RunError, remedy="fit the run again"):
            return [parse_json(line, dict[str, Any]) for line in read_bounded(path).splitlines()]

    @cached_property
    def exit_zero(self) -> ExitZero:
        """The classifier before the first layer."""
        n_classes = len(self.config.task.label_names)
        return ExitZero.load(self.folder / EXIT_ZERO_FILE, n_classes=n_classes)

    @cached_property
    def validation(self) -> ExitTable:
        """The validation split's exit table, with training dynamics."""
        return ExitTable.load(self.folder / "exits" / "validation.safetensors")

    @cached_property
    def test(self) -> ExitTable:
        """The held-out test split's exit table."""
        return ExitTable.load(self.folder / "exits" / "test.safetensors")

    def table(self, split: Literal["validation", "test"]) -> ExitTable:
        """Return the exit table of a split."""
        return self.validation if split == "validation" else self.test


def _read_cut(text: str) -> tuple[int, int]:
    mobile, _, edge = text.partition("/")
    try:
        return int(mobile), int(edge)
    except ValueError:
        raise OptionError(
            f"--cuts {text!r}: give the last layers of mobile and edge with / between them, several cuts with commas, "
            "such as 2/3,3/4, or all"
        ) from None


def read_config(folder: Path) -> RunConfig | None:
    """Return the configuration in a folder, or None where there is none.

    Raises:
        RunError: If it cannot be read, or if a newer version wrote it.
    """
    path = folder / "config.json"
    with trusting_nothing(path, RunError, remedy="fit the run again"):
        if not path.exists():
            return None
        return read_json(path, RunConfig, known=FORMAT)
