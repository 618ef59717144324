"""The keyword arguments of `dimec`'s functions, for editors and type checkers: those of the option records.

Written by ``python -m tests.keywords`` from the records; a test holds the two equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, Required, TypeAlias, TypedDict

from dimec.core.guard_settings import GuardSettings
from dimec.costs.model import CostModel
from dimec.costs.profiles import CostProfile


class _Columns(Protocol):
    """A frame of pandas or polars, a table of pyarrow."""

    def __arrow_c_stream__(self, requested_schema: object = ...) -> object: ...


class _Dataset(Protocol):
    """A Dataset of Hugging Face's."""

    @property
    def column_names(self) -> Any: ...  # noqa: ANN401  a list, or one for each split


Data: TypeAlias = str | Path | _Columns | _Dataset | Sequence[Mapping[str, Any]] | Mapping[str, Any]
"""Labelled rows: a path, or what holds them in memory."""


class _TextColumns(TypedDict, total=False):
    text_column: str | None
    pair_column: str | None
    skip_empty: bool


class _LabelledColumns(_TextColumns, total=False):
    label_column: str | None
    skip_unlabelled: bool


class FitKeywords(_LabelledColumns, total=False):
    """Those of `FitOptions`."""

    data: Data | None
    metric: Literal["accuracy", "f1", "macro-f1", "balanced-accuracy", "matthews"] | None
    positive: str | None
    validation: Data | None
    test: Data | None
    fold_labels: bool
    backbone: str | Path
    layers: int | None
    pooling: Literal["attention", "mean", "cls", "pooler"] | None
    exits: Literal["all", "tiers"]
    mobile_layers: int | None
    edge_layers: int | None
    training: Literal["joint", "two-stage"]
    epochs: int
    batch_size: int
    learning_rate: float
    head_learning_rate: float
    exit_weights: Literal["equal", "depth"]
    r_drop: float
    class_weight: str
    max_length: int | Literal["auto"] | None
    cut: Literal["head", "head-tail"]
    max_rows: int | None
    split: str
    time_column: str | None
    seed: int
    precision: Literal["auto", "bf16", "fp32"]
    keep_texts: bool


class CompressKeywords(TypedDict, total=False):
    """Those of `CompressOptions`."""

    kind: Required[Literal["bottlenet", "bottlenet-pp", "bottlefit"]]
    layer: Required[int]
    width: Required[int]
    pool: int | None
    levels: int | None
    channel: Literal["awgn", "erasure"] | None
    snr_db: float | None
    erasure_rate: float | None
    draws: int | None
    temperature: float | None
    label_share: float | None
    max_rows: int
    epochs: int
    batch_size: int
    learning_rate: float
    bottleneck_learning_rate: float
    seed: int
    precision: Literal["auto", "bf16", "fp32"]


class _DialOptions(TypedDict, total=False):
    max_drop: float
    like: str | Path | None


class _DepthOptions(TypedDict, total=False):
    mobile_layers: int | None
    edge_layers: int | None


class _CutOptions(_DepthOptions, total=False):
    cuts: str | None


class _GuardOptions(TypedDict, total=False):
    audit_rate: float | None
    slack: float | None
    recalibrate: bool
    guard: GuardSettings | None


class _ModelOptions(TypedDict, total=False):
    cloud_model: str | Path | Callable[[Sequence[Any]], Any] | None
    edge_model: str | Path | Callable[[Sequence[Any]], Any] | None
    mobile_model: str | Path | Callable[[Sequence[Any]], Any] | None
    prompt: str | Path | None
    shots: int
    map: Sequence[str]
    model_price: str | None
    price_list: str | Path | None
    max_spend: float | None
    ask_rows: int | None
    at_once: int


class _CostOptions(TypedDict, total=False):
    costs: CostModel | Sequence[str] | None
    profile: str | Path | CostProfile | None
    unit: Literal["lambda", "ms", "bytes", "joules", "money"]


class _SetupOptions(
    _GuardOptions, _DepthOptions, _ModelOptions, _CostOptions, _LabelledColumns, total=False
):
    data: Data | None
    policies: Sequence[str]
    spread: Literal["deviation", "variance"]
    shuffles: int
    seed: int


class EvaluateKeywords(_DialOptions, _CutOptions, _SetupOptions, total=False):
    """Those of `EvaluateOptions`."""

    every_policy: bool
    price: float | None
    engine: Literal["auto", "onnxruntime", "openvino"] | None


class FrontierKeywords(_DialOptions, _SetupOptions, total=False):
    """Those of `FrontierOptions`."""

    prices: Sequence[float] | str


class _PromiseOptions(_CutOptions, _CostOptions, _LabelledColumns, total=False):
    over: int | None
    budget: float | None


class PlanKeywords(_ModelOptions, _PromiseOptions, total=False):
    """Those of `PlanOptions`."""

    max_drop: float | Sequence[float] | None
    assurance: float
    data: Data | None
    rate: float | None


class StudyKeywords(TypedDict, total=False):
    """Those of `StudyOptions`."""

    tasks: Sequence[str] | str
    data: str | Path | None
    backbone: str
    pooling: Literal["attention", "mean", "cls", "pooler"]
    epochs: int
    seeds: int | None
    max_rows: int | None
    fitted: bool
    price: float
    runs: str | Path


class ReportKeywords(_DialOptions, total=False):
    """Those of `ReportOptions`."""


class ExportKeywords(_DialOptions, _GuardOptions, _ModelOptions, _PromiseOptions, total=False):
    """Those of `ExportOptions`."""

    assurance: float | None
    certify: Data | None
    policy: str
    quantize: Sequence[str] | str
    tails: bool
    hidden_type: Literal["FP16", "FP32", "fp16", "fp32"] | None
    price: float | None


class BulkKeywords(_TextColumns, total=False):
    """Those of `BulkOptions`."""

    data: Required[str | Path]
    id_column: str | None
    max_drop: float | None
    assurance: float
    ray: str | None
    workers: int | None
    engine: Literal["onnxruntime", "openvino"]
    threads: int | None
    model: Sequence[str]
    model_key_file: Sequence[str]
    model_price: Sequence[str]
    max_spend: float | None
    at_once: int


class _DeviceSettings(TypedDict, total=False):
    deadline_ms: float
    in_flight: int | None
    attempts: int
    backoff_ms: float
    opens_after: int
    open_s: float
    max_open_s: float
    probe_ms: float
    connections: int
    max_response_bytes: int
    token_needs_tls: bool
    needs_fingerprint: bool
    ca_file: str | Path | None
    certificate_file: str | Path | None
    key_file: str | Path | None
    proxy: str | None
    hidden_type: Literal["FP16", "FP32", "fp16", "fp32"] | None
    engine: Literal["auto", "onnxruntime", "openvino"]
    threads: int | None
    snapshot_updates: int
    snapshot_s: float


class LoadKeywords(_DeviceSettings, total=False):
    """Those of `LoadOptions`."""

    edge: str | None
    cloud: str | None
    state: str | Path | None
