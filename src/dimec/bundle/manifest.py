"""The manifest of a tier: what is in its folder, what it was made from, and how to be sure of it.

```
BUNDLE/
  mobile/ edge/ cloud/            each complete in itself
    manifest.json                 a TierManifest
    tokenizer.json                of the `tokenizers` library; padding and truncation off
    embedding.onnx                token ids -> hidden state and mean embedding
    segment-K.onnx                hidden state -> the hidden state and logits after layer K, for every exit K
    layers.onnx                   all segments as one graph, by the weights in their files
    reduce.onnx                   mobile, with a bottleneck: hidden state -> what is shipped of it, as numbers
    restore.onnx                  cloud, likewise: these numbers -> a hidden state
    restored-K.onnx               cloud, likewise: a segment behind it, of weights that were trained there
    tier.onnx                     edge and cloud: token ids -> the logits of all exits, by the weights of all of these
    policy.json, policy.safetensors   mobile: the fitted policy
    exit-zero.safetensors         mobile: the classifier before the first layer
    model.json                    edge or cloud, alone in its folder: the model of others that its server asks
  export.json                     what the export said: scores, the recommendation, a promise; no tier needs it
```

A bundle of split computing has the same files, since a segment starts from a hidden state as it is; its manifests say
so under ``tails``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import FailFast, Field, model_validator

from dimec.bundle.engines.tier import (
    EMBEDDING,
    LAYERS_GRAPH,
    REDUCE,
    RESTORE,
    TIER_GRAPH,
    restored_name,
    segment_name,
)
from dimec.bundle.hidden import Layers, Tails
from dimec.core.metrics import Metric
from dimec.core.tiers import Depths, Method, Tier
from dimec.core.tokens import CutKind
from dimec.core.untrusted import Record, open_regular
from dimec.costs.model import CostModel
from dimec.endpoints.prices import Price
from dimec.endpoints.said import Question
from dimec.runs.exit_zero import EXIT_ZERO_FILE

FORMAT = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
ASKED = "model.json"
POLICY = "policy"
POLICY_FILES = (f"{POLICY}.json", f"{POLICY}.safetensors")

REPORT, PROFILE = "export.json", "profile.json"
"""What an export said of the bundle, and what it takes on a machine that measured it."""

BUNDLE_FILES = (
    *(
        f"{tier}/{name}"
        for tier in Tier
        for name in (MANIFEST, TOKENIZER, ASKED, "*.onnx", EXIT_ZERO_FILE, *POLICY_FILES)
    ),
    REPORT,
    PROFILE,
)
"""What this package writes into a bundle's folder, as globs: nothing else in it is ever removed."""

# No file of a tier can be larger: an ONNX file is one protobuf message, which ends at 2 GiB.
MAX_FILE_BYTES = 2**31

_SHA256 = r"[0-9a-f]{64}"
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
"""A file directly in the tier's folder: no separator, nothing hidden, no way out."""

InputName = Literal["input_ids", "attention_mask", "token_type_ids"]


class FileInfo(Record):
    """What a file must be."""

    sha256: str = Field(pattern=f"^{_SHA256}$")
    bytes: int = Field(ge=1, le=MAX_FILE_BYTES)


class BundleTask(Record):
    """What was learnt, as far as a deployed model needs to know."""

    name: str
    metric: Metric
    pairs: bool


class Provenance(Record):
    """Where the model comes from: SHA-256 of texts and weights, seed, versions, the commit of the source tree."""

    data_fingerprint: str
    backbone: str
    backbone_fingerprint: str
    seed: int
    versions: dict[str, str]
    code_revision: str | None


class Promise(Record):
    """What was promised of the policy when it was exported, for data like the rows that certified it.

    Attributes:
        max_drop_points: Its accuracy lies at most so many points under all-cloud's, in float32.
        assurance: The probability that the promise holds.
        over: On how many texts to come it is counted; null for the long run.
        rows: The certifying rows; they chose nothing.
        drop_points: What was lost on them.
    """

    max_drop_points: float = Field(ge=0, lt=100)
    assurance: float = Field(gt=0, lt=1)
    over: int | None = Field(default=None, ge=1)
    rows: int = Field(ge=1)
    drop_points: float = Field(ge=-100, le=100)


class AskedModel(Record):
    """The model of others that a tier's server asks: its ``model.json``. No key is in it.

    Attributes:
        name: What it was called when the policy was fitted to its answers.
        address: Where it was asked; null where it was no endpoint, so that the server has to be told one.
        price: What an answer costs; null where nobody says, and each costs ``fee``.
        fee: What an answer cost in the mean, in the currency of the manifests.
    """

    format: int = Field(ge=1)
    name: str = Field(max_length=4096)
    address: str | None = Field(default=None, max_length=4096)
    question: Question = Question()
    price: Price | None = None
    fee: float = Field(ge=0, allow_inf_nan=False)


class TierManifest(Record):
    """Everything about one tier of a bundle: its ``manifest.json``.

    Attributes:
        layers: The layers after which the tier has an exit, ascending, counted from 1.
        n_layers: The encoder's layers, all tiers together.
        label_names: The classes, in the order of the logits.
        max_length: How many tokens of a text the encoder reads, special ones included.
        cut: Which tokens of a longer text these are.
        max_tokens: The longest row that the encoder can read at all.
        pad_id: The token id that fills a batch.
        n_vocabulary: How many token ids the encoder knows.
        inputs: The arrays that the graphs take, in order.
        policy: The name of the fitted policy, which the mobile tier holds.
        depths: The tiers' last layers.
        costs: The cost model that devices report costs by.
        currency: What these costs are in: money, or calls; null for lambda.
        asked: The tiers whose servers ask another model, which take texts, with what an answer costs in the mean; that
            is part of ``costs``.
        price: Likewise: what the full model on the mobile device costs in units of confidence.
        promise: What is promised of it; null where nothing was asked for.
        tails: The hidden states that this tier ships or resumes from; null where it does neither.
        quantized: Whether the weights are 8-bit integers.
        model_fingerprint: SHA-256 over all tiers' graphs and tokenizers; the same in all tiers of a bundle.
        files: Every other file of the folder.
    """

    format: int = Field(ge=1)
    tier: Tier
    layers: Layers = Field(min_length=1, max_length=1024)
    n_layers: int = Field(ge=1, le=1024)
    label_names: Annotated[tuple[str, ...], FailFast()] = Field(min_length=2, max_length=100_000)
    task: BundleTask
    max_length: int = Field(ge=3, le=1_000_000)
    cut: CutKind = "head"
    max_tokens: int = Field(ge=3, le=1_000_000)
    pad_id: int = Field(ge=0)
    n_vocabulary: int = Field(ge=1, le=2**31)
    inputs: tuple[InputName, ...]
    policy: str
    method: Method
    depths: Depths
    costs: CostModel
    currency: str | None = Field(default=None, max_length=100)
    asked: dict[Tier, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(
        default_factory=dict
    )
    price: float = Field(ge=0, allow_inf_nan=False)
    promise: Promise | None = None
    tails: Tails | None = None
    quantized: bool
    model_fingerprint: str = Field(pattern=f"^sha256:{_SHA256}$")
    provenance: Provenance
    files: dict[_Name, FileInfo] = Field(max_length=4096)

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        """Hold the parts against each other."""
        if tuple(sorted(set(self.layers))) != self.layers or self.layers[-1] > self.n_layers:
            raise ValueError(f"layers {list(self.layers)} must ascend up to {self.n_layers}")
        if len(set(self.inputs)) != len(self.inputs) or not set(self.inputs) >= {
            "input_ids",
            "attention_mask",
        }:
            raise ValueError("inputs must hold input_ids and attention_mask, each once")
        if self.pad_id >= self.n_vocabulary or self.max_length > self.max_tokens:
            raise ValueError("pad_id must be below n_vocabulary, max_length at most max_tokens")
        if self.tails is not None:
            self.tails.check(self.tier, self.layers, n_layers=self.n_layers)
        if self.depths.of(self.tier) not in self.layers or self.depths.cloud != self.n_layers:
            raise ValueError(f"layers {list(self.layers)} do not hold the tier's last")
        if Tier.MOBILE in self.asked or self.depths.cloud_model != (Tier.CLOUD in self.asked):
            raise ValueError(f"asked: {', '.join(self.asked) or 'no tier'} does not fit the depths")
        is_asked = self.tier in self.asked
        if is_asked and (len(self.layers) > 1 or self.tails is not None):
            raise ValueError("a tier whose server asks another model has one exit and no states")
        needed = needed_files(self.tier, self.layers, self.tails, asked=is_asked)
        missing = [name for name in needed if name not in self.files]
        if missing:
            raise ValueError(f"files: {', '.join(missing)} is not listed")
        return self


def needed_files(
    tier: Tier, layers: tuple[int, ...], tails: Tails | None = None, *, asked: bool = False
) -> Iterator[str]:
    """Give the files that a tier with these exits must have beside its manifest; an ``asked`` one has no graphs."""
    if asked:
        yield ASKED
        return
    yield TOKENIZER
    yield EMBEDDING
    yield from map(segment_name, layers)
    yield LAYERS_GRAPH
    yield from bottleneck_graphs(tier, layers, tails)
    if tier is Tier.MOBILE:
        yield from (*POLICY_FILES, EXIT_ZERO_FILE)
    else:
        yield TIER_GRAPH


def bottleneck_graphs(tier: Tier, layers: tuple[int, ...], tails: Tails | None) -> tuple[str, ...]:
    """Return the graphs that a tier has for a learned bottleneck; none without one."""
    if tails is None or tails.bottleneck is None:
        return ()
    if tier is Tier.MOBILE:
        return (REDUCE,)
    behind = (layer for layer in layers if layer > tails.layers[0])
    return (RESTORE, *map(restored_name, behind))


def file_info(path: Path, *, hashed: bool = True) -> FileInfo:
    """Measure a file; without ``hashed`` its SHA-256 is left at zeros.

    Raises:
        OSError: If it is no regular file that can be read.
    """
    with open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        hashed = hashed and size <= MAX_FILE_BYTES
        digest = hashlib.file_digest(file, "sha256").hexdigest() if hashed else "0" * 64
    return FileInfo.model_construct(sha256=digest, bytes=size)


def fingerprint_of(tiers: Mapping[Tier, Mapping[str, FileInfo]]) -> str:
    """Hash what makes the answers: all tiers' graphs, tokenizers and questions, by ``tier/name sha256``, in order."""
    lines = sorted(
        f"{tier}/{name} {info.sha256}\n"
        for tier, files in tiers.items()
        for name, info in files.items()
        if name in (TOKENIZER, ASKED) or name.endswith(".onnx")
    )
    return f"sha256:{hashlib.sha256(''.join(lines).encode()).hexdigest()}"
